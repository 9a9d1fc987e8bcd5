"""Tables as text for a terminal, a CI log or a pipe."""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from harness.model import Figure
from harness.report.cells import amount, ends, number, scale, words
from harness.report.table import PROPERTIES, Cell, Table

NARROWEST = 24
"""A column of text may be wrapped to this width, not below."""
GAP = 2
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufefc]")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def render(tables: Sequence[Table], width: int | None = None, color: bool | None = None) -> str:
    """The tables one under the other. `width` and `color`: None asks the terminal; without one, 80 and no.

    What all figures of a table share (unit, n, status) stands in its title. With four or more columns of figures, each
    interval is under its figure. A table that does not fit the width becomes a list, a paragraph to a row.
    """
    terminal = sys.stdout.isatty() if color is None else color
    columns = width or shutil.get_terminal_size((80, 24)).columns
    console = Console(file=io.StringIO(), width=columns, force_terminal=terminal, highlight=False)
    for table in tables:
        for part in _parts(table, columns):
            console.print(part)
        console.print()
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r" +$", "", text, flags=re.MULTILINE)


def _parts(table: Table, width: int) -> Iterator[RenderableType]:
    shared = _shared(table)
    stacked = len(_figure_columns(table)) >= 4
    yield _title(table, shared)
    if not table.rows:
        yield Text("  none")
    else:
        rows = [[_cell(cell, shared, table.columns, stacked) for cell in row] for row in table.rows]
        yield from _grid(table, rows, width, stacked) or _list(table, rows, width)
    notes = (*(_reasons(table) if stacked else ()), *table.notes)
    if notes:
        listed = Grid.grid(padding=(0, 1))
        for note in notes:
            listed.add_row(Text("-"), Text(_plain(note), "dim"))
        yield listed


def _figure_columns(table: Table) -> set[int]:
    return {i for row in table.rows for i, cell in enumerate(row) if isinstance(cell, Figure)}


def _shared(table: Table) -> dict[str, str]:
    """What all figures of a table have in common, and so need not repeat."""
    figures = [cell for row in table.rows for cell in row if isinstance(cell, Figure)]
    if len(figures) < 2:
        return {}
    every: dict[str, set[str]] = {
        "unit": {scale(figure)[1] for figure in figures} if len(_figure_columns(table)) > 1 else set(),
        "interval": {figure.interval for figure in figures if ends(figure)},
        "n": {"" if figure.n is None else number(figure.n) for figure in figures},
        "status": {figure.status for figure in figures},
    }
    return {kind: found.pop() for kind, found in every.items() if len(found) == 1 and found != {""}}


def _title(table: Table, shared: Mapping[str, str]) -> Text:
    asides = [
        shared[kind] if kind != "n" else f"n={shared['n']}"
        for kind in ("unit", "n", "status")
        if kind in shared and kind not in table.columns and shared[kind] != "simulated"
    ]
    if len(_figure_columns(table)) >= 4 and "interval" in shared:
        asides.insert(1, f"{shared['interval']} interval below each")
    title = Text(table.title, "bold")
    if asides:
        title.append(f" ({', '.join(asides)})", "not bold")
    if shared.get("status") == "simulated":
        title.append("  SIMULATED", "bold yellow")
    return title


def _cell(cell: Cell, shared: Mapping[str, str], columns: Sequence[str], stacked: bool) -> Text:
    if not isinstance(cell, Figure):
        return Text(_plain(cell or ""))
    alone = {kind: kind not in shared and kind not in columns for kind in ("unit", "n", "status")}
    if not stacked:
        return Text(words(cell, interval="bound" not in columns, **alone))
    if cell.value is None:
        return Text("n/a", "dim")
    under = ends(cell) or ("n/a" if cell.reason else "")
    return Text(amount(cell, unit=alone["unit"])).append(f"\n{under}", "dim")


def _reasons(table: Table) -> Iterator[str]:
    """Why each n/a of a stacked table is one, the same reasons together."""
    where: dict[str, dict[str, list[str]]] = {}
    for row in table.rows:
        for column, cell in zip(table.columns, row, strict=True):
            if isinstance(cell, Figure) and (cell.reason or cell.value is None):
                where.setdefault(cell.reason or "not recorded", {}).setdefault(str(row[0]), []).append(column)
    for reason, labels in where.items():
        alike: dict[str, list[str]] = {}
        for label, names in labels.items():
            alike.setdefault(", ".join(names), []).append(label)
        places = "; ".join(f"{names} of {', '.join(of)}" for names, of in alike.items())
        yield f"n/a, {places}: {reason}"


def _grid(table: Table, rows: Sequence[Sequence[Text]], width: int, stacked: bool) -> list[RenderableType]:
    """Columns side by side; empty where they would not fit, or where text of both directions would share a line."""
    figures = _figure_columns(table)
    if not stacked:
        rows = _aligned(table, rows)
    widest, least = [], []
    for i, name in enumerate(table.columns):
        lines = [line for row in rows for line in row[i].plain.split("\n")] + [name]
        word = max(cell_len(each) for line in lines for each in line.split() or [""])
        widest.append(max(map(cell_len, lines)))
        least.append(widest[-1] if stacked and i in figures else min(widest[-1], max(NARROWEST, word)))
    gaps = len(least) - 1
    gap = GAP if sum(least) + GAP * gaps <= width else 1
    room = width - sum(least) - gap * gaps
    mixed = any(RIGHT_TO_LEFT.search(cell.plain) for row in rows for cell in row)
    if gaps > 1 and (mixed or room < 0):
        return []
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0), header_style="bold")
    grid.show_header = table.columns != PROPERTIES
    more = sum(widest) - sum(least)
    for i, name in enumerate(table.columns):
        wide = least[i] + int((widest[i] - least[i]) * min(1.0, room / more)) if more > 0 else least[i]
        right = stacked and (i in figures or name == "n")
        grid.add_column(Text(name), justify="right" if right else "left", width=wide, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return [grid]


def _aligned(table: Table, rows: Sequence[Sequence[Text]]) -> list[list[Text]]:
    """With the numbers of each column of figures padded to one width, so that they end at the same place."""
    made = [list(row) for row in rows]
    for column in _figure_columns(table):
        places = [i for i, row in enumerate(table.rows) if isinstance(x := row[column], Figure) and x.value is not None]
        width = max((len(rows[i][column].plain.partition(" ")[0]) for i in places), default=0)
        for i in places:
            digits, blank, rest = rows[i][column].plain.partition(" ")
            made[i][column] = Text(digits.rjust(width) + blank + rest)
    return made


def _list(table: Table, rows: Sequence[Sequence[Text]], width: int) -> Iterator[RenderableType]:
    """A paragraph to a row: its first cell, then the others with the names of their columns."""
    for first, *others in rows:
        yield Text("  ").append_text(first)
        line = ""
        for name, cell in zip(table.columns[1:], others, strict=True):
            text = cell.plain.replace("\n", " ")
            if text == "":
                continue
            item = f"{name}: {text}"
            own = cell_len(item) > width // 2 or RIGHT_TO_LEFT.search(item)
            if line and (own or cell_len(f"{line} · {item}") > width - 4):
                yield Padding(Text(line), (0, 0, 0, 4))
                line = ""
            line = f"{line} · {item}" if line else item
            if own:
                yield Padding(Text(line), (0, 0, 0, 4))
                line = ""
        if line:
            yield Padding(Text(line), (0, 0, 0, 4))


def _plain(text: str) -> str:
    """Without control characters, which an engine's error may hold."""
    return CONTROL.sub(" ", text)
