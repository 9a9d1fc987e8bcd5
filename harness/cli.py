"""The command line: parse, call, print. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness import errors

if TYPE_CHECKING:
    from harness.report.table import Table
    from harness.run import Progress
    from harness.store import Run

app = typer.Typer(
    help="What it costs to serve an open model here, and whether the story in the press adds up.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Root = Annotated[Path, typer.Option("--root", envvar="HARNESS_RESULTS", help="Directory that holds the runs.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change any key; repeatable.")]
Scenario = Annotated[str | None, typer.Option(help="Cost scenario: a shipped name or a file.")]
Facts = Annotated[
    list[Path] | None, typer.Option("--facts", help="Your own facts file, beside the shipped; repeatable.")
]
Format = Annotated[Literal["text", "json"], typer.Option("--format")]
Run_ = Annotated[str, typer.Argument(metavar="RUN", help="A run's directory or name; latest is the last one.")]
RESULTS = Path("results")


@app.command()
def run(
    workload: Annotated[str, typer.Argument(help="A workload file, or the name of a shipped one.")],
    engine: Annotated[str | None, typer.Option(help="auto, vllm, transformers or simulated.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, directory, GGUF file, or short name.")] = None,
    set_: Set = None,
    out: Annotated[
        Path, typer.Option(envvar="HARNESS_RESULTS", help="Directory that gets the run's directory.")
    ] = RESULTS,
    scenario: Scenario = None,
    meter: Annotated[
        list[str] | None,
        typer.Option(help="auto (what is found), none, nvml, rapl, prometheus:url=…, replay:file=…; repeatable."),
    ] = None,
) -> None:
    """Measure a workload once; store the run, then print its report."""
    from harness import run as measuring
    from harness import shipped

    overrides = list(set_ or [])
    overrides += [
        f"{key}={value}" for key, value in (("engine.name", engine), ("model", model), ("scenario", scenario)) if value
    ]
    spec = shipped.read_workload(workload, overrides)
    with _Display() as display:
        # A simulated engine draws no power, so none is looked for unless a meter is named.
        power = meter or ([] if spec.engine.name == "simulated" else ["auto"])
        directory = measuring.run(spec, out, display.show, power)
    stored = _report(directory, "text")
    typer.echo(f"run: {directory}")
    succeeded = stored.requests["error"].isna().any()
    if stored.file.state != "complete" or not succeeded:
        reason = stored.file.error or "no request succeeded"
        typer.echo(f"incomplete: {reason}", err=True)
        raise typer.Exit(errors.INCOMPLETE)


@app.command()
def report(
    reference: Run_ = "latest",
    root: Root = RESULTS,
    format_: Format = "text",
    scenario: Scenario = None,
) -> None:
    """Print a stored run's figures, cost, and position against the reported figures."""
    from harness import store

    _report(store.find(reference, root), format_, scenario)


@app.command()
def check(
    reference: Run_ = "latest",
    root: Root = RESULTS,
) -> None:
    """Print what is doubtful about a run; leave with 1 where it is serious."""
    from harness import store
    from harness.report import document, tables

    summary = document.summary_of(store.read(store.find(reference, root)))
    _print([tables.findings_table(summary)], "text")
    if any(finding.serious for finding in summary.findings):
        raise typer.Exit(errors.GATE_FAILED)


@app.command()
def facts(
    fact: Annotated[str | None, typer.Argument(metavar="ID", help="One fact, with its source and quote.")] = None,
    entity: Annotated[str | None, typer.Option(help="Whose: part of the name.")] = None,
    metric: Annotated[str | None, typer.Option(help="Of what: part of the word.")] = None,
    period: Annotated[str | None, typer.Option(help="When: part of the date or span.")] = None,
    status: Annotated[str | None, typer.Option(help="leaked, reported, stated, estimated, projection…")] = None,
    layer: Annotated[str | None, typer.Option(help="articles, outside or user.")] = None,
    file: Facts = None,
    format_: Format = "text",
) -> None:
    """List the published figures, or print one with its source and quote."""
    from harness.report import reported

    book = reported.book(file or ())
    if fact is not None:
        typer.echo(reported.fact_text(book, fact))
        return
    found = book.select(entity=entity, metric=metric, period=period, status=status, layer=layer)
    _print([reported.facts_table(found)], format_)


@app.command()
def compare(
    references: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs to compare.")] = None,
    root: Root = RESULTS,
    scenario: Scenario = None,
    table: Annotated[list[str] | None, typer.Option(help="A comparison by name, or all; repeatable.")] = None,
    explain: Annotated[str | None, typer.Option(metavar="ID", help="A comparison's formulas, inputs, quotes.")] = None,
    set_: Set = None,
    file: Facts = None,
    force: Annotated[bool, typer.Option("--force", help="Compute what does not compare, and stamp it.")] = False,
    format_: Format = "text",
) -> None:
    """Set the measured cost beside the reported spend: ratios with their bounds, the gap, what must be true.

    Without a run of a GPU, published GPU measurements stand in.
    """
    from harness import store
    from harness.report import document, reported
    from harness.reported.comparisons import COMPARISONS, Context
    from harness.reported.records import assume

    runs = [document.costed(store.read(store.find(each, root)), scenario) for each in references or ()]
    book = assume(reported.book(file or ()), set_ or ())
    context = Context(book, reported.measured_cost(runs), force)
    if explain is not None:
        typer.echo(reported.explain(context, explain))
        return
    names = [*COMPARISONS, "contradictions"] if table == ["all"] else table or []
    _print(
        [*reported.compare_runs(context, runs), *(reported.comparison_table(context, name) for name in names)], format_
    )


@app.command("list")
def list_(
    what: Annotated[Literal["workloads", "runs", "engines", "models", "scenarios"], typer.Argument()],
    root: Root = RESULTS,
) -> None:
    """List what there is: workloads, runs, engines, models or scenarios."""
    from harness.report import lists

    _print([lists.TABLES[what](root)], "text")


def _print(tables: list[Table], format_: Literal["text", "json"]) -> None:
    from harness.report import json, text

    typer.echo(text.render(tables) if format_ == "text" else json.render(tables), nl=False)


def _report(directory: Path, format_: Literal["text", "json"], scenario: str | None = None) -> Run:
    from harness import store
    from harness.report import document

    stored = store.read(directory)
    typer.echo(document.render(stored, format_, scenario), nl=False)
    return stored


class _Display:
    """Progress of a run on standard error: a live bar on a terminal, else a line for each phase."""

    def __init__(self) -> None:
        # A copy of the descriptor: the run sends descriptors 1 and 2 to the engine's log.
        self._stream = os.fdopen(os.dup(sys.stderr.fileno()), "w")
        self._phase = ""

    def __enter__(self) -> _Display:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(file=self._stream)
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None, detail="")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._stream.close()

    def show(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._bar.reset(self._task, description=progress.phase)
            if self._bar.disable:
                print(f"{progress.phase} …", file=self._stream, flush=True)
        if progress.phase == "measuring" and progress.elapsed_s > 0:
            detail = f"{progress.output_tokens / progress.elapsed_s:.1f} tok/s, {progress.in_flight} in flight"
            if progress.failed:
                detail += f", {progress.failed} failed"
            done, total = (
                (progress.finished, progress.count) if progress.count else (progress.elapsed_s, progress.duration_s)
            )
            self._bar.update(self._task, completed=done, total=total, detail=detail)


def main() -> None:
    """The entry point: mistakes are printed without a traceback and leave with their exit code."""
    try:
        app()
    except errors.HarnessError as mistake:
        typer.echo(f"error: {mistake}", err=True)
        raise SystemExit(errors.WRONG_USE) from None
