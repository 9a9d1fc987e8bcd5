"""What must be true for a spend: the assumptions behind a cost, conditioned on a reported spend and volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.economics.draws import Z95, Array, Distribution, Draws, draw, log_moments, quantile
from harness.errors import HarnessError

LEVELS = (0.05, 0.5, 0.95)
ONLY_THE_PRODUCT = (
    "only the product is identified: a spend and a volume fix what a query costs, and any factor can be larger if "
    "another is smaller; the shifts follow from how uncertain each factor was before"
)
LEAST_EFFECTIVE = 100
"""Fewer effective draws than this and the conditioned quantiles are not worth printing."""


@dataclass(frozen=True, slots=True)
class Inversion:
    """5th, 50th and 95th percentiles: of each factor before and after, of the product before, of what is `needed`.

    `effective` draws back what comes after; None: it is exact.
    """

    before: Mapping[str, Array]
    after: Mapping[str, Array]
    cost: Array
    needed: Array
    effective: float | None


def invert(factors: Mapping[str, tuple[Distribution, int]], needed: Distribution) -> Inversion:
    """Condition independent factors on their product, prod x_i^s_i with s_i = 1 or -1, being `needed` (a lognormal).

    Where every factor is lognormal the answer is exact (`conditioned`). Otherwise draws are weighted by the density of
    `needed` at their product; `effective` is (sum w)^2 / sum w^2 (Kish).
    HarnessError where too few draws come near the spend, or `needed` is certain and the weights would vanish.
    """
    target = log_moments(needed)
    if target is None:
        raise HarnessError(f"the spend per unit is {needed.kind}", "give it as a number or a lognormal")
    y, noise = target[0], target[1] ** 2
    x = np.array(list(draw({name: d for name, (d, _) in factors.items()}).values()))
    signs = np.array([float(sign) for _, sign in factors.values()])
    product = np.prod(x ** signs[:, None], axis=0)
    moments = [log_moments(d) for d, _ in factors.values()]
    effective = None
    if None not in moments:
        mean, sd = np.array(moments, float).T
        middle, left = conditioned(mean, sd, signs, y, noise)
        after = np.exp(middle[:, None] + left[:, None] * [-Z95, 0, Z95])
    else:
        if noise == 0:
            raise HarnessError("the spend has no uncertainty, so no draw can match it", "give it as a range")
        logs = -((np.log(product) - y) ** 2) / (2 * noise)
        weights = np.exp(logs - logs.max())
        effective = float(weights.sum() ** 2 / np.sum(weights**2))
        if effective < LEAST_EFFECTIVE:
            what = f"only {effective:.0f} of {len(weights)} draws come near the spend: the assumptions hardly reach it"
            raise HarnessError(what, "widen the assumptions, or look at the isolines")
        after = np.array([_weighted(values, weights) for values in x])
    before, wanted = np.quantile(x, LEVELS, axis=1).T, quantile(needed, np.array(LEVELS))
    was, becomes = (dict(zip(factors, rows, strict=True)) for rows in (before, after))
    return Inversion(was, becomes, np.quantile(product, LEVELS), wanted, effective)


def conditioned(mean: Array, sd: Array, signs: Array, y: float, noise: float = 0.0) -> tuple[Array, Array]:
    """Means and standard deviations of independent normals x_i, given that sum s_i x_i is y, up to variance `noise`.

    With S = sum sd^2 + noise: mean_i + s_i sd_i^2 (y - sum s mean) / S, and variance sd_i^2 (1 - sd_i^2 / S).
    """
    total = np.sum(sd**2) + noise or 1.0  # 0: nothing is uncertain, and nothing moves
    return mean + signs * sd**2 * (y - signs @ mean) / total, sd * np.sqrt(1 - sd**2 / total)


def isoline(factors: Mapping[str, tuple[float, int]], needed: float, solve: str, along: str, grid: Draws) -> Draws:
    """The values of factor `solve` that keep the product at `needed` while `along` runs over `grid`, the rest fixed.

    >>> isoline({"price": (2.0, 1), "hours": (3.0, 1), "use": (0.5, -1)}, 24.0, "price", "use", np.array([0.5, 1.0]))
    array([4., 8.])
    """
    others = [value**sign for name, (value, sign) in factors.items() if name not in (solve, along)]
    rest = np.asarray(grid, float) ** factors[along][1] * np.prod(others)
    return np.asarray((needed / rest) ** factors[solve][1])


def _weighted(values: Draws, weights: Draws) -> Array:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return np.asarray(values[order][np.searchsorted(reached, LEVELS)])
