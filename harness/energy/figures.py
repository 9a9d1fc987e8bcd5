"""From energy windows to figures: joules per token and query, their doubt in named terms, and the boundary ladder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.energy import findings as doubts
from harness.energy import sources
from harness.energy.sources import Source, Tokens
from harness.energy.windows import Array, Window, align
from harness.model import Figure, Finding, MeterInfo, Status

GAIN = 0.06
"""Relative gain error of a board's own sensor, from published comparisons of NVIDIA boards with external meters (Yang,
Adamek and Armour, "Accurate and Convenient Energy Measurements for GPUs", SC24). Systematic: one board, one gain."""
WINDOWS, LEAST_WINDOWS, DRAWS = 20, 5, 2000
"""Windows that repeats are estimated from, the fewest that will do, and bootstrap draws."""
SPLIT_WINDOWS, LEAST_SPLIT_WINDOWS, MOST_CONDITION = 60, 16, 30.0
"""Windows for the regression; above that condition number (Belsley, Kuh and Welsch) its terms are not told apart."""
IDLE_MARGIN = 0.2
"""Share of an idle phase that is left out at each end."""
TERMS = "95%: boundary, repeats, tokens; the sensor's gain is apart, it cancels between runs on one board"
PER = {"joules_per_output_token": 0, "joules_per_input_token": 1, "joules_per_request": 3}
UNCERTAINTY = ("boundary", "repeats", "tokens", "gain")
SPLIT = {"static_w": "W", "j_per_input_token": "J", "j_per_output_token": "J", "j_per_context_token": "J"}


def missing(name: str, unit: str, reason: str, status: Status = "measured") -> Figure:
    return Figure(name, None, unit, status, reason=reason)


@dataclass(frozen=True, slots=True)
class Energy:
    """What the readings of one run come to. `start_s` and `end_s` are the window after it was moved to the counter."""

    start_s: float
    end_s: float
    source: str | None
    """counter, power_integral, or None: no energy."""
    figures: tuple[Figure, ...]
    findings: tuple[Finding, ...]

    def __getitem__(self, name: str) -> Figure:
        return next(figure for figure in self.figures if figure.name == name)


def measure(
    power: pd.DataFrame,
    infos: Sequence[MeterInfo],
    requests: pd.DataFrame,
    start_s: float,
    end_s: float,
    *,
    slots: int | None = None,
    idle: Mapping[str, tuple[float, float]] | None = None,
    host_w: float | None = None,
    pue: float | None = None,
    gain: float = GAIN,
    seed: int = 0,
) -> Energy:
    """Every energy figure and finding of a run.

    `power` has the columns of model.PowerSample, `requests` those of model.Record; the window is the part of the run
    that counts, in seconds since the load began. `slots` is how many requests the engine could hold at once, if known.
    `idle` names spans without load (`bare`, `loaded`, `after`). `host_w` and `pue` are declared, so assumed.
    """
    found = sources.sources(power, infos)
    gpus = [s for s in found if s.device.domain in sources.GPU]
    start_s, end_s = sources.settle(gpus, start_s, end_s)
    status = sources.worst([s.status for s in gpus])
    came = sources.tokens(requests)
    findings, reason = doubts.readings(infos, gpus, start_s, end_s)
    window = None if reason else sources.total([sources.source_window(s, start_s, end_s) for s in gpus])
    if window is None and reason is None:
        reason = "window-not-bracketed: the power readings do not span the window, or have a gap in it"
    if window is not None and window.energy_j <= 0:
        window, reason = None, "counter-stuck: no energy was counted in the window"
    checks = list(_cross_checks(gpus, window, status))
    disagreements = doubts.disagreements(checks, window)
    if any(doubt.serious for doubt in disagreements):
        window, reason = None, f"counter-disagrees: {disagreements[0].text}"
    figures = [*_ladder(found, window, reason, (start_s, end_s), status, host_w, pue), *checks]
    if window is None:
        names = [*PER, "gpu_power_w", *(f"energy_uncertainty.{t}" for t in UNCERTAINTY), *(f"split.{t}" for t in SPLIT)]
        figures += [missing(name, _unit(name), reason or "", status) for name in names]
    else:
        rng = np.random.default_rng(seed)
        cuts = _cuts(gpus, window, WINDOWS)
        joules = _joules(gpus, cuts)
        figures += _per_token(window, cuts, joules, came, status, gain, rng)
        figures += _split(gpus, window, came, status, rng)
        findings += doubts.steadiness(joules / np.diff(cuts), cuts, came, slots)
    figures += _idle(gpus, window, idle or {}, status)
    figures += _memory(found, start_s, end_s)
    figures += [
        Figure(f"meter_cpu_share.{i.meter}", i.cpu_s / i.elapsed_s, "1", "measured")
        for i in infos
        if i.cpu_s is not None and i.elapsed_s
    ]
    source = None if window is None else window.source
    return Energy(start_s, end_s, source, tuple(figures), (*findings, *disagreements))


def _unit(name: str) -> str:
    return "1" if name.startswith("energy_unc") else "W" if name.endswith("_w") else "J"


def _bounded(name: str, window: Window, status: Status, unit: str = "J", per: float = 1.0) -> Figure:
    value, low, high = (joules / per for joules in (window.energy_j, window.low_j, window.high_j))
    kind = "hard bound" if window.source == "counter" else "bound of the power integral"
    return Figure(name, value, unit, status, low, high, interval=f"{kind}; the sensor's gain is apart")


def _cuts(gpus: Sequence[Source], window: Window, most: int) -> Array:
    """Instants that divide the window evenly, on the counter's updates, `LEAST_PERIODS` of them or more apart."""
    reads = next((reads for s in gpus if (reads := s.reads) is not None), None)
    period_s = (reads.period_s if reads is not None else None) or 0.1
    parts = max(1, min(most, int(window.seconds / (sources.LEAST_PERIODS * period_s))))
    even = np.linspace(window.start_s, window.end_s, parts + 1)
    return np.unique(align(reads, even)) if reads is not None else even


def _joules(gpus: Sequence[Source], cuts: Array) -> Array:
    return np.asarray(np.sum([sources.joules_between(s, cuts) for s in gpus], axis=0))


def _per_token(
    window: Window, cuts: Array, joules: Array, came: Tokens, status: Status, gain: float, rng: np.random.Generator
) -> Iterator[Figure]:
    whole = came.between(np.array([window.start_s, window.end_s]))
    boundary, step = window.boundary_j / window.energy_j, came.step_s / window.seconds
    watts = window.energy_j / window.seconds
    spread = {name: repeats(joules, came.between(cuts)[which], rng) for name, which in PER.items()}
    yield Figure(
        "gpu_power_w", watts, "W", status, watts * (1 - boundary), watts * (1 + boundary), interval="bound: boundary"
    )
    for name, which in PER.items():
        if not (n := float(whole[which][0])):
            yield missing(name, "J", f"no {name.removeprefix('joules_per_')} came in the window", status)
            continue
        # Prompts and requests come whole: one more or less of them is in the window, by chance of its ends.
        quantum = step if which == 0 else 1 / max(1.0, float(whole[3][0]))
        value, error = window.energy_j / n, boundary + quantum + (spread[name] or 0.0)
        label = TERMS if spread[name] is not None else f"boundary and tokens: under {LEAST_WINDOWS} windows to repeat"
        low, high = value * (1 - error), value * (1 + error)
        yield Figure(name, value, "J", status, low, high, n=len(joules), interval=label)
    few = f"needs {LEAST_WINDOWS} windows of {sources.LEAST_PERIODS} counter periods with tokens in them"
    sizes = (boundary, spread["joules_per_output_token"], step, gain)
    for term, size in zip(UNCERTAINTY, sizes, strict=True):
        origin: Status = "assumed" if term == "gain" else status
        yield Figure(f"energy_uncertainty.{term}", size, "1", origin, reason=few if size is None else None)


def repeats(joules: Array, counts: Array, rng: np.random.Generator) -> float | None:
    """Half the 95% bootstrap interval of sum(joules) / sum(counts) over windows, relative; None for too few of them.

    >>> repeats(np.full(6, 50.0), np.full(6, 100.0), np.random.default_rng(0))
    0.0
    """
    if len(joules) < LEAST_WINDOWS or not counts.sum() or np.isnan(joules).any():
        return None
    drawn = rng.integers(len(joules), size=(DRAWS, len(joules)))
    below = counts[drawn].sum(axis=1)
    ratio = joules[drawn].sum(axis=1)[below > 0] / below[below > 0]
    low, high = np.quantile(ratio, [0.025, 0.975])
    return float((high - low) / 2 / (joules.sum() / counts.sum()))


def _split(
    gpus: Sequence[Source], window: Window, came: Tokens, status: Status, rng: np.random.Generator
) -> Iterator[Figure]:
    cuts = _cuts(gpus, window, SPLIT_WINDOWS)
    fit: list[tuple[float, float, float]] | str
    fit = f"needs {LEAST_SPLIT_WINDOWS} windows of {sources.LEAST_PERIODS} counter periods, has {len(cuts) - 1}"
    if len(cuts) > LEAST_SPLIT_WINDOWS:
        out, inputs, context, _ = came.between(cuts)
        fit = split(_joules(gpus, cuts), np.diff(cuts), inputs, out, context, rng)
    for i, (name, unit) in enumerate(SPLIT.items()):
        if isinstance(fit, str):
            yield missing(f"split.{name}", unit, fit, status)
            continue
        value, low, high = fit[i]
        if high - low > 2 * abs(value):
            yield missing(f"split.{name}", unit, f"not identified: 95% from {low:.3g} to {high:.3g}", status)
        else:
            yield Figure(f"split.{name}", value, unit, status, low, high, len(cuts) - 1, interval="95%: repeats")


def split(
    joules: Array, seconds: Array, inputs: Array, outputs: Array, context: Array, rng: np.random.Generator
) -> list[tuple[float, float, float]] | str:
    """Least squares of joules on the four others: (value, low, high) of each, low to high the 95% bootstrap interval.

    E = static x seconds + a x inputs + b x outputs + c x summed context. A text says why the windows cannot tell.

    >>> rng = np.random.default_rng(0)
    >>> x = [rng.uniform(0, 2, 40) for _ in range(4)]
    >>> [round(value, 6) for value, *_ in split(50 * x[0] + 3 * x[1] + 2 * x[2] + x[3], *x, rng)]
    [50.0, 3.0, 2.0, 1.0]
    >>> split(x[0], x[0], x[1], x[1], x[3], rng)
    'not identified: the windows do not vary independently (condition number above 30)'
    """
    columns = np.stack([seconds, inputs, outputs, context], axis=1)
    norms = np.linalg.norm(columns, axis=0)
    if not norms.all():
        return "not identified: no input or no output tokens in the window"
    scaled = columns / norms
    if np.linalg.cond(scaled) > MOST_CONDITION:
        return f"not identified: the windows do not vary independently (condition number above {MOST_CONDITION:.0f})"
    best = np.linalg.lstsq(scaled, joules, rcond=None)[0] / norms
    drawn = rng.integers(len(joules), size=(DRAWS // 4, len(joules)))
    draws = np.stack([np.linalg.lstsq(scaled[i], joules[i], rcond=None)[0] for i in drawn]) / norms
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return [(float(v), float(a), float(b)) for v, a, b in zip(best, low, high, strict=True)]


def _cross_checks(gpus: Sequence[Source], window: Window | None, status: Status) -> Iterator[Figure]:
    """How far the integrals of average and newest power are from the counter, relative, within their own bound."""
    for column, label in (("average_w", "average"), ("power_w", "instant")):
        name, other = f"energy_cross_check.{label}", None
        if window is not None and window.source == "counter":
            other = sources.total([s.power(column, window.start_s, window.end_s) for s in gpus])
        if window is None or other is None or not window.energy_j:
            yield missing(name, "1", f"no counter and {label} power over the same window", status)
            continue
        off, bound = other.energy_j / window.energy_j - 1, other.boundary_j / window.energy_j
        yield Figure(name, off, "1", status, off - bound, off + bound, interval="bound of the power integral")


def _ladder(
    found: Sequence[Source],
    window: Window | None,
    reason: str | None,
    span_s: tuple[float, float],
    status: Status,
    host_w: float | None,
    pue: float | None,
) -> Iterator[Figure]:
    """GPU, and what each rung adds: CPU packages, DRAM, the rest of the host; then all that is known, times PUE."""
    absent = missing("energy_j.gpu", "J", reason or "", status)
    rungs = [absent if window is None else _bounded("energy_j.gpu", window, status)]
    for domain in ("cpu package", "dram"):
        name = f"energy_j.{domain.replace(' ', '_')}"
        parts = [s for s in found if s.device.domain == domain]
        added = sources.total([sources.source_window(s, *span_s) for s in parts])
        why = "its readings do not span the window" if parts else "no meter read it"
        origin = sources.worst([s.status for s in parts])
        rungs.append(missing(name, "J", why) if added is None else _bounded(name, added, origin))
    rungs.append(_rest(found, rungs, span_s, host_w))
    yield from rungs
    if window is None or pue is None:
        why = reason or "no PUE was declared"
        yield missing("energy_j.facility", "J", why, "assumed")
        return
    known = [r for r in rungs if r.value is not None]
    value, low, high = (pue * sum(getattr(r, end) for r in known) for end in ("value", "low", "high"))
    without = [r.name.removeprefix("energy_j.") for r in rungs if r.value is None]
    label = f"bound; PUE {pue:g} as declared" + (f"; without {', '.join(without)}" if without else "")
    yield Figure("energy_j.facility", value, "J", "assumed", low, high, interval=label)


def _rest(
    found: Sequence[Source], below: Sequence[Figure], span_s: tuple[float, float], host_w: float | None
) -> Figure:
    """The rest of the host: what a meter at its plug says less the rungs below, else the declared watts."""
    plugs = [s for s in found if s.device.domain == "host"]
    plug = sources.total([sources.source_window(s, *span_s) for s in plugs])
    if plug is not None and all(r.value is not None for r in below):
        value, low, high = (sum(getattr(r, end) for r in below) for end in ("value", "low", "high"))
        rest = Window(*span_s, plug.energy_j - value, plug.low_j - high, plug.high_j - low, plug.boundary_j)
        return _bounded("energy_j.rest_of_host", rest, sources.worst([s.status for s in plugs]))
    if host_w is None:
        return missing("energy_j.rest_of_host", "J", "no meter read it and no power was declared")
    joules = host_w * (span_s[1] - span_s[0])
    return Figure("energy_j.rest_of_host", joules, "J", "assumed", joules, joules, interval=f"{host_w:g} W as declared")


def _memory(found: Sequence[Source], start_s: float, end_s: float) -> Iterator[Figure]:
    """Power of the boards' memory, where they tell it: a part of theirs, not to be added to it."""
    parts = [s for s in found if s.device.domain == "gpu memory"]
    if (memory := sources.total([sources.source_window(s, start_s, end_s) for s in parts])) is not None:
        status = sources.worst([s.status for s in parts])
        yield _bounded("gpu_memory_power_w", memory, status, "W", per=memory.seconds)


def _idle(
    gpus: Sequence[Source], window: Window | None, idle: Mapping[str, tuple[float, float]], status: Status
) -> Iterator[Figure]:
    """Power without load by phase, and the energy less loaded idle power, beside the gross that is always given.

    Of each phase the middle is taken: a meter starts, and stops, at the ends of the first and last.
    """
    loaded_w = None
    for phase, (start_s, end_s) in idle.items():
        margin_s = (end_s - start_s) * IDLE_MARGIN
        span_s = start_s + margin_s, end_s - margin_s
        quiet = sources.total([sources.source_window(s, *sources.settle([s], *span_s)) for s in gpus])
        name = f"gpu_idle_power_w.{phase}"
        if quiet is None:
            yield missing(name, "W", "its readings do not span the idle time", status)
            continue
        loaded_w = quiet.energy_j / quiet.seconds if phase == "loaded" else loaded_w
        yield _bounded(name, quiet, status, "W", per=quiet.seconds)
    if window is not None and loaded_w is not None:
        net_j = window.energy_j - loaded_w * window.seconds
        yield Figure("gpu_net_energy_j", net_j, "J", status, interval="none: gross less loaded idle")
