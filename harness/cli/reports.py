"""Verbs that show what is stored or shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import RESULTS, ChartFormat, Charts, Format, Root, Runs, Scenario, app, each_run, emit, show


@app.command()
def report(
    references: Runs = None,
    root: Root = RESULTS,
    scenario: Scenario = None,
    table: Annotated[list[str] | None, typer.Option(help="A table by name, or all; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    charts: Charts = None,
    chart_format: ChartFormat = "svg",
    format_: Format = "text",
) -> None:
    """Print the figures and the cost of a stored run, and compare them with the reported figures; or several runs.

    As text the report has the main tables; --table all prints every table, as the other formats do. With several runs,
    --table NAME prints a table of single runs for each run. HTML is one file with a what-if; it needs no network.
    """
    from harness.analysis.summary import load
    from harness.report import document

    with each_run(references or ["latest"], root, load) as sweep:
        made = document.report(sweep, scenario, table or ())
        if charts is not None:
            from harness.report import charts as drawing

            drawn = drawing.of_report(made, sweep, drawing.WIDTH)
            drawing.write(drawn, charts, chart_format)
        if format_ == "html":
            emit(document.page_of(made, sweep, scenario), out)
            return
        shown = document.in_short(made) if format_ == "text" and not table else made
        show(shown, format_, out, [summary for _, summary in sweep])
