"""What runs cost and where that stands against published figures, as one value that is made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.cost.pricing import Priced
from harness.facts.book import Book
from harness.facts.claims import Quantity
from harness.facts.comparisons import Context
from harness.facts.gap import Ladder, Point, gap, ladder
from harness.facts.measured import measured_cost, points_of, shipped_book, standing


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What runs cost, how that compares with the reported spend, and what must be true for the two to agree."""

    priced: tuple[Priced, ...]
    context: Context
    """The facts and assumptions in force, and the measured cost of a million output tokens."""
    points: tuple[Point, ...]
    """The runs as points; published GPU measurements come first if no run is of a GPU."""
    gaps: tuple[tuple[Point, Quantity], ...]
    """Reported over measured cost of a query, of each point that has a cost."""
    ladder: Ladder | None
    """The first of these gaps, factor by factor; None: no point has a cost."""
    caveats: tuple[str, ...]
    """What the runs cannot speak for."""


def appraise(priced: Sequence[Priced], book: Book | None = None, force: bool = False) -> Appraisal:
    """Set runs, each with its costs, beside the facts of a book (None: the shipped ones).

    `force` computes what does not compare, and stamps it.
    """
    book = book or shipped_book()
    points = points_of(book, priced)
    context = Context(book, measured_cost(points), force)
    gaps = tuple((point, gap(context, point)) for point in points if (point.usd_per_query.value or 0.0) > 0)
    first = ladder(book, gaps[0][1], gaps[0][0]) if gaps else None
    caveats = {note for each in priced for note in standing(each.run)}
    return Appraisal(tuple(priced), context, tuple(points), gaps, first, tuple(sorted(caveats)))
