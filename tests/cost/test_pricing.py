"""Costs of stored runs: shipped scenarios reach the tables; runs that must not be mixed are refused by field."""

import time
from dataclasses import replace
from typing import Any

import pytest
from builders import CPU, a_run

from harness.cost.pricing import (
    costs_at_objective,
    fleet_costs,
    interactivity,
    list_scenarios,
    price_run,
    query_costs,
    read_objective,
)
from harness.errors import HarnessError
from harness.model import Figure, ModelIdentity, Record, Summary
from harness.report.cost import cost_tables, fleet_table, interactivity_table, tornado_tables
from harness.store.run import Run

SUMMARY = Summary("r", "complete", (Figure("output_tokens_per_s", 100.0, "1/s", "measured", 90.0, 110.0),), {})


def loaded(*records: Record, model: str = "a", users: int = 4, started: bool = True, **workload: Any) -> Run:
    """A run on two vCPUs under a closed loop."""
    return a_run(
        *records,
        id=f"run-{model}-{users}",
        workload={"load": {"shape": "closed", "users": users}, **workload},
        engine=CPU | {"model": ModelIdentity(model, model)} if started else None,
    )


def run(tokens_in: int, tokens_out: int, **of: Any) -> Run:
    """One request after another: 1 ms an input token, 10 ms an output token, 5 ms a request."""
    records, now = [], 0.0
    for index in range(40):
        n_in, n_out = tokens_in + index % 7, tokens_out + index % 5
        first = now + 0.005 + 0.001 * n_in
        times = tuple(first + 0.01 * (i + 1) for i in range(n_out))
        records.append(
            Record(index, now, now, times[-1], times, (1,) * n_out, n_in, n_out, n_in, n_out, None, "length")
        )
        now = times[-1]
    return loaded(*records, **of)


def test_a_stored_run_gets_its_default_scenario_and_every_assumption_is_shown() -> None:
    found = price_run(loaded(), SUMMARY).costs
    assert found.scenario == "cpu-smoke"
    cost, assumptions = cost_tables(found)
    assert {str(row[0]) for row in assumptions.rows} >= {
        "price.usd_per_hour",
        "serving.utilisation",
        "serving.overhead",
    }
    assert all(len(row) == len(table.columns) for table in (cost, assumptions) for row in table.rows)
    by_name = {row[0]: row for row in cost.rows}
    assert by_name["usd_per_million_output_tokens"][2] == "measured 100%"
    assert by_name["usd_per_hour"][2] == "no spread given"
    spread = cost_tables(price_run(loaded(), SUMMARY, None, {"price.usd_per_hour": "0.03:0.04"}).costs)[0]
    rests = {row[0]: row[2] for row in spread.rows}
    assert rests["usd_per_hour"] == "assumed 100%"
    # ln(4/3) / 3.290 and ln(110/90) / 3.920 squared are 0.00765 and 0.00262.
    assert rests["usd_per_million_output_tokens"] == "assumed 74%, measured 26%"


def test_runs_of_different_shape_split_the_bill() -> None:
    found = query_costs([run(200, 2), run(10, 40), run(100, 20)])
    values = {figure.name: figure.value for figure in found.figures}
    assert values["device_s_per_input"] == pytest.approx(2 * 0.001, rel=0.2)
    assert values["device_s_per_output"] == pytest.approx(2 * 0.01, rel=0.2)
    assert values["usd_per_query"] == pytest.approx(0.0816 / 3600 * (0.005 + 0.001 * 106.275 + 0.01 * 22.67), rel=0.1)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "no run to price"),
        ([run(10, 4), run(10, 4, model="b")], "model differs: run-a-4 has a, run-b-4 has b"),
        ([run(10, 4), run(10, 4, users=8)], "load.users differs"),
        ([run(10, 4, started=False)], "never started its engine"),
        ([loaded()], "no request succeeded"),
    ],
)
def test_runs_that_cannot_be_priced_together_are_refused(runs: list[Run], words: str) -> None:
    with pytest.raises(HarnessError, match=words):
        query_costs(runs)


def point(users: int, rate: float, ttft: float, model: str = "a") -> tuple[Run, Summary]:
    values = {"output_tokens_per_s": rate, "total_tokens_per_s": rate, "requests_per_s": rate, "ttft_s.p99": ttft}
    figures = tuple(Figure(name, value, "", "measured") for name, value in values.items())
    return loaded(model=model, users=users), Summary(f"u{users}", "complete", figures, {})


def test_the_cost_at_an_objective_is_that_of_the_interpolated_point() -> None:
    found, best = costs_at_objective([point(1, 100.0, 0.1), point(4, 300.0, 0.5)], "ttft_s.p99=0.3")
    assert best.run == "u1 to u4"
    assert found.figures[1].value == pytest.approx(0.0816 / 3600 * 1e6 / 200)
    with pytest.raises(HarnessError, match="model differs"):
        costs_at_objective([point(1, 100.0, 0.1), point(4, 300.0, 0.5, "b")], "ttft_s.p99=0.3")
    assert read_objective("8B server") == {"ttft_s.p99": 2.0, "tpot_s.p99": 0.1}


def test_a_day_of_a_fleet_costs_its_replicas_over_its_queries() -> None:
    sweep = [
        (run, replace(of, figures=(*of.figures, Figure("e2e_s.mean", 2.0, "s", "measured"))))
        for run, of in (point(1, 1.0, 0.1), point(4, 3.0, 0.5))
    ]
    found, day, note = fleet_costs(sweep, "ttft_s.p99=0.3", (3.0, 1.0))
    # Half way between the runs a replica serves 2 requests/s, of which 20% stay free: two for 3 requests/s, and a
    # spare, as both of two work 99.0% of the time and two of three 99.99%. Each costs USD 0.0816 an hour.
    assert found.figures[3].name == "usd_per_query"
    assert found.figures[3].value == pytest.approx(3 * 0.0816 / 3600 / 3)
    table = fleet_table(day, note)
    assert [row[2] for row in table.rows] == ["3"] * 24
    assert "144 device-hours" in table.notes[0]


def test_cost_falls_as_interactivity_does() -> None:
    sweep = [
        (run, replace(of, figures=(*of.figures, Figure("tpot_s.p50", 0.01 * users, "s", "measured"))))
        for users, (run, of) in ((1, point(1, 100.0, 0.1)), (4, point(4, 300.0, 0.5)))
    ]
    rows = interactivity_table(interactivity(sweep)).rows
    found = [(row[0], *(cell.value for cell in row[1:3] if isinstance(cell, Figure))) for row in rows]
    assert found == [("u1", 100.0, 50.0), ("u4", 25.0, 150.0)]
    costs_of_runs = [row[3].value for row in rows if isinstance(row[3], Figure)]
    assert costs_of_runs == pytest.approx([0.0816 / 3600 * 1e6 / 100, 0.0816 / 3600 * 1e6 / 300])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fast", "is not an objective"),
        ("ttft_s.p99=0.1,tpot", "is not an objective"),
        ("", "is not an objective"),
        ("ttft_s.p99=-1", "ttft_s.p99 is '-1'"),
        ("ttft_s.p99=500", "did you mean 0.5 or '500 ms'"),
    ],
)
def test_an_invalid_objective_is_refused(text: str, said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        read_objective(text)


def test_an_objective_may_name_its_unit() -> None:
    assert read_objective("ttft_s.p99=500 ms, tpot_s.p99=90 s") == {"ttft_s.p99": 0.5, "tpot_s.p99": 90.0}


def test_the_tornado_names_every_input_that_can_move_the_cost() -> None:
    (table,) = tornado_tables(price_run(loaded(), SUMMARY))
    assert table.rows[0][:2] == ("output_tokens_per_s", "measured")
    assert [cell.value for cell in table.rows[0][2:] if isinstance(cell, Figure)] == pytest.approx([1.0])
    assert len(table.rows) == 4


def test_a_missing_or_certain_cost_has_no_tornado() -> None:
    nothing = Summary("r", "complete", (), {})
    assert tornado_tables(price_run(loaded(), nothing)) == []
    certain = dict.fromkeys(("price.usd_per_hour", "serving.overhead", "serving.utilisation"), 1)
    rate = replace(SUMMARY["output_tokens_per_s"], low=None, high=None)
    known = price_run(loaded(), replace(SUMMARY, figures=(rate,)), None, certain)
    assert tornado_tables(known) == []


def test_a_workload_may_name_the_scenario_of_its_runs() -> None:
    own = loaded(scenario="mine.yaml")
    with pytest.raises(HarnessError, match="no scenario 'mine"):
        price_run(own, SUMMARY)
    assert price_run(own, SUMMARY, "cpu-smoke").costs.scenario == "cpu-smoke"
    other = price_run(loaded(scenario="on-demand"), SUMMARY).costs
    assert other.scenario == "cpu-smoke"
    assert other.notes[0] == (
        "the workload's scenario on-demand prices another kind of device: cpu-smoke is used instead"
    )


def test_unknown_scenarios_name_the_known_ones() -> None:
    with pytest.raises(HarnessError) as refused:
        price_run(loaded(), SUMMARY, "cheap")
    assert all(name in str(refused.value) for name, _ in list_scenarios())


def test_a_thousand_runs_are_priced_in_seconds() -> None:
    run, began = loaded(), time.process_time()
    for _ in range(100):
        price_run(run, SUMMARY)
    assert time.process_time() - began < 1  # 10 s for a thousand
