"""Verbs that judge stored runs."""

from __future__ import annotations

import typer

from harness import errors
from harness.cli.app import RESULTS, Root, Run_, app, show


@app.command()
def check(
    reference: Run_ = "latest",
    root: Root = RESULTS,
) -> None:
    """Print what is doubtful about a run; leave with 1 where it is serious."""
    from harness import store
    from harness.report import tables
    from harness.report.summaries import summary_of

    summary = summary_of(store.read(store.find(reference, root)))
    show([tables.findings_table(summary)], "text")
    if any(finding.serious for finding in summary.findings):
        raise typer.Exit(errors.GATE_FAILED)
