"""The table of findings, data/findings.yaml: text, meaning and advice of each code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from harness.config import read_yaml
from harness.files import read_data
from harness.model import Finding


@dataclass(frozen=True, slots=True)
class Row:
    """One code. `seen` and `advice` hold {names} that a run's values replace."""

    seen: str
    about: str
    advice: str
    serious: bool | str = False
    """A text says under which condition it is serious: then the caller decides."""


@cache
def findings() -> Mapping[str, Row]:
    """The table, by code."""
    rows, _ = read_yaml(read_data("findings.yaml"), "findings.yaml")
    return {code: Row(**row) for code, row in rows.items()}


def finding(code: str, *, serious: bool | None = None, **values: Any) -> Finding:
    """The finding with this code and a run's values in its texts. KeyError for an unknown code or a missing value.

    >>> finding("few-requests", done=16, needs=299).text
    '16 requests completed, too few for an interval of the p99: it needs 299.'
    """
    row = findings()[code]
    decided = bool(row.serious) if serious is None else serious
    return Finding(code, row.seen.format(**values), row.advice.format(**values), decided)
