"""Runs against runs: ratios with their intervals, a judgement of each, gates, and what must be alike for all that."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from harness.errors import HarnessError
from harness.model import Figure, Summary
from harness.stats import CONFIDENCE
from harness.store.run import Run

Array = NDArray[np.float64]
BETTER: Mapping[str, int] = {
    **dict.fromkeys(("output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "goodput_per_s"), 1),
    **dict.fromkeys(("ttft_s", "itl_s", "tpot_s", "e2e_s", "response_s"), -1),
    **dict.fromkeys(("joules_per_output_token", "joules_per_input_token", "joules_per_request"), -1),
}
"""What is compared, by name up to the first dot -> 1 where more is better, -1 where less is."""
COSTS: Mapping[str, str] = {
    "usd_per_million_output_tokens": "output_tokens_per_s",
    "usd_per_query": "requests_per_s",
}
"""A cost -> the rate that it is inverse to: the price of an hour cancels between runs on like devices."""
HEADLINES = (
    "output_tokens_per_s",
    "ttft_s.p50",
    "ttft_s.p99",
    "tpot_s.p50",
    "tpot_s.p99",
    "joules_per_output_token",
)
"""The few figures of a run that stand in tables of several runs; the verdict rests on them."""
SHORT = {
    "output_tps": "output_tokens_per_s",
    "total_tps": "total_tokens_per_s",
    "joules_per_token": "joules_per_output_token",
}
"""Short names that a gate may use."""
Judgement = Literal["regressed", "improved", "no difference seen", "not judged"]


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of two sides. `ratio` is NEW / BASE, or the reason why there is none or it has no interval."""

    base: Figure
    new: Figure
    ratio: Figure
    p: float | None
    """Of a ratio as far from 1, were there no difference; None without an interval."""
    better: int

    @property
    def judgement(self) -> Judgement:
        """Whether the interval of this figure alone leaves 1 out, and on which side."""
        if self.ratio.low is None or self.ratio.high is None:
            return "not judged"
        if self.ratio.low <= 1 <= self.ratio.high:
            return "no difference seen"
        return "improved" if (self.ratio.low > 1) == (self.better > 0) else "regressed"


def compare(base: Sequence[Summary], new: Sequence[Summary]) -> tuple[Change, ...]:
    """Every figure of `BETTER` that both sides hold, then `COSTS`. A side is one run or several repeats.

    One run a side: the interval of the ratio comes from the figures' own, which know what varies within a run only.
    Several: from the spread between runs.
    """
    changes = {}
    for figure in base[0].figures:
        family = figure.name.partition(".")[0]
        first, second = ([f for run in side for f in run.figures if f.name == figure.name] for side in (base, new))
        known = len(first) == len(base) and len(second) == len(new) and any(f.value is not None for f in first + second)
        if family in BETTER and known:
            changes[figure.name] = _change(first, second, BETTER[family])
    for name, rate in COSTS.items():
        if rate in changes:
            changes[name] = _inverse(name, changes[rate])
    return tuple(changes.values())


def _change(base: Sequence[Figure], new: Sequence[Figure], better: int) -> Change:
    every = (*base, *new)
    lacking = next((figure for figure in every if figure.value is None or figure.value <= 0), None)
    statuses = sorted({figure.status for figure in every})
    reason: str | None = None
    if lacking is not None:
        reason = lacking.reason if lacking.value is None else "it is 0"
    elif len(statuses) > 1:
        reason = " against ".join(statuses)
    sides, ratio = (_side(base), _side(new)), Figure(base[0].name, None, "ratio", statuses[0], reason=reason)
    if reason is not None:
        return Change(*sides, ratio, None, better)
    logs = [np.log([float(figure.value or 0) for figure in side]) for side in (base, new)]
    d = float(logs[1].mean() - logs[0].mean())
    reach = _within(base[0], new[0]) if len(every) == 2 else _between(*logs)
    if isinstance(reach, str):
        return Change(*sides, replace(ratio, value=math.exp(d), reason=reach), None, better)
    below, above, df = reach
    ratio = replace(ratio, value=math.exp(d), low=math.exp(d - below), high=math.exp(d + above))
    return Change(*sides, ratio, _p(d, below if d > 0 else above, df), better)


def _side(figures: Sequence[Figure]) -> Figure:
    """The one run's figure; of several runs their geometric mean, without an interval."""
    if len(figures) == 1:
        return figures[0]
    values = [figure.value for figure in figures if figure.value is not None and figure.value > 0]
    mean = math.exp(float(np.log(values).mean())) if len(values) == len(figures) else None
    return replace(figures[0], value=mean, low=None, high=None, n=len(figures), reason=None)


def _within(base: Figure, new: Figure) -> tuple[float, float, float] | str:
    """How far the 95% interval of ln(new / base) reaches below and above, from the intervals of the two figures.

    Squared distances add: MOVER, after logarithms, which keeps intervals that are not symmetric. Source: Zou and Donner
    (2008), Statistics in Medicine 27(10); for ratios of positive quantities Newcombe (2013), doi
    10.1177/0962280213502144.
    """
    ends = []
    for figure in (base, new):
        if figure.low is None or figure.high is None or not figure.interval.startswith("95%"):
            return figure.reason or "it has no 95% interval"
        ends.append([math.log(x) if x > 0 else -math.inf for x in (figure.low, figure.value or 0, figure.high)])
    (low_0, at_0, high_0), (low_1, at_1, high_1) = ends
    return math.hypot(at_1 - low_1, high_0 - at_0), math.hypot(high_1 - at_1, at_0 - low_0), math.inf


def _between(base: Array, new: Array) -> tuple[float, float, float]:
    """The same from the logarithms of each run's value, by Welch's t; a side of one run takes the other's variance."""
    spreads = [float(np.var(side, ddof=1)) for side in (base, new) if len(side) > 1]
    parts = spreads[0] / len(base), spreads[-1] / len(new)
    df = float(len(base) + len(new) - 2)
    if len(spreads) == 2 and sum(parts) > 0:
        df = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (base, new), strict=True))
    half = float(special.stdtrit(df, (1 + CONFIDENCE) / 2)) * math.sqrt(sum(parts))
    return half, half, df


def _p(d: float, reach: float, df: float) -> float:
    """Two-sided p of a difference `d` whose 95% interval reaches that far towards none.

    >>> round(_p(0.02, 0.02, math.inf), 3), _p(0.0, 0.0, 3.0)
    (0.05, 1.0)
    """
    if d == 0 or reach == 0:
        return 1.0 if d == 0 else 0.0
    t = abs(d) / reach * float(special.stdtrit(df, (1 + CONFIDENCE) / 2))
    return float(2 * special.stdtr(df, -t))


def _inverse(name: str, rate: Change) -> Change:
    """The change of a cost that is inverse to a rate; what it cost is a question to `harness cost`."""
    ratio = rate.ratio
    value, low, high = (None if x is None else 1 / x if x else math.inf for x in (ratio.value, ratio.high, ratio.low))
    ratio = replace(ratio, name=name, value=value, low=low, high=high)
    absent = Figure(name, None, "USD", ratio.status, reason="by a scenario")
    return Change(absent, absent, ratio, rate.p, -rate.better)


def verdict(changes: Sequence[Change]) -> tuple[Change, ...]:
    """Those of the `HEADLINES` that changed, with at most 5% chance that any of them is named where none did.

    Holm's step-down (1979), Scandinavian Journal of Statistics 6(2): the smallest p is held to 5% / m, the next to
    5% / (m - 1), and so on until one fails; it needs no independence.
    """
    judged = sorted((c.p, i) for i, c in enumerate(changes) if c.ratio.name in HEADLINES and c.p is not None)
    shown = []
    for rank, (p, i) in enumerate(judged):
        if p > (1 - CONFIDENCE) / (len(judged) - rank):
            break
        shown.append(changes[i])
    return tuple(shown)


# ---- gates ----


@dataclass(frozen=True, slots=True)
class Gate:
    """`output_tokens_per_s<-3%`: what must not be shown to have changed by more than that."""

    text: str
    figure: str
    above: bool
    limit: float
    """As a ratio: 0.97."""


Outcome = Literal["failed", "passed", "undecided"]


def outcomes(gates: Sequence[Gate], changes: Sequence[Change]) -> list[tuple[Gate, Outcome]]:
    """failed: the whole 95% interval lies beyond the limit. undecided: the limit lies inside it; that fails nothing.

    Raises HarnessError where a figure is unknown or has no interval: a gate that cannot close is none.
    """
    ratios = {change.ratio.name: change.ratio for change in changes}
    found: list[tuple[Gate, Outcome]] = []
    for gate in gates:
        ratio = ratios.get(gate.figure)
        if ratio is None:
            what = f"--fail-on '{gate.text}': the runs share no figure '{gate.figure}'"
            raise HarnessError(what, f"choose one of {', '.join([*ratios, *SHORT])}")
        if ratio.low is None or ratio.high is None:
            what = f"--fail-on '{gate.text}': its ratio has no interval: {ratio.reason}"
            raise HarnessError(what, "measure more requests or repeats, or gate another figure")
        near, far = (ratio.low, ratio.high) if gate.above else (-ratio.high, -ratio.low)
        limit = gate.limit if gate.above else -gate.limit
        found.append((gate, "failed" if near > limit else "passed" if far <= limit else "undecided"))
    return found


def parse_gate(text: str) -> Gate:
    """A gate from `FIGURE<PERCENT%` or `FIGURE>PERCENT%`, a change of the new side over the base.

    >>> parse_gate("output_tps<-3%")
    Gate(text='output_tps<-3%', figure='output_tokens_per_s', above=False, limit=0.97)
    """
    form = re.fullmatch(r"\s*([\w.]+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*%\s*", text)
    if form is None or (limit := 1 + float(form[3]) / 100) <= 0:
        fix = "write for instance --fail-on 'output_tps<-3%' or --fail-on 'ttft_s.p99>+5%'"
        raise HarnessError(f"--fail-on '{text}' is not of the form FIGURE<PERCENT%", fix)
    return Gate(text, SHORT.get(form[1], form[1]), form[2] == ">", limit)


# ---- what must be alike ----

LENGTH = ("requests.count", "load.duration_s")
"""Keys of a workload that change how precise a figure is, not what it is of."""


def differences(base: Run, new: Run) -> tuple[list[str], list[str]]:
    """What forbids a comparison of two runs, then what it should be read with; each names its field.

    What only one of the two knows is among the latter, and so are versions and options of the engine: they are what
    people compare. A model is the same where its weights are, whatever it was called.
    """
    (asked, ran, rest), (asked_1, ran_1, rest_1) = _conditions(base), _conditions(new)
    if "weights_sha256" in ran and ran["weights_sha256"] == ran_1.get("weights_sha256"):
        ran, ran_1 = ran | {"model": None}, ran_1 | {"model": None}
    must = _differ(asked, asked_1) + _differ({key: ran[key] for key in ran if key in ran_1}, ran_1)
    unsure = [f"{key} is known of one side alone" for key in (*ran, *ran_1) if (key in ran) != (key in ran_1)]
    return must, unsure + _differ(rest, rest_1)


def check_comparable(base: Sequence[Run], new: Sequence[Run], force: bool) -> tuple[list[str], list[str]]:
    """What forbids a comparison of the runs (empty unless `force`), and other differences that a reader must know.

    HarnessError names every field that differs and every run that is not complete.
    """
    first, *others = *base, *new
    must = [f"{run.id} is {run.state}" for run in (first, *others) if run.state != "complete"]
    noted: list[str] = []
    for other in others:
        forbids, beside = differences(first, other)
        must, noted = must + forbids, noted + beside
    must, noted = list(dict.fromkeys(must)), list(dict.fromkeys(noted))
    if must and not force:
        fix = "compare complete runs that agree in this, or --force, which stamps what it prints"
        raise HarnessError(f"not comparable: {'; '.join(must)}", fix)
    return must, noted


def _differ(base: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    pairs = [(key, base.get(key), new.get(key)) for key in dict.fromkeys((*base, *new))]
    return [f"{key} differs: {_said(a)} vs {_said(b)}" for key, a, b in pairs if a != b]


def _said(value: Any) -> str:
    text = "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _conditions(run: Run) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What was asked, what ran and on what, and all else, by dotted name; what is not known is left out."""
    workload, place, engine, model = run.file.workload, run.environment, run.engine, run.model
    asked = _flat(workload.model_dump(include={"requests", "load", "objectives"}))
    rest = {key: asked.pop(key, None) for key in LENGTH}
    ran: dict[str, Any] = {"engine": run.file.engine_asked}
    if engine is not None:
        ran |= {"model": model.source, "precision": model.precision, "stored_precision": model.stored_precision}
        ran |= {"weights_sha256": model.weights_sha256, "device": engine.device, "device_count": engine.device_count}
        rest |= {"engine_version": engine.version, "options": engine.options}
        if engine.device == "cpu":
            ran |= {"cpu": place.cpu.model, "cores_usable": place.cpu.cores_usable}
        elif run.on_gpu:
            ran |= {"gpu": _one([gpu.name for gpu in place.gpus])}
            ran |= {"power_limit_w": _one([gpu.power_limit_w for gpu in place.gpus])}
    rest |= {"seed": workload.seed, "git": place.git and place.git.model_dump(), "clients": len(run.file.clients) or 1}
    rest |= {"driver": place.driver, "python": place.python, "os": place.os, "harness": place.harness}
    rest |= {"warmup": workload.warmup.model_dump()}
    return asked, _flat(ran), _flat(rest) | _flat({"packages": place.packages, "settings": place.settings})


def _one(values: Sequence[Any]) -> Any:
    """What all GPUs of the machine share, or the list of what they have."""
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else found or None


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name, those without a value left out."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value
    return found
