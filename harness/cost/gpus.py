"""The table of GPUs: what a device can do at best, and which price is its own."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter

OTHER = frozenset({"laptop", "mig", "d"})
"""Words of NVML's names that mean another chip, or a slice of one, than the name without them."""
Row = TypeVar("Row")


def read_rows(text: str, form: type[Row]) -> tuple[Row, ...]:
    """The rows of a CSV text as `form`, whose fields are columns; an empty cell is None."""
    rows = [{column: cell or None for column, cell in row.items()} for row in csv.DictReader(io.StringIO(text))]
    return tuple(TypeAdapter(list[form]).validate_python(rows))  # type: ignore[valid-type]


def words(name: str) -> frozenset[str]:
    """A name in lower case, cut where letters and digits end."""
    return frozenset(re.findall(r"[a-z0-9]+", name.lower()))


@dataclass(frozen=True, slots=True)
class Gpu:
    """A row of gpus.csv. FLOP/s are dense; None: the GPU has no such precision."""

    name: Annotated[str, Field(validation_alias="gpu")]
    match: Annotated[frozenset[str], BeforeValidator(words)]
    """Words that NVML's name of this GPU holds."""
    price_gpu: str | None
    """Its name in the price tables; None: not priced there."""
    flops_bf16: float
    flops_fp8: float | None
    bandwidth_bytes_per_s: float
    memory_bytes: float
    tdp_w: float
    source: str


def find_gpu(name: str, gpus: tuple[Gpu, ...]) -> Gpu | None:
    """The GPU of that name, in this table or as NVML prints it (`NVIDIA H100 80GB HBM3`); None where there is no row.

    The row whose words are all in the name wins, and the one with the most words among several.
    """
    named = words(name)
    if named & OTHER:
        return None
    exact = [gpu for gpu in gpus if gpu.name.lower() == name.lower()]
    return next(iter(exact), max((gpu for gpu in gpus if gpu.match <= named), key=lambda g: len(g.match), default=None))
