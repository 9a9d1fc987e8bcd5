"""Tables and figures as JSON, for programs: SI units, full precision, nothing rounded.

    {"schema_version": 1,
     "runs":   [{"run", "state", "figures": {name: figure}, "errors": {kind: count},
                 "findings": [{"code", "text", "advice", "serious"}]}],
     "tables": [{"name", "title", "columns": [text], "rows": [[text, figure or null]], "notes": [text]}]}

A figure is {"name", "value", "unit", "status", "low", "high", "n", "reason", "interval"}, the fields of
`harness.model.Figure`; a missing value is null and `reason` says why.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from harness.model import Summary
from harness.report.table import Table

SCHEMA_VERSION = 1


def render(tables: Sequence[Table], summaries: Sequence[Summary] = ()) -> str:
    """One JSON object with the runs' figures and findings, and the tables as they are printed elsewhere.

    Raises ValueError for a number that JSON has no form for: a missing one must be None.

    >>> render([])
    '{"schema_version": 1, "runs": [], "tables": []}\\n'
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "runs": [_run(summary) for summary in summaries],
        "tables": [asdict(table) for table in tables],
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def _run(summary: Summary) -> dict[str, Any]:
    return asdict(summary) | {"figures": {figure.name: asdict(figure) for figure in summary.figures}}
