"""Distributions of lengths and times, as users write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from harness.config import Section
from harness.workload.arrivals import MOST, WHOLE, Count, Seconds, check_keys

LENGTHS: Mapping[str, str] = {
    "fixed": "tokens",
    "uniform": "min max",
    "normal": "mean std min? max?",
    "lognormal": "median p95 min? max?",
}
TIMES: Mapping[str, str] = {**LENGTHS, "fixed": "seconds", "exponential": "mean max?"}
"""Distribution -> its keys; `?` marks optional keys."""
Tokens = Annotated[float, Field(ge=1, le=MOST, allow_inf_nan=False, strict=True)]
_SECONDS = "seconds above 0: 0.2 or '200 ms'"


class Lengths(Section):
    """Distribution of the number of tokens of prompts or answers; `LENGTHS` lists the keys of each distribution."""

    distribution: Literal["fixed", "uniform", "normal", "lognormal"]
    tokens: Count | None = Field(None, description=f"tokens of every request, {WHOLE}")
    mean: Tokens | None = Field(None, description="mean tokens, from 1 to 10 million")
    std: Tokens | None = Field(None, description="standard deviation in tokens, from 1 to 10 million")
    median: Tokens | None = Field(None, description="median tokens, from 1 to 10 million")
    p95: Tokens | None = Field(None, description="95th percentile of the tokens, above the median")
    min: Count | None = Field(None, description=f"minimum tokens, {WHOLE}")
    max: Count | None = Field(None, description=f"maximum tokens, {WHOLE}, not below min")

    @model_validator(mode="after")
    def _keys_fit(self) -> Lengths:
        _check_spread(self, LENGTHS)
        return self

    def shortest(self) -> int:
        """Lower limit of the length."""
        return self.tokens or self.min or 1

    def at(self, u: float) -> int:
        """The quantile at 0 < u < 1, rounded and limited to `min` (1 if not given) and `max`.

        >>> Lengths(distribution="lognormal", median=100, p95=400).at(0.95)
        400
        """
        if self.tokens is not None:
            return self.tokens
        least = self.shortest()
        if self.distribution == "uniform" and self.max is not None:
            return least + int(u * (self.max - least + 1))
        return max(least, round(min(_quantile(self, u), self.max or MOST)))


class Times(Section):
    """Distribution of a duration; `TIMES` lists the keys of each distribution."""

    distribution: Literal["fixed", "uniform", "normal", "lognormal", "exponential"]
    seconds: Seconds | None = Field(None, description=f"the same for all: {_SECONDS}")
    mean: Seconds | None = Field(None, description=f"mean, {_SECONDS}")
    std: Seconds | None = Field(None, description=f"standard deviation, {_SECONDS}")
    median: Seconds | None = Field(None, description=f"median, {_SECONDS}")
    p95: Seconds | None = Field(None, description=f"95th percentile, above the median, {_SECONDS}")
    min: Seconds | None = Field(None, description=f"minimum, {_SECONDS}")
    max: Seconds | None = Field(None, description=f"maximum, not below min, {_SECONDS}")

    @model_validator(mode="after")
    def _keys_fit(self) -> Times:
        _check_spread(self, TIMES)
        return self

    def at(self, u: float) -> float:
        """The quantile at 0 < u < 1 in seconds, limited to `min` (0 if not given) and `max`.

        >>> Times(distribution="uniform", min=2, max=4).at(0.75)
        3.5
        """
        if self.seconds is not None:
            return self.seconds
        least, most = self.min or 0.0, self.max or math.inf
        time_s = least + u * (most - least) if self.distribution == "uniform" else _quantile(self, u)
        return max(least, min(time_s, most))


def _quantile(of: Lengths | Times, u: float) -> float:
    """normal: mean + std z(u). lognormal: median exp(z(u) ln(p95 / median) / z(0.95)). exponential: -mean ln(1 - u).

    z is the standard normal quantile.
    """
    z = NormalDist().inv_cdf
    if of.median is not None and of.p95 is not None:
        return of.median * math.exp(z(u) * math.log(of.p95 / of.median) / z(0.95))
    assert of.mean is not None
    return of.mean + of.std * z(u) if of.std is not None else -of.mean * math.log1p(-u)


def _check_spread(of: Lengths | Times, takes: Mapping[str, str]) -> None:
    check_keys(dict(of), of.distribution, takes)
    if of.max is not None and of.min is not None and of.max < of.min:
        raise PydanticCustomError("order", "is below min", {"key": "max"})
    if of.p95 is not None and of.median is not None and of.p95 <= of.median:
        raise PydanticCustomError("order", "is not above the median", {"key": "p95"})


def _short_form(key: str, kinds: Any, whole: type) -> BeforeValidator:
    """`64` is short for `{distribution: fixed, tokens: 64}`, and `2 s` for `{distribution: fixed, seconds: 2 s}`."""

    def read(value: object) -> object:
        return {"distribution": "fixed", key: value} if isinstance(value, kinds) else value

    return BeforeValidator(read, json_schema_input_type=whole | kinds | None)


LENGTHS_FORM = "a whole number of tokens, or {distribution: uniform, min: 16, max: 64}, or normal, or lognormal"
TIMES_FORM = "seconds, '2 s', or {distribution: exponential, mean: 5 s}, or uniform, normal, lognormal"
LengthsOrInt = Annotated[Lengths | None, _short_form("tokens", int | float, Lengths)]
TimesOrSeconds = Annotated[Times | None, _short_form("seconds", int | float | str, Times)]
