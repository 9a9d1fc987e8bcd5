"""Load shapes: due times as distributions, and the keys that go with each shape."""

from __future__ import annotations

import math
import time
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from harness.workload.arrivals import TAKES, Load, Trace, due_times, user_spans

N = 20_000


def gaps(**keys: Any) -> NDArray[np.float64]:
    """The first N gaps, the one from 0 to the first request included."""
    return np.diff(list(due_times(Load(**keys), N, seed=7)), prepend=0.0)


def lag_1(x: NDArray[np.float64]) -> float:
    return float(np.corrcoef(x[:-1], x[1:])[0, 1])


def trace(*arrival_s: float) -> Trace:
    ones = np.ones(len(arrival_s), dtype=np.int64)
    return Trace(np.array(arrival_s), ones, ones)


def test_constant_gaps_are_all_the_same() -> None:
    due = np.array(list(due_times(Load(shape="constant", rate_per_s=8), N, seed=7)))
    assert due[0] == 0
    assert np.diff(due) == pytest.approx(1 / 8, abs=1e-9)  # CV 0, and no drift from adding up


def test_poisson_gaps_are_exponential_and_independent() -> None:
    g = np.sort(gaps(shape="poisson", rate_per_s=5))
    cdf = 1 - np.exp(-5 * g)
    steps = np.arange(N + 1) / N
    distance = max(np.max(steps[1:] - cdf), np.max(cdf - steps[:-1]))
    assert distance < 1.63 / math.sqrt(N)  # Kolmogorov-Smirnov, 1%
    assert abs(lag_1(gaps(shape="poisson", rate_per_s=5))) < 3 / math.sqrt(N)


def test_poisson_counts_per_window_have_variance_equal_to_their_mean() -> None:
    due = np.cumsum(gaps(shape="poisson", rate_per_s=5))
    counts = np.histogram(due, bins=np.arange(0, due[-1], 2.0))[0]
    assert counts.mean() == pytest.approx(10, rel=0.03)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_rate_and_the_burstiness_asked_for(burstiness: float) -> None:
    g = gaps(shape="gamma", rate_per_s=20, burstiness=burstiness)
    assert g.mean() == pytest.approx(1 / 20, rel=4 / math.sqrt(burstiness * N))  # 4 standard errors
    assert g.std() / g.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)  # CV^2 = 1/k
    assert abs(lag_1(g)) < 3 / math.sqrt(N)


def test_poisson_is_gamma_of_burstiness_1() -> None:
    assert np.array_equal(gaps(shape="gamma", rate_per_s=3, burstiness=1), gaps(shape="poisson", rate_per_s=3))


def test_due_times_depend_only_on_the_seed() -> None:
    load = Load(shape="poisson", rate_per_s=3)
    assert list(due_times(load, 50, seed=1)) == list(due_times(load, 50, seed=1))
    assert list(due_times(load, 50, seed=0)) != list(due_times(load, 50, seed=1))


def test_offline_is_due_at_once() -> None:
    assert list(due_times(Load(shape="offline"), 3, seed=0)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("keys", "count", "due"),
    [
        ({}, None, [0, 2, 6]),  # the whole trace, once, from its first arrival
        ({"time_scale": 0.5}, None, [0, 1, 3]),
        ({}, 2, [0, 2]),
        ({}, 9, [0, 2, 6]),
        ({"duration_s": 6}, None, [0, 2]),  # due at the limit is too late
        ({"duration_s": "0.1 min"}, 1, [0]),  # whichever comes first
    ],
)
def test_a_trace_is_replayed_once_from_its_first_arrival(
    keys: dict[str, Any], count: int | None, due: list[float]
) -> None:
    load = Load(shape="trace", trace="t", **keys)
    assert list(due_times(load, count, 0, trace(10, 12, 16))) == due


def test_a_closed_loop_has_no_due_times() -> None:
    with pytest.raises(ValueError, match="closed"):
        due_times(Load(shape="closed", users=1), 1, 0)


@given(
    rate=st.floats(0.01, 1e4),
    burstiness=st.floats(0.1, 10),
    seed=st.integers(0, 2**63 - 1),
    count=st.integers(1, 200),
    duration_s=st.floats(1e-3, 100),
)
def test_due_times_never_decrease_and_keep_to_both_limits(
    rate: float, burstiness: float, seed: int, count: int, duration_s: float
) -> None:
    free = Load(shape="gamma", rate_per_s=rate, burstiness=burstiness)
    limited = free.model_copy(update={"duration_s": duration_s})
    every = list(islice(due_times(free, None, seed), count))
    assert every == sorted(every)
    assert list(due_times(limited, count, seed)) == [due for due in every if due < duration_s]


@pytest.mark.parametrize(
    ("written", "si"),
    [(3, 3.0), (0.5, 0.5), ("200 ms", 0.2), ("2min", 120.0), ("1e-3", 0.001), ("1 h", 3600.0), ("50 us", 5e-5)],
)
def test_times_convert_to_seconds(written: Any, si: float) -> None:
    assert Load(shape="constant", rate_per_s=1, duration_s=written).duration_s == pytest.approx(si)


@pytest.mark.parametrize(("written", "si"), [(3, 3.0), ("3 /s", 3.0), ("120 /min", 2.0), ("9/h", 0.0025), ("2", 2.0)])
def test_rates_convert_to_requests_per_second(written: Any, si: float) -> None:
    assert Load(shape="constant", rate_per_s=written).rate_per_s == pytest.approx(si)


@pytest.mark.parametrize("wrong", [0, -1, "-1 s", "3 sec", "3 /s", "soon", "1.2.3", "inf", math.nan, True, [1], ""])
def test_an_invalid_time_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="above 0"):
        Load.model_validate({"shape": "constant", "rate_per_s": 1, "duration_s": wrong})


@pytest.mark.parametrize("wrong", [0, -3, "3 s", "3 per second", "/s"])
def test_an_invalid_rate_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="above 0"):
        Load.model_validate({"shape": "constant", "rate_per_s": wrong})


EXAMPLES: dict[str, Any] = {
    "users": 2, "rate_per_s": 1.0, "burstiness": 0.5, "trace": "t",
    "time_scale": 2.0, "duration_s": 1.0, "max_in_flight": 3, "from_users": 0, "to_users": 4, "from_rate_per_s": 0.0,
    "to_rate_per_s": 2.0, "over_s": 10.0, "arrivals": "constant", "start": "burst",
}  # fmt: skip
STEPS = {"of users": ({"users": 3, "duration_s": 9.0},), "of the rate": ({"rate_per_s": 3.0, "duration_s": 9.0},)}


@pytest.mark.parametrize("shape", sorted(TAKES))
def test_each_shape_requires_its_keys_and_refuses_those_of_other_shapes(shape: str) -> None:
    takes = TAKES[shape].split()
    shape, _, varied = shape.partition(" ")
    examples = {**EXAMPLES, "steps": STEPS.get(varied)}
    needed = {key: examples[key] for key in takes if not key.endswith("?")}
    optional = {key.rstrip("?"): examples[key.rstrip("?")] for key in takes}
    assert Load(shape=shape, **needed, **{key: optional[key] for key in optional.keys() - needed.keys()})
    for key in needed:
        with pytest.raises(ValidationError, match="is missing"):
            Load(shape=shape, **{**needed, key: None})
    for key in EXAMPLES.keys() - optional.keys():
        with pytest.raises(ValidationError, match=r"does not go with|is missing; ramp of"):
            Load(shape=shape, **needed, **{key: EXAMPLES[key]})


# Ramps and steps


def ramp(of: str, start: float, end: float, over_s: float, **keys: Any) -> Load:
    return Load.model_validate({"shape": "ramp", f"from_{of}": start, f"to_{of}": end, "over_s": over_s, **keys})


def steps(of: str, *pairs: tuple[float, float], **keys: Any) -> Load:
    return Load.model_validate({"shape": "steps", "steps": [{of: a, "duration_s": s} for a, s in pairs], **keys})


@pytest.mark.parametrize(
    ("load", "due"),
    [
        # by hand: the integral of the rate is t^2/4 up to 4 s, where it is 4, and then grows by 2 a second
        (ramp("rate_per_s", 0, 2, 4, arrivals="constant", duration_s=5.2), [0, 2, 8**0.5, 12**0.5, 4, 4.5, 5]),
        # 2t - t^2/4: the last one comes when the rate reaches 0, and none after it
        (ramp("rate_per_s", 2, 0, 4, arrivals="constant"), [0, 4 - 12**0.5, 4 - 8**0.5, 2, 4]),
        (ramp("rate_per_s", 2, 2, 4, arrivals="constant", duration_s=2), [0, 0.5, 1, 1.5]),
        (steps("rate_per_s", (0, 1), (2, 1), (0, 1), (1, 2), arrivals="constant"), [1, 1.5, 3, 4]),
        (steps("rate_per_s", (2, 1), (4, 9), arrivals="constant", duration_s=1.5), [0, 0.5, 1, 1.25]),
    ],
)
def test_constant_arrivals_are_due_when_the_cumulative_rate_passes_whole_numbers(load: Load, due: list[float]) -> None:
    assert list(due_times(load, None, 0)) == pytest.approx(due)


def area(pieces: list[tuple[float, float, float]], t: float) -> float:
    """The integral up to t of a rate of pieces (how long, from, to)."""
    total = 0.0
    for span, a, b in pieces:
        x = min(t, span)
        total += a * x + (b - a) / span * x**2 / 2
        t -= x
    return total


@pytest.mark.parametrize(
    ("load", "pieces"),
    [
        (ramp("rate_per_s", 5, 400, 60, duration_s=100), [(60, 5, 400), (40, 400, 400)]),
        (ramp("rate_per_s", 400, 0, 100), [(100, 400, 0)]),
        (
            steps("rate_per_s", (50, 20), (0, 5), (600, 30), (10, 40)),
            [(20, 50, 50), (5, 0, 0), (30, 600, 600), (40, 10, 10)],
        ),
    ],
)
def test_poisson_arrivals_of_a_varying_rate_are_those_of_a_rate_of_1_after_time_rescaling(
    load: Load, pieces: list[tuple[float, float, float]]
) -> None:
    due = list(due_times(load, None, seed=3))
    gaps = np.diff([area(pieces, t) for t in due], prepend=0.0)
    assert stats.kstest(gaps, "expon").pvalue > 0.01
    assert abs(lag_1(gaps)) < 3 / math.sqrt(len(gaps))
    expected = area(pieces, math.inf)
    assert len(due) == pytest.approx(expected, abs=4 * math.sqrt(expected))


@given(
    levels=st.lists(st.floats(0, 50), min_size=1, max_size=5).filter(any),
    span=st.floats(0.1, 10),
    seed=st.integers(0, 100),
)
def test_steps_of_constant_arrivals_give_as_many_requests_as_the_cumulative_rate(
    levels: list[float], span: float, seed: int
) -> None:
    load = steps("rate_per_s", *((level, span) for level in levels), arrivals="constant")
    due = list(due_times(load, None, seed))
    assert due == sorted(due)
    assert len(due) == pytest.approx(sum(levels) * span, abs=1.001)


@pytest.mark.parametrize(
    ("load", "spans"),
    [
        (Load(shape="closed", users=2, duration_s=9), [[(0, 9)], [(0, 9)]]),
        (Load(shape="closed", users=1), [[(0, math.inf)]]),
        (ramp("users", 1, 3, 10), [[(0, math.inf)], [(5, math.inf)], [(10, math.inf)]]),
        (ramp("users", 3, 1, 10, duration_s=20), [[(0, 20)], [(0, 10)], [(0, 5)]]),
        (ramp("users", 0, 2, 10, duration_s=8), [[(5, 8)], []]),  # the second would come at 10
        (steps("users", (1, 1), (3, 1), (0, 1), (2, 2)), [[(0, 2), (3, 5)], [(1, 2), (3, 5)], [(1, 2)]]),
    ],
)
def test_users_are_active_in_the_spans_of_the_load(load: Load, spans: list[list[tuple[float, float]]]) -> None:
    assert user_spans(load) == spans


@given(start=st.integers(0, 40), end=st.integers(0, 40), at=st.floats(0, 20))
def test_users_on_a_ramp_are_the_level_rounded_towards_the_start_level(start: int, end: int, at: float) -> None:
    assume(start or end)
    level = start + (end - start) * min(at / 10, 1.0)
    assume(abs(level - round(level)) > 1e-9)
    there = sum(a <= at < b for spans in user_spans(ramp("users", start, end, 10)) for a, b in spans)
    assert there == (math.floor(level) if end > start else math.ceil(level))


def test_a_load_has_either_users_or_due_times() -> None:
    with pytest.raises(ValueError, match="no due times"):
        due_times(ramp("users", 1, 2, 3), None, 0)
    with pytest.raises(ValueError, match="no users"):
        user_spans(Load(shape="offline"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"steps": [{"users": 1, "duration_s": 1}, {"rate_per_s": 1, "duration_s": 1}]},
            "users in every step, or a rate",
        ),
        ({"steps": [{"duration_s": 1}]}, "users in every step, or a rate"),
        ({"steps": [{"users": 1, "rate_per_s": 1, "duration_s": 1}]}, "users in every step, or a rate"),
        ({"steps": [{"users": 0, "duration_s": 1}]}, "never rises above 0"),
        ({"steps": []}, "at least 1 item"),
        ({"steps": [{"rate_per_s": "-1 /s", "duration_s": 1}]}, "a number from 0"),
    ],
)
def test_invalid_steps_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Load.model_validate({"shape": "steps", **keys})


def test_a_million_due_times_take_at_most_half_a_second() -> None:
    began = time.process_time()
    assert sum(1 for _ in due_times(Load(shape="poisson", rate_per_s=100), 1_000_000, 0)) == 1_000_000
    assert time.process_time() - began < 0.5
