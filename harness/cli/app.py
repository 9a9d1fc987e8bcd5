"""The application, and what its verbs share: reading runs, and printing in any format."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
import typer.core

from harness import errors
from harness.cli import misuse

if TYPE_CHECKING:
    from harness.analysis.summary import Sweep
    from harness.model import Summary
    from harness.report.charts import ChartFormat as ChartFormats
    from harness.report.formats import Format as Formats
    from harness.report.table import Table
    from harness.store.run import Run


EPILOG = """\b
examples:
  harness run smoke --engine simulated            try it out; nothing is needed
  harness run chat --url http://127.0.0.1:8000    measure a server that runs
  harness report latest --full                    every table of the last run
\b
exit codes: 0 success, 1 a gate failed, 2 wrong use, 3 the run is incomplete
"""
GROUPS = {
    "Measure": ("run", "sweep", "ab", "rerun", "doctor"),
    "Read": ("report", "check", "diff", "list", "export", "import", "schema"),
    "Cost": ("cost", "predict"),
    "Press": ("compare", "facts"),
}
"""The verbs as --help groups them, in the order of their use."""


class Grouped(typer.core.TyperGroup):
    """Prints the verbs in their groups, each with the first sentence of its help."""

    def format_commands(self, _: object, formatter: Any) -> None:
        for group, verbs in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(verb, (self.commands[verb].help or "").partition("\n\n")[0]) for verb in verbs])


app = typer.Typer(
    cls=Grouped,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


T = TypeVar("T")
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""What the parser raises: UsageError of click, or of the copy of click in typer, which does not export it."""


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Measure what it costs to serve an open model, and compare that with a large provider's reported spend."""
    if version:
        import harness

        typer.echo(f"harness {harness.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(errors.WRONG_USE)


SUFFIXES: Mapping[str, Formats] = {
    ".html": "html", ".md": "md", ".csv": "csv", ".tex": "latex", ".json": "json", ".parquet": "parquet", ".txt": "text"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Output:
    """Where a verb prints, and in which format."""

    format: Formats = "text"
    file: Path | None = None


_output: ContextVar[Output] = ContextVar("output")
output = _output.get
_Formats = Literal["text", "md", "csv", "latex", "html", "json", "parquet"]
_File = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Print to this file.")]
_FileOfRun = Annotated[Path | None, typer.Option("-o", metavar="FILE", help="Print the answer to this file.")]


def _options(
    format_: Annotated[
        _Formats | None, typer.Option("--format", help="Default: by the ending of FILE, or text.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    to: _File = None,
) -> Output:
    """The options of every verb that prints figures. HarnessError for a file that cannot be written, or no format."""
    if to is not None and (to.is_dir() or not to.absolute().parent.is_dir()):
        raise errors.HarnessError(f"-o {to}: not a file in an existing directory", "name a file, such as r.html")
    if to is not None and to.suffix and not (format_ or json or to.suffix in SUFFIXES):
        fix = f"end it in one of {', '.join(SUFFIXES)}, or add --format"
        raise errors.HarnessError(f"-o {to}: the ending '{to.suffix}' names no format", fix)
    if json and format_ not in (None, "json"):
        raise errors.HarnessError(f"--json with --format {format_}", "name one of the two")
    named = SUFFIXES.get(to.suffix, "text") if to else "text"
    return Output("json" if json else format_ or named, to)


def printing(verb: Callable[..., None]) -> Callable[..., None]:
    """Register a verb with the options of `_options`, which `show` and `emit` follow; its pairs are checked."""
    own, added = (dict(inspect.signature(each, eval_str=True).parameters) for each in (verb, _options))
    if "out" in own:  # --out is the directory of the runs
        added["to"] = added["to"].replace(annotation=_FileOfRun)

    @functools.wraps(verb)
    def call(context: typer.Context, **given: Any) -> None:
        misuse.check(context)
        _output.set(_options(**{name: given.pop(name) for name in added}))
        root, file = given.get("root", given.get("out")), output().file
        if file and root and file.absolute() == root.absolute():
            raise errors.HarnessError(f"-o {file} is the directory of the runs", f"name a file, such as {file}.html")
        verb(**given)

    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    called = {"context": context, **own, **added}
    call.__signature__ = inspect.Signature(list(called.values()))  # type: ignore[attr-defined]
    call.__annotations__ = {name: each.annotation for name, each in called.items()}
    return app.command(verb.__name__.strip("_"))(call)


def show(tables: Sequence[Table], summaries: Sequence[Summary] = ()) -> None:
    """Print the tables. JSON also has the figures of `summaries`."""
    from harness.report import formats, text

    plain = output().format == "text"
    emit(
        text.render(tables, color=None if output().file is None else False)
        if plain
        else formats.render(tables, output().format, summaries)
    )


def emit(content: str | bytes) -> None:
    """Print the content, or write it to the file. HarnessError for bytes on a terminal."""
    if (file := output().file) is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    elif isinstance(content, bytes) and sys.stdout.isatty():
        raise errors.HarnessError("Parquet is not for a terminal", "name a file with -o FILE, or > FILE")
    else:
        typer.echo(content, nl=False)


def draw(tables: Sequence[Table], charts: Path | None, chart_format: ChartFormats) -> None:
    """Draw the charts of the tables into this directory, if one is named."""
    if charts is not None:
        from harness.report import charts as drawing

        drawing.write(drawing.of_tables(tables), charts, chart_format)


def show_answer(
    sweep: Sweep,
    scenario: str | None = None,
    names: Sequence[str] = (),
    charts: Path | None = None,
    chart_format: ChartFormats = "svg",
    beside: Sequence[Table] = (),
) -> None:
    """Print the answer of these runs and the tables `beside`: as text on one screen, else every table.

    `names`: only these tables, or `all`. `charts`: also draw charts into this directory.
    """
    from harness.report import document, text

    screen = output().format == "text" and not names
    made = [] if screen and charts is None else [*document.report(sweep, scenario, names), *beside]
    if charts is not None:
        from harness.report import charts as drawing

        drawing.write(drawing.of_report(made, sweep), charts, chart_format)
    if screen:
        emit(document.first_screen(sweep, scenario, text.columns_of_terminal()) + text.render(beside) * bool(beside))
    elif output().format == "html":
        emit(document.page_of(made, sweep, scenario))
    else:
        show(made, [summary for _, summary in sweep])


def existing(root: Path) -> Path:
    """The directory of runs; HarnessError if there is none."""
    if not root.is_dir():
        raise errors.HarnessError(f"no directory {root}", "measure a run first, or name its directory with --root")
    return root


def stored_run(reference: str, root: Path) -> Run:
    """The run that a directory or name means."""
    from harness.store.directory import find_run
    from harness.store.run import read_run

    directory = find_run(reference, root)
    _tell_of_newest([directory], root)
    return read_run(directory)


def _tell_of_newest(chosen: Sequence[Path], root: Path) -> None:
    """Says that the newest run under the root did not finish, if runs of the root were chosen without it."""
    from harness.store.run import read_run

    newest, here = (root / "latest").resolve(), {each.resolve() for each in chosen}
    if newest in here or newest.parent not in {each.parent for each in here}:
        return
    with contextlib.suppress(errors.HarnessError):
        if (run := read_run(newest)).state in ("interrupted", "failed"):
            typer.echo(f"note: the newest run {run.id} is {run.state}; what follows is of older runs", err=True)


def directories(reference: str, root: Path) -> list[Path]:
    """The run that a directory or name means, every run of a directory of runs, or the complete runs of a sweep."""
    from harness.analysis.index import runs
    from harness.store import directory

    if inside := [path for path, _ in directory.directories(Path(reference))]:
        return inside
    try:
        return [directory.find_run(reference, root)]
    except errors.HarnessError:
        of = runs(root) if root.is_dir() else None
        if of is None or not (chosen := of[(of["sweep"] == reference) & (of["state"] == "complete")]["run"].tolist()):
            raise
        return [root / run for run in chosen]


@contextlib.contextmanager
def each_run(references: Sequence[str], root: Path, read: Callable[[Path], T]) -> Iterator[list[T]]:
    """The value of `read` for each run, or run of a sweep that is named.

    A damaged run among others is reported and left out, and the exit code is 2.
    """
    found, damaged = [], []
    chosen = list(dict.fromkeys(each for reference in references for each in directories(reference, root)))
    _tell_of_newest(chosen, root)
    for directory in chosen:
        try:
            found.append(read(directory))
        except errors.HarnessError as error:
            damaged.append(error)
    if damaged and not found:
        raise damaged[0]
    for each in damaged:
        typer.echo(f"error: {each}\n  the other runs follow without this one", err=True)
    yield found
    if damaged:
        raise typer.Exit(errors.WRONG_USE)


def main() -> None:
    """The entry point. Wrong use, and what the system refused, are printed without a traceback and exit with 2."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed by the caller; no file opened later may get its descriptor
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # quotes may have characters that the terminal's encoding lacks
    try:
        raise SystemExit(app(prog_name="harness", standalone_mode=False))
    except (errors.HarnessError, OSError, MemoryError, USAGE_ERROR) as mistake:
        typer.echo(f"error: {misuse.worded(mistake)}", err=True)
        raise SystemExit(errors.WRONG_USE) from None
    except BaseException as left:
        if not isinstance(left, SystemExit) and not _of_interrupt(left):
            raise
        if not isinstance(left, SystemExit) or left.code == errors.INTERRUPTED:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            typer.echo("interrupted: a run keeps what was measured until then; see `harness list runs`", err=True)
            raise SystemExit(errors.INTERRUPTED) from None
        raise


def _of_interrupt(error: BaseException | None) -> bool:
    """The error is a KeyboardInterrupt, or was raised while one was handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
