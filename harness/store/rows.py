"""Tables of a run: requests, power readings and server metrics, from Parquet files or from journals."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.model import PowerSample, Record, ServerSample
from harness.store import journal
from harness.store.run_file import RunFile

RESTORE = "restore the file, or measure the run again"
_TYPES = {
    "int": pa.int64(),
    "float": pa.float64(),
    "str": pa.string(),
    "tuple[float, ...]": pa.list_(pa.float64()),
    "tuple[int, ...]": pa.list_(pa.int32()),
}


def _schema(noun: type, types: Mapping[str, pa.DataType]) -> pa.Schema:
    """One nullable column per field."""
    return pa.schema([(each.name, types[str(each.type).removesuffix(" | None")]) for each in dataclasses.fields(noun)])


REQUESTS = _schema(Record, _TYPES)
COLUMNS = {
    "requests": REQUESTS,
    "power": _schema(PowerSample, _TYPES | {"int": pa.float64()}),  # all numbers float, so that missing is NaN
    "server": _schema(ServerSample, _TYPES),
}
"""Columns of each Parquet file: the fields of Record, PowerSample and ServerSample, in their order."""
_CLOCK_TIMES = {"requests": (), "power": ("before_s", "after_s"), "server": ("time_s",)}
"""Columns with times on CLOCK_MONOTONIC in a journal, and in seconds since the start of the load in a finished file."""
_INTEGERS = (
    *("input_tokens", "output_tokens", "cached_tokens", "conversation", "turn", "stand_in_tokens", "client"),
    *("shared_tokens", "hidden_tokens", "retries", "age_tokens"),
)
"""Integer columns with missing values: nullable in pandas, so that integers do not become floats."""


def read_rows(directory: Path, name: str, file: RunFile) -> pa.Table:
    """Rows from the Parquet file, or else from the journals; no rows if a run has neither.

    `name` is one of COLUMNS. HarnessError if a file is damaged, or if there are no requests.
    """
    path, begun = directory / f"{name}.parquet", directory / f"{name}.jsonl"
    try:
        if path.is_file():
            if file.sha256.get(path.name, digest := digest_of(path)) != digest:
                raise ValueError("its SHA-256 differs from that in run.json")
            return pq.read_table(path, schema=COLUMNS[name])
        path = begun
        if path.is_file():
            return journalled(directory, name, file)
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as damaged:
        raise HarnessError(f"{path}: cannot be read: {damaged}", RESTORE) from None
    if name == "requests":
        raise HarnessError(f"{directory} has no requests.parquet", "the run's rows are gone; measure it again")
    return COLUMNS[name].empty_table()


def journalled(directory: Path, name: str, file: RunFile) -> pa.Table:
    """The rows of the journals; those of several client processes are sorted by request index.

    Times are in seconds since the start of the load, or on CLOCK_MONOTONIC if the load never started.
    """
    zero_s = 0.0 if file.clock is None else file.clock.monotonic_s
    tables = []
    for path in sorted(directory.glob(f"{name}*.jsonl")):
        rows = ({**row, **{key: row[key] - zero_s for key in _CLOCK_TIMES[name]}} for row in journal.rows(path))
        tables.append(_table(rows, COLUMNS[name]))
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).sort_by("index")


def _table(rows: Iterator[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table made in batches, because the rows of a long run as Python objects take several times its memory."""
    batches = iter(lambda: list(itertools.islice(rows, 500)), [])
    return pa.Table.from_batches((pa.RecordBatch.from_pylist(batch, schema=schema) for batch in batches), schema)


def frame(table: pa.Table) -> pd.DataFrame:
    """Requests as a DataFrame, with nullable integers; lists stay in Arrow (see `flat`)."""
    lists = {kind: pd.ArrowDtype(kind) for kind in table.schema.types if pa.types.is_list(kind)}
    requests = pd.DataFrame(table.to_pandas(integer_object_nulls=True, types_mapper=lists.get))
    return requests.astype(dict.fromkeys(_INTEGERS, "Int64"))


def flat(column: pd.Series) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All values of a column of lists, one row after the other, and the length of each list; 0 for a missing list.

    >>> values, sizes = flat(pd.Series([[1.0, 2.0], None], dtype=pd.ArrowDtype(pa.list_(pa.float64()))))
    >>> values.tolist(), sizes.tolist()
    ([1.0, 2.0], [2, 0])
    """
    lists = pa.chunked_array(pa.array(column))
    sizes = pc.fill_null(pc.list_value_length(lists), 0)
    return pc.list_flatten(lists).to_numpy().astype(float), sizes.to_numpy().astype(np.int64)


def digest_of(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
