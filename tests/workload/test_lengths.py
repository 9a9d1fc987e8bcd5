"""Distributions of lengths and times: their quantiles, their bounds, and what is refused."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.workload.lengths import TIMES, Lengths, Times


def lengths(**keys: Any) -> Lengths:
    return Lengths.model_validate(keys)


def test_uniform_gives_each_length_the_same_share() -> None:
    drawn = [lengths(distribution="uniform", min=3, max=6).at((i + 0.5) / 4000) for i in range(4000)]
    assert [drawn.count(n) for n in range(2, 8)] == [0, 1000, 1000, 1000, 1000, 0]


def test_normal_has_its_mean_and_deviation() -> None:
    of = lengths(distribution="normal", mean=1000, std=100)
    assert [of.at(NormalDist().cdf(z)) for z in (-2, 0, 1)] == [800, 1000, 1100]


def test_lognormal_has_its_median_and_p95_and_the_mean_that_follows() -> None:
    of = lengths(distribution="lognormal", median=1000, p95=5000)
    assert (of.at(0.5), of.at(0.95)) == (1000, 5000)
    sigma = np.log(5) / 1.6448536
    grid = (np.arange(20_000) + 0.5) / 20_000
    assert np.mean([of.at(u) for u in grid.tolist()]) == pytest.approx(1000 * np.exp(sigma**2 / 2), rel=0.01)


@given(
    u=st.floats(0, 1, exclude_min=True, exclude_max=True),
    v=st.floats(0, 1, exclude_min=True, exclude_max=True),
    least=st.integers(1, 500),
    span=st.integers(0, 500),
    kind=st.sampled_from(
        [
            {"distribution": "uniform"},
            {"distribution": "normal", "mean": 300, "std": 200},
            {"distribution": "lognormal", "median": 100, "p95": 900},
        ]
    ),
)
def test_lengths_stay_in_bounds_and_rise_with_the_quantile(
    u: float, v: float, least: int, span: int, kind: dict[str, Any]
) -> None:
    of = lengths(**kind, min=least, max=least + span)
    low, high = sorted((u, v))
    assert least <= of.at(low) <= of.at(high) <= least + span


def test_a_length_is_at_most_10_million() -> None:
    assert lengths(distribution="lognormal", median=1e6, p95=1e7).at(0.9999) == 10_000_000


def test_a_length_is_at_least_1() -> None:
    assert lengths(distribution="normal", mean=1, std=100).at(0.01) == 1


GRID = [(i + 0.5) / 10_000 for i in range(10_000)]


@pytest.mark.parametrize(
    ("keys", "mean", "median"),
    [
        ({"distribution": "fixed", "seconds": "200 ms"}, 0.2, 0.2),
        ({"distribution": "uniform", "min": 2, "max": 4}, 3, 3),
        ({"distribution": "normal", "mean": 10, "std": 1}, 10, 10),
        ({"distribution": "lognormal", "median": 2, "p95": 8}, 2 * math.exp((math.log(4) / 1.6448536) ** 2 / 2), 2),
        ({"distribution": "exponential", "mean": 5}, 5, 5 * math.log(2)),
    ],
)
def test_times_have_the_mean_and_the_median_of_their_distribution(
    keys: dict[str, Any], mean: float, median: float
) -> None:
    times = Times.model_validate(keys)
    assert np.mean([times.at(u) for u in GRID]) == pytest.approx(mean, rel=0.01)
    assert times.at(0.5) == pytest.approx(median)


@given(u=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_times_keep_to_their_bounds(u: float) -> None:
    assert 1 <= Times.model_validate({"distribution": "normal", "mean": 2, "std": 9, "min": 1, "max": 3}).at(u) <= 3
    assert Times.model_validate({"distribution": "normal", "mean": 1, "std": 9}).at(u) >= 0
    assert 0 < Times.model_validate({"distribution": "exponential", "mean": 5, "max": 30}).at(u) <= 30


@pytest.mark.parametrize("distribution", sorted(TIMES))
def test_times_without_a_required_key_are_refused(distribution: str) -> None:
    with pytest.raises(ValidationError, match="is missing"):
        Times.model_validate({"distribution": distribution})


def test_a_maximum_below_the_minimum_is_refused() -> None:
    with pytest.raises(ValidationError, match="below min"):
        Times.model_validate({"distribution": "uniform", "min": "2 s", "max": "20 ms"})
