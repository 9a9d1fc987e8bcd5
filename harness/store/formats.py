"""Each tool's file, read: which of its numbers is which figure here, and what the two mean by it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from typing import Any

from harness.model import Figure, Record
from harness.store.imported import Result, figures

_PERCENTILES = ("p50", "p90", "p95", "p99")
_SERVE_NOTES = (
    "TPOT is 0 for an answer that came in one chunk",
    "the duration runs from the first request drawn to the last return",
)


def _spread(name: str, from_: Mapping[str, Any], keys: Mapping[str, str], scale: float) -> tuple[Figure, ...]:
    """Mean and percentiles of one latency: `keys` maps the statistic to the tool's word for it."""
    n = from_.get("count")
    return figures({f"{name}.{stat}": from_.get(key) for stat, key in keys.items()}, n and int(n), scale)


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
        values = {f"{name}.mean": content.get(f"mean_{word}_ms"), f"{name}.p50": content.get(f"median_{word}_ms")}
        values |= {f"{name}.{p}": content.get(f"{p}_{word}_ms") for p in _PERCENTILES[1:]}
        each += figures(values, done, 1e-3)
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
    """The rows that `--save-detailed` adds; its times of sending are on a clock with an unknown zero."""
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


_GUIDELLM = (
    "latencies are those of successful requests; rates are the means over time that it prints for all of them",
)
_GUIDELLM_TPOT = (
    "what it calls ITL is a request's mean gap, weighted by tokens: here TPOT; its TPOT includes TTFT: left"
)


def guidellm(content: Mapping[str, Any]) -> Iterator[Result]:
    """guidellm's JSON: a point a benchmark."""
    keys = {"mean": "mean", **{p: p for p in _PERCENTILES}}
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
            found += _spread(name, {**seen, **seen["percentiles"]}, keys, scale)
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
            notes=(*_GUIDELLM, _GUIDELLM_TPOT),
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
    "what it calls ITL is a request's mean gap: here TPOT; its inter-chunk latency is the gaps: here ITL",
    "tokens are counted by the client's tokenizer unless it was told to use the server's count",
)


def aiperf(content: Mapping[str, Any]) -> Iterator[Result]:
    """aiperf's profile_export_aiperf.json, and genai-perf's profile_export_genai_perf.json."""
    count = int((content.get("request_count") or {"avg": 0})["avg"])
    totals = {name: (content.get(key) or {}).get("avg") for name, key in _AIPERF.items()}
    found = figures(totals, count or None)
    keys = {"mean": "avg", **{p: p for p in _PERCENTILES}}
    for name, word in (
        ("ttft_s", "time_to_first_token"),
        ("tpot_s", "inter_token_latency"),
        ("itl_s", "inter_chunk_latency"),
        ("e2e_s", "request_latency"),
    ):
        seen = content.get(word)
        if seen is not None:
            found += _spread(name, {"count": count or None, **seen}, keys, {"ms": 1e-3, "sec": 1.0}[seen["unit"]])
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
    """aiperf's profile_export_aiperf.csv, and genai-perf's: tables of `Metric (unit)`, as many as there are."""
    content: dict[str, dict[str, Any]] = {}
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        header, *rows = csv.reader(block.strip().splitlines())
        for name, *cells in rows if header[0] == "Metric" else ():  # telemetry has tables of another form
            matched = re.fullmatch(r"(.+?)(?: \((.+)\))?", name)
            key, unit = (matched[1].lower().replace(" ", "_"), matched[2]) if matched else (name, None)
            stats = ("avg" if stat == "Value" else stat for stat in header[1:])
            numbers = {stat: float(cell.replace(",", "")) for stat, cell in zip(stats, cells, strict=False) if cell}
            content[_AIPERF_WORDS.get(key, key)] = {"unit": unit, **numbers}
    yield from aiperf(content)


_AIPERF_WORDS = {"total_input_sequence_length": "total_isl", "total_output_sequence_length": "total_osl"}


def aiperf_records(rows: list[Mapping[str, Any]]) -> Iterator[Result]:
    """aiperf's profile_export.jsonl: a line a request, with every gap. The figures are computed here."""
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
    """Tokens over arrivals as evenly as whole numbers go: the file does not say how many each chunk held.

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
    found, keys = figures(totals, n), {"mean": "mean", "p50": "median", "p90": "p90", "p95": "p95", "p99": "p99"}
    for name, word in (
        ("ttft_s", "time_to_first_token"),
        ("tpot_s", "time_per_output_token"),
        ("itl_s", "inter_token_latency"),
        ("e2e_s", "request_latency"),
    ):
        found += _spread(name, {"count": n, **(latency.get(word) or {})}, keys, 1.0)
    yield Result(found, notes=("its normalised time per output token includes TTFT and is left out",))


def mlenergy_benchmark(content: Mapping[str, Any]) -> Iterator[Result]:
    """results.json of the ML.ENERGY benchmark: `vllm bench serve` with the energy of its steady state."""
    joules, seconds = content["steady_state_energy"], content["steady_state_duration"]
    per_token = content.get("steady_state_energy_per_token")
    values = {
        "joules_per_output_token": per_token,
        "gpu_power_w": joules / seconds,
        "output_tokens_per_s": joules / seconds / per_token if per_token else None,
    }
    whole = next(vllm_serve({"request_throughput": None, "output_throughput": None, **content}))
    kept = tuple(figure for figure in whole.figures if figure.name not in values)
    notes = (*whole.notes, "energy and output rate are of its steady state; requests per second of the whole run")
    yield Result(figures(values, whole.figures[0].n) + kept, whole.model, engine="vllm", load=whole.load, notes=notes)


def mlenergy_leaderboard(content: Mapping[str, Any]) -> Iterator[Result]:
    """A task's JSON of the ML.ENERGY leaderboard: a point a configuration."""
    for row in content["configurations"]:
        length, rate = row.get("avg_output_len"), row["output_throughput_tokens_per_sec"]
        values = {
            "output_tokens_per_s": rate,
            "requests_per_s": rate / length if length else None,
            "joules_per_output_token": row["energy_per_token_joules"],
            "joules_per_request": row["energy_per_request_joules"],
            "gpu_power_w": row.get("avg_power_watts"),
        }
        gaps = {
            f"itl_s.{p}": row.get(f"{word}_itl_ms")
            for p, word in zip(_PERCENTILES, ("median", *_PERCENTILES[1:]), strict=True)
        }
        yield Result(
            figures(values, None) + figures(gaps, None, 1e-3),
            model=row["model_id"],
            name=f"{content['task']} {row['gpu_model']}x{row['num_gpus']} {row.get('max_num_seqs') or ''}".strip(),
            engine="vllm",
            load={"shape": "closed", "users": row["max_num_seqs"]} if row.get("max_num_seqs") else {},
            precision=row.get("weight_precision"),
            gpu=row["gpu_model"],
            gpus=row["num_gpus"],
            notes=(
                "a steady state, without TTFT; requests per second are its output rate over the mean output length",
            ),
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
    yield Result(
        found,
        model=said.get("SUT name"),
        name=said["Scenario"].lower(),
        engine="LoadGen",
        load={"rate_per_s": number("target_qps")}
        if said["Scenario"] == "Server"
        else {"shape": said["Scenario"].lower()},
        notes=(*verdict, "all latencies count from when the request was due, TTFT too"),
    )
