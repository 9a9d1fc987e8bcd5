"""Verbs that show and compare stored runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import errors
from harness.cli.app import directories, each_run, output, printing, show, show_answer, stored_run
from harness.cli.display import Display
from harness.cli.options import (
    RESULTS,
    ChartFormat,
    Charts,
    FailOn,
    Force,
    Full,
    Least,
    Precision,
    Root,
    Run_,
    Runs,
    Scenario,
)

if TYPE_CHECKING:
    from harness.analysis.diff import Gate
    from harness.report.changes import Difference
    from harness.store.run import Run
    from harness.store.run_file import Environment


@printing
def report(
    references: Runs = None,
    root: Root = RESULTS,
    scenario: Scenario = None,
    full: Full = False,
    table: Annotated[list[str] | None, typer.Option(help="Only this table; repeatable.")] = None,
    charts: Charts = None,
    chart_format: ChartFormat = "svg",
) -> None:
    """Print the answer of a run, or of several, on one screen; --full prints every table, as other formats do.

    With several runs --table NAME prints a table of single runs for each run. HTML is one file with a what-if; it
    needs no network.
    """
    from harness.analysis.summary import load

    with each_run(references or ["latest"], root, load) as sweep:
        show_answer(sweep, scenario, table or (["all"] if full else ()), charts, chart_format)


@printing
def check(reference: Run_ = "latest", root: Root = RESULTS, precise: Precision = None) -> None:
    """Print the findings of a run, and what a wanted precision needs.

    Exits with 1 if a finding is serious, and with 3 if the run did not complete.
    """
    from harness.analysis import precision
    from harness.analysis.summary import summary_of
    from harness.report import tables
    from harness.report.changes import precision_table

    stored = stored_run(reference, root)
    summary, targets = summary_of(stored), precision.parse(precise or ())
    wanted = [precision_table(stored, summary, targets)] if targets else []
    show([tables.findings_table(summary.findings), *wanted])
    gate_failed = any(finding.serious for finding in summary.findings)
    if (incomplete := _incomplete([stored])) or gate_failed:
        raise typer.Exit(errors.GATE_FAILED if gate_failed else incomplete)


def _incomplete(runs: Iterable[Run]) -> int:
    """Prints a line for each run that did not complete; returns the exit code 3, or 0 if all did."""
    unfinished = [run for run in runs if run.state != "complete"]
    for run in unfinished:
        typer.echo(f"incomplete: run {run.id} is {run.state}: {run.file.error or 'no reason stored'}", err=True)
    return errors.INCOMPLETE if unfinished else 0


@printing
def diff(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A run, repeats of it (A,B,C), or their directory.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The runs to judge against BASE.")] = "latest",
    root: Root = RESULTS,
    fail_on: FailOn = None,
    least: Least = "1%",
    between: Annotated[
        str | None,
        typer.Option(metavar="PERCENT%", help="Known standard deviation between runs; else learned, or 3% assumed."),
    ] = None,
    force: Force = False,
    full: Full = False,
) -> None:
    """Compare runs with runs: gates, then what improved or regressed, as ratios with intervals; --full has the rest."""
    from harness.analysis.diff import parse_gate, parse_share

    gates, effect = [parse_gate(text) for text in fail_on or ()], parse_share("--least", least)
    declared = None if between is None else parse_share("--between", between)
    sides = _side(base, root), _side(new, root)
    if both := {run.directory for run in sides[0]} & {run.directory for run in sides[1]}:
        what = f"{min(both).name} stands on both sides of the comparison"
        raise errors.HarnessError(what, "name two different runs; `harness list runs` prints them")
    judged(*sides, gates, force, effect, full, declared)


def judged(
    base: Sequence[Run],
    new: Sequence[Run],
    gates: Sequence[Gate],
    force: bool,
    least: float,
    full: bool,
    between: float | None = None,
) -> None:
    """Print what changed; exit with 1 if a gate failed, and with 3 if a run that a gate judges is incomplete."""
    from harness.report.changes import difference

    found = difference(base, new, gates, force, least, full or output().format != "text", between)
    show(found.tables)
    _tell_github(found)
    incomplete = _incomplete([*base, *new])
    if found.failed:
        raise typer.Exit(errors.GATE_FAILED)
    if gates and incomplete:
        raise typer.Exit(incomplete)


def _side(text: str, root: Path) -> list[Run]:
    from harness.store.run import read_run

    found: list[Path] = []
    for each in text.split(","):
        inside = [path.parent for path in Path(each).glob("*/run.json") if not path.parent.is_symlink()]
        found += sorted(inside) or directories(each, root)
    return [read_run(directory) for directory in found]


def _tell_github(found: Difference) -> None:
    """In a GitHub workflow: print annotations, and add the tables to the summary of the job."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in found.annotations:  # GitHub reads both streams; the tables are on stdout
            typer.echo(line, err=True)
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        from harness.report.markup import markdown

        with Path(path).open("a", encoding="utf-8") as summary:
            summary.write(markdown(found.tables))


MACHINE: Mapping[str, Callable[[Environment], object]] = {
    "cpu": lambda place: place.cpu.model,
    "cores_usable": lambda place: place.cpu.cores_usable,
    "gpus": lambda place: ", ".join(gpu.name or "GPU" for gpu in place.gpus) or "none",
    "power_limit_w": lambda place: [gpu.power_limit_w for gpu in place.gpus],
}
"""What `rerun` takes for another machine."""


@printing
def rerun(reference: Run_ = "latest", root: Root = RESULTS, force: Force = False) -> None:
    """Measure a stored run again under the same conditions, and compare the two runs.

    Refuses a machine that differs from that of the run; other differences, such as versions, are printed first.
    """
    from harness.analysis.diff import differences
    from harness.measure import environment
    from harness.measure import run as measuring
    from harness.report.changes import difference
    from harness.store.run import Run, read_run
    from harness.store.run_file import Environment
    from harness.workload.schema import workload_of

    before = stored_run(reference, root)
    file = before.file
    place = Environment.model_validate(environment.capture())
    must = [
        f"{name} differs: {then} vs {now}"
        for name, of in MACHINE.items()
        if (then := of(file.environment)) is not None and then != (now := of(place))
    ]
    _, noted = differences(before, Run(before.directory, file.model_copy(update={"environment": place})))
    if must and not force:
        raise errors.HarnessError(f"this machine differs from that of {file.id}: {'; '.join(must)}", "add --force")
    for each in must + noted:
        typer.echo(each, err=True)
    asked = file.workload.model_dump(mode="json")
    users = [asked["load"].get("users"), *(step.get("users") for step in asked["load"].get("steps") or ())]
    changes: dict[str, object] = {"engine.name": file.engine_asked}
    if file.schema_version < 3 and any(users):  # closed loops began with a burst
        changes["load.start"] = "burst"
    spec = workload_of(asked, f"{before.directory}/run.json", changes)
    with Display() as display:
        clients = max(1, len(file.clients))
        directory = measuring.run(spec, root, display.show, file.meters_asked, file.declared, clients)
    after = read_run(directory)
    show(difference([before], [after], force=True, full=output().format != "text").tables)
    typer.echo(f"run: {directory}", err=True)
    if after.state != "complete":
        raise typer.Exit(errors.INCOMPLETE)


@printing
def doctor(root: Root = RESULTS) -> None:
    """Examine this machine: what can be measured, what would make a run doubtful, and how to fix it.

    Exits with 1 only if no run can be stored.
    """
    from harness.measure import doctor as examining
    from harness.model import Finding
    from harness.report.table import PROPERTIES, Table
    from harness.report.tables import findings_table

    seen = list(examining.examine(root))
    findings = [each for each in seen if isinstance(each, Finding)]
    parts = tuple(each for each in seen if not isinstance(each, Finding))
    show([Table("machine", "This machine", PROPERTIES, parts), findings_table(findings)])
    if any(finding.serious for finding in findings):
        raise typer.Exit(errors.GATE_FAILED)
