"""Load shapes: when each request is due, and when each user is active. Pure; the measuring loop is in `measure`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from harness.config import Section
from harness.errors import HarnessError

YEAR_S = 365 * 86_400.0
"""Longest load; also the largest rate per second."""
ARRIVALS = 3
"""Second word of the seed of arrival times, so that they share no random numbers with the requests."""


def _quantity(units: Mapping[str, float], form: str = "above 0") -> BeforeValidator:
    """Reads a number, alone or with one of `units` (unit -> size in SI). `form`: "above 0" or "from 0"."""

    def read(value: object) -> float:
        match = re.fullmatch(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(.*)", str(value).strip())
        try:
            number = float(match[1]) * {"": 1.0, **units}[match[2]] if match else math.nan
        except (KeyError, ValueError):
            number = math.nan
        if not 0 <= number <= YEAR_S or (number == 0 and form == "above 0"):
            message = "should be a number {form} to 31,536,000 (a year), alone or with one of the units {units}"
            raise PydanticCustomError("quantity", message, {"form": form, "units": ", ".join(units)})
        return number

    return BeforeValidator(read, json_schema_input_type=float | str)


_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
Seconds = Annotated[float, _quantity(_UNITS_S)]
_RATES = {f"/{unit}": 1 / size for unit, size in _UNITS_S.items()}
PerSecond = Annotated[float, _quantity(_RATES)]
PerSecondOr0 = Annotated[float, _quantity(_RATES, "from 0")]
MOST = 10_000_000
"""Largest number of requests in a run, and of tokens in a request; more would be a typing error and fill the memory."""
WHOLE = "a whole number from 1 to 10 million"
Count = Annotated[int, Field(gt=0, le=MOST, strict=True)]
UsersOr0 = Annotated[int, Field(ge=0, le=100_000, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
TAKES: Mapping[str, str] = {
    "closed": "users duration_s? start?",
    "offline": "",
    "constant": "rate_per_s duration_s? max_in_flight?",
    "poisson": "rate_per_s duration_s? max_in_flight?",
    "gamma": "rate_per_s burstiness duration_s? max_in_flight?",
    "trace": "trace time_scale? duration_s? max_in_flight?",
    "ramp of users": "from_users to_users over_s duration_s?",
    "ramp of the rate": "from_rate_per_s to_rate_per_s over_s arrivals? duration_s? max_in_flight?",
    "steps of users": "steps duration_s? start?",
    "steps of the rate": "steps arrivals? duration_s? max_in_flight?",
}
"""Load shape -> its keys; `?` marks optional keys."""
_BLOCK = 4096
"""Number of due times computed at once."""


def check_keys(given: Mapping[str, object], chosen: str, takes: Mapping[str, str]) -> None:
    """Refuse a missing key and a key that `chosen` does not take; a value of None counts as absent.

    `takes` is a table like `TAKES`. The error's context holds the key, for the message that `config.checked` makes.
    """
    keys = takes[chosen].split()
    for key in keys:
        if not key.endswith("?") and given[key] is None:
            raise PydanticCustomError("lacks", "is missing; {chosen} needs it", {"key": key, "chosen": chosen})
    for key in sorted({key.rstrip("?") for key in " ".join(takes.values()).split()}):
        if given[key] is not None and key not in keys and f"{key}?" not in keys:
            raise PydanticCustomError("stray", "does not go with {chosen}", {"key": key, "chosen": chosen})


class Step(Section):
    """One step of a load: a number of users or a rate, and its duration."""

    users: UsersOr0 | None = Field(None, description="a whole number from 0 to 100,000")
    rate_per_s: PerSecondOr0 | None = Field(None, description="requests per second from 0")
    duration_s: Seconds = Field(description="seconds above 0: 60 or '1 min'")


class Load(Section):
    """When requests are sent; `TAKES` lists the keys of each shape."""

    shape: Literal["closed", "offline", "constant", "poisson", "gamma", "trace", "ramp", "steps"]
    users: Annotated[UsersOr0, Field(gt=0)] | None = Field(
        None, description="requests in flight at any time, a whole number from 1 to 100,000"
    )
    rate_per_s: PerSecond | None = Field(None, description="requests per second above 0: 3, '3 /s' or '180 /min'")
    burstiness: Positive | None = Field(None, description="a number above 0: 1 is Poisson, less is burstier")
    from_users: UsersOr0 | None = Field(None, description="users at the start, a whole number from 0 to 100,000")
    to_users: UsersOr0 | None = Field(None, description="users at the end of the ramp, a whole number from 0")
    from_rate_per_s: PerSecondOr0 | None = Field(None, description="requests per second at the start, from 0")
    to_rate_per_s: PerSecondOr0 | None = Field(None, description="requests per second at the end of the ramp, from 0")
    over_s: Seconds | None = Field(None, description="seconds above 0 that the ramp takes: 60 or '1 min'")
    steps: Annotated[tuple[Step, ...], Field(min_length=1)] | None = Field(
        None, description="a list of {users or rate_per_s, duration_s}, all of one kind"
    )
    arrivals: Literal["poisson", "constant"] | None = None
    trace: str | None = Field(None, description="a shipped trace's name or a file, for its arrival times")
    time_scale: Positive | None = Field(None, description="a factor above 0 on the trace's times: 0.5 is twice as fast")
    duration_s: Seconds | None = Field(None, description="seconds above 0 until sending stops: 60 or '1 min'")
    max_in_flight: Count | None = Field(None, description=f"the most requests in flight, {WHOLE}")
    start: Literal["equilibrium", "burst"] | None = Field(
        None, description="equilibrium (if not given: users are mid-answer at first) or burst (all send at once)"
    )

    @model_validator(mode="after")
    def _keys_fit(self) -> Load:
        varied = " of users" if self.closed else " of the rate"
        check_keys(dict(self), self.shape + varied * (self.shape in ("ramp", "steps")), TAKES)
        if self.steps and {(step.users is None, step.rate_per_s is None) for step in self.steps} != {
            (not self.closed, self.closed)
        }:
            raise PydanticCustomError("order", "has not users in every step, or a rate in every step", {"key": "steps"})
        levels = [self.from_users, self.to_users, self.from_rate_per_s, self.to_rate_per_s]
        levels += [level for step in self.steps or () for level in (step.users, step.rate_per_s)]
        if self.shape in ("ramp", "steps") and not any(levels):
            raise PydanticCustomError("order", "never rises above 0", {"key": "shape"})
        return self

    @property
    def closed(self) -> bool:
        """True for a closed loop, where each user sends after the last answer; False if requests have due times."""
        levels = [self.users, self.from_users, self.to_users, *(step.users for step in self.steps or ())]
        return any(level is not None for level in levels)

    @property
    def in_equilibrium(self) -> bool:
        """True if each user's first request of a span is one that has been going on for some time."""
        return self.closed and self.shape != "ramp" and self.start != "burst"

    @property
    def end_s(self) -> float:
        """Time from which no request is sent; inf if the request count or the trace ends the load."""
        steps_s = _starts(self.steps)[-1] if self.steps else math.inf
        return min(steps_s, math.inf if self.duration_s is None else self.duration_s)


class Stage(NamedTuple):
    """A step of a load within the time in which requests are sent."""

    begin_s: float
    end_s: float
    users: int | None
    rate_per_s: float | None

    @property
    def level(self) -> float:
        return self.users or self.rate_per_s or 0.0

    @property
    def text(self) -> str:
        unit = "requests/s" if self.rate_per_s is not None else "user" if self.level == 1 else "users"
        return f"{self.level:g} {unit}"


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Recorded traffic: one element per request, in order of arrival."""

    arrival_s: NDArray[np.float64]
    """Seconds, never decreasing."""
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    block_ids: NDArray[np.int64] | None = None
    """Ids of the blocks at the start of each prompt, of all requests one after the other; equal ids, equal tokens."""
    block_ends: NDArray[np.int64] | None = None
    """The blocks of request i are `block_ids[block_ends[i] : block_ends[i + 1]]`."""
    block_tokens: int = 512

    def blocks(self, row: int) -> list[int]:
        """Block ids of one request; empty if the trace has no blocks."""
        if self.block_ids is None or self.block_ends is None:
            return []
        return list(self.block_ids[self.block_ends[row] : self.block_ends[row + 1]].tolist())


def user_spans(load: Load) -> list[list[tuple[float, float]]]:
    """Active times of each user of a closed loop: (start, end) in seconds, in order; end is inf without a limit.

    On a ramp, a user starts, or the user who started last ends, when the level passes a whole number. ValueError if
    requests have due times.

    >>> user_spans(Load(shape="ramp", from_users=1, to_users=3, over_s=10))
    [[(0.0, inf)], [(5.0, inf)], [(10.0, inf)]]
    """
    changes = [(each.begin_s, each.users or 0) for each in stages(load)] or [(0.0, load.users or 0)]
    if load.from_users is not None and load.to_users is not None and load.over_s is not None:
        n, sign = abs(load.to_users - load.from_users), 1 if load.to_users > load.from_users else -1
        changes = [(load.over_s * i / max(n, 1), load.from_users + sign * i) for i in range(n + 1)]
    if not load.closed:
        raise ValueError(f"a load of shape {load.shape} has no users")
    spans: list[list[tuple[float, float]]] = [[] for _ in range(max(level for _, level in changes))]
    active = 0
    for at_s, level in [*(change for change in changes if change[0] < load.end_s), (load.end_s, 0)]:
        for user in range(active, level):
            spans[user].append((at_s, math.inf))
        for user in range(level, active):
            spans[user][-1] = spans[user][-1][0], at_s
        active = level
    return spans


def stages(load: Load) -> tuple[Stage, ...]:
    """The steps of a load, up to its end.

    >>> [each.text for each in stages(Load(shape="steps", steps=[{"users": 4, "duration_s": 9}], duration_s=5))]
    ['4 users']
    """
    starts, steps = _starts(load.steps or ()), load.steps or ()
    return tuple(
        Stage(begin, min(end, load.end_s), step.users, step.rate_per_s)
        for (begin, end), step in zip(itertools.pairwise(starts), steps, strict=True)
        if begin < load.end_s
    )


def in_words(value: Any) -> str:
    """A value of a workload as text.

    >>> in_words([{"users": 2, "duration_s": 9.0}, {"users": 0, "rate_per_s": None, "duration_s": "1 min"}])
    '2 for 9 s, 0 for 1 min'
    """
    if isinstance(value, list) and value and all(isinstance(each, dict) and "duration_s" in each for each in value):
        lengths = [each["duration_s"] for each in value]
        levels = [each.get("rate_per_s") if each.get("users") is None else each["users"] for each in value]
        steps = zip(levels, (x if isinstance(x, str) else f"{x:g} s" for x in lengths), strict=True)
        return ", ".join(f"{in_words(level)} for {length}" for level, length in steps)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _starts(steps: Sequence[Step]) -> list[float]:
    """Start of each step, and end of the last one, in seconds."""
    return [0.0, *itertools.accumulate(step.duration_s for step in steps)]


def due_times(load: Load, count: int | None, seed: int, trace: Trace | None = None) -> Iterator[float]:
    """Due times in seconds since the start of the load: at most `count`, all before `load.end_s`.

    offline: all 0. constant: i / rate. poisson and gamma: the gaps (the first from 0) are gamma distributed with mean
    1 / rate and shape k = burstiness, so CV^2 = 1/k (poisson: k = 1), as in `vllm bench serve`; unlike there, the gaps
    are not rescaled to the exact mean rate. trace: arrivals of the trace, from 0, times `time_scale`, once.
    ramp and steps: arrivals at rate 1, mapped by the inverse of the cumulative rate L(t), which gives Poisson arrivals
    at the varying rate (time rescaling: Cinlar 1975); with constant arrivals, L(t) = 0, 1, 2...
    ValueError for a closed loop, which has no due times; HarnessError for a trace of more than a year.

    >>> list(due_times(Load(shape="constant", rate_per_s=4, duration_s=0.6), None, seed=0))
    [0.0, 0.25, 0.5]
    """
    if load.closed:
        raise ValueError(f"a load of users ({load.shape}) has no due times")
    if trace is not None and np.ptp(trace.arrival_s) * (load.time_scale or 1.0) > YEAR_S:
        raise HarnessError("the arrivals of the trace take more than a year", "give a smaller load.time_scale")
    blocks = _blocks(load, seed, trace)
    times = itertools.islice(itertools.chain.from_iterable(block.tolist() for block in blocks), count)
    end_s = load.end_s
    return itertools.takewhile(lambda due: due < end_s, times)


def expected_s(load: Load, count: int) -> float:
    """Expected due time of the last of `count` requests in seconds; 0 if the load has no rate that tells it.

    >>> expected_s(Load(shape="ramp", from_rate_per_s=0, to_rate_per_s=2, over_s=10), 30)
    20.0
    """
    if load.from_rate_per_s is not None:
        last_s = float(_rescaled(load, np.array([count]))[0])
        return last_s if math.isfinite(last_s) else 0.0
    return count / (load.rate_per_s or math.inf)


def _blocks(load: Load, seed: int, trace: Trace | None) -> Iterator[NDArray[np.float64]]:
    """Blocks of due times, without limit of count or time."""
    if load.shape == "trace":
        if trace is None:
            raise ValueError("the load's trace was not given")
        yield (trace.arrival_s - trace.arrival_s[0]) * (1.0 if load.time_scale is None else load.time_scale)
        return
    k = 1.0 if load.burstiness is None else load.burstiness
    rate = 1.0 if load.rate_per_s is None else load.rate_per_s
    rng, last = np.random.default_rng([seed, ARRIVALS]), 0.0
    for first in itertools.count(0, _BLOCK):
        if load.shape == "offline":
            due = np.zeros(_BLOCK)
        elif "constant" in (load.shape, load.arrivals):
            due = np.arange(first, first + _BLOCK) / rate
        else:
            gaps = rng.standard_gamma(k, _BLOCK) / k / rate
            gaps[0] += last
            due = np.cumsum(gaps)
            last = due[-1]
        yield _rescaled(load, due) if load.shape in ("ramp", "steps") else due


def _rescaled(load: Load, expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of the cumulative arrival rate of a ramp or steps; inf past its total."""
    if load.steps is not None:
        starts, rates = np.array(_starts(load.steps)), np.array([*(step.rate_per_s or 0.0 for step in load.steps), 0.0])
        slopes = np.zeros(len(starts))
    else:
        over_s = load.over_s or 0.0
        starts, rates = np.array([0.0, over_s]), np.array([load.from_rate_per_s or 0.0, load.to_rate_per_s or 0.0])
        slopes = np.array([(rates[1] - rates[0]) / over_s, 0.0])
    spans = np.diff(starts)
    sums = np.concatenate([[0.0], np.cumsum(spans * (rates[:-1] + slopes[:-1] * spans / 2))])
    piece = np.searchsorted(sums, expected, side="right") - 1
    rest, rate = expected - sums[piece], rates[piece]
    # Solves rest = rate t + slope t^2 / 2 for t, in the form that also holds for slope 0.
    root = np.sqrt(np.maximum(rate**2 + 2 * slopes[piece] * rest, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return starts[piece] + np.where(rest > 0, 2 * rest / (rate + root), 0.0)
