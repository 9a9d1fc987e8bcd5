"""SGLang's bench_serving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gauntlet.tools.peer import WHOLE_RUN, Peer, at
from gauntlet.trap import Trap


def command(trap: Trap, url: str, out: Path, tokenizer: str) -> list[str]:
    load = trap.load
    backend = "sglang-oai-chat" if load.endpoint == "chat" else "sglang-oai"
    words = ["python", "-m", "sglang.bench_serving", "--backend", backend, "--base-url", url, "--model", tokenizer]
    words += [
        "--served-model-name",
        "stub",
        "--tokenizer",
        tokenizer,
        "--dataset-name",
        "random-ids",
        "--num-prompts",
        str(load.requests),
    ]
    words += ["--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens)]
    words += ["--random-range-ratio", "1", "--output-file", str(out / "result.jsonl"), "--disable-tqdm"]
    words += ["--disable-ignore-eos"] * (not load.ignore_eos)
    if load.rate_per_s is None:
        return [*words, "--max-concurrency", str(load.users)]
    return [*words, "--request-rate", f"{load.rate_per_s:g}"]


def read(content: Mapping[str, Any]) -> dict[str, float | None]:
    keys = {"ttft_s": "ttft", "tpot_s": "tpot", "itl_s": "itl", "e2e_s": "e2e_latency"}
    each = {"mean": "mean", "p50": "median", "p99": "p99"}
    found = {
        f"{name}.{statistic}": at(content, f"{word}_{key}_ms", 1e-3)
        for name, key in keys.items()
        for statistic, word in each.items()
    }
    counts = {"requests_per_s": "request_throughput", "output_tokens_per_s": "output_throughput"}
    counts |= {"requests.completed": "completed", "output_tokens.got": "total_output_tokens"}
    counts |= {"input_tokens.got": "total_input_tokens"}
    return found | {name: at(content, key) for name, key in counts.items()}


IMPORTS = (
    "torch torchvision triton transformers aiohttp msgspec numpy orjson requests tqdm pybase64 pillow datasets psutil "
    "starlette pyzmq ipython apache-tvm-ffi sentencepiece compressed-tensors gguf"
)
"""What the client imports; the package's own list asks for CUDA."""
PEER = Peer(
    name="sglang",
    packages=tuple(IMPORTS.split()),
    no_dependencies=("sglang",),
    command=command,
    result="result.jsonl",
    read=read,
    source="https://docs.sglang.ai/developer_guide/bench_serving.html",
    defines={"*": WHOLE_RUN, "input_tokens.got": "input tokens are those of the prompts by the client's tokenizer"},
)
