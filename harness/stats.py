"""Percentiles, means and ratios with their 95% confidence intervals. Pure numpy."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]
CONFIDENCE = 0.95
LEAST_CLUSTERS = 100  # with fewer, the variance between clusters is too uncertain
LEAST_BATCHES, MOST_BATCHES = 10, 512
MOST_DEPENDENCE = 0.6
"""Largest lag-1 autocorrelation of the longest batches; above it the run is too short to estimate its variance."""


def percentile(ordered: Array, p: float) -> float:
    """Quantile `p` (0 to 1) of `ordered`, which holds at least one value in ascending order.

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
    """Fewest values that give quantile `p` an interval: the smallest n with 1 - p^n - (1 - p)^n >= 0.95.

    With n values, the smallest and largest enclose the quantile with 95% confidence.

    >>> [least_n(p) for p in (0.5, 0.9, 0.95, 0.99)]
    [6, 29, 59, 299]
    """
    n = 1
    while 1 - p**n - (1 - p) ** n < CONFIDENCE:
        n += 1
    return n


@lru_cache(maxsize=1024)
def interval_ranks(n: int, p: float) -> tuple[int, int] | None:
    """Ranks (from 1) of the order statistics that enclose quantile `p` with at least 95% confidence.

    Of n independent values, B ~ Binomial(n, p) lie below the quantile, whatever their distribution, so ranks l and u
    miss the quantile with probability P(B < l) + P(B >= u). Each side gets 2.5%; if a small n needs more on one side,
    the other side gets the rest of the 5%. None for n below `least_n`.
    Source: Conover, Practical Nonparametric Statistics (1999), section 3.2.

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
    reach = 10 * math.sqrt(n * p * (1 - p)) + 10  # outside this range P is 0 or 1 to within 1e-12
    k = np.arange(max(0, int(n * p - reach)), min(n, int(n * p + reach)) + 1)
    at_most = bdtr(k, n, p)
    lower = int(k[0] + np.searchsorted(at_most, below, side="right"))
    upper = int(k[0] + np.searchsorted(at_most, 1 - above, side="left")) + 1
    return max(lower, 1), min(upper, n)


def percentile_interval(ordered: Array, p: float) -> Interval | None:
    """95% interval of quantile `p` of independent values in ascending order; None if there are too few.

    >>> percentile_interval(np.arange(1.0, 101.0), 0.5)
    (40.0, 61.0)
    """
    ranks = interval_ranks(len(ordered), p)
    return None if ranks is None else (float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1]))


def least_clusters(p: float) -> int:
    """Fewest clusters for which `pooled_interval` gives an interval."""
    return max(LEAST_CLUSTERS, least_n(p))


def pooled_interval(ordered: Array, values: Array, sizes: NDArray[np.int64], p: float) -> Interval | None:
    """95% interval of quantile `p` of clustered values, such as the token gaps of each request.

    `values` holds the clusters one after the other, `sizes` (all above 0) their lengths; `ordered` is `values` sorted.
    Values of one cluster may depend on each other in any way; clusters must be independent. The share of values above
    the quantile is a ratio of cluster totals. Its variance, from the clusters' residuals, gives the effective number of
    independent values, and the interval is that of `interval_ranks` for this number. None for fewer clusters than
    `least_clusters`, or if the effective number is below `least_n`. Source: Korn & Graubard (1998), Survey Methodology
    24(2), without their t quantile, which changes the number by at most 3% from 100 clusters on.
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
    """Relative half-width of the 95% interval of sum(top) / sum(bottom), or of the mean of `top` without `bottom`.

    Values are in time order and may be autocorrelated. None if there are too few values, if the autocorrelation lasts
    too long, or if the interval would include 0.

    Method: batch means of the residuals top - ratio x bottom (the linearised error). A batch has at least `together`
    values, since those requests shared the engine; its size doubles while the lag-1 autocorrelation r of the batch
    means is significant. The variance is multiplied by (1 + r) / (1 - r) for the r that remains.
    Sources: Law and Carson (1979), Operations Research 27(5); the factor is that of SKART: Tafazzoli, Wilson, Lada and
    Steiger (2011), INFORMS J. Computing 23(2).

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
        # The estimate of r is too low by 1 / count on average.
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
    """Half-width of the 95% t interval of the mean of independent runs, in the values' unit; None for fewer than two.

    >>> round(repeats_half(np.array([9.0, 10.0, 11.0])), 3)
    2.484
    """
    from scipy.special import stdtrit

    if (n := len(values)) < 2:
        return None
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(n))
