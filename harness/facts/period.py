"""Spans of days and dates of states."""

import re
from calendar import monthrange
from dataclasses import dataclass, field
from datetime import date, timedelta

from harness.errors import HarnessError


@dataclass(frozen=True, slots=True)
class Period:
    """A span of days, both ends included; if `start` is None, the date of a state. `text` is the printed form."""

    start: date | None
    end: date
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def days(self) -> int:
        """Days in the span. HarnessError for the date of a state."""
        if self.start is None:
            raise HarnessError(f"'{self}' is a date, not a span of time", "use a figure with a start and an end")
        return (self.end - self.start).days + 1

    @property
    def months(self) -> float:
        """Months in the span; a part of a month counts as its share of the days of that month.

        >>> period("2025-01", "2025-09").months
        9.0
        """
        first = self.end - timedelta(self.days - 1)
        before = (first.day - 1) / monthrange(first.year, first.month)[1]
        last = self.end.day / monthrange(self.end.year, self.end.month)[1]
        return (self.end.year - first.year) * 12 + self.end.month - first.month + last - before


def period(start: str, end: str) -> Period:
    """The period between two dates (YYYY, YYYY-MM or YYYY-MM-DD); an empty `start`: the state at `end`.

    >>> str(period("2025-01-01", "2025-09-30")), str(period("", "2025-07")), period("2024", "2024").days
    ('Jan-Sep 2025', 'as of 2025-07', 366)
    """
    if not start:
        return Period(None, day(end, last=True), f"as of {end}")
    first, last = day(start, last=False), day(end, last=True)
    if last < first:
        raise ValueError(f"a date on or after period_start {start}")
    text = f"{first} to {last}"
    if first.day == 1 and last.day == monthrange(last.year, last.month)[1]:
        text = f"{first:%b %Y}-{last:%b %Y}" if first.year < last.year else f"{first:%b}-{last:%b %Y}"
        text = f"{first:%b %Y}" if first.month == last.month and first.year == last.year else text
        text = f"{first.year}" if (last - first).days > 363 and first.year == last.year else text
    return Period(first, last, text)


def day(text: str, *, last: bool) -> date:
    """The first or last day of a date as printed. ValueError for another form."""
    try:
        if not re.fullmatch(r"\d{4}(-\d\d){0,2}", text, re.ASCII):
            raise ValueError
        first = date.fromisoformat((text + "-01-01")[:10])
    except ValueError:
        raise ValueError("a date as YYYY, YYYY-MM or YYYY-MM-DD") from None
    if not last or len(text) == 10:
        return first
    month = 12 if len(text) == 4 else first.month
    return first.replace(month=month, day=monthrange(first.year, month)[1])
