"""All runs under a root as one table, cached in `.index.parquet`; only new or changed runs are read again."""

import contextlib
import dataclasses
import fnmatch
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from harness.errors import HarnessError
from harness.model import Figure
from harness.store.access import DAMAGE
from harness.store.directory import directories, read_summary, source
from harness.store.run import Run, read_run

FILE = ".index.parquet"
PART = 200
FIELDS: Mapping[str, Callable[[Run], Any]] = {
    "run": lambda run: run.id,
    "state": lambda run: run.state,
    "created_utc": lambda run: run.file.created_utc.isoformat(),
    "workload": lambda run: run.file.workload.name,
    "model": lambda run: run.model.asked or run.model.source,
    "precision": lambda run: run.model.precision,
    "engine": lambda run: run.file.engine_asked,
    "engine_version": lambda run: run.engine and run.engine.version,
    "device": lambda run: run.engine and run.engine.device,
    "device_count": lambda run: run.engine and run.device_count,
    "gpu": lambda run: run.gpu,
    "load": lambda run: run.file.workload.load.shape,
    "users": lambda run: run.users,
    "rate_per_s": lambda run: run.file.workload.load.rate_per_s,
    "harness": lambda run: run.environment.harness,
    "error": lambda run: run.file.error,
    "sweep": lambda run: run.file.sweep and run.file.sweep.name,
    "swept": lambda run: run.file.sweep and " ".join(run.file.sweep.values),
}
"""Column -> its value from a run. Then the values of sweeps, each under its key, and the figures, under their names."""
_KEY = ("directory", "stamp")
_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def runs(root: Path, where: str | None = None) -> pd.DataFrame:
    """One row per run, oldest first: `FIELDS`, then the value of every figure (NaN if the run does not have it).

    A damaged run has the state `damaged` and the mistake in `error`. `where` is a condition for `matching`.
    """
    return matching(_fresh(root), where).drop(columns=list(_KEY))


def figures(root: Path, where: str | None = None) -> pd.DataFrame:
    """One row per figure of the runs in `runs`: the run's `FIELDS`, then the fields of `harness.model.Figure`."""
    return pd.concat(list(parts(root, where)), ignore_index=True)


def parts(root: Path, where: str | None = None) -> Iterator[pd.DataFrame]:
    """`figures` in tables of PART runs, at least one, with the same types: all figures together take much memory."""
    chosen = matching(_fresh(root), where)
    # Merged by directory, because a copied run keeps its id.
    chosen = chosen.loc[chosen["state"] != "damaged", ["directory", *FIELDS, *swept(chosen)]]
    names = [each.name for each in dataclasses.fields(Figure)]
    for first in range(0, max(len(chosen), 1), PART):
        some = chosen.iloc[first : first + PART]
        rows = [
            (name, *(getattr(figure, each) for each in names))  # dataclasses.asdict takes five times as long
            for name in some["directory"]
            for figure in _figures(root / name)
        ]
        table = pd.DataFrame(rows, columns=["directory", *names]).rename(columns={"name": "figure"})
        table = table.astype(dict.fromkeys(("value", "low", "high", "n"), float))
        yield some.merge(table, on="directory").drop(columns="directory")


def _figures(directory: Path) -> Sequence[Figure]:
    """The figures of a run; none if it was damaged after it was indexed."""
    from harness.analysis.summary import summary_of  # takes as long to import as the index to be read

    try:
        return (read_summary(directory) or summary_of(read_run(directory))).figures
    except HarnessError:
        return ()


def swept(table: pd.DataFrame) -> list[str]:
    """The columns with values of sweeps."""
    keys = dict.fromkeys(key for words in table["swept"].dropna() for key in words.split())
    return [key for key in keys if key in table and key not in FIELDS]


def matching(table: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """The rows that meet every condition of `COLUMN OP VALUE and COLUMN OP VALUE…`; all rows if `where` is None.

    OP is one of = != < <= > >=. Text is compared without case, and = and != take shell patterns. A missing value meets
    only `COLUMN=n/a`. HarnessError for an unknown column, or for text compared with a number.

    >>> table = pd.DataFrame({"run": ["a", "b"], "model": ["Qwen3-8B", None], "users": [8.0, 64.0]})
    >>> matching(table, "model=qwen* and users<=8")["run"].tolist(), matching(table, "model=n/a")["run"].tolist()
    (['a'], ['b'])
    """
    for condition in re.split(r"\s+and\s+", where.strip()) if where is not None else ():
        parts = re.fullmatch(r"([\w.]+)\s*(!=|<=|>=|=|<|>)\s*(.*)", condition.strip(), re.S)
        if parts is None:
            raise HarnessError(f"'{condition}' is not a condition", "write for instance 'model=qwen* and users>=8'")
        column, sign, value = parts[1], parts[2], parts[3].strip("'\" ")
        if column not in table:
            raise HarnessError(f"no run has '{column}'", f"columns are {', '.join(FIELDS)} and the names of figures")
        table = table[_holds(table[column], sign, value)]
    return table


def _holds(column: pd.Series, sign: str, value: str) -> pd.Series:
    missing = column.isna()
    if value == "n/a":
        return missing if sign == "=" else ~missing
    if pd.api.types.is_numeric_dtype(column):
        try:
            held = _COMPARE[sign](column, float(value))
        except ValueError:
            raise HarnessError(f"{column.name} is a number; '{value}' is not", "give a number, or n/a") from None
    elif sign in ("=", "!="):
        pattern = re.compile(fnmatch.translate(value.lower()))
        held = column.map(lambda text: (pattern.match(str(text).lower()) is not None) == (sign == "="))
    else:
        held = _COMPARE[sign](column.astype(str), value)
    kept: pd.Series = held.astype(bool) & ~missing
    return kept


def _fresh(root: Path) -> pd.DataFrame:
    """The index, with new and changed runs read again; it is stored again if it has changed."""
    # A stamp changes with run.json and with the code of the harness.
    stamps = {path.name: f"{changed_ns} {source()}" for path, changed_ns in directories(root)}
    known = _stored(root)
    valid = known["stamp"].eq(known["directory"].map(stamps.get)) & ~known["state"].isin(["running", "damaged"])
    kept = known[valid]
    new = [_row(root / name, stamps[name]) for name in stamps.keys() - set(kept["directory"])]
    if not new and len(kept) == len(known):
        return kept
    table = pd.concat([kept, pd.DataFrame(new)], ignore_index=True) if new else kept
    table = table.reindex(columns=list(dict.fromkeys([*_KEY, *FIELDS, *table.columns]))).sort_values("directory")
    table = _typed(table.reset_index(drop=True))
    with contextlib.suppress(OSError, *DAMAGE):  # if the root cannot be written, every call reads all runs
        partial = root / f"{FILE}.{os.getpid()}"
        table.to_parquet(partial)
        partial.rename(root / FILE)
    return table


_TEXT = {*_KEY, *FIELDS} - {"device_count", "users", "rate_per_s"}


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with text as objects and numbers as floats, for every version of pandas."""
    unsure = [str(name) for name, kind in table.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    texts = _TEXT | {name for name in unsure if table[name].map(lambda x: isinstance(x, str)).any()}
    table = table.astype({name: object if name in texts else float for name in table.columns})
    return table.assign(**{name: table[name].map(str, na_action="ignore") for name in texts - _TEXT})


def _stored(root: Path) -> pd.DataFrame:
    """The stored index; an empty one if it is absent, damaged or of another version."""
    with contextlib.suppress(OSError, *DAMAGE):
        table = pq.read_table(root / FILE)
        kinds = dict(zip(table.column_names, table.schema.types, strict=True))
        if {*_KEY, *FIELDS} <= kinds.keys() and all(str(kinds[name]).endswith(("string", "null")) for name in _TEXT):
            return _typed(table.to_pandas())
    return pd.DataFrame(columns=[*_KEY, *FIELDS])


def _row(directory: Path, stamp: str) -> dict[str, Any]:
    name = os.fsencode(directory.name).decode(errors="backslashreplace")
    row: dict[str, Any] = {"directory": name, "stamp": stamp, "run": name}
    try:
        run = read_run(directory)
        values = run.file.sweep.values if run.file.sweep else {}
        row |= {key: x if isinstance(x, int | float) else str(x) for key, x in values.items()}
        row |= {name: read(run) for name, read in FIELDS.items()}
        if run.state != "running":
            from harness.analysis.summary import summary_of

            summary = read_summary(directory) or summary_of(run)
            row |= {figure.name: figure.value for figure in summary.figures}
    except HarnessError as damaged:
        row |= {"state": "damaged", "error": damaged.what}
    return row
