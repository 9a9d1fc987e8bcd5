"""The verb that measures the points of a sweep."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import errors
from harness.cli import options
from harness.cli.app import printing, show, show_answer
from harness.cli.display import Display, about

if TYPE_CHECKING:
    from harness.measure.sweep import Status


@printing
def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A YAML file with a workload, and a grid, zipped axes or a search.")
    ],
    root: options.Root = options.RESULTS,
    resume: Annotated[bool, typer.Option("--resume", help="Measure the points that are not complete.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
    budget: Annotated[float | None, typer.Option(min=0, metavar="GPU-HOURS", help="Start no point after this.")] = None,
    jobs: Annotated[int | None, typer.Option(metavar="N", min=1, help="With --ray: the most points at a time.")] = None,
    meter: options.Meter = None,
    gpus: options.Gpus = None,
    cooldown: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Rest between two points.")] = 0.0,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Use Ray: local, auto, or HOST:PORT.")] = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure every point of a grid, or search for the highest load; each point is a run."""
    from harness.analysis.summary import load
    from harness.cli.tables import ended_tables, plan_table
    from harness.measure.run import Setup
    from harness.measure.sweep import carry_out, read_plan
    from harness.measure.workers import start_workers

    plan = read_plan(file, root)
    if dry_run:
        show([plan_table(plan)])
        return
    if plan.stored and not resume:
        raise errors.HarnessError(
            f"{len(plan.stored)} points of sweep {plan.sweep.name} are stored in {root}",
            "add --resume to measure the others, or give the sweep another name",
        )
    power = meter or ([] if plan.simulated else ["auto"])
    needed = 0 if plan.simulated else plan.gpus
    with Display(quiet, phases=False) as display, start_workers(ray, needed, jobs, display.show) as found:
        setup = Setup(power, gpus.split(",") if gpus else None)
        ended = carry_out(plan, found, functools.partial(_say, display), setup, budget, cooldown)
    runs = [load(root / done.run) for done in ended.values() if done.state == "complete" and done.run]
    show_answer(runs, beside=ended_tables(plan, ended))
    if any(done.state != "complete" for done in ended.values()):
        raise typer.Exit(errors.INCOMPLETE)
    if len(ended) < len(plan.points) and plan.sweep.auto is None:
        typer.echo(f"incomplete: the budget of {budget:g} GPU-hours is spent; --resume goes on", err=True)
        raise typer.Exit(errors.INCOMPLETE)


def _say(display: Display, status: Status) -> None:
    """Print a line for each point that ends, and name the one whose progress follows."""
    from harness.cli.tables import in_words, state_of

    left = about(status.left_s)
    failed = f", {status.failed} failed" if status.failed else ""
    if status.done is None:
        display.series = f"{status.finished + 1} of {status.known}{failed}{left}: {in_words(status.point)}: "
    else:
        where = f"{in_words(status.point)}: {state_of(status.done)}"
        display.line(f"{status.finished} of {status.known}{failed}{left}: {where}")
