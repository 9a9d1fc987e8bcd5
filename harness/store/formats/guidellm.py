"""guidellm's JSON, of 0.2 to 0.8."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.store.formats.point import Result, figures, numbers

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
        totals = numbers("guidellm", benchmark) | {"requests.completed": done, "requests.failed": made["errored"]}
        load = {"shape": _SHAPES.get(kind, kind), "users": users, "rate_per_s": strategy.get("rate")}
        backend = config.get("backend") or benchmark.get("worker") or {}
        yield Result(
            figures(totals, done),
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
