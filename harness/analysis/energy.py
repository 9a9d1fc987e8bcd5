"""Energy figures: joules per token and request with named terms of uncertainty, and energy by boundary."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from harness.analysis import energy_findings as doubts
from harness.analysis import readings, tokens
from harness.analysis.findings import finding
from harness.analysis.joules import Array, Window
from harness.analysis.readings import Agreement, Load, Source
from harness.analysis.regression import Split, split_usage
from harness.model import Figure, Finding, MeterInfo, Status
from harness.stats import least_values, ratio_half
from harness.store.run import Run

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
KINDS = {
    "counter": "95%: phase and lag of the counter (5 to 15 ms on H100 and H200, else up to 60), jitter",
    "counter, hard bounds": "hard bound",
}
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


@dataclass(frozen=True, slots=True)
class Seen:
    """What is wanted of one source; its readings are not kept."""

    domain: str
    label: str
    status: Status
    unread: bool
    """No counter was read, and every reading failed."""
    fault: Finding | None
    findings: tuple[Finding, ...]
    whole: Window | None
    window: Window | None
    quiet: Mapping[str, Window | None]
    agreement: Agreement | None = None
    refuted: Finding | None = None
    at_limit: float | None = None
    joules: tuple[Array, ...] = ()
    """Between the cuts; empty: the energy of the window is not known."""


def _seen(
    source: Source,
    whole_s: tuple[float, float],
    window_s: tuple[float, float],
    quiet: Mapping[str, tuple[float, float]],
    cuts: Sequence[Array],
) -> Seen:
    """One source over the window as it is, settled, idle phases and cuts; other than a GPU over the first of them."""
    rows, domain = source.rows, source.device.domain
    unread = bool(rows["energy_j"].isna().all() and rows["error"].notna().all())
    whole = readings.source_window(source, *whole_s)
    if domain not in readings.GPU:
        return Seen(domain, source.label, source.status, unread, None, (*doubts.of_other(source),), whole, None, {})
    window = readings.source_window(source, *window_s)
    check = readings.agreement(source, *whole_s)
    return Seen(
        domain,
        source.label,
        source.status,
        unread,
        readings.fault(source, *whole_s),
        tuple(doubts.of_gpu(source, *whole_s)),
        whole,
        window,
        {phase: readings.source_window(source, *span) for phase, span in quiet.items()},
        check,
        doubts.contradiction(source, whole, check),
        doubts.at_limit(rows, *whole_s),
        tuple(readings.joules_between(source, each) for each in cuts if window is not None),
    )


def measure_energy(
    power: pd.DataFrame | Load,
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

    `power` has the columns of model.PowerSample, or reads them of one device; `requests` those of model.Record.
    `start_s` and `end_s` are the ends of the measured window, in seconds since the load began. `idle` holds the spans
    without load (`bare`, `loaded`, `after`). `host_w` and `pue` come from the user, so figures with them have the
    status `assumed`. `uncharged` says why no GPU is charged to the run, if so.
    """
    marks = readings.marks(readings.sources(power, infos, readings.GPU))
    span = readings.settle(marks.line, start_s, end_s)
    cuts, split_cuts = both = tuple(_cuts(marks, *span, most) for most in (WINDOWS, SPLIT_WINDOWS))
    quiet = {phase: readings.settle(marks.line, *_middle(*ends)) for phase, ends in (idle or {}).items()}
    see = partial(_seen, whole_s=(start_s, end_s), window_s=span, quiet=quiet, cuts=both)
    found = list(map(see, readings.sources(power, infos)))
    gpus = [s for s in found if s.domain in readings.GPU]
    status = readings.worst({s.status for s in gpus})
    findings, reason = _of_readings(infos, found)
    reason = uncharged or reason
    whole = None if reason else readings.total([s.whole for s in gpus])
    window = whole and readings.total([s.window for s in gpus])
    if window is None:
        reason = reason or "window-not-bracketed: the power readings do not span the window, or have a gap in it"
    elif window.energy_j <= 0:
        window, reason = None, "counter-stuck: no energy was counted in the window"
    elif refuted := [s.refuted for s in gpus if s.refuted is not None]:
        findings += refuted
        window, reason = None, f"{refuted[0].code}: {refuted[0].text}"
    of_gpus = [_bounded("energy_j.gpu", window and whole, reason), _cross_check(gpus)]
    of_gpus += [*_idle(gpus, window, quiet), _held_back(gpus)]
    if window is None:
        of_gpus += [_missing(name, unit, reason) for name, unit in OF_WINDOW.items()]
    else:
        joules, split_joules = (
            np.asarray(np.sum(each, axis=0)) for each in zip(*(s.joules for s in gpus), strict=True)
        )
        of_gpus += _per_token(window, cuts, joules, requests)
        of_gpus += _split(split_cuts, split_joules, requests)
        findings += doubts.steadiness(joules / np.diff(cuts), cuts, requests)
    figures = [replace(figure, status=status) if figure.status == "measured" else figure for figure in of_gpus]
    rungs = [figures[0], *(_of_domain(found, domain) for domain in ("cpu package", "dram"))]
    rungs.append(_rest(found, rungs, start_s, end_s, host_w))
    figures += [*rungs[1:], _facility(rungs, window, reason, pue)]
    if (memory := _of_domain(found, "gpu memory")).value is not None:
        figures.append(memory)
    for info in infos:
        if info.cpu_s is not None and info.elapsed_s:
            figures.append(Figure(f"meter_cpu_share.{info.meter}", info.cpu_s / info.elapsed_s, "1", "measured"))
    return Energy(tuple(figures), tuple(findings))


def _of_readings(infos: Sequence[MeterInfo], found: Sequence[Seen]) -> tuple[list[Finding], str | None]:
    """Findings about the readings, those of GPUs first, and the reason if they give no energy."""
    findings = [finding("meter-lost", meter=i.meter, error=i.error) for i in infos if i.error is not None]
    gpus = [s for s in found if s.domain in readings.GPU]
    faults = [s.fault for s in gpus if s.fault is not None]
    reason = f"{faults[0].code}: {faults[0].text}" if faults else None if gpus else "no meter read a GPU"
    for each in sorted(found, key=lambda s: s.domain not in readings.GPU):
        findings += [each.fault] if each.fault is not None else []
        findings += each.findings
    return findings, reason


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


def _of_domain(found: Sequence[Seen], domain: str) -> Figure:
    """Energy of all devices of a domain. For `gpu memory` the power, because the energy of the GPUs includes it."""
    parts = [s for s in found if s.domain == domain]
    name, unit = f"energy_j.{domain.replace(' ', '_')}", "J"
    if domain == "gpu memory":
        name, unit = "gpu_memory_power_w", "W"
    why = "its readings do not span the window" if parts else "no meter read it"
    if unread := [s.label for s in parts if s.unread]:
        why = f"{', '.join(unread)} cannot be read"
    total, status = readings.total([s.whole for s in parts]), readings.worst({s.status for s in parts})
    return replace(_bounded(name, total, why, unit), status=status)


def _cuts(marks: readings.Marks, start_s: float, end_s: float, most: int) -> Array:
    """Instants that divide a window evenly, where the counter is known and at least `CUT_PERIODS` periods apart."""
    parts = max(1, min(most, int((end_s - start_s) / (CUT_PERIODS * marks.period_s))))
    even = np.linspace(start_s, end_s, parts + 1)
    return even if marks.first is None else np.unique(marks.first.nearest(even))


def _per_token(window: Window, cuts: Array, joules: Array, requests: pd.DataFrame) -> Iterator[Figure]:
    whole = tokens.between(requests, np.array([window.start_s, window.end_s])).iloc[0]
    parts = tokens.between(requests, cuts)
    boundary, step = window.boundary_j / window.energy_j, tokens.step_s(requests) / window.seconds
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


def _split(cuts: Array, joules: Array, requests: pd.DataFrame) -> Iterator[Figure]:
    """Energy per second, per input, output and context token, from the regression."""
    found = _regression(cuts, joules, requests)
    for term, (name, unit) in enumerate(SPLIT.items()):
        if isinstance(found, str):
            yield _missing(f"split.{name}", unit, found)
            continue
        value, (low, high) = float(found.coefficients[term]), found.interval(term)
        if high - low > 2 * value:
            yield _missing(f"split.{name}", unit, f"not identified: 95% from {low:.3g} to {high:.3g}")
        else:
            yield Figure(f"split.{name}", value, unit, "measured", low, high, found.blocks, interval="95%: repeats")


def _regression(cuts: Array, joules: Array, requests: pd.DataFrame) -> Split | str:
    """The coefficients of `SPLIT`; the reason instead if one of the four is not identified."""
    if len(cuts) <= LEAST_SPLIT_WINDOWS:
        return f"needs {LEAST_SPLIT_WINDOWS} parts of {CUT_PERIODS} counter periods, has {len(cuts) - 1}"
    parts = tokens.between(requests, cuts)[["input_token", "output_token", "context"]]
    found = split_usage([np.column_stack([np.diff(cuts), parts, joules])])
    unknown = [name for name, known in zip(SPLIT, found.identified, strict=True) if not known]
    return f"not identified: the windows do not tell {', '.join(unknown)} apart" if unknown else found


def _cross_check(gpus: Sequence[Seen]) -> Figure:
    """The relative difference of average power from the counter, of the GPU on which it is largest."""
    name, checks = "energy_cross_check.average", [gpu.agreement for gpu in gpus]
    worst = max(filter(None, checks), key=lambda check: abs(check.off), default=None)
    if worst is None:
        return _missing(name, "1", "no counter and average power over the same time")
    low, high = worst.off - worst.allowed, worst.off + worst.allowed
    return Figure(name, worst.off, "1", "measured", low, high, worst.n, interval="what both allow")


def _held_back(gpus: Sequence[Seen]) -> Figure:
    """The share of the window in which a GPU was at its power limit, of the GPU with the largest."""
    known = [gpu.at_limit for gpu in gpus if gpu.at_limit is not None]
    reason = None if known else "no meter read it"
    return Figure("gpu_at_power_limit", max(known, default=None), "1", "measured", n=len(known), reason=reason)


def _rest(found: Sequence[Seen], below: Sequence[Figure], start_s: float, end_s: float, host_w: float | None) -> Figure:
    """Energy of the rest of the host: a meter of the host less what is known of `below`, or else the declared power."""
    name, host = "energy_j.rest_of_host", _of_domain(found, "host")
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


def _middle(start_s: float, end_s: float) -> tuple[float, float]:
    """The middle of an idle phase: meters start and stop at the ends of the first and the last."""
    margin_s = (end_s - start_s) * IDLE_MARGIN
    return start_s + margin_s, end_s - margin_s


def _idle(gpus: Sequence[Seen], window: Window | None, phases: Iterable[str]) -> Iterator[Figure]:
    """Power without load by phase, and the energy of the window less the idle power of the loaded engine."""
    for phase in phases:
        quiet = readings.total([gpu.quiet[phase] for gpu in gpus])
        yield _bounded(f"gpu_idle_power_w.{phase}", quiet, "its readings do not span the idle time", "W")
        if phase == "loaded" and quiet is not None and window is not None:
            net_j = window.energy_j - quiet.energy_j / quiet.seconds * window.seconds
            yield Figure("gpu_net_energy_j", net_j, "J", "measured", interval="none: gross less loaded idle")


def charge(run: Run, infos: Sequence[MeterInfo]) -> tuple[list[MeterInfo], str | None, list[Finding]]:
    """The meters without the GPUs that are not charged; why the run has no GPU energy, if so; and the findings.

    Only NVML's GPUs are in question: another meter reads what the user told it to read.
    """
    read = {
        each.device for info in infos if info.meter == "nvml" for each in info.devices if each.domain in readings.GPU
    }
    if not read or run.engine is None:
        return [*infos], None, []
    charged, found = run.file.charged, []
    if charged is not None:
        devices, why = {*charged.devices}, charged.why
        if unread := devices - read:
            devices, why = set(), f"the meter did not read GPU {', '.join(sorted(unread))}, which the engine used"
    elif run.engine.device != "cpu" and len(read) <= run.engine.device_count:  # stored by an older harness
        devices, why = read, ""
    else:
        devices, why = set(), f"the run does not say which of {len(read)} GPUs its engine used"
    if run.engine.device == "cpu":
        why = "the engine ran on the CPU"
    if charged is not None and charged.asked:
        asked, used = ", ".join(charged.asked), ", ".join(charged.devices)
        found.append(finding("gpus-differ", asked=asked, used=used, why=charged.why))
    if not devices and run.engine.device != "cpu":
        found.append(finding("gpus-unknown", why=why))
    kept = [
        replace(info, devices=tuple(each for each in info.devices if info.meter != "nvml" or each.device in devices))
        for info in infos
    ]
    return kept, None if devices else why, found
