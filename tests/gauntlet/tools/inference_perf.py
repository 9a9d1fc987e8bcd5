"""inference-perf."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gauntlet.tools.peer import WHOLE_RUN, At, Peer, latencies
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
    return ["--config_file", str(out / "config.yaml")]


NAMES = {"ttft_s": "time_to_first_token", "tpot_s": "time_per_output_token"}
NAMES |= {"itl_s": "inter_token_latency", "e2e_s": "request_latency"}
IMPORTS = (
    "aiohttp pydantic numpy datasets transformers==5.13.0 jinja2 google-cloud-storage pyyaml boto3 uvloop tqdm "
    "aiofiles tiktoken rich av pillow prometheus-client"
)
"""What it asks for. It asks for Python 3.12 as well, and runs on 3.11."""
PEER = Peer(
    name="inference-perf",
    packages=(*IMPORTS.split(), "inference-perf"),
    alone=True,
    note="On Python 3.11, though its package asks for 3.12",
    program="inference-perf",
    code="from inference_perf.main import main_cli; main_cli()",
    imports="inference_perf.main",
    command=command,
    result="**/summary_lifecycle_metrics.json",
    figures={
        **latencies(NAMES, ("mean", "median", "p99"), "successes.latency.{name}.{key}"),
        "requests_per_s": At("successes.throughput.requests_per_sec"),
        "output_tokens_per_s": At("successes.throughput.output_tokens_per_sec"),
        "requests.completed": At("successes.count"),
        "requests.failed": At("failures.count"),
        "input_tokens.got": At("successes.prompt_tokens.total"),
        "output_tokens.got": At("successes.output_tokens.total"),
        "cached_tokens": At("successes.prompt_tokens.cached"),
    },
    source="https://github.com/kubernetes-sigs/inference-perf/blob/main/docs/metrics.md",
    defines={
        "*": WHOLE_RUN,
        "output_tokens_per_s": "output tokens are counted from the text by the client's tokenizer",
    },
)
