"""Instants that recur with a fixed period, each known only by an interval that contains it.

`fit` finds all lines phi + k T that pass through the intervals. They form a polygon in the plane of phi and T.
"""

import math
from dataclasses import dataclass

import numpy as np

from harness.stats import Array

LOOSE = 0.01
"""Relative doubt of a period that was measured in a few seconds."""
WIDEST = 0.9
"""Largest width of an interval that counts, in periods: in a wider one there may be two instants."""
STEADIEST = 5e-6
"""Smallest relative doubt of a period, since clocks drift with temperature."""


@dataclass(frozen=True, slots=True)
class Line:
    """All lines phi + k T: at each of the periods `period_s`, phi reaches from `low_s` to `high_s`."""

    period_s: Array
    low_s: Array
    high_s: Array
    slack_s: float
    """Smallest extension of every interval at both ends with which a line fits: the instants' jitter; 0 if none."""

    @property
    def period(self) -> tuple[float, float]:
        """The shortest and the longest period."""
        return float(self.period_s.min()), float(self.period_s.max())

    def bounds_s(self, k: Array) -> tuple[Array, Array]:
        """The earliest and the latest instant with each number."""
        shift = np.multiply.outer(np.asarray(k, float), self.period_s)
        return (shift + self.low_s).min(axis=-1), (shift + self.high_s).max(axis=-1)

    def number(self, time_s: Array) -> Array:
        """The number of each instant's nearest member of the sequence, as a fraction."""
        period_s, phi = np.mean(self.period), (self.low_s.min() + self.high_s.max()) / 2
        first = (np.asarray(time_s, float) - phi) / period_s
        low, high = self.bounds_s(np.round(first))  # phi and T are doubtful together, their sum at k much less
        return np.asarray(np.round(first) + (time_s - (low + high) / 2) / period_s)

    def around_s(self, time_s: float, after: int) -> tuple[float, float]:
        """The earliest and the latest instant of the `after`th member, counted from the last one before a time.

        The formulas of `number` and `bounds_s` in plain numbers: arrays take ten times as long for a single time.
        """
        corners = [*zip(self.period_s.tolist(), self.low_s.tolist(), self.high_s.tolist(), strict=True)]

        def bounds_s(k: int) -> tuple[float, float]:
            low, high = zip(*((k * period + low, k * period + high) for period, low, high in corners), strict=True)
            return min(low), max(high)

        period_s, phi = (corners[0][0] + corners[-1][0]) / 2, sum(bounds_s(0)) / 2
        first = round((time_s - phi) / period_s)
        return bounds_s(first + math.floor((time_s - sum(bounds_s(first)) / 2) / period_s) + after)


def fit(low_s: Array, high_s: Array, period: tuple[float, float], most_slack_s: float = 0.0) -> Line | None:
    """The lines through the intervals; `period` has bounds of T.

    Intervals of `WIDEST` periods or more, and those whose number is ambiguous, do not count. None if none counts, or if
    they need more slack than `most_slack_s`.

    >>> line = fit(np.array([0.0, 1.0, 10.0]), np.array([0.2, 1.2, 10.2]), (0.95, 1.05))
    >>> [round(each, 3) for each in line.period]
    [0.98, 1.02]
    >>> fit(np.array([0.0, 1.0, 2.0]), np.array([0.1, 1.1, 2.4]), (1.15, 1.2)) is None
    True
    """
    narrow = np.flatnonzero(high_s - low_s < WIDEST * period[0])
    if not len(narrow):
        return None
    low_s, high_s = low_s[narrow], high_s[narrow]
    origin = int(np.argmin(high_s - low_s))
    zero_s = float(low_s[origin])
    low_s, high_s = low_s - zero_s, high_s - zero_s
    numbers = _numbers(low_s, high_s, origin, period, most_slack_s)
    sure = ~np.isnan(numbers)
    while sure.any():
        kept = ~np.isnan(numbers)
        k, low, high = numbers[kept], low_s[kept], high_s[kept]
        line = _region(_hull(k, low, -1), _hull(k, high, 1), period)
        if line is None or line.slack_s > most_slack_s:
            return None
        # The line may number more of the intervals: those that only one of its instants can be in.
        near = np.add.outer([-1.0, 0.0, 1.0], np.round(line.number((low_s + high_s) / 2)))
        earliest, latest = line.bounds_s(near)
        possible = (latest + most_slack_s >= low_s) & (earliest - most_slack_s <= high_s)
        sure = ~kept & (possible.sum(axis=0) == 1) & (line.slack_s == 0)
        numbers[sure] = (near * possible).sum(axis=0)[sure]
    assert line is not None
    if line.slack_s:  # with the least slack only one line fits: those with twice as much are possible too
        wide_s = 2 * line.slack_s
        wider = _region(_hull(k, low - wide_s, -1), _hull(k, high + wide_s, 1), period)
        assert wider is not None
        line = Line(wider.period_s, wider.low_s, wider.high_s, line.slack_s)
    return Line(line.period_s, line.low_s + zero_s, line.high_s + zero_s, line.slack_s)


def _numbers(low_s: Array, high_s: Array, origin: int, period: tuple[float, float], slack_s: float) -> Array:
    """The number of each interval, counted from `origin`; NaN if it is ambiguous."""
    (shortest, longest), numbers = period, np.full(len(low_s), np.nan)
    centre = (low_s + high_s) / 2
    for i in np.argsort(np.abs(centre - centre[origin]), kind="stable"):
        # The interval from origin to i holds k periods: all possible values of k must round to one number.
        least, most = low_s[i] - high_s[origin] - 2 * slack_s, high_s[i] - low_s[origin] + 2 * slack_s
        sign = 1 if centre[i] >= centre[origin] else -1
        near, far = (least, most) if sign > 0 else (-most, -least)
        first, last = math.ceil(near / longest), math.floor(far / shortest)
        if first < last and i != origin:
            continue
        k = 0 if i == origin else round((near + far) / (shortest + longest))
        numbers[i] = sign * k
        if k and first == last:
            shortest, longest = max(shortest, near / k), min(longest, far / k)
    return numbers


def _hull(k: Array, s: Array, sign: int) -> tuple[Array, Array]:
    """The points that bind: the lower hull of upper ends (sign 1), the upper hull of lower ends (sign -1)."""
    points: list[tuple[float, float]] = []
    order = np.lexsort((sign * s, k))
    order = order[np.append(True, np.diff(k[order]) > 0)]  # of points with the same k the one that binds
    for x, y in zip(map(float, k[order]), map(float, sign * s[order]), strict=True):
        while len(points) > 1:
            (x0, y0), (x1, y1) = points[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            points.pop()
        points.append((x, y))
    found = np.array(points)
    return found[:, 0], sign * found[:, 1]


def _region(lower: tuple[Array, Array], upper: tuple[Array, Array], period: tuple[float, float]) -> Line | None:
    """The polygon between the hulls, by its corners; with the least slack if it is empty."""
    k, s = np.concatenate([lower[0], upper[0]]), np.concatenate([lower[1], upper[1]])
    i, j = np.triu_indices(len(k), 1)
    apart = k[i] != k[j]
    slopes = (s[j] - s[i])[apart] / (k[j] - k[i])[apart]
    periods = np.unique(np.concatenate([slopes[(slopes > period[0]) & (slopes < period[1])], period]))
    low_s = (lower[1] - np.multiply.outer(periods, lower[0])).max(axis=1)
    high_s = (upper[1] - np.multiply.outer(periods, upper[0])).min(axis=1)
    slack_s = max(0.0, float((low_s - high_s).min()) / 2)
    if slack_s < 1e-9:
        slack_s = 0.0
    fits = low_s <= high_s + 2 * slack_s + 1e-9
    middle = (low_s + high_s)[fits] / 2
    half = np.maximum(0.0, (high_s - low_s)[fits] / 2)
    return Line(periods[fits], middle - half, middle + half, slack_s)
