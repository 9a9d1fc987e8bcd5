"""Tables as GitHub Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.report.format import Printed, printed
from harness.report.table import Table

SPECIAL = re.compile(r"[\\`*|<>~$&]|(?<!\w)_|_(?!\w)|(?<=\])\(")


def render(tables: Sequence[Table]) -> str:
    """A heading, the rows and a list of notes for each table."""
    return "\n".join(_one(printed(table)) for table in tables)


def _one(table: Printed) -> str:
    width = len(table.rows[0])
    lines = [
        f"### {escape(table.title)}" + (f" ({escape(table.aside)})" if table.aside else ""),
        "",
        _row(table.header or ("",) * width),
        "|" + "|".join(" ---: " if i in table.figures else " --- " for i in range(width)) + "|",
        *map(_row, table.rows),
        "",
        *(f"- {escape(note)}" for note in table.notes),
        *([""] if table.notes else []),
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escape, cells))} |"


def escape(text: str) -> str:
    """Markdown that prints the text as it is.

    >>> print(escape("a|b <= *c* snake_case _d_ ~ $5"))
    a\\|b \\<= \\*c\\* snake_case \\_d\\_ \\~ \\$5
    """
    return SPECIAL.sub(lambda found: f"\\{found[0]}", text)
