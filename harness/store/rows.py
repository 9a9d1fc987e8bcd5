"""Tables of a run: requests, power readings and server metrics, from Parquet files or from journals."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
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
from harness.store.access import DAMAGE, reading
from harness.store.run_file import RunFile

pa.set_memory_pool(pa.system_memory_pool())  # the default one keeps what a long run has freed: 250 MB of 700
LARGEST = 1e15
"""Largest number of a row, in either direction; more is damage, and would overflow in products."""
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
_UNREAD = {"device", "domain", "memory_clock_hz", "utilisation", "memory_used_bytes", "power_limit_w"}
"""Columns that no analysis reads of the readings of one device."""
_NEEDED = {
    each.name
    for noun in (Record, PowerSample, ServerSample)
    for each in dataclasses.fields(noun)
    if not str(each.type).endswith("None")
}
"""Columns without which a row is none."""
_BATCH = 500
"""Rows that are made or examined at once: the rows of a long run as Python objects take several times its memory."""
_BUFFER_BYTES = 1 << 16
_GROUP = 1 << 17
"""Rows of a row group of a Parquet file."""
_CLOCK_TIMES = {"requests": (), "power": ("before_s", "after_s"), "server": ("time_s",)}
"""Columns with times on CLOCK_MONOTONIC in a journal, and in seconds since the start of the load in a finished file."""


def read_rows(directory: Path, name: str, file: RunFile) -> tuple[pa.Table, int]:
    """Rows from the Parquet file, or else from the journals, and the number of damaged rows, which are left out.

    `name` is one of COLUMNS. No rows if a run has neither file. HarnessError if a file is damaged as a whole, or if
    there are no requests.
    """
    finished, begun = directory / f"{name}.parquet", directory / f"{name}.jsonl"
    path = next((each for each in (finished, begun) if each.is_file()), None)
    if path is None:
        if name == "requests":
            raise HarnessError(f"{directory} has no requests.parquet", "the run's rows are gone; measure it again")
        return COLUMNS[name].empty_table(), 0
    with reading(path):
        if path == begun:
            table, lost = journalled(directory, name, file)
        else:
            _verify(path, file)
            read, batches = 0, list[pa.RecordBatch]()
            with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as stored:
                for batch in _fitting(stored, COLUMNS[name]):
                    batches.append(_sound(batch))
                    read += len(batch)
            table = pa.Table.from_batches(batches, COLUMNS[name])
            lost = read - len(table)
        if lost and not len(table):
            raise ValueError(f"none of its {lost:,} rows can be one of a run")
    return table, lost


def read_device(path: Path, file: RunFile, device: str, domain: str, verify: bool) -> tuple[pd.DataFrame, int]:
    """The readings of one device and domain in a power.parquet, and the number left out. HarnessError if it is damaged.

    Without the columns that no analysis reads. `verify`: compare the file's digest first.
    """
    schema = pa.schema([each for each in COLUMNS["power"] if each.name not in _UNREAD])
    errors, n, read = [schema.empty_table()["error"]], 0, 0
    with reading(path):
        if verify:
            _verify(path, file)
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as stored:
            names = [each.name for each in schema if pa.types.is_floating(each.type)]
            columns: dict[str, NDArray[np.float64]] = {}
            for batch in _fitting(stored, COLUMNS["power"]):
                kept = pc.and_(pc.equal(batch["device"], device), pc.equal(batch["domain"], domain))
                batch = batch.filter(kept)
                read, batch = read + len(batch), _sound(batch)
                for name in names:
                    if name not in columns and batch[name].null_count < len(batch):
                        columns[name] = np.empty(stored.metadata.num_rows)  # memory that is not written to is not used
                        columns[name][:n] = np.nan
                    if name in columns:
                        columns[name][n : n + len(batch)] = batch[name].to_numpy(zero_copy_only=False)
                errors.append(batch["error"])
                n += len(batch)
    texts = pa.chunked_array([each for some in errors for each in getattr(some, "chunks", [some])], pa.string())
    rows = {name: columns[name][:n] if name in columns else np.broadcast_to(np.nan, n) for name in names}
    return pd.DataFrame({**rows, "error": texts.to_pandas()}, copy=False), read - n


def _verify(path: Path, file: RunFile) -> None:
    if file.sha256.get(path.name, digest := digest_of(path)) != digest:
        raise ValueError("its SHA-256 differs from that in run.json")


def _fitting(stored: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a file with these columns, some at a time: that takes little memory beside them."""
    names = [each for each in schema.names if each in stored.schema_arrow.names]
    for batch in stored.iter_batches(20 * _BATCH, columns=names, use_threads=False):
        columns = [batch[x.name].cast(x.type) if x.name in names else pa.nulls(len(batch), x.type) for x in schema]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def journalled(directory: Path, name: str, file: RunFile) -> tuple[pa.Table, int]:
    """The rows of the journals, those of several client processes sorted by request index; and the number left out.

    Times are in seconds since the start of the load, or on CLOCK_MONOTONIC if the load never started.
    """
    read, batches = 0, list[pa.RecordBatch]()
    paths = _journals(directory, name)
    for path in paths:
        for some, count in _journal_rows(path, name, file):
            batches += some
            read += count
    table = pa.Table.from_batches(batches, COLUMNS[name])
    return table if len(paths) == 1 else table.sort_by("index"), read - len(table)


def save(directory: Path, name: str, file: RunFile, to: Path) -> int:
    """Write the rows of the journals as a Parquet file; returns the number left out.

    Those of one journal are written as they are read: the rows of a long run take gigabytes.
    """
    paths = _journals(directory, name)
    if len(paths) > 1:
        table, lost = journalled(directory, name, file)
        pq.write_table(table, to, compression="zstd")
        return lost
    read, waiting = 0, list[pa.RecordBatch]()
    with pq.ParquetWriter(to, COLUMNS[name], compression="zstd") as writer:
        for some, count in _journal_rows(paths[0], name, file):
            waiting += some
            read += count
            if len(waiting) * _BATCH >= _GROUP:
                writer.write_table(whole := pa.Table.from_batches(waiting, COLUMNS[name]))
                read, waiting = read - len(whole), []
        writer.write_table(whole := pa.Table.from_batches(waiting, COLUMNS[name]))
    return read - len(whole)


def _journals(directory: Path, name: str) -> list[Path]:
    return [path for path in sorted(directory.glob(f"{name}*.jsonl")) if path.is_file()]


def _journal_rows(path: Path, name: str, file: RunFile) -> Iterator[tuple[list[pa.RecordBatch], int]]:
    """The good rows of a journal, some at a time, and how many were read for them."""
    zero_s = 0.0 if file.clock is None else file.clock.monotonic_s
    rows = journal.rows(path)
    while some := list(itertools.islice(rows, _BATCH)):
        yield list(map(_sound, _batches(some, name, zero_s))), len(some)


def _batches(rows: Sequence[Any], name: str, zero_s: float) -> Iterator[pa.RecordBatch]:
    """The rows as batches, without those that do not fit the columns."""
    try:
        shifted = [{**row, **{key: row[key] - zero_s for key in _CLOCK_TIMES[name]}} for row in rows]
        yield pa.RecordBatch.from_pylist(shifted, schema=COLUMNS[name])
    except DAMAGE:
        if len(rows) > 1:
            middle = len(rows) // 2
            yield from _batches(rows[:middle], name, zero_s)
            yield from _batches(rows[middle:], name, zero_s)


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that a run can have: no needed value is missing, none is too large, no count is negative."""
    kept, sizes = np.ones(len(batch), dtype=bool), []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in _NEEDED:
            kept &= column.is_valid().to_numpy(zero_copy_only=False)
        if pa.types.is_list(column.type):
            sizes.append(pc.fill_null(pc.list_value_length(column), 0).to_numpy())
            ends = np.cumsum(sizes[-1])
            values = column.flatten().to_numpy(zero_copy_only=False)
            good = _possible(values, column.type.value_type)
            if pa.types.is_floating(column.type.value_type):  # times never decrease within a row
                good[1:] &= (np.diff(values) >= 0) | np.isin(np.arange(1, len(values)), ends)
            kept[np.searchsorted(ends, np.flatnonzero(~good), side="right")] = False
        elif not pa.types.is_string(column.type):
            values = column.to_numpy(zero_copy_only=False)  # a missing one becomes NaN
            kept &= _possible(values, column.type) | (np.isnan(values) & (name not in _NEEDED))
    kept &= sizes[0] == sizes[1] if sizes else True
    return batch if kept.all() else batch.filter(pa.array(kept))


def _possible(values: NDArray[Any], kind: pa.DataType) -> NDArray[np.bool_]:
    return (values >= (0 if pa.types.is_integer(kind) else -LARGEST)) & (values <= LARGEST)


def frame(table: pa.Table) -> pd.DataFrame:
    """Requests as a DataFrame, with nullable integers; lists stay in Arrow (see `flat`). The table is used up."""
    kinds: dict[pa.DataType, Any] = {kind: pd.ArrowDtype(kind) for kind in table.schema.types if pa.types.is_list(kind)}
    kinds[pa.int64()] = pd.Int64Dtype()  # otherwise those with a missing value become floats
    requests = pd.DataFrame(table.to_pandas(types_mapper=kinds.get, split_blocks=True, self_destruct=True))
    del table
    pa.default_memory_pool().release_unused()
    return requests.astype(dict.fromkeys(("index", "input_asked", "output_asked"), "int64"))


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
