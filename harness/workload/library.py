"""Workloads, traces and prompts, found by name or path."""

import os.path
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from harness.config import AS_WRITTEN, Values, near
from harness.errors import HarnessError
from harness.files import PACKAGE, data_path, read_text
from harness.workload.arrivals import Load, Trace
from harness.workload.datasets import parse_prompts, parse_trace
from harness.workload.schema import FILL, MixedPart, Prompts, Requests, Workload, parse_workload


def read_workload(name_or_path: str, overrides: Values = AS_WRITTEN, by: Mapping[str, str] = AS_WRITTEN) -> Workload:
    """The workload in a file, or else of that name in ./workloads, or else a shipped one of that name.

    A trace or prompts file named in the workload is first looked for in the workload's directory. HarnessError for an
    unknown workload, or a mistake in the file or the overrides (see `parse_workload`).
    """
    path = _find("workload", name_or_path, name_or_path.removesuffix(".yaml"), _workload_files())
    workload = parse_workload(read_text(path), str(path), overrides, by)
    requests = _beside(workload.requests, path.parent)
    if requests.parts:
        parts = tuple(_beside(part, path.parent) for part in requests.parts)
        requests = requests.model_copy(update={"parts": parts})
    return workload.model_copy(update={"requests": requests, "load": _beside(workload.load, path.parent)})


_Named = TypeVar("_Named", Requests, MixedPart, Load)


def _beside(spec: _Named, folder: Path) -> _Named:
    """`spec` with the path of each trace or prompts file that is in `folder`."""
    named = {key: folder / name for key in ("prompts", "trace") if (name := getattr(spec, key, None)) is not None}
    return spec.model_copy(update={key: str(path) for key, path in named.items() if _is_file(path)})


def read_files(workload: Workload) -> dict[str, Trace | Prompts | str]:
    """Name in the workload -> the trace or prompts of that name; a shipped text is named as in `FILL`."""
    contents = workload.requests.contents
    traces = {workload.load.trace, *(content.trace for content in contents)}
    files: dict[str, Trace | Prompts | str] = {name: read_trace(name) for name in traces if name is not None}
    for fill in {content.fill for content in contents} - {None}:
        files[FILL.format(fill)] = read_text(data_path("texts") / f"{fill}.txt.gz")
    return files | {name: read_prompts(name) for content in contents if (name := content.prompts) is not None}


def list_workloads() -> tuple[tuple[str, str, str, str], ...]:
    """(name, requests, load, description) of the workloads that `read_workload` finds by name, sorted by name.

    The description of an invalid workload is its error.
    """
    rows = []
    for name, path in sorted(_workload_files().items()):
        try:
            workload = read_workload(str(path))
            requests, load = (part.model_dump(exclude_defaults=True) for part in (workload.requests, workload.load))
            rows.append((name, in_short(requests), in_short(load), workload.description))
        except HarnessError as error:
            rows.append((name, "", "", f"not usable: {error.what}"))
    return tuple(rows)


def read_trace(name_or_path: str) -> Trace:
    """A trace in a file, plain or .gz, or a shipped trace by name. HarnessError with file, line and column."""
    shipped = {file.name.removesuffix(".csv.gz"): file for file in data_path("traces").glob("*.csv.gz")}
    path = _find("trace", name_or_path, name_or_path, shipped)
    return parse_trace(read_text(path), path)


def read_prompts(path: str) -> Prompts:
    """The conversations of a prompts file. HarnessError with file and line for a mistake."""
    return parse_prompts(read_text(Path(path)), Path(path))


def _workload_files() -> dict[str, Path]:
    """Name -> file. The shipped ones are in the package's data in a wheel, and beside the package in a clone."""
    packaged = data_path("workloads")
    shipped = packaged if packaged.is_dir() else PACKAGE.parent / "workloads"
    return {file.stem: file for folder in (shipped, Path("workloads")) for file in sorted(folder.glob("*.yaml"))}


def _find(kind: str, asked: str, name: str, known: Mapping[str, Path]) -> Path:
    """The path `asked` if it is a file, or else the known file of that name. HarnessError if there is neither."""
    if _is_file(asked):
        return Path(asked)
    if name not in known:
        meant = f"did you mean '{asked}.yaml'? " if _is_file(f"{asked}.yaml") else near(Path(asked).stem, known)
        fix = f"{meant}give a file, or one of {', '.join(sorted(known))}"
        raise HarnessError(f"no {kind} '{asked:.80}'", fix)
    return known[name]


def _is_file(path: str | Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  # Path.is_file raises OSError for a name that is too long


def in_short(spec: Mapping[str, Any]) -> str:
    """Keys and values of a part of a workload in one line, such as `closed, users 8` or `count 16, input_tokens 64`."""
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
