"""What fits into a GPU's memory: weights, cache and activations of one rank."""

from dataclasses import replace

from harness.errors import HarnessError
from harness.predict.work import Serving, attention_params, cached_values, weight_bytes

MEMORY_SHARE = 0.92
"""Share of a GPU's memory that an engine may use (vLLM: 0.9; SGLang and TensorRT-LLM somewhat more)."""
ENGINE_BYTES = 2e9
"""CUDA context, graphs and buffers for communication on each GPU, assumed."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 72)
"""Sizes of a group of GPUs that are tried."""


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
