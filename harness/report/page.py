"""One HTML file for readers: tables, charts and a what-if, with all that it needs inside and no request to anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from harness import store
from harness.model import Summary
from harness.report import reported, whatif
from harness.report.html import render_tables
from harness.report.layout import plain
from harness.report.table import Table
from harness.reported.comparisons import Context
from harness.store import RunFile


def of_runs(
    tables: Sequence[Table],
    directories: Sequence[Path],
    sweep: Sequence[tuple[RunFile, Summary]],
    scenario: str | None = None,
) -> str:
    """The page of a report over stored runs, with a what-if that starts from them."""
    title = f"Run {sweep[0][0].id}" if len(sweep) == 1 else f"{len(sweep)} runs"
    stored = [
        (file, summary, lambda each=each: store.read(each).requests)
        for each, (file, summary) in zip(directories, sweep, strict=True)
    ]
    return render(title, tables, (), whatif.starts(stored, Context(reported.book()), scenario))


def render(
    title: str,
    tables: Sequence[Table],
    charts: Sequence[tuple[str, str]] = (),
    starts: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page. `charts` are (title, SVG); `starts` are what the what-if can start from (see `whatif.starts`).

    What comes from a run is escaped; should that ever fail, the page's policy loads nothing and runs no script but its
    own, by digest.
    """
    script = _asset("page.js") + (_asset("whatif.js") if starts else "")
    groups = [
        ("Charts", "chart", [(named, _chart(i, named, svg)) for i, (named, svg) in enumerate(charts)]),
        ("Tables", "table", [(table.title, render_tables([table])) for table in tables]),
    ]
    links, body = [("what-if", "What if")] * bool(starts), _what_if(starts) if starts else ""
    for heading, kind, parts in groups:
        body += f"<h2>{heading}</h2>\n" if parts else ""
        body += "".join(f'<div id="{kind}-{i}">{html}</div>\n' for i, (_, html) in enumerate(parts))
        links += [(f"{kind}-{i}", named) for i, (named, _) in enumerate(parts)]
    return _template("page.html").substitute(
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
    return _template("whatif.html").substitute(options=options, data=data.replace("<", "\\u003c"))


def _chart(number: int, title: str, svg: str) -> str:
    """The drawing with ids of its own: each was made as if it stood alone."""
    own = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>chart{number}-", svg)
    return f'<figure><figcaption dir="auto">{_text(title)}</figcaption><div class="scroll">{own}</div></figure>'


def _text(text: str) -> str:
    return escape(plain(text))


def _asset(name: str) -> str:
    return (resources.files("harness.report") / "page" / name).read_text(encoding="utf-8")


def _template(name: str) -> Template:
    return Template(_asset(name))
