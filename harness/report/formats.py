"""Every output format by name."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from harness.model import Summary
from harness.report import html, json, latex, long, markdown, text
from harness.report.table import Table

Format = Literal["text", "md", "csv", "latex", "html", "json", "parquet"]

WORDS: Mapping[str, Callable[[Sequence[Table]], str]] = {
    "text": text.render,
    "md": markdown.render,
    "latex": latex.render,
    "html": html.render,
    "csv": lambda tables: long.frame(tables).to_csv(index=False),
}


def render(tables: Sequence[Table], format_: Format, summaries: Sequence[Summary] = ()) -> str | bytes:
    """The tables in one of the formats; JSON has every figure of the `summaries` besides. Only Parquet is bytes."""
    if format_ == "json":
        return json.render(tables, summaries)
    if format_ == "parquet":
        buffer = io.BytesIO()
        long.frame(tables).to_parquet(buffer, index=False)
        return buffer.getvalue()
    return WORDS[format_](tables)
