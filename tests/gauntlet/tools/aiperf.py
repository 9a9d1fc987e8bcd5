"""aiperf."""

from __future__ import annotations

from pathlib import Path

from gauntlet.tools.peer import WHOLE_RUN, At, Peer, latencies
from gauntlet.trap import Trap


def command(trap: Trap, url: str, out: Path, tokenizer: str) -> list[str]:
    load = trap.load
    words = ["profile", "--model", "stub", "--url", url, "--endpoint-type", load.endpoint, "--streaming"]
    words += ["--tokenizer", tokenizer, "--request-count", str(load.requests), "--ui-type", "none"]
    words += ["--isl", str(load.input_tokens), "--osl", str(load.output_tokens), "--output-artifact-dir", str(out)]
    words += ["--extra-inputs", "ignore_eos:true"] * load.ignore_eos
    if load.rate_per_s is None:
        return [*words, "--concurrency", str(load.users)]
    return [*words, "--request-rate", f"{load.rate_per_s:g}", "--arrival-pattern", load.arrivals]


NAMES = {"ttft_s": "time_to_first_token", "tpot_s": "inter_token_latency"}
NAMES |= {"itl_s": "inter_chunk_latency", "e2e_s": "request_latency"}
PEER = Peer(
    name="aiperf",
    packages=("aiperf",),
    program="aiperf",
    code="from aiperf.cli import app; app()",
    imports="aiperf.cli",
    command=command,
    result="**/profile_export_aiperf.json",
    figures={
        **latencies(NAMES, ("avg", "p50", "p99"), "{name}.{key}", 1e-3),
        "requests_per_s": At("request_throughput.avg"),
        "output_tokens_per_s": At("output_token_throughput.avg"),
        "requests.completed": At("request_count.avg"),
        "requests.failed": At("error_request_count.avg", missing=0.0),  # written only where there are failures
        "input_tokens.got": At("total_isl.avg"),
        "output_tokens.got": At("total_osl.avg"),
    },
    source="https://github.com/ai-dynamo/aiperf/blob/main/docs/metrics-reference.md",
    defines={
        "*": WHOLE_RUN,
        "output_tokens_per_s": "output tokens are counted from the text by the client's tokenizer, reasoning included",
        "input_tokens.got": "input tokens are counted by the client's tokenizer",
    },
    best={"server-tokens": ("--use-server-token-count",)},
)
