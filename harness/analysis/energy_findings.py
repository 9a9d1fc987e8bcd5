"""Conditions and limits of the findings about a run's energy. data/findings.yaml has their texts."""

from collections.abc import Iterator, Sequence

import numpy as np

from harness.analysis import readings, tokens
from harness.analysis.findings import finding
from harness.analysis.joules import Array, Window
from harness.analysis.readings import Source
from harness.model import Figure, Finding, MeterInfo

DOUBT, INVALID, INVALID_FROM_S = 0.03, 0.10, 10.0
"""Relative difference of counter and average power: a finding; no energy, for windows from this length."""
CLOCKS = 0.05
"""Largest range of the SM clock (5th to 95th percentile) over its median without a finding."""
DRIFT, DRIFT_K, DRIFT_T = 0.05, 3.0, 3.0
"""Largest relative change over the window, temperature change in kelvin and t value of a slope without a finding."""
THROTTLE = {
    0x04: "software power cap",
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
    gap_s = float(np.diff(inside["before_s"].to_numpy(float)).max(initial=0.0))
    if gap_s > readings.STALE_PERIODS * max(period_s, 0.1):
        yield finding("meter-gap", gpu=gpu, gap_s=gap_s)
    others, own = inside["foreign_processes"].dropna(), inside["processes"].dropna()
    if others.max() > 0 and (others.max() > others.iloc[0] or own.max() > 0):
        yield finding("foreign-process", gpu=gpu, device=device.device, count=others.max())
    elif others.max() > 0:
        yield finding("unknown-process", gpu=gpu, count=others.max())
    bits = int(np.bitwise_or.reduce(inside["throttle"].dropna().to_numpy(np.int64), initial=0))
    if held := [name for bit, name in THROTTLE.items() if bits & bit]:
        yield finding("throttled", gpu=gpu, device=device.device, reasons=", ".join(held))
    clocks_mhz = inside["sm_clock_hz"].dropna().to_numpy(float) / 1e6
    low, middle, high = np.quantile(clocks_mhz, [0.05, 0.5, 0.95]) if len(clocks_mhz) else (0.0, 0.0, 0.0)
    if high - low > CLOCKS * middle:
        yield finding("clocks-unsteady", gpu=gpu, device=device.device, low_mhz=low, high_mhz=high)
    celsius = inside["temperature_c"].dropna().to_numpy(float)
    quarter = len(celsius) // 4
    if quarter and abs(drift := float(celsius[-quarter:].mean() - celsius[:quarter].mean())) > DRIFT_K:
        yield finding("temperature-drift", gpu=gpu, drift_k=drift)


def disagreement(checks: Sequence[Figure], window: Window | None) -> Finding | None:
    """The finding that counter and integrated power differ by more than the bound of the integral.

    `checks` are those of average and of newest power. Newest power can miss three quarters of the time, in step with
    the load: it counts only without average power, and never voids the energy.
    """
    check = next((c for c in checks if c.value is not None), None)
    if window is None or check is None:
        return None
    off, low, high = (float(getattr(check, end)) for end in ("value", "low", "high"))
    if abs(off) <= DOUBT or low <= 0 <= high:
        return None
    kind = check.name.rpartition(".")[2]
    void = kind == "average" and abs(off) > INVALID and window.seconds >= INVALID_FROM_S
    return finding("counter-disagrees" if void else "counter-doubtful", kind=kind, off=off)


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
