"""A run, or several, as one document: every table in reading order, in any format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from harness.analysis.summary import Sweep, summary_of
from harness.cost.bill import Costs
from harness.cost.pricing import price_run
from harness.errors import HarnessError
from harness.facts.comparisons import Context
from harness.facts.measured import shipped_book
from harness.model import Summary
from harness.predict.extrapolate import hardware_limits
from harness.report import page, tables, whatif
from harness.report.cost import cost_tables, sweep_tables, tiers_table, tornado_tables
from harness.report.facts import compare_runs, first_table, sources_table
from harness.report.table import Table
from harness.store.directory import Run, read_run, read_run_file, read_summary
from harness.store.run_file import RunFile

COSTS = {
    "usd_per_query": "measured here: cost of a query",
    "usd_per_million_output_tokens": "measured here: cost of a million output tokens",
}
"""Cost figures that stand beside the reported ones -> their label there."""
LONG = ("tiers", "tornado", "compare", "ladder", "sources")
"""What a terminal gets only by name, or with all else."""
NOT_OF_A_RUN = ("compare", "ladder", "reported", "sources")


def load(directory: Path) -> tuple[RunFile, Summary]:
    """A run without its rows, unless its summary has to be made from them."""
    file, summary = read_run_file(directory), read_summary(directory)
    if summary is None or summary.state != file.state:
        return file, summary_of(read_run(directory))
    return file, summary


def document(file: RunFile, summary: Summary, scenario: str | None = None) -> list[Table]:
    """Every table of one run in reading order.

    `scenario`: a shipped cost scenario or a file; None: the workload's own, or else the device's default.
    """
    *measured, environment = tables.tables(file, summary)
    limits = hardware_limits(file, summary) if (file.engine or {}).get("device") == "cuda" else ()
    measured[-1:-1] = [
        *tables.energy_tables(summary, file.meters_absent),
        *tables.listed("limits", "Distance from the hardware's limit", limits),
    ]
    context = Context(shipped_book())
    money = [*_money(context, file, summary, scenario)]
    found = [*measured, *money, sources_table(context.book, money), environment]
    return [each if each.name in NOT_OF_A_RUN else replace(each, source=file.id) for each in found]


def over_runs(sweep: Sweep, scenario: str | None = None) -> list[Table]:
    """Several runs side by side: a row a run, objectives, the Pareto front, costs, the reported figures."""
    context = Context(shipped_book())
    started = [(file, summary) for file, summary in sweep if file.engine is not None]
    costed = [(file, summary, price_run(file, summary, scenario)) for file, summary in started]
    found = [tables.runs_table(sweep), *sweep_tables(sweep, scenario), tiers_table(costed)]
    with suppress(HarnessError):  # none has a cost
        found += compare_runs(context, costed)
    return [*found, sources_table(context.book, found)]


def report(sweep: Sweep, scenario: str | None = None, names: Sequence[str] = ()) -> list[Table]:
    """The tables of one run; of several, those over all runs, and of each run those that are named.

    `names`: only these, or `all`. HarnessError for one that the report does not have.
    """
    made = [*(over_runs(sweep, scenario) if len(sweep) > 1 else ())]
    if len(sweep) == 1 or set(names) - {each.name for each in made}:
        made += [each for file, summary in sweep for each in document(file, summary, scenario)]
    known = dict.fromkeys(each.name for each in made)
    for name in set(names) - {*known, "all"}:
        raise HarnessError(f"no table '{name}' in this report", f"choose from {', '.join(known)}, all")
    return made if not names or "all" in names else [each for each in made if each.name in names]


def page_of(made: Sequence[Table], directories: Sequence[Path], sweep: Sweep, scenario: str | None = None) -> str:
    """A report as a page: its tables, charts of the first few runs, and a what-if that starts from them.

    Without the extra `charts` there are none.
    """
    from harness.report import charts

    drawings: list[tuple[str, ...]] = []
    with suppress(HarnessError):
        first = with_rows(directories, sweep)
        wide, narrow = (charts.of_report(made, first, sweep, width) for width in (charts.WIDTH, charts.NARROW))
        drawings = [(a.title, charts.svg(a), charts.svg(b)) for a, b in zip(wide, narrow, strict=True)]
    stored = [
        (file, summary, lambda each=each: read_run(each).requests)
        for each, (file, summary) in zip(directories, sweep, strict=True)
    ]
    title = f"Run {sweep[0][0].id}" if len(sweep) == 1 else f"{len(sweep)} runs"
    return page.render(title, made, drawings, whatif.starts(stored, Context(shipped_book()), scenario))


def with_rows(directories: Sequence[Path], sweep: Sweep) -> list[tuple[Run, Summary]]:
    """As many runs as a chart has lines, read with their rows."""
    from harness.report import charts

    pairs = zip(directories[: charts.MOST_LINES], sweep, strict=False)
    return [(read_run(directory), summary) for directory, (_, summary) in pairs]


def in_short(made: Sequence[Table]) -> list[Table]:
    """Without the tables that a terminal gets only by name."""
    return [each for each in made if each.name not in LONG]


def costed(run: Run, scenario: str | None = None, overrides: Sequence[str] = ()) -> tuple[RunFile, Summary, Costs]:
    """The run, its summary and its costs under the scenario (see `document`) with `--set` overrides."""
    summary = summary_of(run)
    return run.file, summary, price_run(run.file, summary, scenario, overrides)


def _money(c: Context, file: RunFile, summary: Summary, scenario: str | None) -> Iterator[Table]:
    """Cost, assumptions, and the reported figures; of a run that never started, the reported figures alone."""
    engine = file.engine
    if engine is None:
        yield first_table(c, file.id, [], device="", parameters=None)
        return
    found = price_run(file, summary, scenario)
    cost, assumptions = cost_tables(found)
    yield cost
    yield tiers_table([(file, summary, found)])
    yield from tornado_tables(file, summary, scenario)
    yield assumptions
    with suppress(HarnessError):
        yield from compare_runs(c, [(file, summary, found)])
    beside = [(label, figure) for figure in found.figures if (label := COSTS.get(figure.name))]
    yield first_table(c, file.id, beside, device=engine["device"], parameters=engine["model"]["parameters"])
