"""Conditions and limits of the findings about a run's energy. data/findings.yaml has their texts."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from harness.analysis import readings, tokens
from harness.analysis.findings import finding
from harness.analysis.joules import Array
from harness.analysis.readings import Source
from harness.model import Figure, Finding, MeterInfo

OVER_LIMIT = 1.2
"""Largest mean power by the counter, over the power limit, that is believed."""
HELD = 0.01
"""Largest share of the window in which heat held the clocks down without a finding."""
CLOCKS = 0.05
"""Largest range of the SM clock (5th to 95th percentile) over its median without a finding."""
DRIFT, DRIFT_K, DRIFT_T = 0.05, 3.0, 3.0
"""Largest relative change over the window, temperature change in kelvin and t value of a slope without a finding."""
POWER_CAP = 0x04
"""NVML's clock event reason at the power limit, where a loaded GPU may well be: no fault."""
THROTTLE = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""NVML's clock event reasons that mean a throttled GPU."""


def of_readings(
    infos: Sequence[MeterInfo], gpus: Sequence[Source], start_s: float, end_s: float
) -> tuple[list[Finding], str | None]:
    """Findings about the readings, and the reason if they give no energy."""
    found = [finding("meter-lost", meter=i.meter, error=i.error) for i in infos if i.error is not None]
    reason = None if gpus else "no meter read a GPU"
    for source in gpus:
        if (fault := readings.fault(source, start_s, end_s)) is not None:
            found.append(fault)
            reason = reason or f"{fault.code}: {fault.text}"
        found += _of_source(source, start_s, end_s)
    return found, reason


def of_others(others: Sequence[Source]) -> Iterator[Finding]:
    """Findings about failed readings of what is no GPU."""
    for source in others:
        if errors := sorted({e for text in source.rows["error"].dropna().unique() for e in text.split()}):
            yield finding("meter-error", gpu=source.label, errors=", ".join(errors))


def _of_source(source: Source, start_s: float, end_s: float) -> Iterator[Finding]:
    device, gpu, rows = source.device, source.label, source.rows
    inside = rows[(rows["after_s"] >= start_s) & (rows["before_s"] <= end_s)]
    period_s = device.period_s or 0.1
    limit, default = device.power_limit_w, device.power_limit_default_w
    if device.mig:
        yield finding("mig", gpu=gpu, device=device.device)
    if device.domain == "gpu module":
        yield finding("module-scope", gpu=gpu)
    if limit is not None and default is not None and limit < default:
        yield finding("power-limit", gpu=gpu, device=device.device, limit_w=limit, default_w=default)
    if source.reads is None and not rows.empty:
        yield finding("counter-absent", gpu=gpu, why=device.note or "no energy counter")
    if end_s - start_s < readings.LEAST_PERIODS * period_s:
        yield finding("window-short", gpu=gpu, window_s=end_s - start_s, needs=readings.LEAST_PERIODS)
    errors = sorted({e for text in inside["error"].dropna().unique() for e in text.split()} - {"device=gpu_is_lost"})
    if errors:
        yield finding("meter-error", gpu=gpu, errors=", ".join(errors))
    gaps_s = np.diff(inside["before_s"].to_numpy(float))
    gap_s, usual_s = float(gaps_s.max(initial=0.0)), float(np.median(gaps_s)) if len(gaps_s) else 0.0
    if gap_s > readings.STALE_PERIODS * max(period_s, 0.1, usual_s):
        yield finding("meter-gap", gpu=gpu, gap_s=gap_s)
    others, own = inside["foreign_processes"].dropna(), inside["processes"].dropna()
    if others.max() > 0 and (others.max() > others.iloc[0] or own.max() > 0):
        yield finding("foreign-process", gpu=gpu, device=device.device, count=others.max())
    elif others.max() > 0:
        yield finding("unknown-process", gpu=gpu, count=others.max())
    bits = int(np.bitwise_or.reduce(inside["throttle"].dropna().to_numpy(np.int64), initial=0))
    held = [name for bit, name in THROTTLE.items() if bits & bit]
    if not held and (share := _share(inside, "heat_capped_s") or 0.0) > HELD:
        held = [f"heat, for {share:.0%} of the window"]
    if held:
        yield finding("throttled", gpu=gpu, device=device.device, reasons=", ".join(held))
    clocks_mhz = inside["sm_clock_hz"].dropna().to_numpy(float) / 1e6
    low, middle, high = np.quantile(clocks_mhz, [0.05, 0.5, 0.95]) if len(clocks_mhz) else (0.0, 0.0, 0.0)
    if high - low > CLOCKS * middle:
        yield finding("clocks-unsteady", gpu=gpu, device=device.device, low_mhz=low, high_mhz=high)
    celsius = inside["temperature_c"].dropna().to_numpy(float)
    quarter = max(len(celsius) // 4, len(celsius) > 1)  # temperature is read every few seconds
    if quarter and abs(drift := float(celsius[-quarter:].mean() - celsius[:quarter].mean())) > DRIFT_K:
        yield finding("temperature-drift", gpu=gpu, drift_k=drift)


def contradictions(gpus: Sequence[Source], start_s: float, end_s: float) -> Iterator[Finding]:
    """A finding for each GPU whose counter differs from its average power, or its limit, by more than both allow."""
    for gpu in gpus:
        window, limit_w = readings.source_window(gpu, start_s, end_s), gpu.device.power_limit_w
        check = readings.agreement(gpu, start_s, end_s)
        if check is not None and abs(check.off) > check.allowed:
            yield finding("counter-disagrees", gpu=gpu.label, kind="average power", off=check.off)
        elif gpu.curve is None or window is None or limit_w is None or window.seconds <= 0:
            continue
        elif window.low_j > OVER_LIMIT * limit_w * window.seconds:
            over = window.energy_j / window.seconds / limit_w - 1
            yield finding("counter-disagrees", gpu=gpu.label, kind="its power limit", off=1 / (1 + over) - 1)


def held_back(gpus: Sequence[Source], start_s: float, end_s: float) -> Iterator[Figure]:
    """The share of the window in which a GPU was at its power limit, of the GPU with the largest."""
    shares = [_at_limit(gpu.rows, start_s, end_s) for gpu in gpus]
    known = [share for share in shares if share is not None]
    reason = None if known else "no meter read it"
    yield Figure("gpu_at_power_limit", max(known, default=None), "1", "measured", n=len(known), reason=reason)


def _at_limit(rows: pd.DataFrame, start_s: float, end_s: float) -> float | None:
    inside = rows[(rows["after_s"] >= start_s) & (rows["before_s"] <= end_s)]
    if (share := _share(inside, "power_capped_s")) is not None:
        return share
    bits = inside["throttle"].dropna().to_numpy(np.int64)
    return float(np.mean(bits & POWER_CAP > 0)) if len(bits) else None


def _share(rows: pd.DataFrame, counter: str) -> float | None:
    """By how much a counter of seconds grew, per second; None for fewer than two readings of it."""
    known = rows[rows[counter].notna()] if counter in rows else rows.iloc[:0]
    if len(known) < 2:
        return None
    first, last = known.iloc[0], known.iloc[-1]
    return float(np.clip((last[counter] - first[counter]) / (last["before_s"] - first["before_s"]), 0.0, 1.0))


def steadiness(power_w: Array, cuts: Array, counts: tokens.Counts) -> Iterator[Finding]:
    """Findings if batch, context or power has a trend over the window."""
    parts, middle = tokens.between(counts, cuts), tokens.counted(counts, (cuts[1:] + cuts[:-1]) / 2)
    context = parts["context"] / parts["output_token"].clip(lower=1)
    series = {"batch": middle["sent"] - middle["ended"], "context": context, "power": power_w}
    for name, values in series.items():
        if (moved := trend(np.asarray(values, float))) is not None:
            yield finding("trend", series=name, moved=moved)


def trend(values: Array) -> float | None:
    """Relative change over evenly spaced values; None unless it exceeds `DRIFT` and the slope's t value `DRIFT_T`.

    >>> round(trend(np.array([1.0, 1.11, 1.19, 1.3, 1.41, 1.5])), 2)
    0.4
    >>> trend(np.array([1.0, 1.3, 0.9, 1.2, 1.0, 1.1])) is None
    True
    """
    n = len(values)
    if n < 5 or not (mean := abs(float(values.mean()))) > 0:  # NaN included
        return None
    (slope, _), covariance = np.polyfit(np.arange(n), values, 1, cov=True)
    moved = float(slope) * (n - 1) / mean
    return moved if abs(moved) > DRIFT and abs(slope) > DRIFT_T * np.sqrt(covariance[0, 0]) else None
