"""The one table model that every output format renders."""

from __future__ import annotations

from dataclasses import dataclass

from harness.model import Figure

Cell = str | Figure | None
"""Text, a figure with its unit and status, or nothing."""
PROPERTIES = ("property", "value")
"""Columns of a table that lists properties of one thing; formats for people leave this header out."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under named columns; `name` is the stable word that `--table` takes."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """Sources, assumptions and warnings that belong under the table."""
    source: str = ""
    """The run that its figures come from, where no column (`run` or `source`) says so row by row."""
