"""Tables as text for a terminal, a CI log or a pipe."""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
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
CLAIM = ("bound", "value", "unit")
"""Columns that are read as one phrase, as in `<= 1.539 ratio`."""
SAYS_ITSELF = {"claim", "period", "basis", "status", "layer", "source"}
"""Columns whose name a list leaves out."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")


def render(tables: Sequence[Table], width: int | None = None, color: bool | None = None) -> str:
    """The tables one under the other. `width` and `color`: None asks the terminal; without one, 80 and no.

    What all figures of a table share (unit, n, status) stands in its title. With four or more columns of figures, each
    interval is under its figure. A table that does not fit the width becomes a list, a paragraph to a row, with what
    all rows share said once. The columns bound, value and unit, side by side, are read as one phrase.
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
    table = _claims(table)
    shared = _shared(table)
    stacked = len(_figure_columns(table)) >= 4
    grid = _grid(table, shared, width, stacked)
    stacked &= grid is not None
    yield _title(table, shared, stacked)
    yield (grid or _list(table, shared, width)) if table.rows else Text("  none")
    notes = (*(_reasons(table) if stacked else ()), *table.notes)
    if notes:
        listed = Grid.grid(padding=(0, 1))
        for note in notes:
            listed.add_row(Text("-"), Text(_plain(note), "dim"))
        yield listed


def _claims(table: Table) -> Table:
    """With the phrase in place of the columns of CLAIM, where the table has them."""
    at = table.columns.index(CLAIM[0]) if CLAIM[0] in table.columns else 0
    if table.columns[at : at + 3] != CLAIM:
        return table
    rows = tuple((*row[:at], _claim(row[at], row[at + 1], table.columns), *row[at + 3 :]) for row in table.rows)
    return replace(table, columns=(*table.columns[:at], "claim", *table.columns[at + 3 :]), rows=rows)


def _claim(bound: Cell, value: Cell, columns: Sequence[str]) -> str:
    if not isinstance(value, Figure) or value.value is None:
        return amount(value) if isinstance(value, Figure) else value or ""
    beside = {kind: kind not in columns for kind in ("n", "status")}
    text = words(value, interval=not value.interval.startswith("bound"), **beside)
    if bound == "range" and (between := ends(value)):
        return text.replace(amount(value, unit=False), between.replace("–", " to "), 1)
    return f"{bound} {text}"


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


def _title(table: Table, shared: Mapping[str, str], stacked: bool) -> Text:
    said = {kind: what for kind, what in shared.items() if kind not in table.columns}
    asides = [
        said.get("unit", ""),
        f"{said['interval']} interval below each" if stacked and "interval" in said else "",
        f"n={said['n']}" if "n" in said else "",
        said["status"] if said.get("status", "simulated") != "simulated" else "",
    ]
    title = Text(table.title, "bold")
    if any(asides):
        title.append(f" ({', '.join(aside for aside in asides if aside)})", "not bold")
    if shared.get("status") == "simulated":
        title.append("  SIMULATED", "bold yellow")
    return title


def _cell(cell: Cell, table: Table, shared: Mapping[str, str], stacked: bool) -> Text:
    if not isinstance(cell, Figure):
        return Text(_plain(cell or ""))
    own = {kind: kind not in shared and kind not in table.columns for kind in ("unit", "n", "status")}
    if not stacked:
        return Text(words(cell, interval="bound" not in table.columns, **own))
    if cell.value is None:
        return Text("n/a", "dim")
    between = ends(cell)
    under = [
        (between if "interval" in shared else f"{cell.interval}: {between}")
        if between
        else "n/a"
        if cell.reason
        else "",
        f"n={number(cell.n)}" if own["n"] and cell.n is not None else "",
        cell.status if own["status"] else "",
    ]
    text = Text(amount(cell, unit=own["unit"], digits=True))
    return text.append("\n" + "; ".join(each for each in under if each), "dim")


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


def _grid(table: Table, shared: Mapping[str, str], width: int, stacked: bool) -> Grid | None:
    """Columns side by side; None where they would not fit, or where text of both directions would share a line."""
    figures, headed = _figure_columns(table), table.columns != PROPERTIES
    rows = [[_cell(cell, table, shared, stacked) for cell in row] for row in table.rows]
    if not stacked:
        _align(table, rows)
    widest, least = [], []
    for i, name in enumerate(table.columns):
        lines = [line for row in rows for line in row[i].plain.split("\n")] + [name if headed else ""]
        word = max(cell_len(each) for line in lines for each in line.split() or [""])
        widest.append(max(map(cell_len, lines)))
        least.append(widest[-1] if stacked and i in figures else min(widest[-1], max(NARROWEST, word)))
    gaps = len(least) - 1
    gap = GAP if sum(least) + GAP * gaps <= width else 1
    room = width - sum(least) - gap * gaps
    if gaps > 1 and (room < 0 or any(RIGHT_TO_LEFT.search(cell.plain) for row in rows for cell in row)):
        return None
    if room < 0:  # one long word, such as a path, in a list of properties
        least[-1], room = max(1, least[-1] + room), 0
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0), header_style="bold")
    grid.show_header = headed
    more = sum(widest) - sum(least)
    for i, name in enumerate(table.columns):
        wide = least[i] + int((widest[i] - least[i]) * min(1.0, room / more)) if more > 0 else least[i]
        right = stacked and (i in figures or name == "n")
        grid.add_column(Text(name), justify="right" if right else "left", width=wide, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _align(table: Table, rows: Sequence[list[Text]]) -> None:
    """Pad the numbers of each column of figures to one width, so that they end at the same place."""
    for column in _figure_columns(table):
        places = [i for i, row in enumerate(table.rows) if isinstance(x := row[column], Figure) and x.value is not None]
        width = max((len(rows[i][column].plain.partition(" ")[0]) for i in places), default=0)
        for i in places:
            digits, blank, rest = rows[i][column].plain.partition(" ")
            rows[i][column] = Text(digits.rjust(width) + blank + rest)


def _list(table: Table, shared: Mapping[str, str], width: int) -> Group:
    """A paragraph to a row: its first cell, then the others with the names of their columns, unless those are plain."""
    same = {i for i in range(1, len(table.columns)) if len({row[i] for row in table.rows}) == 1 < len(table.rows)}
    same = {i for i in same if table.rows[0][i] and isinstance(table.rows[0][i], str)}

    def items(row: Sequence[Cell], of: Iterable[int]) -> list[str]:
        found = ((table.columns[i], _cell(row[i], table, shared, stacked=False).plain) for i in of)
        return [text if name in SAYS_ITSELF else f"{name}: {text}" for name, text in found if text]

    head = ["in every row", *items(table.rows[0], sorted(same))] if same else []
    parts: list[RenderableType] = [Text(f"  {line}") for line in _flow(head, width - 2)]
    for row in table.rows:
        parts.append(Text("  ").append_text(_cell(row[0], table, shared, stacked=False)))
        own = items(row, (i for i in range(1, len(row)) if i not in same))
        parts += [Padding(Text(line), (0, 0, 0, 4)) for line in _flow(own, width - 4)]
    return Group(*parts)


def _flow(items: Iterable[str], width: int) -> Iterator[str]:
    """Items on as few lines as they fit; one that is read from the right has its own."""
    line = ""
    for item in items:
        alone = RIGHT_TO_LEFT.search(item)
        if line and (alone or cell_len(f"{line} · {item}") > width):
            yield line
            line = ""
        line = f"{line} · {item}" if line else item
        if alone:
            yield line
            line = ""
    if line:
        yield line


def _plain(text: str) -> str:
    """Without control characters, those of direction included, which an engine's error or a name may hold."""
    return CONTROL.sub(" ", text)
