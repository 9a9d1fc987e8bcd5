"""One measured point from another tool's file, before it is stored as a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.model import Figure, Record

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


@dataclass(frozen=True, slots=True)
class Point:
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
    records: tuple[Record, ...] = ()


def figures(values: Mapping[str, float | None], n: int | None, scale: float = 1.0) -> tuple[Figure, ...]:
    """Figures with status `reported` from figure name -> value; a missing value gives no figure.

    >>> [(each.name, each.value, each.unit) for each in figures({"ttft_s.p50": 12.5, "itl_s.p50": None}, 3, 1e-3)]
    [('ttft_s.p50', 0.0125, 's')]
    """
    return tuple(
        Figure(
            name, value * scale, UNITS.get(name) or UNITS.get(name.partition(".")[0], "s"), "reported", n=n,
            reason="the tool gives no interval",
        )
        for name, value in values.items()
        if value is not None
    )  # fmt: skip
