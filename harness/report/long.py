"""Tables for programs in one long form: a row a cell, in SI units and full precision, as CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from harness.model import Figure
from harness.report.table import Table

COLUMNS = {
    "table": "string", "row": "Int64", "key": "string", "column": "string", "text": "string", "name": "string",
    "value": "Float64", "unit": "string", "low": "Float64", "high": "Float64", "interval": "string", "n": "Int64",
    "status": "string", "reason": "string", "source": "string",
}  # fmt: skip
"""`row` counts from 0 within a table and `key` is its first cell; a cell has a `text`, or a figure's fields from `name`
to `reason`. A note stands in the column `note`, without a row."""


def frame(tables: Sequence[Table]) -> pd.DataFrame:
    """Every cell and note. A missing value is NA, and `reason` says why; `source` is the run or the facts.

    >>> rate = Figure("rate", 12.5, "tokens/s", "measured")
    >>> made = frame([Table("t", "T", ("of", "value"), (("x", rate),), source="run-1")])
    >>> made[["key", "column", "value", "unit", "status", "source"]].values.tolist()[1]
    ['x', 'value', 12.5, 'tokens/s', 'measured', 'run-1']
    """
    rows = [row for table in tables for row in _rows(table)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _rows(table: Table) -> Iterator[dict[str, Any]]:
    for i, row in enumerate(table.rows):
        named = dict(zip(table.columns, row, strict=True))
        source = next((text for by in ("run", "source") if isinstance(text := named.get(by), str)), table.source)
        place = {"table": table.name, "row": i, "key": row[0] if isinstance(row[0], str) else None, "source": source}
        for column, cell in zip(table.columns, row, strict=True):
            if isinstance(cell, Figure):
                fields = {name: getattr(cell, name) for name in Figure.__slots__}
                yield {**place, **fields, "column": column}
            elif cell:
                yield {**place, "column": column, "text": cell}
    for note in table.notes:
        yield {"table": table.name, "column": "note", "text": note, "source": table.source}
