"""What must be true for a spend: the assumptions behind a cost, conditioned on a reported spend and volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.economics.draws import DEFAULT_DRAWS, Distribution, Draws, draw, log_moments, quantile
from harness.errors import HarnessError

LEVELS = (0.05, 0.5, 0.95)
ONLY_THE_PRODUCT = (
    "only the product is identified: a spend and a volume fix what a query costs, and any factor can be larger if "
    "another is smaller; the shifts follow from how uncertain each factor was before"
)
LEAST_EFFECTIVE = 100
"""Fewer effective draws than this and the conditioned quantiles are not worth printing."""


@dataclass(frozen=True, slots=True)
class Shift:
    """A factor's 5th, 50th and 95th percentile before and after conditioning."""

    name: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Inversion:
    """`cost` is the product before, `needed` what the spend says that it was; `effective` draws back `shifts`."""

    shifts: tuple[Shift, ...]
    cost: tuple[float, float, float]
    needed: tuple[float, float, float]
    exact: bool
    effective: float
    note: str = ONLY_THE_PRODUCT


def invert(
    factors: Mapping[str, tuple[Distribution, int]], needed: Distribution, n: int = DEFAULT_DRAWS, seed: int = 0
) -> Inversion:
    """Condition independent factors on their product, prod x_i^s_i with s_i = 1 or -1, being `needed` (a lognormal).

    Where every factor is lognormal the answer is exact. With m_i, v_i mean and variance of ln x_i, y, r of ln needed,
    K = (y - sum s m) / (sum v + r): ln x_i has mean m_i + s_i v_i K and variance v_i - v_i^2 / (sum v + r).
    Otherwise draws are weighted by the density of `needed` at their product; `effective` is (sum w)^2 / sum w^2 (Kish).
    HarnessError where too few draws come near the spend, or `needed` is certain and the weights would vanish.
    """
    target = log_moments(needed)
    if target is None:
        raise HarnessError(f"the spend per unit is {needed.kind}", "give it as a number or a lognormal")
    y, noise = target[0], target[1] ** 2
    moments = {name: log_moments(d) for name, (d, _) in factors.items()}
    x = draw({name: d for name, (d, _) in factors.items()}, n, seed)
    product = np.prod([x[name] ** sign for name, (_, sign) in factors.items()], axis=0)
    before = {name: _quantiles(values) for name, values in x.items()}
    if all(moment is not None for moment in moments.values()):
        known = {name: moment for name, moment in moments.items() if moment is not None}
        total = sum(sd**2 for _, sd in known.values()) + noise
        gain = (y - sum(factors[name][1] * mean for name, (mean, _) in known.items())) / total if total > 0 else 0.0
        after = {}
        for name, (mean, sd) in known.items():
            middle, left = mean + factors[name][1] * sd**2 * gain, sd**2 * (1 - sd**2 / total) if total > 0 else 0.0
            after[name] = tuple(float(np.exp(middle + z * left**0.5)) for z in (-1.6448536, 0.0, 1.6448536))
        effective, exact = float(n), True
    else:
        if noise == 0:
            raise HarnessError("the spend has no uncertainty, so no draw can match it", "give it as a range")
        logs = -((np.log(product) - y) ** 2) / (2 * noise)
        weights = np.exp(logs - logs.max())
        effective, exact = float(weights.sum() ** 2 / np.sum(weights**2)), False
        if effective < LEAST_EFFECTIVE:
            raise HarnessError(
                f"only {effective:.0f} of {n} draws come near the spend: the assumptions and it hardly overlap",
                "widen the assumptions, or look at the isolines",
            )
        after = {name: _quantiles(values, weights) for name, values in x.items()}
    shifts = tuple(Shift(name, before[name], after[name]) for name in factors)  # type: ignore[arg-type]
    wanted = quantile(needed, np.array(LEVELS))
    return Inversion(shifts, _quantiles(product), (wanted[0], wanted[1], wanted[2]), exact, effective)


def isoline(factors: Mapping[str, tuple[float, int]], needed: float, solve: str, along: str, grid: Draws) -> Draws:
    """The values of factor `solve` that keep the product at `needed` while `along` runs over `grid`, the rest fixed.

    >>> isoline({"price": (2.0, 1), "hours": (3.0, 1), "use": (0.5, -1)}, 24.0, "price", "use", np.array([0.5, 1.0]))
    array([4., 8.])
    """
    rest = np.asarray(grid, float) ** factors[along][1]
    for name, (value, sign) in factors.items():
        if name not in (solve, along):
            rest = rest * value**sign
    return np.asarray((needed / rest) ** factors[solve][1])


def _quantiles(values: Draws, weights: Draws | None = None) -> tuple[float, float, float]:
    if weights is None:
        found = np.quantile(values, LEVELS)
    else:
        order = np.argsort(values)
        reached = np.cumsum(weights[order]) / weights.sum()
        found = values[order][np.searchsorted(reached, LEVELS)]
    return float(found[0]), float(found[1]), float(found[2])
