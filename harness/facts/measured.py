"""Stored runs and published measurements as points that reported figures are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.cost.draws import quantile
from harness.cost.pricing import Priced
from harness.errors import HarnessError
from harness.facts.book import SHIPPED, Book, read_book
from harness.facts.claims import Quantity
from harness.facts.gap import Point, measured, published_points
from harness.files import read_data
from harness.model import Figure
from harness.store.run import Run

TOY_PARAMETERS = 1_000_000_000
"""Below this many parameters a model is too small to stand for one that a provider serves."""


def shipped_book(added: Iterable[Path] = ()) -> Book:
    """The shipped facts with those of the user's own files."""
    try:
        mine = [(str(path), path.read_text(encoding="utf-8")) for path in added]
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"cannot read the facts file: {error}", "give a UTF-8 file with --facts FILE") from None
    return read_book({name: read_data(name) for name in SHIPPED}, mine)


def standing(run: Run) -> tuple[str, ...]:
    """What a run cannot speak for, said plainly; empty for a GPU run of a large model."""
    parameters = run.model.parameters
    small = parameters is not None and parameters < TOY_PARAMETERS
    size = f"a {(parameters or 0) / 1e6:.0f}M model" if small else "this model"
    if run.engine is None:
        return ("The engine never started: nothing was measured here.",)
    if run.engine.device == "none":
        return ("The engine is simulated: its figures say nothing about any machine, nor about a provider's fleet.",)
    if run.engine.device == "cpu":
        return (f"CPU figures of {size} say nothing about a provider's fleet: they show that the method runs.",)
    return (f"Figures of {size} say little about the models that a provider serves.",) if small else ()


def run_point(priced: Priced) -> Point:
    """A run as a place to start from. Raises HarnessError for one that never started its engine."""
    run, costs = priced.run, priced.costs
    if run.engine is None:
        raise HarnessError(f"run {run.id} never started its engine", "compare another run")
    figures = {figure.name: figure for figure in (*priced.summary.figures, *costs.figures)}
    tokens, requests = (getattr(figures.get(name), "value", None) for name in ("output_tokens_per_s", "requests_per_s"))
    model, count = run.model, run.engine.device_count
    price = figures["usd_per_hour"].value if run.on_gpu else None
    asked = {a.name: a.distribution for a in costs.assumptions}
    used, requests_per_query = (
        float(quantile(asked[name], np.array(0.5))) if name in asked else 1.0
        for name in ("serving.utilisation", "query.requests")
    )
    return Point(
        run.id,
        str(model.asked or model.source),
        f"{count} x {run.engine.device}, {run.engine.engine}, scenario {costs.scenario}",
        figures["usd_per_query"],
        figures.get("wh_per_query"),
        None if tokens is None or not requests else tokens / requests * requests_per_query,
        model.active_parameters or model.parameters,
        price / count if price is not None else None,
        used,
    )


def points_of(book: Book, runs: Sequence[Priced]) -> list[Point]:
    """The runs as points; where none is of a GPU, published measurements stand in before them."""
    points = [run_point(each) for each in runs]
    if any(each.run.on_gpu for each in runs):
        return points
    price = book.assumptions["gpu_price"].value
    return [*published_points(read_data("published/mlenergy_v3_h100.csv"), price), *points]


def measured_cost(points: Sequence[Point]) -> Quantity | None:
    """The first known cost of a million output tokens, for the comparisons that ask for it; None where none has one."""
    for point in points:
        cost = point.usd_per_query
        if cost.value is not None and point.output_tokens:
            million = Figure("cost", cost.value / point.output_tokens * 1e6, "USD/Mtoken", cost.status)
            said = f"the measured cost is that of {point.model}, {point.conditions} ({point.source})"
            return replace(measured(million, point), assumptions=(said,))
    return None
