"""One result of another tool, before it becomes a run."""

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
"""Figure, or what stands before its dot -> unit; all others are in seconds."""


@dataclass(frozen=True, slots=True)
class Result:
    """One measured result in a file of another tool. None: the file does not give it."""

    figures: tuple[Figure, ...]
    model: str | None = None
    name: str = ""
    """What distinguishes the result from others of its file."""
    engine: str = "openai"
    version: str | None = None
    """Of the tool."""
    measured: str | None = None
    """When, as the file writes it."""
    load: Mapping[str, Any] = field(default_factory=dict)
    """Shape, users or rate, as `harness.workload.arrivals.Load` has them."""
    precision: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    notes: tuple[str, ...] = ()
    """Where the tool's definitions differ from this project's."""
    records: tuple[Record, ...] = ()


def figures(values: Mapping[str, float | None], n: int | None, scale: float = 1.0) -> tuple[Figure, ...]:
    """Values by figure name as figures that another tool reported; a missing value leaves its figure out.

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
