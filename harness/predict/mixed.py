"""A sum of terms fitted in logarithms with partial pooling: tight for groups seen much, wide for others.

    ln y = ln sum_k c_k exp(s_k) + noise          s_k = sum of the coefficients of all blocks that touch term k

A block has one coefficient for each level of a key (each GPU, say), drawn from N(mean, sd^2), those of a model and of a
setup (one model, GPU, engine release, precision and kind of load) from Student's t. scripts/fit-predict finds them
(maximum a posteriori), their covariance (Laplace), and sd and noise (EM).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.cost.draws import Array

HEAVY_KEYS = ("model", "model gpu", "setup")
"""Their coefficients have Student's t with 2 degrees of freedom: one badly served model must not move the others."""
HEAVY = 1.775
"""90% of them lie within 1.775 times a normal's range."""
Keys = Mapping[str, NDArray[np.str_]]
"""Key -> level of each row."""


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
    keys: Keys
    covariates: Mapping[str, Array]

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> "Rows":
        keys = {name: levels[chosen] for name, levels in self.keys.items()}
        return Rows(self.terms[chosen], keys, {name: values[chosen] for name, values in self.covariates.items()})

    def __len__(self) -> int:
        return len(self.terms)


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
    by = np.column_stack([rows.covariates[block.by] if block.by else np.ones(len(rows)) for block in blocks])
    values = np.column_stack([with_unseen[place] + block.mean for place, block in zip(at, blocks, strict=True)])
    return rows.terms * np.exp((values * by) @ weights), by, weights


def evaluate(blocks: Sequence[Block], rows: Rows, at: Sequence[NDArray[np.intp]], u: Array) -> tuple[Array, Array]:
    """ln of the sum, shape (n,), and the slope by the coefficient of each block, shape (n, blocks)."""
    each, by, weights = _parts(blocks, rows, at, u)
    total = each.sum(axis=1)
    return np.log(total), by * (each / total[:, None] @ weights.T)


def predict(found: Fit, rows: Rows) -> tuple[Array, Array, Array]:
    """ln of the expected value, its variance without noise, and each term's share; unseen levels are at their prior."""
    each = placed(found.blocks, rows, found.places)
    value, slopes = evaluate(found.blocks, rows, each, found.estimate)
    places = np.column_stack(each)
    sds = np.array([block.sd * (HEAVY if block.key in HEAVY_KEYS else 1.0) for block in found.blocks])
    unseen = np.sum((slopes * sds) ** 2 * (places < 0), axis=1)
    of_seen = slopes * (places >= 0)
    known = np.einsum("ni,nij,nj->n", of_seen, found.covariance[places[:, :, None], places[:, None]], of_seen)
    return value, known + unseen, slopes
