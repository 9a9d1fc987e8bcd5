"""inference-perf's lifecycle reports, of 0.1 to 0.7."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.store.formats.point import Result, figures, latency


def inference_perf(content: Mapping[str, Any]) -> Iterator[Result]:
    """summary_lifecycle_metrics.json, and those of its stages.

    Until April 2026 the report has neither a duration nor sums of tokens: both follow from counts and rates.
    """
    good, asked = content["successes"], content["load_summary"]
    rates, seen, n = good["throughput"], good["latency"], good["count"]
    totals = {
        "requests_per_s": rates["requests_per_sec"],
        "output_tokens_per_s": rates["output_tokens_per_sec"],
        "input_tokens_per_s": rates["input_tokens_per_sec"],
        "total_tokens_per_s": rates["total_tokens_per_sec"],
        "duration_s": content.get("benchmark_time_seconds"),
        "requests.completed": n,
        "requests.failed": content["failures"]["count"],
        "input_tokens.got": (good.get("prompt_tokens") or {}).get("total"),
        "output_tokens.got": (good.get("output_tokens") or {}).get("total"),
    }
    derived = {}
    if totals["duration_s"] is None and n and totals["requests_per_s"]:
        derived["duration_s"] = n / totals["requests_per_s"]
    for name, word in (("input_tokens.got", "prompt_len"), ("output_tokens.got", "output_len")):
        if totals[name] is None and (mean := (good.get(word) or {}).get("mean")) is not None:
            derived[name] = mean * n
    found = figures(totals, n) + figures(derived, n, status="derived")
    for name, word in (
        ("ttft_s", "time_to_first_token"),
        ("tpot_s", "time_per_output_token"),
        ("itl_s", "inter_token_latency"),
        ("e2e_s", "request_latency"),
    ):
        found += latency(name, seen.get(word) or {}, n)
    users, rate = asked.get("concurrency"), asked.get("requested_rate")
    load = {"shape": "closed", "users": users} if users else {"rate_per_s": rate} if rate else {}
    sent, failed = asked.get("count"), content["failures"]["count"]
    wrong = sent is not None and sent != n + failed
    doubts = (f"{n} requests succeeded and {failed} failed, but {sent} were sent",) if wrong else ()
    notes = ("the normalised time per output token includes TTFT and is left out",)
    yield Result(found, load=load, notes=notes, doubts=doubts)
