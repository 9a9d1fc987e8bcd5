"""Verbs that show what is stored or shipped."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from harness.cli.app import RESULTS, Format, Root, Run_, Scenario, app, show, show_run


@app.command()
def report(
    reference: Run_ = "latest",
    root: Root = RESULTS,
    format_: Format = "text",
    scenario: Scenario = None,
) -> None:
    """Print a stored run's figures, cost, and position against the reported figures."""
    from harness import store

    show_run(store.find(reference, root), format_, scenario)


@app.command("list")
def list_(
    what: Annotated[Literal["workloads", "runs", "engines", "models", "scenarios"], typer.Argument()],
    root: Root = RESULTS,
) -> None:
    """List what there is: workloads, runs, engines, models or scenarios."""
    from harness.report import lists

    show([lists.TABLES[what](root)], "text")
