"""Percentiles and their intervals against known answers, numpy, and repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from closed_loop import closed_loops, truth
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import stats
from harness.analysis.tokens import Events
from harness.analysis.window import find_window

FINITE = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=50), st.floats(0, 1))
def test_percentile_equals_numpys_default(values: list[float], p: float) -> None:
    assert stats.percentile(np.sort(values), p) == pytest.approx(float(np.quantile(values, p)), abs=1e-9)


def independent(ordered: np.ndarray, p: float) -> stats.Interval | None:
    """The interval of independent values, each of a request."""
    n = len(ordered)
    return stats.percentile_interval(ordered, p, 1.96 * math.sqrt(p * (1 - p) / n), n)


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=80), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_an_interval_encloses_its_percentile_and_stays_inside_the_values(values: list[float], p: float) -> None:
    ordered = np.sort(values)
    interval = independent(ordered, p)
    if interval is not None:
        assert ordered[0] <= interval[0] <= stats.percentile(ordered, p) <= interval[1] <= ordered[-1]


@pytest.mark.parametrize("p", [0.5, 0.9, 0.95, 0.99])
def test_independent_values_have_an_interval_from_about_least_n_on(p: float) -> None:
    """From there on the smallest and the largest enclose the quantile with 95%."""
    first = next(n for n in range(1, 400) if independent(np.arange(n, dtype=float), p) is not None)
    assert 0.85 * stats.least_n(p) <= first <= stats.least_n(p)
    assert stats.independent(p, 1.96 * math.sqrt(p * (1 - p) / 400)) == pytest.approx(400)


def test_weights_are_as_many_equal_values() -> None:
    values, weights = np.arange(1.0, 301.0), np.tile([1.0, 2.0, 3.0], 100)
    repeated = np.repeat(values, weights.astype(int))
    for p in (0.1, 0.5, 0.9):
        assert stats.percentile(values, p, weights) == pytest.approx(stats.percentile(repeated, p), abs=1)
        assert stats.percentile(values, p, np.full(300, 7.0)) == pytest.approx(stats.percentile(values, p))


def test_intervals_cover_the_true_percentile_of_a_skewed_distribution() -> None:
    rng = np.random.default_rng(1)
    for n, p in ((40, 0.5), (40, 0.9), (400, 0.99)):
        truth = -math.log(1 - p)
        found = [independent(np.sort(rng.exponential(size=n)), p) or (0.0, 0.0) for _ in range(1000)]
        assert np.mean([low <= truth <= high for low, high in found]) >= 0.94


def clusters(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Values that share a factor within their cluster: far fewer independent ones than there are values."""
    sizes = rng.integers(20, 80, count)
    return np.exp(np.repeat(rng.normal(size=count), sizes) + rng.normal(0, 0.3, sizes.sum())), sizes


def pooled(values: np.ndarray, sizes: np.ndarray, p: float) -> stats.Interval | None:
    ordered = np.sort(values)
    passed = np.add.reduceat(values > stats.percentile(ordered, p), np.cumsum(sizes) - sizes, dtype=float)
    half = stats.share_half(passed, sizes.astype(float))
    return None if half is None else stats.percentile_interval(ordered, p, half, len(sizes))


def test_intervals_of_percentiles_of_gaps_cover_where_pretending_independence_does_not() -> None:
    spread = math.sqrt(1 + 0.3**2)
    covered: dict[str, list[bool]] = {"pooled": [], "independent": []}
    for seed in range(300):
        values, sizes = clusters(np.random.default_rng(seed), 200)
        for p, z in ((0.5, 0.0), (0.9, 1.2815516)):
            truth = math.exp(z * spread)
            together = pooled(values, sizes, p) or (0.0, 0.0)
            alone = independent(np.sort(values), p) or (0.0, 0.0)
            covered["pooled"].append(together[0] <= truth <= together[1])
            covered["independent"].append(alone[0] <= truth <= alone[1])
    assert 0.92 <= np.mean(covered["pooled"]) <= 0.99
    assert np.mean(covered["independent"]) < 0.5


def test_a_percentile_has_no_interval_where_one_request_holds_the_whole_tail() -> None:
    values = np.concatenate([np.full(9900, 1.0), np.linspace(2, 3, 500)])
    assert pooled(values, np.array([99] * 100 + [500]), 0.95) is None


def test_the_interval_of_a_percentile_of_constants_is_that_constant() -> None:
    assert pooled(np.full(1000, 0.01), np.full(100, 10), 0.9) == (0.01, 0.01)


def covers(top: stats.Array, known: float, bottom: stats.Array | None = None, together: float = 1.0) -> bool:
    half = stats.ratio_half(top, bottom, together)
    ratio = float(top.sum() / (len(top) if bottom is None else bottom.sum()))
    return half is not None and abs(ratio - known) <= half * ratio


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.6, 0.8])
def test_intervals_of_a_mean_cover_the_true_value_of_autocorrelated_values(phi: float) -> None:
    """Autoregressive series of 1,000 values: taken as independent, they cover down to 50% of the time."""
    rng, runs, n = np.random.default_rng(4), 600, 1000
    x = np.empty((n, runs))
    x[0] = rng.normal(0, 1, runs) / math.sqrt(1 - phi**2)
    for i in range(1, n):
        x[i] = phi * x[i - 1] + rng.normal(0, 1, runs)
    assert 0.90 <= np.mean([covers(20 + each, 20) for each in x.T]) <= 0.98


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0])
def test_intervals_of_a_closed_loop_cover_the_true_value(cv: float) -> None:
    """The rate of the window and the mean time of a request, 400 runs each."""
    users, rate_held, mean_held = 8, [], []
    rate, stay = truth(users, cv)
    for run in closed_loops(users, users * 40, 400, seed=5, cv=cv):
        came = run.arrivals()
        output = Events(came, came, np.ones(len(came)))
        found = find_window(run.sent_s, run.first_s, run.end_s, output.until, shape="closed", users=users)
        if found.whole is not None:
            continue
        inside = (run.sent_s >= found.begin_s) & (run.sent_s < found.end_s)
        stays = (run.end_s - run.sent_s)[inside]
        half = stats.ratio_half(run.tokens[inside], stays, users)
        seen = ((came >= found.begin_s) & (came < found.end_s)).sum() / (found.end_s - found.begin_s)
        rate_held.append(half is not None and abs(seen - rate) <= half * seen)
        mean_held.append(covers(stays, stay, None, users))
    assert len(rate_held) > 380
    assert 0.92 <= np.mean(rate_held) <= 0.98
    assert 0.92 <= np.mean(mean_held) <= 0.98


@pytest.mark.parametrize("phi", [0.5, 0.8])
def test_intervals_cover_where_each_slot_depends_on_itself_for_longer_than_the_run_can_tell(phi: float) -> None:
    """50 slots of 21 requests each; in time order alone an interval would cover 60 to 70% at 0.8."""
    rng, users, each, held = np.random.default_rng(8), 50, 21, []
    for _ in range(400):
        x = rng.normal(0, 1, (each, users))
        for i in range(1, each):
            x[i] = phi * x[i - 1] + math.sqrt(1 - phi**2) * x[i]
        values, slot = np.exp(0.3 * x).ravel(), np.tile(np.arange(users), each)
        half = stats.ratio_half(values, None, users, slot) or 0.0
        held.append(abs(values.mean() - math.exp(0.045)) <= half * values.mean())
    assert 0.90 <= np.mean(held) <= 0.99


def test_intervals_cover_where_all_slots_slow_down_together() -> None:
    """A factor on all, whose correlation lasts one request time, over 22 request times of 50 slots."""
    rng, users, held = np.random.default_rng(9), 50, []
    keep = math.exp(-1 / users)
    for _ in range(300):
        noise = rng.normal(0, math.sqrt(1 - keep**2), 22 * users)
        noise[0] /= math.sqrt(1 - keep**2)
        for i in range(1, len(noise)):
            noise[i] += keep * noise[i - 1]
        values = 1 + 0.1 * noise
        held.append(abs(values.mean() - 1) <= (stats.ratio_half(values, None, users) or 0.0) * values.mean())
    assert 0.90 <= np.mean(held) <= 0.98


def test_intervals_of_joules_per_token_cover_the_true_value() -> None:
    rng = np.random.default_rng(6)
    counts = rng.uniform(80, 120, (600, 20))
    joules = 2.0 * counts + rng.normal(0, 20, (600, 20))
    assert 0.92 <= np.mean([covers(j, 2.0, c) for j, c in zip(joules, counts, strict=True)]) <= 0.98


@pytest.mark.parametrize(
    ("top", "bottom", "why"),
    [
        (np.arange(1.0, 3.0), None, "two values"),
        (np.zeros(50), None, "nothing came"),
        (np.ones(50), np.zeros(50), "no time passed"),
        (np.full(50, math.nan), None, "unknown"),
        (np.r_[np.zeros(49), 1.0], None, "one value holds it all"),
    ],
)
def test_too_few_or_dependent_values_have_no_interval(top: stats.Array, bottom: stats.Array | None, why: str) -> None:
    assert stats.ratio_half(top, bottom) is None, why


def test_intervals_over_repeats_equal_the_calculation_by_hand_and_cover() -> None:
    assert stats.repeats_half(np.array([5.0])) is None
    assert stats.repeats_half(np.array([1.0, 3.0])) == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2), rel=1e-4)
    drawn = np.random.default_rng(7).normal(10, 1, (600, 4))
    held = np.mean([abs(each.mean() - 10) <= (stats.repeats_half(each) or 0) for each in drawn])
    assert 0.93 <= held <= 0.97
