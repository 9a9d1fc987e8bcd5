"""What the formats for people share: a claim as one phrase, what all figures have in common said once, footnotes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from harness.model import Figure
from harness.report.cells import amount, ends, number, scale, words
from harness.report.table import PROPERTIES, Cell, Table

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
