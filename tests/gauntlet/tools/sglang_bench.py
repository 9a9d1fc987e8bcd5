"""SGLang's bench_serving."""

from __future__ import annotations

from pathlib import Path

from gauntlet.tools.peer import WHOLE_RUN, At, Peer, latencies
from gauntlet.trap import Trap


def command(trap: Trap, url: str, out: Path, tokenizer: str) -> list[str]:
    load = trap.load
    if load.rate_per_s is not None and load.arrivals != "poisson":
        return []
    backend = "sglang-oai-chat" if load.endpoint == "chat" else "sglang-oai"
    words = ["--backend", backend, "--base-url", url, "--model", tokenizer]
    words += ["--served-model-name", "stub", "--tokenizer", tokenizer, "--dataset-name", "random-ids"]
    words += ["--num-prompts", str(load.requests), "--random-range-ratio", "1"]
    words += ["--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens)]
    words += ["--output-file", str(out / "result.jsonl"), "--disable-tqdm"]
    words += ["--disable-ignore-eos"] * (not load.ignore_eos)
    if load.rate_per_s is None:
        return [*words, "--max-concurrency", str(load.users)]
    return [*words, "--request-rate", f"{load.rate_per_s:g}"]


IMPORTS = (
    "torch==2.13.0 transformers aiohttp msgspec numpy orjson requests tqdm pybase64 pillow datasets psutil "
    "triton starlette pyzmq ipython apache-tvm-ffi sentencepiece compressed-tensors gguf"
)
"""What the client imports; the package's own list asks for CUDA. Later versions import torchvision's operators."""
NAMES = {"ttft_s": "ttft", "tpot_s": "tpot", "itl_s": "itl", "e2e_s": "e2e_latency"}
PEER = Peer(
    name="sglang",
    packages=(*IMPORTS.split(), "sglang==0.5.9"),
    alone=True,
    note="Installed without the packages for GPUs; later versions cannot start without them",
    program="python -m sglang.bench_serving",
    code="import runpy; runpy.run_module('sglang.bench_serving', run_name='__main__')",
    imports="sglang.bench_serving",
    command=command,
    result="result.jsonl",
    figures={
        **latencies(NAMES, ("mean", "median", "p99"), "{key}_{name}_ms", 1e-3),
        "requests_per_s": At("request_throughput"),
        "output_tokens_per_s": At("output_throughput"),
        "requests.completed": At("completed"),
        "input_tokens.got": At("total_input_tokens"),
        "output_tokens.got": At("total_output_tokens"),
    },
    source="https://docs.sglang.ai/developer_guide/bench_serving.html",
    defines={"*": WHOLE_RUN, "input_tokens.got": "input tokens are those of the prompts by the client's tokenizer"},
)
