"""The application, the options that several verbs take, and printing."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
import typer.core

from harness import errors
from harness.files import results_root

if TYPE_CHECKING:
    from harness.model import Summary
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
ORDER = ("run", "sweep", "rerun", "doctor", "report", "check", "diff", "list", "export", "import", "cost", "predict",
         "compare", "facts", "schema")  # fmt: skip
"""The verbs as --help prints them: measure, read, cost, press."""


class Ordered(typer.core.TyperGroup):
    """The verbs in the order of their use."""

    def list_commands(self, _: object) -> list[str]:
        return sorted(self.commands, key=lambda verb: ORDER.index(verb) if verb in ORDER else len(ORDER))


app = typer.Typer(
    cls=Ordered,
    help="Measure what it costs to serve an open model, and compare that with a large provider's reported spend.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


_HOLDS = "Directory of the runs."
Root = Annotated[
    Path, typer.Option("--root", envvar="HARNESS_RESULTS", parser=results_root, metavar="DIR", help=_HOLDS)
]
Out = Annotated[
    Path, typer.Option("--root", "--out", envvar="HARNESS_RESULTS", parser=results_root, metavar="DIR", help=_HOLDS)
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change any key; repeatable.")]
Full = Annotated[bool, typer.Option("--full", help="Every table, not only the first screen.")]
Scenario = Annotated[str | None, typer.Option(help="Cost scenario: a shipped name or a file.")]
Format = Annotated[Literal["text", "md", "csv", "latex", "html", "json", "parquet"], typer.Option("--format")]
Precision = Annotated[
    list[str] | None, typer.Option("--precision", metavar="2%", help="Wanted 95% half-width, or FIGURE=2%; repeatable.")
]
METERS = "auto (all that are found), none, nvml, rapl, redfish:url=…, prometheus:url=…, replay:path=…; repeatable."
Meter = Annotated[list[str] | None, typer.Option(help=METERS)]
Gpus = Annotated[
    str | None, typer.Option(metavar="LIST", help="The engine's GPUs, 0,1 or UUIDs, if they cannot be seen.")
]
Run_ = Annotated[str, typer.Argument(metavar="RUN", help="A run's directory or name; latest: the last run.")]
Runs = Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs; default: the last run.")]
Charts = Annotated[Path | None, typer.Option("--charts", metavar="DIR", help="Write charts to this directory.")]
Force = Annotated[
    bool, typer.Option("--force", help="Compare despite differences that forbid it, and stamp the output.")
]
ChartFormat = Annotated[Literal["svg", "png", "pdf", "html"], typer.Option("--chart-format")]
RESULTS = Path("results")
T = TypeVar("T")


def _version(wanted: bool) -> None:
    if wanted:
        import harness

        typer.echo(f"harness {harness.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure what it costs to serve an open model, and compare that with a large provider's reported spend."""


SUFFIXES: Mapping[str, Formats] = {
    ".html": "html", ".md": "md", ".csv": "csv", ".tex": "latex", ".json": "json", ".parquet": "parquet"
}  # fmt: skip


def format_of(out: Path | None, format_: Formats) -> Formats:
    """The format that the ending of the file names, unless one was chosen."""
    return SUFFIXES.get(out.suffix, "text") if out is not None and format_ == "text" else format_


def show(tables: Sequence[Table], format_: Formats, out: Path | None = None, summaries: Sequence[Summary] = ()) -> None:
    """Print the tables, or write them to `out`. JSON also has the figures of `summaries`."""
    from harness.report.formats import render

    emit(render(tables, format_, summaries), out)


def emit(content: str | bytes, out: Path | None = None) -> None:
    """Print the content, or write it to a file. HarnessError for bytes on a terminal."""
    if out is not None:
        out.write_bytes(content.encode() if isinstance(content, str) else content)
    elif isinstance(content, bytes) and sys.stdout.isatty():
        raise errors.HarnessError("Parquet is not for a terminal", "name a file with --out PATH, or > PATH")
    else:
        typer.echo(content, nl=False)


def stored_run(reference: str, root: Path) -> Run:
    """The run that a directory or name means."""
    from harness.store.directory import find_run
    from harness.store.run import read_run

    return read_run(find_run(reference, root))


@contextlib.contextmanager
def each_run(references: Sequence[str], root: Path, read: Callable[[Path], T]) -> Iterator[list[T]]:
    """The value of `read` for each run. A damaged run among others is reported and left out, and the exit code is 2."""
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
        typer.echo(f"error: {each}\n  the other runs follow without this one", err=True)
    yield found
    if damaged:
        raise typer.Exit(errors.WRONG_USE)


def main() -> None:
    """The entry point. A HarnessError is printed without a traceback and exits with 2."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed by the caller; no file opened later may get its descriptor
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # quotes may have characters that the terminal's encoding lacks
    try:
        app()
    except errors.HarnessError as mistake:
        typer.echo(f"error: {mistake}", err=True)
        raise SystemExit(errors.WRONG_USE) from None
    except OSError as refused:
        typer.echo(f"error: {refused}\n  fix: check that the path exists, is accessible and has free space", err=True)
        raise SystemExit(errors.WRONG_USE) from None
