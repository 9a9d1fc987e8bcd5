"""Results of other tools, stored as runs: the file's figures under this project's names, with notes on definitions.

`FORMATS` lists the supported files, and `formats` reads them. Figures keep the tool's values, in SI units; a value that
the file does not hold stays None or absent. docs/importing.md compares the definitions.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import config
from harness.errors import HarnessError
from harness.files import read_text
from harness.model import EngineInfo, ModelIdentity
from harness.store.access import reading
from harness.store.directory import RunWriter, engine_record, new_id
from harness.store.formats import aiperf, leaderboards, reports, vllm
from harness.store.formats.point import Result, checked
from harness.store.rows import digest_of
from harness.store.run_file import RunFile


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file: its tool, the keys that identify it, and its reader."""

    tool: str
    keys: tuple[str, ...]
    """Keys of such a file; dotted if nested, `|` between alternatives."""
    read: Callable[[Any], Iterator[Result]]


FORMATS = (
    Format("ML.ENERGY benchmark", ("steady_state_energy", "steady_state_duration"), leaderboards.mlenergy_benchmark),
    Format("ML.ENERGY leaderboard", ("task", "configurations"), leaderboards.mlenergy_leaderboard),
    Format("InferenceX", ("hw", "conc", "tput_per_gpu|output_tput_per_gpu"), leaderboards.inferencex),
    Format("SGLang", ("mean_e2e_latency_ms", "request_throughput", "completed"), vllm.serve),
    Format("vllm bench serve", ("request_throughput", "output_throughput", "completed", "duration"), vllm.serve),
    Format("vllm bench throughput", ("elapsed_time", "requests_per_second", "tokens_per_second"), vllm.offline),
    Format("guidellm", ("benchmarks.metrics.request_latency",), reports.guidellm),
    Format("aiperf records", ("metadata.request_start_ns", "metrics"), aiperf.aiperf_records),
    Format(
        "aiperf or genai-perf", ("request_throughput|error_request_count|error_summary", "input_config"), aiperf.aiperf
    ),
    Format("aiperf or genai-perf", ("request_throughput.avg", "request_latency.unit"), aiperf.aiperf),
    Format("aiperf or genai-perf, CSV", ("Metric,avg", "Request Throughput"), aiperf.aiperf_csv),
    Format("inference-perf", ("load_summary", "successes.throughput", "failures"), reports.inference_perf),
    Format("MLPerf LoadGen", ("MLPerf Results Summary", "Scenario"), reports.loadgen),
)
"""All supported kinds, the more specific keys first."""
MOST_GPUS = 10_000
"""Largest number of GPUs of one result; more is damage, and each takes memory."""


def points(path: Path) -> list[tuple[Format, Result]]:
    """All measured points in a file of another tool. HarnessError for an unknown or damaged file.

    Each entry of a JSON list is read alone, as in the file of a sweep; request records are read together.
    """
    content = _content(read_text(path))
    records = _has(content, "metadata.request_start_ns")
    if records and isinstance(content, Mapping):
        content = [content]
    parts = content if isinstance(content, list) and content and not records else [content]
    found: list[tuple[Format, Result]] = []
    for part in parts:
        kind = next((each for each in FORMATS if all(_has(part, key) for key in each.keys)), None)
        if kind is None:
            known = "; ".join(f"{each.tool}: {', '.join(each.keys)}" for each in FORMATS)
            raise HarnessError(f"{path}: not the file of a known tool", f"expected the keys of one of these: {known}")
        with _reading(path, kind):
            found += [(kind, checked(point)) for point in kind.read(part)]
    return found


def _reading(path: Path, kind: Format) -> AbstractContextManager[None]:
    fix = f"get the file again; it should hold {', '.join(kind.keys)} and the other keys of {kind.tool}"
    return reading(path, f"looks like a file of {kind.tool}, but cannot be read", fix)


def store_points(path: Path, root: Path, gpu: str | None = None, gpus: int | None = None) -> list[Path]:
    """Store each point of the file as a run under `root`; returns the runs' directories.

    `gpu` and `gpus` name the hardware if the file does not; without them the run has no price.
    """
    found = points(path)
    directories, files, digest, now = [], [], digest_of(path), datetime.now(UTC)
    for kind, point in found:
        point = replace(point, gpu=point.gpu or gpu, gpus=point.gpus or gpus or (1 if point.gpu or gpu else None))
        with _reading(path, kind):
            files.append(_run_file(kind, point, now, path, digest))
            files[-1].model_dump_json()  # ValueError for half of a surrogate pair
    for file, (_, point) in zip(files, found, strict=True):
        writer = RunWriter(root, file)
        for record in point.records:
            writer.add(record)
        writer.finish("complete")
        directories.append(writer.directory)
    return directories


def _run_file(kind: Format, point: Result, now: datetime, path: Path, digest: str) -> RunFile:
    if not 1 <= (gpus := point.gpus or 1) <= MOST_GPUS:
        raise ValueError(f"{gpus} is not a number of GPUs")
    total, active = size_in(point.model or "")
    model = ModelIdentity(point.model, precision=point.precision, parameters=total, active_parameters=active)
    info = EngineInfo(point.engine, None, model, "cuda" if point.gpu else "unknown", gpus, 0, None)
    said = dataclasses.asdict(replace(point, records=()))
    imported = {key: said[key] for key in ("version", "measured", "figures", "notes", "doubts")}
    content = {
        "id": new_id(now, point.model, kind.tool, point.name),
        "created_utc": now,
        "pid": os.getpid(),
        "workload": {"name": point.name or kind.tool, "model": point.model, "load": dict(point.load)},
        "engine_asked": point.engine,
        "engine": engine_record(info),
        "environment": {"gpus": [{"name": point.gpu}] * gpus} if point.gpu else {},
        "imported": {"tool": kind.tool, "file": path.name, "sha256": digest, **imported},
    }
    return config.checked(RunFile, content, f"{path} looks like a file of {kind.tool}, but")


def size_in(name: str) -> tuple[int | None, int | None]:
    """Parameters and active parameters as a model's name gives them; None where it does not.

    >>> size_in("meta-llama/Llama-3.3-70B-Instruct"), size_in("Qwen3-235B-A22B-FP8"), size_in("gpt-oss")
    ((70000000000, 70000000000), (235000000000, 22000000000), (None, None))
    >>> size_in("Mixtral-8x7B"), size_in("Llama-4-Scout-17B-16E")  # the sum is not in the name
    ((None, None), (None, None))
    """
    if re.search(r"\d+E(?![a-z0-9])", name):
        return None, None
    found = re.findall(r"(?<![\w.])(\d+x|A)?(\d+(?:\.\d+)?)([BM])(?![a-z0-9])", name, re.IGNORECASE)
    sizes = {mark.upper(): round(float(number) * {"B": 1e9, "M": 1e6}[unit.upper()]) for mark, number, unit in found}
    total = sizes.get("")
    return total, sizes.get("A", total) if total else None


def _content(text: str) -> Any:
    """The value of JSON, a list from JSON lines, or else the text."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    with suppress(ValueError, RecursionError):
        return [json.loads(line) for line in text.splitlines() if line.strip()] or text
    return text


def _has(content: Any, key: str) -> bool:
    """True if a text contains `key`, or a map, or the first map of a list, has the dotted key or one of several."""
    if "|" in key:
        return any(_has(content, each) for each in key.split("|"))
    if isinstance(content, str):
        return key in content
    if isinstance(content, list):
        return bool(content) and _has(content[0], key)
    first, _, rest = key.partition(".")
    return isinstance(content, Mapping) and first in content and (not rest or _has(content[first], rest))
