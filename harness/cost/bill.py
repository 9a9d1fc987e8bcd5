"""Cost of a run's tokens under a scenario, and how much of its uncertainty is measured or assumed."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from operator import mul
from typing import Any

import numpy as np

from harness.config import near
from harness.cost.draws import DEFAULT_DRAWS, Z95, Distribution, Draws, distribution, draw, quantile, scaled
from harness.cost.gpus import Gpu, find_gpu
from harness.cost.scenario import MEASURED, OWNED, PRICE, Input, Prices, Scenario
from harness.errors import HarnessError
from harness.files import install
from harness.model import Device, Figure, Status, Summary

HOURS_PER_YEAR = 8766
HOURS_PER_MONTH = 730.5

Factor = tuple[str, Draws]
"""Status and draws of one factor of a cost; a cost is the product of its factors."""
Row = tuple[str, str, Status, Sequence[Factor], float, str | None]
"""A cost: name, unit, status, factors, constant factor, and the reason if there is no value."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Cost figures, the sources of their uncertainty, and all assumptions."""

    scenario: str
    figures: tuple[Figure, ...]
    shares: Mapping[str, Mapping[str, float]]
    """Figure -> status of factors -> share of Var(ln cost); empty if nothing varies, or if the cost can be 0."""
    assumptions: tuple[Input, ...]
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Figure:
        return next(figure for figure in self.figures if figure.name == name)


TWO_DENOMINATORS = (
    "USD per million output tokens and USD per million total tokens divide the same bill by two different counts: "
    "never add them"
)
DEFAULT_SCENARIO = {"gpu": "on-demand", "cpu": "cpu-smoke", "none": "cpu-smoke"}
"""Kind of device -> the scenario for a run without a named scenario."""


def annuity(rate: np.ndarray | float, years: np.ndarray | float) -> Draws:
    """Yearly payment per USD of a loan: rate / (1 - (1 + rate)^-years), and 1 / years at rate 0.

    >>> round(float(annuity(0.10, 4)), 4), float(annuity(0.0, 4))
    (0.3155, 0.25)
    """
    rate, years = np.asarray(rate, float), np.asarray(years, float)
    growing = np.where(rate > 0, rate, 1.0)
    return np.asarray(np.where(rate > 0, growing / -np.expm1(-years * np.log1p(growing)), 1.0 / years))


def owned_usd_per_hour(x: Mapping[str, Draws]) -> Draws:
    """USD per hour of an owned GPU, from scenario key -> value."""
    capital = x["owned.capital_usd"] * annuity(x["owned.cost_of_capital"], x["owned.life_years"]) / HOURS_PER_YEAR
    electricity = x["owned.power_kw"] * x["energy.pue"] * x["owned.usd_per_kwh"]
    hosting = x["owned.power_kw"] * x["owned.hosting_usd_per_kw_month"] / HOURS_PER_MONTH
    return capital + electricity + hosting + x["owned.staff_usd_per_hour"]


def priced(scenario: Scenario, device: Device, gpus: tuple[Gpu, ...], prices: Prices) -> Scenario:
    """The scenario with the price of this device, or with `no_price`, the reason for a missing price.

    The scenario's own `price.usd_per_hour` comes first, then the row of `prices` for this GPU and the scenario's tier.
    An owned scenario is returned unchanged: its price is computed from the `owned.` inputs. A simulated run has no
    price under any scenario. HarnessError if the scenario prices another kind of device, or another GPU.
    """
    gpu = find_gpu(device.name, gpus) if device.kind == "gpu" and device.name is not None else None
    if device.kind == "none":
        return replace(scenario, no_price="the engine is simulated, and no machine is paid for")
    other_kind = scenario.file.per != {"gpu": "gpu", "cpu": "vcpu"}[device.kind]
    if other_kind or (device.kind == "gpu" and scenario.file.gpu not in (None, gpu and gpu.name)):
        of = f"prices a {scenario.file.per}" if other_kind else f"is about {scenario.file.gpu}"
        what = f"scenario '{scenario.file.name}' {of}, but the device is {device.name or device.kind}"
        raise HarnessError(what, f"--scenario {DEFAULT_SCENARIO[device.kind]}, or a scenario of your own")
    if gpu is not None:
        inputs = {key: _taken_to(gpu, given, gpus, scenario.origin) for key, given in scenario.inputs.items()}
        scenario = replace(scenario, inputs=inputs)
    if PRICE in scenario.inputs or scenario.file.tier == "owned":
        return scenario
    known = prices.get((scenario.file.tier, gpu.price_gpu or gpu.name)) if gpu else None
    if known is not None:
        return replace(scenario, inputs={**scenario.inputs, PRICE: known})
    named = gpu.name if gpu else device.name or "this device"
    no_price = f"no {scenario.file.tier} price of {named} in the tables; give one: harness cost --set {PRICE}=…"
    return replace(scenario, no_price=no_price)


def _taken_to(gpu: Gpu, given: Input, gpus: tuple[Gpu, ...], origin: str) -> Input:
    """An input about another GPU in proportion to the power limits; any other as it is."""
    if given.about is None or given.about == gpu.name:
        return given
    if (known := find_gpu(given.about, gpus)) is None:
        names = ", ".join(each.name for each in gpus)
        raise HarnessError(f"{origin}: inputs.{given.name}: about '{given.about}', which is no GPU", f"one of {names}")
    source = f"{given.source}; x {gpu.tdp_w:g} W / {known.tdp_w:g} W, the power limits"
    taken = scaled(given.distribution, gpu.tdp_w / known.tdp_w)
    return replace(given, distribution=taken, source=source, about=gpu.name)


def cost_of_run(summary: Summary, device: Device, scenario: Scenario, n: int = DEFAULT_DRAWS) -> Costs:
    """USD per output token, total token and query of a run, under a scenario from `priced`; Wh if energy was measured.

    docs/economics.md has the formulas. `value` is the median, `low` and `high` are the 5th and 95th percentile; use
    `.mean` for a budget. The 95% interval of a measured rate enters as a lognormal. A simulated rate gives simulated
    costs; a missing rate gives n/a with the reason.
    """
    x = draw_inputs(scenario, n)
    bill = bill_factors(scenario, x)
    rows: list[Row] = [("usd_per_hour", "USD/hour", _status(device), bill[:1], device.count, scenario.no_price)]
    requests = scenario.inputs["query.requests"].status, x["query.requests"]
    notes, bare = [TWO_DENOMINATORS], list[str]()
    for name, unit, per, rate_name, more in (
        ("usd_per_million_output_tokens", "USD/1e6 token", 1e6, "output_tokens_per_s", ()),
        ("usd_per_million_total_tokens", "USD/1e6 token", 1e6, "total_tokens_per_s", ()),
        ("usd_per_query", "USD/query", 1.0, "requests_per_s", (requests,)),
    ):
        rate = measured(summary, rate_name)
        known = [] if rate.value is None else [(rate.status, 1 / quantile(rate_distribution(rate), 1 - x[MEASURED]))]
        reason = scenario.no_price or (rate.reason if rate.value is None else None)
        bare += [name] * (rate.value is not None and rate.low is None and reason is None)
        rows.append((name, unit, _status(device, rate), [*bill, *known, *more], device.count * (per / 3600), reason))
    if bare:
        notes.append(f"{', '.join(bare)}: the run's rate has no interval; the cost's covers only the assumptions")
    if scenario.file.per == "vcpu":
        notes.append("the cost of a small model on a CPU says nothing about the cost of a provider's fleet")
    found = costed(scenario, rows, notes)
    return replace(found, figures=(*found.figures, *_energy_of_run(summary, device, scenario, x)))


def draw_inputs(scenario: Scenario, n: int = DEFAULT_DRAWS) -> dict[str, Draws]:
    """Joint draws of all inputs of a scenario, and under `MEASURED` uniform draws for the quantiles of measured values.

    One joint set, because two shifted lattices are not independent of each other.
    HarnessError if the scenario's correlations contradict each other.
    """
    inputs = {key: made.distribution for key, made in scenario.inputs.items()}
    try:
        return draw(inputs | {MEASURED: distribution("uniform", 0, 1)}, n, correlations=scenario.file.correlations)
    except ValueError as bad:
        raise HarnessError(f"{scenario.origin}: {bad}", "weaken or remove one of the correlations") from None


def bill_factors(scenario: Scenario, x: Mapping[str, Draws]) -> list[Factor]:
    """Factors of USD per device-hour of serving: price, serving.overhead and 1 / serving.utilisation.

    An empty list if the scenario has no price.
    """
    if scenario.no_price is not None:
        return []
    given = scenario.inputs
    price = (given[PRICE].status, x[PRICE]) if PRICE in given else ("assumed", owned_usd_per_hour(x))
    overhead = given["serving.overhead"].status, x["serving.overhead"]
    return [price, overhead, (given["serving.utilisation"].status, 1 / x["serving.utilisation"])]


def costed(scenario: Scenario, rows: Iterable[Row], notes: Sequence[str]) -> Costs:
    """The costs of `rows`: for each, the product of its factors as figures (see `interval_figures`).

    A factor's share is Cov(ln factor, ln cost) / Var(ln cost): exact for a product, with sum 1, also if factors are
    correlated.
    """
    figures: list[Figure] = []
    shares = {}
    for name, unit, status, factors, scale, reason in rows:
        if reason is not None:
            figures.append(Figure(name, None, unit, status, reason=reason))
            continue
        cost = np.asarray(scale * np.prod([values for _, values in factors], axis=0))
        figures += interval_figures(name, unit, status, cost)
        shares[name] = part = dict[str, float]()
        centred = np.log(cost) - np.log(cost).mean() if cost.min() > 0 else np.zeros(1)
        for of, values in factors if (variance := float(np.mean(centred**2))) > 1e-20 else ():
            part[of] = part.get(of, 0.0) + float(np.mean(np.log(values) * centred)) / variance
    return Costs(scenario.file.name, tuple(figures), shares, tuple(scenario.inputs.values()), tuple(notes))


def interval_figures(name: str, unit: str, status: Status, cost: Draws) -> list[Figure]:
    """Median with 5th and 95th percentile, and the mean; only the median if the draws do not vary."""
    low, middle, high = (float(q) for q in np.quantile(cost, (0.05, 0.5, 0.95)))
    median = Figure(name, middle, unit, status, interval="p5-p95")
    if high - low <= 1e-12 * abs(middle):
        return [median]
    return [replace(median, low=low, high=high), Figure(f"{name}.mean", float(cost.mean()), unit, status)]


def tornado(scenario: Scenario, rate: Figure) -> dict[str, tuple[Status, float]]:
    """Input -> status, and share of the variance of ln cost, largest first, for a scenario from `priced`.

    The cost is USD per device-second / measured `rate`. A share is the squared correlation of ln input with ln cost
    over the draws; docs/economics.md says when that is exact. Unlike `Costs.shares`, an owned price is split into its
    inputs. Empty if there is no price or no rate, or if nothing is uncertain.
    """
    if scenario.no_price or rate.value is None:
        return {}
    x, inputs = draw_inputs(scenario), scenario.inputs
    rates = quantile(rate_distribution(rate), 1 - x[MEASURED])
    cost = np.prod([values for _, values in bill_factors(scenario, x)], axis=0) / rates
    keys = [*((PRICE,) if PRICE in inputs else OWNED), "serving.overhead", "serving.utilisation"]
    shares: dict[str, tuple[Status, float]] = {key: (inputs[key].status, _explained(x[key], cost)) for key in keys}
    shares[rate.name] = rate.status, _explained(rates, cost)
    if not any(share for _, share in shares.values()):
        return {}
    return dict(sorted(shares.items(), key=lambda item: -item[1][1]))


def _explained(values: Draws, cost: Draws) -> float:
    """Squared correlation of ln values (of the values, if one is 0) with ln cost; 0 if the values do not vary."""
    if np.ptp(values) == 0:
        return 0.0
    log = np.log(values) if values.min() > 0 else values
    return float(np.corrcoef(log, np.log(cost))[0, 1] ** 2)


def watt_hours(x: Mapping[str, Draws], joules: Draws | float, device_s: Draws | float) -> dict[str, Draws]:
    """Wh by part for `joules` of accelerator energy and `device_s` device-seconds; the parts add up to the total.

    Total: PUE/3600 * [(1 + host) * J + P_idle * device_s * (1/U - 1)]; docs/economics.md explains the terms.
    """
    stack = {
        "accelerator": np.asarray(joules / 3600 * np.ones_like(x["energy.pue"])),
        "host": x["energy.host_share"] * joules / 3600,
        "idle": x["energy.idle_w"] * device_s * (1 / x["serving.utilisation"] - 1) / 3600,
    }
    return stack | {"overhead": (x["energy.pue"] - 1) * sum(stack.values())}


ENERGY = ("energy.pue", "energy.host_share", "energy.idle_w")


def _energy_of_run(summary: Summary, device: Device, scenario: Scenario, x: Mapping[str, Draws]) -> list[Figure]:
    figures: list[Figure] = []
    missing = ", ".join(key for key in ENERGY if key not in x)
    for name, unit, many, joules, rate in (
        ("wh_per_million_output_tokens", "Wh/1e6 token", 1e6, "joules_per_output_token", "output_tokens_per_s"),
        ("wh_per_query", "Wh/query", x["query.requests"], "joules_per_request", "requests_per_s"),
    ):
        if not any(figure.name == joules for figure in summary.figures):
            continue
        energy, speed = measured(summary, joules), measured(summary, rate)
        status, unknown = _status(device, energy), [each for each in (energy, speed) if each.value is None]
        if unknown or missing:
            reason = unknown[0].reason if unknown else f"scenario '{scenario.file.name}' has no {missing}"
            figures.append(Figure(name, None, unit, status, reason=reason))
            continue
        used = many * quantile(rate_distribution(energy), x[MEASURED])
        stack = watt_hours(x, used, many * device.count / (speed.value or math.nan))
        figures += interval_figures(name, unit, status, np.sum(list(stack.values()), axis=0))
        figures += [Figure(f"{name}.{rung}", float(wh.mean()), unit, status) for rung, wh in stack.items()]
    return figures


def rate_distribution(figure: Figure) -> Distribution:
    """A measured figure (above 0) as a lognormal with its 95% interval; as a constant if there is no interval."""
    value = float(figure.value or 0.0)
    if figure.low is None or figure.high is None or not 0 < figure.low < figure.high:
        return distribution("value", value)
    half = (figure.high / figure.low) ** (0.5 * Z95 / 1.959963984540054)
    return distribution("lognormal", value / half, value * half)


def measured(summary: Summary, name: str) -> Figure:
    """The figure `name`; without a value and with the reason if it is absent, unknown or 0."""
    figure = next((each for each in summary.figures if each.name == name), None)
    if figure is None:
        return Figure(name, None, "", "measured", reason=f"{name} is not recorded")
    if figure.value is None:
        return replace(figure, reason=f"{name} is not known: {figure.reason or 'not recorded'}")
    return figure if figure.value > 0 else replace(figure, value=None, reason=f"{name} is {figure.value:g}")


def mapped(figure: Figure, of: Callable[[float], float], **changes: Any) -> Figure:
    """What a monotone function makes of a figure and its interval; `changes` are its other fields."""
    value, *ends = (None if x is None else of(x) for x in (figure.value, figure.low, figure.high))
    low, high = ends if None in ends else sorted(x for x in ends if x is not None)
    return replace(figure, value=value, low=low, high=high, **changes)


def _status(device: Device, figure: Figure | None = None) -> Status:
    return "simulated" if device.kind == "none" or (figure and figure.status == "simulated") else "derived"


def in_zone(costs: Costs, zone: str | None) -> Costs:
    """The costs, and the CO2 and water of what takes Wh, in a zone (ISO 3166-1 alpha-3, WOR is the world); as they are
    without a zone.

    Grams of CO2 equivalent and millilitres of water used to make the electricity; not those of the building or of the
    hardware. HarnessError without the package, or for an unknown zone.
    """
    if zone is None:
        return costs
    try:
        from ecologits.electricity_mix_repository import electricity_mixes
    except ImportError:
        raise HarnessError("--zone needs the package ecologits", install("market")) from None
    if (mix := electricity_mixes.find_electricity_mix(zone.upper())) is None:
        advice = near(zone.upper(), [each.zone for each in electricity_mixes.list_electricity_mixes()])
        raise HarnessError(f"unknown zone '{zone}'", f"{advice}give ISO 3166-1 alpha-3, as USA, or WOR")
    added = []
    for each in costs.figures:
        if re.fullmatch(r"wh_per_\w+", each.name):
            for per_wh, name, unit in ((mix.gwp, "co2_g", "g"), (mix.wue, "water_ml", "mL")):  # kg/kWh are g/Wh
                names = {"name": each.name.replace("wh", name, 1), "unit": each.unit.replace("Wh", unit, 1)}
                added.append(mapped(each, partial(mul, per_wh), **names))
    made = f"electricity of {mix.zone}: {mix.gwp:g} kg CO2e and {mix.wue:g} L of water a kWh"
    notes = f"{made} (ecologits {version('ecologits')})", *(str(warning.message) for warning in mix.warnings)
    return replace(costs, figures=(*costs.figures, *added), notes=(*costs.notes, *notes))
