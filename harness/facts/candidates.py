"""The belief about the provider's model: what large open models would take for a token, predicted for an H100."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from harness.cost.draws import Array, Draws
from harness.cost.gpus import read_rows
from harness.predict.predict import Plan, predict

GPU, PLAN = "H100", Plan(128, 1150, 500)
"""Sequences in flight in a group of GPUs, and tokens of a prompt: 25 to 55 ms between tokens."""
GRID = (np.arange(256) + 0.5) / 256


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of provider_models.csv: a model that may stand for the provider's, and the precision of its weights."""

    kind: str
    """dense, moe (mixture of experts) or hybrid (most layers without a KV cache that grows)."""
    model: str
    precision: str


@lru_cache(maxsize=1)
def candidates() -> tuple[Candidate, ...]:
    """The rows of provider_models.csv."""
    return read_rows("provider_models.csv", Candidate)


@lru_cache(maxsize=1)
def predicted() -> Mapping[str, tuple[Array, ...]]:
    """Kind -> for each of its candidates ln device-seconds of an output token, at the quantiles GRID."""
    found: dict[str, list[Array]] = {}
    for each in candidates():
        seconds = predict(each.model, GPU, replace(PLAN, precision=each.precision), GRID).device_s
        found.setdefault(each.kind, []).append(np.log(np.sort(seconds)))
    return {kind: tuple(found[kind]) for kind in sorted(found)}


def provider_seconds(x: Mapping[str, Draws], weight: float) -> Draws:
    """ln device-seconds of a token, an input token counted as `weight` output tokens.

    Each kind is as likely as any other, and so is each candidate of a kind; the error of the prediction is included.
    `x` has uniform draws: `kind`, `place` (the candidate) and `error`.
    """
    kinds = [[np.interp(x["error"], GRID, each) for each in each_kind] for each_kind in predicted().values()]
    levels = [pick(models, x["place"]) for models in kinds]
    return pick(levels, x["kind"]) - math.log(1 + weight * PLAN.input / PLAN.output)


def pick(levels: list[Draws], u: Draws) -> Draws:
    """In each draw one of the levels, each with the same probability."""
    return np.array(np.choose(np.minimum((u * len(levels)).astype(int), len(levels) - 1), levels))
