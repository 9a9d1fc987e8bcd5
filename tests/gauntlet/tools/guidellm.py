"""guidellm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gauntlet.tools.peer import Peer, at, latencies
from gauntlet.trap import Trap


def command(trap: Trap, url: str, out: Path, tokenizer: str) -> list[str]:
    load = trap.load
    path = "/v1/chat/completions" if load.endpoint == "chat" else "/v1/completions"
    profile = f"kind=concurrent,streams={load.users}"
    if load.rate_per_s is not None:
        profile = f"kind={load.arrivals},rate={load.rate_per_s:g}"
    data = f"kind=synthetic_text,prompt_tokens={load.input_tokens},output_tokens={load.output_tokens}"
    return [
        "guidellm", "run", "--backend", f"kind=openai_http,target={url},model=stub,request_format={path}",
        "--profile", profile, "--constraint", f"kind=max_requests,count={load.requests}",
        "--tokenizer", f"kind=huggingface_auto,model={tokenizer}", "--data", data,
        "--output", f"kind=json,path={out / 'result.json'}", "--disable-console",
    ]  # fmt: skip


def read(content: Mapping[str, Any]) -> dict[str, float | None]:
    benchmark = content["benchmarks"][-1]
    metrics = benchmark["metrics"]
    keys = {"mean": "mean", "p50": "median", "p99": "percentiles.p99"}
    found = latencies(
        metrics,
        {"ttft_s": "time_to_first_token_ms.successful", "tpot_s": "inter_token_latency_ms.successful"},
        keys, 1e-3,
    )  # fmt: skip
    found |= latencies(metrics, {"e2e_s": "request_latency.successful"}, keys, 1.0)
    made = metrics.get("request_totals") or benchmark["scheduler_metrics"]["requests_made"]
    return found | {
        "requests_per_s": at(metrics, "requests_per_second.successful.mean"),
        "output_tokens_per_s": at(metrics, "output_tokens_per_second.total.mean"),
        "requests.completed": at(made, "successful"),
        "requests.failed": at(made, "errored"),
        "input_tokens.got": at(metrics, "prompt_token_count.successful.total_sum"),
        "output_tokens.got": at(metrics, "output_token_count.successful.total_sum"),
    }


PEER = Peer(
    name="guidellm",
    packages=("guidellm",),
    command=command,
    result="result.json",
    read=read,
    source="https://github.com/vllm-project/guidellm/blob/main/docs/guides/metrics.md",
    defines={
        "*": "rates and latencies are those of the measured period, which by default is the whole run",
        "requests_per_s": "mean over time of the rate at which requests completed",
        "output_tokens_per_s": "mean over time of the rate at which tokens came, of all requests",
        "tpot_s": "its inter-token latency is the mean gap of a request, weighted by the request's tokens",
    },
)
