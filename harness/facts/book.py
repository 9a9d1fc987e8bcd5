"""Published figures as validated records: source, period, basis, bound and the quoted words."""

import csv
import io
import math
import re
from calendar import monthrange
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date, timedelta
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import AfterValidator, BeforeValidator, TypeAdapter

from harness.config import checked, low_high, near, refused
from harness.cost import units
from harness.errors import HarnessError
from harness.model import Status

Layer = Literal["articles", "outside", "user"]
"""`articles`: the five articles and their quotes. `outside`: complementary figures. `user`: added with --facts."""
FactStatus = Literal[
    "measured", "leaked", "stated", "reported", "inferred", "estimated", "projection", "target", "rumour", "error"
]
"""How the source knows the figure. `error`: the article contradicts its source."""
Bound = Literal["=", ">=", "~", "<=", "range", ""]
"""What the wording claims: exactly, at least, about, at most, between two ends; empty: no number."""
AXES: Mapping[str, tuple[str, ...]] = {
    "share": ("net", "gross"),
    "payment": ("cash", "non-cash"),
    "accounting": ("recognised", "run-rate"),
    "time": ("stock", "flow", "run-rate"),
    "compute": ("inference", "training", "total-compute"),
    "activity": ("daily", "weekly", "monthly"),
    "valuation": ("pre-money", "post-money"),
}
"""The ways in which two figures may differ in kind; a figure has at most one tag of each axis."""
CURRENCIES = ("USD", "EUR", "GBP", "CNY", "JPY")
PLAIN = ("fraction", "multiple", "ratio", "count", "none")
"""Units without a dimension; `none` is the unit of a row without a number."""
UNITS = (
    *CURRENCIES,
    *("year", "month", "week", "day", "hour", "minute", "date", "user", "customer", "person", "prompt", "message"),
    *("query", "request", "token", "Mtoken", "parameter", "Wh", "kWh", "kW", "MW", "GW", "GPU", "node"),
)
WORDS: units.Words = {word: (1.0, (word,)) for word in UNITS} | dict.fromkeys(PLAIN, (1.0, ()))
"""Every word is a base unit: published figures are not converted."""


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
        return Period(None, _day(end, last=True), f"as of {end}")
    first, last = _day(start, last=False), _day(end, last=True)
    if last < first:
        raise ValueError(f"a date on or after period_start {start}")
    text = f"{first} to {last}"
    if first.day == 1 and last.day == monthrange(last.year, last.month)[1]:
        text = f"{first:%b %Y}-{last:%b %Y}" if first.year < last.year else f"{first:%b}-{last:%b %Y}"
        text = f"{first:%b %Y}" if first.month == last.month and first.year == last.year else text
        text = f"{first.year}" if (last - first).days > 363 and first.year == last.year else text
    return Period(first, last, text)


def unit_powers(text: str) -> dict[str, int]:
    """A unit such as `USD/GPU-hour` as powers of its words.

    >>> unit_powers("USD/GPU-hour"), unit_powers("fraction")
    ({'USD': 1, 'GPU': -1, 'hour': -1}, {})
    """
    try:
        return units.reduced(text, WORDS)[1]
    except KeyError:
        raise ValueError(f"words among {', '.join(WORDS)}, joined with - and /") from None


def _day(text: str, *, last: bool) -> date:
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


def _number(text: str | float | None) -> float | None:
    if not isinstance(text, str):
        return text
    if not re.fullmatch(r"(\d*\.?\d+([eE][+-]?\d+)?)?", text, re.ASCII) or float(text or 0) == math.inf:
        raise ValueError("a number of at least 0, such as 2.5e9 (a loss goes by its metric, not its sign)")
    return float(text) if text else None


def _basis(text: str) -> frozenset[str]:
    tags, known = frozenset(text.split()), {tag for axis in AXES.values() for tag in axis} | {"unstated"}
    if not tags or not tags <= known or any(len(tags & set(axis)) > 1 for axis in AXES.values()):
        axes = "; ".join(" or ".join(axis) for axis in AXES.values())
        raise ValueError(f"unstated, or tags with spaces between and at most one of each group: {axes}")
    return tags


def _text(check: Callable[[str], object], expected: str = "") -> AfterValidator:
    """A check of text. `check` raises ValueError with the expected form, or is false if the text is not `expected`."""

    def checked(text: str) -> str:
        if not check(text) and expected:
            raise ValueError(expected)
        return text

    return AfterValidator(checked)


Id = Annotated[str, _text(re.compile(r"[\w.-]+").fullmatch, "letters, digits, dots and dashes only")]
Date = Annotated[str, _text(lambda text: text and _day(text, last=True))]
Filled = Annotated[str, _text(str.strip, "text, not an empty cell")]
Number = Annotated[float | None, BeforeValidator(_number)]
Unit = Annotated[str, _text(unit_powers)]


@pydantic.dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """One published figure as its source printed it; a row of facts.csv.

    The bounds `=`, `>=`, `~` and `<=` have one number, `value`; a `range` has `value_low` and `value_high`; all three
    are None if the source gives no number. `quote` is verbatim, `gloss` its English translation, `wording` the words
    that decide the bound, `note` what a reader must know.
    """

    id: Id
    layer: Layer
    entity: Filled
    metric: Filled
    value_low: Number
    value: Number
    value_high: Number
    bound: Bound
    unit: Unit
    currency: str
    period_start: Date
    period_end: Date
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


@pydantic.dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """An article that facts cite; its text is printed as the source of a figure."""

    id: Filled
    language: str
    kind: Filled
    date: Filled
    date_status: str
    cites: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.language}, {self.date}, date {self.date_status}; cites {self.cites})"


@pydantic.dataclasses.dataclass(frozen=True, slots=True)
class Contradiction:
    """Facts that contradict each other, and why."""

    topic: Filled
    ids: Annotated[tuple[str, ...], BeforeValidator(str.split)]
    why: Filled


@pydantic.dataclasses.dataclass(frozen=True, slots=True)
class Assumption:
    """A number that no fact gives. `low` and `high` are its p5 and p95; without them the number counts as exact.

    `ladder` says how the cost of a query scales with the provider's value. `FIELD`: value / that field of the
    `Measurement`; `1/FIELD`: the inverse; `1/`: 1 / value; empty: not at all.
    """

    name: Filled
    label: Filled
    low: Number
    value: Annotated[float, BeforeValidator(_number)]
    high: Number
    unit: Unit
    status: Status
    source: Filled
    ladder: str


@dataclass(frozen=True, slots=True)
class Book:
    """All facts by id, the articles that they cite, their contradictions, and the assumptions."""

    facts: Mapping[str, Fact]
    sources: Mapping[str, Source]
    contradictions: tuple[Contradiction, ...]
    assumptions: Mapping[str, Assumption]

    def __getitem__(self, fact_id: str) -> Fact:
        if fact_id not in self.facts:
            raise HarnessError(f"no fact '{fact_id}'", "see `harness facts` for the ids")
        return self.facts[fact_id]

    def source(self, fact_id: str) -> str:
        """The article of a fact, or what its row names as source."""
        source = self[fact_id].source
        return str(self.sources.get(source, source))

    def select(self, *, status: str | None = None, layer: str | None = None, **parts: str | None) -> tuple[Fact, ...]:
        """The facts of that status and layer whose entity, metric and period contain the `parts`; case is ignored."""
        for name, asked, known in (("status", status, FactStatus), ("layer", layer, Layer)):
            if asked is not None and asked not in get_args(known):
                raise HarnessError(f"unknown {name} '{asked}'", f"choose one of {', '.join(get_args(known))}")

        def text(fact: Fact, part: str) -> str:
            return f"{fact.period_start} {fact.period_end} {fact.period}" if part == "period" else getattr(fact, part)

        return tuple(
            fact
            for fact in self.facts.values()
            if fact.status == (status or fact.status) and fact.layer == (layer or fact.layer)
            if all(asked is None or asked.lower() in text(fact, part).lower() for part, asked in parts.items())
        )


SHIPPED = ("sources.csv", "contradictions.csv", "assumptions.csv", "facts.csv", "outside_facts.csv")
"""The data files that a Book is read from."""


def read_book(shipped: Mapping[str, str], added: Iterable[tuple[str, str]] = ()) -> Book:
    """The Book from the texts of the SHIPPED files, by name, and of the user's facts files, as (name, text).

    HarnessError with file, row (the header is row 1), column, bad value and expected form. A fact of layer `articles`
    needs a quote and an article; ids are unique over all files.
    """
    sources = {source.id: source for _, source in _rows(shipped["sources.csv"], "sources.csv", Source)}
    facts: dict[str, Fact] = {}
    for file, text in [(name, shipped[name]) for name in SHIPPED[3:]] + list(added):
        for where, fact in _rows(text, file, Fact):
            _check(fact, where, sources)
            if fact.id in facts:
                raise refused(where, "id", fact.id, "an id that no other row has")
            facts[fact.id] = fact
    contradictions = tuple(
        item for _, item in _rows(shipped["contradictions.csv"], "contradictions.csv", Contradiction)
    )
    assumptions = {item.name: item for _, item in _rows(shipped["assumptions.csv"], "assumptions.csv", Assumption)}
    return Book(facts, sources, contradictions, assumptions)


def assume(book: Book, changes: Mapping[str, object]) -> Book:
    """The Book with assumptions changed: to an exact number, or to LOW:HIGH as p5 and p95 around sqrt(LOW HIGH)."""
    found = dict(book.assumptions)
    for name, given in changes.items():
        if name not in found:
            raise HarnessError(f"unknown assumption '{name}'", f"{near(name, found)}choose one of {', '.join(found)}")
        try:
            low, high = low_high(given)
            if not 0 < low <= high < math.inf or (found[name].unit == "fraction" and high > 1):
                raise ValueError
        except ValueError:
            most = " and at most 1" if found[name].unit == "fraction" else ""
            raise refused("--set", name, given, f"a number or LOW:HIGH, above 0{most}") from None
        ends = (low, high) if low < high else (None, None)
        value, source = math.sqrt(low * high), "set by the user"
        found[name] = replace(found[name], low=ends[0], value=value, high=ends[1], status="assumed", source=source)
    return replace(book, assumptions=found)


def _rows(text: str, file: str, kind: Any) -> Iterable[tuple[str, Any]]:
    columns = [column.name for column in fields(kind)]
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), restkey="", strict=True)
    found = Counter(reader.fieldnames)
    if wrong := sorted((found - Counter(columns)) + (Counter(columns) - found)):
        what = f"{file} row 1: columns missing, unknown or twice: {', '.join(wrong)}"
        raise HarnessError(what, f"use {','.join(columns)}")
    number, form = 1, TypeAdapter(kind)
    try:
        for number, row in enumerate(reader, start=2):
            where = f"{file} row {number}"
            if "" in row or None in row.values():
                raise HarnessError(f"{where} has not {len(columns)} cells", "put cells that hold a comma in quotes")
            yield where, checked(form, row, where)
    except csv.Error as error:
        raise HarnessError(f"{file} row {number + 1}: {error}", "write comma-separated UTF-8 text") from None


def _check(fact: Fact, where: str, sources: Mapping[str, Source]) -> None:
    """The rules that involve several columns."""
    try:
        _ = fact.period
    except ValueError as error:
        raise refused(where, "period_end", fact.period_end, str(error)) from None
    given = [number is not None for number in (fact.value_low, fact.value, fact.value_high)]
    numbers = {"": [False] * 3, "range": [True, False, True]}.get(fact.bound, [False, True, False])
    form = "value with = >= ~ or <=, value_low and value_high with range, and no number with an empty bound"
    currency, cited = "".join(name for name in CURRENCIES if name in unit_powers(fact.unit)), fact.layer == "articles"
    for column, wrong, expected in (
        ("bound", given != numbers, form),
        ("value_low", fact.bound == "range" and (fact.value_low or 0) > (fact.value_high or 0), "at most value_high"),
        ("unit", (fact.unit == "none") != (fact.bound == ""), "none where there is no number, else the number's unit"),
        ("currency", fact.currency != currency, f"the currency in the unit '{fact.unit}', or nothing"),
        ("source", cited and fact.source not in sources, f"one of {', '.join(sources)}"),
        ("quote", cited and not fact.quote.strip(), "the article's own words"),
    ):
        if wrong:
            raise refused(where, column, getattr(fact, column), expected)
