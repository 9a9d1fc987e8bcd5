"""What the verbs share: the application, options that several take, and printing."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness import errors

if TYPE_CHECKING:
    from harness.model import Summary
    from harness.report.formats import Format as Formats
    from harness.report.table import Table
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
Format = Annotated[Literal["text", "md", "csv", "latex", "html", "json", "parquet"], typer.Option("--format")]
Run_ = Annotated[str, typer.Argument(metavar="RUN", help="A run's directory or name; latest is the last one.")]
RESULTS = Path("results")


def show(tables: Sequence[Table], format_: Formats, out: Path | None = None, summaries: Sequence[Summary] = ()) -> None:
    """Print the tables, or write them to `out`. `summaries`: whose figures JSON holds besides."""
    from harness.report.formats import render

    emit(render(tables, format_, summaries), out)


def emit(content: str | bytes, out: Path | None) -> None:
    """Print, or write to a file; bytes only where they do no harm."""
    if out is not None:
        out.write_bytes(content.encode() if isinstance(content, str) else content)
    elif isinstance(content, bytes) and sys.stdout.isatty():
        raise errors.HarnessError("Parquet is not for a terminal", "name a file with --out PATH, or > PATH")
    else:
        typer.echo(content, nl=False)


def show_run(directory: Path) -> Run:
    """Print what a terminal shows of a run."""
    from harness import store
    from harness.report import document

    show(document.in_short(document.report([document.load(directory)])), "text")
    return store.read(directory)


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
