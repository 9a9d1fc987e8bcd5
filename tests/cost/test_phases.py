"""The phase split: tokens are counted where they arrived, prices of what is not identified are n/a, parts add up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import MIXES, TRUE, run_of

import harness
from harness.analysis.regression import Split, split_usage
from harness.config import Values
from harness.cost.bill import Costs, priced
from harness.cost.gpus import Gpu, read_rows
from harness.cost.pricing import cost_of_query, time_blocks, usage_of
from harness.cost.scenario import Scenario, parse_scenario, rental_prices
from harness.model import Device

DATA = Path(harness.__file__).parent / "data"
GPUS = read_rows("gpus.csv", Gpu)
PRICES = rental_prices()
H100 = Device("gpu", "H100", 1)


def cost(split: Split, scenario: Scenario, n: int = 2**14) -> Costs:
    return cost_of_query(split, (800.0, 150.0), H100, priced(scenario, H100, GPUS, PRICES), n)


def test_a_term_without_cost_has_price_0() -> None:
    runs = [run_of(*mix) for mix in MIXES]
    free = split_usage([np.column_stack([run[:, :4], run[:, :4] @ (TRUE * [1, 1, 1, 0])]) for run in runs])
    scenario = parse_scenario((DATA / "scenarios/on-demand.yaml").read_text(), "on-demand.yaml")
    found = cost(free, scenario, n=256)
    figure = next(figure for figure in found.figures if figure.name == "usd_per_request_alone")
    assert figure.value == pytest.approx(0, abs=1e-9)


def test_the_shares_of_the_bill_are_coefficients_times_counts() -> None:
    scenario = parse_scenario((DATA / "scenarios/on-demand.yaml").read_text(), "on-demand.yaml")
    split = split_usage([run_of(*mix) for mix in MIXES], replicates=20)
    parts = split.coefficients * split.totals
    words = zip(("input", "output", "context", "request"), parts / parts.sum(), strict=True)
    assert cost(split, scenario, n=16).notes[-1] == "of the runs' bill: " + ", ".join(f"{a} {x:.0%}" for a, x in words)
    nothing = replace(split, coefficients=0 * split.coefficients)
    assert "add up to it" in cost(nothing, scenario, n=16).notes[-1]


def test_a_published_day_of_a_real_fleet() -> None:
    # DeepSeek, 27-28 February 2025: the day's tokens at the published rates per node; 226.75 nodes on average.
    per_node_s = np.array([1 / 73.7e3, 1 / 14.8e3, 0.0, 0.0])
    parts = per_node_s * np.array([608e9, 168e9, 0.0, 0.0]) / 86400
    assert parts.sum() == pytest.approx(226.86, abs=0.01)
    assert parts.sum() == pytest.approx(226.75, rel=0.001)


def test_blocks_count_every_token_where_it_arrived() -> None:
    requests = pd.DataFrame({
        "sent_s": [0.0, 0.0, 1.0], "end_s": [4.0, 2.0, 1.5], "error": [None, None, "rejected"],
        "arrival_s": [np.array([1.0, 3.0]), np.array([2.0]), np.array([])],
        "arrival_tokens": [np.array([1, 2]), np.array([1]), np.array([])],
        "input_tokens": pd.array([10, None, None], "Int64"), "input_asked": [10, 20, 30],
        "cached_tokens": pd.array([4, None, None], "Int64"),
    })  # fmt: skip
    blocks = time_blocks(requests, device_count=2, number=2)
    # First half: request 0's prefill (6 of 10 uncached), first token at 10. Then its tokens at 11, 12; request 1.
    assert blocks.tolist() == [[6, 1, 10, 1, 4.0], [20, 3, 11 + 12 + 20, 1, 4.0]]
    with pytest.raises(ValueError, match="no request succeeded"):
        time_blocks(requests[requests["error"].notna()], 1)


CERTAIN = {"price.usd_per_hour": 3.6, "serving.utilisation": 0.5, "serving.overhead": 1.2, "query.requests": 2}


def query(given: Values, mixes: list[tuple[int, int]] = MIXES, noise: float = 0.0) -> dict[str, float | None]:
    scenario = parse_scenario((DATA / "scenarios/on-demand.yaml").read_text(), "on-demand.yaml", {**CERTAIN, **given})
    split = split_usage([run_of(*mix, noise=noise) for mix in mixes], replicates=20)
    found = cost(split, scenario, n=256)
    return {figure.name: figure.value for figure in found.figures}


def test_the_cost_of_a_query_equals_the_calculation_by_hand() -> None:
    # USD 0.0024 a device-second; 600 uncached of 800, 100 visible and 50 reasoning tokens, twice.
    found = query({"serving.cached_share": 0.25, "query.visible_tokens": 100, "query.reasoning_tokens": 50})
    seconds = 2 * (0.06 + 0.75 + 2e-6 * 150 * 875 + 0.02)
    assert found["usd_per_query"] == pytest.approx(0.0024 * seconds)
    assert found["usd_per_million_input_tokens"] == pytest.approx(0.0024 * 1e-4 * 1e6)
    assert found["usd_per_million_output_tokens_alone"] == pytest.approx(0.0024 * (5e-3 + 2e-6 * 875) * 1e6)
    assert found["usd_per_request_alone"] == pytest.approx(0.0024 * 0.02)


def test_long_answers_that_are_also_slow_widen_the_interval() -> None:
    text = (DATA / "scenarios/on-demand.yaml").read_text()
    lengths = {"query.visible_tokens": {"lognormal": {"p5": 50, "p95": 500}}}
    widths = []
    for rho in (-0.9, 0.0, 0.9):
        linked = f"{text}correlations: [[query.visible_tokens, measured, {rho}]]\n"
        split = split_usage([run_of(*mix, noise=0.6) for mix in MIXES])
        scenario = parse_scenario(linked, "mine.yaml", {**CERTAIN, **lengths})
        found = cost(split, scenario)
        figure = next(figure for figure in found.figures if figure.name == "usd_per_query")
        widths.append((figure.high or 0.0) / (figure.low or 1.0))
    assert widths[0] < widths[1] < widths[2]


def test_the_split_prices_add_up_to_the_query() -> None:
    found = {name: value or 0.0 for name, value in query({}).items()}
    parts = found["usd_per_million_input_tokens"] * 800e-6 + found["usd_per_million_output_tokens_alone"] * 150e-6
    assert 2 * (parts + found["usd_per_request_alone"]) == pytest.approx(found["usd_per_query"])


def test_a_split_that_is_not_identified_prices_nothing() -> None:
    one = np.array([[800, 150, 131250, 1.0]]) * np.arange(1.0, 13)[:, None]
    split = split_usage([np.column_stack([one, one @ TRUE])], replicates=5)
    scenario = parse_scenario((DATA / "scenarios/on-demand.yaml").read_text(), "on-demand.yaml", CERTAIN)
    found = cost(split, scenario, n=16)
    assert {figure.value for figure in found.figures} == {None}
    assert "do not identify it" in found.figures[-1].text()


def test_usage_takes_arrays_of_draws() -> None:
    drawn = usage_of(np.tile(TRUE, (3, 1)), np.array([1.0, 10, 100]), np.array(2.0), np.array(0.0))
    assert drawn == pytest.approx([1e-4 * n + 0.01 + 4e-6 * (n + 1) + 0.02 for n in (1, 10, 100)])
