"""Scenarios: sourced assumptions that convert measured tokens to money and energy."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from harness.config import AS_WRITTEN, Section, Values, checked, low_high, overridden, read_map, refused
from harness.cost.draws import PARAMETERS, Distribution, distribution, scaled, support
from harness.cost.gpus import read_rows
from harness.errors import HarnessError
from harness.files import data_rows

InputStatus = Literal["measured", "reported", "assumed"]


@dataclass(frozen=True, slots=True)
class Key:
    """A row of scenario_inputs.csv: an input, its canonical unit, allowed range and meaning."""

    name: str
    unit: str
    low: float
    high: float
    meaning: str


KEYS: Mapping[str, Key] = {key.name: key for key in read_rows("scenario_inputs.csv", Key)}
"""All inputs that a scenario may hold."""
PRICE = "price.usd_per_hour"
MEASURED = "measured"
"""In correlations: device-seconds and joules per token or query, as measured; a higher value costs more."""
ALWAYS = ("serving.utilisation", "serving.overhead", "query.requests")
OWNED = (*(key for key in KEYS if key.startswith("owned.")), "energy.pue")
POSITIVE = (PRICE, "serving.utilisation", "owned.capital_usd", "owned.life_years")
"""Inputs that must be above 0."""


@dataclass(frozen=True, slots=True)
class Input:
    """One assumption: a distribution in the unit of its key, with its source."""

    name: str
    distribution: Distribution
    unit: str
    source: str
    date: str
    status: InputStatus
    about: str | None = None
    """The GPU of which this was said: `bill.priced` takes it to another in proportion to their power limits."""


Loose = Annotated[str, BeforeValidator(str, json_schema_input_type=str | float)]
"""Text that YAML may read as a number, such as 1 and 2026."""


class InputFile(Section, strict=True):
    value: float | None = None
    lognormal: dict[str, float] | None = None
    uniform: dict[str, float] | None = None
    triangular: dict[str, float] | None = None
    beta: dict[str, float] | None = None
    empirical: list[float] | None = None
    unit: Loose
    source: str
    date: Loose
    status: InputStatus
    about: str | None = None


class ScenarioFile(Section):
    name: str
    description: str
    tier: Literal["machine", "on-demand", "reserved", "spot", "owned"]
    per: Literal["gpu", "vcpu"] = "gpu"
    gpu: str | None = None
    inputs: dict[Literal[*KEYS], InputFile]  # type: ignore[valid-type]
    correlations: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """A set of assumptions; in its file, `per` is the unit of a price and `gpu` the only GPU that it is about."""

    file: ScenarioFile
    origin: str
    inputs: Mapping[str, Input]
    no_price: str | None = None
    """Why a needed price is missing; set by `bill.priced`."""


_content = lru_cache(maxsize=32)(read_map)  # reading YAML is slow, and a scenario is read once per run


def parse_scenario(text: str, origin: str, overrides: Values = AS_WRITTEN) -> Scenario:
    """The scenario in `text` (YAML); `origin` is its file for error messages.

    `overrides` maps keys to a number, LOW:HIGH (p5 and p95 of a lognormal), a distribution
    (`{uniform: {low: 0.3, high: 0.6}}`) or a whole input. Defaults of an override: the unit of its key, source `--set`,
    status assumed. HarnessError with file, key, value and expected form.
    """
    data, places = _content(text, origin, "a scenario, whose form docs/economics.md describes")
    if isinstance(data.get("inputs"), dict):
        data = {**data, "inputs": data["inputs"] | {key: _given(key, value) for key, value in overrides.items()}}
    places = overridden(places, *(f"inputs.{key}" for key in overrides))
    file = checked(ScenarioFile, data, origin, places)
    inputs = {key: _input(key, given, places.get(f"inputs.{key}", origin)) for key, given in file.inputs.items()}
    needed = {"machine": (PRICE,), "owned": () if PRICE in inputs else OWNED}.get(file.tier, ())
    if missing := [key for key in (*ALWAYS, *needed) if key not in inputs]:
        key = KEYS[missing[0]]
        raise HarnessError(f"{origin}: inputs.{key.name} is missing", f"add it: {key.meaning}, in {key.unit}")
    for a, b, rho in file.correlations:
        if not {a, b} <= {*inputs, MEASURED} or a == b or not -1 < rho < 1:
            fix = f"name two inputs of this scenario, or one and '{MEASURED}', and a rho between -1 and 1"
            raise HarnessError(f"{origin}: correlations: [{a}, {b}, {rho}]", fix)
    return Scenario(file, origin, inputs)


def _given(key: str, value: Any) -> dict[str, Any]:
    """A value of `--set` in the form of a scenario file's input."""
    if not isinstance(value, dict):
        try:
            low, high = low_high(value)
            if "%" in str(value) and key in KEYS and KEYS[key].unit != "1":
                raise ValueError("a percentage of no share")
        except ValueError:
            raise refused("--set", key, value, "a number, LOW:HIGH, a distribution or a whole input") from None
        value = {"value": low} if low == high else {"lognormal": {"p5": low, "p95": high}}
    unit = KEYS[key].unit if key in KEYS else ""
    return {"unit": unit, "source": "--set", "date": "given", "status": "assumed", **value}


def _input(key: str, given: InputFile, where: str) -> Input:
    known, where = KEYS[key], f"{where}: inputs.{key}"
    raws = {kind: raw for kind in PARAMETERS if (raw := getattr(given, kind)) is not None}
    if len(raws) != 1:
        raise HarnessError(f"{where}: has {list(raws) or 'no value'}", f"give exactly one of {', '.join(PARAMETERS)}")
    ((kind, raw),) = raws.items()
    names = PARAMETERS[kind]
    if isinstance(raw, dict) and set(raw) != set(names):
        form = ", ".join(f"{name}: …" for name in names)
        raise HarnessError(f"{where}: {kind} has {sorted(raw)}", f"give {kind}: {{{form}}}")
    numbers = [raw[name] for name in names] if isinstance(raw, dict) else [raw] if kind == "value" else raw
    try:
        made = scaled(distribution(kind, *numbers), factor(given.unit, known.unit))
    except ValueError as bad:
        raise HarnessError(f"{where}: {bad}", f"expected {known.meaning}, in {known.unit}") from None
    low, high = support(made)
    if low < known.low or high > known.high or (key in POSITIVE and low <= 0 and kind != "lognormal"):
        above = "above 0" if key in POSITIVE else f"{known.low:g} or more"
        limits = above if math.isinf(known.high) else f"{above}, at most {known.high:g}"
        if math.isinf(high):
            limits += "; a lognormal has no upper limit: use beta, triangular or uniform"
        raise HarnessError(f"{where} is {raw} {given.unit}".removesuffix(" 1"), f"expected {known.meaning}: {limits}")
    return Input(key, made, known.unit, given.source, given.date, given.status, given.about)


TIERS = {"on demand": "on-demand", "3-year": "reserved", "spot": "spot"}
"""Tier in the table of prices -> tier of a scenario."""


Prices = Mapping[tuple[str, str], Input]
"""(Tier, GPU) -> price of a GPU-hour."""


def rental_prices() -> Prices:
    """The prices in prices/gpu_rental_ranges.csv.

    The ends of a range are the 5th and 95th percentile of a lognormal.
    """
    prices = {}
    for r in data_rows("prices/gpu_rental_ranges.csv"):
        if tier := TIERS.get(r["tier"]):
            made = distribution("lognormal", float(r["usd_per_gpu_hour_low"]), float(r["usd_per_gpu_hour_high"]))
            source = f"{r['source']} ({r['gpu']}, {tier}; seen {r['seen_low']} to {r['seen_high']})"
            prices[tier, r["gpu"]] = Input(PRICE, made, "USD/hour", source, r["asof"], "reported")
    return prices


Words = Mapping[str, tuple[float, tuple[str, ...]]]
"""Word -> (factor, base words): the word is `factor` times the product of the base words."""
WORDS: Words = {row["word"]: (float(row["factor"]), tuple(row["base"].split())) for row in data_rows("units.csv")}
"""The words of `factor`. A year has 365.25 days, a month is a twelfth of a year."""


def reduced(text: str, words: Words) -> tuple[float, dict[str, int]]:
    """A unit as a factor and the powers of base words; `-` multiplies, everything after the first `/` divides.

    KeyError for a word that is not among `words`.

    >>> reduced("USD/kWh", WORDS)
    (0.001, {'USD': 1, 'W': -1, 'hour': -1})
    """
    number, powers = 1.0, dict[str, int]()
    for sign, part in zip((1, -1), text.split("/", 1), strict=False):
        for word in re.split("[-/]", part):
            scale, bases = words[word]
            number *= scale**sign
            for base in bases:
                powers[base] = powers.get(base, 0) + sign
    return number, {base: power for base, power in powers.items() if power}


def factor(given: str, wanted: str) -> float:
    """The factor that converts a number from unit `given` to unit `wanted`; ValueError if they do not match.

    >>> factor("percent", "1"), factor("USD/day", "USD/hour") == 1 / 24
    (0.01, True)
    """
    to, powers = reduced(wanted, WORDS)
    try:
        number, found = reduced(given, WORDS)
    except KeyError:
        raise ValueError(f"unknown unit '{given}'") from None
    if found != powers:
        raise ValueError(f"unit '{given}' is not a unit of {wanted}")
    return number / to
