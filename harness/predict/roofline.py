"""Time and power of a decode step on a GPU: the roofline limit, a model fitted to measurements, and its errors."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from harness.cost.draws import Array, Draws
from harness.cost.gpus import Gpu, find_gpu
from harness.errors import HarnessError

WEIGHT_BYTES: Mapping[str, float] = {"bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "mxfp4": 0.53125}
"""Bytes per weight; mxfp4 is 4 bits and a shared 8-bit scale for 32 weights (OCP Microscaling Formats 1.0)."""
KV_BYTES = 2.0
"""Bytes of one number in the KV cache: bfloat16, the engines' default."""
STEP_PRIOR = np.array([3e-5, 3e-5, 3e-5, 0.8, 0.6, 0.5])
STEP_PRIOR_SD = np.array([0.7, 1.0, 0.7, 0.1, 0.2, 0.3])
"""Medians, and standard deviations of ln, of t0, tm, t1 and the efficiencies: assumed from what kernels reach.
They decide where the points constrain a parameter little."""
EFFICIENCY_CAP = 0.95
"""No kernel uses the whole bandwidth or all FLOP/s."""
NOISE = 0.15
"""Residual of ln time above which a point counts as an outlier (soft L1)."""
INPUT_TOKENS = 200.0
"""Mean prompt of the published chat points, assumed: the files do not say."""
Work = Any
"""The work of decode steps: a record array, a row for each point, with the columns of `WORK`."""
WORK = (  # bandwidth, peak and power limit are those of all devices together
    "layers", "moe_layers", "batch",
    "dense_bytes",  # weights that every step reads, and the KV cache of the batch
    "expert_bytes", "flop", "bandwidth", "peak", "power_limit_w",
)  # fmt: skip
POINT = [("model", "U48"), ("kind", "U8"), *((name, float) for name in (*WORK, "output_tokens_per_s", "power_w"))]
"""Columns of a published measurement: the model, its work, the measured rate and power."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A row of models.csv. `expert_params` are those of all routed experts; 0 experts: a dense (or hybrid) model."""

    name: Annotated[str, Field(validation_alias="model")]
    also: Annotated[frozenset[str], BeforeValidator(lambda names: names.split(";") if names else ())]
    """Names of hub repositories with the same architecture."""
    kind: str
    layers: float
    kv_layers: float
    kv_heads: float
    head_dim: float
    total_params: float
    active_params: float
    expert_params: float
    experts: float
    experts_per_token: float
    moe_layers: float
    source: str


def find_model(name: str, models: Sequence[ServedModel]) -> ServedModel | None:
    """The model of that name, or that of a hub repository (`org/name`) with the same architecture; None: unknown."""
    short = name.rpartition("/")[2]
    return next((model for model in models if short == model.name or short in model.also), None)


UNUSUAL = ("kv_lora_rank", "hybrid_override_pattern", "linear_attn_config", "mlp_only_layers")
"""Entries of a config.json whose models have layers or caches of other forms than `from_config` counts."""


def from_config(name: str, config: Mapping[str, Any]) -> ServedModel | None:
    """The model that a config.json describes; None for one with unusual layers, or without the needed entries.

    Parameters are those of attention, MLP (gate, up, down) and the embeddings; norms and biases are left out.
    """
    c = {**config, **(config.get("text_config") or {})}
    layers, hidden, heads, vocab = (
        c.get(k) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    )
    experts = c.get("num_experts") or c.get("num_local_experts") or 0
    width = (c.get("moe_intermediate_size") if experts else None) or c.get("intermediate_size")
    if (
        not (layers and hidden and heads and vocab and width)
        or any(c.get(key) for key in UNUSUAL)
        or {*c.get("layer_types", ())} - {"full_attention"}
    ):
        return None
    kv_heads, head_dim = c.get("num_key_value_heads") or heads, c.get("head_dim") or hidden // heads
    mlp, used = 3 * hidden * width * layers, c.get("num_experts_per_tok") or 0
    rest = 2 * hidden * head_dim * (heads + kv_heads) * layers + vocab * hidden * (
        1 if c.get("tie_word_embeddings") else 2
    )
    total, active, kind = rest + mlp * (experts or 1), rest + mlp * (used or 1), "moe" if experts else "dense"
    return ServedModel(
        name, frozenset(), kind, layers, layers, kv_heads, head_dim, total, active, mlp * experts, experts, used,
        layers if experts else 0, "config.json",
    )  # fmt: skip


def parse_points(text: str, models: Sequence[ServedModel], gpus: tuple[Gpu, ...]) -> Work:
    """The chat points of published/mlenergy_v3_h100.csv or mlenergy_v2_a100.csv whose model is in models.csv.

    A row for each point, with the columns of `POINT`. Pipeline-parallel points are left out.
    """
    points = []
    for r in csv.DictReader(io.StringIO(text)):
        if r["task"] == "lm-arena-chat":
            names, precision = (r["model_id"], r["gpu_model"]), r["weight_precision"]
            columns = ("num_gpus", "avg_batch_size", "avg_output_len", "output_throughput_tokens_per_sec")
            watts = float(r["avg_power_watts"])
        elif r["task"] == "chat" and r["PP"] == "1":
            names, precision = (r["Model"].replace("Meta-", ""), r["GPU"]), "bfloat16"
            columns = ("TP", "Avg BS (reqs)", "Avg Output Tokens", "Token tput (tok/s)")
            watts = float(r["Energy/req (J)"]) / float(r[columns[2]]) * float(r[columns[3]])
        else:
            continue
        devices, batch, output_tokens, rate = (float(r[column]) for column in columns)
        model, gpu = find_model(names[0], models), find_gpu(names[1], gpus)
        if model and gpu:
            todo = work(model, gpu, precision, devices, batch, INPUT_TOKENS, output_tokens)
            points.append((model.name, model.kind, *todo[0], rate, watts))
    return np.array(points, dtype=POINT).view(np.recarray)


def work(
    model: ServedModel,
    gpu: Gpu,
    precision: str,
    devices: float,
    batch: float,
    input_tokens: float,
    output_tokens: float,
) -> Work:
    """The work of one decode step of `batch` sequences, with its share of the prefill; one row.

    The formulas are in docs/economics.md. HarnessError for a precision without FLOP/s or bytes per weight.
    """
    peak = gpu.flops_fp8 if precision == "fp8" else gpu.flops_bf16
    if precision not in WEIGHT_BYTES or peak is None:
        what = f"no FLOP/s or bytes known for precision '{precision}' on {gpu.name}"
        raise HarnessError(what, f"use one of {', '.join(WEIGHT_BYTES)}")
    touched = 1 - (1 - model.experts_per_token / model.experts) ** batch if model.experts else 0.0
    context = input_tokens + output_tokens / 2
    cache = 2 * model.kv_layers * model.kv_heads * model.head_dim * KV_BYTES * context * batch
    size = WEIGHT_BYTES[precision]
    row = (
        model.layers, model.moe_layers, batch, size * (model.total_params - model.expert_params) + cache,
        size * model.expert_params * touched, 2 * model.active_params * batch * (1 + input_tokens / output_tokens),
        gpu.bandwidth_bytes_per_s * devices, peak * devices, gpu.tdp_w * devices,
    )  # fmt: skip
    return np.array([row], dtype=[(name, float) for name in WORK]).view(np.recarray)


def step_s(step: Array, w: Work) -> Array:
    """Seconds of a step, by `step`: t0, tm (s per layer, per MoE layer), t1 (s per sequence), three efficiencies.

    t0 L + tm L_moe + t1 B + dense_bytes/(BW eta_m) + expert_bytes/(BW eta_e) + FLOP/(F eta_c).
    """
    t0, tm, t1, *efficiencies = step
    eta_m, eta_e, eta_c = np.minimum(efficiencies, EFFICIENCY_CAP)
    memory = (w.dense_bytes / eta_m + w.expert_bytes / eta_e) / w.bandwidth
    return np.asarray(t0 * w.layers + tm * w.moe_layers + t1 * w.batch + memory + w.flop / (w.peak * eta_c))


def power_terms(w: Work, seconds: Array) -> Array:
    """Shape (points, 3): 1, and the used shares of bandwidth and of FLOP/s."""
    moved = w.dense_bytes + w.expert_bytes
    return np.column_stack([np.ones_like(seconds), moved / (w.bandwidth * seconds), w.flop / (w.peak * seconds)])


def power_w(power: Array, w: Work, seconds: Array) -> Array:
    """Watts: power limit * min(1, rest + a * used share of bandwidth + b * used share of FLOP/s)."""
    return np.asarray(w.power_limit_w * np.minimum(power_terms(w, seconds) @ power, 1.0))


def floor_s(w: Work) -> Array:
    """The roofline: seconds of a step that uses bandwidth or FLOP/s in full (Williams et al. 2009)."""
    return np.asarray(np.maximum((w.dense_bytes + w.expert_bytes) / w.bandwidth, w.flop / w.peak))


def fit(points: Work) -> tuple[Array, Array]:
    """The parameters of `step_s` and of `power_w`.

    ln step time by robust regression (soft L1) with weak priors; power by non-negative relative least squares.
    """
    from scipy import optimize

    observed, prior = points.batch / points.output_tokens_per_s, np.log(STEP_PRIOR)

    def off(logs: Array) -> Array:
        residual = np.log(step_s(np.exp(logs), points) / observed) / NOISE
        return np.concatenate([residual, (logs - prior) / STEP_PRIOR_SD])

    step = np.exp(optimize.least_squares(off, prior, loss="soft_l1").x)
    share = points.power_w / points.power_limit_w
    power = optimize.nnls(power_terms(points, observed) / share[:, None], np.ones(len(points)))[0]
    return step, np.asarray(power)


def _per_token(points: Work, w: Work) -> tuple[Array, Array]:
    """Seconds and joules per output token of steps `w`, from a fit to `points`."""
    step, power = fit(points)
    seconds = step_s(step, w)
    return seconds / w.batch, power_w(power, w, seconds) * seconds / w.batch


def spread_of(names: NDArray[np.str_], errors: Array) -> Array:
    """Half-widths of a 90% interval of ln time and ln energy for a model that is not among `names`.

    The sampling unit is the model, not the point: t_{0.95, G-1} * sqrt(1 + 1/G) * rms over G models.
    """
    from scipy import stats

    groups = sorted(set(names))
    square = np.mean([np.mean(errors[:, names == group] ** 2, axis=1) for group in groups], axis=0)
    return np.asarray(stats.t.ppf(0.95, len(groups) - 1) * np.sqrt((1 + 1 / len(groups)) * square))


def spreads(points: Work, errors: Array) -> Array:
    """`spread_of` for each point, shape (2, points), from the errors of the other models alone."""
    names, which = np.unique(points.model, return_inverse=True)
    halves = [spread_of(points.model[points.model != name], errors[:, points.model != name]) for name in names]
    return np.array(halves)[which].T


def left_out_errors(fitted: Work, predicted: Work) -> Array:
    """ln(predicted / measured) per output token, row 0 time, row 1 energy; each model from a fit to the others."""
    errors = np.empty((2, len(predicted)))
    for name in set(predicted.model):
        chosen = predicted.model == name
        w = predicted[chosen]
        seconds, joules = _per_token(fitted[fitted.model != name], w)
        errors[:, chosen] = np.log([seconds, joules / w.power_w]) + np.log(w.output_tokens_per_s)
    return errors


def predict(points: Work, w: Work, devices: int, u: Draws) -> tuple[Draws, Draws]:
    """Draws of device-seconds and accelerator joules per output token of one row of `work`, at the uniforms `u`.

    The draws include the error of predicting a model that was not measured: Student's t in ln, with one degree of
    freedom fewer than models. Time and energy use the same draw, since a slower step costs more energy.
    """
    from scipy import stats

    freedom = len(set(points.model)) - 1
    t = stats.t.ppf(u, freedom) / stats.t.ppf(0.95, freedom)
    time_half, energy_half = spread_of(points.model, left_out_errors(points, points))
    seconds, joules = _per_token(points, w)
    return np.asarray(seconds * devices * np.exp(time_half * t)), np.asarray(joules * np.exp(energy_half * t))


def limits_of(w: Work, output_tokens_per_s: float) -> Mapping[str, float]:
    """How close one serving point is to the roofline.

    mfu and mbu: used shares of FLOP/s and bandwidth, from the FLOP and bytes that a step needs; then seconds per output
    token at the roofline, and joules per output token there at the power limit.
    """
    floor = floor_s(w) / w.batch
    _, bandwidth, flops = power_terms(w, w.batch / output_tokens_per_s)[0]
    return {
        "mfu": float(flops),
        "mbu": float(bandwidth),
        "floor_s_per_output_token": float(floor[0]),
        "floor_joules_per_output_token": float((floor * w.power_limit_w)[0]),
    }
