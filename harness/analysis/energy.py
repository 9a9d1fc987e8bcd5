"""Energy figures: joules per token and request with named terms of uncertainty, and energy by boundary."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from harness.analysis import energy_findings as doubts
from harness.analysis import readings, tokens
from harness.analysis.joules import Array, Window
from harness.analysis.readings import Source
from harness.analysis.regression import Split, split_usage
from harness.model import Figure, Finding, MeterInfo
from harness.stats import least_values, ratio_half

GAIN = 0.06
"""Relative gain error of a board's own sensor, from published comparisons of NVIDIA boards with external meters (Yang,
Adamek and Armour, "Accurate and Convenient Energy Measurements for GPUs", SC24). Systematic: one board, one gain."""
WINDOWS = 20
"""Largest number of parts of the window from which the term `repeats` is estimated."""
CUT_PERIODS = 5
"""Smallest number of the counter's periods in such a part."""
SPLIT_WINDOWS, LEAST_SPLIT_WINDOWS = 60, 16
"""Largest and smallest number of parts of the window for the regression."""
IDLE_MARGIN = 0.2
"""Share of an idle phase left out at each end, where meters start and stop."""
TERMS = "95%: boundary, repeats, tokens; the sensor's gain is apart, it cancels between runs on one board"
PER = ("output_token", "input_token", "request")
SPLIT = {"static_w": "W", "j_per_input_token": "J", "j_per_output_token": "J", "j_per_context_token": "J"}
KINDS = {"counter": "95%: phase and lag of the counter, jitter", "counter, hard bounds": "hard bound"}
"""What the interval of energy is, by the source of the energy."""
OF_WINDOW = {
    **{f"joules_per_{what}": "J" for what in PER},
    "gpu_power_w": "W",
    **{f"energy_uncertainty.{term}": "1" for term in ("boundary", "repeats", "tokens", "gain")},
    **{f"split.{name}": unit for name, unit in SPLIT.items()},
}
"""Figures that need the energy of the window, and their units."""


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy figures and findings of one run."""

    figures: tuple[Figure, ...]
    findings: tuple[Finding, ...]

    def __getitem__(self, name: str) -> Figure:
        return next(figure for figure in self.figures if figure.name == name)


def measure_energy(
    power: pd.DataFrame,
    infos: Sequence[MeterInfo],
    requests: pd.DataFrame,
    start_s: float,
    end_s: float,
    *,
    idle: Mapping[str, tuple[float, float]] | None = None,
    host_w: float | None = None,
    pue: float | None = None,
    uncharged: str | None = None,
) -> Energy:
    """Every energy figure and finding of a run.

    `power` has the columns of model.PowerSample, `requests` those of model.Record. `start_s` and `end_s` are the ends
    of the measured window, in seconds since the load began. `idle` holds the spans without load (`bare`, `loaded`,
    `after`). `host_w` and `pue` come from the user, so figures with them have the status `assumed`. `uncharged` says
    why no GPU is charged to the run, if so.
    """
    found = readings.sources(power, infos)
    gpus = [s for s in found if s.device.domain in readings.GPU]
    status = readings.worst(gpus)
    findings, reason = doubts.of_readings(infos, gpus, start_s, end_s)
    findings += doubts.of_others([s for s in found if s.device.domain not in readings.GPU])
    reason = uncharged or reason
    whole = None if reason else readings.total(gpus, start_s, end_s)
    window = whole and readings.total(gpus, *readings.settle(gpus, start_s, end_s))
    if window is None:
        reason = reason or "window-not-bracketed: the power readings do not span the window, or have a gap in it"
    elif window.energy_j <= 0:
        window, reason = None, "counter-stuck: no energy was counted in the window"
    elif refuted := list(doubts.contradictions(gpus, start_s, end_s)):
        findings += refuted
        window, reason = None, f"{refuted[0].code}: {refuted[0].text}"
    of_gpus = [_bounded("energy_j.gpu", window and whole, reason), _cross_check(gpus, start_s, end_s)]
    of_gpus += [*_idle(gpus, window, idle or {}), *doubts.held_back(gpus, start_s, end_s)]
    if window is None:
        of_gpus += [_missing(name, unit, reason) for name, unit in OF_WINDOW.items()]
    else:
        counts = tokens.tokens(requests)
        cuts = _cuts(gpus, window, WINDOWS)
        joules = _joules(gpus, cuts)
        of_gpus += _per_token(window, cuts, joules, counts, tokens.step_s(requests))
        of_gpus += _split(gpus, window, counts)
        findings += doubts.steadiness(joules / np.diff(cuts), cuts, counts)
    figures = [replace(figure, status=status) if figure.status == "measured" else figure for figure in of_gpus]
    rungs = [figures[0], *(_of_domain(found, domain, start_s, end_s) for domain in ("cpu package", "dram"))]
    rungs.append(_rest(found, rungs, start_s, end_s, host_w))
    figures += [*rungs[1:], _facility(rungs, window, reason, pue)]
    if (memory := _of_domain(found, "gpu memory", start_s, end_s)).value is not None:
        figures.append(memory)
    for info in infos:
        if info.cpu_s is not None and info.elapsed_s:
            figures.append(Figure(f"meter_cpu_share.{info.meter}", info.cpu_s / info.elapsed_s, "1", "measured"))
    return Energy(tuple(figures), tuple(findings))


def _missing(name: str, unit: str, reason: str | None) -> Figure:
    return Figure(name, None, unit, "measured", reason=reason)


def _bounded(name: str, window: Window | None, reason: str | None, unit: str = "J") -> Figure:
    """The energy of a window, or its mean power if the unit is W; without a window the reason."""
    if window is None:
        return _missing(name, unit, reason)
    per = window.seconds if unit == "W" else 1.0
    value, low, high = (joules / per for joules in (window.energy_j, window.low_j, window.high_j))
    kind = KINDS.get(window.source, "bound of the power integral")
    return Figure(name, value, unit, "measured", low, high, interval=f"{kind}; the sensor's gain is apart")


def _of_domain(found: Sequence[Source], domain: str, start_s: float, end_s: float) -> Figure:
    """Energy of all devices of a domain. For `gpu memory` the power, because the energy of the GPUs includes it."""
    parts = [s for s in found if s.device.domain == domain]
    name, unit = f"energy_j.{domain.replace(' ', '_')}", "J"
    if domain == "gpu memory":
        name, unit = "gpu_memory_power_w", "W"
    why = "its readings do not span the window" if parts else "no meter read it"
    if unread := [s.label for s in parts if s.rows["energy_j"].isna().all() and s.rows["error"].notna().all()]:
        why = f"{', '.join(unread)} cannot be read"
    return replace(_bounded(name, readings.total(parts, start_s, end_s), why, unit), status=readings.worst(parts))


def _cuts(gpus: Sequence[Source], window: Window, most: int) -> Array:
    """Instants that divide the window evenly, where the counter is known and at least `CUT_PERIODS` periods apart."""
    known = next((s for s in gpus if s.curve is not None), None)
    period_s = (known.device.period_s if known is not None else None) or 0.1
    parts = max(1, min(most, int(window.seconds / (CUT_PERIODS * period_s))))
    even = np.linspace(window.start_s, window.end_s, parts + 1)
    return np.unique(known.curve.nearest(even)) if known is not None and known.curve is not None else even


def _joules(gpus: Sequence[Source], cuts: Array) -> Array:
    return np.asarray(np.sum([readings.joules_between(s, cuts) for s in gpus], axis=0))


def _per_token(window: Window, cuts: Array, joules: Array, counts: tokens.Counts, step_s: float) -> Iterator[Figure]:
    whole = tokens.between(counts, np.array([window.start_s, window.end_s])).iloc[0]
    parts = tokens.between(counts, cuts)
    boundary, step = window.boundary_j / window.energy_j, step_s / window.seconds
    watts = window.energy_j / window.seconds
    low, high = window.low_j / window.seconds, window.high_j / window.seconds
    yield Figure("gpu_power_w", watts, "W", "measured", low, high, interval="bound: boundary")
    # A missing reading gives NaN joules, and then no interval.
    spread = {what: ratio_half(joules, parts[what].to_numpy(float)) for what in PER}
    few = f"needs {least_values(1):.0f} parts of {CUT_PERIODS} counter periods with tokens in them"
    for what, half in spread.items():
        if not (n := float(whole[what])):
            yield _missing(f"joules_per_{what}", "J", f"no {what} in the window")
            continue
        if half is None:
            yield Figure(f"joules_per_{what}", window.energy_j / n, "J", "measured", reason=few)
            continue
        # The edges of the window can gain or lose one request, and one step of tokens.
        quantum = step if what == "output_token" else 1 / max(1.0, float(whole["request"]))
        value, error = window.energy_j / n, boundary + quantum + half
        low, high = value * max(0.0, 1 - error), value * (1 + error)
        yield Figure(f"joules_per_{what}", value, "J", "measured", low, high, n=len(joules), interval=TERMS)
    yield Figure("energy_uncertainty.boundary", boundary, "1", "measured")
    half = spread["output_token"]
    yield Figure("energy_uncertainty.repeats", half, "1", "measured", reason=few if half is None else None)
    yield Figure("energy_uncertainty.tokens", step, "1", "measured")
    yield Figure("energy_uncertainty.gain", GAIN, "1", "assumed")


def _split(gpus: Sequence[Source], window: Window, counts: tokens.Counts) -> Iterator[Figure]:
    """Energy per second, per input, output and context token, from the regression."""
    found = _regression(gpus, window, counts)
    for term, (name, unit) in enumerate(SPLIT.items()):
        if isinstance(found, str):
            yield _missing(f"split.{name}", unit, found)
            continue
        value, (low, high) = float(found.coefficients[term]), found.interval(term)
        if high - low > 2 * value:
            yield _missing(f"split.{name}", unit, f"not identified: 95% from {low:.3g} to {high:.3g}")
        else:
            yield Figure(f"split.{name}", value, unit, "measured", low, high, found.blocks, interval="95%: repeats")


def _regression(gpus: Sequence[Source], window: Window, counts: tokens.Counts) -> Split | str:
    """The coefficients of `SPLIT`; the reason instead if one of the four is not identified."""
    cuts = _cuts(gpus, window, SPLIT_WINDOWS)
    if len(cuts) <= LEAST_SPLIT_WINDOWS:
        return f"needs {LEAST_SPLIT_WINDOWS} parts of {CUT_PERIODS} counter periods, has {len(cuts) - 1}"
    parts = tokens.between(counts, cuts)[["input_token", "output_token", "context"]]
    found = split_usage([np.column_stack([np.diff(cuts), parts, _joules(gpus, cuts)])])
    unknown = [name for name, known in zip(SPLIT, found.identified, strict=True) if not known]
    return f"not identified: the windows do not tell {', '.join(unknown)} apart" if unknown else found


def _cross_check(gpus: Sequence[Source], start_s: float, end_s: float) -> Figure:
    """The relative difference of average power from the counter, of the GPU on which it is largest."""
    name, checks = "energy_cross_check.average", [readings.agreement(gpu, start_s, end_s) for gpu in gpus]
    worst = max(filter(None, checks), key=lambda check: abs(check.off), default=None)
    if worst is None:
        return _missing(name, "1", "no counter and average power over the same time")
    low, high = worst.off - worst.allowed, worst.off + worst.allowed
    return Figure(name, worst.off, "1", "measured", low, high, worst.n, interval="what both allow")


def _rest(
    found: Sequence[Source], below: Sequence[Figure], start_s: float, end_s: float, host_w: float | None
) -> Figure:
    """Energy of the rest of the host: a meter of the host less what is known of `below`, or else the declared power."""
    name, host = "energy_j.rest_of_host", _of_domain(found, "host", start_s, end_s)
    if host.value is not None:
        known = [rung for rung in below if rung.value is not None]
        value, low, high = (
            getattr(host, end) - sum(getattr(rung, other) for rung in known)
            for end, other in (("value", "value"), ("low", "high"), ("high", "low"))
        )
        within = ", ".join(rung.name.removeprefix("energy_j.") for rung in below if rung.value is None)
        label = f"{host.interval}; with {within} in it" if within else host.interval
        return replace(host, name=name, value=value, low=low, high=high, interval=label)
    if host_w is None:
        return _missing(name, "J", "no meter read it and no power was declared")
    joules = host_w * (end_s - start_s)
    return Figure(name, joules, "J", "assumed", joules, joules, interval=f"{host_w:g} W as declared")


def _facility(rungs: Sequence[Figure], window: Window | None, reason: str | None, pue: float | None) -> Figure:
    """The sum of the known rungs times the PUE."""
    name = "energy_j.facility"
    if window is None or pue is None:
        return Figure(name, None, "J", "assumed", reason=reason or "no PUE was declared")
    known = [r for r in rungs if r.value is not None]
    value, low, high = (pue * sum(getattr(r, end) for r in known) for end in ("value", "low", "high"))
    whole = rungs[-1].value is not None and rungs[-1].status != "assumed"  # a meter of the host has what no other read
    without = [] if whole else [r.name.removeprefix("energy_j.") for r in rungs if r.value is None]
    label = f"bound; PUE {pue:g} as declared" + (f"; without {', '.join(without)}" if without else "")
    return Figure(name, value, "J", "assumed", low, high, interval=label)


def _idle(gpus: Sequence[Source], window: Window | None, idle: Mapping[str, tuple[float, float]]) -> Iterator[Figure]:
    """Power without load by phase, and the energy of the window less the idle power of the loaded engine.

    Only the middle of each phase counts, because meters start and stop at the ends of the first and last phase.
    """
    for phase, (start_s, end_s) in idle.items():
        margin_s = (end_s - start_s) * IDLE_MARGIN
        quiet = readings.total(gpus, *readings.settle(gpus, start_s + margin_s, end_s - margin_s))
        yield _bounded(f"gpu_idle_power_w.{phase}", quiet, "its readings do not span the idle time", "W")
        if phase == "loaded" and quiet is not None and window is not None:
            net_j = window.energy_j - quiet.energy_j / quiet.seconds * window.seconds
            yield Figure("gpu_net_energy_j", net_j, "J", "measured", interval="none: gross less loaded idle")
