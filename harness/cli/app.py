"""What the verbs share: the application, options that several take, and printing."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from harness import errors

if TYPE_CHECKING:
    from harness.model import Summary
    from harness.report.formats import Format as Formats
    from harness.report.table import Table
    from harness.store.run import Run


app = typer.Typer(
    help="What it costs to serve an open model here, and whether the story in the press adds up.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _directory(root: str | Path) -> Path:
    if "://" in str(root):
        raise errors.HarnessError(f"'{root}' is a URL, not a directory", "mount the store, or sync it to a directory")
    return Path(root)


_HOLDS = "Directory that holds the runs."
Root = Annotated[Path, typer.Option("--root", envvar="HARNESS_RESULTS", parser=_directory, metavar="DIR", help=_HOLDS)]
Out = Annotated[Path, typer.Option("--out", envvar="HARNESS_RESULTS", parser=_directory, metavar="DIR", help=_HOLDS)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change any key; repeatable.")]
Scenario = Annotated[str | None, typer.Option(help="Cost scenario: a shipped name or a file.")]
Format = Annotated[Literal["text", "md", "csv", "latex", "html", "json", "parquet"], typer.Option("--format")]
Precision = Annotated[
    list[str] | None,
    typer.Option("--precision", metavar="2%", help="Or FIGURE=2%: a wanted 95% half-width; repeatable."),
]
Run_ = Annotated[str, typer.Argument(metavar="RUN", help="A run's directory or name; latest is the last one.")]
Runs = Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs; the last by default.")]
Charts = Annotated[Path | None, typer.Option("--charts", metavar="DIR", help="Write charts of it there.")]
ChartFormat = Annotated[Literal["svg", "png", "pdf", "html"], typer.Option("--chart-format")]
RESULTS = Path("results")
T = TypeVar("T")


def show(
    tables: Sequence[Table],
    format_: Formats,
    out: Path | None = None,
    summaries: Sequence[Summary] = (),
    charts: Path | None = None,
    chart_format: ChartFormat = "svg",
) -> None:
    """Print the tables, or write them to `out`, and their charts to a folder. JSON has the figures of `summaries`."""
    from harness.report.formats import render

    if charts is not None:
        from harness.report import charts as drawing

        drawing.write(drawing.of_tables(tables), charts, chart_format)
    emit(render(tables, format_, summaries), out)


def emit(content: str | bytes, out: Path | None = None) -> None:
    """Print, or write to a file; bytes only where they do no harm."""
    if out is not None:
        out.write_bytes(content.encode() if isinstance(content, str) else content)
    elif isinstance(content, bytes) and sys.stdout.isatty():
        raise errors.HarnessError("Parquet is not for a terminal", "name a file with --out PATH, or > PATH")
    else:
        typer.echo(content, nl=False)


def show_run(directory: Path) -> tuple[Run, Summary]:
    """Print what a terminal shows of a run."""
    from harness.analysis.summary import load
    from harness.report import document

    found = load(directory)
    show(document.in_short(document.report([found])), "text")
    return found


@contextlib.contextmanager
def each_run(references: Sequence[str], root: Path, read: Callable[[Path], T]) -> Iterator[list[T]]:
    """What `read` makes of each run. A damaged one among others is named and left out; the verb then leaves with 2."""
    from harness.store.directory import find_run

    found, damaged = [], []
    for directory in [find_run(reference, root) for reference in references]:
        try:
            found.append(read(directory))
        except errors.HarnessError as error:
            damaged.append(error)
    if damaged and not found:
        raise damaged[0]
    for each in damaged:
        typer.echo(f"error: {each}\n  the other runs follow without it", err=True)
    yield found
    if damaged:
        raise typer.Exit(errors.WRONG_USE)


def main() -> None:
    """The entry point: mistakes are printed without a traceback and leave with their exit code."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # the caller closed it; a file that is opened later must not take its place
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
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
