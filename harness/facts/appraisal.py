"""What runs cost, compared with the published figures: one value, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.cost.pricing import Priced
from harness.facts.book import Book
from harness.facts.claims import Quantity
from harness.facts.comparisons import Context
from harness.facts.gap import Ladder, Measurement, gap, ladder
from harness.facts.measured import measured_cost, measurements_of, shipped_book, standing


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
