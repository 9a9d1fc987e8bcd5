"""Lines through intervals that each contain one instant of a periodic sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.periodic import fit


@given(
    phi=st.floats(0, 0.1),
    ppm=st.floats(-900, 900),
    gaps=st.lists(st.integers(1, 9), min_size=3, max_size=40),
    width=st.floats(0.0002, 0.03),
    jitter=st.sampled_from([0.0, 0.0, 0.0008]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=200)
def test_the_bounds_hold_every_instant_of_the_true_line(
    phi: float, ppm: float, gaps: list[int], width: float, jitter: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    period = 0.1 * (1 + ppm / 1e6)
    k = np.cumsum(gaps)
    instants = phi + k * period + jitter * rng.uniform(-1, 1, len(k))
    low = instants - width * rng.random(len(k))
    line = fit(low, low + width, (0.0999, 0.1001), 0.001)
    assert line is not None
    number = np.round(line.number(phi + k * period))
    if 2 * line.slack_s >= jitter:  # else the intervals are too wide to show the jitter
        assert line.period[0] - 1e-12 <= period <= line.period[1] + 1e-12
        earliest, latest = line.bounds_s(number)
        assert (earliest - 1e-9 <= phi + k * period).all()
        assert (phi + k * period <= latest + 1e-9).all()
    assert (np.diff(number) == gaps[1:]).all()
    for time_s in rng.uniform(instants[0] - 1, instants[-1] + 1, 5):
        expected = line.bounds_s(np.floor(line.number(np.array([time_s]))) + 2)
        assert line.around_s(float(time_s), 2) == pytest.approx([float(each[0]) for each in expected])


def test_a_line_is_as_certain_as_its_narrowest_intervals_allow() -> None:
    """Two intervals of 2 ms, 1000 periods apart: phase ±1 ms, period ±2 us."""
    k = np.array([0, 1, 5, 30, 200, 1000])
    width = np.array([0.002, 0.02, 0.02, 0.02, 0.02, 0.002])
    line = fit(0.1 * k - width / 2, 0.1 * k + width / 2, (0.0999, 0.1001))
    assert line is not None
    low, high = line.bounds_s(np.array([0.0]))
    assert (low[0], high[0]) == pytest.approx((-0.001, 0.001))
    assert line.period == pytest.approx((0.1 - 2e-6, 0.1 + 2e-6))


def test_intervals_that_fit_no_line_give_none_and_little_jitter_gives_slack() -> None:
    k = np.arange(40)
    early_and_late = 0.1 * k + 0.004 * (-1.0) ** k
    assert fit(early_and_late - 0.001, early_and_late + 0.001, (0.099, 0.101), 0.001) is None
    little = 0.1 * k + 0.0012 * (-1.0) ** k
    line = fit(little - 0.001, little + 0.001, (0.099, 0.101), 0.001)
    assert line is not None
    assert line.slack_s == pytest.approx(0.0002, rel=0.05)


def test_an_interval_whose_number_is_ambiguous_does_not_count() -> None:
    """After 20 s a period that is known to 1% allows two numbers."""
    low = np.array([0.0, 0.1, 20.0])
    line = fit(low, low + 0.01, (0.099, 0.101))
    assert line is not None
    assert line.period == pytest.approx((0.099, 0.101))


def test_intervals_of_a_period_or_more_do_not_count() -> None:
    assert fit(np.array([0.0, 0.3]), np.array([0.12, 0.5]), (0.099, 0.101)) is None
    assert fit(np.array([]), np.array([]), (0.099, 0.101)) is None


def test_intervals_that_the_narrowest_one_cannot_number_are_numbered_by_the_line() -> None:
    """Rough bursts at 0 and 30 s: the period's doubt and one interval of 36 ms do not tell what the whole line does."""
    rng = np.random.default_rng(3)
    k = np.concatenate([np.arange(10), 300 + np.arange(10)])
    width = np.repeat([0.036, 0.07], 10)
    low = 0.1 * k - width * rng.uniform(0.05, 0.95, len(k))
    line = fit(low, low + width, (0.09984, 0.10016))
    assert line is not None
    earliest, latest = line.bounds_s(np.round(line.number(np.array([30.0]))))
    assert earliest[0] <= 30.0 <= latest[0]
    assert latest[0] - earliest[0] < 0.03
