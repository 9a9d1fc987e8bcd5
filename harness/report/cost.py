"""Tables of costs and of the assumptions behind them."""

from collections.abc import Sequence

import pandas as pd

from harness.cost.bill import TWO_DENOMINATORS, Costs
from harness.cost.draws import PARAMETERS, Distribution
from harness.cost.pricing import AtObjective, Interactive, Priced
from harness.model import Figure
from harness.report.answer import short_load
from harness.report.format import labels
from harness.report.table import Cell, Table
from harness.store.run import Run


def tornado_tables(priced: Priced) -> list[Table]:
    """The inputs that make the cost of an output token uncertain; no table if no input is uncertain."""
    shares = priced.shares.items()
    rows = tuple((name, status, Figure(f"share.{name}", share, "1", "derived")) for name, (status, share) in shares)
    columns, notes = ("input", "status", "share"), ("squared correlation of ln input with ln cost",)
    return [Table("tornado", "What makes the cost uncertain", columns, rows, notes, priced.run.id)] if rows else []


def fleet_table(day: pd.DataFrame, note: str) -> Table:
    """The fleet by hour of the day, from `cost.pricing.fleet_costs`."""
    rows = tuple(
        (f"{hour}", f"{rate:.3g}", f"{count:.0f}", f"{use:.0%}", f"{flying * count / rate:.3g}" if rate > 0 else "")
        for hour, (rate, count, use, flying) in enumerate(day.to_numpy())
    )
    columns = ("hour", "requests/s", "replicas", "utilisation", "mean response, s")
    return Table("fleet", "A day of the fleet", columns, rows, (note,))


ONE_USER = "of one user (1 / median TPOT)"


def interactivity_table(front: tuple[str, Sequence[Interactive]]) -> Table:
    """Cost against interactivity, a row for each run of the Pareto front."""
    columns = ("run", ONE_USER, f"per {front[0]}", "per million output tokens")
    return Table("interactivity", "Cost against interactivity", columns, tuple(front[1]))


def cost_tables(found: Costs) -> tuple[Table, Table]:
    """The cost figures, each with the shares of its variance by status, and the assumptions."""
    rows = tuple((figure.name, figure, _basis(found, figure.name)) for figure in found.figures)
    used = tuple(
        (given.name, describe(given.distribution), given.unit, given.status, given.date, given.source)
        for given in found.assumptions
    )
    title, columns = f"Assumptions of scenario {found.scenario}", ("input", "value", "unit", "status", "date", "source")
    return (
        Table("cost", "Cost", ("figure", "value", "interval from"), rows, found.notes),
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
    """The shares of a figure's variance by status, such as `measured 3%, assumed 97%`."""
    shares = found.shares.get(name.removesuffix(".mean"))
    if shares is None:
        return ""
    return ", ".join(f"{status} {share:.0%}" for status, share in shares.items() if share >= 0.005) or "no spread given"


def run_cost_tables(priced: Sequence[Priced]) -> list[Table]:
    """Costs, assumptions and uncertain inputs of one run; of several runs only the costs, a row for each run."""
    if len(priced) == 1:
        return [*cost_tables(priced[0].costs), *tornado_tables(priced[0])]
    return [_costs_table("costs", "Cost of each run", [(each.run, each.costs) for each in priced])]


MOST_TIERED = 50


def tiers_table(priced: Sequence[Priced]) -> Table:
    """The costs of each run, and of up to `MOST_TIERED` runs their costs under the other price tiers."""
    few = len(priced) <= MOST_TIERED
    rows = [(each.run, costs) for each in priced for costs in (each.costs, *(each.tiers if few else ()))]
    return _costs_table("tiers", "Cost by price tier", rows)


def _costs_table(name: str, title: str, found: Sequence[tuple[Run, Costs]]) -> Table:
    """A row for each run and scenario; a table of one run has no columns for run and load."""
    rows: list[tuple[Cell, ...]] = []
    for run, each in found:
        figures = {figure.name: figure for figure in each.figures}
        rows.append((run.id, short_load(run), each.scenario, *(figures[name] for name in COST_COLUMNS)))
    columns = ("run", "load", "scenario", *COST_COLUMNS.values())
    runs = {run.id for run, _ in found}
    if len(runs) == 1:
        return Table(name, title, columns[2:], tuple(row[2:] for row in rows), (TWO_DENOMINATORS,), runs.pop())
    return Table(name, title, columns, tuple(rows), (TWO_DENOMINATORS,))


COST_COLUMNS = labels("cost")


def sweep_tables(best: Sequence[AtObjective], fronts: Sequence[tuple[str, Sequence[Interactive]]]) -> list[Table]:
    """For runs that differ only in load: the best load at each objective, and cost against interactivity."""
    columns = ("objective", "model", "run", "output tokens/s", "USD per million output tokens")
    title = "Highest throughput that meets an objective, interpolated between runs"
    table = Table(
        "slo", title, columns, tuple(best), ("objectives of MLPerf Inference: limits on p99 of TTFT and of TPOT",)
    )
    return [*([table] if best else ()), *map(interactivity_table, fronts)]
