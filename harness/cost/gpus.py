"""The table of GPUs: peak performance, and name in the price tables."""

import csv
import io
import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter

OTHER = frozenset({"laptop", "mig", "d"})
"""Words in NVML's names that mark a different chip, or a slice of a chip."""
Row = TypeVar("Row")


def read_rows(text: str, form: type[Row]) -> tuple[Row, ...]:
    """The rows of a CSV text as values of `form`, whose fields are the columns; an empty cell is None."""
    rows = [{column: cell or None for column, cell in row.items()} for row in csv.DictReader(io.StringIO(text))]
    return tuple(TypeAdapter(list[form]).validate_python(rows))  # type: ignore[valid-type]


def words(name: str) -> frozenset[str]:
    """The words of a name in lower case; a word consists of letters and digits."""
    return frozenset(re.findall(r"[a-z0-9]+", name.lower()))


@dataclass(frozen=True, slots=True)
class Gpu:
    """A row of gpus.csv. FLOP/s are for dense matrices; None: the GPU does not support the precision."""

    name: Annotated[str, Field(validation_alias="gpu")]
    match: Annotated[frozenset[str], BeforeValidator(words)]
    """Words in NVML's name of this GPU."""
    price_gpu: str | None
    """Name in the price tables; None: as `name`."""
    flops_bf16: float
    flops_fp8: float | None
    flops_fp4: float | None
    bandwidth_bytes_per_s: float
    memory_bytes: float
    tdp_w: float
    link_bytes_per_s: float
    """To the GPUs of the same domain, one direction."""
    domain: int
    """GPUs that such links connect."""
    idle_w: float | None
    """With a model loaded and no request; None: not measured."""
    source: str


def find_gpu(name: str, gpus: tuple[Gpu, ...]) -> Gpu | None:
    """The GPU with this name in the table, or with this NVML name (`NVIDIA H100 80GB HBM3`); None: not in the table.

    For an NVML name: the row whose words are all in the name; of several rows, the one with the most words.
    """
    named = words(name)
    if named & OTHER:
        return None
    exact = [gpu for gpu in gpus if gpu.name.lower() == name.lower()]
    return next(iter(exact), max((gpu for gpu in gpus if gpu.match <= named), key=lambda g: len(g.match), default=None))
