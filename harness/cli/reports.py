"""Verbs that show what is stored or shipped."""

from __future__ import annotations

from harness.cli.app import RESULTS, Format, Root, Run_, Scenario, app, show_run


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
