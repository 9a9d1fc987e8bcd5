"""Tables of published figures and of the comparisons with them."""

from __future__ import annotations

from collections.abc import Iterable

from harness.errors import HarnessError
from harness.model import Figure
from harness.report.table import Cell, Table
from harness.reported.algebra import Quantity
from harness.reported.comparisons import Line, spend_per_query, spend_per_revenue
from harness.reported.records import Book

COLUMNS = ("quantity", "bound", "value", "unit", "period", "basis", "status", "layer", "source")
"""Columns of every table here: no figure stands without its period, basis and source."""

TOY_PARAMETERS = 1_000_000_000
"""Below this many parameters a model is too small to stand for one that a provider serves."""


def first_table(
    book: Book,
    run: str,
    usd_per_query: Figure | None,
    usd_per_million_output: Figure | None,
    *,
    device: str,
    parameters: int | None,
) -> Table:
    """Inference spend against revenue, the spend a prompt, and the measured cost of the run beside them.

    `device` and `parameters` are those of the run's engine and model: a note says what they do not stand for.
    """
    ratios = spend_per_revenue(book)
    lines = [
        *(Line(f"inference spend / revenue, {ratios[i].label}", ratios[i].result) for i in (0, 2, 3, 5)),
        *(Line(f"inference spend a {x.label}", x.result) for x in spend_per_query(book)),
    ]
    measured = [
        measured_row(label, figure, run)
        for label, figure in (
            ("measured here: cost of a query", usd_per_query),
            ("measured here: cost of a million output tokens", usd_per_million_output),
        )
        if figure is not None
    ]
    reported, notes = rows(lines, book)
    return Table(
        "reported",
        "Reported inference spend, and the cost measured here",
        COLUMNS,
        (*reported, *measured),
        (*standing(device, parameters), *notes),
    )


def standing(device: str, parameters: int | None) -> tuple[str, ...]:
    """What the run cannot speak for, said plainly; empty for a GPU run of a large model."""
    small = parameters is not None and parameters < TOY_PARAMETERS
    size = f"a model of {parameters / 1e6:.0f}M parameters" if small and parameters is not None else "this model"
    if device == "none":
        return (
            "The engine is simulated: its cost figures say nothing about any machine, nor about a provider's fleet.",
        )
    if device == "cpu":
        return (f"CPU figures of {size} say nothing about a provider's fleet: they show that the method runs.",)
    if small:
        return (f"Figures of {size} say little about the models that a provider serves.",)
    return ()


def rows(lines: Iterable[Line], book: Book) -> tuple[tuple[tuple[Cell, ...], ...], tuple[str, ...]]:
    """Table rows of comparison lines, and the notes that they need: stamps, assumptions, sources."""
    body: list[tuple[Cell, ...]] = []
    assumptions: dict[str, None] = {}
    stamps: dict[str, None] = {}
    used: dict[str, None] = {}
    for item in lines:
        if isinstance(item.result, HarnessError):
            body.append((item.label, "", f"refused ({item.result.what})", *[""] * (len(COLUMNS) - 3)))
            continue
        body.append(_row(item.label, item.result))
        assumptions.update(dict.fromkeys(item.result.assumptions))
        stamps.update(dict.fromkeys(f"FORCED: mixes {stamp}" for stamp in item.result.stamps))
        used.update(dict.fromkeys(item.result.ids))
    sources = {book[i].source: book.source(i) for i in used if i in book.facts}
    cited = tuple(text if key == text else f"source {key}: {text}" for key, text in sorted(sources.items()))
    return tuple(body), (*stamps, *(f"taken for granted: {text}" for text in assumptions), *cited)


def measured_row(label: str, figure: Figure, run: str) -> tuple[Cell, ...]:
    """A row for a figure of a run: its period is the run, its source the run's name."""
    bound = "n/a" if figure.value is None else "~" if figure.low is None else f"{figure.low:.4g} to {figure.high:.4g}"
    return (label, bound, figure, figure.unit, "this run", "price x time", figure.status, "run", run)


def _row(label: str, result: Quantity) -> tuple[Cell, ...]:
    figure = result.figure(label)
    bound = result.bound
    if bound == "range":
        bound = f"{result.low:.4g} to {result.high:.4g}"
    basis = ", ".join(sorted(result.basis)) or "unstated"
    if result.stamps:
        basis += " (FORCED)"
    when = str(result.period) if result.period is not None else "any"
    status, layers = " + ".join(result.statuses), " + ".join(result.layers)
    return (label, bound, figure, result.unit_text, when, basis, status, layers, result.terms)
