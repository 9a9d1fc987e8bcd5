"""The power readings of one run by device, and their faults."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.findings import finding
from harness.analysis.joules import Array, Reads, Window, align, counter_window, edges, power_window
from harness.model import Finding, MeterDevice, MeterInfo, Status

STALE_PERIODS = 5
"""Periods without an update or a reading after which a counter is faulty."""
LEAST_PERIODS = 10
"""Smallest number of the counter's periods in a window without a finding."""
GPU = ("gpu", "gpu module")


@dataclass(frozen=True, slots=True)
class Source:
    """One device and domain of one meter: its description, and its rows of power.parquet."""

    device: MeterDevice
    status: Status
    offset_s: float
    rows: pd.DataFrame

    @property
    def label(self) -> str:
        return f"{self.device.domain} {self.device.device}".replace("gpu", "GPU", 1)

    @property
    def reads(self) -> Reads | None:
        """The counter's readings; None if there are fewer than two."""
        rows = self.rows[self.rows["energy_j"].notna()]
        if len(rows) < 2:
            return None
        before, after, energy = (rows[c].to_numpy(float) for c in ("before_s", "after_s", "energy_j"))
        device = self.device
        return Reads(before - self.offset_s, after + self.offset_s, energy, device.period_s, device.quantum_j or 0.001)

    def power(self, column: str, start_s: float, end_s: float) -> Window | None:
        """The integral of a power column over the window; None if the readings have a gap."""
        rows = self.rows[self.rows[column].notna()]
        time = (rows["before_s"].to_numpy(float) + rows["after_s"].to_numpy(float)) / 2
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
        power_w = rows[column].to_numpy(float)
        return power_window(time, power_w, start_s, end_s, update_s=update_s, mean_s=mean_s, range_w=range_w)


def sources(power: pd.DataFrame, infos: Sequence[MeterInfo]) -> tuple[Source, ...]:
    """Every device of every meter with its rows, in time order."""
    power = power.sort_values("before_s", kind="stable")
    of: dict[Any, pd.DataFrame] = dict(iter(power.groupby(["device", "domain"], sort=False)))
    return tuple(
        Source(d, info.status, info.clock_offset_s, of.get((d.device, d.domain), power.iloc[:0]))
        for info in infos
        for d in info.devices
    )


def fault(source: Source, start_s: float, end_s: float) -> Finding | None:
    """The fault because of which this source gives no energy for the window, or None."""
    gpu, device, rows = source.label, source.device.device, source.rows
    near = rows[(rows["after_s"] >= start_s - 1) & (rows["before_s"] <= end_s + 1)]
    errors = " ".join(near["error"].dropna().unique())
    if "uuid_changed" in errors:
        return finding("gpu-changed", gpu=gpu)
    if "gpu_is_lost" in errors:
        after_s = near["before_s"][near["error"].str.contains("gpu_is_lost", na=False)].min()
        return finding("gpu-lost", gpu=gpu, after_s=after_s)
    if rows.empty:
        return finding("meter-absent", gpu=gpu, why="no reading is stored")
    reads = source.reads
    if reads is None:
        if rows["average_w"].notna().sum() + rows["power_w"].notna().sum() < 2:
            return finding("meter-absent", gpu=gpu, why=errors or "not supported")
        return None
    limit_s = STALE_PERIODS * max(reads.period_s or 0.1, 0.1)  # readings may be further apart than updates
    inside = (reads.after_s >= start_s - limit_s) & (reads.before_s <= end_s + limit_s)
    steps = np.diff(reads.energy_j[inside])
    if (steps < 0).any():
        return finding("counter-backwards", gpu=gpu, device=device)
    turn = np.cumsum(np.append(0, steps != 0))[: inside.sum()]
    stood = pd.Series(reads.before_s[inside]).groupby(turn).max() - pd.Series(reads.after_s[inside]).groupby(turn).min()
    if stood.max() > limit_s:
        return finding("counter-stuck", gpu=gpu, stood_s=stood.max())
    if counter_window(reads, start_s, end_s) is None:
        why = errors or "no reading failed"
        return finding("window-not-bracketed", gpu=gpu, start_s=start_s, end_s=end_s, errors=why)
    return None


def source_window(source: Source, start_s: float, end_s: float) -> Window | None:
    """Energy of one source: from its counter, else from its average power, else from its newest power; else None."""
    if fault(source, start_s, end_s) is not None:
        return None
    if (reads := source.reads) is None:
        return source.power("average_w", start_s, end_s) or source.power("power_w", start_s, end_s)
    # A board exceeds its power limit only briefly. Without a limit the newest power is a loose bound.
    limit_w, newest_w = source.device.power_limit_w, source.rows["power_w"].max()
    peak_w = limit_w if limit_w is not None else math.inf if pd.isna(newest_w) else 1.5 * float(newest_w)
    return counter_window(reads, start_s, end_s, peak_w)


def joules_between(source: Source, cuts: Array) -> Array:
    """Energy between successive instants, interpolated; for a window without a fault."""
    if (reads := source.reads) is not None:
        found = edges(reads)
        time, joules = np.maximum.accumulate(found.time_s[found.sure]), found.energy_j[found.sure]
        return np.diff(np.interp(cuts, time, joules))
    column = "average_w" if source.rows["average_w"].notna().any() else "power_w"
    parts = [source.power(column, a, b) for a, b in pairwise(cuts)]
    return np.array([math.nan if part is None else part.energy_j for part in parts])


def total(parts: Sequence[Source], start_s: float, end_s: float) -> Window | None:
    """Energy of several sources over the same time; None if one's is missing, since a part is no total."""
    every = [source_window(part, start_s, end_s) for part in parts]
    known = [window for window in every if window is not None]
    if not known or len(known) < len(every):
        return None
    sums = {name: sum(getattr(w, name) for w in known) for name in ("energy_j", "low_j", "high_j", "boundary_j")}
    return replace(known[0], **sums, source=" and ".join(sorted({w.source for w in known})))


def watts_between(power: pd.DataFrame, infos: Sequence[MeterInfo], cuts: Array) -> Array:
    """Mean power of all GPUs between successive instants; NaN without counters that cover all instants."""
    gpus = [source for source in sources(power, infos) if source.device.domain in GPU]
    if any(source.reads is None for source in gpus) or total(gpus, float(cuts[0]), float(cuts[-1])) is None:
        return np.full(len(cuts) - 1, math.nan)
    return np.asarray(np.sum([joules_between(source, cuts) for source in gpus], axis=0) / np.diff(cuts))


def settle(found: Sequence[Source], start_s: float, end_s: float) -> tuple[float, float]:
    """The window moved to updates of the first counter, if there is one and it holds `LEAST_PERIODS` of its periods."""
    for source in found:
        reads = source.reads
        if reads is not None:
            moved, period_s = align(reads, [start_s, end_s]), reads.period_s or 0.1
            near = np.abs(moved - [start_s, end_s]).max() <= STALE_PERIODS * period_s
            if near and moved[1] - moved[0] >= LEAST_PERIODS * period_s:
                return float(moved[0]), float(moved[1])
    return start_s, end_s


def worst(parts: Sequence[Source]) -> Status:
    """The status of a sum: the least certain of its parts' (simulated, then assumed, then measured)."""
    return next((s for s in ("simulated", "assumed") if s in {part.status for part in parts}), "measured")
