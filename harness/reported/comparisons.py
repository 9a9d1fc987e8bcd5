"""The comparisons that the published figures allow, each with its formula, its inputs and its doubts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from harness.errors import HarnessError
from harness.reported.algebra import (
    Quantity,
    Refused,
    about,
    at_least,
    divide,
    exact,
    held,
    multiply,
    of_fact,
    rebased,
)
from harness.reported.records import Book, period


@dataclass(frozen=True, slots=True)
class Line:
    """One result of a comparison, or why there is none."""

    label: str
    result: Quantity | HarnessError


@dataclass(frozen=True, slots=True)
class Comparison:
    """A question asked of the published figures. `id` is the word that --explain takes."""

    id: str
    title: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


def line(label: str, result: Callable[[], Quantity]) -> Line:
    """The result, or the refusal in its place."""
    try:
        return Line(label, result())
    except HarnessError as refusal:
        return Line(label, refusal)


def revenue_floor(book: Book, share: str, rate: str = "A04") -> Quantity:
    """Revenue of which `share` is the net part that a partner kept: net share / rate, a floor since net <= gross.

    The rate is held over the share's period; its rumour stays in the result's status.
    """
    net = of_fact(book[share])
    gross = at_least(
        rebased(net, "gross", f"{share} is net of what the partner owes back (A07), so at most the gross share")
    )
    return divide(gross, held(of_fact(book[rate]), book[share].period, by_contract=True))


def nine_months(half: Quantity, year: Quantity, path: str) -> Quantity:
    """Revenue of the first nine months from the first half and the year, by the `path` that quarters take.

    With H2 = year - H1 and H2 >= H1. `non-falling`: on every path of quarters (or months) that never falls, Q3 lies
    between H1 / 2 and H2 / 2, so nine months lie in [1.5 H1, (H1 + year) / 2]: a hard range. One path each, so `~`:
    `linear`, quarters a, a+d, a+2d, a+3d with d = (H2 - H1) / 4 and Q3 = H1 / 2 + 3 d / 2; `geometric`, a factor
    g = sqrt(H2 / H1) a quarter and Q3 = H1 g^2 / (1 + g); `pro rata`, 3/4 of the year whatever the half says.
    """
    first, whole = half.period, year.period
    if (
        first is None
        or whole is None
        or whole.start is None
        or first.start != whole.start
        or (first.months, whole.months) != (6, 12)
    ):
        raise Refused(
            f"{half.terms} ({first}) is not the first half of {year.terms} ({whole})", "give a half and its year"
        )
    y0 = whole.start.year
    span = period(f"{y0}-01-01", f"{y0}-09-30")
    said = (f"quarters of {y0} on a {path} path",)
    if path == "pro rata":
        part = multiply(year, exact(0.75, "fraction", "9/12"))
        return replace(about(part), period=span, assumptions=said)
    if half.bound != "=" or year.bound != "=" or half.value is None or year.value is None:
        raise Refused(f"{half.text()} with {year.text()} leaves the path of quarters open", "give exact figures")
    h1, h2 = half.value, year.value - half.value
    if h2 < h1:
        raise Refused(f"second half {h2:g} is below the first {h1:g}: no path that does not fall", "use pro rata")
    step, g = (h2 - h1) / 4, math.sqrt(h2 / h1)
    q3 = {"linear": h1 / 2 + 1.5 * step, "geometric": h1 * g**2 / (1 + g)}
    both = divide(half, replace(year, period=first))
    both = replace(
        both, unit=half.unit, period=span, assumptions=said, terms=f"nine_months({half.terms}, {year.terms}, {path})"
    )
    if path == "non-falling":
        return replace(both, value=h1 + q3["geometric"], low=1.5 * h1, high=h1 + h2 / 2)
    return about(replace(both, value=h1 + q3[path]))


def spend_per_revenue(book: Book) -> tuple[Line, ...]:
    """Inference spend over revenue of the same period, against each reading of the revenue."""
    spend24, spend25 = of_fact(book["A15"]), of_fact(book["A16"])
    h1, y25 = of_fact(book["A11"]), of_fact(book["E09"])

    def nine(path: str) -> Callable[[], Quantity]:
        return lambda: divide(spend25, nine_months(h1, y25, path))

    return (
        line("revenue at least net share / 20%", lambda: divide(spend24, revenue_floor(book, "A01"))),
        line("the article's own rounding of that floor", lambda: divide(spend24, of_fact(book["A08"]))),
        line("revenue as the press has it", lambda: divide(spend24, of_fact(book["A10"]))),
        line("revenue at least net share / 20%", lambda: divide(spend25, revenue_floor(book, "A02"))),
        line("the article's own rounding of that floor", lambda: divide(spend25, of_fact(book["A09"]))),
        line("press H1 and year, every path that does not fall", nine("non-falling")),
        line("press H1 and year, quarters growing by one factor", nine("geometric")),
        line("press H1 and year, quarters growing by one step", nine("linear")),
        line("press year, pro rata (ignores growth)", nine("pro rata")),
    )


VOLUMES = (("A15", "X02"), ("A16", "X01"), ("A16", "X03"))
"""Spend and the reported volume nearest in time."""


def spend_per_query(book: Book, chat_share: float = 1.0) -> tuple[Line, ...]:
    """USD of inference spend a prompt or message, `chat_share` of the spend being for chat text.

    The volume is dated, the spend is of a period: the volume is held over it, which the line says. Where volume grew, a
    volume late in the period makes the true figure higher.
    """

    def cost(spend: str, volume: str) -> Quantity:
        over = book[spend].period
        rate = held(of_fact(book[volume]), over)
        per = next(word for word, power in rate.unit if power < 0)
        length = exact({"day": over.days, "week": over.days / 7}[per], per, f"{over.days} days")
        part = of_fact(book[spend])
        if chat_share != 1:
            part = multiply(part, exact(chat_share, "fraction", f"chat share {chat_share:g}", "assumed"))
        return divide(part, multiply(rate, length))

    return tuple(
        line(f"{book[volume].unit.split('/')[0]}, volume {book[volume].period}", partial(cost, spend, volume))
        for spend, volume in VOLUMES
    )
