"""Load shapes: when each request is due. Pure values; the loop that waits for them is elsewhere."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

ARRIVALS = 3
"""Second word of the seed of arrival times, so that they share no random numbers with the requests."""


def _quantity(units: Mapping[str, float]) -> BeforeValidator:
    """Reads a number above 0, alone or with one of `units` (unit -> size in SI)."""

    def read(value: object) -> float:
        match = re.fullmatch(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(.*)", str(value).strip())
        try:
            number = float(match[1]) * {"": 1.0, **units}[match[2]] if match else math.nan
        except (KeyError, ValueError):
            number = math.nan
        if not 0 < number < math.inf:
            message = "should be a number above 0, alone or with one of the units {units}"
            raise PydanticCustomError("quantity", message, {"units": ", ".join(units)})
        return number

    return BeforeValidator(read)


_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
Seconds = Annotated[float, _quantity(_UNITS_S)]
PerSecond = Annotated[float, _quantity({f"/{unit}": 1 / size for unit, size in _UNITS_S.items()})]
MOST = 10_000_000
"""Of requests in a run, and of tokens in a request: what is above is a slip, and would only use up the memory."""
WHOLE = "a whole number from 1 to 10 million"
Count = Annotated[int, Field(gt=0, le=MOST, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]

TAKES: Mapping[str, str] = {
    "closed": "users duration_s?",
    "offline": "",
    "constant": "rate_per_s duration_s? max_in_flight?",
    "poisson": "rate_per_s duration_s? max_in_flight?",
    "gamma": "rate_per_s burstiness duration_s? max_in_flight?",
    "trace": "trace time_scale? duration_s? max_in_flight?",
}
"""Shape -> the keys that go with it; `?` marks those that may be left out."""


def check_keys(given: Mapping[str, object], chosen: str, takes: Mapping[str, str]) -> None:
    """Refuse a key that does not go with the choice, or the lack of one that must; None counts as absent.

    `takes` is a table like `TAKES`. The error's context carries the key, for whoever words the message.
    """
    keys = takes[chosen].split()
    for key in keys:
        if not key.endswith("?") and given[key] is None:
            raise PydanticCustomError("lacks", "is missing; {chosen} needs it", {"key": key, "chosen": chosen})
    for key in sorted({key.rstrip("?") for key in " ".join(takes.values()).split()}):
        if given[key] is not None and key not in keys and f"{key}?" not in keys:
            raise PydanticCustomError("stray", "does not go with {chosen}", {"key": key, "chosen": chosen})


class Load(BaseModel):
    """When requests are sent; `TAKES` says which keys go with which shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: Literal["closed", "offline", "constant", "poisson", "gamma", "trace"] = Field(
        description="one of closed, offline, constant, poisson, gamma, trace"
    )
    users: Annotated[int, Field(gt=0, le=100_000, strict=True)] | None = Field(
        None, description="requests in flight at any time, a whole number from 1 to 100,000"
    )
    rate_per_s: PerSecond | None = Field(None, description="requests per second above 0: 3, '3 /s' or '180 /min'")
    burstiness: Positive | None = Field(None, description="a number above 0: 1 is Poisson, less is burstier")
    trace: str | None = Field(None, description="a shipped trace's name or a CSV file, for its arrival times")
    time_scale: Positive | None = Field(None, description="a factor above 0 on the trace's times: 0.5 is twice as fast")
    duration_s: Seconds | None = Field(
        None, description="seconds above 0 after which no request is sent: 60 or '1 min'"
    )
    max_in_flight: Count | None = Field(None, description=f"the most requests in flight, {WHOLE}")

    @model_validator(mode="after")
    def _keys_fit(self) -> Load:
        check_keys(dict(self), self.shape, TAKES)
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Recorded traffic, one element a request in order of arrival."""

    name: str
    arrival_s: NDArray[np.float64]
    """Seconds, never decreasing."""
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    source: str
    """Where it comes from, with its licence where it has one."""


def due_s(load: Load, count: int | None, seed: int, trace: Trace | None = None) -> Iterator[float]:
    """When each request is due, in seconds since the load began: `count` times at most, all before `load.duration_s`.

    offline: 0 for all. constant: i / rate. poisson and gamma: the gaps, the first one from 0, are gamma distributed
    with mean 1 / rate and shape k = burstiness, so that CV^2 = 1/k (poisson: k = 1), as in `vllm bench serve`; unlike
    there, drawn gaps are not rescaled to hit the mean rate. trace: its arrivals from 0, times `time_scale`, once.
    A closed loop has no due times: ValueError.

    >>> list(due_s(Load(shape="constant", rate_per_s=4, duration_s=0.6), None, seed=0))
    [0.0, 0.25, 0.5]
    """
    times = itertools.islice(_endless(load, seed, trace), count)
    if load.duration_s is None:
        return times
    limit = load.duration_s
    return itertools.takewhile(lambda due: due < limit, times)


def _endless(load: Load, seed: int, trace: Trace | None) -> Iterator[float]:
    if load.shape == "offline":
        return itertools.repeat(0.0)
    if load.shape == "trace" and trace is not None:
        scale = 1.0 if load.time_scale is None else load.time_scale
        return iter(((trace.arrival_s - trace.arrival_s[0]) * scale).tolist())
    if load.rate_per_s is None:
        raise ValueError(f"a load of shape {load.shape} has no due times, or its trace was not given")
    rate = load.rate_per_s
    if load.shape == "constant":
        return (i / rate for i in itertools.count())
    k = 1.0 if load.burstiness is None else load.burstiness
    rng = np.random.default_rng([seed, ARRIVALS])
    return itertools.accumulate(rng.standard_gamma(k) / k / rate for _ in itertools.count())
