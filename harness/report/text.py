"""Tables as text for a terminal, a CI log or a pipe."""

import io
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from harness.model import Figure
from harness.report.format import (
    aside,
    claims,
    figure_columns,
    footnotes,
    marks_of,
    plain,
    scale,
    shared,
    two_lines,
    words,
)
from harness.report.table import FACT, PROPERTIES, Cell, Table

NARROWEST = 24
"""Columns of text are wrapped to at least this width."""
GAP = 2
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufefc]")
SAYS_ITSELF = {"claim", "period", "basis", "status", "layer", "source"}
"""Columns whose names a list does not print."""


def render(tables: Sequence[Table], width: int | None = None, color: bool | None = None) -> str:
    """The tables one below the other. `width` and `color`: None takes those of the terminal, or else 80 and no color.

    What all figures of a table share (unit, n, status) is printed in its title. With four or more columns of figures,
    or where a table has no room otherwise, each interval is below its figure, the unit of a column below its head, and
    reasons are notes. A table wider than `width` becomes a list with a paragraph
    for each row; what all rows share is printed once. The columns bound, value and unit become one phrase.
    """
    terminal = sys.stdout.isatty() if color is None else color
    columns = width or columns_of_terminal()
    console = Console(file=io.StringIO(), width=columns, force_terminal=terminal, highlight=False)
    for table in tables:
        if table.name == FACT:
            lines = (table.title, *(f"  {name}: {content}" for name, content in table.rows))
            console.out(*map(plain, lines), sep="\n")  # `out` breaks no line
        else:
            console.print(*_parts(table, columns), sep="\n")
        console.print()
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r" +$", "", text, flags=re.MULTILINE)


def columns_of_terminal() -> int:
    """COLUMNS, or the width of the terminal, or 80."""
    return shutil.get_terminal_size((80, 24)).columns


def _parts(table: Table, width: int) -> Iterator[RenderableType]:
    table = claims(table)
    common = shared(table)
    marks = footnotes(table, common) if len(figure_columns(table)) >= 4 else None
    grid = _grid(table, common, width, marks)
    if grid is None and marks is None:
        marks = footnotes(table, common)
        grid = _grid(table, common, width, marks)
    if grid is None:
        marks = None
    title = Text(table.title, "bold")
    if beside := aside(table, common, "" if marks is None else "interval below each"):
        title.append(f" ({beside})", "not bold").highlight_words(["SIMULATED"], "bold yellow")
    yield title
    yield (grid or _list(table, common, width)) if table.rows else Text("  none")
    notes = [*((f"[{mark}]", reason) for reason, mark in (marks or {}).items()), *(("-", note) for note in table.notes)]
    if notes:
        listed = Grid.grid(padding=(0, 1))
        for bullet, note in notes:
            listed.add_row(Text(bullet), Text(plain(note), "dim"))
        yield listed


def _units(table: Table, common: Mapping[str, str]) -> dict[int, str]:
    """Column -> the unit that all its figures have, if the title does not tell it and they are no shares."""
    columns = {i: {scale(x)[1] for row in table.rows if isinstance(x := row[i], Figure)} for i in figure_columns(table)}
    known = {"unit"} & {*common, *table.columns}
    return {i: units.pop() for i, units in columns.items() if len(units) == 1 and not units & {"", "%"} and not known}


def _cell(
    cell: Cell, table: Table, common: Mapping[str, str], marks: Mapping[str, int] | None, unit: bool = True
) -> Text:
    """`marks`: reason -> number of its footnote; None: value, interval and reason are on one line."""
    if not isinstance(cell, Figure):
        return Text(plain(cell or ""))
    without = {*common, *table.columns, *([] if unit else ["unit"])}
    if marks is None:
        return Text(words(cell, without - {"interval"}))
    mark = marks_of(cell, common, marks)
    if cell.value is None:
        return Text(f"n/a {mark}", "dim")
    value, below = two_lines(cell, without)
    return Text(value).append("\n" + f"{below} {mark}".strip(), "dim")


def _grid(table: Table, common: Mapping[str, str], width: int, marks: Mapping[str, int] | None) -> Grid | None:
    """Columns side by side; None if they do not fit, or if a line would mix left-to-right and right-to-left text."""
    figures, headed, stacked = figure_columns(table), table.columns != PROPERTIES, marks is not None
    units = _units(table, common) if stacked else {}
    rows = [[_cell(cell, table, common, marks, i not in units) for i, cell in enumerate(row)] for row in table.rows]
    heads = [f"{name}\n{units[i]}" if i in units else name for i, name in enumerate(table.columns)]
    if not stacked:
        _align(table, rows)
    widest, least = [], []
    for i, name in enumerate(heads):
        lines = [line for row in rows for line in row[i].plain.split("\n")]
        named = name.split("\n") if headed else [""]
        word = max(cell_len(each) for line in [*lines, *named] for each in line.split() or [""])
        widest.append(max(map(cell_len, [*lines, *named])))
        whole = max(word, *map(cell_len, lines)) if stacked and i in figures else max(NARROWEST, word)
        least.append(min(widest[-1], whole))
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
    for i, name in enumerate(heads):
        wide = least[i] + int((widest[i] - least[i]) * min(1.0, room / more)) if more > 0 else least[i]
        right = stacked and (i in figures or name == "n")
        grid.add_column(Text(name), justify="right" if right else "left", width=wide, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _align(table: Table, rows: Sequence[list[Text]]) -> None:
    """Right-align the numbers of each column of figures."""
    for column in figure_columns(table):
        places = [i for i, row in enumerate(table.rows) if isinstance(x := row[column], Figure) and x.value is not None]
        width = max((len(rows[i][column].plain.partition(" ")[0]) for i in places), default=0)
        for i in places:
            digits, blank, rest = rows[i][column].plain.partition(" ")
            rows[i][column] = Text(digits.rjust(width) + blank + rest)


def _list(table: Table, common: Mapping[str, str], width: int) -> Group:
    """A paragraph for each row: its first cell, then the others, with the names of most columns."""
    same = {i for i in range(1, len(table.columns)) if len({row[i] for row in table.rows}) == 1 < len(table.rows)}
    same = {i for i in same if table.rows[0][i] and isinstance(table.rows[0][i], str)}

    def items(row: Sequence[Cell], of: Iterable[int]) -> list[str]:
        found = ((table.columns[i], _cell(row[i], table, common, None).plain) for i in of)
        return [text if name in SAYS_ITSELF else f"{name}: {text}" for name, text in found if text]

    head = ["in every row", *items(table.rows[0], sorted(same))] if same else []
    parts: list[RenderableType] = [Text(f"  {line}") for line in _flow(head, width - 2)]
    for row in table.rows:
        parts.append(Text("  ").append_text(_cell(row[0], table, common, None)))
        own = items(row, (i for i in range(1, len(row)) if i not in same))
        parts += [Padding(Text(line), (0, 0, 0, 4)) for line in _flow(own, width - 4)]
    return Group(*parts)


def _flow(items: Iterable[str], width: int) -> Iterator[str]:
    """Items on as few lines as possible; a right-to-left item has its own line."""
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
