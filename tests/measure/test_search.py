"""Points of sweeps and their order, and searches on systems with known curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.measure.search import (
    MOST_RUNS,
    Auto,
    Outcome,
    Point,
    Sweep,
    highest_feasible,
    next_load,
    parse_sweep,
    points,
    saturation,
)
from harness.model import Figure

TEXT = """
workload: smoke
set: {requests.count: 20}
grid:
  load.users: [1, 2, 4]
  engine.name: [simulated]
zip:
  - {model: [a, b], engine.options.tensor_parallel_size: [1, 2]}
repeat: 2
"""


def test_points_are_all_combinations_grouped_by_engine_and_their_repeats_take_turns() -> None:
    sweep = parse_sweep(TEXT, "study.yaml")
    made = points(sweep)
    assert sweep.name == "study"
    assert len(made) == 3 * 2 * 2
    assert len({point.key for point in made}) == len(made)
    assert [point.values["model"] for point in made] == (["a"] * 3 + ["b"] * 3) * 2
    assert [point.repeat for point in made] == [0] * 6 + [1] * 6
    assert {(p.values["model"], p.values["engine.options.tensor_parallel_size"]) for p in made} == {("a", 1), ("b", 2)}


def test_points_keep_their_keys_when_the_sweep_is_extended() -> None:
    narrow, wide = (Sweep(name="s", workload="smoke", grid={"load.users": list(range(1, n))}) for n in (3, 9))
    assert {point.key for point in points(narrow)} < {point.key for point in points(wide)}


def test_each_point_has_a_seed_of_its_own_unless_one_is_given() -> None:
    sweep = Sweep(name="s", workload="smoke", grid={"load.users": [1, 2]})
    seeds = {point.overrides(sweep)["seed"] for point in points(sweep)}
    assert len(seeds) == 2
    given_one = Sweep(name="s", workload="smoke", set={"seed": 7}, grid={"load.users": [1, 2]})
    assert {point.overrides(given_one)["seed"] for point in points(given_one)} == {7}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "map"),
        ("grid: {a: [1]}", "workload"),
        ("workload: smoke\ngrid: {a: []}", "x.yaml:2: grid.a"),
        ("workload: smoke\ngrid: {a: 3}", "x.yaml:2: grid.a"),
        ("workload: smoke\nzip: [{a: [1, 2], b: [1]}]", "different lengths: a, b"),
        ("workload: smoke\ngrid: {a: [1]}\nzip: [{a: [2]}]", "a more than once"),
        ("workload: smoke\nauto: {axis: model}", "x.yaml:2: auto.axis"),
        ("workload: smoke\nbudget: 3", "x.yaml:2: unknown key budget"),
        ("workload: smoke\nname: a/b", "x.yaml:2: name"),
    ],
)
def test_a_mistake_is_reported_with_its_line_and_key(text: str, word: str) -> None:
    with pytest.raises(HarnessError, match=word):
        parse_sweep(text, "x.yaml")


def search(auto: Auto, system: Callable[[float], Outcome], most: int = 100) -> dict[float, Outcome]:
    measured: dict[float, Outcome] = {}
    while (load := next_load(auto, measured)) is not None:
        runs = measured[load].runs + 1 if load in measured else 1
        assert runs <= MOST_RUNS
        measured[load] = replace(system(load), runs=runs)
        assert len(measured) < most
    return measured


def rate(value: float, share: float = 0.0) -> Figure:
    """Tokens per second with an interval of that share to both sides."""
    return Figure("output_tokens_per_s", value, "", "simulated", value * (1 - share), value * (1 + share))


def server(slots: float, tpot_s: float = 0.02, limit_s: float = math.inf) -> Callable[[float], Outcome]:
    """Serves up to `slots` at full speed, and then shares it: rate = min(n, slots) / tpot."""

    def measure(n: float) -> Outcome:
        each_s = tpot_s * max(1.0, n / slots)
        return Outcome(rate(n / each_s), each_s, each_s <= limit_s)

    return measure


@given(slots=st.integers(1, 900), share=st.floats(0.05, 3))
def test_a_search_finds_saturation_and_the_highest_load_that_meets_the_objective(slots: int, share: float) -> None:
    auto = Auto(axis="load.users", objective={"tpot_s.p50": 1}, limit=1024)
    limit = slots * max(share, 1.0)  # above it a token takes longer than allowed
    measured = search(auto, server(slots, limit_s=0.02 * limit / slots + 1e-12))
    found, saturated = highest_feasible(measured).load, saturation(measured).load
    assert found is not None
    assert saturated is not None
    if max(measured) > limit:
        assert found <= limit + 1e-6
        assert limit < found * 1.06 + 1.01
    assert saturated <= 2 * slots
    assert saturated >= 0.9 * slots or slots > 1024


def test_a_search_tries_no_load_above_one_that_failed() -> None:
    def out_of_memory(n: float) -> Outcome:
        return Outcome(rate(n * 50), 0.02, True) if n <= 20 else Outcome(None, None, False)

    measured = search(Auto(axis="load.users", objective={"ttft_s.p99": 1}, most=0), out_of_memory)
    assert max(measured) == 32
    assert highest_feasible(measured).load in (19, 20)


def test_a_start_that_already_misses_the_objective_is_not_bisected() -> None:
    measured = search(Auto(axis="load.rate_per_s", start=0.5, limit=4, most=0), lambda n: Outcome(rate(n), 0.1, False))
    assert list(measured) == [0.5, 1, 2, 4]
    assert highest_feasible(measured).load is None


def noisy(seed: int, slots: float, share: float, limit_s: float = math.inf) -> Callable[[float], Outcome]:
    """A server whose rate is measured with 95% intervals of that share, a fresh draw each time, and so is its TPOT."""
    rng, exact = np.random.default_rng(seed), server(slots)
    seen: dict[float, list[tuple[float, float]]] = {}

    def measure(n: float) -> Outcome:
        true = exact(n)
        assert true.rate is not None
        assert true.rate.value is not None
        assert true.tpot_s is not None
        runs = seen.setdefault(n, [])
        runs.append((true.rate.value * rng.normal(1, share / 1.96), true.tpot_s * rng.normal(1, share / 1.96)))
        (value, tpot_s), half = np.mean(runs, axis=0), share / math.sqrt(len(runs))
        meets = None if abs(tpot_s / limit_s - 1) < half else bool(tpot_s < limit_s)
        return Outcome(rate(float(value), half), float(tpot_s), meets)

    return measure


def test_noise_does_not_read_as_saturation_on_a_server_without_a_limit() -> None:
    """Intervals of 10%: between any two loads the rate doubles."""
    auto = Auto(axis="load.users", limit=64, most=0)
    for seed in range(100):
        measured = search(auto, noisy(seed, math.inf, 0.1))
        assert max(measured) == 64
        assert saturation(measured).high is None
        assert saturation(measured).text(64) == "32 or more (the limit was 64)"


def test_the_answer_of_a_noisy_search_lies_between_its_ends() -> None:
    """40 slots, which 39 users fill to 3%, and a TPOT of 30 ms, which 60 users have."""
    auto = Auto(axis="load.users", limit=1024, objective={"tpot_s.p50": 0.03}, most=0)
    held, again = [], 0
    for seed in range(100):
        measured = search(auto, noisy(seed, 40, 0.05, 0.03))
        full, good = saturation(measured), highest_feasible(measured)
        again += sum(each.runs > 1 for each in measured.values())
        held.append([full.low <= 39 <= (full.high or math.inf), good.low <= 60 <= (good.high or math.inf)])
    assert np.mean(held, axis=0).min() >= 0.9
    assert again > 0  # what the intervals left open was measured again


def test_points_are_added_where_the_curve_bends() -> None:
    auto = Auto(axis="load.users", limit=256, most=12)
    measured = set(search(auto, server(40)))
    added = measured - {2**i for i in range(9)}
    assert added
    assert len(measured) <= 12
    assert all(16 < load < 256 for load in added)


def test_a_key_does_not_depend_on_the_order_of_its_values() -> None:
    assert Point({"a": 1, "b": 2}).key == Point({"b": 2, "a": 1}).key
