"""A stored run as one document: its figures, cost, position against the reported figures, findings and environment."""

from __future__ import annotations

from typing import Literal

from harness.economics.cost import Costs
from harness.model import Summary
from harness.report import economics, extrapolate, json, reported, tables, text
from harness.report.summaries import summary_of
from harness.report.table import Table
from harness.reported.comparisons import Context
from harness.store import Run, RunFile

COSTS = {
    "usd_per_query": "measured here: cost of a query",
    "usd_per_million_output_tokens": "measured here: cost of a million output tokens",
}
"""Cost figures that stand beside the reported ones -> their label there."""


def document(run: Run, scenario: str | None = None) -> tuple[list[Table], Summary]:
    """Every table of the run in reading order, and the summary that they were made from.

    `scenario`: a shipped cost scenario or a file; None: the workload's own, or else the device's default.
    """
    summary = summary_of(run)
    *measured, environment = tables.tables(run.file, summary)
    measured[-1:-1] = [*tables.energy_tables(summary, run.file.meters_absent), *_limits(run, summary)]
    return [*measured, *_money(run, summary, scenario), environment], summary


def costed(run: Run, scenario: str | None = None) -> tuple[RunFile, Summary, Costs]:
    """The run, its summary and its costs under the scenario (see `document`)."""
    summary = summary_of(run)
    return run.file, summary, _costs(run, summary, scenario)


def render(run: Run, format_: Literal["text", "json"], scenario: str | None = None) -> str:
    """The document in one of the formats."""
    made, summary = document(run, scenario)
    return text.render(made) if format_ == "text" else json.render(made, [summary])


def _limits(run: Run, summary: Summary) -> list[Table]:
    """How far from the hardware's limit a GPU run was."""
    if run.file.engine is None or run.file.engine["device"] != "cuda":
        return []
    rows = tuple((figure.name, figure) for figure in extrapolate.limits(run.file, summary))
    return [Table("limits", "Distance from the hardware's limit", ("figure", "value"), rows)]


def _money(run: Run, summary: Summary, scenario: str | None) -> list[Table]:
    """Cost, assumptions, and the reported figures; of a run that never started, the reported figures alone."""
    engine = run.file.engine
    if engine is None:
        return [reported.first_table(Context(reported.book()), run.file.id, [], device="", parameters=None)]
    costs = _costs(run, summary, scenario)
    beside = [(label, figure) for figure in costs.figures if (label := COSTS.get(figure.name))]
    first = reported.first_table(
        Context(reported.book()),
        run.file.id,
        beside,
        device=engine["device"],
        parameters=engine["model"]["parameters"],
    )
    return [*economics.cost_tables(costs), first]


def _costs(run: Run, summary: Summary, scenario: str | None) -> Costs:
    return economics.costs(run.file, summary, scenario or run.file.workload.get("scenario"))
