"""Every output format by name. For programs: JSON, and one long form (CSV, Parquet), in SI units, not rounded.

    {"schema_version": 1,
     "runs":   [{"run", "state", "figures": {name: figure}, "errors": {kind: count},
                 "findings": [{"code", "text", "advice", "serious"}]}],
     "tables": [{"name", "title", "columns": [text], "rows": [[text, figure or null]], "notes": [text]}]}

A figure is {"name", "value", "unit", "status", "low", "high", "n", "reason", "interval"}, the fields of
`harness.model.Figure`; a missing value is null and `reason` says why.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Literal

import pandas as pd

from harness.errors import HarnessError
from harness.model import Figure, Summary
from harness.report import page, text
from harness.report.markup import latex, markdown
from harness.report.table import Table

Format = Literal["text", "md", "csv", "latex", "html", "json", "parquet"]
WORDS: Mapping[str, Callable[[Sequence[Table]], str]] = {
    "text": text.render,
    "md": markdown,
    "latex": latex,
    "html": lambda tables: _page(tables),
    "csv": lambda tables: csv(long_form(tables)),
}
SCHEMA_VERSION = 1
"""Of the JSON format."""


def _page(tables: Sequence[Table]) -> str:
    """The tables with the charts of them, if the extra `charts` is installed."""
    from harness.report import charts, marks

    drawings: list[page.Drawing] = []
    with suppress(HarnessError):
        drawings = charts.for_page(charts.of_tables(tables, marks.PAGE))
    return page.render(tables[0].title, tables, drawings)


def render(tables: Sequence[Table], format_: Format, summaries: Sequence[Summary] = ()) -> str | bytes:
    """The tables in one of the formats. JSON also has every figure of the `summaries`; only Parquet is bytes.

    ValueError for NaN or infinity, which JSON cannot hold; a missing value must be None.

    >>> render([], "json")
    '{"schema_version": 1, "runs": [], "tables": []}\\n'
    """
    if format_ == "json":
        runs = [
            asdict(each) | {"figures": {figure.name: asdict(figure) for figure in each.figures}} for each in summaries
        ]
        content = {"schema_version": SCHEMA_VERSION, "runs": runs, "tables": [asdict(table) for table in tables]}
        return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
    if format_ == "parquet":
        buffer = io.BytesIO()
        long_form(tables).to_parquet(buffer, index=False)
        return buffer.getvalue()
    return WORDS[format_](tables)


_FORMULA, _CONTROL = r"^[=+\-@\t]", r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
"""Starts of a text that a spreadsheet runs as a formula; control characters other than tab and newline."""


def csv(table: pd.DataFrame, header: bool = True) -> str:
    """A table as CSV. Texts that a spreadsheet would run as formulas get a leading ', control characters become �.

    >>> csv(pd.DataFrame({"x": ["=1+1", "-3%", "a", None], "y": [-1.5, 2, 3, None]}))
    "x,y\\n'=1+1,-1.5\\n'-3%,2.0\\na,3.0\\n,\\n"
    """
    texts = {name: table[name] for name in table if not pd.api.types.is_numeric_dtype(table[name])}
    safe = {
        str(name): column.astype("string")
        .str.replace(_CONTROL, "\ufffd", regex=True)
        .str.replace(rf"({_FORMULA})", r"'\1", regex=True)
        for name, column in texts.items()
    }
    return str(table.assign(**safe).to_csv(index=False, header=header))


COLUMNS = {
    "table": "string", "row": "Int64", "key": "string", "column": "string", "text": "string", "name": "string",
    "value": "Float64", "unit": "string", "low": "Float64", "high": "Float64", "interval": "string", "n": "Int64",
    "status": "string", "reason": "string", "source": "string",
}  # fmt: skip
"""Columns of the long form. `row` counts from 0 in a table and `key` is the row's first cell; a cell has a `text` or a
figure's fields from `name` to `reason`. A note has the column `note` and no row."""


def long_form(tables: Sequence[Table]) -> pd.DataFrame:
    """A row for each cell and note. A missing value is NA, with its `reason`; `source` is the run or the facts.

    >>> rate = Figure("rate", 12.5, "tokens/s", "measured")
    >>> made = long_form([Table("t", "T", ("figure", "value"), (("x", rate),), source="run-1")])
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
        for column, cell in named.items():
            if isinstance(cell, Figure):
                yield {**place, **asdict(cell), "column": column}
            elif cell:
                yield {**place, "column": column, "text": cell}
    for note in table.notes:
        yield {"table": table.name, "column": "note", "text": note, "source": table.source}
