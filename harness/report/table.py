"""The one table model that every output format renders."""

from collections.abc import Mapping
from dataclasses import dataclass

from harness.model import Figure

Cell = str | Figure | None
"""Text, a figure with its unit and status, or nothing."""
PROPERTIES = ("property", "value")
"""Columns of a table that lists properties of one thing; formats for people do not print this header."""
FACT = "fact"
"""The table of a published fact: text prints each of its rows on one line, so that quotes stay whole."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under named columns; `name` is what `--table` takes."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """Sources, assumptions and warnings, printed below the table."""
    source: str = ""
    """The run of its figures, if no column (`run` or `source`) names it."""


def properties(name: str, title: str, values: Mapping[str, str]) -> Table:
    """A table of the properties that are known."""
    return Table(name, title, PROPERTIES, tuple((key, text) for key, text in values.items() if text))
