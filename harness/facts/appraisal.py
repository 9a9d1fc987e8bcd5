"""What runs cost and where that stands against published figures, as one value that is made once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harness.cost.bill import measured
from harness.cost.draws import quantile
from harness.cost.pricing import Priced
from harness.cost.scenario import Scenario
from harness.errors import HarnessError
from harness.facts.book import SHIPPED, Book, read_book
from harness.facts.claims import Quantity
from harness.facts.comparisons import Context
from harness.facts.gap import Ladder, Measurement, as_quantity, gap, ladder, published_measurements
from harness.files import read_data
from harness.model import Figure
from harness.store.run import Run

TOY_PARAMETERS = 1_000_000_000
"""A model with fewer parameters is too small to stand for one that a provider serves."""


def shipped_book(added: Iterable[Path] = ()) -> Book:
    """The shipped facts and those of the user's files. HarnessError for a file that cannot be read or is not valid."""
    try:
        mine = [(str(path), path.read_text(encoding="utf-8")) for path in added]
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"cannot read the facts file: {error}", "give a UTF-8 file with --facts FILE") from None
    return read_book({name: read_data(name) for name in SHIPPED}, mine)


def published(book: Book) -> tuple[Measurement, ...]:
    """ML.ENERGY's measurements on H100, at the GPU price that the book assumes."""
    return published_measurements(read_data("published/mlenergy_v3_h100.csv"), book.assumptions["gpu_price"].value)


def standing(run: Run) -> tuple[str, ...]:
    """What the figures of a run do not show; empty for a GPU run of a large model."""
    parameters = run.model.parameters
    small = parameters is not None and parameters < TOY_PARAMETERS
    size = f"a {(parameters or 0) / 1e6:.0f}M model" if small else "this model"
    if run.engine is None:
        return ("The engine never started: nothing was measured here.",)
    if run.engine.device == "none":
        return ("The engine is simulated: its figures say nothing about any machine or about a provider's fleet.",)
    if run.engine.device == "cpu":
        return (f"CPU figures of {size} say nothing about a provider's fleet: they show that the method runs.",)
    return (f"Figures of {size} say little about the models that a provider serves.",) if small else ()


def measurement_of(priced: Priced) -> Measurement:
    """The measured query of a run. HarnessError if the run never started its engine."""
    run, costs, model = priced.run, priced.costs, priced.run.model
    if run.engine is None:
        raise HarnessError(f"run {run.id} never started its engine", "compare another run")
    tokens, requests = (measured(priced.summary, name).value for name in ("output_tokens_per_s", "requests_per_s"))
    per_query = median(priced.scenario, "query.requests", 1.0)
    count, price = run.device_count, costs["usd_per_hour"].value
    return Measurement(
        run.id,
        str(model.asked or model.source),
        f"{run.file.created_utc:%Y-%m-%d}",
        f"{count} x {run.engine.device}, {run.engine.engine}, scenario {costs.scenario}",
        costs["usd_per_query"],
        next((figure for figure in costs.figures if figure.name == "wh_per_query"), None),
        tokens / requests * per_query if tokens is not None and requests is not None else None,
        model.active_parameters or model.parameters,
        price / count if price is not None and run.on_gpu else None,
        median(priced.scenario, "serving.utilisation", 1.0),
    )


def median(scenario: Scenario, key: str, otherwise: float) -> float:
    """The median of an input of the scenario, or `otherwise` if the scenario lacks it."""
    given = scenario.inputs.get(key)
    return otherwise if given is None else float(quantile(given.distribution, np.array(0.5)))


def measurements_of(book: Book, runs: Sequence[Priced]) -> list[Measurement]:
    """The measurements of the runs, after the published ones if no run is of a GPU."""
    own = [measurement_of(each) for each in runs]
    return own if any(each.run.on_gpu for each in runs) else [*published(book), *own]


def measured_cost(measurements: Iterable[Measurement]) -> Quantity | None:
    """The first known cost of a million output tokens, in USD/Mtoken; None if no measurement has one."""
    for each in measurements:
        cost = each.usd_per_query
        if cost.value is not None and each.output_tokens:
            million = Figure("cost", cost.value / each.output_tokens * 1e6, "USD/Mtoken", cost.status)
            said = f"the measured cost is that of {each.model}, {each.conditions} ({each.source})"
            return replace(as_quantity(million, each.source), assumptions=(said,))
    return None


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What runs cost, the gap to the reported spend, and the factors that could explain the gap."""

    priced: tuple[Priced, ...]
    context: Context
    """The facts and assumptions in force, and the measured cost of a million output tokens."""
    measurements: tuple[Measurement, ...]
    """Of the runs; the published GPU measurements come first if no run is of a GPU."""
    gaps: tuple[tuple[Measurement, Quantity], ...]
    """Reported / measured cost of a query, for each measurement with a cost above 0."""
    ladder: Ladder | None
    """The factors of the first gap; None if no measurement has a cost."""
    caveats: tuple[str, ...]
    """What the figures of the runs do not show."""


def appraise(priced: Sequence[Priced], book: Book | None = None, force: bool = False) -> Appraisal:
    """Compare runs and their costs with the facts of a book (None: the shipped facts).

    `force` also compares figures of different period, basis or unit, and stamps those results.
    """
    book = book or shipped_book()
    found = measurements_of(book, priced)
    context = Context(book, measured_cost(found), force)
    gaps = tuple((each, gap(context, each)) for each in found if (each.usd_per_query.value or 0.0) > 0)
    first = ladder(book, gaps[0][1], gaps[0][0]) if gaps else None
    caveats = {caveat for each in priced for caveat in standing(each.run)}
    return Appraisal(tuple(priced), context, tuple(found), gaps, first, tuple(sorted(caveats)))
