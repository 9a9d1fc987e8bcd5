"""Files found by name: workloads, traces, prompts, and the data that the harness ships."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from harness.config import AS_WRITTEN, Values, near
from harness.errors import HarnessError
from harness.files import PACKAGE, data_path, read_text
from harness.workload.arrivals import Load, Trace
from harness.workload.datasets import parse_prompts, parse_trace
from harness.workload.schema import MixedPart, Prompts, Requests, Workload, parse_workload


def read_workload(name_or_path: str, overrides: Values = AS_WRITTEN) -> Workload:
    """The workload in that file, else of that name in ./workloads, else of that name among the shipped ones.

    A trace or prompts file that it names is looked for beside it first. HarnessError for an unknown workload, or any
    mistake in it.
    """
    path, known = Path(name_or_path), _workload_files()
    if not _is_file(path):
        path = known.get(name_or_path.removesuffix(".yaml")) or _unknown("workload", path.stem, name_or_path, known)
    workload = parse_workload(read_text(path), str(path), overrides)
    requests = _beside(workload.requests, path.parent)
    if requests.parts:
        parts = tuple(_beside(part, path.parent) for part in requests.parts)
        requests = requests.model_copy(update={"parts": parts})
    return workload.model_copy(update={"requests": requests, "load": _beside(workload.load, path.parent)})


_Named = TypeVar("_Named", Requests, MixedPart, Load)


def _beside(spec: _Named, folder: Path) -> _Named:
    """With the files that it names and that lie in that folder as paths."""
    named = {key: getattr(spec, key, None) for key in ("prompts", "trace")}
    found = {key: str(folder / name) for key, name in named.items() if name is not None and _is_file(folder / name)}
    return spec.model_copy(update=found)


def read_files(workload: Workload) -> dict[str, Trace | Prompts]:
    """The traces and prompts that the workload names, by those names."""
    contents = workload.requests.contents
    traces = {workload.load.trace, *(content.trace for content in contents)}
    files: dict[str, Trace | Prompts] = {name: read_trace(name) for name in traces if name is not None}
    return files | {name: read_prompts(name) for content in contents if (name := content.prompts) is not None}


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
    """A shipped trace by name, or a file, plain or .gz. HarnessError with file, line and column for any mistake."""
    path = Path(name_or_path)
    if not _is_file(path):
        known = {file.name.removesuffix(".csv.gz"): file for file in data_path("traces").glob("*.csv.gz")}
        path = known.get(name_or_path) or _unknown("trace", name_or_path, name_or_path, known)
    return parse_trace(read_text(path), path)


def read_prompts(path: str) -> Prompts:
    """The conversations of a prompts file. HarnessError with file and line for any mistake."""
    return parse_prompts(read_text(Path(path)), Path(path))


def _workload_files() -> dict[str, Path]:
    """Name -> file. A wheel carries the shipped ones in its data, a clone beside the package."""
    packaged = data_path("workloads")
    shipped = packaged if packaged.is_dir() else PACKAGE.parent / "workloads"
    return {file.stem: file for folder in (shipped, Path("workloads")) for file in sorted(folder.glob("*.yaml"))}


def _unknown(kind: str, name: str, asked: str, known: Iterable[str]) -> NoReturn:
    raise HarnessError(
        f"no {kind} '{asked:.80}'", f"{near(name, known)}give a file, or one of {', '.join(sorted(known))}"
    )


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError):  # a name that is too long
        return path.is_file()
    return False


def in_short(spec: Mapping[str, Any]) -> str:
    """What a workload says there, in a line: `count 16, input_tokens 64`; the kind of a shape or distribution alone."""
    parts = []
    for key, value in sorted(spec.items(), key=lambda item: item[0] != "count"):
        if isinstance(value, dict):
            fixed = value.get("tokens", value.get("seconds")) if value.get("distribution") == "fixed" else None
            value = f"({in_short(value)})" if fixed is None else fixed
        elif isinstance(value, list | tuple):
            value = len(value)
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(shown if key in ("shape", "distribution") else f"{key} {shown}")
    return ", ".join(parts)
