"""Sweeps: the points of a study and their order, and the next load of a search. Pure."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from harness.analysis.diff import within_runs
from harness.analysis.latency import LATENCY_FIGURES
from harness.config import Section, checked, near, read_map
from harness.errors import HarnessError
from harness.model import Figure
from harness.workload.arrivals import Seconds
from harness.workload.schema import doubt_seconds

ENGINE_KEYS = ("engine", "model")
"""First parts of the keys that need a new engine."""
SATURATED = 0.03
"""Doubling ends when it surely raises the output rate by less than this share."""
BISECTED = 1.05
"""Bisection ends when the lowest load that misses the objective is at most this factor above the highest that meets."""
MOST_RUNS = 4
"""Most runs of one load whose intervals leave open whether it is better than another or meets the objective."""
BENT = 0.15
"""Smallest gap between neighbours on the front, as a share of the range of rate or interactivity, that is divided."""
Axis = Annotated[list[Any], Field(min_length=1)]


class Auto(Section):
    """Find the load that saturates the system and the highest load that meets an objective, then fill the front."""

    axis: Literal["load.users", "load.rate_per_s"]
    start: float = Field(1, gt=0)
    limit: float = Field(1024, gt=0)
    """Highest load to measure."""
    objective: dict[str, Seconds] = Field({}, description="figures and their upper limits: {ttft_s.p99: 500 ms}")
    """Figure -> its upper limit in seconds."""
    most: int = Field(16, ge=0, le=1000)
    """Number of points up to which the front is filled after the search."""

    def rounded(self, load: float) -> float:
        """The load as a whole number of users, at least 1, or as a rate of four digits."""
        return max(1, round(load)) if self.axis == "load.users" else float(f"{load:.4g}")


class Sweep(Section):
    """A study: a workload, and the values that vary."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    workload: str
    set: dict[str, Any] = Field({})
    """Values that all points share, as for `--set`."""
    grid: dict[str, Axis] = Field({})
    """Every combination of these axes."""
    zip: list[dict[str, Axis]] = Field([], description="a list of maps: axes that move together, equally long")
    """Each map counts as one axis of the grid."""
    repeat: int = Field(1, ge=1, le=1000)
    auto: Auto | None = Field(None, description="a map: an axis that is not given elsewhere, and how far to search it")
    """A search at each combination of the grid."""

    @model_validator(mode="after")
    def _fits(self) -> Sweep:
        for axes in self.zip:
            if len({len(values) for values in axes.values()}) > 1:
                named = {"key": "zip", "axes": ", ".join(axes)}
                raise PydanticCustomError("order", "has axes of different lengths: {axes}", named)
        keys = [*self.grid, *itertools.chain.from_iterable(self.zip), *([self.auto.axis] if self.auto else [])]
        if twice := {key for key in keys if keys.count(key) > 1}:
            named = {"key": "zip" if self.zip else "auto", "keys": ", ".join(sorted(twice))}
            raise PydanticCustomError("order", "with the other axes gives {keys} more than once", named)
        return self


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep."""

    values: Mapping[str, Any]
    """Key of the workload -> its value at this point."""
    repeat: int = 0

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> str:
        """Identifies the point in its sweep, also when the sweep is resumed.

        >>> Point({"load.users": 4}).key == Point({"load.users": 4}).key != Point({"load.users": 4}, repeat=1).key
        True
        """
        text = json.dumps([self.values, self.repeat], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def without(self, axis: str, repeats: int = 1) -> Point:
        """The combination at which a search runs: without this axis. A search measures a load again as a later repeat
        than the `repeats` of the sweep."""
        return Point({key: value for key, value in self.values.items() if key != axis}, self.repeat % repeats)

    def overrides(self, sweep: Sweep) -> dict[str, Any]:
        """Values by dotted key that turn the sweep's workload into the workload of this point.

        Unless the sweep gives a seed, each point has its own, because an engine that stays loaded would serve the same
        prompts from its prefix cache.
        """
        return {"seed": int(self.key[:8], 16), **sweep.set, **self.values}

    @property
    def engine(self) -> str:
        """The values that need a new engine, as text."""
        return json.dumps({key: x for key, x in self.values.items() if key.split(".")[0] in ENGINE_KEYS}, default=str)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a load's runs that a search uses."""

    rate: Figure | None
    """Output tokens per second; None: the load failed."""
    tpot_s: float | None
    meets: bool | None
    """Whether the load meets every limit of the objective; None: an interval holds a limit."""
    runs: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """A load that a search looked for. It is surely above `low` or `low` itself, and surely not above `high`."""

    load: float | None
    """By the figures' values; None: no load is."""
    low: float
    high: float | None
    """None: no load was measured that surely is beyond it."""
    top: float
    """The highest load that was measured."""

    def text(self, limit: float) -> str:
        """The answer in words.

        >>> Answer(32, 16, 64, 64).text(1024), Answer(None, 0, 1, 4).text(8), Answer(512, 256, None, 1024).text(1024)
        ('32 (16 to 64)', 'n/a (none does)', '256 or more (the limit was 1024)')
        """
        if self.load is None:
            return "n/a (none does)"
        if self.high is None:
            end = f"the limit was {limit:g}" if self.top >= limit else f"no load above {self.top:g} was measured"
            return f"{self.low:g} or more ({end})"
        return f"{self.load:g} ({self.low:g} to {self.high:g})"


def parse_sweep(text: str, origin: str) -> Sweep:
    """A sweep from YAML text. `origin` is the file, for errors and as the name of a sweep without one.

    Raises HarnessError with the key, the value and the expected form.
    """
    data, places = read_map(text, origin, "a map with at least workload, and grid, zip or auto")
    sweep = checked(Sweep, {"name": PurePath(origin).stem, **data}, origin, places)
    for figure in sweep.auto.objective if sweep.auto else ():
        where = f"{places.get(f'auto.objective.{figure}', origin)}: auto.objective.{figure}"
        if figure not in LATENCY_FIGURES:
            raise HarnessError(
                f"{where}: no such figure", f"{near(figure, LATENCY_FIGURES)}write a latency such as ttft_s.p99"
            )
        doubt_seconds(where, figure.partition(".")[0], data["auto"]["objective"][figure])
    return sweep


def points(sweep: Sweep) -> list[Point]:
    """All points except those of a search, in the order of the axes, grouped by engine. Repeats take turns.

    >>> sweep = Sweep(name="s", workload="smoke", grid={"load.users": [1, 2], "model": ["a", "b"]})
    >>> [tuple(point.values.values()) for point in points(sweep)]
    [(1, 'a'), (2, 'a'), (1, 'b'), (2, 'b')]
    """
    axes = [[{key: value} for value in values] for key, values in sweep.grid.items()]
    axes += [[dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)] for group in sweep.zip]
    made = [
        Point({key: value for part in parts for key, value in part.items()}, repeat)
        for repeat in range(sweep.repeat)
        for parts in itertools.product(*axes)
    ]
    engines = list(dict.fromkeys(point.engine for point in made))
    return sorted(made, key=lambda point: (point.repeat, engines.index(point.engine)))


def next_load(auto: Auto, measured: Mapping[float, Outcome]) -> float | None:
    """The next load to measure after the measured ones; None: the search is complete. Its steps:

    1. doubling from `start`, until twice the load surely brings less than `SATURATED` more tokens, fails, or exceeds
       `limit`;
    2. bisection on a log scale between the highest load that surely meets the objective and the lowest that does not;
       a load of which the intervals leave 1 or 2 open is measured again, up to `MOST_RUNS` times;
    3. up to `most` points in all, the load in the middle, on a log scale, of the widest gap in rate or interactivity.

    >>> auto = Auto(axis="load.users", limit=8, objective={"ttft_s.p99": 1}, most=0)
    >>> rates = {n: Figure("", min(10 * n, 40), "", "measured", *2 * [min(10 * n, 40)]) for n in (1, 2, 4, 8)}
    >>> slow = {n: Outcome(rate, 0.01, n < 4) for n, rate in rates.items()}
    >>> next_load(auto, {}), next_load(auto, {1: slow[1]}), next_load(auto, slow)
    (1, 2, 3)
    """
    known = dict(sorted(measured.items()))
    steps = (step(auto, known) for step in (_doubled, _bisected, _filled))
    return next((load for load in steps if load is not None), None)


def saturation(measured: Mapping[float, Outcome]) -> Answer:
    """The lowest load above which no measured load gives `SATURATED` more tokens."""
    rates = [(load, each.rate) for load, each in sorted(measured.items()) if each.rate is not None]
    low, by_value, high = 0.0, None, None
    for i, (load, rate) in enumerate(rates[:-1]):
        ends = zip(*(_gain(rate, more) for _, more in rates[i + 1 :]), strict=True)
        surely, likely, perhaps = (max(each) >= 1 + SATURATED for each in ends)  # more tokens
        low = load if surely else low
        by_value = load if by_value is None and not likely else by_value
        high = load if high is None and not perhaps else high
    found = by_value or (rates[-1][0] if rates else None)
    return Answer(found, low, high, max(measured, default=0.0))


def highest_feasible(measured: Mapping[float, Outcome]) -> Answer:
    """The highest measured load that surely meets the objective."""
    good = max((load for load, each in measured.items() if each.meets), default=None)
    bad = min((load for load, each in measured.items() if load > (good or 0) and each.meets is False), default=None)
    return Answer(good, good or 0.0, bad, max(measured, default=0.0))


def _doubled(auto: Auto, known: Mapping[float, Outcome]) -> float | None:
    """The next load of start, its doublings and the limit; None if the measured ones saturate or fail."""
    before, load = None, auto.rounded(min(auto.start, auto.limit))
    doubled = auto.start
    while load in known:
        if (rate := known[load].rate) is None:
            return None
        if before is not None and (base := known[before].rate) is not None:
            low, _, high = _gain(base, rate)
            again = min((before, load), key=lambda each: known[each].runs)
            if high < 1 + SATURATED:
                return None
            if low < 1 + SATURATED and known[again].runs < MOST_RUNS:
                return again
        if doubled >= auto.limit:
            return None
        before, doubled = load, 2 * doubled
        load = auto.rounded(min(doubled, auto.limit))
    return load


def _gain(base: Figure, more: Figure) -> tuple[float, float, float]:
    """Lower end, value and upper end of the ratio of two rates; 0 and inf if one has no interval."""
    within, ratio = within_runs(base, more), (more.value or 0.0) / (base.value or math.inf)
    below, above = (math.inf, math.inf) if isinstance(within, str) else within
    return ratio * math.exp(-below), ratio, ratio * math.exp(above)


def _bisected(auto: Auto, known: Mapping[float, Outcome]) -> float | None:
    if not auto.objective:
        return None
    found = highest_feasible(known)
    good, least_bad = found.low, found.high or math.inf
    unsure = [load for load, each in known.items() if each.meets is None and good < load < least_bad]
    if (again := next((load for load in unsure if known[load].runs < MOST_RUNS), None)) is not None:
        return again
    bad = min([least_bad, *unsure])
    if not good or bad == math.inf or bad <= BISECTED * good:
        return None
    middle = auto.rounded(math.sqrt(good * bad))
    return None if middle in known else middle


def _filled(auto: Auto, known: Mapping[float, Outcome]) -> float | None:
    if len(known) >= auto.most:
        return None
    speeds = [(load, each.tpot_s, each.rate.value if each.rate else None) for load, each in known.items()]
    front = [(load, 1 / tpot_s, rate) for load, tpot_s, rate in speeds if tpot_s and rate]
    spans = [max(column) - min(column) or 1.0 for column in list(zip(*front, strict=True))[1:]]
    widest, best = BENT, None
    for (a, *left), (b, *right) in itertools.pairwise(front):
        wide = max(abs(x - y) / span for x, y, span in zip(left, right, spans, strict=True))
        if wide > widest and (middle := auto.rounded(math.sqrt(a * b))) not in known:
            widest, best = wide, middle
    return best
