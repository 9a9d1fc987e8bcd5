"""The table of GPUs: what a device can do at best, and which price is its own."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A row of gpus.csv. FLOP/s are dense; None: the GPU has no such precision."""

    name: str
    match: frozenset[str]
    """Words that NVML's name of this GPU holds."""
    price_gpu: str | None
    """Its name in the price tables; None: not priced there."""
    flops_bf16: float
    flops_fp8: float | None
    bandwidth_bytes_per_s: float
    memory_bytes: float
    tdp_w: float
    source: str


OTHER = frozenset({"laptop", "mig", "d"})
"""Words of NVML's names that mean another chip, or a slice of one, than the name without them."""


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """The rows of gpus.csv."""
    return tuple(
        Gpu(
            r["gpu"],
            _words(r["match"]),
            r["price_gpu"] or None,
            float(r["flops_bf16"]),
            float(r["flops_fp8"]) if r["flops_fp8"] else None,
            float(r["bandwidth_bytes_per_s"]),
            float(r["memory_bytes"]),
            float(r["tdp_w"]),
            r["source"],
        )
        for r in csv.DictReader(io.StringIO(text))
    )


def find_gpu(name: str, gpus: tuple[Gpu, ...]) -> Gpu | None:
    """The GPU of that name, in this table or as NVML prints it (`NVIDIA H100 80GB HBM3`); None where there is no row.

    The row whose words are all in the name wins, and the one with the most words among several.
    """
    exact = [gpu for gpu in gpus if gpu.name.lower() == name.lower()]
    words = _words(name)
    if words & OTHER:
        return None
    fitting = exact or sorted((gpu for gpu in gpus if gpu.match <= words), key=lambda gpu: -len(gpu.match))
    return fitting[0] if fitting else None


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", name.lower()))
