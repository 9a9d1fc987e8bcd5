"""What the tokens of a run cost under a scenario, with how much of the interval is measured and how much assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from harness.economics.draws import (
    DEFAULT_DRAWS,
    Z95,
    Distribution,
    Draws,
    distribution,
    draw,
    quantile,
    variance_shares,
)
from harness.economics.gpus import Gpu, find_gpu
from harness.economics.scenario import MEASURED, OWNED, Input, Price, Scenario, price_input
from harness.errors import HarnessError
from harness.model import Figure, Status, Summary

HOURS_PER_YEAR = 8766
HOURS_PER_MONTH = 730.5
INTERVAL = "p5-p95"


@dataclass(frozen=True, slots=True)
class Device:
    """What was paid for: `count` GPUs of that name, or vCPUs of a CPU machine. `none`: a simulated engine."""

    kind: Literal["gpu", "cpu", "none"]
    name: str | None
    count: int


def device_of(engine: Mapping[str, Any], environment: Mapping[str, Any]) -> Device:
    """The device of a run from its run.json: EngineInfo's fields, and what `environment.capture` gave.

    A CPU counts its usable logical CPUs as vCPUs, whatever number of them the engine kept busy: all were paid for.

    >>> device_of({"device": "cpu", "device_count": 1}, {"cpu": {"model": "Neoverse-V1", "cores_usable": 2}})
    Device(kind='cpu', name='Neoverse-V1', count=2)
    """
    if engine["device"] == "cuda":
        gpus = environment.get("gpus") or [{}]
        return Device("gpu", gpus[0].get("name"), engine["device_count"])
    if engine["device"] == "cpu":
        cpu = environment["cpu"]
        return Device("cpu", cpu.get("model"), cpu["cores_usable"])
    return Device("none", None, engine["device_count"])


@dataclass(frozen=True, slots=True)
class Part:
    """One factor of a cost: its share of Var(ln cost), 0 for a certain number, None where the cost can be 0."""

    name: str
    status: str
    share: float | None


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor of a cost with its draws; a cost is the product of its factors."""

    name: str
    status: str
    values: Draws


@dataclass(frozen=True, slots=True)
class Costs:
    """Figures with the parts behind each (by figure name), and every assumption that went in."""

    scenario: str
    figures: tuple[Figure, ...]
    parts: Mapping[str, tuple[Part, ...]]
    assumptions: tuple[Input, ...]
    notes: tuple[str, ...]


TWO_DENOMINATORS = (
    "USD per million output tokens and per million total tokens are the same whole bill over two counts: "
    "use one or the other, never their sum"
)


def default_scenario(kind: str) -> str:
    """The scenario that prices a run when the user names none, by kind of device.

    >>> default_scenario("gpu"), default_scenario("cpu")
    ('on-demand', 'cpu-smoke')
    """
    return "on-demand" if kind == "gpu" else "cpu-smoke"


def annuity(rate: np.ndarray | float, years: np.ndarray | float) -> Draws:
    """Yearly payment per USD borrowed: rate / (1 - (1 + rate)^-years), and 1 / years at rate 0.

    >>> round(float(annuity(0.10, 4)), 4), float(annuity(0.0, 4))
    (0.3155, 0.25)
    """
    rate, years = np.asarray(rate, float), np.asarray(years, float)
    growing = np.where(rate > 0, rate, 1.0)
    return np.asarray(np.where(rate > 0, growing / -np.expm1(-years * np.log1p(growing)), 1.0 / years))


def owned_usd_per_hour(x: Mapping[str, Draws]) -> Draws:
    """USD per hour of an owned GPU, by scenario key.

    capital_usd * annuity(cost_of_capital, life_years) / 8766 + power_kw * pue * usd_per_kwh
    + power_kw * hosting_usd_per_kw_month / 730.5 + staff_usd_per_hour.
    """
    capital = x["owned.capital_usd"] * annuity(x["owned.cost_of_capital"], x["owned.life_years"]) / HOURS_PER_YEAR
    electricity = x["owned.power_kw"] * x["energy.pue"] * x["owned.usd_per_kwh"]
    hosting = x["owned.power_kw"] * x["owned.hosting_usd_per_kw_month"] / HOURS_PER_MONTH
    return capital + electricity + hosting + x["owned.staff_usd_per_hour"]


def priced(scenario: Scenario, device: Device, gpus: tuple[Gpu, ...], prices: tuple[Price, ...]) -> Scenario | str:
    """The scenario with the price of this device in it, or why there is none.

    An owned scenario comes back as it is: its price is built up from the `owned.` inputs. Raises HarnessError where the
    scenario prices another kind of device, or another GPU.
    """
    if device.kind != "none" and scenario.per != {"gpu": "gpu", "cpu": "vcpu"}[device.kind]:
        raise HarnessError(
            f"scenario '{scenario.name}' prices a {scenario.per}, but the run used {device.name or device.kind}",
            f"--scenario {default_scenario(device.kind)}, or a scenario of your own",
        )
    gpu = find_gpu(device.name, gpus) if device.kind == "gpu" and device.name is not None else None
    if scenario.gpu is not None and device.kind == "gpu" and (gpu is None or gpu.name != scenario.gpu):
        raise HarnessError(
            f"scenario '{scenario.name}' is about {scenario.gpu}, but the run used {device.name}",
            "choose a scenario of that GPU, or on-demand",
        )
    if scenario.tier == "owned" and "price.usd_per_hour" not in scenario.inputs:
        return scenario
    if device.kind == "gpu" and gpu is None and "price.usd_per_hour" not in scenario.inputs:
        return f"GPU '{device.name}' is not in gpus.csv; give its price with --set price.usd_per_hour=…"
    found = price_input(scenario, gpu.price_gpu or gpu.name if gpu else None, prices)
    if isinstance(found, str):
        return found
    return replace(scenario, inputs={**scenario.inputs, found.name: found})


def cost_of_run(
    summary: Summary,
    device: Device,
    scenario: Scenario,
    gpus: tuple[Gpu, ...],
    prices: tuple[Price, ...],
    n: int = DEFAULT_DRAWS,
    seed: int = 0,
) -> Costs:
    """What this run's mix of requests costs: the whole bill over output tokens, over all tokens, and over queries.

    With p = price.usd_per_hour, count = device.count, kappa = serving.overhead, U = serving.utilisation:
    usd_per_hour = p*count; usd_per_million_output_tokens = 1e6/3600 * p*count*kappa / (U * output_tokens_per_s), and so
    with total_tokens_per_s; usd_per_query = p*count*kappa*query.requests / (3600 * U * requests_per_s). Where the run
    measured energy, wh_per_query and wh_per_million_output_tokens by `watt_hours`, with its stack.
    value is the median, low and high the 5th and 95th percentile; `.mean` is what a budget needs. A rate's own 95%
    interval enters as a lognormal. A simulated rate gives simulated costs, a missing one n/a with its reason.
    """
    ready = priced(scenario, device, gpus, prices)
    used = ready if isinstance(ready, Scenario) else scenario
    x = draw_inputs(used, n, seed)
    figures: list[Figure] = []
    parts: dict[str, tuple[Part, ...]] = {}
    for name, unit, per, rate in (
        ("usd_per_hour", "USD/hour", 1.0, None),
        ("usd_per_million_output_tokens", "USD/1e6 token", 1e6, "output_tokens_per_s"),
        ("usd_per_million_total_tokens", "USD/1e6 token", 1e6, "total_tokens_per_s"),
        ("usd_per_query", "USD/query", 1.0, "requests_per_s"),
    ):
        figure = measured(summary, rate) if rate else None
        status = _status(device, figure)
        reason = ready if isinstance(ready, str) else figure.reason if figure and figure.value is None else None
        if reason is not None:
            figures.append(Figure(name, None, unit, status, reason=reason))
            continue
        bill = bill_factors(used, x)
        factors = bill[:1] if figure is None else [*bill, _inverse(figure, x)]
        if rate == "requests_per_s":
            factors.append(Factor("query.requests", used.inputs["query.requests"].status, x["query.requests"]))
        made, parts[name] = costed(name, unit, status, factors, device.count * (per / 3600 if figure else 1.0))
        figures += made
    figures += _energy_of_run(summary, device, used, x)
    notes = [TWO_DENOMINATORS]
    rates = [measured(summary, name) for name in ("output_tokens_per_s", "requests_per_s")]
    if any(rate.value is not None and rate.low is None for rate in rates):
        notes.append("the run states no interval for its rates: intervals here are those of the assumptions alone")
    if used.per == "vcpu":
        notes.append("figures of a small model on a CPU say nothing about what a provider's fleet costs")
    return Costs(scenario.name, tuple(figures), parts, tuple(used.inputs.values()), tuple(notes))


def draw_inputs(scenario: Scenario, n: int, seed: int) -> dict[str, Draws]:
    """Joint draws of every input of a scenario, and uniforms under `MEASURED` at which what was measured is read.

    One joint set: two sets of Sobol points with different seeds are not independent of each other.
    HarnessError where the scenario's correlations contradict each other.
    """
    inputs = {key: made.distribution for key, made in scenario.inputs.items()}
    try:
        return draw(inputs | {MEASURED: distribution("uniform", 0, 1)}, n, seed, scenario.correlations)
    except ValueError as bad:
        raise HarnessError(f"{scenario.origin}: {bad}", "weaken or remove one of the correlations") from None


def bill_factors(scenario: Scenario, x: Mapping[str, Draws]) -> list[Factor]:
    """Price of a device-hour, serving.overhead and 1 / serving.utilisation: USD per device-hour of serving."""
    own = "price.usd_per_hour" in x
    price = x["price.usd_per_hour"] if own else owned_usd_per_hour(x)
    status = scenario.inputs["price.usd_per_hour"].status if own else "assumed"
    return [
        Factor("price.usd_per_hour", status, price),
        Factor("serving.overhead", scenario.inputs["serving.overhead"].status, x["serving.overhead"]),
        Factor("serving.utilisation", scenario.inputs["serving.utilisation"].status, 1 / x["serving.utilisation"]),
    ]


def costed(
    name: str, unit: str, status: Status, factors: Sequence[Factor], scale: float = 1.0
) -> tuple[list[Figure], tuple[Part, ...]]:
    """scale * the product of the factors as figures (see `interval_figures`), and what its spread rests on.

    A part's share is Cov(ln factor, ln cost) / Var(ln cost): exact for a product, summing to 1, under correlation too.
    """
    cost = np.asarray(scale * np.prod([factor.values for factor in factors], axis=0))
    if not cost.min() > 0:
        return interval_figures(name, unit, status, cost), tuple(Part(f.name, f.status, None) for f in factors)
    centred = np.log(cost) - np.log(cost).mean()
    variance = float(np.mean(centred**2))
    shares = [float(np.mean(np.log(f.values) * centred)) / variance if variance > 1e-20 else 0.0 for f in factors]
    parts = tuple(Part(f.name, f.status, share) for f, share in zip(factors, shares, strict=True))
    return interval_figures(name, unit, status, cost), parts


def interval_figures(name: str, unit: str, status: Status, cost: Draws) -> list[Figure]:
    """Median with 5th and 95th percentile, and the mean where there is any spread."""
    low, middle, high = (float(q) for q in np.quantile(cost, (0.05, 0.5, 0.95)))
    if high - low <= 1e-12 * abs(middle):
        return [Figure(name, middle, unit, status, interval=INTERVAL)]
    return [
        Figure(name, middle, unit, status, low, high, interval=INTERVAL),
        Figure(f"{name}.mean", float(cost.mean()), unit, status),
    ]


def tornado(scenario: Scenario, rate: Figure) -> dict[str, tuple[float, float]]:
    """Share of the variance of ln cost by input, (first order, total), largest first, of a scenario from `priced`.

    The cost is the bill for a device-second over a measured `rate`. Unlike the parts of a figure this opens an owned
    price up into the inputs that it is made of. Inputs are taken as independent.
    """
    own = "price.usd_per_hour" in scenario.inputs
    keys = [*(("price.usd_per_hour",) if own else OWNED), "serving.overhead", "serving.utilisation"]
    inputs = {key: scenario.inputs[key].distribution for key in keys} | {rate.name: rate_distribution(rate)}

    def log_cost(x: Mapping[str, Draws]) -> Draws:
        return np.asarray(np.log(np.prod([f.values for f in bill_factors(scenario, x)], axis=0) / x[rate.name]))

    return variance_shares(log_cost, inputs)


def watt_hours(x: Mapping[str, Draws], joules: Draws | float, device_s: Draws | float) -> dict[str, Draws]:
    """Wh of something that took `joules` of accelerator energy and `device_s` device-seconds, as a stack that adds up.

    PUE/3600 * [(1 + host) * J + P_idle * device_s * (1/U - 1)]: idle time costs 1/U in money but only idle power here.
    The rungs are those of Google's account (arXiv 2508.15734): accelerator, host, idle, overhead of the facility.
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
    for name, unit, per, joules, rate in (
        ("wh_per_million_output_tokens", "Wh/1e6 token", 1e6, "joules_per_output_token", "output_tokens_per_s"),
        ("wh_per_query", "Wh/query", 1.0, "joules_per_request", "requests_per_s"),
    ):
        energy, speed = measured(summary, joules), measured(summary, rate)
        if not any(figure.name == joules for figure in summary.figures):
            continue
        missing = [key for key in ENERGY if key not in x]
        lacking = f"scenario '{scenario.name}' has no {', '.join(missing)}" if missing else None
        unknown = next((figure.reason for figure in (energy, speed) if figure.value is None), None)
        status = _status(device, energy)
        if missing or energy.value is None or speed.value is None:
            figures.append(Figure(name, None, unit, status, reason=unknown or lacking))
            continue
        many = per * (x["query.requests"] if rate == "requests_per_s" else 1.0)
        stack = watt_hours(
            x, many * quantile(rate_distribution(energy), x[MEASURED]), many * device.count / speed.value
        )
        figures += interval_figures(name, unit, status, np.sum(list(stack.values()), axis=0))
        figures += [Figure(f"{name}.{rung}", float(wh.mean()), unit, status) for rung, wh in stack.items()]
    return figures


def rate_distribution(figure: Figure) -> Distribution:
    """A measured figure (above 0) as a lognormal by its 95% interval; the number alone where it has none."""
    value = float(figure.value or 0.0)
    if figure.low is None or figure.high is None or not 0 < figure.low < figure.high:
        return distribution("value", value)
    half = (figure.high / figure.low) ** (0.5 * Z95 / 1.959963984540054)
    return distribution("lognormal", value / half, value * half)


def measured(summary: Summary, name: str) -> Figure:
    """The figure of that name; one without a value, and a reason, where it is absent, missing or 0."""
    for figure in summary.figures:
        if figure.name == name:
            if figure.value is None:
                return replace(figure, reason=f"{name} is not known: {figure.reason or 'not recorded'}")
            return figure if figure.value > 0 else replace(figure, value=None, reason=f"{name} is {figure.value:g}")
    return Figure(name, None, "", "measured", reason=f"{name} is not recorded")


def _inverse(figure: Figure, x: Mapping[str, Draws]) -> Factor:
    return Factor(figure.name, figure.status, 1 / quantile(rate_distribution(figure), 1 - x[MEASURED]))


def _status(device: Device, figure: Figure | None) -> Status:
    return "simulated" if device.kind == "none" or (figure and figure.status == "simulated") else "derived"
