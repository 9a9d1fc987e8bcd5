"""The report as one HTML file: tables, charts and a what-if. It loads nothing from the network."""

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

from harness.report.format import Printed, plain, printed
from harness.report.table import Table

MOST_ROWS = 500
"""Rows printed of a table."""
MOST_LABELLED = 100_000
"""A drawing with more characters than this loses the labels of its marks (`aria-`), which would be too many to read."""


def render(
    title: str,
    tables: Sequence[Table],
    drawings: Sequence[tuple[str, ...]] = (),
    starts: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page. `drawings` are (title, wide SVG, narrow SVG), `starts` the starting points of the what-if.

    Text of a run is escaped. Besides, the page's policy lets it load nothing and run only the script with its digest.
    """
    script = _asset("page.js") + (_asset("whatif.js") if starts else "")
    groups = [
        ("Charts", "chart", [(each[0], _chart(i, *each)) for i, each in enumerate(drawings)]),
        ("Tables", "table", [(table.title, _section(table.name, printed(_cut(table)))) for table in tables]),
    ]
    links, body = [("what-if", "What if")] * bool(starts), _what_if(starts) if starts else ""
    for heading, kind, parts in groups:
        body += f"<h2>{heading}</h2>\n" if parts else ""
        body += "".join(f'<div id="{kind}-{i}">{html}</div>\n' for i, (_, html) in enumerate(parts))
        links += [(f"{kind}-{i}", named) for i, (named, _) in enumerate(parts)]
    return Template(_asset("page.html")).substitute(
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        title=_text(title),
        style=_asset("page.css"),
        contents="".join(f'<li><a href="#{anchor}" dir="auto">{_text(named)}</a></li>\n' for anchor, named in links),
        body=body,
        script=script,
    )


def _what_if(starts: Sequence[Mapping[str, Any]]) -> str:
    data = json.dumps({"starts": starts}, allow_nan=False, separators=(",", ":"))
    options = "".join(f"<option>{_text(start['label'])}</option>" for start in starts)
    return Template(_asset("whatif.html")).substitute(options=options, data=data.replace("<", "\\u003c"))


def _chart(number: int, title: str, *drawings: str) -> str:
    """The drawings with ids that are unique in the page; the first is also printed on paper."""
    own = [re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>chart{number}-{i}-", each) for i, each in enumerate(drawings)]
    own = [re.sub(' aria-[a-z]+="[^"]*"', "", each) if len(each) > MOST_LABELLED else each for each in own]
    boxes = (f'<div class="scroll {kind}">{each}</div>' for kind, each in zip(("wide", "narrow"), own, strict=True))
    return f'<figure aria-label="{_text(title)}">{"".join(boxes)}</figure>'


def _section(name: str, table: Printed) -> str:
    """Caption, heads, rows and notes; `dir="auto"` writes Arabic and Hebrew from right to left."""
    kinds = [' class="figure"' if i in table.figures else "" for i in range(len(table.rows[0]))]
    aside = f" <small>({escape(table.aside)})</small>" if table.aside else ""
    names = zip(kinds, table.header or (), strict=False)
    head = "".join(f'<th scope="col"{kind}>{escape(column)}</th>' for kind, column in names)
    body = ""
    for first, *others in table.rows:
        cells = "".join(
            f'<td dir="auto"{kind}>{escape(cell)}</td>' for kind, cell in zip(kinds[1:], others, strict=True)
        )
        body += f'<tr><th scope="row" dir="auto">{escape(first)}</th>{cells}</tr>\n'
    notes = "".join(f'<li dir="auto">{escape(note)}</li>\n' for note in table.notes)
    return (
        f'<section data-table="{escape(name)}">\n<div class="scroll"><table>\n'
        f"<caption>{escape(table.title)}{aside}</caption>\n"
        + (f"<thead><tr>{head}</tr></thead>\n" if head else "")
        + f"<tbody>\n{body}</tbody>\n</table></div>\n"
        + (f'<ul class="notes">\n{notes}</ul>\n' if notes else "")
        + "</section>\n"
    )


def _cut(table: Table) -> Table:
    """The first `MOST_ROWS` rows; a note says that rows are left out."""
    said = f"the first {MOST_ROWS} of {len(table.rows):,} rows; --format csv has them all"
    too_long = len(table.rows) > MOST_ROWS
    return replace(table, rows=table.rows[:MOST_ROWS], notes=(said, *table.notes)) if too_long else table


def _text(text: str) -> str:
    return escape(plain(text))


def _asset(name: str) -> str:
    return (resources.files("harness.report") / "page" / name).read_text(encoding="utf-8")
