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
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import TypeAdapter

import harness
from harness.errors import HarnessError
from harness.model import EngineInfo, Figure, Finding, PowerSample, Record, ServerSample, Summary
from harness.store import journal, rows
from harness.store.run import Run, read_run
from harness.store.run_file import SCHEMA_VERSION, RunFile, State


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
        self.file = RunFile.model_validate({**dict(self.file), **changes})
        with _writing(self.directory):
            _write(self.directory / "run.json", self.file.model_dump_json(indent=2))

    def finish(self, state: State, error: str | None = None) -> None:
        """Turn the journals into Parquet files, and state how the run ended."""
        with _writing(self.directory):
            written = [name for name in rows.COLUMNS if (self.directory / f"{name}.jsonl").is_file()]
            self.update(state=state, error=error, sha256=dict(map(self._save, written)))
            for each in self._journals.values():
                each.close()
            for path in self.directory.glob("*.jsonl"):
                path.unlink()

    def _save(self, name: str) -> tuple[str, str]:
        """The file that it made of the journal, and its digest."""
        path, partial = self.directory / f"{name}.parquet", self.directory / f".{name}.parquet.part"
        pq.write_table(rows.journalled(self.directory, name, self.file), partial, compression="zstd")
        digest = rows.digest_of(partial)
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
            pass  # it is there: `read_run` will say what is wrong with it
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


def list_runs(root: Path) -> Iterator[tuple[Path, Run | HarnessError]]:
    """Every run under `root`, oldest first; a damaged one gives its error, and the others still come."""
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        with contextlib.suppress(PermissionError):  # which `read_run` says in words
            if path.name.startswith(".") or path.is_symlink() or not (path / "run.json").exists():
                continue
        try:
            yield path, read_run(path)
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


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)
