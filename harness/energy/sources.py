"""The readings of one run, device by device, with what is wrong with them; and when its tokens came."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from harness.energy.windows import Array, Reads, Window, align, aligned_window, counter_window, edges, power_window
from harness.model import MeterDevice, MeterInfo, Status

STALE_PERIODS = 5
"""A counter that did not move, or was not read, for so many of its periods is a doubt."""
LEAST_PERIODS = 10
"""Fewer of the counter's periods than this in a window are a doubt."""
GPU = ("gpu", "gpu module")


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
        return power_window(
            time,
            rows[column].to_numpy(float),
            start_s,
            end_s,
            update_s=update_s,
            mean_s=mean_s,
            range_w=self._range_w(),
        )

    def _range_w(self) -> float | None:
        """Between the least and the most power; means alone hide peaks, so without newest power, up to the limit."""
        low, high = (getattr(self.rows[["power_w", "average_w"]].stack(), f)() for f in ("min", "max"))
        if self.rows["power_w"].notna().any() or self.device.power_limit_w is None:
            return float(high - low)
        return max(float(high), self.device.power_limit_w)


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

    Codes: `gpu-changed`, `gpu-lost`, `meter-absent`, `counter-backwards`, `counter-stuck`, `window-not-bracketed`.
    """
    rows = source.rows
    near = rows[(rows["after_s"] >= start_s - 1) & (rows["before_s"] <= end_s + 1)]
    errors = " ".join(near["error"].dropna().unique())
    if "uuid_changed" in errors:
        return "gpu-changed", "another GPU answers under its index"
    if "gpu_is_lost" in errors:
        at_s = float(near[near["error"].str.contains("gpu_is_lost", na=False)]["before_s"].iloc[0])
        return "gpu-lost", f"the GPU was lost {at_s:.1f} s into the load"
    if rows.empty:
        return "meter-absent", "it gave no sample"
    reads = source.reads
    if reads is None:
        if rows["average_w"].notna().sum() + rows["power_w"].notna().sum() < 2:
            return "meter-absent", f"neither counter nor power could be read ({errors or 'not supported'})"
        return None
    margin_s = STALE_PERIODS * (reads.period_s or 0.1)  # readings outside the window bound what was used inside it
    inside = (reads.after_s >= start_s - margin_s) & (reads.before_s <= end_s + margin_s)
    if (np.diff(reads.energy_j[inside]) < 0).any():
        return "counter-backwards", "the energy counter went backwards: the driver was reloaded or the counter reset"
    if (stuck_s := _stuck_s(reads, start_s, end_s)) is not None:
        return "counter-stuck", f"the energy counter stood still for {stuck_s:.2g} s while it was read"
    if counter_window(reads, start_s, end_s) is None:
        seen = f" ({errors})" if errors else ""
        return "window-not-bracketed", f"its readings do not reach over {start_s:.1f} s to {end_s:.1f} s{seen}"
    return None


def _stuck_s(reads: Reads, start_s: float, end_s: float) -> float | None:
    """For how long the counter was read in the window without moving, if longer than `STALE_PERIODS`."""
    if reads.period_s is None:
        return None
    moved = np.concatenate([[True], np.diff(reads.energy_j) != 0])
    since = reads.before_s - reads.after_s[np.maximum.accumulate(np.where(moved, np.arange(len(moved)), 0))]
    limit_s = STALE_PERIODS * max(reads.period_s, 0.1)  # readings may be further apart than the counter's own updates
    inside = (reads.after_s >= start_s) & (reads.before_s <= end_s + limit_s)
    worst = float(since[inside].max(initial=0.0))
    return worst if worst > limit_s else None


def source_window(source: Source, start_s: float, end_s: float) -> Window | None:
    """Energy of one source: from its counter, else from its average power, else from its newest power; else None."""
    if fault(source, start_s, end_s) is not None:
        return None
    if (reads := source.reads) is None:
        return source.power("average_w", start_s, end_s) or source.power("power_w", start_s, end_s)
    # No board draws more than its limit for long; without one, what was read last bounds it only loosely.
    limit_w, newest_w = source.device.power_limit_w, source.rows["power_w"].max()
    peak_w = limit_w if limit_w is not None else math.inf if pd.isna(newest_w) else 1.5 * float(newest_w)
    return aligned_window(reads, start_s, end_s, peak_w)


def joules_between(source: Source, cuts: Array) -> Array:
    """Energy between each two of the instants, interpolated; for a window that `source_window` found sound."""
    if (reads := source.reads) is not None:
        found = edges(reads)
        time, joules = np.maximum.accumulate(found.time_s[found.sure]), found.energy_j[found.sure]
        return np.diff(np.interp(cuts, time, joules))
    column = "average_w" if source.rows["average_w"].notna().any() else "power_w"
    parts = [source.power(column, a, b) for a, b in pairwise(cuts)]
    return np.array([math.nan if part is None else part.energy_j for part in parts])


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
    """The window moved to updates of the first counter, if there is one and it holds `LEAST_PERIODS` of its periods."""
    for source in found:
        reads = source.reads
        if reads is not None:
            moved, period_s = align(reads, [start_s, end_s]), reads.period_s or 0.1
            near = np.abs(moved - [start_s, end_s]).max() <= STALE_PERIODS * period_s
            if near and moved[1] - moved[0] >= LEAST_PERIODS * period_s:
                return float(moved[0]), float(moved[1])
    return start_s, end_s


def worst(status: Sequence[Status]) -> Status:
    """The status of a sum: the least certain of its parts' (simulated, then assumed, then measured)."""
    return next((s for s in ("simulated", "assumed") if s in status), "measured")


@dataclass(frozen=True, slots=True)
class Tokens:
    """When tokens came out, and when prompts had been read (at their first token), each in time order."""

    out_s: Array
    out: Array
    context: Array
    """Of each group of output tokens: the tokens times the length of the context they were made with."""
    in_s: Array
    inputs: Array
    ends_s: Array
    """When requests were completed."""
    step_s: float
    """Median gap between a request's tokens: what a window's end can be off by in tokens."""
    spans: Array
    """Rows of (sent, end) of every request."""

    def between(self, cuts: Array) -> tuple[Array, Array, Array, Array]:
        """Output tokens, input tokens, summed context and completed requests between each two of the instants."""

        def count(when: Array, what: Array) -> Array:
            sums = np.concatenate([[0.0], np.cumsum(what)])
            return np.asarray(np.diff(sums[np.searchsorted(when, cuts, side="right")]))

        out, context = count(self.out_s, self.out), count(self.out_s, self.context)
        return out, count(self.in_s, self.inputs), context, count(self.ends_s, np.ones(len(self.ends_s)))

    def in_flight(self, instants: Array) -> Array:
        sent, ended = (np.searchsorted(np.sort(column), instants, side="right") for column in self.spans.T)
        return np.asarray(sent - ended, float)


def tokens(requests: pd.DataFrame) -> Tokens:
    """Token instants of all requests, failed ones too: what they cost was spent. Columns as `harness.model.Record`."""
    rows = requests[requests["arrival_s"].map(len) > 0]
    inputs = rows["input_tokens"].fillna(rows["input_asked"]).to_numpy(float)
    arrivals = [np.asarray(a, float) for a in rows["arrival_s"]]
    groups = [np.asarray(g, float) for g in rows["arrival_tokens"]]
    contexts = [g * (i + np.cumsum(g) - g / 2) for g, i in zip(groups, inputs, strict=True)]
    when, out, context = (np.concatenate([np.empty(0), *parts]) for parts in (arrivals, groups, contexts))
    gaps = np.concatenate([np.empty(0), *map(np.diff, arrivals)])
    first = np.array([a[0] for a in arrivals])
    order, in_order = np.argsort(when, kind="stable"), np.argsort(first, kind="stable")
    return Tokens(
        out_s=when[order],
        out=out[order],
        context=context[order],
        in_s=first[in_order],
        inputs=inputs[in_order],
        ends_s=np.sort(requests["end_s"][requests["error"].isna()].dropna().to_numpy(float)),
        step_s=float(np.median(gaps)) if len(gaps) else 0.0,
        spans=requests[["sent_s", "end_s"]].fillna(np.inf).to_numpy(float),
    )
