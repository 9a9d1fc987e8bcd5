"""Tables as text for a terminal, a CI log or a pipe."""

import io
import itertools
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
from harness.report.format import (
    aside,
    claims,
    figure_columns,
    footnotes,
    marks_of,
    plain,
    same_columns,
    shared,
    two_lines,
    units_of,
    words,
)
from harness.report.table import FACT, PROPERTIES, Cell, Table

NARROWEST = 24, 16
"""Columns of text are wrapped to at least the first width, or, where the table has no room so, to the second."""
GAP = 2
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufefc]")
SPARE = {
    "runs": ("tpot_s.p50", "ttft_s.p50", "tpot_s.p99", "joules_per_output_token", "load"),
    "tiers": ("USD per million tokens", "load"),
    "costs": ("USD per million tokens", "load"),
    "validation": ("touched bytes", "constant"),
}
"""Table -> columns that a narrow terminal leaves out, in this order."""
SAYS_ITSELF = {"claim", "period", "basis", "status", "layer", "source"}
"""Columns whose names a list does not print."""


def render(tables: Sequence[Table], width: int | None = None, color: bool | None = None) -> str:
    """The tables one below the other. `width` and `color`: None takes those of the terminal, or else 80 and no color.

    What all figures of a table share (unit, n, status) is printed in its title. With four or more columns of figures,
    or where a table has no room otherwise, each interval is below its figure, the unit of a column below its head, and
    reasons are notes. Of a wider table what all rows share is printed once, and the columns in `SPARE` are left out; or
    it becomes a list with a paragraph for each row. The columns bound, value and unit become one phrase.
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
    same, notes = same_columns(table), [("-", note) for note in table.notes]
    spare = [i for name in SPARE.get(table.name, ()) for i, column in enumerate(table.columns) if column == name]
    found = None
    for out in ([], *([*same, *spare[:count]] for count in range(len(spare) + 1))):
        if found := _fitted(_without(table, out), width):
            break
    grid, common, marks = found or (None, shared(table), None)
    title = Text(table.title, "bold")
    if beside := aside(table, common, "" if marks is None else "interval below each"):
        title.append(f" ({beside})", "not bold").highlight_words(["SIMULATED"], "bold yellow")
    yield title
    if same and (out or grid is None):
        yield from (
            Text(f"  {line}")
            for line in _flow(["in every row", *_items(table, table.rows[0], same, common)], width - 2)
        )
    yield (grid or _list(table, common, width)) if table.rows else Text("  none")
    if left := ", ".join(table.columns[i] for i in out if i not in same):
        notes.append(("-", f"no room for {left}"))
    notes = [*((f"[{mark}]", reason) for reason, mark in (marks or {}).items()), *notes]
    if notes:
        listed = Grid.grid(padding=(0, 1))
        for bullet, note in notes:
            listed.add_row(Text(bullet), Text(plain(note), "dim"))
        yield listed


def _fitted(table: Table, width: int) -> tuple[Grid, Mapping[str, str], Mapping[str, int] | None] | None:
    """The grid, what the title says of all figures, and the footnotes; None if the columns do not fit."""
    common = shared(table)
    stacked = (*([None] if len(figure_columns(table)) < 4 else []), footnotes(table, common))
    for narrowest, marks in itertools.product(NARROWEST, stacked):
        if (grid := _grid(table, common, width, marks, narrowest)) is not None:
            return grid, common, marks
    return None


def _without(table: Table, out: Sequence[int]) -> Table:
    kept = [i for i in range(len(table.columns)) if i not in out]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows)


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


def _grid(
    table: Table, common: Mapping[str, str], width: int, marks: Mapping[str, int] | None, narrowest: int
) -> Grid | None:
    """Columns side by side; None if they do not fit, or if a line would mix left-to-right and right-to-left text."""
    figures, headed, stacked = figure_columns(table), table.columns != PROPERTIES, marks is not None
    units = units_of(table, common) if stacked else {}
    rows = [[_cell(cell, table, common, marks, i not in units) for i, cell in enumerate(row)] for row in table.rows]
    heads = [f"{name}\n{units[i]}" if i in units else name for i, name in enumerate(table.columns)]
    if not stacked:
        _align(table, rows)
    widest, least = [], []
    for i, name in enumerate(heads):
        lines = [line for row in rows for line in row[i].plain.split("\n")]
        named = name.split("\n") if headed else [""]
        word, head = (max((cell_len(each) for line in of for each in line.split()), default=0) for of in (lines, named))
        whole = max(map(cell_len, lines), default=0)
        widest.append(max(whole, *map(cell_len, named)))
        least.append(max(head, whole if i in figures else min(whole, max(narrowest, word))))
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
    parts: list[RenderableType] = []
    own = [i for i in range(1, len(table.columns)) if i not in same_columns(table)]
    for row in table.rows:
        parts.append(Text("  ").append_text(_cell(row[0], table, common, None)))
        parts += [Padding(Text(line), (0, 0, 0, 4)) for line in _flow(_items(table, row, own, common), width - 4)]
    return Group(*parts)


def _items(table: Table, row: Sequence[Cell], of: Iterable[int], common: Mapping[str, str]) -> list[str]:
    found = ((table.columns[i], _cell(row[i], table, common, None).plain) for i in of)
    return [text if name in SAYS_ITSELF else f"{name}: {text}" for name, text in found if text]


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
