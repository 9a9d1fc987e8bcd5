"""Readers of other tools' files: which number becomes which figure, and where the definitions differ."""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.model import Figure, Record

UNITS: Mapping[str, str] = {
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "tokens/s",
    "input_tokens_per_s": "tokens/s",
    "total_tokens_per_s": "tokens/s",
    "requests": "requests",
    "input_tokens": "tokens",
    "output_tokens": "tokens",
    "joules_per_output_token": "J",
    "joules_per_request": "J",
    "gpu_power_w": "W",
}
"""Figure, or the part of its name before the dot -> unit; all other figures are in seconds."""


@dataclass(frozen=True, slots=True)
class Result:
    """One measured point of a file. None: not in the file."""

    figures: tuple[Figure, ...]
    model: str | None = None
    name: str = ""
    """Distinguishes the points of one file."""
    engine: str = "openai"
    version: str | None = None
    """Version of the tool."""
    measured: str | None = None
    """The run's date, as written in the file."""
    load: Mapping[str, Any] = field(default_factory=dict)
    """Shape, users or rate, with the keys of `harness.workload.arrivals.Load`."""
    precision: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    notes: tuple[str, ...] = ()
    """Where the tool's definitions differ from this project's."""
    records: tuple[Record, ...] = ()


def figures(values: Mapping[str, float | None], n: int | None, scale: float = 1.0) -> tuple[Figure, ...]:
    """Figures with status `reported` from figure name -> value; a missing value gives no figure.

    >>> [(each.name, each.value, each.unit) for each in figures({"ttft_s.p50": 12.5, "itl_s.p50": None}, 3, 1e-3)]
    [('ttft_s.p50', 0.0125, 's')]
    """
    return tuple(
        Figure(
            name, value * scale, UNITS.get(name) or UNITS.get(name.partition(".")[0], "s"), "reported", n=n,
            reason="the tool gives no interval",
        )
        for name, value in values.items()
        if value is not None
    )  # fmt: skip


_PERCENTILES = ("p50", "p90", "p95", "p99")
_ALSO = {"mean": "avg", "p50": "median"}
"""Other names of statistics in the tools' files."""
_SERVE_NOTES = (
    "TPOT is 0 for an answer that came in one chunk",
    "the duration runs from the first request drawn to the last return",
)


def _latency(name: str, seen: Mapping[str, Any], n: int | None, scale: float = 1.0) -> tuple[Figure, ...]:
    """Mean and percentiles of one latency from statistic -> value; of `n` requests unless `seen` has a count."""
    n = seen.get("count", n)
    values = {f"{name}.{stat}": seen.get(stat, seen.get(_ALSO.get(stat, stat))) for stat in ("mean", *_PERCENTILES)}
    return figures(values, n and int(n), scale)


def _vllm_latency(name: str, content: Mapping[str, Any], word: str, n: int | None) -> tuple[Figure, ...]:
    """One latency of vLLM's benchmarks, whose keys are such as `mean_ttft_ms`."""
    seen = {stat: content.get(f"{stat}_{word}_ms") for stat in ("mean", "median", *_PERCENTILES[1:])}
    return _latency(name, seen, n, 1e-3)


def vllm_serve(content: Mapping[str, Any]) -> Iterator[Result]:
    """`vllm bench serve --save-result`, and each entry of `vllm bench sweep serve`."""
    done = content["completed"]
    each: tuple[Figure, ...] = ()
    totals = {
        "requests_per_s": content["request_throughput"],
        "output_tokens_per_s": content["output_throughput"],
        "total_tokens_per_s": content.get("total_token_throughput"),
        "duration_s": content["duration"],
        "requests.completed": done,
        "requests.failed": content.get("failed"),
        "input_tokens.got": content.get("total_input_tokens"),
        "output_tokens.got": content.get("total_output_tokens"),
    }
    for name, word in (("ttft_s", "ttft"), ("tpot_s", "tpot"), ("itl_s", "itl"), ("e2e_s", "e2el")):
        each += _vllm_latency(name, content, word, done)
    users, rate = content.get("max_concurrency"), content.get("request_rate")
    endless = rate is None or float(rate) == float("inf")
    load = {"shape": "closed", "users": users} if endless and users else {"shape": "offline"}
    if rate is not None and not endless:
        load = {"shape": "gamma", "rate_per_s": float(rate), "burstiness": content.get("burstiness")}
    yield Result(
        figures(totals, done) + each,
        model=content.get("model_id"),
        name=str(content.get("label") or ""),
        engine=content.get("backend") or "openai",
        measured=content.get("date"),
        load=load,
        notes=_SERVE_NOTES,
        records=tuple(_vllm_records(content)),
    )


def _vllm_records(content: Mapping[str, Any]) -> Iterator[Record]:
    """The rows that `--save-detailed` adds; their send times are on a clock with an unknown zero."""
    sent_s, ttft_s, gaps_s = (content.get(key) or () for key in ("start_times", "ttfts", "itls"))
    if not sent_s:
        return
    tokens, asked, errors = (content[key] for key in ("output_lens", "input_lens", "errors"))
    for i, begun_s in enumerate(sent_s):
        arrival_s, failed = [begun_s - sent_s[0] + ttft_s[i]], bool(errors[i])
        for gap_s in gaps_s[i]:
            arrival_s.append(arrival_s[-1] + gap_s)
        yield Record(
            index=i, scheduled_s=begun_s - sent_s[0], sent_s=begun_s - sent_s[0], end_s=arrival_s[-1],
            arrival_s=() if failed else tuple(arrival_s), arrival_tokens=() if failed else (1,) * len(arrival_s),
            input_asked=asked[i], output_asked=tokens[i], input_tokens=None if failed else asked[i],
            output_tokens=None if failed else tokens[i],
            error="failed" if failed else None, error_text=errors[i] or None,
        )  # fmt: skip


def vllm_offline(content: Mapping[str, Any]) -> Iterator[Result]:
    """`vllm bench throughput --output-json`."""
    n = content["num_requests"]
    values = {
        "requests_per_s": content["requests_per_second"],
        "total_tokens_per_s": content["tokens_per_second"],
        "duration_s": content["elapsed_time"],
        "requests.completed": n,
    }
    yield Result(figures(values, n), content.get("model_id"), engine="vllm", load={"shape": "offline"})


_GUIDELLM_NOTES = (
    "latencies are those of successful requests; rates are guidellm's means over time of all requests",
    "guidellm's ITL is the mean gap of a request, weighted by tokens: here TPOT; its TPOT includes TTFT: left out",
)


def guidellm(content: Mapping[str, Any]) -> Iterator[Result]:
    """guidellm's JSON: one point per benchmark."""
    for benchmark in content["benchmarks"]:
        metrics, config = benchmark["metrics"], benchmark["config"]
        made = benchmark["scheduler_metrics"]["requests_made"]
        totals = {
            "requests_per_s": metrics["requests_per_second"]["total"]["mean"],
            "output_tokens_per_s": metrics["output_tokens_per_second"]["total"]["mean"],
            "input_tokens_per_s": metrics["prompt_tokens_per_second"]["total"]["mean"],
            "total_tokens_per_s": metrics["tokens_per_second"]["total"]["mean"],
            "duration_s": benchmark["duration"],
            "requests.completed": made["successful"],
            "requests.failed": made["errored"],
            "input_tokens.got": metrics["prompt_token_count"]["successful"]["total_sum"],
            "output_tokens.got": metrics["output_token_count"]["successful"]["total_sum"],
        }
        found = figures(totals, made["successful"])
        for name, word, scale in (
            ("ttft_s", "time_to_first_token_ms", 1e-3),
            ("tpot_s", "inter_token_latency_ms", 1e-3),
            ("e2e_s", "request_latency", 1.0),
        ):
            seen = metrics[word]["successful"]
            found += _latency(name, {**seen, **seen["percentiles"]}, None, scale)
        strategy = config["strategy"]
        users, rate = strategy.get("streams"), strategy.get("rate")
        kind = {"concurrent": "closed", "synchronous": "closed", "throughput": "offline"}.get(strategy["type_"])
        load = {"shape": kind or strategy["type_"], "users": users, "rate_per_s": rate}
        yield Result(
            found,
            model=config["backend"].get("model"),
            name=f"{strategy['type_']} {users or rate or ''}".strip(),
            version=content["metadata"]["guidellm_version"],
            load={key: value for key, value in load.items() if value is not None},
            notes=_GUIDELLM_NOTES,
        )


_AIPERF = {
    "requests_per_s": "request_throughput",
    "output_tokens_per_s": "output_token_throughput",
    "input_tokens_per_s": "input_token_throughput",
    "total_tokens_per_s": "total_token_throughput",
    "duration_s": "benchmark_duration",
    "requests.completed": "request_count",
    "requests.failed": "error_request_count",
    "input_tokens.got": "total_isl",
    "output_tokens.got": "total_osl",
}
_AIPERF_NOTES = (
    "aiperf's ITL is the mean gap of a request: here TPOT; its inter-chunk latency is the gaps: here ITL",
    "tokens are counted by the client's tokenizer, unless aiperf was set to use the server's count",
)


def aiperf(content: Mapping[str, Any]) -> Iterator[Result]:
    """aiperf's profile_export_aiperf.json, and genai-perf's profile_export_genai_perf.json."""
    totals = {name: (content.get(key) or {}).get("avg") for name, key in _AIPERF.items()}
    n = int(totals["requests.completed"] or 0) or None
    found = figures(totals, n)
    for name, word in (
        ("ttft_s", "time_to_first_token"),
        ("tpot_s", "inter_token_latency"),
        ("itl_s", "inter_chunk_latency"),
        ("e2e_s", "request_latency"),
    ):
        seen = content.get(word)
        if seen is not None:
            found += _latency(name, seen, n, {"ms": 1e-3, "sec": 1.0}[seen["unit"]])
    config = content.get("input_config") or {}
    models = (config.get("models") or {}).get("items") if isinstance(config.get("models"), dict) else None
    phase: Mapping[str, Any] = next(iter(config.get("phases") or ()), {})
    users, rate = phase.get("concurrency"), phase.get("rate")
    load = {"shape": "closed", "users": users} if users else {"rate_per_s": rate} if rate else {}
    yield Result(
        found,
        model=models[0]["name"] if models else (config.get("model_names") or [None])[0],
        version=content.get("aiperf_version"),
        measured=content.get("start_time"),
        load=load,
        notes=_AIPERF_NOTES,
    )


def aiperf_csv(text: str) -> Iterator[Result]:
    """aiperf's profile_export_aiperf.csv, and genai-perf's: any number of tables of `Metric (unit)`."""
    content: dict[str, dict[str, Any]] = {}
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        header, *rows = csv.reader(block.strip().splitlines())
        for name, *cells in rows if header[0] == "Metric" else ():  # tables of telemetry have another form
            matched = re.fullmatch(r"(.+?)(?: \((.+)\))?", name)
            key, unit = (matched[1].lower().replace(" ", "_"), matched[2]) if matched else (name, None)
            stats = ("avg" if stat == "Value" else stat for stat in header[1:])
            numbers = {stat: float(cell.replace(",", "")) for stat, cell in zip(stats, cells, strict=False) if cell}
            content[_AIPERF_WORDS.get(key, key)] = {"unit": unit, **numbers}
    yield from aiperf(content)


_AIPERF_WORDS = {"total_input_sequence_length": "total_isl", "total_output_sequence_length": "total_osl"}


def aiperf_records(rows: list[Mapping[str, Any]]) -> Iterator[Result]:
    """aiperf's profile_export.jsonl: one line per request, with all gaps. The figures are computed from the rows."""
    zero_ns = min(row["metadata"]["request_start_ns"] for row in rows)
    yield Result((), records=tuple(_aiperf_record(i, row, zero_ns) for i, row in enumerate(rows)))


def _aiperf_record(index: int, row: Mapping[str, Any], zero_ns: int) -> Record:
    times, metrics = row["metadata"], {name: each["value"] for name, each in row["metrics"].items()}
    error = row.get("error") or {}
    due_ns, sent_s = times.get("credit_issued_ns"), (times["request_start_ns"] - zero_ns) / 1e9
    arrival_s = [sent_s + metrics["time_to_first_token"] / 1e3] if "time_to_first_token" in metrics else []
    for gap_ms in metrics.get("inter_chunk_latency", ()):
        arrival_s.append(arrival_s[-1] + gap_ms / 1e3)
    tokens = metrics.get("output_sequence_length")
    asked = int(metrics.get("input_sequence_length") or 0)
    spread = _shared(int(tokens), len(arrival_s)) if tokens and arrival_s else ()
    return Record(
        index=index, scheduled_s=sent_s if due_ns is None else (due_ns - zero_ns) / 1e9, sent_s=sent_s,
        end_s=(times["request_end_ns"] - zero_ns) / 1e9, arrival_s=tuple(arrival_s), arrival_tokens=spread,
        input_asked=asked, output_asked=int(tokens or 0), input_tokens=asked or None,
        output_tokens=None if tokens is None else int(tokens),
        error=str(error.get("type") or "failed") if error else None, error_text=error.get("message"),
    )  # fmt: skip


def _shared(tokens: int, arrivals: int) -> tuple[int, ...]:
    """Tokens of each arrival, as equal as whole numbers allow: the file does not hold the tokens of each chunk.

    >>> _shared(5, 3)
    (2, 2, 1)
    """
    return tuple(tokens // arrivals + (i < tokens % arrivals) for i in range(arrivals))


def inference_perf(content: Mapping[str, Any]) -> Iterator[Result]:
    """inference-perf's summary_lifecycle_metrics.json, and those of its stages."""
    good = content["successes"]
    rates, latency, n = good["throughput"], good["latency"], good["count"]
    totals = {
        "requests_per_s": rates["requests_per_sec"],
        "output_tokens_per_s": rates["output_tokens_per_sec"],
        "input_tokens_per_s": rates["input_tokens_per_sec"],
        "total_tokens_per_s": rates["total_tokens_per_sec"],
        "duration_s": content["benchmark_time_seconds"],
        "requests.completed": n,
        "requests.failed": content["failures"]["count"],
        "input_tokens.got": (good.get("prompt_tokens") or {}).get("total"),
        "output_tokens.got": (good.get("output_tokens") or {}).get("total"),
    }
    found = figures(totals, n)
    for name, word in (
        ("ttft_s", "time_to_first_token"),
        ("tpot_s", "time_per_output_token"),
        ("itl_s", "inter_token_latency"),
        ("e2e_s", "request_latency"),
    ):
        found += _latency(name, latency.get(word) or {}, n)
    yield Result(found, notes=("the normalised time per output token includes TTFT and is left out",))


def mlenergy_benchmark(content: Mapping[str, Any]) -> Iterator[Result]:
    """results.json of the ML.ENERGY benchmark: `vllm bench serve` with the energy of the steady state."""
    joules, seconds = content["steady_state_energy"], content["steady_state_duration"]
    per_token = content.get("steady_state_energy_per_token")
    values = {
        "joules_per_output_token": per_token,
        "gpu_power_w": joules / seconds,
        "output_tokens_per_s": joules / seconds / per_token if per_token else None,
    }
    whole = next(vllm_serve({"request_throughput": None, "output_throughput": None, **content}))
    kept = tuple(figure for figure in whole.figures if figure.name not in values)
    notes = (*whole.notes, "energy and output rate are of the steady state; requests per second of the whole run")
    yield Result(figures(values, whole.figures[0].n) + kept, whole.model, engine="vllm", load=whole.load, notes=notes)


def mlenergy_leaderboard(content: Mapping[str, Any]) -> Iterator[Result]:
    """A task's JSON of the ML.ENERGY leaderboard: one point per configuration."""
    for row in content["configurations"]:
        length, rate = row.get("avg_output_len"), row["output_throughput_tokens_per_sec"]
        values = {
            "output_tokens_per_s": rate,
            "requests_per_s": rate / length if length else None,
            "joules_per_output_token": row["energy_per_token_joules"],
            "joules_per_request": row["energy_per_request_joules"],
            "gpu_power_w": row.get("avg_power_watts"),
        }
        yield Result(
            figures(values, None) + _vllm_latency("itl_s", row, "itl", None),
            model=row["model_id"],
            name=f"{content['task']} {row['gpu_model']}x{row['num_gpus']} {row.get('max_num_seqs') or ''}".strip(),
            engine="vllm",
            load={"shape": "closed", "users": row["max_num_seqs"]} if row.get("max_num_seqs") else {},
            precision=row.get("weight_precision"),
            gpu=row["gpu_model"],
            gpus=row["num_gpus"],
            notes=("steady state, without TTFT; requests per second are output rate / mean output length",),
        )


def loadgen(text: str) -> Iterator[Result]:
    """mlperf_log_summary.txt of MLPerf's LoadGen."""
    said = dict(re.findall(r"^\s*(\S[^:\n]*?)\s*(?:\(ns\))?\s*:\s*(.+?)\s*$", text, re.M))

    def number(key: str) -> float | None:
        return float(said[key]) if key in said else None

    values = {
        "requests_per_s": number("Completed samples per second") or number("Samples per second"),
        "output_tokens_per_s": number("Completed tokens per second") or number("Tokens per second"),
    }
    found = figures(values, None)
    for name, mean, other in (
        ("ttft_s", "Mean First Token latency", "first token latency"),
        ("tpot_s", "Mean Time per Output Token", "time to output token"),
        ("response_s", "Mean latency", "latency"),
    ):
        spread = {f"{name}.mean": number(mean)}
        spread |= {f"{name}.{p}": number(f"{p[1:]}.00 percentile {other}") for p in _PERCENTILES}
        found += figures(spread, None, 1e-9)
    verdict = () if said["Result is"] == "VALID" else (f"LoadGen calls this run {said['Result is']}",)
    scenario = said["Scenario"]
    yield Result(
        found,
        model=said.get("SUT name"),
        name=scenario.lower(),
        engine="LoadGen",
        load={"rate_per_s": number("target_qps")} if scenario == "Server" else {"shape": scenario.lower()},
        notes=(*verdict, "all latencies, TTFT included, count from the due time of the request"),
    )
