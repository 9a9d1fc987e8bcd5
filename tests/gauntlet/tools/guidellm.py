"""guidellm."""

from __future__ import annotations

from pathlib import Path

from gauntlet.tools.peer import At, Peer, latencies
from gauntlet.trap import Trap


def command(trap: Trap, url: str, out: Path, tokenizer: str) -> list[str]:
    load = trap.load
    path = "/v1/chat/completions" if load.endpoint == "chat" else "/v1/completions"
    profile = f"kind=concurrent,streams={load.users}"
    if load.rate_per_s is not None:
        profile = f"kind={load.arrivals},rate={load.rate_per_s:g}"
    data = f"kind=synthetic_text,prompt_tokens={load.input_tokens},output_tokens={load.output_tokens}"
    words = ["run", "--profile", profile, "--data", data]
    words += ["--backend", f"kind=openai_http,target={url},model=stub,request_format={path}"]
    words += ["--constraint", f"kind=max_requests,count={load.requests}"]
    words += ["--tokenizer", f"kind=huggingface_auto,model={tokenizer}"]
    return [*words, "--output", f"kind=json,path={out / 'result.json'}", "--disable-console"]


METRICS, KEYS = "benchmarks.-1.metrics.", ("mean", "median", "percentiles.p99")
MILLISECONDS = {"ttft_s": "time_to_first_token_ms", "tpot_s": "inter_token_latency_ms"}
PEER = Peer(
    name="guidellm",
    packages=("torch==2.13.0", "guidellm"),
    variables={"GUIDELLM__MAX_WORKER_PROCESSES": "2"},
    note="With two worker processes in place of ten, for a machine of two cores",
    program="guidellm",
    code="from guidellm.__main__ import cli; cli()",
    imports="guidellm.benchmark.entrypoints",
    command=command,
    result="result.json",
    figures={
        **latencies(MILLISECONDS, KEYS, METRICS + "{name}.successful.{key}", 1e-3),
        **latencies({"e2e_s": "request_latency"}, KEYS, METRICS + "{name}.successful.{key}"),
        "requests_per_s": At(METRICS + "requests_per_second.successful.mean"),
        "output_tokens_per_s": At(METRICS + "output_tokens_per_second.total.mean"),
        "requests.completed": At(METRICS + "request_totals.successful"),
        "requests.failed": At(METRICS + "request_totals.errored"),
        "input_tokens.got": At(METRICS + "prompt_token_count.successful.total_sum"),
        "output_tokens.got": At(METRICS + "output_token_count.successful.total_sum"),
    },
    source="https://github.com/vllm-project/guidellm/blob/main/docs/guides/metrics.md",
    defines={"*": "rates and latencies are those of the measured period, which by default is the whole run"},
)
