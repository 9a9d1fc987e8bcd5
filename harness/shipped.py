"""Files found by name: workloads, traces, prompts, and the data that the harness ships."""

from __future__ import annotations

import contextlib
import difflib
import gzip
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from pydantic import ValidationError

from harness.economics.scenario import parse_scenario
from harness.errors import HarnessError
from harness.load import MOST, WHOLE, Trace
from harness.workload import Prompt, Workload, parse_workload

Prompts = tuple[Prompt, ...]
_PACKAGE = Path(str(resources.files("harness")))
_HEADERS = (["arrival_s", "input_tokens", "output_tokens"], ["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
"""The harness's own, and that of Azure's public traces with its dates and times."""


def data_path(name: str) -> Path:
    """Where one of the harness's own data files lies; `name` is relative to harness/data."""
    return _PACKAGE / "data" / name


def read_text(name: str) -> str:
    """The text of one of the harness's own data files."""
    return data_path(name).read_text(encoding="utf-8")


def read_workload(name_or_path: str, overrides: Sequence[str] = ()) -> Workload:
    """The workload in that file, else of that name in ./workloads, else of that name among the shipped ones.

    A trace or prompts file that it names is looked for beside it first. HarnessError for an unknown workload, or any
    mistake in it.
    """
    path, known = Path(name_or_path), _workload_files()
    if not _is_file(path):
        path = known.get(name_or_path.removesuffix(".yaml")) or _unknown("workload", path.stem, name_or_path, known)
    workload = parse_workload(_text(path), str(path), overrides)
    for part, key in (("requests", "prompts"), ("requests", "trace"), ("load", "trace")):
        inner = getattr(workload, part)
        if (named := getattr(inner, key)) is not None and _is_file(beside := path.parent / named):
            workload = workload.model_copy(update={part: inner.model_copy(update={key: str(beside)})})
    return workload


@dataclass(frozen=True, slots=True)
class Listed:
    """A workload as the list of them shows it."""

    name: str
    description: str
    requests: str
    load: str


def list_workloads() -> tuple[Listed, ...]:
    """The workloads that `read_workload` finds by name, sorted; one with a mistake is listed with it."""
    rows = []
    for name, path in sorted(_workload_files().items()):
        try:
            workload = read_workload(str(path))
            cells = [in_short(part.model_dump(exclude_defaults=True)) for part in (workload.requests, workload.load)]
            rows.append(Listed(name, workload.description, *cells))
        except HarnessError as error:
            rows.append(Listed(name, f"not usable: {error.what}", "", ""))
    return tuple(rows)


def read_trace(name_or_path: str) -> Trace:
    """A shipped trace by name, or a CSV file, plain or .gz, headed as ours or as Azure's.

    Lines that begin with # say where the data comes from. HarnessError with file, line and column for any mistake.
    """
    path = Path(name_or_path)
    if not _is_file(path):
        known = {file.name.removesuffix(".csv.gz"): file for file in data_path("traces").glob("*.csv.gz")}
        path = known.get(name_or_path) or _unknown("trace", name_or_path, name_or_path, known)
    form = f"expected the header {','.join(_HEADERS[0])} (or {','.join(_HEADERS[1])}), then three cells a line"
    notes: list[str] = []
    header: list[str] = []
    rows: list[tuple[float, int, int]] = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        cells = [cell.strip() for cell in line.split(",")]
        if line.startswith("#"):
            notes.append(line.strip("# \r"))
        elif header and len(cells) == 3:
            rows.append(_row(cells, header, f"{path}:{number}", rows[-1][0] if rows else -math.inf))
        elif not header and cells in _HEADERS:
            header = cells
        elif line.strip():
            raise HarnessError(f"{path}:{number}: '{line[:60]}' is not a row of a trace", form)
    if not rows:
        raise HarnessError(f"{path}: no rows", form)
    arrival, n_in, n_out = map(np.array, zip(*rows, strict=True))
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    return Trace(name, arrival - arrival[0], n_in, n_out, " ".join(notes) or str(path))


def _row(cells: list[str], header: list[str], place: str, after: float) -> tuple[float, int, int]:
    """A row's values: a time that is not before `after`, and two token counts."""
    values: list[float] = []
    for column, cell in zip(header, cells, strict=True):
        try:
            if column == "TIMESTAMP":
                values.append(datetime.fromisoformat(cell).replace(tzinfo=UTC).timestamp())
            else:
                values.append(float(cell) if column == "arrival_s" else int(cell))
        except ValueError:
            values.append(math.nan)
        if not (after <= values[0] < math.inf and (len(values) == 1 or 1 <= values[-1] <= MOST)):
            form = WHOLE if len(values) > 1 else "a time, not before that of the row above"
            raise HarnessError(f"{place}: {column} is '{cell}'", f"expected {form}")
    return values[0], int(values[1]), int(values[2])


def read_prompts(path: str) -> Prompts:
    """The texts of a JSONL file, one object a line. HarnessError with file and line for any mistake."""
    form, prompts = 'expected {"prompt": "text", "output_tokens": 64}, the latter optional', []
    for number, line in enumerate(_text(Path(path)).split("\n"), start=1):
        if line.strip():
            try:
                prompts.append(Prompt.model_validate_json(line))
            except ValidationError as error:
                raise HarnessError(f"{path}:{number}: '{line[:60]}': {error.errors()[0]['msg']}", form) from None
    if not prompts:
        raise HarnessError(f"{path}: no prompts", form)
    return tuple(prompts)


def _workload_files() -> dict[str, Path]:
    """Name -> file. A wheel carries the shipped ones in its data, a clone beside the package."""
    packaged = data_path("workloads")
    shipped = packaged if packaged.is_dir() else _PACKAGE.parent / "workloads"
    return {file.stem: file for folder in (shipped, Path("workloads")) for file in sorted(folder.glob("*.yaml"))}


def _unknown(kind: str, name: str, asked: str, known: Iterable[str]) -> NoReturn:
    match = difflib.get_close_matches(name, known, 1)
    near = f"did you mean '{match[0]}'? " if match else ""
    raise HarnessError(f"no {kind} '{asked:.80}'", f"{near}give a file, or one of {', '.join(sorted(known))}")


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError):  # a name that is too long
        return path.is_file()
    return False


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: no UTF-8, or a name with a null in it
        raise HarnessError(f"cannot read {path}: {error}", "give a readable UTF-8 text file") from None


def in_short(spec: Mapping[str, Any]) -> str:
    """What a workload says there, in a line: `count 16, input_tokens 64`; the kind of a shape or distribution alone."""
    parts = []
    for key, value in spec.items():
        if isinstance(value, dict):
            value = value.get("tokens", f"({in_short(value)})")
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(shown if key in ("shape", "distribution") else f"{key} {shown}")
    return ", ".join(parts)


def list_scenarios() -> tuple[tuple[str, str], ...]:
    """(name, description) of each shipped scenario."""
    files = sorted(data_path("scenarios").glob("*.yaml"))
    return tuple((file.stem, parse_scenario(_text(file), str(file)).description) for file in files)
