"""How fast a decode step could be on a GPU, how fast it is, and what that predicts for models and GPUs not measured."""

from __future__ import annotations

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
"""Bytes a weight; mxfp4 is 4 bits and a shared 8-bit scale for 32 weights (OCP Microscaling Formats 1.0)."""
KV_BYTES = 2.0
"""Bytes of one number in the KV cache: bfloat16, the engines' default."""
STEP_PRIOR = np.array([3e-5, 3e-5, 3e-5, 0.8, 0.6, 0.5])
STEP_PRIOR_SD = np.array([0.7, 1.0, 0.7, 0.1, 0.2, 0.3])
"""t0, tm, t1, then efficiencies: medians and standard deviations of ln, from what kernels reach in practice (assumed).
They matter where the points say little; the cap below keeps an efficiency physical."""
EFFICIENCY_CAP = 0.95
NOISE = 0.15
"""Scale at which a residual of ln time counts as an outlier (soft L1)."""
INPUT_TOKENS = 200.0
"""Mean prompt of the published chat points, assumed: the files do not say."""
Work = Any
"""What decode steps must do, as a record array, one row a point, with the columns of `WORK` (limits of all devices)."""
WORK = (
    "layers", "moe_layers", "batch",
    "dense_bytes",  # weights that every step reads, and the KV cache of the batch
    "expert_bytes", "flop", "bandwidth", "peak", "power_limit_w",
)  # fmt: skip
POINT = [("model", "U48"), ("kind", "U8"), *((name, float) for name in (*WORK, "output_tokens_per_s", "power_w"))]
"""A measurement of steady serving: the model, its work, and what came of it."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A row of models.csv. `expert_params` are those of all routed experts; 0 experts: a dense (or hybrid) model."""

    name: Annotated[str, Field(validation_alias="model")]
    also: Annotated[frozenset[str], BeforeValidator(lambda names: names.split(";") if names else ())]
    """Names of repositories with this architecture."""
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
    """The model of that name: in the table, or a repository (`org/name`) of the same architecture."""
    short = name.rpartition("/")[2]
    return next((model for model in models if short == model.name or short in model.also), None)


def parse_points(text: str, models: Sequence[ServedModel], gpus: tuple[Gpu, ...]) -> Work:
    """The chat points of published/mlenergy_v3_h100.csv or mlenergy_v2_a100.csv whose model is in models.csv.

    Rows of `POINT`. Pipeline-parallel ones are left out.
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
            points.append((model.name, model.kind, *todo, rate, watts))
    return np.array(points, dtype=POINT).view(np.recarray)


def work(
    model: ServedModel,
    gpu: Gpu,
    precision: str,
    devices: float,
    batch: float,
    input_tokens: float,
    output_tokens: float,
) -> tuple[float, ...]:
    """The columns of `WORK` for one decode step of `batch` sequences, with its share of the prefill.

    The formulas are in docs/economics.md. HarnessError for a precision that the GPU or the table does not know.
    """
    peak = gpu.flops_fp8 if precision == "fp8" else gpu.flops_bf16
    if precision not in WEIGHT_BYTES or peak is None:
        what = f"no FLOP/s or bytes known for precision '{precision}' on {gpu.name}"
        raise HarnessError(what, f"use one of {', '.join(WEIGHT_BYTES)}")
    touched = 1 - (1 - model.experts_per_token / model.experts) ** batch if model.experts else 0.0
    context = input_tokens + output_tokens / 2
    cache = 2 * model.kv_layers * model.kv_heads * model.head_dim * KV_BYTES * context * batch
    size = WEIGHT_BYTES[precision]
    return (
        model.layers, model.moe_layers, batch, size * (model.total_params - model.expert_params) + cache,
        size * model.expert_params * touched, 2 * model.active_params * batch * (1 + input_tokens / output_tokens),
        gpu.bandwidth_bytes_per_s * devices, peak * devices, gpu.tdp_w * devices,
    )  # fmt: skip


def stacked(*rows: tuple[float, ...]) -> Work:
    """`work` rows as a record array."""
    return np.array(list(rows), dtype=[(name, float) for name in WORK]).view(np.recarray)


def step_s(step: Array, w: Work) -> Array:
    """Seconds of a step, by `step`: t0, tm (s per layer, per MoE layer), t1 (s per sequence), three efficiencies.

    t0 L + tm L_moe + t1 B + dense_bytes/(BW eta_m) + expert_bytes/(BW eta_e) + FLOP/(F eta_c).
    """
    t0, tm, t1, *efficiencies = step
    eta_m, eta_e, eta_c = np.minimum(efficiencies, EFFICIENCY_CAP)
    memory = (w.dense_bytes / eta_m + w.expert_bytes / eta_e) / w.bandwidth
    return np.asarray(t0 * w.layers + tm * w.moe_layers + t1 * w.batch + memory + w.flop / (w.peak * eta_c))


def power_terms(w: Work, seconds: Array) -> Array:
    """Shape (points, 3): 1, and the shares of bandwidth and of FLOP/s in use."""
    moved = w.dense_bytes + w.expert_bytes
    return np.column_stack([np.ones_like(seconds), moved / (w.bandwidth * seconds), w.flop / (w.peak * seconds)])


def power_w(power: Array, w: Work, seconds: Array) -> Array:
    """Power limit * min(1, rest + a * share of bandwidth in use + b * share of FLOP/s in use), in watts."""
    return np.asarray(w.power_limit_w * np.minimum(power_terms(w, seconds) @ power, 1.0))


def floor_s(w: Work) -> Array:
    """The roofline: seconds that a step takes if bandwidth or FLOP/s were used in full (Williams et al. 2009)."""
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
    """Seconds and joules of a step by output token, from a fit to `points`."""
    step, power = fit(points)
    seconds = step_s(step, w)
    return seconds / w.batch, power_w(power, w, seconds) * seconds / w.batch


def spread_of(names: NDArray[np.str_], errors: Array) -> Array:
    """Half widths of a 90% interval of ln time and ln energy for a model not among `names`.

    Models are the sampling unit, not points: t_{0.95, G-1} * sqrt(1 + 1/G) * rms over G models.
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
    """ln(predicted / measured) per output token, row 0 time, row 1 energy: each model from a fit to all the others.

    All sizes of a model's runs and precisions are left out at once.
    """
    errors = np.empty((2, len(predicted)))
    for name in set(predicted.model):
        chosen = predicted.model == name
        w = predicted[chosen]
        seconds, joules = _per_token(fitted[fitted.model != name], w)
        errors[:, chosen] = np.log([seconds, joules / w.power_w]) + np.log(w.output_tokens_per_s)
    return errors


def predict(points: Work, row: tuple[float, ...], devices: int, u: Draws) -> tuple[Draws, Draws]:
    """Device-seconds and accelerator joules per output token of `row` (from `work`), read at the uniforms `u`.

    The draws hold the error of predicting a model that was not measured: Student's t in ln with as many degrees of
    freedom as there are models less one, time and energy as one, since a slower step is a dearer one.
    """
    from scipy import stats

    freedom = len(set(points.model)) - 1
    t = stats.t.ppf(u, freedom) / stats.t.ppf(0.95, freedom)
    time_half, energy_half = spread_of(points.model, left_out_errors(points, points))
    seconds, joules = _per_token(points, stacked(row))
    return np.asarray(seconds * devices * np.exp(time_half * t)), np.asarray(joules * np.exp(energy_half * t))


def limits_of(w: Work, output_tokens_per_s: float) -> Mapping[str, float]:
    """How far from the roofline one serving point was.

    mfu and mbu: shares of FLOP/s and bandwidth in use (model FLOP, and the bytes that a step must move); then seconds
    per output token at the roofline, and joules per output token there, at the power limit.
    """
    floor = floor_s(w) / w.batch
    _, bandwidth, flops = power_terms(w, w.batch / output_tokens_per_s)[0]
    return {
        "mfu": float(flops),
        "mbu": float(bandwidth),
        "floor_s_per_output_token": float(floor[0]),
        "floor_joules_per_output_token": float((floor * w.power_limit_w)[0]),
    }
