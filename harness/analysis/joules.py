"""Energy from meter readings, with bounds of its error. docs/energy.md has every formula.

Times are seconds since the load began; a window is the pair of instants between which energy is wanted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.periodic import LOOSE, STEADIEST, Line, fit

Array = npt.NDArray[np.float64]
STOOD = 1.5
"""Periods for which a value may stand at most; with jitter, or a period that is not known well."""
MOST_SLACK_S = 0.001
"""Largest jitter of a counter's updates at which they count as periodic."""
LEAST_SURE = 0.3
"""Smallest share of readings that must belong to one certain update each, or else the line fits too few of them."""
MOST_JITTER_S = 0.0002
"""Largest error of a window by jitter that is not seen as slack of the line, as a time."""


@dataclass(frozen=True, slots=True)
class Reads:
    """The readings of a counter: when each was requested, when it had arrived, and its value."""

    before_s: Array
    after_s: Array
    energy_j: Array
    period_s: float | None = None
    quantum_j: float = 0.001
    period_half_s: float | None = None
    """Half-width of the interval in which the period is known to lie; None: `LOOSE` x the period."""
    lag_s: float = 0.0
    """A value published at t is the energy used until t - lag_s ± lag_half_s."""
    lag_half_s: float = 0.0
    peak_w: float = math.inf
    """The largest power."""
    hidden: float = 0.0
    """Difference of power between two instants that readings of power may not show, as a share of the mean power."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What a counter says: at `time_s` the energy used was `energy_j`.

    Each instant is in doubt by `half_s`. On a `line` that doubt is the same for all instants but for the doubt of the
    time between them; without one, each instant has its own.
    """

    time_s: Array
    half_s: Array
    energy_j: Array
    number: Array
    line: Line | None

    def nearest(self, instants: Sequence[float] | Array) -> Array:
        """The instant of the curve nearest to each; the instants themselves if the curve has fewer than two."""
        wanted = np.asarray(instants, float)
        if len(self.time_s) < 2:
            return wanted
        after = np.clip(np.searchsorted(self.time_s, wanted), 1, len(self.time_s) - 1)
        before_s, after_s = self.time_s[after - 1], self.time_s[after]
        return np.where(wanted - before_s <= after_s - wanted, before_s, after_s)


@dataclass(frozen=True, slots=True)
class Window:
    """Energy between two instants. Apart from the sensor's gain, the truth lies between `low_j` and `high_j`."""

    start_s: float
    end_s: float
    energy_j: float
    low_j: float
    high_j: float
    chance_j: float = 0.0
    """The part of the bound that is independent between devices."""
    source: str = "counter"

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    @property
    def boundary_j(self) -> float:
        """The larger of the two errors that the bounds allow."""
        return max(self.high_j - self.energy_j, self.energy_j - self.low_j)


def curve(reads: Reads) -> Curve:
    """The instants at which the energy used is known, ascending.

    An update lies between the request of the last reading without it and the arrival of the first reading with it. If
    the updates fit one line (phase and period) with a slack of at most `MOST_SLACK_S`, each reading belongs to the
    update before it. Otherwise each change of the counter gives an instant, the middle of its interval.
    """
    changed = np.flatnonzero(np.diff(reads.energy_j) != 0) + 1
    low, high = reads.before_s[changed - 1], reads.after_s[changed]
    if reads.period_s is not None:  # of several updates between two readings the last counts
        low = np.maximum(low, reads.before_s[changed] - STOOD * reads.period_s)
    if (line := _line(reads, low, high)) is not None:
        locked = _locked(reads, line)
        if locked is not None:
            return locked
    time = np.maximum.accumulate((low + high) / 2) - reads.lag_s
    half = np.maximum(high - reads.lag_s - time, time - low + reads.lag_s) + reads.lag_half_s
    return Curve(time, half, reads.energy_j[changed], np.arange(len(time), dtype=float), None)


def _line(reads: Reads, low_s: Array, high_s: Array) -> Line | None:
    if reads.period_s is None:
        return None
    known = reads.period_half_s
    halves = [LOOSE * reads.period_s]
    if known is not None:  # a stored period that no longer fits is measured anew
        halves.insert(0, min(halves[0], max(known, STEADIEST * reads.period_s)))
    found = (fit(low_s, high_s, (reads.period_s - half, reads.period_s + half), MOST_SLACK_S) for half in halves)
    return next((line for line in found if line is not None), None)


def _locked(reads: Reads, line: Line) -> Curve | None:
    """The updates on the line that readings belong to; None if these are few, or if two of one update differ."""
    k = np.floor(line.number((reads.before_s + reads.after_s) / 2))
    sure = line.bounds_s(k)[1] + line.slack_s <= reads.before_s
    sure &= line.bounds_s(k + 1)[0] - line.slack_s >= reads.after_s
    number, first = np.unique(k[sure], return_index=True)
    energy_j = reads.energy_j[sure][first]
    if sure.mean() < LEAST_SURE or (energy_j[np.searchsorted(number, k[sure])] != reads.energy_j[sure]).any():
        return None
    low, high = line.bounds_s(number)
    half_s = np.hypot((high - low) / 2, reads.lag_half_s)  # phase and lag are independent
    return Curve((low + high) / 2 - reads.lag_s, half_s, energy_j, number, line)


def counter_window(
    reads: Reads, start_s: float, end_s: float, spread_w: float = math.inf, known: Curve | None = None
) -> Window | None:
    """Energy from a counter between any two instants; None if its readings do not enclose them.

    Between the instants of the curve (`known`, if it is at hand) energy is interpolated. `spread_w` is the difference
    of power between two instants that 95% of pairs do not exceed. Without a line, or with no spread, the bound is the
    hard interval.

    >>> reads = Reads(np.arange(9.0), np.arange(9.0) + 0.1, 100 * np.arange(9.0))
    >>> w = counter_window(reads, 2.5, 6.5)
    >>> round(w.energy_j), round(w.low_j), round(w.high_j)
    (400, 200, 600)
    >>> counter_window(reads, 6.5, 9.5) is None
    True
    """
    known = curve(reads) if known is None else known
    if math.isfinite(spread_w) and (window := _on_line(reads, known, start_s, end_s, spread_w)) is not None:
        return window
    if not len(known.time_s) or (bounds := _hard_interval(reads, start_s, end_s)) is None:
        return None
    shift_j = reads.lag_half_s * spread_w if reads.lag_half_s else 0.0
    low, high = max(0.0, bounds[0] - shift_j), bounds[1] + shift_j
    ends = np.array([start_s, end_s])
    energy_j = float(np.diff(np.interp(ends, known.time_s, known.energy_j))[0])
    if math.isfinite(reads.peak_w):  # at an instant of the curve the energy is known but for what its doubt can hold
        near = known.nearest(ends)
        reach_j = reads.peak_w * float((np.abs(ends - near) + np.interp(near, known.time_s, known.half_s)).sum())
        middle_j = float(np.diff(np.interp(near, known.time_s, known.energy_j))[0])
        low, high = max(low, middle_j - reach_j), max(low, min(high, middle_j + reach_j))
    return Window(start_s, end_s, float(np.clip(energy_j, low, high)), low, high, source="counter, hard bounds")


def _on_line(reads: Reads, known: Curve, start_s: float, end_s: float, spread_w: float) -> Window | None:
    """The window of a counter on a line; None without a line, or if the curve does not enclose the window.

    The bound: spread x (doubt of phase and lag + distance of the ends from the curve) + power x doubt of the duration
    + jitter.
    """
    ends, line, time_s = np.array([start_s, end_s]), known.line, known.time_s
    if line is None or start_s < time_s[0] - 1e-9 or end_s > time_s[-1] + 1e-9 or end_s <= start_s:
        return None
    energy_j = float(np.diff(np.interp(ends, time_s, known.energy_j))[0])
    power_w = energy_j / (end_s - start_s)
    shift_s = float(np.interp(ends, time_s, known.half_s).max())
    shortest, longest = line.period
    periods = float(np.diff(np.interp(ends, time_s, known.number))[0])
    # The instants are middles of what phase and period allow together: their distance is no middle of durations.
    span_s = max(periods * longest - (end_s - start_s), end_s - start_s - periods * shortest)
    chance_j = spread_w * float(np.hypot(*(ends - known.nearest(ends))))
    shift_j = (spread_w + reads.hidden * power_w) * shift_s
    error_j = shift_j + power_w * span_s + _jitter_j(known, power_w) + chance_j + reads.quantum_j
    return Window(start_s, end_s, energy_j, max(0.0, energy_j - error_j), energy_j + error_j, chance_j)


def _jitter_j(known: Curve, power_w: float) -> float:
    """95% of the error that the jitter of two updates makes, in joules.

    Independent errors of the updates' instants show in the power between them: its successive differences have
    sqrt(6) times their deviation. As changes of the load do so as well, the error is at most `MOST_JITTER_S` of power;
    a slack that the line needs comes on top.
    """
    assert known.line is not None
    gaps_s = np.diff(known.time_s)
    steps_w = np.diff(np.diff(known.energy_j) / gaps_s)
    seen_j = 1.96 * math.sqrt(2 / 6) * float(steps_w.std()) * float(np.median(gaps_s)) if len(steps_w) > 4 else math.inf
    return min(seen_j, MOST_JITTER_S * power_w) + 2 * known.line.slack_s * power_w


def _hard_interval(reads: Reads, start_s: float, end_s: float) -> tuple[float, float] | None:
    """The bounds that hold whatever the updates and the power were; None if the readings do not enclose the window.

    The lag moves the window by `lag_s`; the doubt of the lag is not in the bounds.
    """
    changed = np.flatnonzero(np.diff(reads.energy_j) != 0) + 1
    low_s, bounds = reads.before_s[changed - 1], []
    for instant in (start_s + reads.lag_s, end_s + reads.lag_s):
        last = int(np.searchsorted(reads.after_s, instant, side="right")) - 1
        first = int(np.searchsorted(low_s, instant))
        if last < 0 or first >= len(low_s):
            return None
        bounds.append((float(reads.energy_j[last]), float(reads.energy_j[changed[first]])))
    (start_low, start_high), (end_low, end_high) = bounds
    return max(0.0, end_low - start_high - reads.quantum_j), end_high - start_low + reads.quantum_j


def power_window(
    time_s: Array,
    power_w: Array,
    start_s: float,
    end_s: float,
    *,
    update_s: float,
    mean_s: float | None,
    range_w: float | None = None,
) -> Window | None:
    """Energy as the trapezoid under power readings, ends interpolated; None if they do not span the window.

    A reading is the mean over the `mean_s` before the last update, on average `update_s / 2` ago, and is moved back
    accordingly. `range_w` is the range of the power, by default that of the readings. docs/energy.md has the bound.

    >>> t = np.arange(0, 10, 0.1)
    >>> w = power_window(t, np.full(100, 300.0), 2.0, 4.0, update_s=0.1, mean_s=1.0)
    >>> round(w.energy_j, 6), round(w.low_j, 6), w.source
    (600.0, 600.0, 'power_integral')
    """
    moved = time_s - update_s / 2 - (mean_s or 0.0) / 2
    if len(moved) < 2 or moved[0] > start_s or moved[-1] < end_s or end_s <= start_s:
        return None
    inside = (moved > start_s) & (moved < end_s)
    grid = np.concatenate([[start_s], moved[inside], [end_s]])
    energy = float(np.trapezoid(np.interp(grid, moved, power_w), grid))
    seconds = end_s - start_s
    range_w = float(np.ptp(power_w)) if range_w is None else range_w
    unseen = 1.0 if mean_s is None else max(0.0, 1 - mean_s / update_s)
    steps_j = np.diff(power_w) * np.diff(time_s)
    error_j = range_w * ((mean_s or 0.0) / 4 + update_s) + 3 * math.sqrt((steps_j[inside[1:]] ** 2).sum() / 12)
    if unseen:
        mean_w = energy / seconds
        extreme_j = unseen * seconds * max(float(power_w.max()) - mean_w, mean_w - float(power_w.min()))
        values = np.interp(np.arange(moved[0], moved[-1], update_s), moved, power_w)
        memory_s = update_s * _autocorrelation_time(values)
        chance_j = 1.96 * float(values.std()) * math.sqrt(memory_s * seconds)
        error_j += extreme_j if seconds < 3 * memory_s else min(extreme_j, chance_j)
    low_j = max(0.0, energy - error_j)
    return Window(start_s, end_s, energy, low_j, energy + error_j, source="power_integral")


def _autocorrelation_time(values: Array) -> float:
    """1 + 2 x the sum of the autocorrelations before the first that is not positive."""
    x = values - values.mean()
    if len(x) < 4 or not x.any():
        return 1.0
    full = np.fft.irfft(np.abs(np.fft.rfft(x, 2 * len(x))) ** 2)[: len(x)]
    rho = full[1:] / full[0]
    return float(1 + 2 * rho[np.cumprod(rho > 0, dtype=bool)].sum())
