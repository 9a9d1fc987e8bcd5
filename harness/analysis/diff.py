"""Comparison of runs: ratios with intervals, judgements, gates, and the conditions that must be equal."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from harness.analysis.server import cached_share, check_cache
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
"""Compared figures, by name up to the first dot -> 1 if more is better, -1 if less is better."""
COSTS: Mapping[str, str] = {"usd_per_million_output_tokens": "output_tokens_per_s", "usd_per_query": "requests_per_s"}
"""Cost -> the rate that the cost is inverse to. The hourly price cancels between runs on equal devices."""
HEADLINES = ("output_tokens_per_s", "ttft_s.p50", "ttft_s.p99", "tpot_s.p50", "tpot_s.p99", "joules_per_output_token")
"""Figures in tables of several runs; the verdict is about these."""
SHORT = {
    "output_tps": "output_tokens_per_s",
    "total_tps": "total_tokens_per_s",
    "joules_per_token": "joules_per_output_token",
}
"""Short names of figures in gates."""
Judgement = Literal["regressed", "improved", "no difference seen", "not judged"]
LEAST = 0.01
"""A ratio nearer to 1 than this is no difference, whatever its interval, unless the user asks for another effect."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of both sides. `ratio` is new / base; its reason says why it has no value or no interval."""

    base: Figure
    new: Figure
    ratio: Figure
    p: float | None
    """Probability of a ratio at least this far from 1 if there is no difference; None without an interval."""
    better: int
    least: float = 0.0
    """Least effect: a ratio whose distance from 1 is below it, either way, is no difference."""

    @property
    def small(self) -> bool:
        """The change is below the least effect."""
        ratio = self.ratio.value
        return ratio is not None and ratio > 0 and max(ratio, 1 / ratio) - 1 < self.least

    @property
    def judgement(self) -> Judgement:
        """The judgement from the interval of this figure alone: is 1 outside, and on which side?"""
        if self.ratio.low is None or self.ratio.high is None:
            return "not judged"
        if self.small or self.ratio.low <= 1 <= self.ratio.high:
            return "no difference seen"
        return "improved" if (self.ratio.low > 1) == (self.better > 0) else "regressed"


def compare(base: Sequence[Summary], new: Sequence[Summary], least: float = 0.0) -> tuple[Change, ...]:
    """The change of every figure of `BETTER` that both sides have, then of `COSTS`. A side is a run or its repeats.

    With one run per side the interval of the ratio comes from the intervals of the two figures, which cover variation
    within a run only. With repeats it comes from the spread between runs.
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
    return tuple(replace(change, least=least) for change in changes.values())


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
    reach = _within_runs(base[0], new[0]) if len(every) == 2 else _between_runs(*logs)
    if isinstance(reach, str):
        return Change(*sides, replace(ratio, value=math.exp(d), reason=reach), None, better)
    below, above, df = reach
    ratio = replace(ratio, value=math.exp(d), low=math.exp(d - below), high=math.exp(d + above))
    return Change(*sides, ratio, _p(d, below if d > 0 else above, df), better)


def _side(figures: Sequence[Figure]) -> Figure:
    """The figure of a single run; of several runs the geometric mean, without an interval."""
    if len(figures) == 1:
        return figures[0]
    values = [figure.value for figure in figures if figure.value is not None and figure.value > 0]
    mean = math.exp(float(np.log(values).mean())) if len(values) == len(figures) else None
    return replace(figures[0], value=mean, low=None, high=None, n=len(figures), reason=None)


def _within_runs(base: Figure, new: Figure) -> tuple[float, float, float] | str:
    """Lower and upper half-width of the 95% interval of ln(new / base), from the intervals of the two figures, and
    the degrees of freedom; or the reason why there is no interval.

    MOVER on logarithms: squared half-widths add, and asymmetric intervals stay asymmetric. Source: Zou and Donner
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


def _between_runs(base: Array, new: Array) -> tuple[float, float, float]:
    """The same from the logarithms of each run's value, by Welch's t; a single run takes the other side's variance."""
    spreads = [float(np.var(side, ddof=1)) for side in (base, new) if len(side) > 1]
    parts = spreads[0] / len(base), spreads[-1] / len(new)
    df = float(len(base) + len(new) - 2)
    if len(spreads) == 2 and sum(parts) > 0:
        df = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (base, new), strict=True))
    half = float(special.stdtrit(df, (1 + CONFIDENCE) / 2)) * math.sqrt(sum(parts))
    return half, half, df


def _p(d: float, reach: float, df: float) -> float:
    """Two-sided p of a difference `d`; `reach` is the half-width of its 95% interval towards 0.

    >>> round(_p(0.02, 0.02, math.inf), 3), _p(0.0, 0.0, 3.0)
    (0.05, 1.0)
    """
    if d == 0 or reach == 0:
        return 1.0 if d == 0 else 0.0
    t = abs(d) / reach * float(special.stdtrit(df, (1 + CONFIDENCE) / 2))
    return float(2 * special.stdtr(df, -t))


def _inverse(name: str, rate: Change) -> Change:
    """The change of a cost that is inverse to a rate. The costs themselves come from `harness cost`."""
    ratio = rate.ratio
    value, low, high = (None if x is None else 1 / x if x else math.inf for x in (ratio.value, ratio.high, ratio.low))
    ratio = replace(ratio, name=name, value=value, low=low, high=high)
    absent = Figure(name, None, "USD", ratio.status, reason="by a scenario")
    return Change(absent, absent, ratio, rate.p, -rate.better)


def verdict(changes: Sequence[Change]) -> tuple[Change, ...]:
    """The changes among the `HEADLINES` of at least the least effect, with at most 5% chance of any false one.

    Holm's step-down (1979), Scandinavian Journal of Statistics 6(2): the smallest of m p values is compared with
    5% / m, the next with 5% / (m - 1), until one is larger. The figures need not be independent.
    """
    judged = sorted((c.p, i) for i, c in enumerate(changes) if c.ratio.name in HEADLINES and c.p is not None)
    shown = []
    for rank, (p, i) in enumerate(judged):
        if p > (1 - CONFIDENCE) / (len(judged) - rank):
            break
        shown.append(changes[i])
    return tuple(change for change in shown if not change.small)


# ---- gates ----


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit on the change of a figure, such as `output_tokens_per_s<-3%`."""

    text: str
    figure: str
    above: bool
    """True: a change above the limit fails; False: below."""
    limit: float
    """The limit as a ratio: 0.97 for -3%."""


Outcome = Literal["failed", "passed", "undecided"]


def outcomes(gates: Sequence[Gate], changes: Sequence[Change]) -> list[tuple[Gate, Outcome]]:
    """failed: the whole 95% interval lies beyond the limit. undecided: the interval holds the limit. Else passed.

    Raises HarnessError if a figure is unknown or has no interval, because such a gate could never fail.
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
    """The gate from `FIGURE<PERCENT%` or `FIGURE>PERCENT%`: a change of the new side relative to the base.

    >>> parse_gate("output_tps<-3%")
    Gate(text='output_tps<-3%', figure='output_tokens_per_s', above=False, limit=0.97)
    """
    form = re.fullmatch(r"\s*([\w.]+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*%\s*", text)
    if form is None or (limit := 1 + float(form[3]) / 100) <= 0:
        fix = "write for instance --fail-on 'output_tps<-3%' or --fail-on 'ttft_s.p99>+5%'"
        raise HarnessError(f"--fail-on '{text}' is not of the form FIGURE<PERCENT%", fix)
    return Gate(text, SHORT.get(form[1], form[1]), form[2] == ">", limit)


def parse_least(text: str) -> float:
    """A share from `1%` or `0.5%`.

    >>> parse_least("0.5%")
    0.005
    """
    form = re.fullmatch(r"(\d+(?:\.\d+)?)%", text.strip())
    if form is None:
        raise HarnessError(f"--least '{text}' is not a share in percent", "write for instance --least 1%")
    return float(form[1]) / 100


# ---- conditions that must be equal ----

CACHED = 0.05
"""Difference of the shares of the input that came from a cache, above which `differences` notes it."""
LENGTH = ("requests.count", "load.duration_s")
"""Keys of a workload that change the precision of figures, not their meaning."""


def differences(base: Run, new: Run) -> tuple[list[str], list[str]]:
    """Differences that forbid a comparison of two runs, then those that are only noted; each names its field.

    A field that only one run knows is only noted, and so are the engine's version and options, which are often what
    the user compares. Models with the same weights are equal, whatever their names.
    """
    (asked, ran, rest), (asked_1, ran_1, rest_1) = _conditions(base), _conditions(new)
    if "weights_sha256" in ran and ran["weights_sha256"] == ran_1.get("weights_sha256"):
        ran, ran_1 = ran | {"model": None}, ran_1 | {"model": None}
    must = _differ(asked, asked_1) + _differ({key: ran[key] for key in ran if key in ran_1}, ran_1)
    unsure = [f"{key} is known of one side only" for key in (*ran, *ran_1) if (key in ran) != (key in ran_1)]
    return must, unsure + _differ(rest, rest_1)


def check_comparable(base: Sequence[Run], new: Sequence[Run], force: bool) -> tuple[list[str], list[str]]:
    """What forbids a comparison of the runs (empty unless `force`), and other differences that a reader must know.

    HarnessError names every field that differs and every run that is not complete.
    """
    first, *others = *base, *new
    must = [f"{run.id} is {run.state}" for run in (first, *others) if run.state != "complete"]
    must += [f"{run.id} has {each.code}" for run in (first, *others) for each in check_cache(run) if each.serious]
    noted: list[str] = []
    shares = [share for run in (first, *others) if (share := cached_share(run)) is not None]
    if shares and max(shares) - min(shares) > CACHED:
        noted.append(f"input from the prefix cache differs: {min(shares):.0%} to {max(shares):.0%}")
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
    return [f"{key} differs: {_shown(a)} vs {_shown(b)}" for key, a, b in pairs if a != b]


def _shown(value: Any) -> str:
    text = "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _conditions(run: Run) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The workload, the engine with its model and device, and other conditions; unknown fields are left out."""
    workload, place, engine, model = run.file.workload, run.environment, run.engine, run.model
    asked = flat(workload.model_dump(include={"requests", "load", "objectives"}))
    rest = {key: asked.pop(key, None) for key in LENGTH}
    ran: dict[str, Any] = {"engine": run.file.engine_asked}
    if engine is not None:
        ran |= {"model": model.source, "precision": model.precision, "stored_precision": model.stored_precision}
        ran |= {"weights_sha256": model.weights_sha256, "device": engine.device, "device_count": run.device_count}
        rest |= {"engine_version": engine.version, "options": engine.options}
        if engine.device == "cpu":
            ran |= {"cpu": place.cpu.model, "cores_usable": place.cpu.cores_usable}
        elif run.on_gpu:
            ran |= {"gpu": _one([gpu.name for gpu in place.gpus])}
            ran |= {"power_limit_w": _one([gpu.power_limit_w for gpu in place.gpus])}
    rest |= workload.model_dump(include={"seed", "warmup"}) | {"clients": len(run.file.clients) or 1}
    rest |= place.model_dump(include={"git", "driver", "python", "os", "harness", "packages", "settings"})
    return asked, flat(ran), flat(rest)


def _one(values: Sequence[Any]) -> Any:
    """The value if all GPUs have the same; otherwise the list of values."""
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else found or None


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; None is left out."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value
    return found
