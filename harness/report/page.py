"""The report as one HTML file: key figures, charts, tables and a what-if. It loads nothing from the network."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib import resources
from string import Template
from typing import Any

from harness.model import Figure
from harness.report.format import claims, plain, printed, same_columns, scale
from harness.report.screen import SCREEN
from harness.report.table import Table

MOST_ROWS = 500
"""Rows printed of a table."""
MOST_OPEN = 14
"""Tables with more rows than this are closed at first."""
MOST_LABELLED = 100_000
"""A drawing with more characters than this loses the labels of its marks (`aria-`), which would be too many to read."""
PRESS = (*SCREEN, "must-be", "reported", "spend-revenue")
"""Charts and tables about published figures."""
SOURCES = ("assumptions", "sources", "environment")
Drawing = tuple[str, str, str, str]
"""Name, title and note of a chart, and its SVG."""


def render(
    title: str,
    tables: Sequence[Table],
    drawings: Sequence[Drawing] = (),
    starts: Sequence[Mapping[str, Any]] = (),
    above: str = "",
    methods: str = "",
) -> str:
    """The page. `starts` are the starting points of the what-if; `above` and `methods` are HTML that `page_head` makes.

    Text of a run is escaped. Besides, the page's policy lets it load nothing and run only the script with its digest.
    """
    script = asset("page.js") + (asset("whatif.js") if starts else "")
    rest = [each.name for each in tables if each.name not in (*PRESS, *SOURCES)] + [name for name, *_ in drawings]
    parts = {
        "Results": _part(tables, drawings, [name for name in rest if name not in PRESS]),
        "Against the press": _part(tables, (), PRESS) + _part((), drawings, PRESS),  # the answer before its drawings
        "What if": _what_if(starts) if starts else "",
        "Sources": _part(tables, drawings, SOURCES),
        "Methods": methods,
    }
    ids = {heading: heading.lower().replace(" ", "-") for heading, html in parts.items() if html}
    several = len(ids) > 1
    links = "".join(f'<a href="#{anchor}">{heading}</a>\n' for heading, anchor in ids.items())
    return Template(asset("page.html")).substitute(
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        title=text(title),
        above=above,
        style=asset("page.css"),
        contents=f'<nav aria-label="Parts of the page">\n{links}</nav>\n' * several,
        body="".join(
            f'<section id="{anchor}">\n' + f"<h2>{heading}</h2>\n" * several + f"{parts[heading]}</section>\n"
            for heading, anchor in ids.items()
        ),
        script=script,
    )


def _part(tables: Sequence[Table], drawings: Sequence[Drawing], names: Sequence[str]) -> str:
    """The charts with these names in two columns, then the tables."""
    charts = "".join(_chart(*each) for each in drawings if each[0] in names)
    return (f'<div class="charts">\n{charts}</div>\n' if charts else "") + "".join(
        _section(table) for table in tables if table.name in names
    )


def _what_if(starts: Sequence[Mapping[str, Any]]) -> str:
    data = json.dumps({"starts": starts}, allow_nan=False, separators=(",", ":"))
    options = "".join(f"<option>{text(start['label'])}</option>" for start in starts)
    return Template(asset("whatif.html")).substitute(options=options, data=data.replace("<", "\\u003c"))


def _chart(name: str, title: str, note: str, svg: str) -> str:
    """The drawing with ids that are unique in the page, below its title."""
    own = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{escape(name)}-", svg)
    own = re.sub(' aria-[a-z]+="[^"]*"', "", own) if len(own) > MOST_LABELLED else own
    said = f"<figcaption>{text(title)}<span>{text(note)}</span></figcaption>"
    return f'<figure data-chart="{escape(name)}">{said}{own}</figure>\n'


def _section(whole: Table) -> str:
    """Title, heads, rows and notes; `dir="auto"` writes Arabic and Hebrew from right to left."""
    cut = claims(_cut(whole))
    table = printed(cut)
    kinds = [' class="figure"' if i in table.figures else "" for i in range(len(table.rows[0]))]
    aside = f" <small>({escape(table.aside)})</small>" if table.aside else ""
    same = same_columns(cut)
    for i in same:  # hidden, so that a download has them
        kinds[i] += " hidden"
    names = zip(kinds, cut.columns, table.header or (), strict=False)
    head = "".join(
        f'<th scope="col"{kind} data-name="{escape(name)}">{escape(shown)}</th>' for kind, name, shown in names
    )
    body = ""
    for (first, *others), row in zip(table.rows, cut.rows or table.rows, strict=True):
        cells = "".join(
            f'<td dir="auto"{kind}{_raw(raw)}>{escape(cell)}</td>'
            for kind, cell, raw in zip(kinds[1:], others, row[1:], strict=True)
        )
        body += f'<tr><th scope="row" dir="auto">{escape(first)}</th>{cells}</tr>\n'
    shared = [f"in every row: {'; '.join(f'{cut.columns[i]} {table.rows[0][i]}' for i in same)}"] if same else []
    notes = "".join(f'<li dir="auto">{escape(note)}</li>\n' for note in (*shared, *table.notes))
    return (
        f'<details data-table="{escape(whole.name)}"{" open" * (len(table.rows) <= MOST_OPEN)}>\n'
        f'<summary>{escape(table.title)}{aside}</summary>\n<div class="scroll" tabindex="0"><table>\n'
        + (f"<thead><tr>{head}</tr></thead>\n" if head else "")
        + f"<tbody>\n{body}</tbody>\n</table></div>\n"
        + (f'<ul class="notes">\n{notes}</ul>\n' if notes else "")
        + "</details>\n"
    )


def _raw(cell: object) -> str:
    """A figure's value, ends and unit, by which the page sorts and which it writes as CSV."""
    if not isinstance(cell, Figure):
        return ""
    factor, unit = scale(cell)
    numbers = ("" if x is None else f"{x * factor:.6g}" for x in (cell.value, cell.low, cell.high))
    return f' data-cell="{escape("|".join((*numbers, unit)))}"'


def _cut(table: Table) -> Table:
    """The first `MOST_ROWS` rows; a note says that rows are left out."""
    said = f"the first {MOST_ROWS} of {len(table.rows):,} rows; --format csv has them all"
    too_long = len(table.rows) > MOST_ROWS
    return replace(table, rows=table.rows[:MOST_ROWS], notes=(said, *table.notes)) if too_long else table


def text(content: str) -> str:
    """HTML that shows the text as it is, without control characters."""
    return escape(plain(content))


def asset(name: str) -> str:
    """A file of the page."""
    return (resources.files("harness.report") / "page" / name).read_text(encoding="utf-8")
