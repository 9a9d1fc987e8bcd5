"""Doubts about a run's energy, as findings with stable codes; docs/energy.md lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from harness.analysis import readings
from harness.analysis.joules import Array, Window
from harness.analysis.readings import Source
from harness.model import Figure, Finding, MeterInfo

DOUBT, INVALID, INVALID_FROM_S = 0.03, 0.10, 10.0
"""Disagreement of counter and average power that is a finding, that voids the energy, and from what window on."""
TURNOVERS, PER_SLOT = 3, 8
CLOCKS = 0.05
"""Range of the SM clock (5th to 95th percentile) over its median, from which on it is not steady."""
DRIFT, DRIFT_K, DRIFT_T = 0.05, 3.0, 3.0
"""A change over the window (relative; of temperature in kelvin), and a slope's t value, from which on it is a trend."""
CODES: Mapping[str, tuple[bool, str]] = {
    "meter-lost": (True, "the other figures hold; run again for energy"),
    "meter-absent": (True, "run `harness doctor`"),
    "gpu-lost": (True, "look for Xid errors in `dmesg`, reset the GPU or reboot, and run again"),
    "gpu-changed": (True, "run again, and choose the GPU by UUID"),
    "counter-backwards": (True, "run again with persistence mode on, so that the driver stays loaded"),
    "counter-stuck": (True, "update the driver, or run with an external meter"),
    "window-not-bracketed": (True, "let the run last longer than its measured part"),
    "mig": (True, "switch MIG off, or give no energy per token"),
    "foreign-process": (True, "run alone on the GPU"),
    "counter-disagrees": (True, "update the driver, or compare with an external meter"),
    "counter-doubtful": (False, "compare with an external meter"),
    "counter-absent": (False, "expect the wider bound"),
    "window-short": (False, "measure longer"),
    "module-scope": (False, "do not compare it with GPUs that tell their own power"),
    "power-limit": (False, "compare only runs at this limit, or reset it with `nvidia-smi -pl`"),
    "meter-error": (False, "see `harness doctor` for permissions and driver"),
    "meter-gap": (False, "leave a core free for the meter"),
    "unknown-process": (False, "expected where the server was started by hand or in a container; else run alone"),
    "throttled": (False, "cool it, or lock its clocks lower; see docs/quiet-machine.md"),
    "clocks-unsteady": (False, "lock them with `nvidia-smi -lgc`; see docs/quiet-machine.md"),
    "temperature-drift": (False, "warm up longer"),
    "few-turnovers": (False, "send more requests"),
    "few-requests-per-slot": (False, "send more requests: energy per token is biased while slots fill and drain"),
    "trend": (False, "warm up longer, or measure longer"),
}
"""Code -> whether it is serious, and what to do."""
THROTTLE = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""NVML's clock event reasons that mean that the GPU was held back."""


def _finding(code: str, text: str) -> Finding:
    serious, advice = CODES[code]
    return Finding(code, text, advice, serious)


def of_readings(
    infos: Sequence[MeterInfo], gpus: Sequence[Source], start_s: float, end_s: float
) -> tuple[list[Finding], str | None]:
    """What is doubtful about the readings, and why they give no energy, if they give none."""
    found = [_finding("meter-lost", f"{i.meter}: {i.error}") for i in infos if i.error is not None]
    reason = None if gpus else "no meter read a GPU"
    for source in gpus:
        doubts = list(_of_source(source, start_s, end_s))
        if (fault := readings.fault(source, start_s, end_s)) is not None:
            doubts.insert(0, fault)
            reason = reason or f"{fault[0]}: {source.label}: {fault[1]}"
        found += [_finding(code, f"{source.label}: {text}") for code, text in doubts]
    return found, reason


def _of_source(source: Source, start_s: float, end_s: float) -> Iterator[tuple[str, str]]:
    device, rows = source.device, source.rows
    inside = rows[(rows["after_s"] >= start_s) & (rows["before_s"] <= end_s)]
    period_s = device.period_s or 0.1
    limit, default = device.power_limit_w, device.power_limit_default_w
    if device.mig:
        yield "mig", "the board is divided (MIG), and its power is the whole board's"
    if device.domain == "gpu module":
        yield "module-scope", "it tells its power only together with its CPU and memory"
    if limit is not None and default is not None and limit < default:
        yield "power-limit", f"its power limit is {limit:g} W, below the default {default:g} W"
    if source.reads is None and not rows.empty:
        yield "counter-absent", f"energy is the integral of its power readings; {device.note or 'no energy counter'}"
    if end_s - start_s < readings.LEAST_PERIODS * period_s:
        yield "window-short", f"{end_s - start_s:.2g} s is under {readings.LEAST_PERIODS} of its periods"
    errors = sorted({e for text in inside["error"].dropna().unique() for e in text.split()} - {"device=gpu_is_lost"})
    if errors:
        yield "meter-error", f"readings failed: {', '.join(errors)}"
    gap_s = float(np.diff(inside["before_s"].to_numpy(float)).max(initial=0.0))
    if gap_s > readings.STALE_PERIODS * max(period_s, 0.1):
        yield "meter-gap", f"it was not read for {gap_s:.2g} s"
    others, own = inside["foreign_processes"].dropna(), inside["processes"].dropna()
    if others.max() > 0:
        code = "foreign-process" if others.max() > others.iloc[0] or own.max() > 0 else "unknown-process"
        yield code, f"up to {others.max():.0f} process(es) on it that the harness did not start"
    bits = int(np.bitwise_or.reduce(inside["throttle"].dropna().to_numpy(np.int64), initial=0))
    if held := [name for bit, name in THROTTLE.items() if bits & bit]:
        yield "throttled", f"it was held back: {', '.join(held)}"
    clocks_hz = inside["sm_clock_hz"].dropna().to_numpy(float)
    low, middle, high = np.quantile(clocks_hz, [0.05, 0.5, 0.95]) if len(clocks_hz) else (0.0, 0.0, 0.0)
    if high - low > CLOCKS * middle:
        yield "clocks-unsteady", f"its SM clock went between {low / 1e6:.0f} and {high / 1e6:.0f} MHz"
    celsius = inside["temperature_c"].dropna().to_numpy(float)
    quarter = len(celsius) // 4
    if quarter and abs(drift := float(celsius[-quarter:].mean() - celsius[:quarter].mean())) > DRIFT_K:
        yield "temperature-drift", f"its temperature went {drift:+.0f} K over the window"


def disagreement(checks: Sequence[Figure], window: Window | None) -> Finding | None:
    """Counter against power. A difference within the power integral's own bound says nothing against the counter.

    `checks`: by average and by newest power, which may see a quarter of the time, in step with the load: it counts only
    where there is no average, and never voids the energy.
    """
    check = next((c for c in checks if c.value is not None), None)
    if window is None or check is None:
        return None
    off, low, high = (float(getattr(check, end)) for end in ("value", "low", "high"))
    if abs(off) <= DOUBT or low <= 0 <= high:
        return None
    kind = check.name.rpartition(".")[2]
    void = kind == "average" and abs(off) > INVALID and window.seconds >= INVALID_FROM_S
    text = f"{kind} power integrates to {off:+.1%} of the counter's energy"
    return _finding("counter-disagrees" if void else "counter-doubtful", text)


def steadiness(power_w: Array, cuts: Array, came: pd.DataFrame, slots: int | None) -> Iterator[Finding]:
    """Whether the window is long for the slots, and batch, context and power have no trend over its parts."""
    parts, middle = readings.between(came, cuts), readings.counted(came, (cuts[1:] + cuts[:-1]) / 2)
    done, sent = float(parts["request"].sum()), float(came["sent"].iloc[-1])
    if slots and done < TURNOVERS * slots:
        text = f"{done:.0f} requests ended in the window, {done / slots:.1f} turnovers of {slots} slots"
        yield _finding("few-turnovers", f"{text}; {TURNOVERS} are needed")
    if slots and sent < PER_SLOT * slots:
        text = f"{sent:.0f} requests are {sent / slots:.1f} per slot"
        yield _finding("few-requests-per-slot", f"{text}; {PER_SLOT} are needed")
    context = parts["context"] / parts["output_token"].clip(lower=1)
    series = {"batch": middle["sent"] - middle["ended"], "context": context, "power": power_w}
    for name, values in series.items():
        if (moved := trend(np.asarray(values, float))) is not None:
            yield _finding("trend", f"{name} changed by {moved:+.0%} over the window")


def trend(values: Array) -> float | None:
    """Relative change over evenly spaced values, if above `DRIFT` and if the slope's t value is above `DRIFT_T`.

    >>> round(trend(np.array([1.0, 1.11, 1.19, 1.3, 1.41, 1.5])), 2)
    0.4
    >>> trend(np.array([1.0, 1.3, 0.9, 1.2, 1.0, 1.1])) is None
    True
    """
    n = len(values)
    if n < 5 or not (mean := abs(float(values.mean()))) > 0:  # nor where a value is unknown
        return None
    (slope, _), covariance = np.polyfit(np.arange(n), values, 1, cov=True)
    moved = float(slope) * (n - 1) / mean
    return moved if abs(moved) > DRIFT and abs(slope) > DRIFT_T * np.sqrt(covariance[0, 0]) else None
