"""Reports of guidellm (0.2 to 0.8), of inference-perf (0.1 to 0.7) and of MLPerf's LoadGen (4.0 to 6.0)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from harness.store.formats.point import PERCENTILES, Result, at, figures, from_means, numbers

_GUIDELLM_NOTES = (
    "latencies and requests per second are those of successful requests; token rates are guidellm's means over time of "
    "all requests",
    "guidellm's ITL is the mean gap of a request, weighted by tokens: here TPOT; its TPOT includes TTFT: left out",
)
_SHAPES = {"concurrent": "closed", "synchronous": "closed", "throughput": "offline"}


def guidellm(content: Mapping[str, Any]) -> Iterator[Result]:
    """One point per benchmark. Counts are those of the measured window, without warm-up and cool-down."""
    for benchmark in content["benchmarks"]:
        metrics = benchmark["metrics"]
        config: Mapping[str, Any] = benchmark.get("config") or benchmark["args"]  # args: before 0.4
        made = metrics.get("request_totals") or benchmark.get("request_totals") or _all_made(benchmark)
        done = made["successful"]
        strategy = config["strategy"]
        kind = strategy["type_"]
        users = 1 if kind == "synchronous" else strategy.get("streams")
        totals = numbers("guidellm", benchmark) | {"requests.completed": done, "requests.failed": made["errored"]}
        load = {"shape": _SHAPES.get(kind, kind), "users": users, "rate_per_s": strategy.get("rate")}
        backend = config.get("backend") or benchmark.get("worker") or {}
        yield Result(
            figures(totals, done),
            model=backend.get("model") or backend.get("backend_model"),
            name=f"{kind} {users or strategy.get('rate') or ''}".strip(),
            version=(content.get("metadata") or {}).get("guidellm_version"),
            load={key: value for key, value in load.items() if value is not None},
            notes=_GUIDELLM_NOTES,
            edges=int(users or made.get("incomplete") or 0) + 1,
        )


def _all_made(benchmark: Mapping[str, Any]) -> Mapping[str, Any]:
    """Requests by outcome, those of the warm-up among them."""
    made: Mapping[str, Any] = (benchmark.get("scheduler_metrics") or benchmark["run_stats"])["requests_made"]
    return made


def inference_perf(content: Mapping[str, Any]) -> Iterator[Result]:
    """summary_lifecycle_metrics.json, and those of its stages.

    Until April 2026 the report has neither a duration nor sums of tokens: both follow from counts and rates.
    """
    asked, totals = content["load_summary"], numbers("inference-perf", content)
    n, failed = totals["requests.completed"], totals["requests.failed"]
    words = {"input_tokens.got": "prompt_len", "output_tokens.got": "output_len"}
    means = {name: at(content, f"successes.{word}.mean?") for name, word in words.items()}
    if totals["requests_per_s"]:
        means["duration_s"] = 1 / totals["requests_per_s"]
    found = figures(totals, n) + from_means(means, totals, n)
    users, rate = asked.get("concurrency"), asked.get("requested_rate")
    load = {"shape": "closed", "users": users} if users else {"rate_per_s": rate} if rate else {}
    sent = asked.get("count")
    wrong = sent is not None and sent != n + failed
    doubts = (f"{n} requests succeeded and {failed} failed, but {sent} were sent",) if wrong else ()
    notes = ("the normalised time per output token includes TTFT and is left out",)
    yield Result(found, load=load, notes=notes, doubts=doubts)


def loadgen(text: str) -> Iterator[Result]:
    """mlperf_log_summary.txt. A rate that LoadGen inferred from the prompts' lengths is marked `(inferred)`."""
    said = dict(re.findall(r"^\s*(\S[^:\n]*?)\s*(?:\((?:ns|inferred)\))?\s*:\s*(.+?)\s*$", text, re.M))

    def number(*keys: str) -> float | None:
        """The value of the first key that the file has."""
        return next((float(said[key]) for key in keys if key in said), None)

    scenario = said["Scenario"]
    values = {
        "requests_per_s": number("Completed samples per second", "Samples per second", "QPS w/ loadgen overhead"),
        "output_tokens_per_s": number("Completed tokens per second", "Tokens per second", "TPS w/ loadgen overhead"),
    }
    found = figures(values, None)
    for name, mean, word in (
        ("ttft_s", ("Mean First Token latency",), "first token latency"),
        ("tpot_s", ("Mean Time per Output Token", "Mean Time to Output Token"), "time to output token"),
        ("response_s", ("Mean latency",), "latency"),
    ):
        spread = {f"{name}.mean": number(*mean)} | {
            f"{name}.{p}": number(f"{p[1:]}.00 percentile {word}") for p in PERCENTILES
        }
        found += figures(spread, None, 1e-9)
    notes = ["all latencies, TTFT included, count from the due time of the request"]
    if "tokens per second (inferred)" in text.lower():
        notes.append("LoadGen inferred the tokens per second")
    valid = said["Result is"] == "VALID"
    yield Result(
        found,
        name=f"{scenario.lower()} {said.get('SUT name', '')}".strip(),
        engine="LoadGen",
        load={"rate_per_s": number("target_qps")} if scenario == "Server" else {"shape": scenario.lower()},
        notes=tuple(notes),
        doubts=() if valid else (f"LoadGen calls this run {said['Result is']}",),
    )
