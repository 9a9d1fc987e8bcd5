"""A run's directory: written once, read many times; docs/architecture.md lists its files.

While a run goes on its rows are in requests.jsonl (of several client processes requests-0.jsonl…), power.jsonl and
server.jsonl. Finished files are written under a temporary name and renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

import harness
from harness.errors import HarnessError
from harness.model import EngineInfo, Figure, Finding, PowerSample, Record, ServerSample, Summary
from harness.store import journal
from harness.store.run_file import SCHEMA_VERSION, RunFile, State

_RESTORE = "restore the file, or measure the run again"
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
_COLUMNS = {"requests": REQUESTS, "power": POWER, "server": SERVER}
_CLOCK_TIMES = {"requests": (), "power": ("before_s", "after_s"), "server": ("time_s",)}
"""Columns that a journal has on CLOCK_MONOTONIC, and a finished file from second zero on."""
_INTEGERS = ("input_tokens", "output_tokens", "cached_tokens", "conversation", "turn", "stand_in_tokens", "client")
"""Columns that may be missing: nullable in pandas, so that None never becomes a float."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as read from disk."""

    directory: Path
    file: RunFile
    requests: pd.DataFrame
    power: pd.DataFrame
    server: pd.DataFrame

    @property
    def simulated(self) -> bool:
        return self.file.engine_asked == "simulated"


class RunWriter:
    """A run being written, in a directory of its own under `root`; open from the first file to the last rename.

    Every method raises HarnessError where the directory cannot be written. What was written by then still reads.
    """

    def __init__(self, root: Path, file: RunFile) -> None:
        with _writing(root):
            root.mkdir(parents=True, exist_ok=True)
            for self.file in _numbered(file):
                self.directory = root / self.file.id
                with contextlib.suppress(FileExistsError):
                    self.directory.mkdir()
                    break
        self._journals = {"requests": journal.Journal(self.directory / "requests.jsonl")}
        with contextlib.suppress(OSError):  # a file system without locks: the run will not read as running
            fcntl.flock(self._journals["requests"], fcntl.LOCK_EX)
        self.update()

    def add(self, record: Record) -> None:
        """Journal a finished request."""
        self._journals["requests"].add(record)

    def add_power(self, samples: Iterable[PowerSample]) -> None:
        """Journal a meter's readings, their times on CLOCK_MONOTONIC until `finish`."""
        self._add("power", samples)

    def add_server(self, samples: Iterable[ServerSample]) -> None:
        """Journal what a server says of itself, its times on CLOCK_MONOTONIC until `finish`."""
        self._add("server", samples)

    def _add(self, name: str, samples: Iterable[PowerSample | ServerSample]) -> None:
        if name not in self._journals:
            self._journals[name] = journal.Journal(self.directory / f"{name}.jsonl")
        self._journals[name].add(*samples)

    def client_journal(self, client: int) -> Path:
        """Where the client process of that number keeps its finished requests."""
        return self.directory / f"requests-{client}.jsonl"

    def update(self, **changes: Any) -> None:
        """Rewrite run.json with these fields changed."""
        self.file = self.file.model_copy(update=changes)
        with _writing(self.directory):
            _write(self.directory / "run.json", self.file.model_dump_json(indent=2))

    def finish(self, state: State, error: str | None = None) -> None:
        """Turn the journals into Parquet files, and state how the run ended."""
        with _writing(self.directory):
            written = [name for name in _COLUMNS if (self.directory / f"{name}.jsonl").is_file()]
            self.update(state=state, error=error, sha256=dict(map(self._save, written)))
            for each in self._journals.values():
                each.close()
            for path in self.directory.glob("*.jsonl"):
                path.unlink()

    def _save(self, name: str) -> tuple[str, str]:
        """The file that it made of the journal, and its digest."""
        path, partial = self.directory / f"{name}.parquet", self.directory / f".{name}.parquet.part"
        pq.write_table(_journalled(self.directory, name, self.file), partial, compression="zstd")
        digest = _sha256(partial)
        partial.rename(path)
        return path.name, digest


def new_id(now: datetime, *names: str | None) -> str:
    """A directory's name: the time, then the model and workload.

    >>> from datetime import UTC
    >>> new_id(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "org/Model-7B", "smoke")
    '20260102T030405Z-model-7b-smoke'
    """
    slugs = (re.sub(r"[^a-z0-9.]+", "-", Path(name).name.lower())[:40].strip("-.") for name in names if name)
    return "-".join(filter(None, [f"{now:%Y%m%dT%H%M%SZ}", *slugs]))


def _numbered(file: RunFile) -> Iterator[RunFile]:
    """The run by its name, and then numbered: others may have started in the same second."""
    yield file
    for number in itertools.count(2):
        yield file.model_copy(update={"id": f"{file.id}-{number}"})


def adopt(root: Path, files: Mapping[str, bytes]) -> str:
    """Store a run that was measured elsewhere, from its files by name, all at once; the name that it got here."""
    file = RunFile.model_validate_json(files["run.json"])
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".incoming-", dir=root))
        for name, content in files.items():
            if name not in ("run.json", "summary.json"):  # the one may get another name, and the other is rebuilt
                (partial / name).write_bytes(content)
        partial.chmod(0o755)
        for named in _numbered(file):
            _write(partial / "run.json", named.model_dump_json(indent=2))
            try:
                partial.rename(root / named.id)
                break
            except OSError as taken:
                if taken.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    return named.id


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as refused:
        raise journal.unwritable(directory, refused) from None


def point_latest(root: Path, run_id: str) -> None:
    """Make `root`/latest point to this run; left alone where it is no link, or where there can be none."""
    latest, partial = root / "latest", root / f".latest.{os.getpid()}"
    if latest.is_symlink() or not latest.exists():
        with contextlib.suppress(OSError):
            partial.symlink_to(run_id, target_is_directory=True)
            partial.rename(latest)


def engine_record(info: EngineInfo) -> dict[str, Any]:
    """EngineInfo as JSON values (its tokenizer left out)."""
    fields = dataclasses.asdict(dataclasses.replace(info, encode=None))
    del fields["encode"]
    return fields


def find_run(reference: str, root: Path) -> Path:
    """A run's directory from a path, a name under `root`, or a name's unambiguous beginning (`latest` is a name)."""
    for candidate in (Path(reference), root / reference):
        try:
            (candidate / "run.json").lstat()
        except PermissionError:
            pass  # it is there: `read` will say what is wrong with it
        except (OSError, ValueError):  # too long a name, or a null byte in it, among others
            continue
        return candidate.resolve()
    matches = sorted(name for path in root.glob("*/run.json") if (name := path.parent.name).startswith(reference))
    if len(matches) == 1:
        return (root / matches[0]).resolve()
    if matches:
        raise HarnessError(
            f"'{reference}' could be any of {len(matches)} runs: {', '.join(matches[:3])}…", "give more of the name"
        )
    raise HarnessError(
        f"no run '{reference:.80}': neither a directory with a run.json nor a name under {root}",
        "see `harness list runs`, or give the run's directory",
    )


def read_run(directory: Path) -> Run:
    """A run, whether finished or not: rows come from requests.parquet or else from the journals.

    Raises HarnessError naming the file that is missing, damaged or of a newer schema.
    """
    file = read_run_file(directory)
    requests, power, server = (_rows(directory, name, file) for name in _COLUMNS)
    if requests is None:
        raise HarnessError(f"{directory} has no requests.parquet", "the run's rows are gone; measure it again")
    others = [(table or schema.empty_table()).to_pandas() for table, schema in ((power, POWER), (server, SERVER))]
    return Run(directory, file, _frame(requests), *others)


def _rows(directory: Path, name: str, file: RunFile) -> pa.Table | None:
    """Rows from the Parquet file or else from the journal; None where there is neither."""
    path, begun = directory / f"{name}.parquet", directory / f"{name}.jsonl"
    try:
        if path.is_file():
            if file.sha256.get(path.name, digest := _sha256(path)) != digest:
                raise ValueError("it is not what the run wrote, by its SHA-256 in run.json")
            return pq.read_table(path, schema=_COLUMNS[name])
        path = begun
        return _journalled(directory, name, file) if path.is_file() else None
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as damaged:
        raise HarnessError(f"{path}: cannot be read: {damaged}", _RESTORE) from None


def read_run_file(directory: Path) -> RunFile:
    """run.json alone. A run that says `running` but whose process is gone reads as `interrupted`."""
    path = directory / "run.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise HarnessError(
                f"{path}: schema version {version} is newer than this harness reads ({SCHEMA_VERSION})",
                f"install a newer inference-cost-harness than {harness.__version__}",
            )
        file = RunFile.model_validate(raw)
    except FileNotFoundError:
        raise HarnessError(
            f"{path} does not exist", "give a run's directory, as `harness list runs` prints it"
        ) from None
    except (OSError, ValueError, AttributeError) as damaged:
        reason = damaged.errors()[0]["msg"] if isinstance(damaged, ValidationError) else str(damaged)
        raise HarnessError(f"{path}: not a readable run.json: {reason}", _RESTORE) from None
    if file.state == "running" and not _locked(directory / "requests.jsonl"):
        killed = "the measuring process ended without finishing the run (killed, or the machine stopped)"
        return file.model_copy(update={"state": "interrupted", "error": killed})
    return file


def list_runs(root: Path) -> Iterator[tuple[Path, RunFile | HarnessError]]:
    """Every run under `root`, oldest first; a damaged one gives its error, and the others still come."""
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        with contextlib.suppress(PermissionError):  # which `read_file` says in words
            if path.name.startswith(".") or path.is_symlink() or not (path / "run.json").exists():
                continue
        try:
            yield path, read_run_file(path)
        except HarnessError as damaged:
            yield path, damaged


def write_summary(directory: Path, summary: Summary) -> None:
    """Store the derived figures beside the raw rows, where the directory can be written."""
    content = {"schema_version": SCHEMA_VERSION, "harness": source(), **dataclasses.asdict(summary)}
    with contextlib.suppress(OSError):
        _write(directory / "summary.json", json.dumps(content, indent=1))


_SUMMARY = TypeAdapter(Summary)


def read_summary(directory: Path) -> Summary | None:
    """The stored summary; None where there is none that this very harness wrote."""
    try:
        raw = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        if raw["harness"] != source():
            return None
        _SUMMARY.validate_python(raw)
        return Summary(
            run=raw["run"],
            state=raw["state"],
            figures=tuple(Figure(**figure) for figure in raw["figures"]),
            errors=raw["errors"],
            findings=tuple(Finding(**finding) for finding in raw["findings"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


@lru_cache(maxsize=1)
def source() -> str:
    """The version, and a digest of the code: in a clone the formulas change while the version stays."""
    code = b"".join(path.read_bytes() for path in sorted(Path(harness.__file__).parent.rglob("*.py")))
    return f"{harness.__version__}+{hashlib.sha256(code).hexdigest()[:12]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _locked(path: Path) -> bool:
    """Whether the process that writes the run has it open; a process number can be another's, or a container's."""
    with contextlib.suppress(OSError), path.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _journalled(directory: Path, name: str, file: RunFile) -> pa.Table:
    """The rows of the journals, those of several client processes in the order of the schedule.

    Their times are made to count from second zero; they stay as they are where the load never began.
    """
    zero_s = 0.0 if file.clock is None else file.clock.monotonic_s
    tables = []
    for path in sorted(directory.glob(f"{name}*.jsonl")):
        rows = ({**row, **{key: row[key] - zero_s for key in _CLOCK_TIMES[name]}} for row in journal.rows(path))
        tables.append(_table(rows, _COLUMNS[name]))
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).sort_by("index")


def _table(rows: Iterator[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Made in batches: as Python objects, the rows of a long run take several times the memory of the table."""
    batches = iter(lambda: list(itertools.islice(rows, 500)), [])
    return pa.Table.from_batches((pa.RecordBatch.from_pylist(batch, schema=schema) for batch in batches), schema)


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True)
    return frame.astype(dict.fromkeys(_INTEGERS, "Int64"))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)


def frame_of(records: list[Record]) -> pd.DataFrame:
    """Records as the table that `read` gives.

    >>> frame_of([]).columns.tolist()[:3]
    ['index', 'scheduled_s', 'sent_s']
    """
    return _frame(_table(({name: getattr(record, name) for name in REQUESTS.names} for record in records), REQUESTS))
