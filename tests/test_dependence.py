"""Coverage of intervals where requests depend on each other, stopping, and error rates of diff, in the form of CI:
scripts/coverage has the whole table."""

from __future__ import annotations

import numpy as np
import pytest
from dependence import KINDS, rate_of, simulate, stopped, summary, truth, verdicts

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


@pytest.mark.parametrize(("repeats", "turns"), [(1, False), (3, True), (3, False)])
def test_equal_things_are_called_different_in_5_percent_of_the_pairs_at_most(repeats: int, turns: bool) -> None:
    for spread, session in ((0.0, 0.0), (0.03, 0.0), (0.01, 0.02)):
        found = verdicts(repeats, turns, spread, session, 0.0, 100)
        assert max(found.table, found.gate) <= 0.05 + 0.065
