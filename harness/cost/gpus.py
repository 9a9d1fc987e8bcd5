"""The table of GPUs: peak performance, and name in the price tables."""

import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter

from harness.files import data_rows

OTHER = frozenset({"laptop", "mig", "d"})
"""Words in NVML's names that mark a different chip, or a slice of a chip."""
Row = TypeVar("Row")
Above0 = Annotated[float, Field(gt=0)]


def read_rows(name: str, form: type[Row]) -> tuple[Row, ...]:
    """The rows of a shipped table as values of `form`, whose fields are the columns; an empty cell is None."""
    rows = [{column: cell or None for column, cell in row.items()} for row in data_rows(name)]
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
    flops_bf16: Above0
    flops_fp8: Above0 | None
    flops_fp4: Above0 | None
    bandwidth_bytes_per_s: Above0
    memory_bytes: Above0
    tdp_w: Above0
    link_bytes_per_s: Above0
    """To the GPUs of the same domain, one direction."""
    domain: Annotated[int, Field(ge=1)]
    """GPUs that such links connect."""
    source: str


def find_gpu(name: str, gpus: tuple[Gpu, ...]) -> Gpu | None:
    """The GPU with this name in the table, or with this NVML name (`NVIDIA H100 80GB HBM3`); None: not in the table.

    For an NVML name: the row whose words are all in the name; of several rows, the one with the most words.
    """
    named = words(name)
    if named & OTHER:
        return None
    exact = (gpu for gpu in gpus if gpu.name.lower() == name.lower())
    return next(exact, max((gpu for gpu in gpus if gpu.match <= named), key=lambda g: len(g.match), default=None))
