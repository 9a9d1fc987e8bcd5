"""Tables of predictions: one serving point, its front, several GPUs side by side, and how far predictions were off."""

from collections.abc import Sequence
from functools import partial
from operator import mul

import numpy as np

from harness.cost.bill import interval_figures, mapped
from harness.files import data_rows
from harness.model import Figure
from harness.predict.predict import Prediction
from harness.predict.priced import USD, Priced, offers
from harness.predict.work import largest_batch, memory_bytes, weights_per_gpu
from harness.report.cost import cost_tables
from harness.report.table import Cell, Table

HEADLINES = ("output_tokens_per_s", "tokens_per_s_per_user", "tpot_s", "ttft_s", "joules_per_output_token", USD)


def prediction_tables(found: Priced, full: bool = False, cached: float | None = None) -> list[Table]:
    """The screen of one prediction: figures, prices by tier, memory, and throughput against interactivity.

    `full` adds every cost figure with the shares of its variance, and the assumptions; `cached`, the share of the input
    that an API reads from its cache, adds list prices of APIs.
    """
    costs = {figure.name: figure for figure in found.costs.figures}
    names = (*HEADLINES, "usd_per_query", "wh_per_query", "co2_g_per_query", "water_ml_per_query")
    rows: list[tuple[Cell, ...]] = [(name, costs[name]) for name in names if name in costs]
    rows += [(f"{USD}, {tier}", figure) for tier, figure in found.tiers if tier != found.costs.scenario]
    rows.append(("memory", _memory(found.prediction)))
    table = Table("prediction", title(found.prediction), ("figure", "value"), tuple(rows), found.costs.notes)
    market = [] if cached is None else [market_table(found, cached)]
    return [table, front_table(found), *market, *(cost_tables(found.costs) if full else ())]


def title(p: Prediction) -> str:
    """Model, GPUs and their layout, engine, precision and load in a line."""
    s = p.serving
    ranks = {"TP": s.gpus // s.dp, "EP": s.ep, "DP": s.dp, "PP": s.pp}
    sharing = [f"{name}{count}" for name, count in ranks.items() if count > 1]
    copies = f", {p.replicas} copies" if p.replicas > 1 else ""
    layout = f"{p.devices} x {s.gpu.name}{copies}{' of ' + ' '.join(sharing) if sharing else ''}"
    layout += f", {p.replicas * s.prefill_gpus} of them for prompts alone" if s.prefill_gpus else ""
    load = f"{s.batch * p.replicas:g} in flight, {s.input:g} tokens in, {s.output:g} out"
    return f"{s.model.name} · {layout} · {s.engine} {s.version} · {s.precision} · {load}"


def _memory(p: Prediction) -> str:
    used, have, weights = (
        x / 1e9 for x in (memory_bytes(p.serving), p.serving.gpu.memory_bytes, weights_per_gpu(p.serving))
    )
    most = largest_batch(p.serving) * p.replicas
    return f"{used:,.0f} of {have:,.0f} GB a GPU ({weights:,.0f} GB weights); at most {most:,.0f} sequences fit"


def front_table(found: Priced) -> Table:
    """Throughput against interactivity: a row for every second batch, for the asked one and for the best."""
    rows: list[tuple[Cell, ...]] = []
    for i, (point, cost) in enumerate(found.front):
        if i % 2 == 0 or i == found.best or point is found.prediction:
            mark = " *" if i == found.best else ""
            rows.append((f"{point.serving.batch * point.replicas:g}{mark}", *_speeds(point), cost))
    limits = f"TPOT up to {found.limits[0]:g} s and TTFT up to {found.limits[1]:g} s"
    notes = (f"* the most tokens per GPU with {limits}" if found.best is not None else f"no batch meets {limits}",)
    columns = ("in flight", "per user", "per GPU", "TTFT", "price")
    return Table("front", "Throughput against interactivity", columns, tuple(rows), notes)


def market_table(found: Priced, cached: float) -> Table:
    """What APIs ask for such requests: a seller's margin with this deployment, and from how many a day it pays."""
    point, own, hour = found.prediction, found.costs[USD], found.costs["usd_per_hour"]
    load, rows = point.serving, list[tuple[Cell, ...]]()
    most = 86_400 * point.devices / float(np.median(point.device_s)) / load.output
    asked, source = offers(load.model.name, load.input, load.output, cached)
    for offer in asked:
        several = sum(each.provider == offer.provider for each in asked) > 1
        name = f"{offer.model if several else offer.provider}{' *' * offer.full_price}"
        usd = 1e6 * offer.usd / load.output
        margin = mapped(own, partial(_margin, usd), name="gross_margin", unit="1")
        even = mapped(hour, partial(mul, 24 / offer.usd), name="break_even_requests_per_day", unit="requests")
        rows.append((name, f"{usd:.3g}", margin, even if (even.value or 0) <= most else "more than it answers"))
    notes = (
        f"list prices of {source}: {load.input:g} tokens in, {cached:.0%} of them from a cache, {load.output:g} out",
        "margin: 1 - cost / price, at the scenario's utilisation",
        f"break-even: price of these GPUs for a day / price of a request; they answer at most {most:,.0f} a day",
        *["* lists no price of cached tokens: they cost as much as others"] * any(x.full_price for x in asked),
    )
    columns = ("provider", "USD/M output", "margin", "break-even a day")
    return Table("market", "What APIs ask for the same model", columns, tuple(rows), notes)


def _margin(price: float, cost: float) -> float:
    return 1 - cost / price


def _speeds(point: Prediction) -> list[Figure]:
    draws = (
        ("tokens_per_s_per_user", "tokens/s", 1 / point.tpot_s),
        ("tokens_per_s_per_gpu", "tokens/s", 1 / point.device_s),
        ("ttft_s", "s", point.ttft_s),
    )  # fmt: skip
    return [interval_figures(name, unit, "derived", values)[0] for name, unit, values in draws]


def side_by_side(all_found: Sequence[tuple[str, Priced | str]]) -> Table:
    """A row for each GPU at its best point that meets the objective, the cheapest marked. Text: why there is none."""
    best = {
        gpu: found.front[found.best] for gpu, found in all_found if isinstance(found, Priced) and found.best is not None
    }
    prices = {gpu: cost.value for gpu, (_, cost) in best.items() if cost.value is not None}
    cheapest = min(prices, key=prices.__getitem__, default=None)
    rows: list[tuple[Cell, ...]] = []
    notes = ["* the cheapest per million output tokens at the objective"] if cheapest else []
    for gpu, found in all_found:
        if gpu not in best:
            rows.append((gpu, *[None] * 7))
            notes.append(f"{gpu}: {found if isinstance(found, str) else 'no batch meets the objective'}")
            continue
        point, cost = best[gpu]
        rows.append((
            f"{gpu}{' *' if gpu == cheapest else ''}", f"{point.devices}", f"{point.serving.batch * point.replicas:g}",
            *_speeds(point), interval_figures("joules_per_output_token", "J", "derived", point.joules)[0], cost,
        ))  # fmt: skip
        notes += [f"{gpu}: {guess}" for guess in point.guesses]
    columns = ("GPU", "GPUs", "in flight", "per user", "per GPU", "TTFT", "energy", "price")
    name = next((found.prediction.serving.model.name for _, found in all_found if isinstance(found, Priced)), "")
    return Table("gpus", f"{name} at the objective, by GPU", columns, tuple(rows), tuple(notes))


VALIDATION = (
    "each model, GPU or engine version was left out in turn, and its points predicted from the others",
    "median and p90: of |ln(predicted / measured)|, as factors; inside: share of points in the stated 90% interval",
    "baselines on the same rows, median factor: nearest row, constant factor, bytes touched x a constant factor",
    "aiconfigurator: NVIDIA's estimates, on the points for which it has one",
)


def validation_table(classes: Sequence[str] = ()) -> Table:
    """Errors and coverage of predictions by what was left out and by class, beside three baselines.

    `classes`: only those whose first word is one of these; all if empty.
    """
    lines = [[*row.items()] for row in data_rows("predict/validation.csv")]
    rows: list[tuple[Cell, ...]] = []
    for (_, quantity), (_, left_out), (_, level), (_, n), *numbers in lines:
        if classes and level.split()[0] not in classes:
            continue
        found: list[Cell] = []
        for name, text in numbers:
            unit = "share" if name.startswith("inside") else "ratio"
            found.append(Figure(name.replace(" ", "_"), float(text), unit, "derived") if text else "")
        rows.append((f"{quantity}, {left_out}: {level}", n, *found))
    columns = ("quantity, left out: class", "points", *(name for name, _ in lines[0][4:]))
    return Table("validation", "Predictions against measurements", columns, tuple(rows), VALIDATION)
