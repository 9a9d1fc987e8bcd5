"""The table of findings: what each code says, advises and means. Its rows are in data/findings.yaml."""

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
    """One code. `seen` and `advice` hold {names} for the values of a run."""

    seen: str
    about: str
    advice: str
    serious: bool | str = False
    """A text says when it is: the caller decides."""


@cache
def findings() -> Mapping[str, Row]:
    """The table, by code."""
    rows, _ = read_yaml(read_data("findings.yaml"), "findings.yaml")
    return {code: Row(**row) for code, row in rows.items()}


def finding(code: str, *, serious: bool | None = None, **values: Any) -> Finding:
    """The finding of that code, with a run's values in its texts. KeyError if the table has no such code or name.

    >>> finding("few-requests", done=16, needs=299).text
    '16 requests completed, too few for an interval of the p99: it needs 299.'
    """
    row = findings()[code]
    decided = bool(row.serious) if serious is None else serious
    return Finding(code, row.seen.format(**values), row.advice.format(**values), decided)
