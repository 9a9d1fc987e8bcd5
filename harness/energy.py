"""Joules from meter readings, with what is known of their error. docs/energy.md has the method, formula by formula.

Times are seconds since the load began; a window is the pair of instants between which energy is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.model import Figure, MeterDevice, MeterInfo, Status

Array = npt.NDArray[np.float64]

GAIN = 0.06
"""Relative gain error of a board's own sensor, from comparisons with external meters: Yang, Adamek and Armour,
"Part-time Power Measurements" (SC24), within 5% on most of 70 boards; one more for the 3.3 V rail that they left out."""
STALE_PERIODS = 5
"""A counter that did not move, or was not read, for so many of its periods is a doubt."""
LEAST_PERIODS = 10
"""Fewer of the counter's periods than this in a window are a doubt."""
DOUBT, INVALID, INVALID_FROM_S = 0.03, 0.10, 10.0
"""Disagreement of counter and average power that is a finding, that voids the energy, and from what length of window."""
TIGHT_S = 0.003
"""An update whose instant is known to this is good enough to hang a window on."""
WINDOWS, LEAST_WINDOWS, DRAWS = 20, 5, 2000
GPU = ("gpu", "gpu module")
ONE_BOARD = "95%: boundary, repeats and tokens; sensor gain apart, it cancels between runs on one board"


@dataclass(frozen=True, slots=True)
class Reads:
    """A counter as it was read: when each reading was asked for, when it had come, and what it said."""

    before_s: Array
    after_s: Array
    energy_j: Array
    period_s: float | None = None
    quantum_j: float = 0.001


@dataclass(frozen=True, slots=True)
class Edges:
    """A counter's updates: `energy_j` is what had been used at some instant between `low_s` and `high_s`, near `time_s`."""

    low_s: Array
    high_s: Array
    time_s: Array
    energy_j: Array
    sure: npt.NDArray[np.bool_]
    """Whether `time_s` is fit to interpolate from."""


@dataclass(frozen=True, slots=True)
class Window:
    """Energy between two instants. The truth, but for the sensor's gain, is within `low_j` and `high_j`."""

    start_s: float
    end_s: float
    energy_j: float
    low_j: float
    high_j: float
    boundary_j: float
    """What the ends may have added or taken: from the hard interval, or, on a counter's updates, from their instants."""
    source: str = "counter"

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


def edges(reads: Reads) -> Edges:
    """The counter's updates, from pairs of readings that differ.

    An update was seen between the instant at which the reading before it was asked for and that at which its own had come.
    Where other updates are known closely (`TIGHT_S`), one that is not is put a whole number of periods from the nearest
    such; if that leaves doubt about which period it was in, it is not `sure`.
    """
    changed = np.flatnonzero(np.diff(reads.energy_j) != 0) + 1
    low, high = reads.before_s[changed - 1], reads.after_s[changed]
    if reads.period_s is not None:  # what a reading says is never older than this
        low = np.maximum(low, reads.before_s[changed] - 2 * reads.period_s)
    time, sure = (low + high) / 2, np.ones(len(changed), bool)
    tight = np.flatnonzero(high - low <= TIGHT_S)
    if reads.period_s is not None and len(tight) and len(tight) < len(changed):
        wide = np.flatnonzero(high - low > TIGHT_S)
        after = np.searchsorted(tight, wide)
        left, right = tight[np.maximum(after - 1, 0)], tight[np.minimum(after, len(tight) - 1)]
        near = np.where(np.abs(time[left] - time[wide]) <= np.abs(time[right] - time[wide]), left, right)
        turns = (high[wide] - time[near]) / reads.period_s
        placed = time[near] + np.floor(turns) * reads.period_s
        fraction_s = (turns - np.floor(turns)) * reads.period_s
        clear = (np.minimum(fraction_s, reads.period_s - fraction_s) > TIGHT_S / 2) & (placed >= low[wide])
        time[wide], sure[wide] = np.where(clear, placed, time[wide]), clear
    return Edges(low, high, time, reads.energy_j[changed], sure)


def counter_window(reads: Reads, start_s: float, end_s: float) -> Window | None:
    """Energy from a counter between any two instants, or None where its readings do not bracket them.

    Between updates the energy is interpolated. The hard interval needs no interpolation and no period. A reading that had
    come by an instant t says no more than had been used at t; one that differs from a reading asked for after t says no
    less. So E(end) - E(start) is at most the first such update after the end less the last reading before the start, and
    at least the last reading before the end less the first such update after the start.

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
    return Window(start_s, end_s, energy_j, low, high, max(high - energy_j, energy_j - low))


def align(reads: Reads, instants: Sequence[float] | Array) -> Array:
    """Each instant moved to the nearest update of the counter that is known closely; unmoved where there is none.

    >>> reads = Reads(np.arange(9.0), np.arange(9.0) + 0.1, 100 * np.arange(9.0))
    >>> align(reads, [2.2, 5.8])
    array([2.55, 5.55])
    """
    wanted = np.asarray(instants, float)
    time, _ = _close(reads)
    if len(time) < 2:
        return wanted
    after = np.clip(np.searchsorted(time, wanted), 1, len(time) - 1)
    return np.asarray(np.where(wanted - time[after - 1] <= time[after] - wanted, time[after - 1], time[after]))


def aligned_window(reads: Reads, start_s: float, end_s: float, peak_w: float) -> Window | None:
    """Energy between two instants that `align` gave. What the counter said is exact there; only when it said so is not.

    The boundary term is that doubt at the device's peak power; it is the hard interval's where an instant is no update.
    """
    window = counter_window(reads, start_s, end_s)
    time, doubt_s = _close(reads)
    at = [int(np.argmin(np.abs(time - instant))) for instant in (start_s, end_s)] if len(time) else []
    if window is None or not at or any(abs(time[i] - t) > 1e-9 for i, t in zip(at, (start_s, end_s), strict=True)):
        return window
    boundary_j = float(doubt_s[at].sum()) * peak_w + reads.quantum_j
    return replace(window, boundary_j=min(boundary_j, window.boundary_j))


def _close(reads: Reads) -> tuple[Array, Array]:
    """The updates known most closely: their instants, and how far each may be off."""
    found = edges(reads)
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
) -> Window | None:
    """Energy as the trapezoid under power readings with interpolated ends, or None where they do not span the window.

    Each reading stands for the `mean_s` before the field's last update, on average `update_s / 2` ago, and is moved back so
    far. Every reading counts, also one that equals the last. The bound adds what the ends can hide,
    (mean_s / 2 + update_s) x range, and what was never looked at, where `mean_s` is shorter than `update_s` or unknown:
    1.96 standard errors of the mean with the readings' own autocorrelation, or, in windows shorter than ten times the
    autocorrelation time, that the unseen share drew the least or the most ever read.

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
    seconds, span = end_s - start_s, float(np.ptp(power_w))
    unseen = 1.0 if mean_s is None else max(0.0, 1 - mean_s / update_s)
    error_j = span * ((mean_s or 0.0) / 2 + update_s)
    if unseen:
        mean_w = energy / seconds
        extreme_j = unseen * seconds * max(float(power_w.max()) - mean_w, mean_w - float(power_w.min()))
        values = np.interp(np.arange(moved[0], moved[-1], update_s), moved, power_w)
        memory_s = update_s * _autocorrelation_time(values)
        chance_j = 1.96 * float(values.std()) * math.sqrt(memory_s * seconds)
        error_j += extreme_j if seconds < 10 * memory_s else min(extreme_j, chance_j)
    low_j = max(0.0, energy - error_j)
    return Window(start_s, end_s, energy, low_j, energy + error_j, error_j, "power_integral")


def _autocorrelation_time(values: Array) -> float:
    """1 + 2 x the sum of the autocorrelations up to the first that is not positive (Geyer's initial positive sequence)."""
    x = values - values.mean()
    if len(x) < 4 or not x.any():
        return 1.0
    full = np.fft.irfft(np.abs(np.fft.rfft(x, 2 * len(x))) ** 2)[: len(x)]
    rho = full[1:] / full[0]
    end = int(np.argmax(rho <= 0)) if (rho <= 0).any() else len(rho)
    return float(1 + 2 * rho[:end].sum())


# ---- one run's readings ----


@dataclass(frozen=True, slots=True)
class Source:
    """One device and domain of one meter: what it said of itself, and its rows of power.parquet."""

    device: MeterDevice
    status: Status
    offset_s: float
    rows: pd.DataFrame

    @property
    def label(self) -> str:
        return f"{self.device.domain} {self.device.device}"

    @property
    def reads(self) -> Reads | None:
        """The counter's readings; None where it gave none."""
        rows = self.rows[self.rows["energy_j"].notna()]
        if len(rows) < 2:
            return None
        before, after, energy = (rows[c].to_numpy(float) for c in ("before_s", "after_s", "energy_j"))
        device = self.device
        return Reads(before - self.offset_s, after + self.offset_s, energy, device.period_s, device.quantum_j or 0.001)

    def power(self, column: str, start_s: float, end_s: float) -> Window | None:
        """The integral of a power column over the window."""
        rows = self.rows[self.rows[column].notna()]
        time = (rows["before_s"].to_numpy(float) + rows["after_s"].to_numpy(float)) / 2
        if len(time) < 2:
            return None
        average = column == "average_w"
        update = self.device.average_period_s if average else self.device.power_period_s
        spacing = float(np.median(np.diff(time)))
        update_s = max(update or 0.0, spacing) + self.offset_s
        near = (time > start_s - 2) & (time < end_s + 2)
        if near.any() and float(np.diff(time[near]).max(initial=0.0)) > STALE_PERIODS * max(update_s, 0.1):
            return None
        mean_s = self.device.average_window_s if average else None
        return power_window(time, rows[column].to_numpy(float), start_s, end_s, update_s=update_s, mean_s=mean_s)


def meter_infos(stored: Sequence[Mapping[str, Any]]) -> tuple[MeterInfo, ...]:
    """MeterInfo values from the mappings that `dataclasses.asdict` made of them, as run.json holds."""
    return tuple(MeterInfo(**{**info, "devices": tuple(MeterDevice(**d) for d in info["devices"])}) for info in stored)


def sources(power: pd.DataFrame, infos: Sequence[MeterInfo]) -> tuple[Source, ...]:
    """Every device of every meter with its own rows, in time order."""
    power = power.sort_values("before_s", kind="stable")
    return tuple(
        Source(
            d, info.status, info.clock_offset_s, power[(power["device"] == d.device) & (power["domain"] == d.domain)]
        )
        for info in infos
        for d in info.devices
    )


def fault(source: Source, start_s: float, end_s: float) -> tuple[str, str] | None:
    """Why this source gives no energy for the window, as (reason code, what was seen); None: nothing found.

    Codes: `gpu_changed`, `gpu_lost`, `meter_absent`, `counter_backwards`, `counter_stuck`, `window_not_bracketed`.
    """
    rows = source.rows
    near = rows[(rows["after_s"] >= start_s - 1) & (rows["before_s"] <= end_s + 1)]
    errors = " ".join(near["error"].dropna().unique())
    if "uuid_changed" in errors:
        return "gpu_changed", "another GPU answers under its index"
    if "gpu_is_lost" in errors:
        at_s = float(near[near["error"].str.contains("gpu_is_lost", na=False)]["before_s"].iloc[0])
        return "gpu_lost", f"the GPU was lost {at_s:.1f} s into the load"
    if rows.empty:
        return "meter_absent", "it gave no sample"
    reads = source.reads
    if reads is None:
        if rows["average_w"].notna().sum() + rows["power_w"].notna().sum() < 2:
            return "meter_absent", f"neither counter nor power could be read ({errors or 'not supported'})"
        return None
    inside = (reads.after_s >= start_s) & (reads.before_s <= end_s)
    if (np.diff(reads.energy_j[inside]) < 0).any():
        return "counter_backwards", "the energy counter went backwards: the driver was reloaded or the counter reset"
    if counter_window(reads, start_s, end_s) is not None and not _stuck_s(reads, start_s, end_s):
        return None
    if (stuck_s := _stuck_s(reads, start_s, end_s)) is not None:
        return "counter_stuck", f"the energy counter stood still for {stuck_s:.2g} s while it was read"
    return "window_not_bracketed", f"its samples do not reach from before {start_s:.1f} s to after {end_s:.1f} s" + (
        f" ({errors})" if errors else ""
    )


def _stuck_s(reads: Reads, start_s: float, end_s: float) -> float | None:
    """For how long the counter was read in the window without moving, if longer than `STALE_PERIODS`."""
    if reads.period_s is None:
        return None
    moved = np.concatenate([[True], np.diff(reads.energy_j) != 0])
    since = reads.before_s - reads.after_s[np.maximum.accumulate(np.where(moved, np.arange(len(moved)), 0))]
    inside = (reads.after_s >= start_s) & (reads.before_s <= end_s + STALE_PERIODS * reads.period_s)
    worst = float(since[inside].max(initial=0.0))
    return worst if worst > STALE_PERIODS * reads.period_s else None


def source_window(source: Source, start_s: float, end_s: float) -> Window | None:
    """Energy of one source: from its counter, else from its average power, else from its newest power; else None."""
    if fault(source, start_s, end_s) is not None:
        return None
    if (reads := source.reads) is not None:
        return counter_window(reads, start_s, end_s)
    return source.power("average_w", start_s, end_s) or source.power("power_w", start_s, end_s)


def total(windows: Sequence[Window | None]) -> Window | None:
    """Windows of several devices over the same time, added; None if one is missing, since a part is no total."""
    known = [w for w in windows if w is not None]
    if not known or len(known) < len(windows):
        return None
    origin = {w.source for w in known}
    return Window(
        known[0].start_s,
        known[0].end_s,
        sum(w.energy_j for w in known),
        sum(w.low_j for w in known),
        sum(w.high_j for w in known),
        sum(w.boundary_j for w in known),
        origin.pop() if len(origin) == 1 else "counter and power_integral",
    )


def settle(found: Sequence[Source], start_s: float, end_s: float) -> tuple[float, float]:
    """The window moved to updates of the first GPU's counter, if it has one and the window holds `LEAST_PERIODS` of it."""
    for source in found:
        reads = source.reads
        if source.device.domain in GPU and reads is not None:
            moved = align(reads, [start_s, end_s])
            if moved[1] - moved[0] >= LEAST_PERIODS * (reads.period_s or 0.1):
                return float(moved[0]), float(moved[1])
    return start_s, end_s


def worst(status: Sequence[Status]) -> Status:
    """The status of a sum: the least certain of its parts' (simulated, then assumed, then measured)."""
    return next((s for s in ("simulated", "assumed") if s in status), "measured")


def missing(name: str, unit: str, reason: str, status: Status = "measured") -> Figure:
    return Figure(name, None, unit, status, reason=reason)


def widened(figure: Figure, relative: float) -> Figure:
    """A figure whose interval reaches so far to both sides."""
    if figure.value is None:
        return figure
    return replace(figure, low=figure.value * (1 - relative), high=figure.value * (1 + relative))
