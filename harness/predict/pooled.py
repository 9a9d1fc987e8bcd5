"""The fitted models of step time, TTFT and power: their terms and keys, and the shipped coefficients."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from harness.cost.draws import Array
from harness.files import data_path, data_rows
from harness.predict import mixed
from harness.predict.memory import sizes_that_hold
from harness.predict.mixed import Block, Fit, Rows
from harness.predict.work import TERMS, Serving, columns, seconds

LATENCY_TERMS = ("prompt", "wait", "queue", "start")
POWER_TERMS = ("rest", "memory", "compute")
NAMES = {"time": TERMS, "ttft": LATENCY_TERMS, "power": POWER_TERMS}


def levels_of(s: Serving) -> dict[str, str]:
    """Key of the blocks -> the level of a serving point."""
    model, version = FAMILIES.get(s.model.name, s.model.name), f"{s.engine} {s.released:.2f}"
    return {
        "one": "all", "gpu": s.gpu.name, "engine": s.engine, "version": version, "precision": s.precision,
        "version gpu": f"{version} {s.gpu.name}", "gpu precision": f"{s.gpu.name} {s.precision}",
        "gpu engine": f"{s.gpu.name} {s.engine}", "kind": s.model.kind, "kind engine": f"{s.model.kind} {s.engine}",
        "kind gpu": f"{s.model.kind} {s.gpu.name}", "kind precision": f"{s.model.kind} {s.precision}",
        "model": model, "model gpu": f"{model} {s.gpu.name}", "task": s.task,
        "layout": f"{s.gpus} {'dp' if s.dp > 1 else 'tp'}{' ep' if s.ep > 1 else ''}",
        "setup": f"{model} {s.gpu.name} {version} {s.version} {s.precision} {s.task}",
    }  # fmt: skip


def rows(servings: Sequence[Serving], terms: Array) -> Rows:
    """Terms with the keys and covariates that the blocks name."""
    names = [levels_of(s) for s in servings]
    keys = {key: np.array([row[key] for row in names], dtype=np.str_) for key in names[0]}
    age = np.array([2026.25 - s.released for s in servings])
    return Rows(terms, keys, {"age": age, "size": np.log([s.model.hidden / 6000 for s in servings])})


FAMILIES = {"DeepSeek-V3": "DeepSeek-R1", "DeepSeek-V3.1": "DeepSeek-R1", "Llama-3.3-70B-Instruct": "Llama-3.1-70B"}
"""Models that differ in weights alone: one level of `model`."""


def latency_columns(servings: Sequence[Serving], time: Fit) -> Array:
    """Seconds of TTFT's terms, from the fit of step `time`: the prompt alone, a step that runs already, prompts in
    front, a fixed start.

    `queue` is the time that the prompts of all sequences in flight would take, were they sent at once. GPUs that
    compute prompts alone (disaggregated serving) are workers of the smallest size that holds the model.
    """
    workers = [_prompt_worker(s) for s in servings]
    alone = [replace(s, batch=s.output + 1, task="random", pp=1) for s in workers]
    prompt = mixed.parts(time, rows(alone, columns(alone)))[:, TERMS.index("prefill_weight") :].sum(axis=1)
    step = mixed.parts(time, rows(servings, columns(servings))).sum(axis=1)
    groups = [
        s.prefill_gpus / worker.gpus if s.prefill_gpus else 1.0 for s, worker in zip(servings, workers, strict=True)
    ]
    at_once = np.array([s.batch for s in servings]) / groups
    return np.column_stack([prompt, step, at_once * prompt, np.full(len(servings), 0.01)])


def _prompt_worker(s: Serving) -> Serving:
    """The group of GPUs that computes a prompt."""
    if not s.prefill_gpus:
        return s
    one = replace(s, dp=1, ep=1, prefill_gpus=0)
    return replace(one, gpus=min([s.prefill_gpus, *sizes_that_hold(one)[:1]]))


def power_columns(servings: Sequence[Serving], tpot_s: Array) -> Array:
    """Watts of one GPU's terms: its limit, and its limit times the used shares of bandwidth and of FLOP/s."""
    each = [seconds(s) for s in servings]
    at = {term: np.array([row[term] for row in each]) for term in each[0]}
    limit = np.array([s.gpu.tdp_w for s in servings])
    memory = (at["dense"] + at["expert"] + at["kv"]) / tpot_s
    compute = np.array([2 * s.model.active_params * s.batch / s.gpus / s.gpu.flops_bf16 for s in servings])
    flops = (compute + at["prompt_compute"] + at["prefill_attention"]) / tpot_s
    return np.asarray(limit[:, None] * np.column_stack([np.ones_like(limit), memory, flops]))


@lru_cache(maxsize=3)
def fitted(name: str) -> Fit:
    """The fit in data/predict: coefficients and sds in NAME.csv, their covariance in NAME.npz.

    A row without a level describes a block: `value` is its sd. The coefficients of setups are not kept: a question's
    setup is a new one.
    """
    blocks, values, noise = [], {}, 0.0
    for r in data_rows(f"predict/{name}.csv"):
        value = float(r["value"])
        if r["level"]:
            values[r["block"], r["level"]] = value
        elif r["block"] == "noise":
            noise = value
        else:
            parts = [part.partition(":") for part in r["terms"].split()]
            touched = {term: float(weight or 1) for term, _, weight in parts}
            weights = tuple(touched.get(term, 0.0) for term in NAMES[name])
            blocks.append(Block(r["block"], r["key"], weights, value, float(r["mean"]), r["by"] or None))
    half = np.load(data_path("predict") / f"{name}.npz")["lower"].astype(float)
    covariance = np.zeros((len(values), len(values)))
    covariance[np.tril_indices(len(values))] = half
    covariance += np.tril(covariance, -1).T
    places = {key: i for i, key in enumerate(values)}
    return Fit(tuple(blocks), places, np.array(list(values.values())), covariance, noise)


def noise_variance(found: Fit) -> float:
    """Variance of the noise of one measurement: a normal of 1.3 times its scale covers Student's t."""
    return (1.3 * found.noise) ** 2


def predicted(found: Fit, rows: Rows) -> tuple[Array, Array, Array]:
    """`mixed.predict`, with the variance of a new measurement: noise, and what engines change in the years between."""
    value, variance, slopes = mixed.predict(found, rows)
    seen = np.array([2026.25 - float(level.split()[-1]) for block, level in found.places if block == "version all"])
    years = np.abs(rows.covariates["age"][:, None] - seen).min(axis=1) if len(seen) else 0.0
    return value, variance + noise_variance(found) + (DRIFT_PER_YEAR * years) ** 2, slopes


def classes_of(s: Serving) -> dict[str, str]:
    """The classes of a serving point by which errors are told."""
    split = "disaggregated" if s.prefill_gpus else "aggregated"
    return {"gpu": s.gpu.name, "engine": s.engine, "kind": s.model.kind, "precision": s.precision, "serving": split}


SCALED = ("gpu", "engine", "precision", "serving")
"""Classes whose intervals have a scale of their own."""


@lru_cache(maxsize=1)
def scales() -> Mapping[tuple[str, str, str, str], float]:
    """(Quantity, what was left out, class, level) -> factor of an interval's half-width, from points left out."""
    return {
        (r["quantity"], r["left out"], r["class"], r["level"]): float(r["scale"])
        for r in data_rows("predict/scales.csv")
    }


def scale(name: str, s: Serving) -> float:
    """What an interval's half-width is multiplied with, for what was not seen of `s`; a setup is always a new one."""
    level, time = levels_of(s), fitted("time").places
    new = {
        "model": ("model all", level["model"]) not in time,
        "engine version": ("version all", level["version"]) not in time,
        "gpu": (GPU_BLOCK[name], s.gpu.name) not in fitted(name).places,
    }
    factors = [("all", "all"), *classes_of(s).items()]
    folds = [fold for fold, is_new in new.items() if is_new] or ["setup"]
    return max(math.prod(scales().get((name, fold, *each), 1.0) for each in factors) for fold in folds)


GPU_BLOCK = {"time": "gpu fixed", "ttft": "gpu prompt", "power": "gpu rest"}
"""A block of each fit that has a coefficient for every GPU with points."""
DRIFT_PER_YEAR = 0.5
"""Sd of ln of an engine's change in a year, assumed: vLLM 0.6 stated 2.7 times the throughput of its release of two
months before (its announcement of 2024-09-05); the fitted versions have no year between them."""
