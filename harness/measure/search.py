"""Sweeps: which points a study has, in what order, and which comes next where that depends on the others. Pure."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from harness.config import checked, read_map

ENGINE_KEYS = ("engine", "model")
"""Where keys that need the engine loaded anew begin."""
SATURATED = 0.03
"""Doubling ends where it brings less than this share of output rate."""
BISECTED = 1.05
"""The highest load that meets an objective is known once the lowest that does not is at most this much more."""
BENT = 0.15
"""Share of the whole range, of rate or interactivity, beyond which two neighbours on the front get one between them."""
Axis = Annotated[list[Any], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Auto(_Part):
    """Find the load at which the system saturates and the highest that meets an objective, then fill the front."""

    axis: Literal["load.users", "load.rate_per_s"]
    start: float = Field(1, gt=0)
    limit: float = Field(1024, gt=0)
    """No point beyond this load."""
    objective: dict[str, float] = {}
    """Figure -> its upper limit in seconds: `ttft_s.p99: 0.5`."""
    most: int = Field(16, ge=0, le=1000)
    """Points are added to those that the search needed up to so many."""


class Sweep(_Part):
    """A study: a workload, and what varies."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    workload: str
    set: dict[str, Any] = {}
    """Keys that all points share, as for `--set`."""
    grid: dict[str, Axis] = {}
    """Every combination of these axes."""
    zip: list[dict[str, Axis]] = Field([], description="a list of maps: axes that move together, equally long")
    """Each map counts as one axis of the grid."""
    repeat: int = Field(1, ge=1, le=1000)
    auto: Auto | None = Field(None, description="a map: an axis that is not given elsewhere, and how far to search it")
    """Searched at each combination of the grid."""

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
        """What tells this point from all others, today and when the sweep is resumed.

        >>> Point({"load.users": 4}).key == Point({"load.users": 4}).key != Point({"load.users": 4}, repeat=1).key
        True
        """
        text = json.dumps([self.values, self.repeat], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def without(self, axis: str) -> Point:
        """The combination that a search along this axis is at."""
        return Point({key: value for key, value in self.values.items() if key != axis}, self.repeat)

    def overrides(self, sweep: Sweep) -> dict[str, Any]:
        """Axis by key that make the sweep's workload into this point's.

        The seed follows from the point, unless the sweep gives one: the same prompts again on an engine that stays
        loaded would come from its prefix cache.
        """
        return {"seed": int(self.key[:8], 16), **sweep.set, **self.values}

    @property
    def engine(self) -> str:
        """What of the values needs the engine loaded anew."""
        return json.dumps({key: x for key, x in self.values.items() if key.split(".")[0] in ENGINE_KEYS}, default=str)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search needs to know of a measured point."""

    tokens_per_s: float | None
    """None: the point failed."""
    tpot_s: float | None
    meets: bool
    """Whether every limit of the objective held."""


def parse_sweep(text: str, origin: str) -> Sweep:
    """A sweep from YAML text; `origin`, its file, stands in errors and gives the name where the text has none.

    Raises HarnessError naming the key, the value and what was expected.
    """
    data, places = read_map(text, origin, "a map with at least workload, and grid, zip or auto")
    return checked(Sweep, {"name": PurePath(origin).stem, **data}, origin, places)


def points(sweep: Sweep) -> list[Point]:
    """Every point but those of a search, those of one engine next to each other, in the order of the axes.

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
    """The next load to measure, given those measured so far; None: the search is over. Its steps:

    1. doubling from `start`, until twice the load brings less than `SATURATED` more tokens, fails, or passes `limit`;
    2. bisection on a log scale between the highest load that meets the objective and the lowest that does not;
    3. up to `most` in all, loads that each halve, on a log scale, the widest step in rate or interactivity.

    >>> auto = Auto(axis="load.users", limit=8, objective={"ttft_s.p99": 1}, most=0)
    >>> slow = {1: Outcome(10, 0.01, True), 2: Outcome(20, 0.01, True), 4: Outcome(40, 0.02, False)}
    >>> next_load(auto, {}), next_load(auto, {1: slow[1]}), next_load(auto, slow | {8: Outcome(40, 0.1, False)})
    (1, 2, 3)
    """
    whole = auto.axis == "load.users"
    known = dict(sorted(measured.items()))
    if not known:
        return _load(auto.start, whole)
    step = _doubled(auto, known, whole)
    if step is not None:
        return step
    step = _bisected(auto, known, whole)
    return _filled(auto, known, whole) if step is None else step


def saturation(measured: Mapping[float, Outcome]) -> float | None:
    """The lowest load with an output rate within `SATURATED` of the highest seen; None: nothing was measured."""
    rates = {load: rate for load, each in sorted(measured.items()) if (rate := each.tokens_per_s) is not None}
    return next((load for load, rate in rates.items() if rate >= (1 - SATURATED) * max(rates.values())), None)


def highest_feasible(measured: Mapping[float, Outcome]) -> float | None:
    """The highest measured load that meets the objective; None: none does."""
    return max((load for load, each in measured.items() if each.meets), default=None)


def _load(x: float, whole: bool) -> float:
    return max(1, round(x)) if whole else float(f"{x:.4g}")


def _ladder(auto: Auto, whole: bool) -> Iterator[float]:
    """start, and each doubling up to the limit, which is the last."""
    x = auto.start
    while x < auto.limit:
        yield _load(x, whole)
        x *= 2
    yield _load(auto.limit, whole)


def _doubled(auto: Auto, known: Mapping[float, Outcome], whole: bool) -> float | None:
    before: float | None = None
    for load in _ladder(auto, whole):
        if load not in known:
            return load
        rate = known[load].tokens_per_s
        if rate is None or (before is not None and rate < (1 + SATURATED) * before):
            return None
        before = rate
    return None


def _bisected(auto: Auto, known: Mapping[float, Outcome], whole: bool) -> float | None:
    good = highest_feasible(known)
    if not auto.objective or good is None:
        return None
    bad = min((load for load, each in known.items() if load > good and not each.meets), default=None)
    if bad is None or bad <= BISECTED * good or (whole and bad - good <= 1):
        return None
    return _between(good, bad, whole)


def _filled(auto: Auto, known: Mapping[float, Outcome], whole: bool) -> float | None:
    speeds = [(load, each.tpot_s, each.tokens_per_s) for load, each in known.items()]
    front = [(load, 1 / tpot_s, rate) for load, tpot_s, rate in speeds if tpot_s and rate]
    spans = [max(column) - min(column) or 1.0 for column in list(zip(*front, strict=True))[1:]] if front else []
    widest, best = BENT, None
    for (a, *left), (b, *right) in itertools.pairwise(front):
        wide = max(abs(x - y) / span for x, y, span in zip(left, right, spans, strict=True))
        if wide > widest and (middle := _between(a, b, whole)) not in known:
            widest, best = wide, middle
    return best if len(known) < auto.most else None


def _between(a: float, b: float, whole: bool) -> float:
    return _load(math.sqrt(a * b), whole)
