"""One measured point of another tool's file, and the figures made of the file's numbers."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any

from harness.config import shown
from harness.files import data_rows
from harness.model import Figure, Record, Status

UNITS: Mapping[str, str] = {
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "tokens/s",
    "input_tokens_per_s": "tokens/s",
    "total_tokens_per_s": "tokens/s",
    "requests": "requests",
    "input_tokens": "tokens",
    "output_tokens": "tokens",
    "joules_per_output_token": "J",
    "joules_per_request": "J",
    "gpu_power_w": "W",
}
"""Figure, or the part of its name before the dot -> unit; all other figures are in seconds."""
LARGEST = 1e15
"""Largest figure that is believed."""
PERCENTILES = ("p50", "p90", "p95", "p99")
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}
_ALSO = {"mean": "avg", "p50": "median"}
"""Other names of statistics in the tools' files."""


@dataclass(frozen=True, slots=True)
class Result:
    """One measured point of a file. None: not in the file."""

    figures: tuple[Figure, ...]
    model: str | None = None
    name: str = ""
    """Distinguishes the points of one file."""
    engine: str = "openai"
    version: str | None = None
    """Version of the tool."""
    measured: str | None = None
    """The run's date, as written in the file."""
    load: Mapping[str, Any] = field(default_factory=dict)
    """Shape, users or rate, with the keys of `harness.workload.arrivals.Load`."""
    precision: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    notes: tuple[str, ...] = ()
    """Where the tool's definitions differ from this project's."""
    doubts: tuple[str, ...] = ()
    """What in the file speaks against its figures: contradictions, a run that was cancelled."""
    edges: int = 0
    """Number of requests by which a count may differ from rate x duration, because the tool's window cuts requests."""
    whole: tuple[Figure, ...] | None = None
    """Figures of one and the same time, for the check of counts against rates; None: `figures` are."""
    records: tuple[Record, ...] = ()


@lru_cache
def _keys(tool: str) -> list[tuple[str, str, str]]:
    """Figure, key and unit for each row of import_keys.csv about the tool."""
    return [(row["figure"], row["key"], row["unit"]) for row in data_rows("import_keys.csv") if row["tool"] == tool]


def numbers(tool: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Figure -> number of the tool's file; a latency -> its statistics and, if the file states none, their unit.

    KeyError for a key that the file must have.
    """
    found = {}
    for figure, key, unit in _keys(tool):
        value = at(content, key)
        found[figure] = {"unit": unit, **value} if unit and value else value
    return found


def at(content: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key. `a|b`: under the first that the file has. With `?` at the end: None if it has none.

    >>> at({"a": {"b": 1}}, "a.c|a.b"), at({}, "a.b?")
    (1, None)
    """
    for each in key.rstrip("?").split("|"):
        with suppress(KeyError, TypeError):
            return reduce(lambda inner, name: inner[name], each.split("."), content)
    if key.endswith("?"):
        return None
    raise KeyError(key)


def figures(
    values: Mapping[str, float | Mapping[str, Any] | None],
    n: int | None,
    scale: float = 1.0,
    status: Status = "reported",
) -> tuple[Figure, ...]:
    """Figures from figure name -> value, or the statistics of a latency; a value that is missing gives no figure.

    ValueError for a value that is no amount.

    >>> [(each.name, each.value, each.unit) for each in figures({"ttft_s.p50": 12.5, "itl_s.p50": None}, 3, 1e-3)]
    [('ttft_s.p50', 0.0125, 's')]
    >>> [each.value for each in figures({"ttft_s": {"unit": "ms", "avg": 12.5, "percentiles": {"p50": 9.5}}}, 3)]
    [0.0125, 0.0095]
    """
    found: list[Figure] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _latency(name, value, n)
        elif value is not None:
            unit = UNITS.get(name) or UNITS.get(name.partition(".")[0], "s")
            reason = "the tool gives no interval"
            found.append(Figure(name, amount(name, value) * scale, unit, status, n=n, reason=reason))
    return tuple(found)


def amount(name: str, value: Any) -> float:
    """The value of a figure, if it is 0 or a number from 1 / LARGEST to LARGEST; otherwise ValueError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (value != 0 and not 1 / LARGEST <= value <= LARGEST):
        raise ValueError(f"{name} is {shown(value)}, not an amount")
    return float(value)


def _latency(name: str, said: Mapping[str, Any], n: int | None) -> tuple[Figure, ...]:
    """Mean and percentiles of one latency from statistic -> value; of `n` requests unless there is a count.

    No figures if no request was observed: the tools print 0 then, which no latency is.
    """
    seen = {**said, **(said.get("percentiles") or {})}
    n = seen.get("count", n)
    values = {f"{name}.{stat}": seen.get(stat, seen.get(_ALSO.get(stat, stat))) for stat in ("mean", *PERCENTILES)}
    if n == 0 or not any(values.values()):
        return ()
    return figures(values, n and int(n), SECONDS[seen["unit"]])


def shared(tokens: int, arrivals: int) -> tuple[int, ...]:
    """Tokens of each arrival, as equal as whole numbers allow: the file does not hold the tokens of each chunk.

    >>> shared(5, 3)
    (2, 2, 1)
    """
    return tuple(tokens // arrivals + (i < tokens % arrivals) for i in range(arrivals))
