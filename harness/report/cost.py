"""Tables of costs and of the assumptions behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from harness.analysis.summary import Sweep
from harness.cost.bill import (
    TWO_DENOMINATORS,
    Costs,
    cost_of_run,
    measured,
    tornado,
)
from harness.cost.draws import PARAMETERS, Distribution, distribution
from harness.cost.fleet import Policy, curve_of, diurnal, plan
from harness.cost.objective import Objective, best_feasible, pareto_front, parse_objectives, value
from harness.cost.pricing import (
    LOAD,
    conditions_of,
    costs_at_objective,
    device_and_scenario,
    list_scenarios,
    price_run,
    read_objective,
)
from harness.cost.scenario import Input
from harness.errors import HarnessError
from harness.files import read_data
from harness.model import Figure, Status, Summary
from harness.report.table import Cell, Table
from harness.report.tables import load_of
from harness.store.run_file import RunFile


def tornado_tables(
    file: RunFile, summary: Summary, scenario: str | None = None, overrides: Sequence[str] = ()
) -> list[Table]:
    """Which input makes the cost of an output token uncertain: shares of the variance of ln cost, largest first.

    None where there is no cost, or nothing that is uncertain in it.
    """
    _, ready = device_and_scenario([file], scenario, overrides)
    rate = measured(summary, "output_tokens_per_s")
    shares = {} if ready.no_price or rate.value is None else tornado(ready, rate)
    if not any(shares.values()):
        return []
    rows: list[tuple[Cell, ...]] = []
    for name, share in shares.items():
        status = ready.inputs[name].status if name in ready.inputs else rate.status
        rows.append((name, status, Figure(f"share.{name}", share, "1", "derived")))
    columns, notes = ("input", "status", "share"), ("squared correlation of ln input with ln cost",)
    return [Table("tornado", "What makes the cost uncertain", columns, tuple(rows), notes, file.id)]


def fleet_costs(
    sweep: Sweep,
    objective: str,
    load: tuple[float, float],
    policy: Policy,
    scenario: str | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Costs, Table]:
    """What a query costs over a whole day at a latency objective, and the fleet by hour.

    `load` is (mean requests/s, peak / mean) of a `diurnal` curve; a replica is what the sweep's runs used. The costs
    are `cost_of_run` at the best feasible point with the day's own utilisation, sum of load / (sum of replicas *
    capacity), in place of the scenario's: all cost over all queries.
    """
    device, wanted = device_and_scenario([file for file, _ in sweep], scenario, overrides, LOAD)
    summaries = [summary for _, summary in sweep]
    best = best_feasible(summaries, read_objective(objective))
    capacity = value(best, "requests_per_s")
    day = plan(diurnal(*load), capacity, curve_of(summaries), policy)
    used = distribution("value", float(day.load.sum() / (day.replicas.sum() * capacity)))
    of_day = Input("serving.utilisation", used, "1", "computed: the day's load on the planned replicas", "", "assumed")
    found = cost_of_run(best, device, replace(wanted, inputs={**wanted.inputs, of_day.name: of_day}))
    note = (
        f"{day.replicas.sum() * device.count} device-hours a day; a replica serves {capacity:.3g} requests/s at "
        f"'{objective}'; headroom {policy.headroom:.0%}, availability {policy.availability:.3%} with replicas up "
        f"{policy.up:.1%}, given back after {policy.hold_hours} h"
    )
    rows = tuple(
        (f"{hour}", f"{rate:.3g}", f"{count:.0f}", f"{use:.0%}", f"{flying * count / rate:.3g}" if rate > 0 else "")
        for hour, (rate, count, use, flying) in enumerate(day.to_numpy())
    )
    columns = ("hour", "requests/s", "replicas", "utilisation", "mean response, s")
    return found, Table("fleet", "A day of the fleet", columns, rows, (note,))


def interactivity_table(sweep: Sweep, scenario: str | None = None, overrides: Sequence[str] = ()) -> Table:
    """Cost against interactivity: runs that no other beats in output rate and median TPOT, by rising rate."""
    device, wanted = device_and_scenario([file for file, _ in sweep], scenario, overrides, LOAD)
    rows = []
    for summary in pareto_front([summary for _, summary in sweep], ["tpot_s.p50"]):
        found = cost_of_run(summary, device, wanted)
        cost = next(figure for figure in found.figures if figure.name == "usd_per_million_output_tokens")
        tpot, rate = summary["tpot_s.p50"], summary["output_tokens_per_s"]
        user = _turned("tokens_per_s_of_a_user", "tokens/s", tpot, lambda x: 1 / x)
        each = _turned("tokens_per_s_per_device", "tokens/s", rate, lambda x: x / device.count)
        rows.append((summary.run, user, each, cost))
    columns = ("run", ONE_USER, f"per {wanted.per}", "per million output tokens")
    return Table("interactivity", "Cost against interactivity", columns, tuple(rows))


ONE_USER = "of one user (1 / median TPOT)"


def _turned(name: str, unit: str, figure: Figure, by: Callable[[float], float]) -> Figure:
    """A figure and its interval under a monotone function."""
    value, *ends = (None if x is None else by(x) for x in (figure.value, figure.low, figure.high))
    low, high = ends if None in ends else sorted(x for x in ends if x is not None)
    status: Status = "simulated" if figure.status == "simulated" else "derived"
    return Figure(name, value, unit, status, low, high, figure.n, figure.reason, figure.interval)


def cost_tables(found: Costs) -> tuple[Table, Table]:
    """The cost figures with what their interval rests on, and the assumptions behind them."""
    rows = tuple((figure.name, figure, _basis(found, figure.name)) for figure in found.figures)
    used = tuple(
        (given.name, describe(given.distribution), given.unit, given.status, given.date, given.source)
        for given in found.assumptions
    )
    title, columns = f"Assumptions of scenario {found.scenario}", ("input", "value", "unit", "status", "date", "source")
    return (
        Table("cost", "What it costs", ("figure", "value", "interval rests on"), rows, found.notes),
        Table("assumptions", title, columns, used),
    )


def describe(d: Distribution) -> str:
    """A distribution in words.

    >>> describe(Distribution("lognormal", (1.75, 6.16)))
    'lognormal, p5 1.75, p95 6.16'
    """
    if d.certain:
        return f"{d.parameters[0]:g}"
    names = PARAMETERS[d.kind] or ("",) * len(d.parameters)
    numbers = ", ".join(f"{name} {x:g}".strip() for name, x in zip(names, d.parameters, strict=True))
    return f"{d.kind}, {numbers}"


def _basis(found: Costs, name: str) -> str:
    """How much of a figure's interval is measured, and how much reported or assumed."""
    shares = found.shares.get(name.removesuffix(".mean"))
    if shares is None:
        return ""
    return ", ".join(f"{status} {share:.0%}" for status, share in shares.items() if share >= 0.005) or "no spread given"


def run_cost_tables(sweep: Sweep, scenario: str | None = None, overrides: Sequence[str] = ()) -> list[Table]:
    """One run's costs, assumptions and what makes them uncertain; of several, the costs alone, a row a run."""
    found = [price_run(file, summary, scenario, overrides) for file, summary in sweep]
    if len(found) == 1:
        return [*cost_tables(found[0]), *tornado_tables(*sweep[0], scenario, overrides)]
    return [_costs_table("costs", "What each run costs", [(sweep[i][0], each) for i, each in enumerate(found)])]


MOST_TIERED = 50
"""With more runs than this, each is priced once."""


def tiers_table(priced: Sequence[tuple[RunFile, Summary, Costs]]) -> Table:
    """What each run costs by the `Costs` given, and by every shipped scenario that prices its device."""
    names = [name for name, _ in list_scenarios()] if len(priced) <= MOST_TIERED else []
    rows: list[tuple[RunFile, Costs]] = []
    for file, summary, given in priced:
        rows.append((file, given))
        for name in names:
            with suppress(HarnessError):  # it prices another kind of device
                found = price_run(file, summary, name)
                if name != given.scenario and found.figures[0].value is not None:
                    rows.append((file, found))
    return _costs_table("tiers", "Cost by price tier", rows)


def _costs_table(name: str, title: str, found: Sequence[tuple[RunFile, Costs]]) -> Table:
    """A row a run and scenario; where all is of one run, that is the table's source."""
    rows: list[tuple[Cell, ...]] = []
    for file, each in found:
        figures = {figure.name: figure for figure in each.figures}
        rows.append((file.id, load_of(file), each.scenario, *(figures[name] for name in COST_COLUMNS)))
    columns = ("run", "load", "scenario", *COST_COLUMNS.values())
    runs = {file.id for file, _ in found}
    if len(runs) == 1:
        return Table(name, title, columns[2:], tuple(row[2:] for row in rows), (TWO_DENOMINATORS,), runs.pop())
    return Table(name, title, columns, tuple(rows), (TWO_DENOMINATORS,))


COST_COLUMNS = {
    "usd_per_million_output_tokens": "USD per million output tokens",
    "usd_per_million_total_tokens": "USD per million tokens",
    "usd_per_query": "USD per query",
}


def sweep_tables(sweep: Sweep, scenario: str | None = None) -> list[Table]:
    """Of runs that differ in nothing but load: the best point at each objective, and cost against interactivity."""
    groups: dict[str, list[tuple[RunFile, Summary]]] = {}
    for file, summary in sweep:
        if file.engine is not None and all(measured(summary, name).value is not None for name in NEEDED):
            same = {field: has for field, has in conditions_of(file).items() if field not in LOAD}
            groups.setdefault(repr(same), []).append((file, summary))
    alike = [group for group in groups.values() if len(group) > 1]
    presets = parse_objectives(read_data("prices/mlperf_slo.csv"))
    rows = [_feasible(group, name, presets[name], scenario) for group in alike for name in presets]
    columns = ("objective", "model", "run", "output tokens/s", "USD per million output tokens")
    title = "The most throughput that meets an objective, between measured runs"
    best = [Table("slo", title, columns, tuple(rows), ("objectives of MLPerf Inference: p99 of TTFT and of TPOT",))]
    return [*(best if rows else ()), *(interactivity_table(group, scenario) for group in alike)]


FASTEST = "the fastest run meets the objective, so more throughput may be had"
NEEDED = ("output_tokens_per_s", "tpot_s.p50", "ttft_s.p99", "tpot_s.p99")


def _feasible(sweep: Sweep, name: str, objective: Objective, scenario: str | None) -> tuple[Cell, ...]:
    limits = ", ".join(f"{figure} <= {limit:g} s" for figure, limit in objective.items())
    head = (f"{name}: {limits}", str(conditions_of(sweep[0][0])["model"]))
    try:
        found, best = costs_at_objective(sweep, name, scenario)
    except HarnessError as none:
        units = {"output_tokens_per_s": "tokens/s", "usd_per_million_output_tokens": "USD/1e6 token"}
        return (*head, "", *(Figure(of, None, unit, "derived", reason=none.what) for of, unit in units.items()))
    figures = [best["output_tokens_per_s"], next(x for x in found.figures if x.name == "usd_per_million_output_tokens")]
    if best.run in {summary.run for _, summary in sweep}:
        figures = [replace(figure, reason=FASTEST) for figure in figures]
    return (*head, best.run, *figures)
