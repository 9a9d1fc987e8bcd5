"""A day of a fleet by hand; the number in flight against queueing theory and against single requests of a trace."""

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.cost.objective import Curve, diurnal, in_flight, plan
from harness.errors import HarnessError
from harness.workload.library import read_trace

Array = NDArray[np.float64]
BATCHING = Curve(np.array([1.0, 4.0, 16.0, 64.0]), np.array([0.5, 1.5, 3.5, 6.0]))
BARE = (0.0, 1e-9, 1.0, 0)


def simulate(due_s: Array, sizes: Array, replicas: int, curve: Curve, rng: np.random.Generator) -> Array:
    """Response times in seconds of single requests, each sent to a replica at random; the check on `in_flight`.

    `sizes` are relative to the curve's mean request. On a replica with n requests each advances at curve.rate(n) / n.
    """
    response = np.empty(len(due_s))
    to = rng.integers(replicas, size=len(due_s))
    for replica in range(replicas):
        mine = np.flatnonzero(to == replica)
        waiting: list[tuple[float, int]] = []
        work, now = 0.0, 0.0
        speeds = (curve.rate(np.arange(1.0, len(mine) + 1)) / np.arange(1, len(mine) + 1)).tolist()
        for index in [*mine, -1]:
            until = due_s[index] if index >= 0 else math.inf
            while waiting:
                speed = speeds[len(waiting) - 1]
                ends = now + (waiting[0][0] - work) / speed
                if ends > until:
                    work += (until - now) * speed
                    break
                work, done = heapq.heappop(waiting)
                now = ends
                response[done] = ends - due_s[done]
            now = until
            if index >= 0:
                heapq.heappush(waiting, (work + sizes[index], index))
    return response


def test_one_server_is_the_textbook_queue() -> None:
    # M/M/1: rho / (1 - rho); the same for any distribution of sizes under processor sharing.
    assert in_flight(0.8, Curve(np.array([1.0]), np.array([1.0]))) == pytest.approx(4.0)
    # A replica that is never saturated is M/M/inf: rate x time.
    many = np.arange(1.0, 401.0)
    assert in_flight(5.0, Curve(many, many / 2)) == pytest.approx(10.0)
    assert in_flight(6.0, BATCHING) == math.inf


def test_a_day_of_a_fleet_equals_the_calculation_by_hand() -> None:
    load = np.array([1.0] * 8 + [5.0] * 8 + [2.0] * 8)
    day = plan(load, 2.0, BATCHING, *BARE)
    assert day.replicas.tolist() == [1] * 8 + [3] * 8 + [1] * 8
    assert day.utilisation[0] == pytest.approx(0.5)
    assert day.utilisation[8] == pytest.approx(5 / 6)
    assert plan(load, 2.0, BATCHING, 0.5, 1e-9, 1.0, 0).replicas.tolist() == [1] * 8 + [5] * 8 + [2] * 8
    held = plan(load, 2.0, BATCHING, 0.0, 1e-9, 1.0, 2).replicas
    assert held.tolist() == [1] * 8 + [3] * 10 + [1] * 6


def test_spares_keep_enough_replicas_at_work() -> None:
    # Of 4 replicas up 99% of the time all work 96.06% of it, and at least 3 of 4 99.94%.
    day = plan(np.full(24, 6.0), 2.0, BATCHING, 0.0, 0.999, 0.99, 0)
    assert set(day.replicas.tolist()) == {4}


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 50), st.floats(1, 2), st.floats(0, 0.9), st.integers(0, 5))
def test_more_headroom_or_hold_time_never_gives_fewer_replicas(
    mean: float, peak: float, headroom: float, hold: int
) -> None:
    load = diurnal(mean, peak)
    careful = plan(load, 1.5, BATCHING, headroom, 0.999, 0.99, hold)
    bare = plan(load, 1.5, BATCHING, *BARE)
    assert np.all(careful.replicas >= bare.replicas)
    assert np.all(bare.utilisation <= 1 + 1e-9)
    assert load.mean() == pytest.approx(mean)


@pytest.mark.parametrize("speed_up", [0.5, 2.6])
def test_single_requests_of_a_trace_agree_with_the_analytic_answer(speed_up: float) -> None:
    # An hour of Azure's conversation trace, arrivals and output lengths as they were, at two loads on 3 replicas.
    trace = read_trace("azure-conv-2023")
    tokens = np.asarray(trace.output_tokens, float)
    due = np.asarray(trace.arrival_s, float) / speed_up
    response = simulate(due, tokens / tokens.mean(), 3, BATCHING, np.random.default_rng(0))
    each = len(due) / due[-1] / 3
    batches = response[: len(due) // 20 * 20].reshape(20, -1).mean(axis=1)
    error = 3 * batches.std(ddof=1) / 20**0.5
    analytic = in_flight(each, BATCHING) / each
    assert response.mean() == pytest.approx(analytic, abs=error)
    assert response.mean() == pytest.approx(analytic, rel=0.05)


def test_no_request_is_lost_or_answered_early() -> None:
    due, sizes = np.array([0.0, 0.5, 10.0]), np.array([1.0, 1.0, 2.0])
    one = Curve(np.array([1.0]), np.array([1.0]))
    # Alone until 0.5; then two share until the first ends at 1.5, the second at 2.0; the third is alone.
    assert simulate(due, sizes, 1, one, np.random.default_rng(0)).tolist() == pytest.approx([1.5, 1.5, 2.0])


@pytest.mark.parametrize(("mean", "peak"), [(0.0, 1.5), (-1.0, 1.5), (1.0, 2.5), (1.0, 0.5), (float("nan"), 1.5)])
def test_impossible_loads_are_refused(mean: float, peak: float) -> None:
    with pytest.raises(HarnessError):
        diurnal(mean, peak)
