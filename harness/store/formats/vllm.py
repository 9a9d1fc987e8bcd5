"""vLLM's benchmarks, and SGLang's, which writes the same keys with other words."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.model import Record
from harness.store.formats.point import PERCENTILES, Result, at, figures, numbers, shared

_LATENCIES = {"ttft_s": ("ttft",), "tpot_s": ("tpot",), "itl_s": ("itl",), "e2e_s": ("e2el", "e2e_latency")}
"""Latency -> its words in the keys of vLLM and SGLang."""
_NOTES = (
    "TPOT is 0 for an answer that came in one chunk",
    "the duration runs from the first request drawn to the last return",
)


def latencies(content: Mapping[str, Any], unit: str = "ms") -> dict[str, dict[str, Any]]:
    """The latencies whose keys are such as `mean_ttft_ms`; without the unit at the end they are in seconds."""
    end = "_ms" if unit == "ms" else ""
    found = {}
    for name, words in _LATENCIES.items():
        keys = {
            stat: "|".join(f"{stat}_{word}{end}" for word in words) for stat in ("mean", "median", *PERCENTILES[1:])
        }
        found[name] = {"unit": unit} | {stat: at(content, f"{key}?") for stat, key in keys.items()}
    return found


def serve(content: Mapping[str, Any]) -> Iterator[Result]:
    """`vllm bench serve --save-result`, each entry of `vllm bench sweep serve`, and SGLang's `bench_serving`."""
    done, errors = content["completed"], content.get("errors")
    asked, failed = content.get("num_prompts"), content.get("failed")
    derived = {}
    if failed is None and (errors is not None or asked is not None):  # as in vLLM before 0.11
        derived["requests.failed"] = sum(map(bool, errors)) if errors is not None else max(0, asked - done)
    said = numbers("vllm serve", content) | latencies(content)
    yield Result(
        figures(said, done) + figures(derived, done, status="derived"),
        model=content.get("model_id"),
        name=str(content.get("label") or content.get("tag") or ""),
        engine=content.get("backend") or "openai",
        measured=content.get("date"),
        load=_load(content),
        notes=_NOTES,
        doubts=tuple(_doubts(content)),
        records=tuple(_records(content)),
    )


def _load(content: Mapping[str, Any]) -> dict[str, Any]:
    users, rate = content.get("max_concurrency", content.get("multi_turn_concurrency")), content.get("request_rate")
    if rate == "trace":
        return {"shape": "trace"}
    if content.get("ramp_up_strategy"):
        ends = {"from": "ramp_up_start_rps", "to": "ramp_up_end_rps"}
        return {"shape": "ramp", **{f"{end}_rate_per_s": content.get(key) for end, key in ends.items()}}
    if rate is not None and float(rate) != float("inf"):
        bursts = content.get("burstiness")
        shape = {"shape": "poisson"} if bursts is None else {"shape": "gamma", "burstiness": bursts}
        return shape | {"rate_per_s": float(rate)}
    return {"shape": "closed", "users": users} if users else {"shape": "offline"}


def _doubts(content: Mapping[str, Any]) -> Iterator[str]:
    done, failed, asked = content["completed"], content.get("failed"), content.get("num_prompts")
    if failed is None and asked is not None and done > asked:
        yield f"{done} requests completed, but num_prompts is {asked}"
    if None not in (failed, asked) and done + failed != asked:
        yield f"{done} requests completed and {failed} failed, but num_prompts is {asked}"
    if content.get("errors") and (good := sum(not error for error in content["errors"])) != done:
        yield f"{done} requests completed, but {good} rows are without an error"


def _records(content: Mapping[str, Any]) -> Iterator[Record]:
    """The rows that `--save-detailed` adds; their send times are on a clock with an unknown zero."""
    sent_s, ttft_s, gaps_s = (content.get(key) or () for key in ("start_times", "ttfts", "itls"))
    if not sent_s:
        return
    tokens, asked, errors = (content[key] for key in ("output_lens", "input_lens", "errors"))
    for i, begun_s in enumerate(sent_s):
        arrival_s, failed = [begun_s - sent_s[0] + ttft_s[i]], bool(errors[i])
        for gap_s in gaps_s[i]:
            arrival_s.append(arrival_s[-1] + gap_s)
        spread = shared(max(tokens[i], len(arrival_s)), len(arrival_s))
        yield Record(
            index=i, scheduled_s=begun_s - sent_s[0], sent_s=begun_s - sent_s[0], end_s=arrival_s[-1],
            arrival_s=() if failed else tuple(arrival_s), arrival_tokens=() if failed else spread,
            input_asked=asked[i], output_asked=tokens[i], input_tokens=None if failed else asked[i],
            output_tokens=None if failed else tokens[i],
            error="failed" if failed else None, error_text=errors[i] or None,
        )  # fmt: skip


def offline(content: Mapping[str, Any]) -> Iterator[Result]:
    """`vllm bench throughput --output-json`."""
    found = figures(numbers("vllm throughput", content), content["num_requests"])
    yield Result(found, content.get("model_id"), engine="vllm", load={"shape": "offline"})
