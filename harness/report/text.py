"""Tables as text for a terminal, a CI log or a pipe, and the lines of a screen: footnotes, columns, items that flow."""

from __future__ import annotations

import io
import itertools
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from harness.errors import plain
from harness.model import Figure
from harness.report.format import (
    SHORT,
    Footnotes,
    amount,
    aside,
    beside,
    figure_columns,
    footnotes,
    marks_of,
    readable,
    same_columns,
    shared,
    units_of,
    words,
)
from harness.report.table import FACT, PROPERTIES, Cell, Table

Common = Mapping[str, str]
Marks = Footnotes | None
"""What all figures of a table share; the footnotes of its figures."""
NARROWEST = 24, 16
"""Columns of text are wrapped to at least the first width, or, where the table has no room so, to the second."""
LEAST_GAP = 2
BETWEEN = " · "
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufefc]")
LONG_HEAD = re.compile(r"(?<=\w{6}_)(?=\w{6})")
"""Where the name of a figure may be broken in a head."""
SAYS_ITSELF = {"claim", "period", "basis", "status", "layer", "source"}
"""Columns whose names are not printed beneath a row."""


def render(tables: Sequence[Table], width: int | None = None, color: bool | None = None) -> str:
    """The tables one below the other. `width` and `color`: None takes those of the terminal, or else 80 and no color.

    What all figures of a table share (unit, n, status) is printed in its title. With four or more columns of figures,
    or where a table has no room otherwise, each interval is below its figure, the unit of a column below its head, and
    reasons are notes. Of a wider table what all rows share is printed once, and columns that have no room are printed
    beneath each row: the last texts first, then the last figures. Texts from right to left are always beneath. The
    columns bound, value and unit become one phrase.
    """
    terminal = sys.stdout.isatty() if color is None else color
    columns = width or columns_of_terminal()
    console = Console(file=io.StringIO(), width=columns, force_terminal=terminal, highlight=False)
    for table in map(readable, tables):
        if table.name == FACT:
            lines = (table.title, *(f"  {name}: {content}" for name, content in table.rows))
            console.out(*lines, sep="\n")  # `out` breaks no line
        else:
            console.print(*_parts(table, columns), sep="\n")
        console.print()
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r" +$", "", text, flags=re.MULTILINE)


def columns_of_terminal() -> int:
    """COLUMNS, or the width of the terminal, or 80."""
    return shutil.get_terminal_size((80, 24)).columns


def _parts(table: Table, width: int) -> Iterator[RenderableType]:
    figures = figure_columns(table) | {i for i, name in enumerate(table.columns) if name == "claim"}
    last = range(len(table.columns) - 1, 0, -1)
    apart = [i for i in last if len(last) > 1 and any(RIGHT_TO_LEFT.search(str(row[i])) for row in table.rows)]
    same = [i for i in same_columns(table) if i not in apart]
    order = sorted((i for i in last if i not in (*same, *apart)), key=lambda i: i in figures)
    for once, count in [([], 0), *((same, count) for count in range(len(order) + 1))]:
        if found := _fitted(table, once, sorted([*apart, *order[:count]]), width):
            break
    assert found is not None, "two columns always fit"
    parts, common, marks = found
    title = Text(table.title, "bold")
    if beside := aside(table, common, "" if marks is None else "interval below each"):
        title.append(f" ({beside})", "not bold").highlight_words(["SIMULATED"], "bold yellow")
    yield title
    if once:
        items = ["in every row", *_items(table, table.rows[0], once, common, marks)]
        yield from (Text(f"  {line}") for line in flowed(items, width - 2, BETWEEN))
    yield from parts if table.rows else [Text("  none")]
    reasons = [text.partition(" ")[::2] for text in marks.texts()] if marks else []
    notes = [*reasons, *(("-", note) for note in table.notes)]
    if notes:
        listed = Grid.grid(padding=(0, 1))
        for bullet, note in notes:
            listed.add_row(Text(bullet), Text(note, "dim"))
        yield listed


def _fitted(
    table: Table, once: Sequence[int], beneath: Sequence[int], width: int
) -> tuple[list[RenderableType], Common, Marks] | None:
    """The rows, what the title says of all figures, and the footnotes; None if the columns do not fit."""
    common, kept = shared(table), _without(table, [*once, *beneath])
    stacked = (*([None] if len(figure_columns(table)) < 4 else []), footnotes(table, common))
    for narrowest, marks in itertools.product(NARROWEST, stacked):
        below = [_items(table, row, beneath, common, marks) for row in table.rows] if beneath else []
        if (grid := _grid(kept, common, width, marks, narrowest, below)) is not None:
            return grid, common, marks
    return None


def _without(table: Table, out: Sequence[int]) -> Table:
    kept = [i for i in range(len(table.columns)) if i not in out]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows)


def _cell(cell: Cell, table: Table, common: Common, marks: Marks, unit: bool = True) -> Text:
    """`marks`: None: value, interval and reason are on one line."""
    if not isinstance(cell, Figure):
        return Text(cell or "")
    without = {*common, *table.columns, *([] if unit else ["unit"])}
    if marks is None:
        return Text(words(cell, without - {"interval"}))
    mark = marks_of(cell, common, marks)
    if cell.value is None:
        return Text(f"n/a {mark}", "dim")
    long = {"interval"} if len(cell.interval) > SHORT else set()
    reason = f"{beside(cell, without | long | {'reason'})} {mark}".strip()
    value = amount(cell, unit="unit" not in without)
    return Text(value).append(f"\n{reason}" * bool(reason), "dim")


def _grid(
    table: Table, common: Common, width: int, marks: Marks, narrowest: int, below: Sequence[Sequence[str]]
) -> list[RenderableType] | None:
    """Columns side by side, with the items `below` beneath each row; None if the columns do not fit."""
    figures, headed, stacked = figure_columns(table), table.columns != PROPERTIES, marks is not None
    units = units_of(table, common) if stacked else {}
    rows = [[_cell(cell, table, common, marks, i not in units) for i, cell in enumerate(row)] for row in table.rows]
    names = [LONG_HEAD.sub("\n", name) for name in table.columns]
    heads = [f"{name}\n{units[i]}" if i in units else name for i, name in enumerate(names)]
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
    gap = LEAST_GAP if sum(least) + LEAST_GAP * gaps <= width else 1
    room = width - sum(least) - gap * gaps
    if room < 0 and gaps > (not below):
        return None
    if room < 0:  # one long word, such as a path, in a list of properties
        longest = least.index(max(least))
        least[longest], room = max(1, least[longest] + room), 0
    more = sum(widest) - sum(least)
    share = min(1.0, room / more) if more > 0 else 0.0
    parts: list[RenderableType] = []
    for k, chunk in enumerate([[row] for row in rows] if below else [rows]):
        grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
        grid.header_style, grid.show_header = "bold", headed and k == 0
        for i, name in enumerate(heads):
            right = stacked and (i in figures or name == "n")
            wide = least[i] + int((widest[i] - least[i]) * share)
            grid.add_column(Text(name), justify="right" if right else "left", width=wide, overflow="fold")
        for row in chunk:
            grid.add_row(*row)
        parts.append(grid)
        parts += [Padding(Text(line, "dim"), (0, 0, 0, 4)) for line in _flowed(below[k], width - 4)] if below else []
    return parts


def _align(table: Table, rows: Sequence[list[Text]]) -> None:
    """Right-align the numbers of each column of figures."""
    for column in figure_columns(table):
        places = [i for i, row in enumerate(table.rows) if isinstance(x := row[column], Figure) and x.value is not None]
        width = max((len(rows[i][column].plain.partition(" ")[0]) for i in places), default=0)
        for i in places:
            digits, blank, rest = rows[i][column].plain.partition(" ")
            rows[i][column] = Text(digits.rjust(width) + blank + rest)


def _items(table: Table, row: Sequence[Cell], of: Iterable[int], common: Common, marks: Marks) -> list[str]:
    """Cells as texts with the names of most columns; what a grid stacks stands in brackets."""
    found = ((table.columns[i], _cell(row[i], table, common, marks).plain.split("\n")) for i in of)
    texts = ((name, first + "".join(f" ({below})" for below in rest if below)) for name, (first, *rest) in found)
    return [text if name in SAYS_ITSELF else f"{name}: {text}" for name, text in texts if text]


def _flowed(items: Sequence[str], width: int) -> list[str]:
    """Items on as few lines as possible; then each right-to-left item on its own line."""
    alone = [item for item in items if RIGHT_TO_LEFT.search(item)]
    return [*flowed([item for item in items if item not in alone], width, BETWEEN), *alone]


GAP = "   "


def note_lines(notes: Footnotes, width: int) -> list[str]:
    """A note for each reason, of at most two lines."""
    lines = [line for text in notes.texts() for line in cut(folded(text, width, "    "), 2, width)]
    return flowed(lines, width, GAP)


def columns(rows: Sequence[Sequence[str]], first: int = 0, gap: str = GAP) -> list[str]:
    """Rows as aligned columns. `first`: the least width of the first column with its gap."""
    rows = [list(map(plain, row)) for row in rows]
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] = max(widths[0], first - len(gap))
    return [gap.join(map(set_cell_size, row, widths)).rstrip() for row in rows]


def fitted(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int, least: Sequence[str]) -> list[str]:
    """The table as lines, without the columns of `least`, in this order, that have no room; a last line names them."""
    left = 0
    while True:
        kept = [i for i, head in enumerate(heads) if head not in least[:left]]
        lines = columns([[row[i] for i in kept] for row in (heads, *rows)], gap="  ")
        if max(map(cell_len, lines)) <= width or left == len(least):
            out = [head for head in least[:left] if head in heads]
            shown = [line if cell_len(line) <= width else set_cell_size(line, width) for line in lines]
            return [*shown, *flowed(["no room for", *out], width, " ")] if out else shown
        left += 1


def flowed(items: Sequence[str], width: int, between: str, indent: str = "") -> list[str]:
    """Items on as few lines as possible, all but the first indented; an item longer than a line is folded."""
    lines: list[str] = []
    for item in map(plain, items):
        if lines and cell_len(lines[-1] + between + item) <= width:
            lines[-1] += between + item
        else:
            first, *others = folded(item, width, indent)
            lines += [(indent if lines else "") + first, *others]
    return lines


def folded(text: str, width: int, indent: str) -> list[str]:
    """The text broken at blanks, or within a word that is longer than a line; all lines but the first are indented."""
    wrapped = Text(plain(text)).wrap(Console(width=width), width - len(indent))
    return [(indent if i else "") + line.plain.rstrip() for i, line in enumerate(wrapped)]


def cut(lines: list[str], most: int, width: int) -> list[str]:
    """The first lines; an ellipsis says that others are left out."""
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], set_cell_size(lines[most - 1], min(width - 2, cell_len(lines[most - 1]))) + " …"]
