"""The fitted models of step time, TTFT and power: sums of terms with partial pooling, tight for groups seen much.

    ln y = ln sum_k c_k exp(s_k) + noise          s_k = sum of the coefficients of all blocks that touch term k

A block has one coefficient for each level of a key (each GPU, say), drawn from N(mean, sd^2), those of a model and of a
setup (one model, GPU, engine release, precision and kind of load) from Student's t. scripts/fit-predict finds them
(maximum a posteriori), their covariance (Laplace), and sd and noise (EM).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.cost.draws import Array
from harness.files import data_path, data_rows
from harness.predict.shapes import family
from harness.predict.work import TERMS, Serving, columns, seconds, sizes_that_hold

NAMES = {"time": TERMS, "ttft": ("prompt", "wait", "queue", "start"), "power": ("rest", "memory", "compute")}
"""Fit -> its terms."""
HEAVY_KEYS = ("model", "model gpu", "setup")
"""Their coefficients have Student's t with 2 degrees of freedom: one badly served model must not move the others."""
HEAVY = 1.775
"""90% of them lie within 1.775 times a normal's range."""


@dataclass(frozen=True, slots=True)
class Block:
    """Coefficients that shift the terms whose `weights` are not 0, one for each level of `key`."""

    name: str
    key: str
    weights: tuple[float, ...]
    """One for each term."""
    sd: float
    mean: float = 0.0
    by: str | None = None
    """A covariate that multiplies the coefficient; None: 1."""
    fixed: bool = False
    """Whether `sd` is a prior that EM leaves alone."""


@dataclass(frozen=True)
class Fit:
    """Blocks with their coefficients: (block, level) -> place in `estimate` and `covariance`."""

    blocks: tuple[Block, ...]
    places: Mapping[tuple[str, str], int]
    estimate: Array
    covariance: Array
    noise: float
    """Scale of the noise in ln."""


@dataclass(frozen=True)
class Rows:
    """Observations or questions: term columns (n, K), keys, covariates."""

    terms: Array
    keys: Mapping[str, NDArray[np.str_]]
    """Key -> level of each row."""
    covariates: Mapping[str, Array]


def placed(blocks: Sequence[Block], rows: Rows, places: Mapping[tuple[str, str], int]) -> list[NDArray[np.intp]]:
    """For each block the place of each row's coefficient; -1 for a level that has none."""
    found = []
    for block in blocks:
        levels, inverse = np.unique(rows.keys[block.key], return_inverse=True)
        found.append(np.array([places.get((block.name, str(level)), -1) for level in levels], int)[inverse])
    return found


def parts(found: Fit, rows: Rows) -> Array:
    """Each term times its factors, shape (n, K)."""
    return _parts(found.blocks, rows, placed(found.blocks, rows, found.places), found.estimate)[0]


def _parts(blocks: Sequence[Block], rows: Rows, at: Sequence[NDArray[np.intp]], u: Array) -> tuple[Array, Array, Array]:
    """Each term times its factors, shape (n, K); the covariates, shape (n, blocks); the weights, shape (blocks, K)."""
    with_unseen = np.append(u, 0.0)
    weights = np.array([block.weights for block in blocks])
    by = np.column_stack([rows.covariates[block.by] if block.by else np.ones(len(rows.terms)) for block in blocks])
    values = np.column_stack([with_unseen[place] + block.mean for place, block in zip(at, blocks, strict=True)])
    return rows.terms * np.exp((values * by) @ weights), by, weights


def evaluate(blocks: Sequence[Block], rows: Rows, at: Sequence[NDArray[np.intp]], u: Array) -> tuple[Array, Array]:
    """ln of the sum, shape (n,), and the slope by the coefficient of each block, shape (n, blocks)."""
    each, by, weights = _parts(blocks, rows, at, u)
    total = each.sum(axis=1)
    return np.log(total), by * (each / total[:, None] @ weights.T)


PAIRS = sorted({row["key"] for row in data_rows("predict/blocks.csv") if " " in row["key"]})
"""Keys of the blocks that join two others."""


def levels_of(s: Serving) -> dict[str, str]:
    """Key of the blocks -> the level of a serving point."""
    model, version = family(s.model), f"{s.engine} {s.released:.2f}"
    levels = {
        "one": "all", "gpu": s.gpu.name, "engine": s.engine, "version": version, "precision": s.precision,
        "kind": s.model.kind, "model": model, "task": s.task,
        "layout": f"{s.gpus} {'dp' if s.dp > 1 else 'tp'}{' ep' if s.ep > 1 else ''}",
        "setup": f"{model} {s.gpu.name} {version} {s.version} {s.precision} {s.task}",
    }  # fmt: skip
    return levels | {pair: " ".join(levels[key] for key in pair.split()) for pair in PAIRS}


def rows(servings: Sequence[Serving], terms: Array) -> Rows:
    """Terms with the keys and covariates that the blocks name."""
    names = [levels_of(s) for s in servings]
    keys = {key: np.array([row[key] for row in names], dtype=np.str_) for key in names[0]}
    age = np.array([2026.25 - s.released for s in servings])
    return Rows(terms, keys, {"age": age, "size": np.log([s.model.hidden / 6000 for s in servings])})


def latency_columns(servings: Sequence[Serving], time: Fit) -> Array:
    """Seconds of TTFT's terms, from the fit of step `time`: the prompt alone, a step that runs already, prompts in
    front, a fixed start.

    `queue` is the time that the prompts of all sequences in flight would take, were they sent at once. GPUs that
    compute prompts alone (disaggregated serving) are workers of the smallest size that holds the model.
    """
    workers = [_prompt_worker(s) for s in servings]
    alone = [replace(s, batch=s.output + 1, task="random", pp=1) for s in workers]
    prompt = parts(time, rows(alone, columns(alone)))[:, TERMS.index("prefill_weight") :].sum(axis=1)
    step = parts(time, rows(servings, columns(servings))).sum(axis=1)
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
def blocks_of(name: str) -> tuple[Block, ...]:
    """The blocks of a fit with their first sds, from predict/blocks.csv; there a row without a key names some terms."""
    rows = [r for r in data_rows("predict/blocks.csv") if r["fit"] == name]
    named, found = {r["block"]: r["terms"] for r in rows if not r["key"]}, []
    for r in (r for r in rows if r["key"]):
        parts = [part.partition(":") for part in named.get(r["terms"], r["terms"]).split()]
        touched = {term: float(weight or 1) for term, _, weight in parts}
        weights = tuple(touched.get(term, 0.0) for term in NAMES[name])
        shape = r["block"], r["key"], weights, float(r["sd"]), float(r["mean"] or 0)
        found.append(Block(*shape, r["by"] or None, bool(r["fixed"])))
    return tuple(found)


@lru_cache(maxsize=3)
def fitted(name: str) -> Fit:
    """The fit in data/predict: coefficients and sds in NAME.csv, their covariance in NAME.npz.

    A row without a level has the sd of a block. The coefficients of setups are not kept: a question's setup is new.
    """
    values, sds = dict[tuple[str, str], float](), dict[str, float]()
    for r in data_rows(f"predict/{name}.csv"):
        if r["level"]:
            values[r["block"], r["level"]] = float(r["value"])
        else:
            sds[r["block"]] = float(r["value"])
    half = np.load(data_path("predict") / f"{name}.npz")["lower"].astype(float)
    covariance = np.zeros((len(values), len(values)))
    covariance[np.tril_indices(len(values))] = half
    covariance += np.tril(covariance, -1).T
    blocks = tuple(replace(block, sd=sds[block.name]) for block in blocks_of(name))
    places = {key: i for i, key in enumerate(values)}
    return Fit(blocks, places, np.array(list(values.values())), covariance, sds["noise"])


def predicted(found: Fit, rows: Rows, own: Rows | None = None) -> tuple[Array, Array]:
    """ln of the expected value, and the variance of a new measurement: of the coefficients, of the levels that were not
    seen, of the noise, and of what engines change in the years between releases.

    `own`, one row: the variance of ln of the ratio to a measurement there. What both share moves both: only the
    difference of its slopes is in doubt.
    """
    places = placed(found.blocks, rows, found.places)
    value, slopes = evaluate(found.blocks, rows, places, found.estimate)
    at = np.column_stack(places)
    sds = np.array([block.sd * (HEAVY if block.key in HEAVY_KEYS else 1.0) for block in found.blocks])
    if own is not None:
        there = placed(found.blocks, own, found.places)
        others = evaluate(found.blocks, own, there, found.estimate)[1]
        alike = np.column_stack([rows.keys[block.key] == own.keys[block.key] for block in found.blocks])
        slopes = np.hstack([slopes - others * alike, -others * ~alike])
        at = np.hstack([at, np.broadcast_to(np.column_stack(there), at.shape)])
        sds = np.tile(sds, 2)
    unseen = np.sum((slopes * sds) ** 2 * (at < 0), axis=1)
    of_seen = slopes * (at >= 0)
    known = np.einsum("ni,nij,nj->n", of_seen, found.covariance[at[:, :, None], at[:, None]], of_seen)
    seen = np.array([2026.25 - float(level.split()[-1]) for block, level in found.places if block == "version all"])
    years = np.abs(rows.covariates["age"][:, None] - seen).min(axis=1) if len(seen) else 0.0
    noise = (1.3 * found.noise) ** 2 * (1 if own is None else 2)  # a normal of 1.3 times its scale covers Student's t
    return value, known + unseen + noise + (DRIFT_PER_YEAR * years) ** 2


def classes_of(s: Serving) -> dict[str, str]:
    """The classes of a serving point by which errors are told."""
    split = "disaggregated" if s.prefill_gpus else "aggregated"
    return {"gpu": s.gpu.name, "engine": s.engine, "kind": s.model.kind, "precision": s.precision, "serving": split}


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
