"""guidellm's JSON, of 0.2 to 0.8."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.store.formats.point import Result, figures, latency

_NOTES = (
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
        totals = {
            "requests_per_s": _of(metrics, "requests_per_second", "successful").get("mean"),
            "output_tokens_per_s": _of(metrics, "output_tokens_per_second", "total").get("mean"),
            "input_tokens_per_s": _of(metrics, "prompt_tokens_per_second", "total").get("mean"),
            "total_tokens_per_s": _of(metrics, "tokens_per_second", "total").get("mean"),
            "duration_s": benchmark["duration"],
            "requests.completed": done,
            "requests.failed": made["errored"],
            "input_tokens.got": _of(metrics, "prompt_token_count", "successful").get("total_sum"),
            "output_tokens.got": _of(metrics, "output_token_count", "successful").get("total_sum"),
        }
        found = figures(totals, done)
        for name, word, scale in (
            ("ttft_s", "time_to_first_token_ms", 1e-3),
            ("tpot_s", "inter_token_latency_ms", 1e-3),
            ("e2e_s", "request_latency", 1.0),
        ):
            seen = _of(metrics, word, "successful")
            found += latency(name, {**seen, **(seen.get("percentiles") or {})}, done, scale)
        load = {"shape": _SHAPES.get(kind, kind), "users": users, "rate_per_s": strategy.get("rate")}
        backend = config.get("backend") or benchmark.get("worker") or {}
        yield Result(
            found,
            model=backend.get("model") or backend.get("backend_model"),
            name=f"{kind} {users or strategy.get('rate') or ''}".strip(),
            version=(content.get("metadata") or {}).get("guidellm_version"),
            load={key: value for key, value in load.items() if value is not None},
            notes=_NOTES,
            edges=int(users or made.get("incomplete") or 0) + 1,
        )


def _all_made(benchmark: Mapping[str, Any]) -> Mapping[str, Any]:
    """Requests by outcome, those of the warm-up among them."""
    made: Mapping[str, Any] = (benchmark.get("scheduler_metrics") or benchmark["run_stats"])["requests_made"]
    return made


def _of(metrics: Mapping[str, Any], name: str, status: str) -> Mapping[str, Any]:
    """One metric of the requests with this status; empty if the file does not have it."""
    return (metrics.get(name) or {}).get(status) or {}
