"""How fast a decode step could be on a GPU, how fast it is, and what that predicts for models and GPUs not measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from harness.economics.draws import Draws
from harness.economics.gpus import Gpu, find_gpu
from harness.errors import HarnessError

Array = NDArray[np.float64]

WEIGHT_BYTES: Mapping[str, float] = {"bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "mxfp4": 0.53125}
"""Bytes a weight; mxfp4 is 4 bits and a shared 8-bit scale for 32 weights (OCP Microscaling Formats 1.0)."""
KV_BYTES = 2.0
"""Bytes of one number in the KV cache: bfloat16, the engines' default."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A row of models.csv. `expert_params` are those of all routed experts; 0 experts: a dense (or hybrid) model."""

    name: str
    also: frozenset[str]
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


@dataclass(frozen=True, slots=True)
class Work:
    """What decode steps must do, one entry a point: counts, bytes, FLOP, and the devices' limits (of all devices)."""

    layers: Array
    moe_layers: Array
    batch: Array
    dense_bytes: Array
    """Weights that every step reads, and the KV cache of the batch."""
    expert_bytes: Array
    flop: Array
    bandwidth: Array
    peak: Array
    power_limit_w: Array


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement of steady serving."""

    model: ServedModel
    gpu: Gpu
    precision: str
    devices: float
    batch: float
    output_tokens_per_s: float
    power_w: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Step: t0 and tm (s per layer, per MoE layer), t1 (s per sequence), efficiencies of dense bytes, experts, FLOP.

    Power: shares of the limit at rest, and for full use of bandwidth and of FLOP/s.
    """

    step: Array
    power: Array


STEP_PRIOR = np.array([3e-5, 3e-5, 3e-5, 0.8, 0.6, 0.5])
STEP_PRIOR_SD = np.array([0.7, 1.0, 0.7, 0.1, 0.2, 0.3])
"""t0, tm, t1, then efficiencies: medians and standard deviations of ln, from what kernels reach in practice (assumed).
They matter where the points say little; the 95% cap below keeps an efficiency physical."""
EFFICIENCY_CAP = 0.95
NOISE = 0.15
"""Scale at which a residual of ln time counts as an outlier (soft L1)."""
INPUT_TOKENS = 200.0
"""Mean prompt of the published chat points, assumed: the files do not say."""


def parse_models(text: str) -> tuple[ServedModel, ...]:
    """The rows of models.csv."""
    counts = [field.name for field in fields(ServedModel) if field.type == "float"]
    return tuple(
        ServedModel(
            name=row["model"],
            also=frozenset(row["also"].split(";")),
            kind=row["kind"],
            source=row["source"],
            **{name: float(row[name]) for name in counts},
        )
        for row in csv.DictReader(io.StringIO(text))
    )


def find_model(name: str, models: Sequence[ServedModel]) -> ServedModel | None:
    """The model of that name: in the table, or a repository (`org/name`) of the same architecture."""
    short = name.rpartition("/")[2]
    return next((model for model in models if short == model.name or short in model.also), None)


def parse_h100(text: str, models: Sequence[ServedModel], gpus: tuple[Gpu, ...]) -> tuple[Point, ...]:
    """The chat points of published/mlenergy_v3_h100.csv whose model is in models.csv."""
    points = []
    for r in csv.DictReader(io.StringIO(text)):
        model, gpu = find_model(r["model_id"], models), find_gpu(r["gpu_model"], gpus)
        if model and gpu and r["task"] == "lm-arena-chat":
            numbers = (float(r[name]) for name in (
                "num_gpus", "avg_batch_size", "output_throughput_tokens_per_sec", "avg_power_watts", "avg_output_len"
            ))  # fmt: skip
            points.append(Point(model, gpu, r["weight_precision"], *numbers))
    return tuple(points)


def parse_a100(text: str, models: Sequence[ServedModel], gpus: tuple[Gpu, ...]) -> tuple[Point, ...]:
    """The chat points of published/mlenergy_v2_a100.csv, likewise; pipeline-parallel ones are left out."""
    points = []
    for r in csv.DictReader(io.StringIO(text)):
        model, gpu = find_model(r["Model"].replace("Meta-", ""), models), find_gpu(r["GPU"], gpus)
        if model and gpu and r["task"] == "chat" and r["PP"] == "1":
            tokens, rate = float(r["Avg Output Tokens"]), float(r["Token tput (tok/s)"])
            watts = float(r["Energy/req (J)"]) / tokens * rate
            points.append(Point(model, gpu, "bfloat16", float(r["TP"]), float(r["Avg BS (reqs)"]), rate, watts, tokens))
    return tuple(points)


def work(
    model: ServedModel,
    gpu: Gpu,
    precision: str,
    devices: float,
    batch: float,
    input_tokens: float,
    output_tokens: float,
) -> tuple[float, ...]:
    """The fields of `Work` for one decode step of `batch` sequences, with its share of the prefill.

    A step reads dense weights, the experts that the batch touches, 1 - (1 - k/E)^B of them (independent routing), and
    the KV cache at the mean context; it computes 2 active_params FLOP for each of the B tokens and for the
    B input_tokens / output_tokens tokens of prompts that come in meanwhile. HarnessError for a precision that the GPU
    or the table does not know.
    """
    peak = gpu.flops_fp8 if precision == "fp8" else gpu.flops_bf16
    if precision not in WEIGHT_BYTES or peak is None:
        raise HarnessError(
            f"no FLOP/s or bytes known for precision '{precision}' on {gpu.name}",
            f"use one of {', '.join(WEIGHT_BYTES)}",
        )
    touched = 1 - (1 - model.experts_per_token / model.experts) ** batch if model.experts else 0.0
    cache = (
        2 * model.kv_layers * model.kv_heads * model.head_dim * KV_BYTES * (input_tokens + output_tokens / 2) * batch
    )
    size = WEIGHT_BYTES[precision]
    return (
        model.layers, model.moe_layers, batch, size * (model.total_params - model.expert_params) + cache,
        size * model.expert_params * touched, 2 * model.active_params * batch * (1 + input_tokens / output_tokens),
        gpu.bandwidth_bytes_per_s * devices, peak * devices, gpu.tdp_w * devices,
    )  # fmt: skip


def stacked(rows: Sequence[tuple[float, ...]]) -> Work:
    """Many `work` rows as arrays."""
    return Work(*np.array(rows, float).reshape(-1, len(fields(Work))).T)


def work_of(points: Sequence[Point]) -> Work:
    """The work of published points, with `INPUT_TOKENS` of prompt each."""
    return stacked([
        work(p.model, p.gpu, p.precision, p.devices, p.batch, INPUT_TOKENS, p.output_tokens) for p in points
    ])  # fmt: skip


def step_s(step: Array, w: Work) -> Array:
    """t0 L + tm L_moe + t1 B + dense_bytes/(BW eta_m) + expert_bytes/(BW eta_e) + FLOP/(F eta_c), in seconds."""
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


def fit(points: Sequence[Point]) -> Fit:
    """ln step time by robust regression (soft L1) with weak priors; power by non-negative relative least squares."""
    from scipy import optimize

    w = work_of(points)
    observed = np.array([p.batch / p.output_tokens_per_s for p in points])
    share = np.array([p.power_w for p in points]) / w.power_limit_w
    prior = np.log(STEP_PRIOR)

    def off(logs: Array) -> Array:
        residual = np.log(step_s(np.exp(logs), w) / observed) / NOISE
        return np.concatenate([residual, (logs - prior) / STEP_PRIOR_SD])

    step = np.exp(optimize.least_squares(off, prior, loss="soft_l1").x)
    power = optimize.nnls(power_terms(w, observed) / share[:, None], np.ones(len(points)))[0]
    return Fit(step, np.asarray(power))


@dataclass(frozen=True, slots=True)
class Validation:
    """Leave-one-model-out: `errors` are ln(predicted / measured) per output token, row 0 time, row 1 energy."""

    points: tuple[Point, ...]
    errors: Array
    spread: Mapping[str, Array]
    """Half width of the stated 90% interval of ln time and ln energy for each model, from the other models' errors."""

    def select(self, kind: str) -> NDArray[np.bool_]:
        return np.array([point.model.kind == kind for point in self.points])

    def median_error(self, kind: str) -> Array:
        """Median absolute error as a factor (1.2: off by 20%) of time and energy for `dense`, `moe` or `hybrid`."""
        return np.asarray(np.exp(np.median(np.abs(self.errors[:, self.select(kind)]), axis=1)))

    def coverage(self) -> Array:
        """Share of points that lie inside the 90% interval stated for their model, for time and energy."""
        half = np.array([self.spread[point.model.name] for point in self.points]).T
        return np.asarray(np.mean(np.abs(self.errors) <= half, axis=1))


def validate(points: Sequence[Point]) -> Validation:
    """Predict each model from a fit to all the others; all sizes of its runs and precisions are left out at once.

    The interval stated for a model is `spread_of` the other models' errors, so that it too has not seen the model.
    """
    names = np.array([point.model.name for point in points])
    errors = _left_out(points, points)
    spread = {name: spread_of(names[names != name], errors[:, names != name]) for name in sorted(set(names))}
    return Validation(tuple(points), errors, spread)


def validate_on(fitted: Sequence[Point], others: Sequence[Point]) -> Validation:
    """Predict points of another GPU from a fit to the first, each model left out where it is in both."""
    half = spread_of(np.array([point.model.name for point in fitted]), _left_out(fitted, fitted))
    return Validation(tuple(others), _left_out(fitted, others), {point.model.name: half for point in others})


def spread_of(names: NDArray[np.str_], errors: Array) -> Array:
    """Half widths of a 90% interval of ln time and ln energy for a model not among `names`.

    Models are the sampling unit, not points: t_{0.95, G-1} * sqrt(1 + 1/G) * sqrt(mean over G models of the mean square
    error of each).
    """
    from scipy import stats

    groups = sorted(set(names))
    square = np.mean([np.mean(errors[:, names == group] ** 2, axis=1) for group in groups], axis=0)
    return np.asarray(stats.t.ppf(0.95, len(groups) - 1) * np.sqrt((1 + 1 / len(groups)) * square))


def _left_out(fitted: Sequence[Point], predicted: Sequence[Point]) -> Array:
    errors = np.empty((2, len(predicted)))
    for name in {point.model.name for point in predicted}:
        chosen = [i for i, point in enumerate(predicted) if point.model.name == name]
        made = fit([point for point in fitted if point.model.name != name])
        errors[:, chosen] = _errors(made, [predicted[i] for i in chosen])
    return errors


def _errors(made: Fit, points: Sequence[Point]) -> Array:
    w = work_of(points)
    seconds = step_s(made.step, w)
    rate = np.array([point.output_tokens_per_s for point in points])
    joules = power_w(made.power, w, seconds) * seconds / w.batch
    watts = np.array([point.power_w for point in points])
    return np.asarray(np.log([seconds / w.batch * rate, joules * rate / watts]))


def predict(points: Sequence[Point], row: tuple[float, ...], devices: int, u: Draws) -> tuple[Draws, Draws]:
    """Device-seconds and accelerator joules per output token of `row` (from `work`), read at the uniforms `u`.

    The draws hold the error of predicting a model that was not measured: Student's t in ln with as many degrees of
    freedom as there are models less one, time and energy as one, since a slower step is a dearer one.
    """
    from scipy import stats

    made, w = fit(points), stacked([row])
    names = np.array([point.model.name for point in points])
    freedom = len(set(names)) - 1
    t = stats.t.ppf(u, freedom) / stats.t.ppf(0.95, freedom)
    time_half, energy_half = spread_of(names, _left_out(points, points))
    seconds = step_s(made.step, w) / w.batch
    joules = power_w(made.power, w, seconds * w.batch) * seconds
    return np.asarray(seconds * devices * np.exp(time_half * t)), np.asarray(joules * np.exp(energy_half * t))


def limits_of(w: Work, output_tokens_per_s: float) -> Mapping[str, float]:
    """How far from the roofline one serving point was.

    mfu and mbu: shares of FLOP/s and bandwidth in use (model FLOP, and the bytes that a step must move); floor_s:
    seconds per output token at the roofline; floor_joules: joules per output token there, at the power limit.
    """
    seconds = w.batch / output_tokens_per_s
    floor = floor_s(w) / w.batch
    _, bandwidth, flops = power_terms(w, seconds)[0]
    joules = float((floor * w.power_limit_w)[0])
    return {"mfu": float(flops), "mbu": float(bandwidth), "floor_s": float(floor[0]), "floor_joules": joules}
