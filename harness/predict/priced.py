"""The cost of a prediction: its bill, its energy, the points of its front, and the cheapest at an objective."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.config import AS_WRITTEN, Values
from harness.cost.bill import ENERGY, Costs, Row, bill_factors, costed, draw_inputs, interval_figures, watt_hours
from harness.cost.draws import Draws
from harness.cost.pricing import priced_for
from harness.cost.scenario import MEASURED
from harness.model import Device, Figure
from harness.predict.memory import check_fits, largest_batch
from harness.predict.own import Calibration
from harness.predict.predict import LOAD, ONE_GROUP, Layout, Load, Prediction, deployed, predict_many

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
    model: str,
    gpu: str,
    load: Load = LOAD,
    devices: int | None = None,
    precision: str | None = None,
    layout: Layout = ONE_GROUP,
    engine: str = "vllm",
    scenario: str = "on-demand",
    overrides: Values = AS_WRITTEN,
    own: Calibration | None = None,
    limits: tuple[float, float] = (0.05, 5.0),
) -> Priced:
    """The prediction at a load and along the front of batches. `limits` are the objective's TPOT and TTFT in s."""
    serving, copies = deployed(model, gpu, load, devices, precision, layout, engine)
    check_fits(serving)
    most, batches = largest_batch(serving), [serving.batch]
    batches += [float(2**k) for k in range(13) if 2**k <= most and 2**k != serving.batch]
    servings = [replace(serving, batch=batch) for batch in sorted(batches)]
    count = copies * (serving.gpus * serving.pp + serving.prefill_gpus)
    used = priced_for(Device("gpu", serving.gpu.name, count), scenario, overrides)
    x = draw_inputs(used)
    front = predict_many(servings, copies, x[MEASURED], own)
    factors = bill_factors(used, x)
    cost = [_usd(factors, each, used.no_price) for each in front]
    meets = [
        i for i, each in enumerate(front) if np.median(each.tpot_s) <= limits[0] and np.median(each.ttft_s) <= limits[1]
    ]
    best = min(meets, key=lambda i: float(np.median(front[i].device_s)), default=None)
    chosen = front[servings.index(serving)]
    return Priced(
        chosen,
        _costs(chosen, used, x, own),
        tuple(zip(front, cost, strict=True)),
        best,
        _by_tier(chosen, overrides),
        limits,
    )


def _usd(factors: Sequence[tuple[str, Draws]], point: Prediction, no_price: str | None) -> Figure:
    if no_price is not None:
        return Figure(USD, None, "USD/1e6 token", "derived", reason=no_price)
    draws = np.prod([values for _, values in factors], axis=0) * point.device_s * (1e6 / 3600)
    return interval_figures(USD, "USD/1e6 token", "derived", draws)[0]


def _by_tier(point: Prediction, overrides: Values) -> tuple[tuple[str, Figure], ...]:
    found = []
    for tier in TIERS:
        used = priced_for(Device("gpu", point.serving.gpu.name, point.devices), tier, overrides)
        x = draw_inputs(used)
        again = np.quantile(point.device_s, x[MEASURED])
        found.append((tier, _usd(bill_factors(used, x), replace(point, device_s=again), used.no_price)))
    return tuple(found)


def _costs(point: Prediction, used, x, own: Calibration | None) -> Costs:  # type: ignore[no-untyped-def]
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
