"""aiperf."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gauntlet.tools.peer import WHOLE_RUN, Peer, at, latencies
from gauntlet.trap import Trap


def command(trap: Trap, url: str, out: Path, tokenizer: str) -> list[str]:
    load = trap.load
    words = ["aiperf", "profile", "--model", "stub", "--url", url, "--endpoint-type", load.endpoint, "--streaming"]
    words += ["--tokenizer", tokenizer, "--request-count", str(load.requests), "--ui-type", "none"]
    words += ["--isl", str(load.input_tokens), "--osl", str(load.output_tokens), "--output-artifact-dir", str(out)]
    words += ["--extra-inputs", "ignore_eos:true"] * load.ignore_eos
    if load.rate_per_s is None:
        return [*words, "--concurrency", str(load.users)]
    return [*words, "--request-rate", f"{load.rate_per_s:g}", "--arrival-pattern", load.arrivals]


def read(content: Mapping[str, Any]) -> dict[str, float | None]:
    paths = {"ttft_s": "time_to_first_token", "tpot_s": "inter_token_latency"}
    paths |= {"itl_s": "inter_chunk_latency", "e2e_s": "request_latency"}
    found = latencies(content, paths, {"mean": "avg", "p50": "p50", "p99": "p99"}, 1e-3)
    keys = {"requests_per_s": "request_throughput", "output_tokens_per_s": "output_token_throughput"}
    keys |= {"requests.completed": "request_count", "requests.failed": "error_request_count"}
    keys |= {"input_tokens.got": "total_isl", "output_tokens.got": "total_osl"}
    counts = {name: at(content, f"{key}.avg") for name, key in keys.items()}
    if counts["requests.failed"] is None and counts["requests.completed"] is not None:
        counts["requests.failed"] = 0.0  # the count is written only where there are failures
    return found | counts


PEER = Peer(
    name="aiperf",
    packages=("aiperf",),
    command=command,
    result="**/profile_export_aiperf.json",
    read=read,
    source="https://github.com/ai-dynamo/aiperf/blob/main/docs/metrics-reference.md",
    defines={
        "*": WHOLE_RUN,
        "output_tokens.got": "output tokens are counted from the text by the client's tokenizer, reasoning included",
        "input_tokens.got": "input tokens are counted by the client's tokenizer",
    },
    best={"server-tokens": ("--use-server-token-count",)},
)
