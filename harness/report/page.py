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

from harness.analysis.summary import Sweep
from harness.cost.pricing import Priced, price_run, scenario_for
from harness.errors import plain
from harness.facts.appraisal import standing
from harness.model import Figure, Finding, Summary
from harness.report import answer
from harness.report.facts import SCREEN
from harness.report.format import Footnotes, carried, labels, printed, readable, same_columns, scale
from harness.report.table import Table
from harness.report.tables import findings_of, in_words
from harness.store.run import Run

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
    """The page. `starts` are the starting points of the what-if; `above` and `methods` are HTML of the functions below.

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
    caption = f"<figcaption>{text(title)}<span>{text(note)}</span></figcaption>"
    return f'<figure data-chart="{escape(name)}">{caption}{own}</figure>\n'


def _section(whole: Table) -> str:
    """Title, heads, rows and notes; `dir="auto"` writes Arabic and Hebrew from right to left."""
    cut = readable(_cut(whole))
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
    note = f"the first {MOST_ROWS} of {len(table.rows):,} rows; --format csv has them all"
    too_long = len(table.rows) > MOST_ROWS
    return replace(table, rows=table.rows[:MOST_ROWS], notes=(note, *table.notes)) if too_long else table


def text(content: str) -> str:
    """HTML that shows the text as it is, without control characters."""
    return escape(plain(content))


def asset(name: str) -> str:
    """A file of the page."""
    return (resources.files("harness.report") / "page" / name).read_text(encoding="utf-8")


TILES = labels("tile")
"""Key figures in reading order -> their names; costs follow. A figure that the run does not have has no tile."""


def title_of(runs: Sequence[Run]) -> str:
    """The model, or models, and where they ran."""
    models, devices = (list(dict.fromkeys(map(of, runs))) for of in (answer.short_model, answer.short_device))
    kinds = {"models": models, "devices": devices}
    named = [each[0] if len(each) == 1 else f"{len(each)} {kind}" for kind, each in kinds.items()]
    simulated = "A simulated run" if len(runs) == 1 else f"{len(runs)} simulated runs"
    return " on ".join(each for each in named if each) or simulated


def above(sweep: Sweep, best: tuple[Run, Summary], met: bool, scenario: str | None) -> str:
    """What was measured, the serious findings, and the key figures of a run, of several runs of the best.

    `met`: whether that run meets its objectives. With several models, GPUs or engines selectors follow.
    """
    run, summary = best
    runs = [each for each, _ in sweep]
    about = answer.headline(run, summary) if len(runs) == 1 else [f"{len(runs)} runs", *answer.conditions(runs)[0]]
    dated = f"{run.file.created_utc:%d %B %Y}"
    about = [each for each in about if each not in title_of(runs)] + [dated] + [run.id] * (len(runs) == 1)
    made = f'<p class="about">{text(" · ".join(about))}</p>\n'
    made += _banner([(each, of) for of, its in sweep for each in findings_of(of, its) if each.serious], len(runs))
    if len(runs) > 1:
        why = "The most output tokens/s within the objectives" if met else "The most output tokens/s"
        made += f"<p><b>{why}</b>: {text(answer.labels_of(runs)[runs.index(run)])}</p>\n"
    priced = None if run.engine is None or run.simulated else price_run(run, summary, scenario)
    made += _tiles(run, summary, priced)
    kinds, groups = answer.groups_of(runs)
    if not kinds:
        return made
    distinct = list(dict.fromkeys(groups))
    data = {"kinds": kinds, "groups": distinct, "runs": {of.id: distinct.index(groups[i]) for i, of in enumerate(runs)}}
    return f'{made}<form class="choose" autocomplete="off" data-groups="{text(json.dumps(data))}"></form>\n'


def _banner(serious: Sequence[tuple[Finding, Run]], count: int) -> str:
    """Each kind of serious finding once, with what to do, and of several runs the number that have it."""
    lines = ""
    for code in dict.fromkeys(each.code for each, _ in serious):
        of = [each for each, _ in serious if each.code == code]
        many = f" in {len(of)} of {count} runs, for instance" if count > 1 else ""
        lines += f"<p><b>{text(code)}</b>{many}: {text(of[0].text)} → {text(of[0].advice)}</p>\n"
    return f'<div class="banner" role="alert">\n{lines}</div>\n' if lines else ""


def _tiles(run: Run, summary: Summary, priced: Priced | None) -> str:
    """The key figures, then the reasons why some have no interval or no value, and what the intervals are."""
    notes = Footnotes()
    known = [(label, figure) for name, label in TILES.items() if (figure := summary.get(name)) is not None]
    found = [(label, figure, scale(figure)[1]) for label, figure in known]
    if priced is not None:
        found += [
            (f"USD {per.replace('million', 'M')}", answer.times_of(priced.costs[name], many), "")
            for name, (many, per) in answer.COSTS.items()
        ]
    tiles = "".join(_tile(notes, *each) for each in found)
    reasons = [*notes.texts(), "; ".join(answer.legend(run, summary, priced))]
    items = "".join(f"<li>{text(reason)}</li>\n" for reason in reasons)
    return f'<dl class="tiles">\n{tiles}</dl>\n<ul class="notes reasons">\n{items}</ul>\n'


def _tile(notes: Footnotes, label: str, figure: Figure, unit: str) -> str:
    value, between = carried(figure)
    unit = "" if figure.value is None else unit if unit == "%" else f" {unit}"
    if figure.value is not None and not between:
        between = "no interval" if figure.reason else f"n = {figure.n:,}" if figure.n else ""
    return (
        f'<div><dt>{text(label)}</dt><dd><span class="value">{text(value)}</span>{text(unit)}</dd>'
        f"<dd>{text(between + notes.mark(figure.reason))}</dd></div>\n"
    )


def methods(sweep: Sweep, scenario: str | None) -> str:
    """A paragraph on how the figures were made, and a citation in BibTeX."""
    runs = [run for run, _ in sweep]
    begin, end = (pick(run.file.created_utc for run in runs).date() for pick in (min, max))
    asked = dict.fromkeys(f"{run.file.workload.name}: {in_words(run.file.workload.requests)}" for run in runs)
    scenarios = dict.fromkeys(scenario or scenario_for(run) for run in runs if run.engine is not None)
    values = {
        "runs": f"{len(runs)} run{'s' * (len(runs) > 1)}",
        "title": title_of(runs),
        "engines": ", ".join(dict.fromkeys(map(answer.engine_of, runs))),
        "when": f"on {begin}" if begin == end else f"from {begin} to {end}",
        "tools": " and ".join(sorted({run.environment.harness or "of unknown version" for run in runs})),
        "sent": f"{sum(int(summary['requests.sent'].value or 0) for _, summary in sweep):,}",
        "meters": ", ".join(sorted({info.meter for run in runs for info in run.file.meters})) or "none",
        "workloads": "; ".join([*asked][: answer.MOST_SAID]) + "; and others" * (len(asked) > answer.MOST_SAID),
        "loads": ", ".join(dict.fromkeys(map(answer.short_load, runs))),
        "standing": " ".join(filter(None, dict.fromkeys(map(standing, runs)))),
        "scenario": " and ".join(scenarios) or "none",
        "date": str(end),
        "year": str(end.year),
        "ids": runs[0].id + " and others" * (len(runs) > 1),
    }
    return Template(asset("methods.html")).substitute({name: text(value) for name, value in values.items()})
