"""Comparison of runs: ratios with intervals, judgements, gates, and the conditions that must be equal."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.analysis.server import cached_share, check_cache
from harness.errors import HarnessError
from harness.model import Figure, Summary
from harness.stats import CONFIDENCE, t_quantile
from harness.store.run import Run
from harness.workload.arrivals import in_words

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
"""Figures in tables of several runs, and those that the verdict names."""
Judgement = Literal["regressed", "improved", "undecided", "no difference seen", "not judged"]
LEAST = 0.01
"""A ratio nearer to 1 than this is no difference, whatever its interval, unless the user asks for another effect."""
HEADLINE_SHARE = 0.8
"""Part of the 5% chance of a false change in the whole table that is spent on the `HEADLINES`."""


@dataclass(frozen=True, slots=True)
class Between:
    """Standard deviation of the logarithm of a figure between runs of one thing."""

    sd: float = 0.03
    df: float = math.inf
    """Degrees of freedom with which it is known."""
    known: str = "assumed"
    """Where it is from, such as `declared`."""


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
    shown: bool = False
    """The change stands out in the whole table of figures: see `_standing_out`."""

    @property
    def judgement(self) -> Judgement:
        """undecided: 1 is outside the 95% interval of this figure, but the change does not stand out in the table."""
        value, low, high = self.ratio.value, self.ratio.low, self.ratio.high
        if value is None or low is None or high is None:
            return "not judged"
        if low <= 1 <= high or max(value, 1 / value) - 1 < self.least:
            return "no difference seen"
        if not self.shown:
            return "undecided"
        return "improved" if (low > 1) == (self.better > 0) else "regressed"


def judge(
    base: Sequence[Summary],
    new: Sequence[Summary],
    least: float = LEAST,
    between: Callable[[str], Between] = lambda _: Between(),
    interleaved: bool = False,
    tables: int = 1,
) -> tuple[Change, ...]:
    """Judges two groups of runs: the change of every figure of `BETTER` that both sides have, then of `COSTS`.

    `harness diff`, of runs and of the points of a sweep, and `harness ab` call this function. A side is a run or its
    repeats. `interleaved`, which the function of this name knows: the two sides' repeats took turns, so that the
    spread between them is all that can differ without a change. Otherwise what differs between runs, or sessions, adds
    to each side: `between` gives it for a figure's name. One run a side has the intervals of its figures too.
    At most 5% of all pairs of groups without a difference have any figure improved or regressed; 5% / `tables`, so
    that it holds for as many pairs together.
    """
    changes = {}
    for figure in base[0].figures:
        family = figure.name.partition(".")[0]
        first, second = ([f for run in side for f in run.figures if f.name == figure.name] for side in (base, new))
        known = len(first) == len(base) and len(second) == len(new) and any(f.value is not None for f in first + second)
        if family in BETTER and known:
            other = None if interleaved else between(figure.name)
            changes[figure.name] = _change(first, second, BETTER[family], other)
    stands_out = _standing_out(changes, (1 - CONFIDENCE) / tables)
    changes = {name: replace(each, least=least, shown=name in stands_out) for name, each in changes.items()}
    return *changes.values(), *(_inverse(name, changes[rate]) for name, rate in COSTS.items() if rate in changes)


def values(runs: Sequence[Summary], name: str) -> list[float]:
    """The figure of this name of each run that has it, above 0."""
    return [x.value for run in runs for x in run.figures if x.name == name and x.value is not None and x.value > 0]


def spread(groups: Iterable[Sequence[float]], known: str) -> Between | None:
    """The spread of a figure within groups of runs of one thing; None without two runs in one group."""
    logs = [np.log(each) for each in groups if each]
    df = sum(map(len, logs)) - len(logs)
    squares = math.fsum(float(np.var(each)) * len(each) for each in logs)
    return Between(math.sqrt(squares / df), df, known) if df > 0 else None


def interleaved(base: Sequence[Run], new: Sequence[Run]) -> bool:
    """Whether the sides' runs took turns, as ABAB or ABBA, not AABB: what drifts over a session then meets both."""
    starts = sorted((run.file.created_utc, side) for side, runs in enumerate((base, new)) for run in runs)
    turns = 1 + sum(a[1] != b[1] for a, b in itertools.pairwise(starts))
    return turns > max(2, min(len(base), len(new)))


def _change(base: Sequence[Figure], new: Sequence[Figure], better: int, between: Between | None) -> Change:
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
    before, after = (np.log([float(figure.value or 0) for figure in side]) for side in (base, new))
    d = float(after.mean() - before.mean())
    within = within_runs(base[0], new[0]) if len(every) == 2 else (0.0, 0.0)
    if isinstance(within, str):
        return Change(*sides, replace(ratio, value=math.exp(d), reason=within), None, better)
    sd, df = _between_runs(before, after, between)
    below, above = (math.hypot(each, t_quantile(df) * sd) for each in within)
    ratio = replace(ratio, value=math.exp(d), low=math.exp(d - below), high=math.exp(d + above))
    return Change(*sides, ratio, _p(d, below if d > 0 else above, df), better)


def _side(figures: Sequence[Figure]) -> Figure:
    """The figure of a single run; of several runs the geometric mean, without an interval."""
    if len(figures) == 1:
        return figures[0]
    values = [figure.value for figure in figures if figure.value is not None and figure.value > 0]
    mean = math.exp(float(np.log(values).mean())) if len(values) == len(figures) else None
    return replace(figures[0], value=mean, low=None, high=None, n=len(figures), reason=None)


def within_runs(base: Figure, new: Figure) -> tuple[float, float] | str:
    """Lower and upper half-width of the 95% interval of ln(new / base), from the intervals of the two figures; or the
    reason why there is no interval.

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
    return math.hypot(at_1 - low_1, high_0 - at_0), math.hypot(high_1 - at_1, at_0 - low_0)


def _between_runs(base: Array, new: Array, between: Between | None) -> tuple[float, float]:
    """Standard deviation of the difference of the means of the logarithms, and its degrees of freedom.

    Welch's: the variance of each side over its number of runs; a single run takes the other side's. `between` adds to
    both sides. The degrees of freedom of the sum are Satterthwaite's.
    """
    several = [side for side in (base, new) if len(side) > 1]
    parts = [(float(np.var(side, ddof=1)) / len(side), len(side) - 1.0) for side in several]
    if len(several) == 1:
        n = len(several[0])
        parts = [(parts[0][0] * (1 + n), n - 1.0)]
    parts += [] if between is None else [(2 * between.sd**2, between.df)]
    variance = math.fsum(part for part, _ in parts)
    doubt = math.fsum(part**2 / df for part, df in parts)
    least_df = min((df for _, df in parts), default=math.inf)
    return math.sqrt(variance), variance**2 / doubt if doubt > 0 else least_df


def _p(d: float, reach: float, df: float) -> float:
    """Two-sided p of a difference `d`; `reach` is the half-width of its 95% interval towards 0.

    >>> round(_p(0.02, 0.02, math.inf), 3), _p(0.0, 0.0, 3.0)
    (0.05, 1.0)
    """
    from scipy import special  # imported here because it is slow, and many commands do not need it

    if d == 0 or reach == 0:
        return 1.0 if d == 0 else 0.0
    return float(2 * special.stdtr(df, -abs(d) / reach * t_quantile(df)))


def _inverse(name: str, rate: Change) -> Change:
    """The change of a cost that is inverse to a rate. The costs themselves come from `harness cost`."""
    ratio = rate.ratio
    value, low, high = (None if x is None else 1 / x if x else math.inf for x in (ratio.value, ratio.high, ratio.low))
    ratio = replace(ratio, name=name, value=value, low=low, high=high)
    absent = Figure(name, None, "USD", ratio.status, reason="by a scenario")
    return replace(rate, base=absent, new=absent, ratio=ratio, better=-rate.better)


def _standing_out(changes: Mapping[str, Change], most: float = 1 - CONFIDENCE) -> set[str]:
    """Names of the figures whose changes stand out in the whole table, with at most `most` chance of any false one.

    Holm's step-down with weights (1979, section 4), Scandinavian Journal of Statistics 6(2): the `HEADLINES` share
    `HEADLINE_SHARE` of the 5% equally, the other figures the rest. The smallest p over weight is compared with 5% over
    the sum of the weights, and so on without it, until one is larger. The figures need not be independent.
    """
    left = {name: change.p for name, change in changes.items() if change.p is not None}
    headlines = left.keys() & {*HEADLINES}
    share = {
        True: HEADLINE_SHARE / max(1, len(headlines)),
        False: (1 - HEADLINE_SHARE) / max(1, len(left) - len(headlines)),
    }
    weights = {name: share[name in headlines] for name in left}
    found = set()
    for name in sorted(left, key=lambda name: left[name] / weights[name]):
        if left[name] * math.fsum(weights.values()) > most * weights[name]:
            break
        found.add(name)
        del weights[name]
    return found


def verdict(changes: Sequence[Change]) -> tuple[Change, ...]:
    """The `HEADLINES` that improved or regressed."""
    return tuple(c for c in changes if c.ratio.name in HEADLINES and c.judgement in ("improved", "regressed"))


def power(effect: float, sd: float, repeats: int) -> float:
    """The chance that the verdict names a relative change `effect` of one figure, from as many interleaved repeats a
    side whose standard deviation is `sd`; of one run a side, if `sd` is known.

    >>> [round(power(0.03, 0.01, k), 2) for k in (1, 3, 5)]
    [0.27, 0.28, 0.81]
    """
    from scipy import special

    level = (1 - CONFIDENCE) * HEADLINE_SHARE / len(HEADLINES) / 2
    shift = math.log1p(effect) / (sd * math.sqrt(2 / repeats))
    if repeats == 1:
        return float(special.ndtr(shift + special.ndtri(level)))
    df = 2.0 * repeats - 2
    return float(1 - special.nctdtr(df, shift, -special.stdtrit(df, level)))


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
    both = [key for key in ran if key in ran_1]
    must = _differ(asked, asked_1) + _differ(*({key: of[key] for key in both} for of in (ran, ran_1)))
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
    return [f"{key} differs: {_shown(a)} vs {_shown(b)}" for key, a, b in unequal(base, new)]


def unequal(base: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys whose values differ, with both values; None: not there."""
    pairs = [(key, base.get(key), new.get(key)) for key in dict.fromkeys((*base, *new))]
    return [(key, a, b) for key, a, b in pairs if a != b]


def _shown(value: Any) -> str:
    text = "not set" if value is None else in_words(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _conditions(run: Run) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The workload, the engine with its model and device, and other conditions; unknown fields are left out."""
    workload, place, engine, model = run.file.workload, run.environment, run.engine, run.model
    asked = flat(workload.model_dump(include={"requests", "load", "objectives"}))
    rest = {key: asked.pop(key, None) for key in LENGTH}
    ran: dict[str, Any] = {"engine": run.file.engine_asked}
    if run.file.prompts is not None:
        ran |= {f"SHA-256 of {name}": digest for name, digest in run.file.prompts.files.items()}
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
