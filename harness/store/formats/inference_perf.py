"""inference-perf's lifecycle reports, of 0.1 to 0.7."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.store.formats.point import Result, at, figures, numbers


def inference_perf(content: Mapping[str, Any]) -> Iterator[Result]:
    """summary_lifecycle_metrics.json, and those of its stages.

    Until April 2026 the report has neither a duration nor sums of tokens: both follow from counts and rates.
    """
    asked, totals = content["load_summary"], numbers("inference-perf", content)
    n, failed = totals["requests.completed"], totals["requests.failed"]
    derived = {}
    if totals["duration_s"] is None and n and totals["requests_per_s"]:
        derived["duration_s"] = n / totals["requests_per_s"]
    for name, word in (("input_tokens.got", "prompt_len"), ("output_tokens.got", "output_len")):
        if totals[name] is None and (mean := at(content, f"successes.{word}.mean?")) is not None:
            derived[name] = mean * n
    found = figures(totals, n) + figures(derived, n, status="derived")
    users, rate = asked.get("concurrency"), asked.get("requested_rate")
    load = {"shape": "closed", "users": users} if users else {"rate_per_s": rate} if rate else {}
    sent = asked.get("count")
    wrong = sent is not None and sent != n + failed
    doubts = (f"{n} requests succeeded and {failed} failed, but {sent} were sent",) if wrong else ()
    notes = ("the normalised time per output token includes TTFT and is left out",)
    yield Result(found, load=load, notes=notes, doubts=doubts)
