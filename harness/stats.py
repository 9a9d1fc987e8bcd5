"""Percentiles, means and ratios with their 95% confidence intervals. Pure numpy."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]
Group = NDArray[np.int64] | None
"""The group of each value, if there are several."""
CONFIDENCE = 0.95
Z = 1.96
LEAST_BATCHES = 1.5
"""Fewest batches of requests in flight together for an interval, which is wide then: t of 1 degree of freedom."""
ONE, FARTHEST = 0.92, 50.0
"""Requests that must be expected beyond an end of a percentile's interval: independent ones have it from `least_n` on;
largest reach of the logarithm of the odds."""
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


def least_values(together: float) -> float:
    """Fewest values that give an interval of their mean; those of `together` successive requests shared the engine."""
    return max(3.0, LEAST_BATCHES * together)


def mean_half(errors: Array, together: float = 1.0, group: Group = None) -> float | None:
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
    r = correlation(sums, 0.95)
    few = round(COSINES * (min(batches, parts) * (1 - r) / (1 + r)) ** (2 / 3))
    few = min(max(2 if batches >= TWO else 1, few), (parts - 1) // 2)
    power = np.square(dct(sums, norm="ortho")[1 : 2 * few + 1])
    halves = [t_quantile(k) * math.sqrt(float(power[:k].mean()) * parts) / n for k in (few, 2 * few)]
    halves.append(0.0 if group is None else _groups_half(group, errors) / n)
    return max(halves)


def correlation(errors: Array, most: float) -> float:
    """The correlation of successive `errors`, whose mean is 0: from 0 to `most`."""
    return min(max(0.0, float(errors[1:] @ errors[:-1]) / max(float(errors @ errors), 1e-300)), most)


def _groups_half(group: NDArray[np.int64], errors: Array) -> float:
    """Half-width of the 95% interval of the sum of `errors` of independent groups; 0 for fewer than `LEAST_GROUPS`."""
    totals = np.asarray(np.bincount(group, errors)[np.bincount(group) > 0], float)
    count = len(totals)
    if count < LEAST_GROUPS:
        return 0.0
    return t_quantile(count - 1) * math.sqrt(count / (count - 1) * float(totals @ totals))


def t_quantile(df: float) -> float:
    """The half-width of a 95% interval of Student's t; `df` may be infinite."""
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + CONFIDENCE) / 2))


def rate_half(slices: Array, batches: float, errors: Array | None = None, group: Group = None) -> float | None:
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


def ratio_half(top: Array, bottom: Array | None = None, together: float = 1.0, group: Group = None) -> float | None:
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
    errors = bottom * (-float(top.sum()) / below)
    errors += top
    half = mean_half(errors, together, group)
    return None if half is None or half * len(top) >= total else half * len(top) / total


def share_half(passed: Array, sizes: Array, together: float = 1.0, group: Group = None) -> float | None:
    """Half-width of the 95% interval of a share; None where `mean_half` is.

    Of the `sizes` values of each request, such as its token gaps (or one value's weight), `passed` are above a
    percentile.
    """
    errors = sizes * (-float(passed.sum()) / float(sizes.sum()))
    errors += passed
    half = mean_half(errors, together, group)
    return None if half is None else half * len(sizes) / float(sizes.sum())


def independent(p: float, half: float) -> float:
    """Number of independent values that tell the share `p` to `half`."""
    return p * (1 - p) * (Z / half) ** 2 if half > 0 else math.inf


def percentile_interval(
    ordered: Array, p: float, half: float, n: int, weights: Array | None = None, beyond: float | None = None
) -> Interval | None:
    """95% interval of quantile `p` of the values of `n` requests in ascending order; None if no request lies beyond it.

    `half`: of the share of values below the quantile. The ends are the quantiles at the ends of the share's interval,
    which is symmetric in the logarithm of the odds p / (1 - p), and the share `beyond` further out: one request.
    Sources: Woodruff (1952), J. American Statistical Association 47(260); logit intervals, Korn and Graubard (1998),
    Survey Methodology 24(2).

    >>> [round(end) for end in percentile_interval(np.arange(1.0, 101.0), 0.5, 0.098, 100) or ()]
    [40, 61]
    """
    odds, reach = p / (1 - p), min(half / (p * (1 - p)), FARTHEST)
    low, high = (1 / (1 + math.exp(x) / odds) for x in (reach, -reach))
    if n * min(low, 1 - high) < ONE:
        return None
    beyond = 1 / n if beyond is None else beyond
    ends = max(0.0, low - beyond), min(1.0, high + beyond)
    return percentile(ordered, ends[0], weights), percentile(ordered, ends[1], weights)


def repeats_half(values: Array) -> float | None:
    """Half-width of the 95% t interval of the mean of independent runs, in the values' unit; None for fewer than two.

    >>> round(repeats_half(np.array([9.0, 10.0, 11.0])), 3)
    2.484
    """
    if (n := len(values)) < 2:
        return None
    return float(t_quantile(n - 1) * values.std(ddof=1) / math.sqrt(n))
