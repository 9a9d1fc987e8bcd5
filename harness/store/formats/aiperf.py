"""aiperf's and genai-perf's files of 2024 to 2026."""

import csv
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from harness.model import Record
from harness.store.formats.point import SECONDS, Result, at, figures, from_means, numbers, shared

_NOTES = (
    "aiperf's ITL is the mean gap of a request: here TPOT; its inter-chunk latency is the gaps: here ITL",
    "tokens are counted by the client's tokenizer, unless aiperf was set to use the server's count",
)
_RATES = ("poisson", "constant", "gamma")


def aiperf(content: Mapping[str, Any]) -> Iterator[Result]:
    """aiperf's profile_export_aiperf.json, and genai-perf's profile_export_genai_perf.json."""
    totals = numbers("aiperf", content)
    if totals["duration_s"] is not None:
        totals["duration_s"] *= SECONDS[content["benchmark_duration"].get("unit") or "sec"]
    if totals["requests.failed"] is None and content.get("error_summary"):
        totals["requests.failed"] = sum(each["count"] for each in content["error_summary"])
    if totals["requests.completed"] is None and totals["requests.failed"]:
        totals["requests.completed"] = 0
    done = None if totals["requests.completed"] is None else int(totals["requests.completed"])
    means = {f"{what}_tokens.got": at(content, f"{what}_sequence_length.avg?") for what in ("input", "output")}
    found = figures(totals, done) + from_means(means, totals, done)
    config = content.get("input_config") or {}
    yield Result(
        found,
        model=_model(config),
        version=content.get("aiperf_version"),
        measured=content.get("start_time"),
        load=_load(config),
        notes=_NOTES,
        doubts=tuple(_doubts(content)),
    )


def _doubts(content: Mapping[str, Any]) -> Iterator[str]:
    if content.get("was_cancelled"):
        yield "was_cancelled: the run was cancelled"
    if content.get("is_complete") is False:
        yield f"the run is not complete: {content.get('incomplete_reason') or 'no reason is given'}"


def _model(config: Mapping[str, Any]) -> str | None:
    """The first model's name: its key is another in each generation of the tools."""
    places = "models.items?", "models?", "model_names?", "endpoint.model_names?", "model?"
    models = next(filter(None, (at(config, place) for place in places)), None)
    first = models[0] if isinstance(models, list) and models else models
    name = first.get("name") if isinstance(first, Mapping) else first
    return None if name is None else str(name)


def _load(config: Mapping[str, Any]) -> dict[str, Any]:
    """The load of the measured phase: users, unless requests were sent at a rate; empty if not known."""
    phases = [phase for phase in config.get("phases") or () if not _is_warmup(phase)]
    asked = phases or [at(config, "loadgen?") or at(config, "perf_analyzer.stimulus?") or config]
    loads = []
    for each in asked:
        users, rate = each.get("concurrency"), each.get("rate", each.get("request_rate"))
        kind = next((x for x in (each.get("type"), each.get("request_rate_mode")) if x in _RATES), None)
        if rate:
            loads.append({"rate_per_s": rate} | ({"shape": kind} if kind else {}))
        else:
            loads.append({"shape": "closed", "users": users} if users else {})
    return loads[0] if all(load == loads[0] for load in loads) else {}


def _is_warmup(phase: Mapping[str, Any]) -> bool:
    return bool(phase.get("exclude_from_results")) or "warmup" in (phase.get("kind"), phase.get("name"))


def aiperf_csv(text: str) -> Iterator[Result]:
    """aiperf's profile_export_aiperf.csv, and genai-perf's: any number of tables of `Metric (unit)`."""
    content: dict[str, dict[str, Any]] = {}
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        header, *rows = csv.reader(block.strip().splitlines())
        for name, *cells in rows if header[0] == "Metric" else ():  # tables of telemetry have another form
            matched = re.fullmatch(r"(.+?)(?: \((.+)\))?", name)
            key, unit = (matched[1].lower().replace(" ", "_"), matched[2]) if matched else (name, None)
            numbers = {}
            for stat, cell in zip(header[1:], cells, strict=False):
                with suppress(ValueError):  # N/A
                    numbers["avg" if stat == "Value" else stat] = float(cell.replace(",", ""))
            content[_WORDS.get(key, key)] = {"unit": unit, **numbers}
    yield from aiperf(content)


_WORDS = {"total_input_sequence_length": "total_isl", "total_output_sequence_length": "total_osl"}


def aiperf_records(rows: list[Mapping[str, Any]]) -> Iterator[Result]:
    """aiperf's profile_export.jsonl: one line per request, with all gaps. The figures are computed from the rows."""
    kept = [row for row in rows if row["metadata"].get("benchmark_phase") in (None, "profiling")]
    if not kept:
        raise ValueError("every row is of the warm-up")
    zero_ns = min(row["metadata"]["request_start_ns"] for row in kept)
    yield Result((), records=tuple(_record(i, row, zero_ns) for i, row in enumerate(kept)))


def _record(index: int, row: Mapping[str, Any], zero_ns: int) -> Record:
    times, error = row["metadata"], row.get("error") or {}
    known = {name: each for name, each in row["metrics"].items() if each and each.get("value") is not None}

    def seconds(name: str) -> Any:
        scale = SECONDS[known[name]["unit"]]
        value = known[name]["value"]
        return [each * scale for each in value] if isinstance(value, list) else value * scale

    def count(name: str) -> int | None:
        return int(known[name]["value"]) if name in known else None

    due_ns, sent_s = times.get("credit_issued_ns"), (times["request_start_ns"] - zero_ns) / 1e9
    arrival_s = [sent_s + seconds("time_to_first_token")] if "time_to_first_token" in known else []
    for gap_s in seconds("inter_chunk_latency") if arrival_s and "inter_chunk_latency" in known else ():
        arrival_s.append(arrival_s[-1] + gap_s)
    tokens, asked = count("output_sequence_length"), count("input_sequence_length")
    spread = shared(tokens, len(arrival_s)) if tokens and arrival_s else ()
    return Record(
        index=index, scheduled_s=sent_s if due_ns is None else (due_ns - zero_ns) / 1e9, sent_s=sent_s,
        end_s=(times["request_end_ns"] - zero_ns) / 1e9, arrival_s=tuple(arrival_s), arrival_tokens=spread,
        input_asked=asked or 0, output_asked=tokens or 0, input_tokens=asked or None, output_tokens=tokens,
        error=str(error.get("type") or "failed") if error else None, error_text=error.get("message"),
    )  # fmt: skip
