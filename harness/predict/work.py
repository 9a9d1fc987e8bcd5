"""What one GPU must hold, and do in a decode step and for prompts that come in: bytes, operations, messages, steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.cost.draws import Array
from harness.cost.gpus import Gpu
from harness.errors import HarnessError
from harness.predict.shapes import PRECISIONS, ModelShape

CHUNK = 8192
"""Prompt tokens that engines compute in one pass at most."""
UNIT_S = 1e-5
"""Unit of the fixed costs: their coefficients are ln of multiples of 10 us."""
KV_FP8 = {("nvfp4", "trtllm"), ("nvfp4", "sglang"), ("nvfp4", "vllm"), ("fp8", "trtllm")}
"""(Weights, engine) that the public points serve with a cache in fp8; otherwise bf16."""
MEMORY_SHARE = 0.92
"""Share of a GPU's memory that an engine may use (vLLM: 0.9; SGLang and TensorRT-LLM somewhat more)."""
ENGINE_BYTES = 2e9
"""CUDA context, graphs and buffers for communication on each GPU, assumed."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 72)
"""Sizes of a group of GPUs that are tried."""


@dataclass(frozen=True, slots=True)
class Serving:
    """One group of GPUs that holds one copy of the model, and its load.

    `batch` sequences are in flight, of `input` and `output` tokens. `gpus` serve it together: `dp` data-parallel ranks
    of attention, each with gpus / dp tensor-parallel GPUs; experts over `ep` ranks. `prefill_gpus` > 0: prompts are
    computed on other GPUs (disaggregated serving). `released`: year of the engine's release, as 2026.25.
    """

    model: ModelShape
    gpu: Gpu
    precision: str
    batch: float
    input: float = 500.0
    output: float = 500.0
    gpus: int = 1
    dp: int = 1
    ep: int = 1
    prefill_gpus: int = 0
    engine: str = "vllm"
    released: float = 2026.25
    version: str = ""
    task: str = "random"
    pp: int = 1
    """Pipeline stages, each of `gpus` GPUs. A stage holds 1 / pp of the layers and works on batch / pp sequences."""

    @property
    def devices(self) -> int:
        """GPUs of all stages, and those for prompts."""
        return self.gpus * self.pp + self.prefill_gpus

    @property
    def cache_bytes(self) -> float:
        """Bytes of one cached value."""
        return 1.0 if (self.precision, self.engine) in KV_FP8 else 2.0


def weight_bytes(model: ModelShape, precision: str) -> tuple[float, float]:
    """Bytes of a weight outside the routed experts, and inside: 4-bit MoE checkpoints quantise the experts alone."""
    inside = PRECISIONS[precision]
    return (2.0 if model.experts and inside < 1 else inside), inside


def attention_params(m: ModelShape, dense: float) -> float:
    """Parameters of the attention among the `dense` ones, which data-parallel ranks hold each."""
    return min(m.kv_layers * m.hidden * (2 * m.heads * m.head_dim + m.kv_values), 0.9 * dense)


def peak_flops(gpu: Gpu, precision: str) -> float:
    """FLOP/s of the matrix units at the precision in which they compute; weight-only formats compute in bf16."""
    fp8 = gpu.flops_fp8 or gpu.flops_bf16
    if precision == "nvfp4":
        return gpu.flops_fp4 or gpu.flops_bf16
    if precision == "mxfp4":  # activations in mxfp8 where the GPU knows it
        return fp8 if gpu.flops_fp4 else gpu.flops_bf16
    return fp8 if precision == "fp8" else gpu.flops_bf16


def cached_values(model: ModelShape, tokens: float) -> float:
    """Values in the cache of one sequence of `tokens` tokens, all layers."""
    windowed = min(tokens, model.window) if model.window else tokens
    full = model.kv_layers - model.window_layers
    return model.kv_values * (full * tokens + model.window_layers * windowed)


TERMS = (
    "dense", "expert", "kv", "flop", "link_latency", "link", "activation", "vocabulary",
    "layer", "moe_layer", "step", "group_step", "sequence",
    "prefill_weight", "prefill_flop", "prefill_attention", "prefill_link", "prefill_activation", "prefill_layer",
)  # fmt: skip
"""The terms of a step. At efficiency 1 they are what the data sheet promises, but for the fixed costs."""


def seconds(s: Serving) -> Mapping[str, float]:
    """Ideal seconds of each term of one decode step, by `TERMS`; docs/method.md has the formulas.

    Besides `prompt_compute`: the FLOP of the prompts, whether reading the weights hides them or not.
    """
    if s.pp > 1 or s.batch < 1:  # a micro-batch passes through all stages; no step is without a sequence
        return seconds(replace(s, pp=1, batch=max(1.0, s.batch / s.pp)))
    m, n = s.model, s.gpus
    tp, context = n / s.dp, s.input + s.output / 2
    outside, inside = weight_bytes(m, s.precision)
    dense = m.total_params - m.expert_params - m.embed_params
    attention = attention_params(m, dense)
    touched = 1 - (1 - m.experts_active / m.experts) ** s.batch if m.experts else 0.0
    cache = cached_values(m, context) * s.cache_bytes / min(tp, m.kv_heads) + m.state_values * 4 / tp
    bandwidth, peak = s.gpu.bandwidth_bytes_per_s, peak_flops(s.gpu, s.precision)
    width = 1088 if m.kind.startswith("mla") else 2 * m.head_dim  # absorbed latent attention: 576 + 512
    looks_back = cached_values(m, context) / m.kv_values if m.kv_values else 0.0
    ring = 2 * (n - 1) / n * 2 * m.layers * m.hidden * 2.0  # two all-reduces a layer of 2-byte values, by token
    passes = 20 * m.layers * m.hidden * 2.0  # reads and writes of 2-byte values beside the matrices, by token
    per_step = 0.0 if s.prefill_gpus else (s.batch if s.task != "random" else s.batch - 1) / s.output
    passes_per_step = max(min(1.0, per_step), per_step * s.input / CHUNK)
    prompt = 2 * m.active_params * s.input / n
    square = 2 * m.heads * 2 * m.head_dim * cached_values(m, s.input) / max(m.kv_values, 1) * s.input / 2 / n
    seen = 1 - (1 - m.experts_active / m.experts) ** min(s.input, CHUNK) if m.experts else 0.0
    pass_s = (outside * dense + inside * m.expert_params * seen) / n / bandwidth
    dense_s = outside * (attention / tp + (dense - attention) / n) / bandwidth
    expert_s, cache_s = inside * m.expert_params * touched / n / bandwidth, s.batch / s.dp * cache / bandwidth
    matrices_s = 2 * m.active_params * s.batch / n / peak
    attention_s = 2 * m.heads * width * looks_back * s.batch / n / s.gpu.flops_bf16
    return {
        "dense": dense_s,
        "expert": expert_s,
        "kv": cache_s,
        "flop": _excess(matrices_s, dense_s + expert_s) + _excess(attention_s, cache_s),
        "link_latency": UNIT_S * m.layers * np.log2(n),
        "link": s.batch / s.dp * ring / s.gpu.link_bytes_per_s,
        "activation": s.batch / s.dp * passes / bandwidth,
        "vocabulary": s.batch / s.dp * m.vocab * 4 / bandwidth,
        "layer": UNIT_S * m.layers,
        "moe_layer": UNIT_S * m.moe_layers,
        "step": UNIT_S * 100,
        "group_step": UNIT_S * 100 * (n > 1),
        "sequence": UNIT_S * s.batch / s.dp,
        "prefill_weight": passes_per_step * pass_s,
        "prefill_flop": _excess(per_step * prompt / peak, passes_per_step * pass_s),
        "prefill_attention": per_step * square / s.gpu.flops_bf16,
        "prefill_link": per_step * s.input * ring / s.gpu.link_bytes_per_s,
        "prefill_activation": per_step * s.input * passes / bandwidth,
        "prefill_layer": passes_per_step * UNIT_S * m.layers,
        "prompt_compute": per_step * prompt / peak,
    }


def _excess(compute_s: float, memory_s: float) -> float:
    """What computing adds to reading, which it overlaps: a smooth max(compute, memory) - memory."""
    return float((compute_s**4 + memory_s**4) ** 0.25 - memory_s)


def columns(servings: Sequence[Serving]) -> Array:
    """Ideal seconds, shape (servings, terms)."""
    return np.array([[row[term] for term in TERMS] for row in map(seconds, servings)])


def weights_per_gpu(s: Serving) -> float:
    """Bytes of weights on one GPU; data-parallel ranks of attention hold its weights each."""
    m, tp = s.model, s.gpus / s.dp
    outside, inside = weight_bytes(m, s.precision)
    dense = m.total_params - m.expert_params
    attention = attention_params(m, dense)
    return (outside * (attention / tp + (dense - attention) / s.gpus) + inside * m.expert_params / s.gpus) / s.pp


def bytes_per_sequence(s: Serving, tokens: float | None = None) -> float:
    """Bytes of cache and state that one sequence takes on a GPU, at its full length unless `tokens` says otherwise.

    A head of the cache is not split over GPUs.
    """
    m, tp = s.model, s.gpus / s.dp
    cache = cached_values(m, tokens or s.input + s.output) * s.cache_bytes / min(tp, m.kv_heads)
    return (cache + m.state_values * 2 / tp) / s.pp


def memory_bytes(s: Serving) -> float:
    """Bytes of weights and cache on one GPU."""
    return weights_per_gpu(s) + s.batch / s.dp * bytes_per_sequence(s)


def room(s: Serving) -> float:
    """Bytes for the cache on one GPU, after weights, the engine and the activations of a chunk of 8,192 tokens."""
    activations = 8192 * s.model.hidden * 2 * 4
    return MEMORY_SHARE * s.gpu.memory_bytes - weights_per_gpu(s) - ENGINE_BYTES - activations


def largest_batch(s: Serving, tokens: float | None = None) -> float:
    """Sequences (of full length, or of `tokens`) that fit into the group's memory; below 1: not even the model."""
    return room(s) / bytes_per_sequence(s, tokens) * s.dp if room(s) > 0 else 0.0


def sizes_that_hold(s: Serving) -> list[int]:
    """Sizes of a group of this GPU that hold the model and one sequence, data parallelism aside."""
    return [n for n in SIZES if n <= s.gpu.domain and largest_batch(replace(s, gpus=n)) >= 1]


def check_fits(s: Serving) -> None:
    """HarnessError, with what would fit, if the weights or the batch do not fit into the memory."""
    most, wanted, m = largest_batch(s), max(1.0, s.batch), s.model
    if most >= wanted:
        return
    larger = (n for n in SIZES if s.gpus < n <= s.gpu.domain)
    fits = next((n for n in larger if largest_batch(replace(s, gpus=n, dp=1)) >= wanted), None)
    more = "use a GPU with more memory, more copies (--devices) or stages (--pp)"
    if fits is not None:
        more = f"use {fits} GPUs a copy (--tp {fits})"
    have = f"{s.gpus} x {s.gpu.name} have {s.gpus * s.gpu.memory_bytes / 1e9:,.0f} GB"
    if most >= 1:
        needs = s.batch / s.dp * bytes_per_sequence(s) * s.gpus
        what = f"the cache of {s.batch:,.0f} sequences needs {needs / 1e9:,.0f} GB, {have} with the weights of {m.name}"
        raise HarnessError(what, f"at most {most:,.0f} sequences fit (--batch {most:.0f}); or {more}")
    what = f"one sequence of {s.input + s.output:,.0f} tokens of {m.name} does not fit beside its weights: {have}"
    if room(s) <= 0:
        outside, inside = weight_bytes(m, s.precision)
        whole = outside * (m.total_params - m.expert_params) + inside * m.expert_params
        what = f"{m.name} in {s.precision} takes {whole / 1e9:,.0f} GB of weights, {have}"
    raise HarnessError(what, f"{more} or a smaller precision")
