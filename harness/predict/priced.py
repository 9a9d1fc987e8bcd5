"""The cost of a prediction: its bill, its energy, the points of its front, and the cheapest at an objective."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np

from harness.config import AS_WRITTEN, Values
from harness.cost.bill import ENERGY, Costs, Row, bill_factors, costed, draw_inputs, interval_figures, watt_hours
from harness.cost.draws import Draws
from harness.cost.pricing import priced_for
from harness.cost.scenario import MEASURED, Scenario
from harness.errors import HarnessError
from harness.files import install
from harness.model import Device, Figure
from harness.predict.predict import PLAN, Calibration, Plan, Prediction, deployed, predict_many
from harness.predict.work import check_fits, largest_batch

TIERS = ("on-demand", "reserved", "spot")
"""Scenarios whose price of a million output tokens stands beside the chosen one's."""
USD = "usd_per_million_output_tokens"


@dataclass(frozen=True, slots=True)
class Priced:
    """A prediction with its costs; `front` are the batches that were tried, smallest first, each with its cost."""

    prediction: Prediction
    costs: Costs
    front: tuple[tuple[Prediction, Figure], ...]
    best: int | None
    """The place in `front` with the most tokens per second and GPU that meets the objective; None: none does."""
    tiers: tuple[tuple[str, Figure], ...]
    """Scenario -> USD per million output tokens under it."""
    limits: tuple[float, float]


def priced(
    model: str, gpu: str, plan: Plan = PLAN, scenario: str = "on-demand", overrides: Values = AS_WRITTEN,
    own: Calibration | None = None, limits: tuple[float, float] = (0.05, 5.0),
) -> Priced:  # fmt: skip
    """The prediction at a load and along the front of batches. `limits` are the objective's TPOT and TTFT in s."""
    serving, copies = deployed(model, gpu, plan)
    check_fits(serving)
    most, batches = largest_batch(serving), [serving.batch]
    batches += [float(2**k) for k in range(13) if 2**k <= most and 2**k != serving.batch]
    servings = [replace(serving, batch=batch) for batch in sorted(batches)]
    device = Device("gpu", serving.gpu.name, copies * serving.devices)
    used = priced_for(device, scenario, overrides)
    x = draw_inputs(used)
    points = predict_many(servings, copies, x[MEASURED], own)
    front = tuple((each, _usd(used, x, each.device_s)) for each in points)
    medians = [[float(np.median(draws)) for draws in (each.tpot_s, each.ttft_s, each.device_s)] for each in points]
    meets = [i for i, (tpot_s, ttft_s, _) in enumerate(medians) if tpot_s <= limits[0] and ttft_s <= limits[1]]
    best = min(meets, key=lambda i: medians[i][2], default=None)
    chosen, tiers = points[servings.index(serving)], []
    # np.quantile takes a hundred times as long for so many quantiles.
    ordered, ranks = np.sort(chosen.device_s), np.linspace(0, 1, len(chosen.device_s))
    for tier in TIERS:
        other = priced_for(device, tier, overrides)
        y = draw_inputs(other)
        tiers.append((tier, _usd(other, y, np.interp(y[MEASURED], ranks, ordered))))
    return Priced(chosen, _costs(chosen, used, x, own), front, best, tuple(tiers), limits)


def _usd(scenario: Scenario, x: Mapping[str, Draws], device_s: Draws) -> Figure:
    """USD per million output tokens."""
    if scenario.no_price is not None:
        return Figure(USD, None, "USD/1e6 token", "derived", reason=scenario.no_price)
    price = np.prod([values for _, values in bill_factors(scenario, x)], axis=0)
    return interval_figures(USD, "USD/1e6 token", "derived", price * device_s * (1e6 / 3600))[0]


def _costs(point: Prediction, used: Scenario, x: Mapping[str, Draws], own: Calibration | None) -> Costs:
    s = point.serving
    rate = point.devices / point.device_s
    time, paid = ("published", point.device_s), bill_factors(used, x)
    query = s.output * x["query.requests"]
    rows: list[Row] = [
        ("output_tokens_per_s", "tokens/s", "derived", [("published", rate)], 1.0, None),
        ("tokens_per_s_per_user", "tokens/s", "derived", [("published", 1 / point.tpot_s)], 1.0, None),
        ("tpot_s", "s", "derived", [("published", point.tpot_s)], 1.0, None),
        ("ttft_s", "s", "derived", [("published", point.ttft_s)], 1.0, None),
        ("device_s_per_output_token", "s", "derived", [time], 1.0, None),
        ("joules_per_output_token", "J", "derived", [("published", point.joules)], 1.0, None),
        (USD, "USD/1e6 token", "derived", [*paid, time], 1e6 / 3600, used.no_price),
        ("usd_per_query", "USD/query", "derived", [*paid, time, ("assumed", query)], 1 / 3600, used.no_price),
    ]
    if paid:
        rows.append(("usd_per_hour", "USD/hour", "derived", paid[:2], point.devices, None))
    notes = ["intervals are predictive: 90% of new measurements should lie inside"]
    notes += [f"a guess: {guess}" for guess in point.guesses]
    if own is not None:
        ratios = f"time {own.time:.3g}" + ("" if own.joules is None else f", joules {own.joules:.3g}")
        notes.append(f"calibrated by measured / predicted of run {own.run}: {ratios}")
    found = costed(used, rows, notes)
    if all(key in x for key in ENERGY):
        watts = watt_hours(x, point.joules * query, point.device_s * query)
        figures = interval_figures("wh_per_query", "Wh/query", "derived", np.sum(list(watts.values()), axis=0))
        found = replace(found, figures=(*found.figures, *figures))
    return found


_WORD = re.compile(r"[a-z]+|\d+")
_ADDED = {*["meta", "ai", "databricks", "instruct", "chat", "it", "hf", "instant", "turbo", "fast", "maas", "latest"]}
"""Words of providers' names that do not tell models apart."""
_LEFT_OUT = re.compile(r"(-v\d+)?:\d+$|-(fp8|bf16|awq)(-fast)?$|\bv(?=\d)|(?<=\d)p(?=\d)")
"""Versions of an interface, precisions, and letters that stand for dots."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A provider's list price of a request."""

    provider: str
    model: str
    """As the provider names it."""
    usd: float
    full_price: bool
    """It states no price of cached tokens: they cost as much as others."""


def key(name: str) -> tuple[str, ...]:
    """What tells models apart in the names that providers give them.

    >>> names = "@cf/meta/llama-3.1-8b-instruct-fp8", "llama-v3p1-8b-instruct", "meta.llama3-1-8b-instruct-v1:0"
    >>> {key(name) for name in names} == {key("Llama-3.1-8B")}
    True
    >>> key("DeepSeek-V3.1") == key("DeepSeek-V3")
    False
    """
    last = _LEFT_OUT.sub(" ", name.lower().rpartition("/")[2])
    return tuple(word for word in _WORD.findall(last) if word not in _ADDED)


def offers(model: str, input_tokens: float, output_tokens: float, cached: float) -> tuple[tuple[Offer, ...], str]:
    """The offers of a request, cheapest first, and where they are from; `cached`: share of the input in a cache.

    Free and discounted variants are left out. HarnessError without the package, or if no provider lists the model.
    """
    try:
        from genai_prices import Usage
        from genai_prices.data import providers
    except ImportError:
        raise HarnessError("list prices need the package genai-prices", install("market")) from None
    now, found = datetime.now(UTC), []
    asked, answered, read = (round(tokens) for tokens in (input_tokens, output_tokens, cached * input_tokens))
    used = Usage(input_tokens=asked, output_tokens=answered, cache_read_tokens=read)
    for provider in providers:
        for each in provider.models:
            if key(each.id) == key(model) and not each.id.endswith((":free", ":batch")) and not each.deprecated:
                prices = each.get_prices(now)
                if usd := float(prices.calc_price(used)["total_price"]):
                    full = bool(cached) and prices.cache_read_mtok is None
                    found.append(Offer(provider.id, each.id, usd, full))
    if not found:
        raise HarnessError(f"no provider in genai-prices lists {model}", "omit --market")
    return tuple(sorted(found, key=lambda offer: offer.usd)), f"genai-prices {version('genai-prices')}, {now:%Y-%m-%d}"
