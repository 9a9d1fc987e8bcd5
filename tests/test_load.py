"""Load shapes: due times as distributions, and the keys that go with each shape."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from harness.load import TAKES, Load, Trace, due_s

N = 20_000


def gaps(**keys: Any) -> NDArray[np.float64]:
    """The first N gaps, the one from 0 to the first request included."""
    return np.diff(list(due_s(Load(**keys), N, seed=7)), prepend=0.0)


def lag_1(x: NDArray[np.float64]) -> float:
    return float(np.corrcoef(x[:-1], x[1:])[0, 1])


def trace(*arrival_s: float) -> Trace:
    ones = np.ones(len(arrival_s), dtype=np.int64)
    return Trace("t", np.array(arrival_s), ones, ones, "here")


def test_constant_gaps_are_all_the_same() -> None:
    due = np.array(list(due_s(Load(shape="constant", rate_per_s=8), N, seed=7)))
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


def test_the_seed_alone_decides() -> None:
    load = Load(shape="poisson", rate_per_s=3)
    assert list(due_s(load, 50, seed=1)) == list(due_s(load, 50, seed=1))
    assert list(due_s(load, 50, seed=0)) != list(due_s(load, 50, seed=1))


def test_offline_is_due_at_once() -> None:
    assert list(due_s(Load(shape="offline"), 3, seed=0)) == [0.0, 0.0, 0.0]


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
def test_trace(keys: dict[str, Any], count: int | None, due: list[float]) -> None:
    load = Load(shape="trace", trace="t", **keys)
    assert list(due_s(load, count, 0, trace(10, 12, 16))) == due


def test_closed_has_no_due_times() -> None:
    with pytest.raises(ValueError, match="closed"):
        due_s(Load(shape="closed", users=1), 1, 0)


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
    every = list(islice(due_s(free, None, seed), count))
    assert every == sorted(every)
    assert list(due_s(limited, count, seed)) == [due for due in every if due < duration_s]


@pytest.mark.parametrize(
    ("written", "si"),
    [(3, 3.0), (0.5, 0.5), ("200 ms", 0.2), ("2min", 120.0), ("1e-3", 0.001), ("1 h", 3600.0), ("50 us", 5e-5)],
)
def test_seconds(written: Any, si: float) -> None:
    assert Load(shape="constant", rate_per_s=1, duration_s=written).duration_s == pytest.approx(si)


@pytest.mark.parametrize(("written", "si"), [(3, 3.0), ("3 /s", 3.0), ("120 /min", 2.0), ("9/h", 0.0025), ("2", 2.0)])
def test_rates(written: Any, si: float) -> None:
    assert Load(shape="constant", rate_per_s=written).rate_per_s == pytest.approx(si)


@pytest.mark.parametrize("wrong", [0, -1, "-1 s", "3 sec", "3 /s", "soon", "1.2.3", "inf", math.nan, True, [1], ""])
def test_what_is_no_time_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="above 0"):
        Load.model_validate({"shape": "constant", "rate_per_s": 1, "duration_s": wrong})


@pytest.mark.parametrize("wrong", [0, -3, "3 s", "3 per second", "/s"])
def test_what_is_no_rate_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="above 0"):
        Load.model_validate({"shape": "constant", "rate_per_s": wrong})


EXAMPLES: dict[str, Any] = {
    "users": 2, "rate_per_s": 1.0, "burstiness": 0.5, "trace": "t",
    "time_scale": 2.0, "duration_s": 1.0, "max_in_flight": 3,
}  # fmt: skip


@pytest.mark.parametrize("shape", sorted(TAKES))
def test_each_shape_takes_its_keys_needs_the_plain_ones_and_refuses_the_others(shape: str) -> None:
    takes = TAKES[shape].split()
    needed = {key: EXAMPLES[key] for key in takes if not key.endswith("?")}
    optional = {key.rstrip("?"): EXAMPLES[key.rstrip("?")] for key in takes}
    assert Load(shape=shape, **needed, **{key: optional[key] for key in optional.keys() - needed.keys()})
    for key in needed:
        with pytest.raises(ValidationError, match="is missing"):
            Load(shape=shape, **{**needed, key: None})
    for key in EXAMPLES.keys() - optional.keys():
        with pytest.raises(ValidationError, match="does not go with"):
            Load(shape=shape, **needed, **{key: EXAMPLES[key]})
