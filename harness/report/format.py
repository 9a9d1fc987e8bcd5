"""Figures and tables in words: numbers are converted, rounded and given their unit here, and only here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from harness.analysis.latency import LATENCIES
from harness.model import Figure
from harness.report.table import PROPERTIES, Cell, Table


def scale(figure: Figure) -> tuple[float, str]:
    """What to multiply a figure by for reading, and its unit then: latencies in ms, shares in %, all else as it is."""
    if figure.unit == "s" and figure.name.partition(".")[0] in (*LATENCIES, "client"):
        return 1e3, "ms"
    return (100.0, "%") if figure.unit in ("share", "1") else (1.0, figure.unit)


MOST_DECIMALS = {"ms": 3}
"""Unit -> decimals beyond which there is only noise: stamps are good to some tens of microseconds."""


def number(value: float, like: float | None = None, decimals: int = 12) -> str:
    """Four significant digits, or fewer where those are exact; whole numbers below a million in full.

    `like`: with the size and decimals of that number, so that the ends of an interval match what they enclose.
    `decimals`: no more than these.

    >>> [number(x) for x in (0, 0.5, 12.3456, 8264.4, 123456, 8.658e8, 13e12, 2.31e-7)]
    ['0', '0.5', '12.35', '8,264', '123,456', '865.8 M', '13,000 bn', '2.31e-07']
    >>> number(9.5, like=12.34), number(980000, like=1020000)
    ('9.50', '0.980 M')
    """
    size = abs(value if like is None or like == 0 else like)
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{value:.4g}"
    for million, word in ((1e9, " bn"), (1e6, " M")):
        if size >= million:
            return number(value / million, None if like is None else like / million) + word
    if size == 0 or (like is None and value == round(value)):
        return f"{value:,.0f}"
    fixed = f"{value:,.{min(decimals, max(0, 3 - math.floor(math.log10(size))))}f}"
    return fixed if like is not None else min(f"{float(value)!r}", fixed, key=len)


def ends(figure: Figure) -> str | None:
    """The interval or bound of a figure alone; None where it has none."""
    factor, unit = scale(figure)
    like, most = None if figure.value is None else figure.value * factor, MOST_DECIMALS.get(unit, 12)
    low, high = (None if end is None else number(end * factor, like, most) for end in (figure.low, figure.high))
    if low is None:
        return None if high is None else f"≤ {high}"
    return f"≥ {low}" if high is None else f"{low}–{high}"


def amount(figure: Figure, *, unit: bool = True, digits: bool = False) -> str:
    """The value alone, with its unit unless that stands elsewhere, or why there is none. `digits`: always all four."""
    if figure.value is None:
        return f"n/a ({figure.reason or 'not recorded'})"
    factor, name = scale(figure)
    value = figure.value * factor
    shown = number(value, value if digits else None, MOST_DECIMALS.get(name, 12))
    return shown + (name if name == "%" else f" {name}") if unit else shown


def words(
    figure: Figure,
    *,
    unit: bool = True,
    interval: bool = True,
    kind: bool = True,
    n: bool = True,
    status: bool = True,
    why: bool = True,
) -> str:
    """A figure in full; what stands elsewhere in its table can be left out. `kind` names the interval.

    >>> words(Figure("usd_per_query", 0.12, "USD/query", "derived", 0.09, 0.16, interval="p5-p95"))
    '0.12 USD/query (p5-p95: 0.0900–0.1600; derived)'
    >>> words(Figure("ttft_s.p99", 0.2, "s", "measured", n=3), status=False)
    '200 ms (n=3)'
    """
    between = ends(figure) if interval else None
    asides = [
        (f"{figure.interval}: {between}" if kind else between) if between else "",
        f"n={number(figure.n)}" if n and between is None and figure.n is not None and figure.value is not None else "",
        figure.reason or "" if why and figure.value is not None else "",
        figure.status if status else "",
    ]
    aside = "; ".join(each for each in asides if each)
    value = amount(figure, unit=unit) if why or figure.value is not None else "n/a"
    return value + (f" ({aside})" if aside else "")


CLAIM = ("bound", "value", "unit")
"""Columns that are read as one phrase, as in `<= 1.539 ratio`."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")


@dataclass(frozen=True, slots=True)
class Printed:
    """A table in words: `aside` is what all its figures share, `header` None where the columns need no names."""

    title: str
    aside: str
    header: tuple[str, ...] | None
    rows: tuple[tuple[str, ...], ...]
    figures: frozenset[int]
    """Columns of figures."""
    notes: tuple[str, ...]


def printed(table: Table) -> Printed:
    """The table for a format without a terminal's width: interval beside each value, reasons as numbered notes.

    >>> rate = Figure("rate", 12.3456, "tokens/s", "measured", reason="one run")
    >>> printed(Table("t", "T", ("of", "value"), (("x", rate),), source="run-1")).rows
    (('x', '12.35 tokens/s (measured) [1]'),)
    """
    table = claims(table)
    common = shared(table)
    marks = footnotes(table, common)

    def cell(content: Cell) -> str:
        if not isinstance(content, Figure):
            return plain(content or "")
        own = {kind: kind not in common and kind not in table.columns for kind in ("unit", "n", "status")}
        noted = asides(content, common)
        kind = "interval" not in common and len(content.interval) <= SHORT
        text = words(content, interval="bound" not in table.columns, kind=kind, why=False, **own)
        return text + "".join(f" [{marks[note]}]" for note in noted)

    notes = (*(f"[{mark}] {reason}" for reason, mark in marks.items()), *table.notes)
    return Printed(
        plain(table.title),
        aside(table, common, "interval in brackets"),
        None if table.columns == PROPERTIES else table.columns,
        tuple(tuple(map(cell, row)) for row in table.rows) or (("none", *[""] * (len(table.columns) - 1)),),
        frozenset(figure_columns(table)),
        tuple(map(plain, (*notes, f"source: {table.source}") if table.source else notes)),
    )


def claims(table: Table) -> Table:
    """With the phrase in place of the columns of CLAIM, where the table has them."""
    at = table.columns.index(CLAIM[0]) if CLAIM[0] in table.columns else 0
    if table.columns[at : at + 3] != CLAIM:
        return table
    rows = tuple((*row[:at], _claim(row[at], row[at + 1], table.columns), *row[at + 3 :]) for row in table.rows)
    return replace(table, columns=(*table.columns[:at], "claim", *table.columns[at + 3 :]), rows=rows)


def _claim(bound: Cell, value: Cell, columns: tuple[str, ...]) -> str:
    if not isinstance(value, Figure) or value.value is None:
        return amount(value) if isinstance(value, Figure) else value or ""
    beside = {kind: kind not in columns for kind in ("n", "status")}
    text = words(value, interval=not value.interval.startswith("bound"), **beside)
    if bound == "range" and (between := ends(value)):
        return text.replace(amount(value, unit=False), between.replace("–", " to "), 1)
    return f"{bound} {text}"


def figure_columns(table: Table) -> set[int]:
    return {i for row in table.rows for i, cell in enumerate(row) if isinstance(cell, Figure)}


def shared(table: Table) -> dict[str, str]:
    """What all figures of a table have in common, and so need not repeat: unit, interval, n, status."""
    figures = [cell for row in table.rows for cell in row if isinstance(cell, Figure)]
    if len(figures) < 2:
        return {}
    every: dict[str, set[str]] = {
        "unit": {scale(figure)[1] for figure in figures} if len(figure_columns(table)) > 1 else set(),
        "interval": {figure.interval for figure in figures if ends(figure)},
        "n": {"" if figure.n is None else number(figure.n) for figure in figures},
        "status": {figure.status for figure in figures},
    }
    return {kind: found.pop() for kind, found in every.items() if len(found) == 1 and found != {""}}


def aside(table: Table, common: Mapping[str, str], where: str = "") -> str:
    """What all figures share, for the title; `where` the intervals stand, where they do not name themselves."""
    said = {kind: what for kind, what in common.items() if kind not in table.columns}
    parts = [
        said.get("unit", ""),
        f"{said['interval']} {where}" if where and "interval" in said else "",
        f"n={said['n']}" if "n" in said else "",
        said.get("status", "").replace("simulated", "SIMULATED"),
    ]
    return ", ".join(part for part in parts if part)


SHORT = 12
"""Characters of an interval's name, such as 95% or p5-p95, that may stand beside it; a longer one is a note."""


def asides(figure: Figure, common: Mapping[str, str]) -> list[str]:
    """What is to be noted of a figure: why there is no value or interval, and an interval's name of many words."""
    long = "interval" not in common and len(figure.interval) > SHORT and ends(figure)
    why = figure.reason or ("not recorded" if figure.value is None else None)
    notes = (why, f"interval: {figure.interval}" if long else None)
    return [note for note in notes if note]


def footnotes(table: Table, common: Mapping[str, str]) -> dict[str, int]:
    """Every `asides` in the table -> the number of its note, in the order of reading."""
    notes = (note for row in table.rows for cell in row if isinstance(cell, Figure) for note in asides(cell, common))
    return {note: i for i, note in enumerate(dict.fromkeys(notes), 1)}


def plain(text: str) -> str:
    """Without control characters, those of direction included, which an engine's error or a name may hold."""
    return CONTROL.sub(" ", text)
