"""The data of a page's what-if: figures that the page computes from the values of its sliders.

A slider's value is exact, so a cost is a fixed distribution times powers of the sliders, and energy one that depends
on utilisation alone. The functions behind `harness cost` and `harness compare` compute them here. A figure is one of

    "of": [low, value, high, mean]                  fixed (null: unknown), times `powers`
    "of": "name"                                    an earlier figure, times `powers`
    "at": [[1/utilisation, low, value, high, mean]] between its rows linear in 1 / utilisation, times `powers`

where powers, {name: exponent}, name sliders and medians of earlier figures.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from harness.analysis.summary import Sweep
from harness.cost.bill import ENERGY, bill_factors, cost_of_run, draw_inputs, measured, rate_distribution, watt_hours
from harness.cost.draws import Draws, quantile
from harness.cost.pricing import price_run, priced_for, scenario_for
from harness.cost.scenario import MEASURED, PRICE, Scenario
from harness.facts.appraisal import measurement_of, median, standing
from harness.facts.formulas import Context
from harness.facts.gap import LARGE, Measurement, bill_a_prompt, published_measurements
from harness.model import Device, Figure, Summary
from harness.store.run import Run

Json = dict[str, Any]
MOST_RUNS = 6
"""The most runs that become starts."""
COST = (("price", PRICE), ("utilisation", "serving.utilisation"), ("pue", "energy.pue"))
"""Slider, and its key for `--set`."""
NO_ENERGY = "no energy was measured, or the scenario has no inputs for it"
BILL = {"price": 1, "utilisation": -1}
INVERSE = np.geomspace(1, 20, 33)
"""1 / utilisation at which energy is given: interpolation is within 1e-4 of its value."""


def starts(runs: Sweep, c: Context, scenario: str | None = None) -> list[Json]:
    """The starting points of a what-if: each of the first runs that has a cost, then published measurements."""
    found = [_of_run(run, summary, c, scenario) for run, summary in runs[:MOST_RUNS]]
    points = published_measurements(c.book.assumptions["gpu_price"].value)
    found += [_of_published(each, c) for each in points if (each.parameters or 0) >= LARGE]
    return [start for start in found if start]


def _of_run(run: Run, summary: Summary, c: Context, scenario: str | None) -> Json | None:
    """Cost and energy in proportion to output tokens; None for a run without a cost."""
    if run.engine is None:
        return None
    priced, device, name = price_run(run, summary, scenario), run.device, scenario or scenario_for(run)
    given, start = priced.scenario, measurement_of(priced)
    # Inputs without a slider stay uncertain: draws depend on the number of dimensions.
    metered = set(ENERGY) <= set(given.inputs) and measured(summary, "joules_per_request").value is not None
    sets = COST if metered else COST[:2]
    fixed = priced_for(device, name, {key: 1 for _, key in sets})
    unit = cost_of_run(summary, device, fixed)
    cost, status = _stats(unit.figures, "usd_per_query"), unit["usd_per_query"].status
    if cost is None or start.output_tokens is None:
        return None
    per_token = [None if x is None else x / start.output_tokens for x in cost]
    million = "usd_per_million_output_tokens"
    figures = [
        _figure("usd_per_query", status, of=per_token, powers=BILL | {"output": 1}),
        _figure(million, status, of=_stats(unit.figures, million), powers=BILL),
        *(_energy(summary, device, fixed, start.output_tokens) if metered else ()),
    ]
    sliders = _sliders(given, metered) | {"output": around(start.output_tokens)}
    words = f"{run.id} --scenario {name}"
    commands = [(f"harness {verb} {words}", sets) for verb in ("cost", "compare")[: 1 if start.doubt else 2]]
    made = _start(f"run {run.id}, scenario {name}", given.file.per, sliders, figures, c, commands)
    return made | {"standing": standing(run)}


def _of_published(start: Measurement, c: Context) -> Json:
    """The published cost at full load, in proportion to output tokens and price; energy of the GPUs alone."""
    assert start.output_tokens
    assert start.usd_per_gpu_hour
    assert start.usd_per_query.value
    cost = start.usd_per_query.value / start.output_tokens / start.usd_per_gpu_hour
    figures = [
        _figure("usd_per_query", "derived", of=_certain(cost), powers=BILL | {"output": 1}),
        _figure("usd_per_million_output_tokens", "derived", of=_certain(cost * 1e6), powers=BILL),
    ]
    if start.wh_per_query and start.wh_per_query.value:
        each = _certain(start.wh_per_query.value / start.output_tokens)
        figures.append(_figure("wh_per_query", "derived", of=each, powers={"pue": 1, "output": 1}))
    given = {name: c.book.assumptions[name].value for name in ("gpu_price", "utilisation")}
    sliders = {
        "price": around(given["gpu_price"]),
        "utilisation": between(given["utilisation"], 0.05, 1),
        "pue": between(1.2, 1, 2),
        "output": around(start.output_tokens),
    }
    label = f"published: {start.model}, {start.conditions} ({start.source})"
    return _start(label, "gpu", sliders, figures, c, [("harness compare", [("price", "gpu_price")])])


def _start(
    label: str, per: str, sliders: Json, figures: list[Json], c: Context,
    commands: Sequence[tuple[str, Sequence[tuple[str, str]]]],
) -> Json:  # fmt: skip
    """A starting point, with its figures against the reported bill: `gap`, the bill for chat a prompt over the cost."""
    status = figures[0]["status"]
    bill = bill_a_prompt(c)
    ends = [bill.low, bill.value, bill.high, None]
    chat, plan = c.book.assumptions["chat_share"], c.book.assumptions["subscription"]
    against = [
        _figure("reported_usd_per_query", "reported", of=ends, powers={"chat_share": 1}),
        _figure("gap", status, of=ends, powers={"chat_share": 1, "usd_per_query": -1}),
        _figure("agreeing_usd_per_hour", status, of="gap", powers={"price": 1}),
        _figure("queries_per_subscription", status, of=_certain(plan.value), powers={"usd_per_query": -1}),
    ]
    return {
        "label": label,
        "per": {"gpu": "GPU", "vcpu": "vCPU"}[per],
        "sliders": {**sliders, "chat_share": between(chat.value, 0.01, 1)},
        "figures": [*figures, *against],
        "commands": commands,
    }


def _energy(summary: Summary, device: Device, fixed: Scenario, tokens: float) -> list[Json]:
    """Wh per query, in proportion to PUE and to output tokens."""
    joules, rate = measured(summary, "joules_per_request"), measured(summary, "requests_per_s").value or math.nan
    x = draw_inputs(fixed)
    requests = x["query.requests"]
    used, seconds = requests * quantile(rate_distribution(joules), x[MEASURED]), requests * device.count / rate

    def at(utilisation: float) -> Draws:
        stack = watt_hours({**x, "serving.utilisation": np.full_like(used, utilisation)}, used, seconds)
        return np.asarray(np.sum(list(stack.values()), axis=0) / tokens)

    table = [(inverse, *np.quantile(wh := at(1 / inverse), (0.05, 0.5, 0.95)), np.mean(wh)) for inverse in INVERSE]
    status = "simulated" if device.kind == "none" else joules.status
    rows = [[float(f"{number:.7g}") for number in row] for row in table]
    return [_figure("wh_per_query", status, at=rows, powers={"pue": 1, "output": 1})]


def _figure(name: str, status: str, **how: Any) -> Json:
    return {"name": name, "status": status, **how}


def _certain(value: float | None) -> list[float | None]:
    return [None, value, None, value]


def _stats(found: Iterable[Figure], name: str) -> list[float | None] | None:
    """p5, median, p95 and mean of a figure; None if it has no value."""
    figures = {figure.name: figure for figure in found}
    middle = figures[name]
    mean = figures.get(f"{name}.mean", middle)
    return None if middle.value is None else [middle.low, middle.value, middle.high, mean.value]


def around(value: float) -> Json:
    """A slider from a tenth of a value above 0 to five times the value, in steps of its third digit."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return between(value, value / 10, value * 5, step)


def between(value: float, low: float, high: float, step: float = 0.01) -> Json:
    """A slider from `low` to `high` in steps, which starts at `value`; that need not be a multiple of a step.

    >>> between(0.3873, 0.05, 1)
    {'low': 0.05, 'high': 1.0, 'step': 0.01, 'value': 0.3873}
    """
    digits = max(0, -math.floor(math.log10(step)))
    low, high = (round(round(end / step) * step, digits) for end in (low, high))
    return {"low": low, "high": high, "step": step, "value": float(f"{value:.4g}")}


def _sliders(scenario: Scenario, energy: bool) -> Json:
    """Sliders of price, utilisation and PUE at the scenario's medians; the price is 1 if the scenario has none."""
    bill = bill_factors(scenario, draw_inputs(scenario))
    return {
        "price": around(float(np.median(bill[0][1])) if bill else 1.0),
        "utilisation": between(median(scenario, "serving.utilisation"), 0.05, 1),
        "pue": between(median(scenario, "energy.pue"), 1, 2) if energy else NO_ENERGY,
    }
