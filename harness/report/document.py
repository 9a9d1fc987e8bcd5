"""The report of a run or of several runs: all tables in reading order, and the HTML page."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.analysis.summary import Sweep
from harness.config import near
from harness.cost.objective import fastest_within
from harness.cost.pricing import alike, at_objectives, interactivity, price_run
from harness.errors import HarnessError
from harness.facts import whatif
from harness.facts.appraisal import appraise, shipped_book, standing
from harness.facts.formulas import Context
from harness.model import Summary
from harness.report import page, tables
from harness.report.answer import WITHIN, answer, labels_of, several
from harness.report.cost import cost_tables, sweep_tables, tiers_table, tornado_tables
from harness.report.facts import compare_tables, first_table, sources_table
from harness.report.format import labels
from harness.report.table import Table
from harness.store.run import Run

COSTS = labels("beside the press")
"""Cost figures that are printed below the reported figures -> their label there."""


def document(run: Run, summary: Summary, scenario: str | None = None) -> list[Table]:
    """Every table of one run in reading order.

    `scenario`: a shipped cost scenario or a file; None: the workload's, or else the default of the device.
    """
    money = [*_money(run, summary, scenario)]
    found = [*tables.measured_tables(run, summary), *money, sources_table(shipped_book(), money)]
    found.append(tables.environment_table(run))
    return [each if each.name in (*page.PRESS, "sources") else replace(each, source=run.id) for each in found]


def over_runs(sweep: Sweep, scenario: str | None = None) -> list[Table]:
    """Several runs in common tables: a row for each run, objectives, the Pareto front, costs, the reported figures."""
    priced = [price_run(run, summary, scenario) for run, summary in sweep if run.engine is not None]
    appraisal = appraise(priced)
    groups = alike(sweep)
    best = [point for group in groups for point in at_objectives(group, scenario)]
    fronts = [interactivity(group, scenario) for group in groups]
    found = [tables.runs_table(sweep), *sweep_tables(best, fronts), tiers_table(appraisal.priced)]
    found += [*compare_tables(appraisal), first_table(appraisal.context)]
    return [*found, sources_table(appraisal.context.book, found)]


def report(sweep: Sweep, scenario: str | None = None, names: Sequence[str] = ()) -> list[Table]:
    """The tables of one run; of several runs the common tables, and of each run those in `names`.

    `names`: the tables wanted, or `all`. HarnessError for a name that the report does not have.
    """
    made = over_runs(sweep, scenario) if len(sweep) > 1 else []
    if len(sweep) == 1 or set(names) - {each.name for each in made}:
        made += [each for run, summary in sweep for each in document(run, summary, scenario)]
    known = dict.fromkeys(each.name for each in made)
    for name in set(names) - {*known, "all"}:
        fix = f"{near(name, known)}choose from {', '.join(known)}, all"
        raise HarnessError(f"no table '{name}' in this report", fix)
    return made if not names or "all" in names else [each for each in made if each.name in names]


def page_of(made: Sequence[Table], sweep: Sweep, scenario: str | None = None) -> str:
    """The report as an HTML page; the key figures and the what-if are of the best run within its objectives.

    Without the extra `charts` it has none, and says so.
    """
    from harness.report import charts, run_charts

    found = fastest_within([summary for _, summary in sweep], WITHIN)
    fastest = found or fastest_within([summary for _, summary in sweep], 0.0)
    best = next((each for each in sweep if each[1] is fastest), sweep[0])
    runs, others = [run for run, _ in sweep], [each for each in sweep if each is not best]
    drawings, absent = [], ""
    try:
        drawings = charts.for_page(run_charts.of_report(made, [best, *others], charts.PAGE))
    except HarnessError as missing:
        absent = f'<p class="dim">No charts: {page.text(missing.what)}: {page.text(missing.fix)}</p>\n'
    starts = whatif.starts([best, *others], Context(shipped_book()), scenario)
    for run, label in zip(runs, labels_of(runs), strict=True):
        for start in starts:
            start["label"] = start["label"].replace(f"run {run.id}", label)
    if len(sweep) == 1:  # its id stands at the top
        made = [replace(each, source="") for each in made]
    made = sorted(made, key=lambda table: table.name != "findings")
    above, methods = page.above(sweep, best, found is not None, scenario), page.methods(sweep, scenario)
    return page.render(page.title_of(runs), made, drawings, starts, above + absent, methods)


def first_screen(sweep: Sweep, scenario: str | None, width: int) -> str:
    """The answer as text: of one run its figures, cost and findings; of several a table with a row for each."""
    priced = [None if run.engine is None else price_run(run, summary, scenario) for run, summary in sweep]
    if len(sweep) > 1:
        return several(sweep, priced, width)
    run, summary = sweep[0]
    return answer(run, summary, priced[0], tables.findings_of(run, summary), width)


def _money(run: Run, summary: Summary, scenario: str | None) -> Iterator[Table]:
    """Cost, assumptions, and the reported figures; of a run that never started only the reported figures."""
    if run.engine is None:
        yield first_table(Context(shipped_book()), run, caveats=[standing(run)])
        return
    appraisal = appraise([price_run(run, summary, scenario)])
    priced = appraisal.priced[0]
    cost, assumptions = cost_tables(priced.costs)
    yield cost
    yield tiers_table([priced])
    yield from tornado_tables(priced)
    yield assumptions
    yield from compare_tables(appraisal)
    costs = [(label, figure) for figure in priced.costs.figures if (label := COSTS.get(figure.name))]
    yield first_table(appraisal.context, run, costs, [why for _, why in appraisal.caveats])
