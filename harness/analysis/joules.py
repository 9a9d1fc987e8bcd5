"""Energy from meter readings, with bounds of its error. docs/energy.md has every formula.

Times are seconds since the load began; a window is the pair of instants between which energy is wanted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
TIGHT_S = 0.003
"""Largest width of an update's interval at which a window may begin or end on it."""


@dataclass(frozen=True, slots=True)
class Reads:
    """The readings of a counter: when each was requested, when it had arrived, and its value."""

    before_s: Array
    after_s: Array
    energy_j: Array
    period_s: float | None = None
    quantum_j: float = 0.001


class Edges(NamedTuple):
    """A counter's updates: `energy_j` was reached between `low_s` and `high_s`, by estimate at `time_s`."""

    low_s: Array
    high_s: Array
    time_s: Array
    energy_j: Array
    sure: npt.NDArray[np.bool_]
    """Whether `time_s` is good enough for interpolation."""


@dataclass(frozen=True, slots=True)
class Window:
    """Energy between two instants. Apart from the sensor's gain, the truth lies between `low_j` and `high_j`."""

    start_s: float
    end_s: float
    energy_j: float
    low_j: float
    high_j: float
    boundary_j: float
    """Error from the ends: from the hard interval, or at a counter's updates from the uncertainty of their instants."""
    source: str = "counter"

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


def edges(reads: Reads) -> Edges:
    """The counter's updates, from pairs of readings that differ.

    An update lies between the request of the last reading without it and the arrival of the first reading with it. If
    that interval is wider than `TIGHT_S`, the update is placed a whole number of periods after the nearest update with
    a narrow interval; if several placements are possible, it is not `sure`.
    """
    changed = np.flatnonzero(np.diff(reads.energy_j) != 0) + 1
    low, high = reads.before_s[changed - 1], reads.after_s[changed]
    time, tight = (low + high) / 2, high - low <= TIGHT_S
    if reads.period_s is None or not tight.any():
        return Edges(low, high, time, reads.energy_j[changed], np.ones(len(changed), bool))
    near = time[tight][_nearest(time[tight], time)]
    turns = (high - near) / reads.period_s
    placed = near + np.floor(turns) * reads.period_s
    fraction_s = (turns - np.floor(turns)) * reads.period_s
    clear = (np.minimum(fraction_s, reads.period_s - fraction_s) > TIGHT_S / 2) & (placed >= low)
    return Edges(low, high, np.where(clear & ~tight, placed, time), reads.energy_j[changed], clear | tight)


def _nearest(instants: Array, wanted: Array) -> npt.NDArray[np.int64]:
    """Index of the nearest of the ascending `instants` (at least one) to each wanted instant."""
    after = np.clip(np.searchsorted(instants, wanted), 1, max(1, len(instants) - 1)) % len(instants)
    return np.asarray(after - (wanted - instants[after - 1] <= instants[after] - wanted))


def counter_window(reads: Reads, start_s: float, end_s: float, peak_w: float = math.inf) -> Window | None:
    """Energy from a counter between any two instants; None if its readings do not enclose them.

    Between updates the energy is interpolated, and the boundary term is that of the hard interval. At instants from
    `align` the counter's value is exact, and only its time is uncertain: the term is that time at `peak_w`.

    >>> reads = Reads(np.arange(9.0), np.arange(9.0) + 0.1, 100 * np.arange(9.0))
    >>> w = counter_window(reads, 2.5, 6.5)
    >>> round(w.energy_j), round(w.low_j), round(w.high_j)
    (400, 200, 600)
    >>> counter_window(reads, 6.5, 9.5) is None
    True
    """
    found = edges(reads)
    bounds = []
    for instant in (start_s, end_s):
        last = int(np.searchsorted(reads.after_s, instant, side="right")) - 1
        first = int(np.searchsorted(found.low_s, instant))
        if last < 0 or first >= len(found.low_s):
            return None
        bounds.append((float(reads.energy_j[last]), float(found.energy_j[first])))
    (start_low, start_high), (end_low, end_high) = bounds
    low, high = max(0.0, end_low - start_high - reads.quantum_j), end_high - start_low + reads.quantum_j
    time, energy = found.time_s[found.sure], found.energy_j[found.sure]
    if not len(time):
        return None
    at_start, at_end = np.interp([start_s, end_s], np.maximum.accumulate(time), energy)
    energy_j = float(np.clip(at_end - at_start, low, high))
    boundary_j = max(high - energy_j, energy_j - low)
    close, doubt_s = _close(found)
    at = _nearest(close, np.array([start_s, end_s]))
    if (np.abs(close[at] - [start_s, end_s]) <= 1e-9).all() and math.isfinite(peak_w):
        boundary_j = min(boundary_j, float(doubt_s[at].sum()) * peak_w + reads.quantum_j)
    return Window(start_s, end_s, energy_j, low, high, boundary_j)


def align(reads: Reads, instants: Sequence[float] | Array) -> Array:
    """Each instant moved to the nearest update with a narrow interval; unchanged if there are fewer than two.

    >>> reads = Reads(np.arange(9.0), np.arange(9.0) + 0.1, 100 * np.arange(9.0))
    >>> align(reads, [2.2, 5.8])
    array([2.55, 5.55])
    """
    wanted = np.asarray(instants, float)
    time, _ = _close(edges(reads))
    return time[_nearest(time, wanted)] if len(time) > 1 else wanted


def _close(found: Edges) -> tuple[Array, Array]:
    """The updates with the narrowest intervals: their instants and half-widths."""
    width = found.high_s - found.low_s
    close = width <= max(TIGHT_S, 1.5 * float(width.min(initial=math.inf)))
    return found.time_s[close], width[close] / 2


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
    return Window(start_s, end_s, energy, low_j, energy + error_j, error_j, "power_integral")


def _autocorrelation_time(values: Array) -> float:
    """1 + 2 x the sum of the autocorrelations before the first that is not positive."""
    x = values - values.mean()
    if len(x) < 4 or not x.any():
        return 1.0
    full = np.fft.irfft(np.abs(np.fft.rfft(x, 2 * len(x))) ** 2)[: len(x)]
    rho = full[1:] / full[0]
    return float(1 + 2 * rho[np.cumprod(rho > 0, dtype=bool)].sum())
