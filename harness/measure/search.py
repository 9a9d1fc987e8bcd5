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

from harness.analysis.latency import LATENCIES, STATISTICS
from harness.config import Section, checked, near, read_map
from harness.errors import HarnessError
from harness.workload.arrivals import Seconds
from harness.workload.schema import doubt_seconds

ENGINE_KEYS = ("engine", "model")
"""First parts of the keys that need a new engine."""
SATURATED = 0.03
"""Doubling ends when it raises the output rate by less than this share."""
BISECTED = 1.05
"""Bisection ends when the lowest load that misses the objective is at most this factor above the highest that meets."""
BENT = 0.15
"""Smallest gap between neighbours on the front, as a share of the range of rate or interactivity, that is divided."""
LIMITED = [f"{latency}.{statistic}" for latency in LATENCIES for statistic in STATISTICS]
"""Figures that an objective may limit."""
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

    def without(self, axis: str) -> Point:
        """The point without this axis: a combination at which a search runs."""
        return Point({key: value for key, value in self.values.items() if key != axis}, self.repeat)

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
    """The result of a measured point that a search uses."""

    tokens_per_s: float | None
    """None: the point failed."""
    tpot_s: float | None
    meets: bool
    """Whether the point met every limit of the objective."""


def parse_sweep(text: str, origin: str) -> Sweep:
    """A sweep from YAML text. `origin` is the file, for errors and as the name of a sweep without one.

    Raises HarnessError with the key, the value and the expected form.
    """
    data, places = read_map(text, origin, "a map with at least workload, and grid, zip or auto")
    sweep = checked(Sweep, {"name": PurePath(origin).stem, **data}, origin, places)
    for figure in sweep.auto.objective if sweep.auto else ():
        where = f"{places.get(f'auto.objective.{figure}', origin)}: auto.objective.{figure}"
        if figure not in LIMITED:
            raise HarnessError(f"{where}: no such figure", f"{near(figure, LIMITED)}write a latency such as ttft_s.p99")
        doubt_seconds(where, figure.partition(".")[0], data["auto"]["objective"][figure])
    return sweep


def points(sweep: Sweep) -> list[Point]:
    """All points except those of a search, in the order of the axes, grouped by engine.

    >>> sweep = Sweep(name="s", workload="smoke", grid={"load.users": [1, 2], "model": ["a", "b"]})
    >>> [tuple(point.values.values()) for point in points(sweep)]
    [(1, 'a'), (2, 'a'), (1, 'b'), (2, 'b')]
    """
    axes = [[{key: value} for value in values] for key, values in sweep.grid.items()]
    axes += [[dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)] for group in sweep.zip]
    made = [
        Point({key: value for part in parts for key, value in part.items()}, repeat)
        for parts in itertools.product(*axes)
        for repeat in range(sweep.repeat)
    ]
    engines = list(dict.fromkeys(point.engine for point in made))
    return sorted(made, key=lambda point: engines.index(point.engine))


def next_load(auto: Auto, measured: Mapping[float, Outcome]) -> float | None:
    """The next load to measure after the measured ones; None: the search is complete. Its steps:

    1. doubling from `start`, until twice the load brings less than `SATURATED` more tokens, fails, or exceeds `limit`;
    2. bisection on a log scale between the highest load that meets the objective and the lowest that does not;
    3. up to `most` points in all, the load in the middle, on a log scale, of the widest gap in rate or interactivity.

    >>> auto = Auto(axis="load.users", limit=8, objective={"ttft_s.p99": 1}, most=0)
    >>> slow = {1: Outcome(10, 0.01, True), 2: Outcome(20, 0.01, True), 4: Outcome(40, 0.02, False)}
    >>> next_load(auto, {}), next_load(auto, {1: slow[1]}), next_load(auto, slow | {8: Outcome(40, 0.1, False)})
    (1, 2, 3)
    """
    known = dict(sorted(measured.items()))
    steps = (step(auto, known) for step in (_doubled, _bisected, _filled))
    return next((load for load in steps if load is not None), None)


def saturation(measured: Mapping[float, Outcome]) -> float | None:
    """The lowest load whose output rate is within `SATURATED` of the highest; None: no point succeeded."""
    rates = {load: rate for load, each in sorted(measured.items()) if (rate := each.tokens_per_s) is not None}
    return next((load for load, rate in rates.items() if rate >= (1 - SATURATED) * max(rates.values())), None)


def highest_feasible(measured: Mapping[float, Outcome]) -> float | None:
    """The highest measured load that meets the objective; None: no load does."""
    return max((load for load, each in measured.items() if each.meets), default=None)


def _doubled(auto: Auto, known: Mapping[float, Outcome]) -> float | None:
    """The next load of start, its doublings and the limit; None if the measured ones saturate or fail."""
    before, load = 0.0, auto.rounded(min(auto.start, auto.limit))
    doubled = auto.start
    while load in known:
        rate = known[load].tokens_per_s
        if rate is None or rate < (1 + SATURATED) * before or doubled >= auto.limit:
            return None
        before, doubled = rate, 2 * doubled
        load = auto.rounded(min(doubled, auto.limit))
    return load


def _bisected(auto: Auto, known: Mapping[float, Outcome]) -> float | None:
    good = highest_feasible(known)
    if not auto.objective or good is None:
        return None
    bad = min((load for load, each in known.items() if load > good and not each.meets), default=None)
    if bad is None or bad <= BISECTED * good:
        return None
    middle = auto.rounded(math.sqrt(good * bad))
    return None if middle in known else middle


def _filled(auto: Auto, known: Mapping[float, Outcome]) -> float | None:
    if len(known) >= auto.most:
        return None
    speeds = [(load, each.tpot_s, each.tokens_per_s) for load, each in known.items()]
    front = [(load, 1 / tpot_s, rate) for load, tpot_s, rate in speeds if tpot_s and rate]
    spans = [max(column) - min(column) or 1.0 for column in list(zip(*front, strict=True))[1:]]
    widest, best = BENT, None
    for (a, *left), (b, *right) in itertools.pairwise(front):
        wide = max(abs(x - y) / span for x, y, span in zip(left, right, spans, strict=True))
        if wide > widest and (middle := auto.rounded(math.sqrt(a * b))) not in known:
            widest, best = wide, middle
    return best
