"""Percentiles, means and ratios with their 95% confidence intervals. Pure numpy."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]
CONFIDENCE = 0.95
Z = 1.96
LEAST_BATCHES = 1.5
"""Fewest batches of requests in flight together for an interval, which is wide then: t of 1 degree of freedom."""
COSINES = 0.6
"""Frequencies of the spectrum at zero for one independent batch; times such batches to the power 2/3."""
LEAST_PARTS, TWO = 8, 5
"""Fewest parts of the values, one a batch, that show how successive batches depend on each other; fewest batches for
two frequencies."""
LEAST_GROUPS = 12
"""Fewest groups whose totals give a variance: the t of fewer would widen every interval."""


def percentile(ordered: Array, p: float, weights: Array | None = None) -> float:
    """Quantile `p` (0 to 1) of `ordered`, which holds at least one value in ascending order.

    Linear interpolation between the order statistics around position (n - 1) p: numpy's default, type 7 of
    Hyndman & Fan (1996), The American Statistician 50(4). With weights, value k of n stands at (k - 1) w_k + (n - 1) x
    (weights before it), of the place of the last one, which is the same for equal weights.

    >>> percentile(np.array([1.0, 2.0, 4.0]), 0.75), percentile(np.array([1.0, 2.0, 4.0]), 0.75, np.ones(3))
    (3.0, 3.0)
    """
    if weights is not None:
        places = np.arange(len(ordered)) * weights + (len(ordered) - 1) * (np.cumsum(weights) - weights)
        return float(np.interp(p * places[-1], places, ordered))
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


def least_values(together: float) -> float:
    """Fewest values that give an interval of their mean; those of `together` successive requests shared the engine."""
    return max(3.0, LEAST_BATCHES * together)


def mean_half(errors: Array, together: float = 1.0, group: NDArray[np.int64] | None = None) -> float | None:
    """Half-width of the 95% interval of the mean of `errors`, whose sum is 0; None for fewer than `least_values`.

    Values are in time order and may depend on each other. Those of `together` successive requests shared the engine.
    The largest of three half-widths: two take the spectrum of the batches' sums at its k lowest frequencies, and at
    twice as many (t with k degrees of freedom); one takes the variance between the totals of each `group`, such as the
    slots of a closed loop, whose values may depend on each other for any time, if there are `LEAST_GROUPS`.
    Sources: equal-weighted cosines, Lazarus, Lewis, Stock and Watson (2018), J. Business & Economic Statistics 36(4);
    k grows with the batches to the power 2/3, as there: batches that are worth (1 - r) / (1 + r) of independent ones, r
    the correlation of successive ones. Groups: Cameron, Gelbach and Miller (2011), the same journal 29(2).

    >>> mean_half(np.zeros(2)) is None, mean_half(np.zeros(3))
    (True, 0.0)
    """
    from scipy.fft import dct

    n = len(errors)
    if n < least_values(together) or np.isnan(errors).any():
        return None
    batches = n / max(together, 1.0)
    parts = min(n, max(LEAST_PARTS, round(batches)))
    sums = np.add.reduceat(errors, np.arange(parts) * n // parts)
    r = min(max(0.0, float(sums[1:] @ sums[:-1]) / max(float(sums @ sums), 1e-300)), 0.95)
    few = round(COSINES * (min(batches, parts) * (1 - r) / (1 + r)) ** (2 / 3))
    few = min(max(2 if batches >= TWO else 1, few), (parts - 1) // 2)
    power = np.square(dct(sums, norm="ortho")[1 : 2 * few + 1])
    halves = [_t(k) * math.sqrt(float(power[:k].mean()) * parts) / n for k in (few, 2 * few)]
    halves.append(0.0 if group is None else _groups_half(group, errors) / n)
    return max(halves)


def _groups_half(group: NDArray[np.int64], errors: Array) -> float:
    """Half-width of the 95% interval of the sum of `errors` of independent groups; 0 for fewer than `LEAST_GROUPS`."""
    totals = np.asarray(np.bincount(group, errors)[np.bincount(group) > 0], float)
    count = len(totals)
    if count < LEAST_GROUPS:
        return 0.0
    return _t(count - 1) * math.sqrt(count / (count - 1) * float(totals @ totals))


def _t(df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + CONFIDENCE) / 2))


def rate_half(
    slices: Array, batches: float, errors: Array | None = None, group: NDArray[np.int64] | None = None
) -> float | None:
    """Relative half-width of the 95% interval of a rate from its counts in successive equal times.

    As of `mean_half`, for as many `batches` of requests in flight together; the `errors` of the requests, of each
    `group`, have the sum 0. None if that is None or if the interval would include 0.

    >>> round(rate_half(np.random.default_rng(0).normal(10, 1, 400), 400), 3)
    0.01
    """
    total = float(slices.sum())
    half = mean_half(slices - slices.mean(), len(slices) / max(batches, 1e-9))
    if half is None or not total > 0:
        return None
    half = max(half * len(slices), 0.0 if group is None or errors is None else _groups_half(group, errors))
    return half / total if half < total else None


def ratio_half(
    top: Array, bottom: Array | None = None, together: float = 1.0, group: NDArray[np.int64] | None = None
) -> float | None:
    """Relative half-width of the 95% interval of sum(top) / sum(bottom), or of the mean of `top` without `bottom`.

    That of the mean of the residuals top - ratio x bottom (the linearised error) by `mean_half`, which has the other
    arguments. None if that is None or if the interval would include 0.

    >>> round(ratio_half(np.random.default_rng(0).normal(10, 1, 400)), 3)
    0.01
    """
    bottom = np.ones(len(top)) if bottom is None else bottom
    total, below = abs(float(top.sum())), float(bottom.sum())
    if not (below > 0 and total > 0):
        return None
    half = mean_half(top - top.sum() / below * bottom, together, group)
    return None if half is None or half * len(top) >= total else half * len(top) / total


def worth(passed: Array, sizes: Array, together: float = 1.0, group: NDArray[np.int64] | None = None) -> int | None:
    """Number of independent values that tell a share as well as these do; None where `mean_half` is.

    Of the `sizes` values of each request, such as its token gaps (or one value's weight), `passed` are above a
    percentile. The number is that whose binomial interval is as wide as the share's. Source: Korn and Graubard (1998),
    Survey Methodology 24(2).
    """
    share = float(passed.sum() / sizes.sum())
    half = mean_half(passed - share * sizes, together, group)
    if half is None:
        return None
    half *= len(sizes) / float(sizes.sum())
    known = share * (1 - share) * (Z / half) ** 2 if half > 0 else math.inf
    return int(min(known, float(sizes.sum())))


def percentile_interval(
    ordered: Array, p: float, n: int | None = None, weights: Array | None = None
) -> Interval | None:
    """95% interval of quantile `p` of values in ascending order that are worth `n` independent ones, all by default;
    None if these are fewer than `least_n`.

    >>> percentile_interval(np.arange(1.0, 101.0), 0.5)
    (40.0, 61.0)
    """
    n = len(ordered) if n is None else n
    ranks = interval_ranks(n, p)
    if ranks is None or (n == len(ordered) and weights is None):
        return ranks and (float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1]))
    return percentile(ordered, (ranks[0] - 1) / n, weights), percentile(ordered, ranks[1] / n, weights)


def repeats_half(values: Array) -> float | None:
    """Half-width of the 95% t interval of the mean of independent runs, in the values' unit; None for fewer than two.

    >>> round(repeats_half(np.array([9.0, 10.0, 11.0])), 3)
    2.484
    """
    if (n := len(values)) < 2:
        return None
    return float(_t(n - 1) * values.std(ddof=1) / math.sqrt(n))
