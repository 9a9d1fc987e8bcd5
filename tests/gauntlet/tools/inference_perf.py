"""inference-perf."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gauntlet.tools.peer import WHOLE_RUN, Peer, at, latencies
from gauntlet.trap import Trap


def command(trap: Trap, url: str, out: Path, tokenizer: str) -> list[str]:
    load = trap.load

    def fixed(length: int) -> dict[str, Any]:
        return {"type": "fixed", "min": length, "max": length, "mean": length, "std_dev": 0}

    stage: dict[str, Any] = {"num_requests": load.requests, "concurrency_level": load.users}
    if load.rate_per_s is not None:
        stage = {"rate": load.rate_per_s, "duration": math.ceil(load.requests / load.rate_per_s)}
    lengths = {"input_distribution": fixed(load.input_tokens), "output_distribution": fixed(load.output_tokens)}
    # Of the generators of texts with given lengths, this one alone can chat.
    groups = {"num_groups": load.requests, "num_prompts_per_group": 1, "system_prompt_len": 1}
    groups |= {"question_len": load.input_tokens - 1, "output_len": load.output_tokens}
    chat = load.endpoint == "chat"
    config = {
        "api": {"type": "chat" if chat else "completion", "streaming": True},
        "data": {"type": "shared_prefix", "shared_prefix": groups} if chat else {"type": "random", **lengths},
        "load": {
            "type": "concurrent" if load.rate_per_s is None else load.arrivals,
            "stages": [stage],
            "num_workers": 1,
            "base_seed": 1,
        },
        "server": {"type": "vllm", "model_name": "stub", "base_url": url, "ignore_eos": load.ignore_eos},
        "tokenizer": {"pretrained_model_name_or_path": tokenizer},
        "storage": {"local_storage": {"path": str(out / "reports")}},
    }
    (out / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    return ["inference-perf", "--config_file", str(out / "config.yaml")]


def read(content: Mapping[str, Any]) -> dict[str, float | None]:
    successes = content["successes"]
    paths = {"ttft_s": "time_to_first_token", "tpot_s": "time_per_output_token"}
    paths |= {"itl_s": "inter_token_latency", "e2e_s": "request_latency"}
    keys = {"mean": "mean", "p50": "median", "p99": "p99"}
    return latencies(successes.get("latency"), paths, keys, 1.0) | {
        "requests_per_s": at(successes, "throughput.requests_per_sec"),
        "output_tokens_per_s": at(successes, "throughput.output_tokens_per_sec"),
        "requests.completed": at(successes, "count"),
        "requests.failed": at(content, "failures.count"),
        "input_tokens.got": at(successes, "prompt_tokens.total"),
        "output_tokens.got": at(successes, "output_tokens.total"),
        "cached_tokens": at(successes, "prompt_tokens.cached"),
    }


PEER = Peer(
    name="inference-perf",
    packages=("inference-perf",),
    command=command,
    result="**/summary_lifecycle_metrics.json",
    read=read,
    source="https://github.com/kubernetes-sigs/inference-perf/blob/main/docs/metrics.md",
    defines={"*": WHOLE_RUN},
    python="python3.12",
)
