"""A run's directory: written once, read many times; docs/architecture.md lists its files.

During a run, its rows are in requests.jsonl (requests-0.jsonl… for several client processes), power.jsonl and
server.jsonl. Finished files are written under a temporary name and renamed.
"""

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
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

import harness
from harness.errors import HarnessError
from harness.model import EngineInfo, Summary
from harness.store import rows
from harness.store.access import DAMAGE, Journal, Row, read_bytes, writing
from harness.store.run import Run, read_run
from harness.store.run_file import SCHEMA_VERSION, RunFile, State


class RunWriter:
    """Writes a run into a new directory under `root`, from the start of the run until `finish`.

    `root`/latest points to the run from its start, so that after a crash no older run is taken for it.

    Every method raises HarnessError if the directory cannot be written. Rows written before can still be read.
    """

    def __init__(self, root: Path, file: RunFile) -> None:
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            for self.file in _numbered(file):
                self.directory = root / self.file.id
                with contextlib.suppress(FileExistsError):
                    self.directory.mkdir()
                    break
        self._journals: dict[str, Journal] = {}
        with contextlib.suppress(OSError):  # a file system without locks: the run will read as interrupted
            fcntl.flock(self._journal("requests"), fcntl.LOCK_EX)
        self.update()
        point_latest(root, self.file.id)

    def add(self, *of_one_kind: Row) -> None:
        """Write rows to their journal; times of readings are on CLOCK_MONOTONIC until `finish`."""
        for kind in {*map(type, of_one_kind)}:
            self._journal(rows.NAMES[kind]).add(*of_one_kind)

    def _journal(self, name: str) -> Journal:
        if name not in self._journals:
            self._journals[name] = Journal(self.directory / f"{name}.jsonl")
        return self._journals[name]

    def client_journal(self, client: int) -> Path:
        """Path of the journal of a client process."""
        return self.directory / f"requests-{client}.jsonl"

    def update(self, **changes: Any) -> None:
        """Change these fields of run.json, and rewrite the file."""
        self.file = RunFile.model_validate({**dict(self.file), **changes})
        with writing(self.directory):
            _write(self.directory / "run.json", _json(self.file))

    def finish(self, state: State, error: str | None = None) -> None:
        """Convert the journals to Parquet files, and write the final state to run.json."""
        with writing(self.directory):
            written = [name for name in rows.COLUMNS if (self.directory / f"{name}.jsonl").is_file()]
            saved = [self._save(name) for name in written]
            skipped = {name: lost for name, (_, _, lost) in zip(written, saved, strict=True) if lost}
            self.update(state=state, error=error, skipped=skipped, sha256={file: digest for file, digest, _ in saved})
            for each in self._journals.values():
                each.close()
            for path in self.directory.glob("*.jsonl"):
                path.unlink()

    def _save(self, name: str) -> tuple[str, str, int]:
        """Write a Parquet file from the journals; returns the file's name, its SHA-256, and the rows left out."""
        path, partial = self.directory / f"{name}.parquet", self.directory / f".{name}.parquet.part"
        lost = rows.save(self.directory, name, self.file, partial)
        digest = rows.digest_of(partial)
        partial.rename(path)
        return path.name, digest, lost


def _json(file: RunFile) -> str:
    try:
        return file.model_dump_json(indent=2)
    except PydanticSerializationError as wrapped:  # an interrupt inside a serializer comes as this error
        if KeyboardInterrupt.__name__ in str(wrapped):
            raise KeyboardInterrupt from None
        raise


def new_id(now: datetime, *names: str | None) -> str:
    """Name of a run's directory: UTC time, model and workload.

    >>> from datetime import UTC
    >>> new_id(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "org/Model-7B", "smoke")
    '20260102T030405Z-model-7b-smoke'
    """
    slugs = (re.sub(r"[^a-z0-9.]+", "-", Path(name).name.lower())[:40].strip("-.") for name in names if name)
    return "-".join(filter(None, [f"{now:%Y%m%dT%H%M%SZ}", *slugs]))


def _numbered(file: RunFile) -> Iterator[RunFile]:
    """The run under its own id, then under numbered ids: another run may have started in the same second."""
    yield file
    for number in itertools.count(2):
        yield file.model_copy(update={"id": f"{file.id}-{number}"})


def adopt(root: Path, files: Mapping[str, bytes]) -> str:
    """Store a run from another machine, given as file name -> content, in one step; returns its id here."""
    file = RunFile.model_validate_json(files["run.json"])
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".incoming-", dir=root))
        for name, content in files.items():
            if name not in ("run.json", "summary.json"):  # run.json may get another id, summary.json is rebuilt
                (partial / name).write_bytes(content)
        partial.chmod(0o755)
        for named in _numbered(file):
            _write(partial / "run.json", _json(named))
            try:
                partial.rename(root / named.id)
                break
            except OSError as taken:
                if taken.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    point_latest(root, named.id)
    return named.id


def point_latest(root: Path, run_id: str) -> None:
    """Make the link `root`/latest point to this run, unless `latest` is not a link or links are not supported."""
    latest, partial = root / "latest", root / f".latest.{os.getpid()}"
    if latest.is_symlink() or not latest.exists():
        with contextlib.suppress(OSError):
            partial.symlink_to(run_id, target_is_directory=True)
            partial.rename(latest)


def engine_record(info: EngineInfo) -> dict[str, Any]:
    """EngineInfo as JSON values, without the tokenizer."""
    fields = dataclasses.asdict(dataclasses.replace(info, encode=None))
    del fields["encode"]
    return fields


def _misnamed(reference: str, root: Path) -> None:
    """Raises HarnessError for a path of a directory of runs, or of a file."""
    for place in (Path(reference), root / reference):
        if runs := [path for path, _ in directories(place)]:
            fix = f"name a run in it, such as {runs[-1]}; `harness list runs --root {place}` prints all"
            raise HarnessError(f"'{reference}' is a directory of runs", fix)
    if (file := Path(reference)).is_file():
        stands = (file.parent / "run.json").exists()
        fix = f"name its directory: {file.parent}" if stands else "see `harness import`"
        raise HarnessError(f"'{reference}' is a file, not a run", fix)


def find_run(reference: str, root: Path) -> Path:
    """A run's directory from a path, a name under `root` (such as `latest`), or the unambiguous start of a name."""
    for candidate in (Path(reference), root / reference):
        try:
            (candidate / "run.json").lstat()
        except PermissionError:
            pass  # the file exists; `read_run` reports the error
        except (OSError, ValueError):  # for instance a name that is too long, or contains a null byte
            continue
        return candidate.resolve()
    matches = sorted(name for path in root.glob("*/run.json") if (name := path.parent.name).startswith(reference))
    if len(matches) > 1:
        what = f"'{reference}' could be any of {len(matches)} runs: {', '.join(matches[:3])}…"
        raise HarnessError(what, "give more of the name")
    if not matches:
        with contextlib.suppress(OSError):  # a name that is too long is no path
            _misnamed(reference, root)
        what = f"no run '{reference:.80}': neither a directory with a run.json nor a name under {root}"
        raise HarnessError(what, "see `harness list runs`, or give the run's directory")
    return (root / matches[0]).resolve()


def directories(root: Path) -> Iterator[tuple[Path, int]]:
    """Each run's directory under `root`, oldest first, and the mtime in ns of its run.json; 0 if that is refused."""
    with os.scandir(root) if root.is_dir() else contextlib.nullcontext(()) as entries:
        names = sorted(each.name for each in entries if not each.name.startswith(".") and not each.is_symlink())
    for name in names:
        try:
            yield root / name, os.lstat(f"{root}/{name}/run.json").st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # `read_run` reports it
            yield root / name, 0


def list_runs(root: Path) -> Iterator[tuple[Path, Run | HarnessError]]:
    """Directory and run for every run under `root`, oldest first; a damaged run is replaced by its error."""
    for path, _ in directories(root):
        try:
            yield path, read_run(path)
        except HarnessError as damaged:
            yield path, damaged


def write_summary(directory: Path, summary: Summary) -> None:
    """Write summary.json if the directory is writable."""
    with contextlib.suppress(OSError):
        of = {"harness": source(), "run_json": _digest(read_bytes(directory / "run.json"))}
        content = {"schema_version": SCHEMA_VERSION, **of, **dataclasses.asdict(summary)}
        body = json.dumps(content, indent=1).removeprefix("{\n")
        _write(directory / "summary.json", f'{{"digest": "{_digest(body.encode())}",\n{body}')


def _digest(body: bytes) -> str:
    """Of run.json, or of all lines of a summary.json but the first, which holds it."""
    return hashlib.sha256(body).hexdigest()


_SUMMARY = TypeAdapter(Summary)


def read_summary(directory: Path) -> Summary | None:
    """The stored summary; None if it is missing or damaged, or was made by other code or of another run.json."""
    try:
        content = read_bytes(directory / "summary.json")
        raw = orjson.loads(content)
        if raw["harness"] != source() or raw["digest"] != _digest(content.partition(b"\n")[2]):
            return None
        if raw["run_json"] != _digest(read_bytes(directory / "run.json")):
            return None
        return _SUMMARY.validate_python(raw | {"run": directory.name})
    except (OSError, *DAMAGE):
        return None


@lru_cache(maxsize=1)
def source() -> str:
    """The version and a digest of the code: in a clone, formulas can change without a new version."""
    code = b"".join(path.read_bytes() for path in sorted(Path(harness.__file__).parent.rglob("*.py")))
    return f"{harness.__version__}+{hashlib.sha256(code).hexdigest()[:12]}"


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)
