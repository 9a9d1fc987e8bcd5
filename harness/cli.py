"""The command line: parse, call, print. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import contextlib
import io
import json
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
        typer.Option(help="auto (what is found), none, nvml, rapl, prometheus:url=…, replay:path=…; repeatable."),
    ] = None,
    assume_power: Annotated[
        float | None, typer.Option(metavar="WATTS", help="A power to take for granted where no meter reads it.")
    ] = None,
    host_power: Annotated[
        float | None, typer.Option(min=0, metavar="WATTS", help="Declared power of the rest of the host.")
    ] = None,
    pue: Annotated[float | None, typer.Option(min=1, help="Declared power usage effectiveness of the site.")] = None,
) -> None:
    """Measure a workload once; store the run, then print its report."""
    from harness import run as measuring
    from harness import shipped
    from harness.report import economics

    named = {"engine.name": engine, "model": model, "scenario": scenario}
    words = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in named.items() if value is not None]
    spec = shipped.read_workload(workload, [*(set_ or ()), *words])
    if spec.scenario is not None:
        economics.read_scenario(spec.scenario)  # a mistake in it should not show after the measuring
    with _Display() as display:
        # A simulated engine draws no power, so none is looked for unless a meter is named.
        power = meter or ([] if spec.engine.name == "simulated" else ["auto"])
        if assume_power is not None:
            power = [*power, f"constant:watts={assume_power}"]
        declared = {name: x for name, x in (("host_w", host_power), ("pue", pue)) if x is not None}
        directory = measuring.run(spec, out, display.show, power, declared)
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
        typer.echo(reported.fact_text(book, fact, format_), nl=False)
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
    context = Context(book, reported.measured_cost(book, runs), force)
    if explain is not None:
        typer.echo(reported.explain(context, explain, format_), nl=False)
        return
    names = [*COMPARISONS, "contradictions"] if table == ["all"] else table or []
    _print(
        [*reported.compare_runs(context, runs), *(reported.comparison_table(context, name) for name in names)], format_
    )


@app.command()
def cost(
    references: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs; the last by default.")
    ] = None,
    root: Root = RESULTS,
    scenario: Scenario = None,
    set_: Set = None,
    split: Annotated[
        bool, typer.Option("--split", help="Price input and output apart, from runs of mixed shape.")
    ] = False,
    objective: Annotated[
        str | None, typer.Option(help="A preset ('70B interactive') or limits (ttft_s.p99=0.5,tpot_s.p99=0.03).")
    ] = None,
    fleet: Annotated[
        str | None,
        typer.Option(metavar="MEAN:PEAK", help="With --objective: a day's mean requests/s, and peak / mean."),
    ] = None,
    format_: Format = "text",
) -> None:
    """Price runs under a scenario: each alone, split by phase, at a latency objective, or as a fleet over a day."""
    from harness import store
    from harness.economics.fleet import Policy
    from harness.report import document, economics

    runs = [store.read(store.find(each, root)) for each in references or ["latest"]]
    how = (scenario, set_ or ())
    if split:
        _print(
            list(economics.cost_tables(economics.query_costs([(each.file, each.requests) for each in runs], *how))),
            format_,
        )
        return
    sweep = [(each.file, document.summary_of(each)) for each in runs]
    if objective is None:
        _print(economics.run_cost_tables(sweep, *how), format_)
    elif fleet is None:
        found, _ = economics.costs_at_objective(sweep, objective, *how)
        _print([*economics.cost_tables(found), economics.interactivity_table(sweep, *how)], format_)
    else:
        mean_per_s, peak_to_mean = _pair(fleet)
        found, day = economics.fleet_costs(sweep, objective, (mean_per_s, peak_to_mean), Policy(), *how)
        _print([*economics.cost_tables(found), day], format_)


@app.command()
def extrapolate(
    model: Annotated[
        str | None, typer.Argument(help="A model of harness/data/models.csv, by its hub id or the end of it.")
    ] = None,
    gpu: Annotated[str, typer.Argument(help="A GPU of the table.")] = "H100",
    devices: Annotated[int, typer.Option(help="GPUs that share the model.")] = 1,
    precision: Annotated[str, typer.Option(help="Of the weights: bfloat16, fp8…")] = "bfloat16",
    batch: Annotated[float, typer.Option(help="Sequences in flight.")] = 64,
    tokens: Annotated[str, typer.Option(metavar="IN:OUT", help="Tokens of a request.")] = "500:500",
    scenario: Annotated[str, typer.Option(help="Cost scenario: a shipped name or a file.")] = "on-demand",
    set_: Set = None,
    reference: Annotated[
        str | None, typer.Option("--run", help="A GPU run of your own that rescales the prediction.")
    ] = None,
    root: Root = RESULTS,
    validate: Annotated[
        bool, typer.Option("--validate", help="Print the error on models left out of the fit.")
    ] = False,
    format_: Format = "text",
) -> None:
    """Predict speed, energy and cost of a model and GPU that were not measured, from published GPU measurements."""
    from harness import store
    from harness.report import document, economics
    from harness.report import extrapolate as roofline

    if validate or model is None:
        _print([roofline.validation_table()], format_)
        return
    own = None
    if reference is not None:
        stored = store.read(store.find(reference, root))
        own = stored.file, document.summary_of(stored)
    found = roofline.extrapolate(model, gpu, devices, precision, batch, _pair(tokens), scenario, set_ or (), own)
    _print(list(economics.cost_tables(found)), format_)


@app.command()
def invert(
    spend: Annotated[str, typer.Option(metavar="USD", help="What was spent: a number or LOW:HIGH (p5 and p95).")],
    queries: Annotated[float, typer.Option(help="How many queries it was spent on.")],
    tokens: Annotated[str, typer.Option(help="Output tokens a query: a number or LOW:HIGH.")] = "200:2000",
    seconds: Annotated[str, typer.Option(help="GPU-seconds an output token: a number or LOW:HIGH.")] = "1e-4:5e-3",
    gpu: Annotated[str, typer.Option(help="The GPU whose price is used.")] = "H100",
    scenario: Annotated[str, typer.Option(help="Cost scenario: a shipped name or a file.")] = "on-demand",
    set_: Set = None,
    format_: Format = "text",
) -> None:
    """What must be true of tokens, speed, price and utilisation for a spend on so many queries."""
    from harness.report import economics

    given = [economics.spread(word) for word in (spend, tokens, seconds)]
    _, made = economics.what_must_be_true(given[0], queries, given[1], given[2], gpu, scenario, set_ or ())
    _print(list(made), format_)


@app.command("list")
def list_(
    what: Annotated[Literal["workloads", "runs", "engines", "models", "scenarios"], typer.Argument()],
    root: Root = RESULTS,
) -> None:
    """List what there is: workloads, runs, engines, models or scenarios."""
    from harness.report import lists

    _print([lists.TABLES[what](root)], "text")


def _pair(text: str) -> tuple[float, float]:
    """Two numbers from `A:B`."""
    first, _, second = text.partition(":")
    try:
        return float(first), float(second)
    except ValueError:
        raise errors.HarnessError(
            f"'{text}' is not of the form A:B", "give two numbers, for instance 500:200"
        ) from None


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
        self._stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors="replace")
        self._phase = ""

    def __enter__(self) -> _Display:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(file=self._stream)
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(), console=console, transient=True, disable=not console.is_interactive,
            redirect_stdout=False, redirect_stderr=False,  # what an engine prints goes to its log, not above the bar
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None, detail="")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()
            self._stream.close()

    def show(self, progress: Progress) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone; the run is not
            self._show(progress)

    def _show(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._bar.reset(self._task, description=progress.phase, detail="")
            if self._bar.disable:
                print(f"{progress.phase} …", file=self._stream, flush=True)
        if progress.phase == "measuring" and progress.elapsed_s > 0:
            rate = progress.output_tokens / progress.elapsed_s
            detail = f"{progress.finished} done, {progress.in_flight} in flight, {rate:.1f} tok/s"
            if progress.failed:
                detail += f", {progress.failed} failed"
            done, total = (
                (progress.finished, progress.count) if progress.count else (progress.elapsed_s, progress.duration_s)
            )
            self._bar.update(self._task, completed=done, total=total, detail=detail)


def main() -> None:
    """The entry point: mistakes are printed without a traceback and leave with their exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # quotes in scripts that the terminal's encoding lacks
    try:
        app()
    except errors.HarnessError as mistake:
        typer.echo(f"error: {mistake}", err=True)
        raise SystemExit(errors.WRONG_USE) from None
    except OSError as refused:
        typer.echo(f"error: {refused}\n  fix: see that the place is there, can be used, and has room", err=True)
        raise SystemExit(errors.WRONG_USE) from None
