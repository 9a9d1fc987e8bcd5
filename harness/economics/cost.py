"""What the tokens of a run cost under a scenario, with how much of the interval is measured and how much assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from harness.economics.draws import DEFAULT_DRAWS, Distribution, Draws, distribution, draw
from harness.economics.gpus import Gpu, find_gpu
from harness.economics.scenario import Input, Price, Scenario, price_input
from harness.errors import HarnessError
from harness.model import Figure, Summary

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
    """One factor of a cost: its share of Var(ln cost), 0 for a number without a distribution."""

    name: str
    status: str
    share: float


@dataclass(frozen=True, slots=True)
class Costs:
    """Figures with the factors behind each (by figure name), and every assumption that went in."""

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
    with total_tokens_per_s; usd_per_query = p*count*kappa*query.requests / (3600 * U * requests_per_s).
    value is the median, low and high the 5th and 95th percentile; `.mean` is what a budget needs. A rate's own 95%
    interval enters as a lognormal. A simulated rate gives simulated costs, a missing one n/a with its reason.
    """
    ready = priced(scenario, device, gpus, prices)
    figures: list[Figure] = []
    parts: dict[str, tuple[Part, ...]] = {}
    for name, unit, rate, per, queries in (
        ("usd_per_hour", "USD/hour", None, 1.0, False),
        ("usd_per_million_output_tokens", "USD/1e6 token", "output_tokens_per_s", 1e6, False),
        ("usd_per_million_total_tokens", "USD/1e6 token", "total_tokens_per_s", 1e6, False),
        ("usd_per_query", "USD/query", "requests_per_s", 1.0, True),
    ):
        measured = _measured(summary, rate)
        status: Literal["simulated", "derived"] = "derived"
        if device.kind == "none" or (measured is not None and measured.status == "simulated"):
            status = "simulated"
        reason = ready if isinstance(ready, str) else _why_not(measured, rate)
        if reason is not None or isinstance(ready, str):
            figures.append(Figure(name, None, unit, status, reason=reason))
            continue
        x = draw({key: given.distribution for key, given in ready.inputs.items()}, n, seed, ready.correlations)
        factors = {
            "price.usd_per_hour": x["price.usd_per_hour"] if "price.usd_per_hour" in x else owned_usd_per_hour(x)
        }
        cost = factors["price.usd_per_hour"] * device.count
        if measured is not None and rate is not None:
            factors["serving.overhead"] = x["serving.overhead"]
            factors["serving.utilisation"] = 1 / x["serving.utilisation"]
            if queries:
                factors["query.requests"] = x["query.requests"]
            factors[rate] = 1 / draw({rate: rate_distribution(measured)}, n, seed + 1)[rate]
            cost = device.count * per / 3600 * np.prod(list(factors.values()), axis=0)
        figures += interval_figures(name, unit, status, cost)
        parts[name] = _shares(factors, cost, ready, rate, measured)
    used = tuple(ready.inputs.values()) if isinstance(ready, Scenario) else tuple(scenario.inputs.values())
    notes = [TWO_DENOMINATORS]
    if isinstance(ready, Scenario) and ready.per == "vcpu":
        notes.append("figures of a small model on a CPU say nothing about what a provider's fleet costs")
    return Costs(scenario.name, tuple(figures), parts, used, tuple(notes))


def rate_distribution(measured: Figure) -> Distribution:
    """A measured rate (above 0) as a lognormal by its 95% interval; the number alone where it has none."""
    value = float(measured.value or 0.0)
    if measured.low is None or measured.high is None or not 0 < measured.low < measured.high:
        return distribution("value", value)
    half = (measured.high / measured.low) ** (0.5 * 1.6448536 / 1.9599640)
    return distribution("lognormal", value / half, value * half)


def interval_figures(name: str, unit: str, status: Literal["simulated", "derived"], cost: Draws) -> list[Figure]:
    """Median with 5th and 95th percentile, and the mean where there is any spread."""
    low, middle, high = (float(q) for q in np.quantile(cost, (0.05, 0.5, 0.95)))
    if low == high:
        return [Figure(name, middle, unit, status, interval=INTERVAL)]
    return [
        Figure(name, middle, unit, status, low, high, interval=INTERVAL),
        Figure(f"{name}.mean", float(cost.mean()), unit, status),
    ]


def _measured(summary: Summary, rate: str | None) -> Figure | None:
    if rate is None:
        return None
    try:
        return summary[rate]
    except KeyError:
        return None


def _why_not(measured: Figure | None, rate: str | None) -> str | None:
    if rate is None:
        return None
    if measured is None or measured.value is None:
        return f"{rate} is not known: {measured.reason if measured and measured.reason else 'not recorded'}"
    return f"{rate} is 0: nothing was served" if measured.value <= 0 else None


def _shares(
    factors: Mapping[str, Draws], cost: Draws, scenario: Scenario, rate: str | None, measured: Figure | None
) -> tuple[Part, ...]:
    """Cov(ln factor, ln cost) / Var(ln cost): exact for a product, sums to 1, and right under correlations too."""
    centred = np.log(cost) - np.log(cost).mean()
    variance = float(np.mean(centred**2))
    parts = []
    for name, values in factors.items():
        share = float(np.mean(np.log(values) * centred)) / variance if variance > 1e-24 else 0.0
        if name == rate and measured is not None:
            status: str = measured.status
        else:
            status = scenario.inputs[name].status if name in scenario.inputs else "assumed"
        parts.append(Part(name, status, share))
    return tuple(parts)
