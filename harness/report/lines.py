"""Lines of a screen for a terminal: cells with footnotes, columns, and items that flow."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from harness.model import Figure
from harness.report.format import carried, plain, scale

GAP = "   "
NEEDS = re.compile(r"(.*needs \d+ [\w. ]+), has (\d+)")


class Footnotes:
    """Reasons, numbered in the order in which they are first met; those that differ in a count share a number."""

    def __init__(self) -> None:
        self.reasons: dict[str, list[int]] = {}
        """Reason -> the counts that it was given for."""

    def mark(self, reason: str | None) -> str:
        """The mark of a reason, such as ` [1]`; nothing without one."""
        if not reason:
            return ""
        counted = NEEDS.fullmatch(reason)
        self.reasons.setdefault(counted[1] if counted else reason, []).extend([int(counted[2])] if counted else [])
        return f" [{list(self.reasons).index(counted[1] if counted else reason) + 1}]"

    def cell(self, figure: Figure | None, unit: bool = True, interval: bool = True) -> str:
        """A figure with its interval, or with the mark of the reason why it has none."""
        if figure is None:
            return "n/a" + self.mark("not recorded")
        value, between = carried(figure)
        between = "" if not interval else f" {between}" if between[:1] in ("", "±") else f" ({between})"
        name = scale(figure)[1]
        named = "" if not unit or figure.value is None else name if name == "%" else f" {name}"
        why = figure.reason or ("not recorded" if figure.value is None else None)
        return f"{value}{named}{between.rstrip()}{self.mark(why)}"

    def texts(self) -> list[str]:
        """A note for each reason."""
        notes = []
        for i, (reason, counts) in enumerate(self.reasons.items(), 1):
            has = "" if not counts else f", has {'-'.join(f'{x}' for x in sorted({min(counts), max(counts)}))}"
            notes.append(f"[{i}] {reason}{has}")
        return notes

    def lines(self, width: int) -> list[str]:
        """A note for each reason, of at most two lines."""
        notes = [line for text in self.texts() for line in cut(folded(text, width, "    "), 2, width)]
        return flowed(notes, width, GAP)


def columns(rows: Sequence[Sequence[str]], first: int = 0, gap: str = GAP) -> list[str]:
    """Rows as aligned columns. `first`: the least width of the first column with its gap."""
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
    for item in items:
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
