"""Reading of runs, and printing in any format. Charts and answers are imported when asked for: that is slow."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import typer

from harness import errors
from harness.analysis import index
from harness.analysis.summary import Sweep
from harness.cli.app import output
from harness.cli.verbs import ChartFormat
from harness.model import Summary
from harness.report import formats, text
from harness.report.table import Table
from harness.store import directory as store
from harness.store.access import writing
from harness.store.run import Run, read_run

T = TypeVar("T")


def show(tables: Sequence[Table], summaries: Sequence[Summary] = ()) -> None:
    """Print the tables. JSON also has the figures of `summaries`."""
    to = output()
    if to.format == "text":
        emit(text.render(tables, color=None if to.file is None else False))
    else:
        emit(formats.render(tables, to.format, summaries))


def emit(content: str | bytes) -> None:
    """Print the content, or write it to the file, which standard error names. HarnessError for bytes on a terminal."""
    if (file := output().file) is not None:
        with writing(file, "name another file"):
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        typer.echo(f"wrote {file}", err=True)
    elif isinstance(content, bytes) and sys.stdout.isatty():
        raise errors.HarnessError("Parquet is not for a terminal", "name a file with -o FILE, or > FILE")
    else:
        typer.echo(content, nl=False)


def draw(tables: Sequence[Table], charts: Path | None, chart_format: ChartFormat) -> None:
    """Draw the charts of the tables into this directory, if one is named."""
    if charts is not None:
        from harness.report import charts as drawing

        drawing.write(drawing.of_tables(tables), charts, chart_format)


def show_answer(
    sweep: Sweep,
    scenario: str | None = None,
    names: Sequence[str] = (),
    charts: Path | None = None,
    chart_format: ChartFormat = "svg",
    beside: Sequence[Table] = (),
) -> None:
    """Print the answer of these runs and the tables `beside`: as text on one screen, else every table.

    `names`: only these tables, or `all`. `charts`: also draw charts into this directory.
    """
    from harness.report import charts as drawing
    from harness.report import document, run_charts

    screen = output().format == "text" and not names
    made = [] if screen and charts is None else [*document.report(sweep, scenario, names), *beside]
    if charts is not None:
        drawing.write(run_charts.of_report(made, sweep), charts, chart_format)
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
    directory = store.find_run(reference, root)
    _tell_of_newest([directory], root)
    return read_run(directory)


def _tell_of_newest(chosen: Sequence[Path], root: Path) -> None:
    """Says that the newest run under the root did not finish, if runs of the root were chosen without it."""
    newest, here = Path(os.path.realpath(root / "latest")), {each.resolve() for each in chosen}
    if newest in here or newest.parent not in {each.parent for each in here}:
        return
    with contextlib.suppress(errors.HarnessError):
        if (run := read_run(newest)).state in ("interrupted", "failed"):
            typer.echo(f"note: the newest run {run.id} is {run.state}; what follows is of older runs", err=True)


def directories(reference: str, root: Path) -> list[Path]:
    """The run that a directory or name means, every run of a directory of runs, or the complete runs of a sweep."""
    if inside := [path for path, _ in store.directories(Path(reference))]:
        return inside
    try:
        return [store.find_run(reference, root)]
    except errors.HarnessError:
        of = index.runs(root) if root.is_dir() else None
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
