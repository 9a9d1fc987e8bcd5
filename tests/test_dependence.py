"""Coverage of intervals where requests depend on each other, stopping, and error rates of diff, in the form of CI:
scripts/coverage has the whole table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dependence import KINDS, covers, rate_of, simulate, stopped, summary, truth, verdicts

from harness.analysis.part import Basis
from harness.model import Figure
from harness.stats import percentile

RUNS = 32


def test_the_fast_rate_is_that_of_the_summary() -> None:
    kind = KINDS["each user's slowness, AR(1) 0.8"]
    sent = simulate(kind, 16, 400, np.random.default_rng(0))
    figure = summary(sent, kind, 16)["output_tokens_per_s"]
    assert figure.low is not None
    assert figure.high is not None
    rate, half = rate_of(sent, 16)
    assert rate == pytest.approx(figure.value, rel=1e-3)  # whole tokens
    assert half == pytest.approx((figure.high - figure.low) / 2, rel=0.05)  # slots are told by the order of ends


@pytest.mark.parametrize("name", KINDS)
def test_intervals_hold_the_truth_also_after_stopping_where_requests_depend_on_each_other(name: str) -> None:
    """At least 90%, less three standard errors."""
    kind, held = KINDS[name], []
    true = truth(kind, 16)["output_tokens_per_s"]
    for seed in range(RUNS):
        rate, half = rate_of(simulate(kind, 16, 1000, np.random.default_rng([11, seed])), 16)
        held.append(abs(rate - true) <= half)
    for seed in range(RUNS // 4):
        _, rate, half = stopped(kind, 16, 0.04, 1000, np.random.default_rng([12, seed]))
        held.append(abs(rate - true) <= half)
    assert np.mean(held) >= 0.90 - 0.13


def test_intervals_of_a_mean_leave_room_for_the_longest_requests_of_a_heavy_tail() -> None:
    """Most runs have none of the longest: by the spread alone 90% of these intervals hold the truth."""
    rng, basis, held = np.random.default_rng(3), Basis(None, 40.0), list[bool | None]()
    for _ in range(400):
        lengths = 1 + rng.pareto(1.8, 900)
        figure = Figure("e2e_s.mean", float(lengths.mean()), "s", "measured")
        held.append(covers(basis.mean(figure, np.arange(900), lengths, np.ones(900)), 1.8 / 0.8))
    assert held.count(True) >= 0.93 * 400


def test_intervals_of_a_percentile_leave_room_for_a_conversation_further_out() -> None:
    """The slowest 1% are a few whole conversations; with one request further out 84% of the runs hold the truth."""
    rng, held = np.random.default_rng(4), []
    talk = np.repeat(np.arange(150), 10)
    basis = Basis(None, 30.0, talk, talk)
    for _ in range(400):
        values = np.exp(0.3 * np.repeat(rng.normal(size=150), 10) + 0.05 * rng.normal(size=1500))
        ordered = np.sort(values)
        passed = (values > percentile(ordered, 0.99)).astype(float)
        low, high, _ = basis.between(0.99, ordered, None, np.arange(1500), passed, np.ones(1500))
        if low is not None and high is not None:
            held.append(low <= math.exp(2.3263 * math.hypot(0.3, 0.05)) <= high)
    assert len(held) > 200
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize(("repeats", "turns"), [(1, False), (3, True), (3, False)])
def test_equal_things_are_called_different_in_5_percent_of_the_pairs_at_most(repeats: int, turns: bool) -> None:
    for spread, session in ((0.0, 0.0), (0.03, 0.0), (0.01, 0.02)):
        found = verdicts(repeats, turns, spread, session, 0.0, 100)
        assert max(found.table, found.gate) <= 0.05 + 0.065
