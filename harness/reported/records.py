"""Published figures as validated records: who said what, about which period, on which basis, in which words."""

from __future__ import annotations

import csv
import io
import math
import re
from calendar import monthrange
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import AfterValidator, BeforeValidator

from harness.errors import HarnessError

Layer = Literal["articles", "outside", "user"]
"""`articles`: the five articles and their quotes. `outside`: complementary figures. `user`: added with --facts."""

FactStatus = Literal[
    "measured", "leaked", "stated", "reported", "inferred", "estimated", "projection", "target", "rumour", "error"
]
"""How the source knows it; `error` where the article contradicts its own source."""

Bound = Literal["=", ">=", "~", "<=", "range", ""]
"""What the wording claims: as printed, at least, about, at most, between two ends, or no number at all."""

AXES: Mapping[str, tuple[str, ...]] = {
    "share": ("net", "gross"),
    "payment": ("cash", "non-cash"),
    "accounting": ("recognised", "run-rate"),
    "time": ("stock", "flow"),
    "compute": ("inference", "training", "total-compute"),
    "activity": ("daily", "weekly", "monthly"),
    "valuation": ("pre-money", "post-money"),
}
"""The ways in which two figures may differ in kind; tags on one axis exclude each other."""

UNITS: Mapping[str, Mapping[str, int]] = {
    **{name: {name: 1} for name in ("USD", "EUR", "GBP", "CNY", "JPY")},
    **{name: {name: 1} for name in ("year", "month", "week", "day", "hour", "minute", "date")},
    **{name: {name: 1} for name in ("user", "customer", "person", "prompt", "message", "query", "request", "token")},
    **{name: {name: 1} for name in ("Wh", "kWh", "MW", "GW", "GPU", "node")},
    **{name: {} for name in ("fraction", "multiple", "ratio", "count", "none")},
}
"""Known unit words. The last five have no dimension; `none` is for rows without a number."""

CURRENCIES = ("USD", "EUR", "GBP", "CNY", "JPY")


@dataclass(frozen=True, slots=True)
class Period:
    """A span of days, both ends included, or the date of a state (`start` None). `text` is for reading only."""

    start: date | None
    end: date
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def days(self) -> int:
        """Days in the span, both ends included; a date of a state has none and raises."""
        if self.start is None:
            raise HarnessError(f"'{self}' is a date, not a span of time", "use a figure with a start and an end")
        return (self.end - self.start).days + 1

    @property
    def months(self) -> float:
        """Twelfths of a year that the span covers, exact for whole months.

        >>> period("2025-01-01", "2025-09-30").months
        9.0
        """
        _ = self.days
        assert self.start is not None
        whole = (self.end.year - self.start.year) * 12 + self.end.month - self.start.month
        first = (self.start.day - 1) / monthrange(self.start.year, self.start.month)[1]
        return whole + self.end.day / monthrange(self.end.year, self.end.month)[1] - first


def period(start: str, end: str) -> Period:
    """The period from two printed dates (YYYY, YYYY-MM or YYYY-MM-DD); `start` empty: the state at `end`.

    >>> str(period("2025-01-01", "2025-09-30")), str(period("", "2025-07")), period("2024", "2024").days
    ('Jan-Sep 2025', 'as of 2025-07', 366)
    """
    if not start:
        return Period(None, _day(end, last=True), f"as of {end}")
    first, last = _day(start, last=False), _day(end, last=True)
    if last < first:
        raise ValueError(f"a period that ends on or after its start {start}")
    text = f"{first} to {last}"
    if first.day == 1 and (last + timedelta(1)).day == 1:
        if (first.month, last.month) == (1, 12) and first.year == last.year:
            text = f"{first.year}"
        elif (first.year, first.month) == (last.year, last.month):
            text = f"{first:%b %Y}"
        else:
            text = f"{first:%b}-{last:%b %Y}" if first.year == last.year else f"{first:%b %Y}-{last:%b %Y}"
    return Period(first, last, text)


def unit_powers(text: str) -> dict[str, int]:
    """A unit such as `USD/GPU-hour` as powers of its words; `-` multiplies, all after the first `/` divides.

    >>> unit_powers("USD/GPU-hour"), unit_powers("fraction")
    ({'USD': 1, 'GPU': -1, 'hour': -1}, {})
    """
    powers: dict[str, int] = {}
    for sign, part in zip((1, -1), text.split("/", 1), strict=False):
        for word in re.split("[-/]", part):
            if word == "1":
                continue
            if word not in UNITS:
                raise ValueError(f"words among {', '.join(UNITS)}, joined with - and /")
            for name, power in UNITS[word].items():
                powers[name] = powers.get(name, 0) + sign * power
    return {name: power for name, power in powers.items() if power}


def _day(text: str, *, last: bool) -> date:
    match = re.fullmatch(r"(\d{4})(?:-(\d{2}))?(?:-(\d{2}))?", text)
    if match is None:
        raise ValueError("a date as YYYY, YYYY-MM or YYYY-MM-DD")
    year, month, day = (int(group) if group else None for group in match.groups())
    assert year is not None
    month = month or (12 if last else 1)
    if not 1 <= month <= 12:
        raise ValueError("a month from 01 to 12")
    return date(year, month, day or (monthrange(year, month)[1] if last else 1))


def _number(text: str) -> float | None:
    if not text:
        return None
    number = float(text)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError("a number of at least 0; name a loss by its metric, not by its sign")
    return number


def _unit(text: str) -> str:
    unit_powers(text)
    return text


def _basis(text: str) -> frozenset[str]:
    tags = frozenset(text.split())
    known = {tag for axis in AXES.values() for tag in axis} | {"unstated"}
    if not tags or not tags <= known:
        raise ValueError(f"one or more of {', '.join(sorted(known))}, separated by spaces")
    for axis in AXES.values():
        if len(tags & set(axis)) > 1:
            raise ValueError(f"at most one of {', '.join(axis)}")
    return tags


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("text, not an empty cell")
    return text


Filled = Annotated[str, AfterValidator(_filled)]
Number = Annotated[float | None, BeforeValidator(_number)]


@pydantic.dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """One published figure as its source printed it; a row of facts.csv.

    `value` holds the one number of `=`, `>=`, `~` and `<=`; a `range` holds `value_low` and `value_high`; all three are
    None where the source gives words only. `quote` is verbatim, `gloss` its English, `wording` the hedge that made the
    bound, `note` what a reader must know.
    """

    id: Filled
    layer: Layer
    entity: Filled
    metric: Filled
    value_low: Number
    value: Number
    value_high: Number
    bound: Bound
    unit: Annotated[str, AfterValidator(_unit)]
    currency: Literal["", "USD", "EUR", "GBP", "CNY", "JPY"]
    period_start: str
    period_end: str
    status: FactStatus
    basis: Annotated[frozenset[str], BeforeValidator(_basis)]
    cited: str
    source: Filled
    wording: str
    quote: str
    gloss: str
    note: str

    @property
    def period(self) -> Period:
        return period(self.period_start, self.period_end)


@dataclass(frozen=True, slots=True)
class Source:
    """An article behind the facts: what is printed as the source of a figure."""

    id: str
    language: str
    kind: str
    date: str
    date_status: str
    cites: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.language}, {self.date}, date {self.date_status}; cites {self.cites})"


@dataclass(frozen=True, slots=True)
class Book:
    """All facts in force by id, and the articles that they come from."""

    facts: Mapping[str, Fact]
    sources: Mapping[str, Source]

    def __getitem__(self, fact_id: str) -> Fact:
        if fact_id not in self.facts:
            raise HarnessError(f"no fact '{fact_id}'", "see `harness facts` for the ids")
        return self.facts[fact_id]

    def source(self, fact_id: str) -> str:
        """Where a fact comes from, in words."""
        source = self[fact_id].source
        return str(self.sources.get(source, source))

    def select(
        self,
        *,
        entity: str | None = None,
        metric: str | None = None,
        period: str | None = None,
        status: str | None = None,
        layer: str | None = None,
    ) -> tuple[Fact, ...]:
        """The facts that match every filter given; entity, metric and period match in part."""
        for name, asked, known in (("status", status, get_args(FactStatus)), ("layer", layer, get_args(Layer))):
            if asked is not None and asked not in known:
                raise HarnessError(f"unknown {name} '{asked}'", f"choose one of {', '.join(known)}")
        return tuple(
            fact
            for fact in self.facts.values()
            if (entity is None or entity.lower() in fact.entity.lower())
            and (metric is None or metric.lower() in fact.metric.lower())
            and (period is None or period in f"{fact.period_start} {fact.period_end} {fact.period}")
            and (status is None or fact.status == status)
            and (layer is None or fact.layer == layer)
        )


def read_sources(text: str, file: str = "sources.csv") -> dict[str, Source]:
    """The articles by id, from the text of a sources file."""
    rows = _rows(text, file, Source.__dataclass_fields__)
    return {row["id"]: Source(**row) for _, row in rows}


def read_book(files: Iterable[tuple[str, str]], sources: Mapping[str, Source]) -> Book:
    """The facts of several files, given as (name, text) in the order of reading, each row checked.

    Raises HarnessError with file, row (the header is row 1), column, the bad value and the expected form. A fact of
    layer `articles` must carry its quote and name an article in `sources`; ids are unique over all files.
    """
    facts: dict[str, Fact] = {}
    for file, text in files:
        for number, row in _rows(text, file, Fact.__dataclass_fields__):
            fact = _fact(row, f"{file} row {number}", sources)
            if fact.id in facts:
                raise _refusal(f"{file} row {number}", "id", fact.id, "an id that no other row has")
            facts[fact.id] = fact
    return Book(facts, sources)


def _rows(text: str, file: str, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), strict=True)
    wanted = list(columns)
    try:
        found = list(reader.fieldnames or ())
        rows = list(enumerate(reader, start=2))
    except csv.Error as error:
        raise HarnessError(
            f"{file} row {reader.line_num}: {error}", "write it as a comma-separated file in UTF-8"
        ) from error
    if sorted(found) != sorted(wanted):
        wrong = [f"no column '{name}'" for name in wanted if name not in found]
        wrong += [f"unknown column '{name}'" for name in found if name not in wanted]
        raise HarnessError(
            f"{file} row 1: {', '.join(wrong) or 'a column stands twice'}", f"use the columns {','.join(wanted)}"
        )
    for number, row in rows:
        if None in row or None in row.values():
            raise HarnessError(f"{file} row {number}: not {len(wanted)} cells", "quote cells that hold a comma")
    return rows


def _fact(row: Mapping[str, Any], where: str, sources: Mapping[str, Source]) -> Fact:
    try:
        fact = Fact(**row)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        column = str(first["loc"][0])
        cause = first.get("ctx", {}).get("error")
        expected = first["msg"].removeprefix("Input should be ")
        if isinstance(cause, ValueError):
            expected = "a number" if "convert string to float" in str(cause) else str(cause)
        raise _refusal(where, column, row[column], expected) from None
    for column, start, end in (
        ("period_end", "", fact.period_end),
        ("period_start", fact.period_start, fact.period_end),
    ):
        try:
            period(start, end)
        except ValueError as error:
            raise _refusal(where, column, row[column], str(error)) from None
    numbers = (fact.value_low, fact.value, fact.value_high)
    needed = {"": (False, False, False), "range": (True, False, True)}.get(fact.bound, (False, True, False))
    if tuple(number is not None for number in numbers) != needed:
        column = "bound" if fact.bound in ("", "range") else "value"
        raise _refusal(
            where, column, row[column], "value for = >= ~ <=, value_low and value_high for range, none for words"
        )
    if fact.value_low is not None and fact.value_high is not None and fact.value_low > fact.value_high:
        raise _refusal(where, "value_low", row["value_low"], "at most value_high")
    if (fact.unit == "none") != (fact.bound == ""):
        raise _refusal(where, "unit", fact.unit, "none where there is no number, else the number's unit")
    if tuple(name for name in CURRENCIES if name in unit_powers(fact.unit)) != (
        (fact.currency,) if fact.currency else ()
    ):
        raise _refusal(
            where, "currency", fact.currency, f"the currency of the unit '{fact.unit}', empty where it has none"
        )
    if fact.layer == "articles":
        if fact.source not in sources:
            raise _refusal(where, "source", fact.source, f"one of {', '.join(sources)}")
        if not fact.quote.strip():
            raise _refusal(where, "quote", fact.quote, "the article's own words")
    return fact


def _refusal(where: str, column: str, value: object, expected: str) -> HarnessError:
    return HarnessError(f"{where}, column {column}: '{value}'", f"write {expected}")
