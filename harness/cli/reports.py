"""Verbs that show what is stored or shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import RESULTS, Format, Root, Scenario, app, emit, show


@app.command()
def report(
    references: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs; the last by default.")
    ] = None,
    root: Root = RESULTS,
    scenario: Scenario = None,
    table: Annotated[list[str] | None, typer.Option(help="A table by name, or all; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    format_: Format = "text",
) -> None:
    """Print a stored run's figures, cost, and position against the reported figures; or several runs side by side.

    A terminal gets a run in short; --table all prints every table, as every other format has. With several runs, a
    table of single runs that is named is printed for each. HTML is one file that needs no network, with a what-if.
    """
    from harness import store
    from harness.report import document

    directories = [store.find(each, root) for each in references or ["latest"]]
    sweep = [document.load(each) for each in directories]
    made = document.report(sweep, scenario, table or ())
    shown = document.in_short(made) if format_ == "text" and not table else made
    if format_ == "html":
        from harness.report import page

        emit(page.of_runs(made, directories, sweep, scenario), out)
        return
    show(shown, format_, out, [summary for _, summary in sweep])
