"""Percentiles, means and ratios with their 95% intervals, from numbers alone."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]
CONFIDENCE = 0.95
LEAST_CLUSTERS = 100  # with fewer the spread between them is too poorly known
LEAST_BATCHES, MOST_BATCHES = 10, 512
MOST_DEPENDENCE = 0.6
"""Autocorrelation of the largest batches above which a run is too short to tell its own variance."""


def percentile(ordered: Array, p: float) -> float:
    """The value below which a share `p` of the `ordered` (ascending, at least one) values lies.

    Linear interpolation between the order statistics around position (n - 1) p: numpy's default, type 7 of
    Hyndman & Fan (1996), The American Statistician 50(4).

    >>> percentile(np.array([1.0, 2.0, 4.0]), 0.75)
    3.0
    """
    position = (len(ordered) - 1) * p
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (position - below) * (ordered[above] - ordered[below]))


@lru_cache(maxsize=64)
def least_n(p: float) -> int:
    """The smallest n with 1 - p^n - (1 - p)^n >= 0.95: of so many, the least and greatest enclose the percentile `p`.

    >>> [least_n(p) for p in (0.5, 0.9, 0.95, 0.99)]
    [6, 29, 59, 299]
    """
    n = 1
    while 1 - p**n - (1 - p) ** n < CONFIDENCE:
        n += 1
    return n


@lru_cache(maxsize=1024)
def interval_ranks(n: int, p: float) -> tuple[int, int] | None:
    """Ranks (from 1) of the order statistics that enclose the percentile `p` with at least 95% confidence.

    Of n independent observations B ~ Binomial(n, p) lie below the percentile, whatever their distribution, so ranks l
    and u miss it with probability P(B < l) + P(B >= u): 2.5% each, or, where a small n needs more for one, what is left
    of 5% for the other. None below `least_n`. Source: Conover, Practical Nonparametric Statistics (1999), section 3.2.

    >>> interval_ranks(100, 0.5)
    (40, 61)
    >>> interval_ranks(298, 0.99) is None
    True
    """
    from scipy.special import bdtr

    if n < least_n(p):
        return None
    below = above = (1 - CONFIDENCE) / 2
    if p**n > above:
        above, below = p**n, 1 - CONFIDENCE - p**n
    elif (1 - p) ** n > below:
        above, below = 1 - CONFIDENCE - (1 - p) ** n, (1 - p) ** n
    reach = 10 * math.sqrt(n * p * (1 - p)) + 10  # further out P is 0 or 1 to within 1e-12
    k = np.arange(max(0, int(n * p - reach)), min(n, int(n * p + reach)) + 1)
    at_most = bdtr(k, n, p)
    lower = int(k[0] + np.searchsorted(at_most, below, side="right"))
    upper = int(k[0] + np.searchsorted(at_most, 1 - above, side="left")) + 1
    return max(lower, 1), min(upper, n)


def percentile_interval(ordered: Array, p: float) -> Interval | None:
    """The 95% interval of a percentile of independent values, in ascending order; None where there are too few.

    >>> percentile_interval(np.arange(1.0, 101.0), 0.5)
    (40.0, 61.0)
    """
    ranks = interval_ranks(len(ordered), p)
    return None if ranks is None else (float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1]))


def least_clusters(p: float) -> int:
    """The fewest clusters for which `pooled_interval` answers."""
    return max(LEAST_CLUSTERS, least_n(p))


def pooled_interval(ordered: Array, values: Array, sizes: NDArray[np.int64], p: float) -> Interval | None:
    """The 95% interval of a percentile of values that come in clusters, such as the gaps within each request.

    `values` holds the clusters one after the other, `sizes` (all above 0) their lengths; `ordered` is `values` sorted.
    Values of one cluster may depend on each other in any way; clusters must not. The share of values above the
    percentile is a ratio of cluster totals; its variance, from the clusters' residuals, says how many independent
    values these are worth, and of those the interval is the order-statistic one. None with fewer clusters than
    `least_clusters`, or where they are worth too few. Source: Korn & Graubard (1998), Survey Methodology 24(2),
    without their t quantile, which changes n by 3% at most from 100 clusters on.
    """
    if (count := len(sizes)) < least_clusters(p):
        return None
    above = values > percentile(ordered, p)
    passed = np.add.reduceat(above, np.cumsum(sizes) - sizes, dtype=np.int64)
    share = float(passed.sum()) / len(values)
    variance = count / (count - 1) * float(np.square(passed - share * sizes).sum()) / len(values) ** 2
    worth = share * (1 - share) / variance if variance > 0 else math.inf
    n = int(min(worth, len(values)))
    ranks = interval_ranks(n, p)
    return ranks and (percentile(ordered, (ranks[0] - 1) / n), percentile(ordered, ranks[1] / n))


def ratio_half(top: Array, bottom: Array | None = None, together: float = 1.0) -> float | None:
    """Half the 95% interval of sum(top) / sum(bottom), relative to it, of values in time order that may depend on each
    other; without `bottom`, of the mean of `top`. None where there are too few, where they depend
    for too long, or where the interval would reach 0.

    Batch means of the residuals top - ratio x bottom (their linearised error). A batch has `together` values at least,
    since those requests shared the engine, and its size doubles while the batches' autocorrelation r shows; of r that
    is left, the variance gets (1 + r) / (1 - r). Source: Law and Carson (1979), Operations Research 27(5); the factor
    is SKART's: Tafazzoli, Wilson, Lada and Steiger (2011), INFORMS J. Computing 23(2).

    >>> round(ratio_half(np.random.default_rng(0).normal(10, 1, 400)), 4)
    0.0098
    >>> ratio_half(np.arange(400.0)) is None
    True
    """
    from scipy.special import stdtrit

    bottom = np.ones(len(top)) if bottom is None else bottom
    n, below = len(top), float(bottom.sum())
    if n < LEAST_BATCHES or not below > 0 or not (total := abs(float(top.sum()))) > 0:
        return None
    errors = top - top.sum() / below * bottom
    size = max(1, min(round(together), n // LEAST_BATCHES), -(-n // MOST_BATCHES))
    while True:
        count = n // size
        means = errors[n - count * size :].reshape(count, size).mean(axis=1)
        about = means - means.mean()
        spread = float(about @ about)
        # An estimate of r from few batches is low by 1 / count on average.
        r = float(about[1:] @ about[:-1]) / spread + 1 / count if spread > 0 else 0.0
        if r * math.sqrt(count) <= 1 or count // 2 < LEAST_BATCHES:
            break
        size *= 2
    if r > MOST_DEPENDENCE:
        return None
    variance = spread / (count - 1) / count * (1 + max(r, 0.0)) / (1 - max(r, 0.0))
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(variance) * n / total
    return half if half < 1 else None


def repeats_half(values: Array) -> float | None:
    """Half the 95% t interval of the mean of independent runs, in the values' unit; None for fewer than two.

    >>> round(repeats_half(np.array([9.0, 10.0, 11.0])), 3)
    2.484
    """
    from scipy.special import stdtrit

    if (n := len(values)) < 2:
        return None
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(n))
