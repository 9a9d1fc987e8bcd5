"""Conditions and limits of the findings about a run's energy. data/findings.yaml has their texts."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.analysis import readings, tokens
from harness.analysis.findings import finding
from harness.analysis.joules import Array, Window
from harness.analysis.readings import Agreement, Source
from harness.model import Finding

OF_LIMIT = 0.01
"""Smallest mean power by the counter, over the power limit, that is believed. Idle it is 2 to 20%."""
HELD = 0.01
"""Largest share of the window in which heat held the clocks down without a finding."""
CLOCKS = 0.05
"""Largest range of the SM clock (5th to 95th percentile) over its median without a finding."""
DRIFT, DRIFT_K, DRIFT_T = 0.05, 3.0, 3.0
"""Largest relative change over the window, temperature change in kelvin and t value of a slope without a finding."""
GAP_S = 2.0
"""Time between two readings that is no gap: eight GPUs are read once a second, and trials come between."""
POWER_CAP = 0x04
"""NVML's clock event reason at the power limit, where a loaded GPU may well be: no fault."""
THROTTLE = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""NVML's clock event reasons that mean a throttled GPU."""


def of_other(source: Source) -> Iterator[Finding]:
    """Findings about failed readings of what is no GPU."""
    if errors := sorted({e for text in source.rows["error"].dropna().unique() for e in text.split()}):
        yield finding("meter-error", gpu=source.label, errors=", ".join(errors))


def of_gpu(source: Source, start_s: float, end_s: float) -> Iterator[Finding]:
    """Findings about the readings of a GPU."""
    device, gpu, rows = source.device, source.label, source.rows
    inside = _inside(rows, start_s, end_s)
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
    elif not rows.empty and (source.meter, device.domain) == ("nvml", "gpu") and rows["average_w"].isna().all():
        yield finding("counter-unchecked", gpu=gpu)
    if end_s - start_s < readings.LEAST_PERIODS * period_s:
        yield finding("window-short", gpu=gpu, window_s=end_s - start_s, needs=readings.LEAST_PERIODS)
    errors = sorted(
        {e for text in _known(rows, inside, "error").unique() for e in text.split()} - {"device=gpu_is_lost"}
    )
    if errors:
        yield finding("meter-error", gpu=gpu, errors=", ".join(errors))
    gaps_s = np.diff(rows["before_s"].to_numpy(float)[inside])
    gap_s, usual_s = float(gaps_s.max(initial=0.0)), float(np.median(gaps_s)) if len(gaps_s) else 0.0
    if gap_s > max(GAP_S, readings.STALE_PERIODS * max(period_s, 0.1, usual_s)):
        yield finding("meter-gap", gpu=gpu, gap_s=gap_s)
    others, own = (_around(rows, start_s, end_s, name) for name in ("foreign_processes", "processes"))
    if others.max() > 0 and (others.max() > others.iloc[0] or own.max() > 0):
        yield finding("foreign-process", gpu=gpu, device=device.device, count=others.max())
    elif others.max() > 0:
        yield finding("unknown-process", gpu=gpu, count=others.max())
    bits = int(np.bitwise_or.reduce(_around(rows, start_s, end_s, "throttle").to_numpy(np.int64), initial=0))
    held = [name for bit, name in THROTTLE.items() if bits & bit]
    if not held and (share := _share(rows, start_s, end_s, "heat_capped_s") or 0.0) > HELD:
        held = [f"heat, for {share:.0%} of the window"]
    if held:
        yield finding("throttled", gpu=gpu, device=device.device, reasons=", ".join(held))
    clocks_mhz = _known(rows, inside, "sm_clock_hz").to_numpy(float) / 1e6
    low, middle, high = np.quantile(clocks_mhz, [0.05, 0.5, 0.95]) if len(clocks_mhz) else (0.0, 0.0, 0.0)
    if high - low > CLOCKS * middle:
        yield finding("clocks-unsteady", gpu=gpu, device=device.device, low_mhz=low, high_mhz=high)
    celsius = _known(rows, inside, "temperature_c").to_numpy(float)
    quarter = max(len(celsius) // 4, len(celsius) > 1)  # temperature is read every few seconds
    if quarter and abs(drift := float(celsius[-quarter:].mean() - celsius[:quarter].mean())) > DRIFT_K:
        yield finding("temperature-drift", gpu=gpu, drift_k=drift)


def contradiction(gpu: Source, window: Window | None, check: Agreement | None) -> Finding | None:
    """The finding if the counter of a GPU differs from its average power, or its limit, by more than both allow."""
    limit_w = gpu.device.power_limit_w
    if check is not None and abs(check.off) > check.allowed:
        return finding("counter-disagrees", gpu=gpu.label, kind="average power", off=check.off)
    if gpu.curve is None or window is None or limit_w is None or window.seconds <= 0:
        return None
    most_j = limit_w * window.seconds
    if window.low_j <= readings.OVER_LIMIT * most_j and window.high_j >= OF_LIMIT * most_j:
        return None
    off = most_j / max(window.energy_j, 1e-3) - 1
    return finding("counter-disagrees", gpu=gpu.label, kind="its power limit", off=off)


def at_limit(rows: pd.DataFrame, start_s: float, end_s: float) -> float | None:
    """The share of the window in which a GPU was at its power limit; None if no meter read it."""
    if (share := _share(rows, start_s, end_s, "power_capped_s")) is not None:
        return share
    bits = _known(rows, _inside(rows, start_s, end_s), "throttle").to_numpy(np.int64)
    return float(np.mean(bits & POWER_CAP > 0)) if len(bits) else None


def _inside(rows: pd.DataFrame, start_s: float, end_s: float) -> NDArray[np.bool_]:
    return ((rows["after_s"] >= start_s) & (rows["before_s"] <= end_s)).to_numpy()


def _known(rows: pd.DataFrame, inside: NDArray[np.bool_], name: str) -> pd.Series:
    """The values of a column in some rows."""
    return rows[name][inside & rows[name].notna().to_numpy()]


def _around(rows: pd.DataFrame, start_s: float, end_s: float, name: str) -> pd.Series:
    """The values of a column that is read rarely: in the window, and if they are fewer than two also the nearest."""
    known = rows[rows[name].notna()]
    first = int(np.searchsorted(known["after_s"].to_numpy(float), start_s))
    last = int(np.searchsorted(known["before_s"].to_numpy(float), end_s, side="right"))
    return known[name].iloc[first:last] if last - first > 1 else known[name].iloc[max(0, first - 1) : last + 1]


def _share(rows: pd.DataFrame, start_s: float, end_s: float, counter: str) -> float | None:
    """By how much a counter of seconds grew, per second; None for fewer than two readings of it."""
    if counter not in rows or len(grown := _around(rows, start_s, end_s, counter)) < 2:
        return None
    read_s = rows["before_s"][grown.index]
    return float(np.clip((grown.iloc[-1] - grown.iloc[0]) / (read_s.iloc[-1] - read_s.iloc[0]), 0.0, 1.0))


def steadiness(power_w: Array, cuts: Array, requests: pd.DataFrame) -> Iterator[Finding]:
    """Findings if batch, context or power has a trend over the window."""
    parts, middle = tokens.between(requests, cuts), tokens.counted(requests, (cuts[1:] + cuts[:-1]) / 2)
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
