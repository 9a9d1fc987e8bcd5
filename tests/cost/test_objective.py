"""The best point at a latency objective: on the front, between measured runs, and never past them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cost.objective import Objective, best_feasible, pareto_front, presets
from harness.errors import HarnessError
from harness.model import Figure, Summary

LATENCIES = ("ttft_s.p99", "tpot_s.p99", "tpot_s.p50")


def run(name: str, rate: float, ttft: float, tpot: float) -> Summary:
    values = {"output_tokens_per_s": rate, "total_tokens_per_s": 3 * rate, "requests_per_s": rate / 100}
    values |= dict(zip(LATENCIES, (ttft, tpot, tpot), strict=True))
    return Summary(name, "complete", tuple(Figure(k, v, "", "measured") for k, v in values.items()), {})


def objective(ttft: float, tpot: float) -> Objective:
    return {"ttft_s.p99": ttft, "tpot_s.p99": tpot}


SWEEP = [
    run("u1", 100, 0.1, 0.010),
    run("u4", 300, 0.2, 0.014),
    run("u16", 800, 0.6, 0.030),
    run("bad", 250, 0.7, 0.04),
]


def test_dominated_runs_are_not_on_the_front() -> None:
    assert [point.run for point in pareto_front(SWEEP, LATENCIES)] == ["u1", "u4", "u16"]
    assert [point.run for point in pareto_front([*SWEEP, run("twin", 100, 0.1, 0.01)], LATENCIES)] == [
        "u1",
        "u4",
        "u16",
    ]


def test_the_best_point_lies_where_the_tighter_limit_is_met() -> None:
    found = best_feasible(SWEEP, objective(0.4, 1.0))
    assert found.run == "u4 to u16"
    # Half of the way from 0.2 s at 300 token/s to 0.6 s at 800 token/s.
    assert found["output_tokens_per_s"].value == pytest.approx(550)
    assert found["requests_per_s"].value == pytest.approx(5.5)
    # A quarter of the way from 14 ms to 30 ms.
    assert best_feasible(SWEEP, objective(0.4, 0.018))["output_tokens_per_s"].value == pytest.approx(425)


def test_a_limit_that_a_run_meets_exactly_gives_that_run() -> None:
    assert best_feasible(SWEEP, objective(0.2, 1.0))["output_tokens_per_s"].value == pytest.approx(300)


def test_a_slower_run_that_misses_the_objective_does_not_hide_a_faster_run() -> None:
    sweep = [run("long queue", 100, 9.0, 0.001), run("good", 200, 0.1, 0.01)]
    assert best_feasible(sweep, objective(1, 1)).run == "good"


def test_nothing_is_extrapolated() -> None:
    fast = best_feasible(SWEEP, objective(10, 10))
    assert fast.run == "u16"
    assert fast["output_tokens_per_s"].value == 800
    with pytest.raises(HarnessError, match=r"the nearest, u1, has ttft_s.p99 0.1 s, the limit is 0.05 s"):
        best_feasible(SWEEP, objective(0.05, 1))
    with pytest.raises(HarnessError, match="no run to choose from"):
        best_feasible([], objective(1, 1))
    with pytest.raises(HarnessError, match="run r: output_tokens_per_s is not recorded"):
        best_feasible([Summary("r", "complete", (), {})], objective(1, 1))


@settings(deadline=None)  # other work on the machine must not fail it
@given(
    st.lists(st.tuples(st.floats(1, 1e4), st.floats(0.01, 10), st.floats(0.001, 1)), min_size=1, max_size=8),
    st.floats(0.01, 10),
    st.floats(0.001, 1),
    st.floats(1, 2),
)
def test_a_looser_objective_is_never_slower_and_never_beyond_the_sweep(
    points: list[tuple[float, float, float]], ttft: float, tpot: float, looser: float
) -> None:
    sweep = [run(str(i), *point) for i, point in enumerate(points)]
    try:
        tight = best_feasible(sweep, objective(ttft, tpot))["output_tokens_per_s"].value or 0.0
    except HarnessError:
        return
    loose = best_feasible(sweep, objective(ttft * looser, tpot * looser))["output_tokens_per_s"].value or 0.0
    assert tight <= loose * (1 + 1e-9) <= max(rate for rate, *_ in points) * (1 + 2e-9)


def test_the_presets_are_seconds() -> None:
    assert presets()["70B interactive"] == {"ttft_s.p99": 0.45, "tpot_s.p99": 0.04}
