"""The rows of a run as tables: requests, readings of power and a server's own metrics, finished or still journals."""

from __future__ import annotations

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
    """A column for each field; all may be missing."""
    return pa.schema([(each.name, types[str(each.type).removesuffix(" | None")]) for each in dataclasses.fields(noun)])


REQUESTS = _schema(Record, _TYPES)
"""The columns of requests.parquet: the fields of Record, in their order."""
POWER = _schema(PowerSample, _TYPES | {"int": pa.float64()})
"""The columns of power.parquet: the fields of PowerSample in their order; all numbers float, so that missing is NaN."""
SERVER = _schema(ServerSample, _TYPES)
"""The columns of server.parquet: the fields of ServerSample in their order."""
COLUMNS = {"requests": REQUESTS, "power": POWER, "server": SERVER}
_CLOCK_TIMES = {"requests": (), "power": ("before_s", "after_s"), "server": ("time_s",)}
"""Columns that a journal has on CLOCK_MONOTONIC, and a finished file from second zero on."""
_INTEGERS = ("input_tokens", "output_tokens", "cached_tokens", "conversation", "turn", "stand_in_tokens", "client")
"""Columns that may be missing: nullable in pandas, so that None never becomes a float."""


def read_rows(directory: Path, name: str, file: RunFile) -> pa.Table | None:
    """Rows from the Parquet file or else from the journals; None if there is neither.

    `name` is one of COLUMNS. HarnessError names the file that is damaged.
    """
    path, begun = directory / f"{name}.parquet", directory / f"{name}.jsonl"
    try:
        if path.is_file():
            if file.sha256.get(path.name, digest := digest_of(path)) != digest:
                raise ValueError("it is not what the run wrote, by its SHA-256 in run.json")
            return pq.read_table(path, schema=COLUMNS[name])
        path = begun
        return journalled(directory, name, file) if path.is_file() else None
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as damaged:
        raise HarnessError(f"{path}: cannot be read: {damaged}", RESTORE) from None


def journalled(directory: Path, name: str, file: RunFile) -> pa.Table:
    """The rows of the journals, those of several client processes in the order of the schedule.

    Times count from second zero, or are left as they are if the load never began.
    """
    zero_s = 0.0 if file.clock is None else file.clock.monotonic_s
    tables = []
    for path in sorted(directory.glob(f"{name}*.jsonl")):
        rows = ({**row, **{key: row[key] - zero_s for key in _CLOCK_TIMES[name]}} for row in journal.rows(path))
        tables.append(_table(rows, COLUMNS[name]))
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).sort_by("index")


def _table(rows: Iterator[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Made in batches: as Python objects, the rows of a long run take several times the memory of the table."""
    batches = iter(lambda: list(itertools.islice(rows, 500)), [])
    return pa.Table.from_batches((pa.RecordBatch.from_pylist(batch, schema=schema) for batch in batches), schema)


def frame(table: pa.Table) -> pd.DataFrame:
    """Requests as a DataFrame; integers that may be missing are nullable, and lists stay in Arrow (see `flat`)."""

    def lists(kind: pa.DataType) -> pd.ArrowDtype | None:
        return pd.ArrowDtype(kind) if pa.types.is_list(kind) else None

    made: pd.DataFrame = table.to_pandas(integer_object_nulls=True, types_mapper=lists)
    return made.astype(dict.fromkeys(_INTEGERS, "Int64"))


def flat(column: pd.Series) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All values of a column of lists, one row after the other, and how many each row has; 0 if a row has no list.

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


def frame_of(records: list[Record]) -> pd.DataFrame:
    """Records as `Run.requests` has them.

    >>> frame_of([]).columns.tolist()[:3]
    ['index', 'scheduled_s', 'sent_s']
    """
    return frame(_table(({name: getattr(record, name) for name in REQUESTS.names} for record in records), REQUESTS))
