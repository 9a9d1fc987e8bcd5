"""Tables of a run: requests, power readings and server metrics, from Parquet files or from journals."""

import contextlib
import ctypes
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.model import MOST_TOKENS, PowerSample, Record, ServerSample
from harness.store.access import DAMAGE, RESTORE, journalled, reading
from harness.store.run_file import RunFile

pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own allocator keeps more of what was freed
with contextlib.suppress(AttributeError):  # not glibc, whose threshold otherwise grows with the arrays that are freed
    ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: larger arrays go back to the system when they are freed
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
NAMES: Mapping[type, str] = {Record: "requests", PowerSample: "power", ServerSample: "server"}
_UNREAD = {"device", "domain"}
"""Columns that no analysis reads of the readings of one device."""
_NEEDED = {each.name for noun in NAMES for each in dataclasses.fields(noun) if not str(each.type).endswith("None")}
"""Columns without which a row is none."""
_TOKENS = {each.name for each in dataclasses.fields(Record) if each.name.endswith(("_tokens", "_asked"))}
_BATCH = 500
"""Rows that are made or examined at once: the rows of a long run as Python objects take several times its memory."""
_BUFFER_BYTES = 1 << 16
_GROUP = 1 << 17
"""Rows of a row group of a Parquet file."""
_CLOCK_TIMES = {"requests": (), "power": ("before_s", "after_s"), "server": ("time_s",)}
"""Columns with times on CLOCK_MONOTONIC in a journal, and in seconds since the start of the load in a finished file."""


def read_rows(directory: Path, name: str, file: RunFile) -> tuple[pa.Table, int]:
    """Rows from the Parquet file, or else from the journals, and the number of damaged rows, which are left out.

    `name` is one of COLUMNS. No rows if a run has neither file. HarnessError if a file is damaged as a whole or lost:
    every run has requests, and run.json has the digests of the others.
    """
    finished, begun = directory / f"{name}.parquet", directory / f"{name}.jsonl"
    path = next((each for each in (finished, begun) if each.is_file()), None)
    if path is None:
        if name == "requests" or finished.name in file.sha256:
            raise HarnessError(f"{directory} has no {finished.name}", RESTORE)
        return COLUMNS[name].empty_table(), 0
    with reading(path):
        read = list[int]()
        if path == begun:
            table = _together(_journal_rows(directory, name, file, read), name)
        else:
            _verify(path, file)
            with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as stored:
                table = _together(map(_sound, _fitting(stored, COLUMNS[name])), name)
                read.append(stored.metadata.num_rows)
        lost = sum(read) - len(table)
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


def save(directory: Path, name: str, file: RunFile, to: Path) -> int:
    """Write the rows of the journals as a Parquet file; returns the number left out.

    They are written as they are read: the rows of a long run take gigabytes.
    """
    read, written = list[int](), 0
    batches = _journal_rows(directory, name, file, read)
    with pq.ParquetWriter(to, COLUMNS[name], compression="zstd") as writer:
        while some := list(itertools.islice(batches, _GROUP // _BATCH)):
            writer.write_table(whole := pa.Table.from_batches(some, COLUMNS[name]))
            written += len(whole)
    return sum(read) - written


def _journal_rows(directory: Path, name: str, file: RunFile, read: list[int]) -> Iterator[pa.RecordBatch]:
    """The good rows of the journals, some at a time; appends to `read` how many were read for them.

    Times are in seconds since the start of the load, or on CLOCK_MONOTONIC if the load never started.
    """
    zero_s = 0.0 if file.clock is None else file.clock.monotonic_s
    paths = [path for path in sorted(directory.glob(f"{name}*.jsonl")) if path.is_file()]
    rows = itertools.chain.from_iterable(map(journalled, paths))
    while some := list(itertools.islice(rows, _BATCH)):
        read.append(len(some))
        yield from map(_sound, _batches(some, name, zero_s))


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
            good = _possible(values, name, column.type.value_type)
            if pa.types.is_floating(column.type.value_type):  # times never decrease within a row
                good[1:] &= (np.diff(values) >= 0) | np.isin(np.arange(1, len(values)), ends)
            kept[np.searchsorted(ends, np.flatnonzero(~good), side="right")] = False
        elif not pa.types.is_string(column.type):
            values = column.to_numpy(zero_copy_only=False)  # a missing one becomes NaN
            kept &= _possible(values, name, column.type) | (np.isnan(values) & (name not in _NEEDED))
    kept &= sizes[0] == sizes[1] if sizes else True
    return batch if kept.all() else batch.filter(pa.array(kept))


def _possible(values: NDArray[Any], name: str, kind: pa.DataType) -> NDArray[np.bool_]:
    least, most = 0 if pa.types.is_integer(kind) else -LARGEST, MOST_TOKENS if name in _TOKENS else LARGEST
    return (values >= least) & (values <= most)


def _together(batches: Iterable[pa.RecordBatch], name: str) -> pa.Table:
    """The batches as a table. Of requests, missing values take no memory in it, and a text is kept once."""
    if name != "requests":
        return pa.Table.from_batches(list(batches), COLUMNS[name])
    found: dict[str, list[pa.Array]] = {each: [] for each in REQUESTS.names}
    for batch in batches:
        for chunks, column in zip(found.values(), batch.columns, strict=True):
            if column.null_count == len(column):
                column = pa.nulls(len(column))
            elif pa.types.is_string(column.type):
                column = column.dictionary_encode()
            chunks.append(column)
    columns = {}
    for each in REQUESTS:  # of the column's type, or of no type if every value is missing
        chunks, kind = found.pop(each.name), each.type
        if not pa.types.is_list(kind):
            kind = next((chunk.type for chunk in chunks if chunk.type != pa.null()), pa.null())
        columns[each.name] = pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind)
    return pa.table(columns)


def frame(tables: list[pa.Table]) -> pd.DataFrame:
    """Requests as a DataFrame in order of sending; lists stay in Arrow (see `flat`).

    The one table is taken from the list: a column is freed when its values are made, where nothing else refers to it.
    """
    columns = dict(zip(tables[0].column_names, tables.pop().columns, strict=True))
    sent_s = columns["sent_s"].to_numpy()
    order = None if (sent_s[1:] >= sent_s[:-1]).all() else np.argsort(sent_s, kind="stable")
    del sent_s
    found = {}
    for each in REQUESTS:
        found[each.name] = _values(columns.pop(each.name), each, order)
        free()
    return pd.DataFrame(found, copy=False)


def free() -> None:
    """Give memory that is not used any more back to the system: between many small arrays it would stay."""
    pa.default_memory_pool().release_unused()


def _values(column: pa.ChunkedArray, field: pa.Field, order: NDArray[np.int64] | None) -> Any:
    """The values of a column of requests in this order. One value that all rows share is kept once."""
    kind, n, absent = field.type, len(column), column.null_count == len(column) and field.name not in _NEEDED
    if absent and kind == pa.int64():
        return pd.arrays.IntegerArray(np.broadcast_to(np.int64(1), n), np.broadcast_to(True, n))
    if absent and kind == pa.string():
        return pd.Categorical.from_codes(np.broadcast_to(np.int8(-1), n), pd.Index([], dtype="str"))
    if absent:
        return np.broadcast_to(np.nan, n)
    narrow = {pa.int64(): pa.int32(), REQUESTS.field("arrival_tokens").type: pa.list_(pa.uint8())}.get(kind, kind)
    with contextlib.suppress(pa.ArrowInvalid):  # larger numbers
        column = column.cast(narrow)
    if order is not None:
        column = _taken(column.unify_dictionaries(), order)
    if pa.types.is_list(kind):
        return pd.arrays.ArrowExtensionArray(column)
    if kind == pa.string():
        return column.cast(pa.dictionary(pa.int32(), pa.string())).unify_dictionaries().to_pandas()
    if kind == pa.int64() and field.name not in _NEEDED:  # otherwise those with a missing value become floats
        return column.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype(), kind: pd.Int64Dtype()}.get)
    return column.to_numpy()


def _taken(column: pa.ChunkedArray, order: NDArray[np.int64]) -> pa.ChunkedArray:
    """The rows in this order, some at a time: they are nearly in that order already."""
    chunks = []
    for first in range(0, len(order), _GROUP):
        rows = order[first : first + _GROUP]
        low = int(rows.min())
        taken = column.slice(low, int(rows.max()) + 1 - low).take(pa.array(rows - low))
        chunks.append(pa.concat_arrays([*taken.chunks, taken.chunk(0)[:0]]))  # in a copy, which has no room left over
    return pa.chunked_array(chunks, column.type)


def flat(column: pd.Series) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All values of a column of lists, one row after the other, and the length of each list; 0 for a missing list.

    >>> values, sizes = flat(pd.Series([[1.0, 2.0], None], dtype=pd.ArrowDtype(pa.list_(pa.float64()))))
    >>> values.tolist(), sizes.tolist()
    ([1.0, 2.0], [2, 0])
    """
    lists = pa.chunked_array(pa.array(column))
    sizes = pc.fill_null(pc.list_value_length(lists), 0)
    return np.asarray(pc.list_flatten(lists).to_numpy(), float), np.asarray(sizes.to_numpy(), np.int64)


def digest_of(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
