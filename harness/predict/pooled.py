"""The fitted models of step time, TTFT and power: their terms and keys, and the shipped coefficients."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from harness.cost.draws import Array
from harness.files import data_path, data_rows
from harness.predict.mixed import Block, Fit, Rows
from harness.predict.work import TERMS, Serving, columns

LATENCY_TERMS = ("prompt_flop", "prompt_attention", "prompt_link", "prompt_layer", "wait", "queue", "start")
POWER_TERMS = ("rest", "memory", "compute")
NAMES = {"time": TERMS, "ttft": LATENCY_TERMS, "power": POWER_TERMS}


def rows(servings: Sequence[Serving], terms: Array) -> Rows:
    """Terms with the keys and covariates that the blocks name."""
    names: list[dict[str, str]] = []
    for s in servings:
        model, version = FAMILIES.get(s.model.name, s.model.name), f"{s.engine} {s.released:.2f}"
        spread = f"{s.gpus} {'dp' if s.dp > 1 else 'tp'}{' ep' if s.ep > 1 else ''}"
        names.append({
            "one": "all", "gpu": s.gpu.name, "engine": s.engine, "version": version, "precision": s.precision,
            "version gpu": f"{version} {s.gpu.name}", "gpu precision": f"{s.gpu.name} {s.precision}",
            "gpu engine": f"{s.gpu.name} {s.engine}", "kind": s.model.kind, "kind engine": f"{s.model.kind} {s.engine}",
            "model": model, "model gpu": f"{model} {s.gpu.name}", "layout": spread, "task": s.task,
            "setup": f"{model} {s.gpu.name} {version} {s.version} {s.precision} {s.task}",
        })  # fmt: skip
    keys = {key: np.array([row[key] for row in names], dtype=np.str_) for key in names[0]}
    age = np.array([2026.25 - s.released for s in servings])
    return Rows(terms, keys, {"age": age, "size": np.log([s.model.hidden / 6000 for s in servings])})


FAMILIES = {"DeepSeek-V3": "DeepSeek-R1", "DeepSeek-V3.1": "DeepSeek-R1", "Llama-3.3-70B-Instruct": "Llama-3.1-70B"}
"""Models that differ in weights alone: one level of `model`."""


def latency_columns(servings: Sequence[Serving], tpot_s: Array) -> Array:
    """Seconds of TTFT's terms: the prompt's own computation, a step that runs already, prompts in front, a fixed start.

    `queue` is the time that the prompts of all sequences in flight would take, were they sent at once.
    """
    alone = [replace(s, batch=s.output + 1, task="random", prefill_gpus=0) for s in servings]
    served = [replace(s, gpus=s.prefill_gpus) if s.prefill_gpus else s for s in alone]
    ideal = columns(served)
    names = "flop", "attention", "link", "layer"
    flop, attention, link, layer = (ideal[:, TERMS.index(f"prefill_{name}")] for name in names)
    batch = np.array([s.batch for s in servings])
    queue = batch * (flop + attention + link)
    return np.column_stack([flop, attention, link, layer, tpot_s, queue, np.full(len(batch), 0.01)])


def power_columns(servings: Sequence[Serving], tpot_s: Array) -> Array:
    """Watts of one GPU's terms: its limit, and its limit times the used shares of bandwidth and of FLOP/s."""
    ideal = columns(servings)
    at = {term: ideal[:, i] for i, term in enumerate(TERMS)}
    limit = np.array([s.gpu.tdp_w for s in servings])
    memory = (at["dense"] + at["expert"] + at["kv"]) / tpot_s
    compute = np.array([2 * s.model.active_params * s.batch / s.gpus / s.gpu.flops_bf16 for s in servings])
    flops = (compute + at["prefill_flop"] + at["prefill_attention"]) / tpot_s
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
            weights = tuple(float(term in r["terms"].split()) for term in NAMES[name])
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
