"""The power readings of one run by device, and their faults."""

import bisect
import itertools
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.analysis.findings import finding
from harness.analysis.joules import Array, Curve, Reads, Window, counter_window, curve, power_window
from harness.model import Finding, MeterDevice, MeterInfo, Status
from harness.periodic import LOOSE

STALE_PERIODS = 5
"""Periods without an update or a reading after which a counter is faulty."""
LEAST_PERIODS = 10
"""Smallest number of the counter's periods in a window without a finding."""
GPU = ("gpu", "gpu module")
HOPPER, PERIOD_S = re.compile(r"\bH[12]00\b"), 0.1
"""Names of boards, and the counter's period, with which `LAG_S` was measured."""
LAG_S, LAG_HALF_S = 0.010, 0.005
"""How long after its use energy is in the counter: 5 to 15 ms on an H100 (measured 2026-11-26)."""
OTHER_HALF_S, OTHER_HIDDEN = 0.05, 1.0
"""Doubt of the lag, and `Reads.hidden`, of other boards and periods. How long their newest power is averaged
is not known either: swings from nothing to twice the mean may be hidden in it."""
OVER_LIMIT = 1.2
"""Largest power over the power limit that is believed."""
POWERS, LEAST_POWERS, MOST_POWERS = 40, 4, 300
"""Readings of power from which a spread is estimated: wanted, and the fewest and the most that are used."""
AGREE, AROUND_S = 0.03, 30.0
"""Relative difference of average power and counter that both allow; how far from the window readings are compared."""
SLOW_S = 8.0
"""Longest time between readings of all that is not energy or newest power."""
MOMENT = 0.6
"""Deviation of average power from the counter's over that of newest power, from which it is no mean of a second."""
FEW = 5
"""Readings of average power in a window, or nearest to it, that are compared apart."""
MARGIN_S = 0.3
"""Time around a mean in which power must be steady as well."""
AVERAGE_LAG_S = 0.065
"""Mean age of average power: its last update was 50 ms ago, of a mean that ended 15 ms before it (measured on an H100,
2026-11-26)."""
UNKNOWN_WINDOW_S = 1.0
INWARD = 0.8
"""A window shrinks to the counter's updates inside it if this share of it is left. Else it moves to the updates next to
its ends that are nearest, of those that leave as much."""
ROUGH_S = 0.2
MOST_MOVED_S = 1.1
"""Largest move of a window's end to an update: readings are about a second apart."""


@dataclass(frozen=True)
class Source:
    """One device and domain of one meter: its description, and its rows of power.parquet."""

    device: MeterDevice
    status: Status
    offset_s: float
    rows: pd.DataFrame
    meter: str = ""

    @property
    def label(self) -> str:
        return f"{self.device.domain} {self.device.device}".replace("gpu", "GPU", 1)

    def columns(self, known: str, *names: str) -> list[Array]:
        """These columns of the readings that have a value in the column `known`."""
        kept = self.rows[known].notna().to_numpy()
        return [self.rows[name].to_numpy(float)[kept] for name in names]

    def watts(self, column: str) -> tuple[Array, Array]:
        """The times and the values of a power column."""
        before_s, after_s, power_w = self.columns(column, "before_s", "after_s", column)
        return (before_s + after_s) / 2, power_w

    @cached_property
    def reads(self) -> Reads | None:
        """The counter's readings; None if there are fewer than two."""
        before, after, energy = self.columns("energy_j", "before_s", "after_s", "energy_j")
        if len(energy) < 2:
            return None
        device = self.device
        reads = Reads(before - self.offset_s, after + self.offset_s, energy, quantum_j=device.quantum_j or 0.001)
        if self.meter != "nvml":
            return reads
        period_s, half_s = device.period_s, device.period_half_s
        lag_half_s, hidden = (LAG_HALF_S, 0.0) if self._lag_measured else (OTHER_HALF_S, OTHER_HIDDEN)
        reads = replace(reads, period_s=period_s, period_half_s=half_s, lag_half_s=lag_half_s, hidden=hidden)
        return replace(reads, lag_s=LAG_S, peak_w=math.inf if period_s is None else self.peak_w)

    @property
    def _lag_measured(self) -> bool:
        """Whether the counter's lag was measured with such a board, and the counter moves as that one did."""
        periodic = math.isclose(self.device.period_s or PERIOD_S, PERIOD_S, rel_tol=LOOSE)
        return periodic and HOPPER.search(self.device.name or "") is not None

    @cached_property
    def curve(self) -> Curve | None:
        """What the counter says; None without a counter."""
        return None if (reads := self.reads) is None else curve(reads)

    @property
    def peak_w(self) -> float:
        """The largest power: the limit, which a board exceeds only briefly, else half more than any reading."""
        limit_w, newest_w = self.device.power_limit_w, self.rows["power_w"].max()
        return limit_w if limit_w is not None else math.inf if pd.isna(newest_w) else 1.5 * float(newest_w)

    def spread_w(self, start_s: float, end_s: float) -> float:
        """The difference of power between two instants of the window that 95% of pairs do not exceed.

        From the readings of newest power in the window, or else the nearest ones; without readings it is the largest
        power.
        """
        middle_s, power_w = self.watts("power_w")
        away_s = np.maximum(start_s - middle_s, middle_s - end_s)
        count = max(POWERS, int((away_s <= 0).sum()))
        order = np.argsort(away_s, kind="stable")[:count]
        if len(order) < LEAST_POWERS:
            return self.peak_w
        power_w = power_w[order][:: max(1, count // MOST_POWERS)]
        i, j = np.triu_indices(len(power_w), 1)
        spread_w = float(np.quantile(np.abs(power_w[i] - power_w[j]), 0.95))
        if self.curve is not None and len(self.curve.time_s) > 1 and end_s > start_s:
            joules = np.diff(np.interp([start_s, end_s], self.curve.time_s, self.curve.energy_j))[0]
            # Readings in step with the load show one phase of it. Half of the spread, if not more, then lies between
            # their mean and the counter's.
            spread_w = max(spread_w, 2 * abs(float(power_w.mean()) - joules / (end_s - start_s)))
        return min(self.peak_w, spread_w)

    def power(self, column: str, start_s: float, end_s: float) -> Window | None:
        """The integral of a power column over the window; None if the readings have a gap."""
        time, power_w = self.watts(column)
        if len(time) < 2:
            return None
        device, average = self.device, column == "average_w"
        update = device.average_period_s if average else device.power_period_s
        update_s = max(update or 0.0, float(np.median(np.diff(time)))) + self.offset_s
        near = time[(time > start_s - 2) & (time < end_s + 2)]
        if float(np.diff(near).max(initial=0.0)) > STALE_PERIODS * max(update_s, 0.1):
            return None
        watts = self.rows[["power_w", "average_w"]].to_numpy(float)
        low_w, high_w = float(np.nanmin(watts)), float(np.nanmax(watts))
        if self.rows["power_w"].isna().all() and device.power_limit_w is not None:  # means alone hide peaks
            low_w, high_w = 0.0, max(high_w, device.power_limit_w)
        mean_s, range_w = device.average_window_s if average else None, high_w - low_w
        limit_w = device.power_limit_w
        found = power_window(time, power_w, start_s, end_s, update_s=update_s, mean_s=mean_s, range_w=range_w)
        if found is None or mean_s is not None or limit_w is None:
            return found
        # A field whose averaging was not seen may leave out all that the limit allows.
        return replace(found, low_j=0.0, high_j=max(found.high_j, limit_w * found.seconds))


class Agreement(NamedTuple):
    """Average power against the counter: relative difference, what both allow, and the number of readings."""

    off: float
    allowed: float
    n: int


Load = Callable[[str, str], pd.DataFrame]
"""Reads the rows of a device and domain, in time order."""


def sources(
    power: pd.DataFrame | Load, infos: Sequence[MeterInfo], domains: Container[str] | None = None
) -> Iterator[Source]:
    """Every device of every meter, or those of some domains, with its rows in time order.

    A long run has too many readings to hold those of all devices: iterate with `map`, which keeps no source.
    """
    load = power if callable(power) else _of_frame(power)
    for info in infos:
        for each in info.devices:
            if domains is None or each.domain in domains:
                rows = load(each.device, each.domain)
                yield Source(each, info.status, info.clock_offset_s, rows, info.meter)
                del rows


def _of_frame(power: pd.DataFrame) -> Load:
    power = power.sort_values("before_s", kind="stable")
    of: dict[Any, pd.DataFrame] = dict(iter(power.groupby(["device", "domain"], sort=False)))
    return lambda *device: of.get(device, power.iloc[:0])


def fault(source: Source, start_s: float, end_s: float) -> Finding | None:
    """The fault because of which this source gives no energy for the window, or None."""
    gpu, rows = source.label, source.rows
    failed = rows[rows["error"].notna() & (rows["after_s"] >= start_s - 1)]
    if failed["error"].str.contains("uuid_changed").any():  # it is read rarely: a reading after the window counts too
        return finding("gpu-changed", gpu=gpu)
    errors = " ".join(failed["error"][failed["before_s"] <= end_s + SLOW_S].unique())
    lost_s = rows["before_s"][rows["error"].str.contains("gpu_is_lost", na=False)]
    if lost_s.between(start_s - 1, end_s + 1).any():
        return finding("gpu-lost", gpu=gpu, after_s=lost_s.min())
    if rows.empty:
        return finding("meter-absent", gpu=gpu, why="no reading is stored")
    reads = source.reads
    if reads is None:
        if rows["average_w"].notna().sum() + rows["power_w"].notna().sum() < 2:
            return finding("meter-absent", gpu=gpu, why=errors or "not supported")
        return None
    if (wrong := _counter_fault(source, reads, start_s, end_s)) is not None:
        return wrong
    if counter_window(reads, start_s, end_s, source.peak_w, source.curve) is None:
        why = errors or "no reading failed"
        return finding("window-not-bracketed", gpu=gpu, start_s=start_s, end_s=end_s, errors=why)
    return None


def _counter_fault(source: Source, reads: Reads, start_s: float, end_s: float) -> Finding | None:
    """The fault of a counter that went backwards, counted more than the power limit allows, or stood still."""
    limit_s, most_w = STALE_PERIODS * max(source.device.period_s or _observed_period_s(reads), 0.1), math.inf
    over = (reads.after_s[1:] >= start_s - limit_s) & (reads.before_s[:-1] <= end_s + limit_s)
    taken_s, steps_j = (reads.after_s[1:] - reads.before_s[:-1])[over], np.diff(reads.energy_j)[over]
    if (steps_j < 0).any():
        return finding("counter-backwards", gpu=source.label, device=source.device.device)
    if source.device.power_limit_w is not None:
        most_w = OVER_LIMIT * source.device.power_limit_w
    share = float((steps_j / (most_w * (taken_s + limit_s))).max(initial=0.0))  # it may have stood for `limit_s` before
    if share > 1:
        kind = "what its power limit allows between two readings"
        return finding("counter-disagrees", gpu=source.label, kind=kind, off=1 / share - 1)
    inside = (reads.after_s >= start_s - limit_s) & (reads.before_s <= end_s + limit_s)
    turns = np.append(0, np.flatnonzero(np.diff(reads.energy_j[inside])) + 1)[: inside.sum()]  # it has a new value
    last_s, first_s = np.maximum.reduceat(reads.before_s[inside], turns), reads.after_s[inside][turns]
    stood_s = float((last_s - first_s).max(initial=0.0))
    return finding("counter-stuck", gpu=source.label, stood_s=stood_s) if stood_s > limit_s else None


def source_window(source: Source, start_s: float, end_s: float) -> Window | None:
    """Energy of one source: from its counter, else from its average power, else from its newest power; else None."""
    if fault(source, start_s, end_s) is not None:
        return None
    if (reads := source.reads) is None:
        return source.power("average_w", start_s, end_s) or source.power("power_w", start_s, end_s)
    return counter_window(reads, start_s, end_s, source.spread_w(start_s, end_s), source.curve)


def _observed_period_s(reads: Reads) -> float:
    """Median time between changes of a counter whose period was not measured; 0 for fewer than three changes."""
    changes_s = reads.after_s[1:][np.diff(reads.energy_j) != 0]
    return float(np.median(np.diff(changes_s))) if len(changes_s) > 2 else 0.0


def agreement(source: Source, start_s: float, end_s: float) -> Agreement | None:
    """How far average power is from the counter; None without both.

    Each reading of average power is set against the counter's mean over the same second: those in the window or nearest
    to it, those within `AROUND_S` of it as well, and those of steady power before the load. What contradicts most
    counts. Both allow `AGREE` and 95% of the scatter about their ratio, by the differences between successive readings:
    a gain that changes is no scatter. A field that sees a moment only may see the same phase of the load each time, so
    that the spread of power is allowed as well.
    """
    known, device = source.curve, source.device
    if known is None or len(known.time_s) < 2 or device.domain != "gpu" or source.meter != "nvml":
        return None  # a module's power is not its GPU's
    window_s = device.average_window_s or UNKNOWN_WINDOW_S
    until_s, average_w = source.watts("average_w")
    until_s = until_s - AVERAGE_LAG_S
    inside = (until_s - window_s >= known.time_s[0]) & (until_s <= known.time_s[-1])
    # Readings closer together than their mean are no independent ones.
    _, apart = np.unique(np.floor(until_s[inside] / window_s), return_index=True)
    until_s, average_w = until_s[inside][apart], average_w[inside][apart]
    ends_j = (np.interp(instant_s, known.time_s, known.energy_j) for instant_s in (until_s - window_s, until_s))
    counter_w = -np.subtract(*ends_j) / window_s
    near = (until_s >= start_s - AROUND_S) & (until_s - window_s <= end_s + AROUND_S)
    steady = np.array([each <= 0 and _steady(source, each - window_s, each) for each in until_s], bool)
    away_s = np.maximum(0.0, np.maximum(start_s - until_s + window_s, until_s - end_s))
    nearest = near & (away_s <= np.sort(away_s)[:FEW].max(initial=0.0))
    found, moment = [], device.average_window_s is None
    for rows in (near, nearest, steady):
        if not rows.any() or not (mean_w := float(counter_w[rows].mean())) > 0:
            continue
        n, ratio = int(rows.sum()), float(average_w[rows].mean()) / mean_w
        spread_w = AGREE * mean_w if rows is steady else source.spread_w(start_s, end_s)
        off_w = average_w[rows] - ratio * counter_w[rows]
        if rows is near and n > 2:  # few readings do not tell
            moment |= bool(off_w.std(ddof=1) > MOMENT * _deviation_w(source, until_s[rows]))
        scatter_w = (1.96 + 3 / n) * math.sqrt((np.diff(off_w) ** 2).mean() / 2 / n) if n > 2 else spread_w
        scatter_w += spread_w * (moment and rows is not steady)
        found.append(Agreement(ratio - 1, AGREE + scatter_w / mean_w, n))
    return max(found, key=lambda each: abs(each.off) / each.allowed, default=None)


def _steady(source: Source, begin_s: float, until_s: float) -> bool:
    """Whether newest power and the counter's rate stayed within `AGREE` of their means around a time."""
    known, (time_s, power_w) = source.curve, source.watts("power_w")
    assert known is not None
    shown_w = power_w[(time_s > begin_s - MARGIN_S) & (time_s < until_s + MARGIN_S)]
    first, last = np.searchsorted(known.time_s, [begin_s - MARGIN_S, until_s + MARGIN_S])
    around = slice(max(0, first - 1), last + 1)
    apart_s = np.diff(known.time_s[around])
    rate_w = np.diff(known.energy_j[around])[apart_s > 0] / apart_s[apart_s > 0]  # damaged readings share a time
    return all(len(each) > 1 and np.ptp(each) <= AGREE * each.mean() for each in (shown_w, rate_w))


def _deviation_w(source: Source, near_s: Array) -> float:
    """The deviation of newest power, or else of average power, during these readings; inf if it hardly moved."""
    time_s, power_w = source.watts("power_w" if source.rows["power_w"].notna().any() else "average_w")
    power_w = power_w[(time_s >= near_s.min()) & (time_s <= near_s.max())]
    return float(power_w.std()) if len(power_w) > 2 and power_w.std() > AGREE * power_w.mean() else math.inf


def joules_between(source: Source, cuts: Array) -> Array:
    """Energy between successive instants, interpolated; for a window without a fault."""
    if source.curve is not None:
        return np.diff(np.interp(cuts, source.curve.time_s, source.curve.energy_j))
    column = "average_w" if source.rows["average_w"].notna().any() else "power_w"
    parts = [source.power(column, a, b) for a, b in itertools.pairwise(cuts)]
    return np.array([math.nan if part is None else part.energy_j for part in parts])


def total(every: Sequence[Window | None]) -> Window | None:
    """Energy of several sources over the same time; None if one's is missing, since a part is no total.

    The parts of their errors that are independent of each other are added in quadrature.
    """
    known = [window for window in every if window is not None]
    if not known or len(known) < len(every):
        return None
    names = "energy_j", "low_j", "high_j", "chance_j"
    energy_j, low_j, high_j, alike_j = (sum(getattr(w, name) for w in known) for name in names)
    chance_j = math.sqrt(sum(w.chance_j**2 for w in known))
    narrower_j = alike_j - chance_j
    source = " and ".join(sorted({w.source for w in known}))
    low_j, high_j = min(energy_j, low_j + narrower_j), max(energy_j, high_j - narrower_j)
    return replace(known[0], energy_j=energy_j, low_j=low_j, high_j=high_j, chance_j=chance_j, source=source)


def watts_between(power: pd.DataFrame | Load, infos: Sequence[MeterInfo], cuts: Array) -> Array:
    """Mean power of all GPUs between successive instants; NaN without counters that cover all instants."""
    unknown = np.full(len(cuts) - 1, math.nan)

    def joules(source: Source) -> Array:
        if source.reads is None or source_window(source, float(cuts[0]), float(cuts[-1])) is None:
            return unknown
        return joules_between(source, cuts)

    of_gpus = list(map(joules, sources(power, infos, GPU)))
    return np.asarray(np.sum(of_gpus, axis=0) / np.diff(cuts)) if of_gpus else unknown


class Marks(NamedTuple):
    """Instants at which counters are known."""

    first: Curve | None
    """Of the first counter."""
    period_s: float
    """Time between the updates of that counter."""
    line: Curve | None
    """Of the first counter on a line, else of the first counter."""


def marks(gpus: Iterable[Source]) -> Marks:
    """The curves by which spans are placed."""
    first = None
    for known, period_s in map(attrgetter("curve", "device.period_s"), gpus):
        first = first if first is not None or known is None else Marks(known, period_s or 0.1, None)
        if first is not None and known is not None and known.line is not None:
            return first._replace(line=known)
        del known  # before the next is read
    return Marks(None, 0.1, None) if first is None else first._replace(line=first.first)


def settle(known: Curve | None, start_s: float, end_s: float) -> tuple[float, float]:
    """The window moved to instants of a curve that are known to `ROUGH_S` or better, if enough of it is left.

    It shrinks to the instants inside it, since beyond its ends the load is another; or else moves to the nearest.
    """
    if known is None or len(known.half_s) < 2 or (rough_s := float(np.median(known.half_s))) > ROUGH_S:
        return start_s, end_s
    period_s, times_s = max(known.line.period) if known.line else 2 * rough_s, known.time_s.tolist()
    least_s = max(INWARD * (end_s - start_s), STALE_PERIODS * period_s - float(known.half_s.min()))
    i, j = bisect.bisect_left(times_s, start_s), bisect.bisect_right(times_s, end_s)
    ends = itertools.product(times_s[i : i + 1] + times_s[max(0, i - 1) : i], times_s[max(0, j - 1) : j + 1])
    most_s, found = max(MOST_MOVED_S, STALE_PERIODS * period_s), [(math.inf, start_s, end_s)]
    for a, b in ends:
        outside, moved_s = a < start_s or b > end_s, (abs(a - start_s), abs(b - end_s))
        if b - a >= least_s and max(moved_s) <= most_s:
            found.append((sum(moved_s) if outside else 0.0, a, b))
    return min(found)[1:]


def worst(of: Container[Status]) -> Status:
    """The status of a sum: the least certain of its parts' (simulated, then assumed, then measured)."""
    return next((s for s in ("simulated", "assumed") if s in of), "measured")
