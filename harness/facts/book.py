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

import numpy as np
import pydantic
from pydantic import AfterValidator, BeforeValidator, TypeAdapter
from pydantic.json_schema import SkipJsonSchema

from harness.config import checked, low_high, near, refused
from harness.cost.draws import PARAMETERS, Distribution, distribution, quantile
from harness.cost.scenario import Words, reduced
from harness.errors import HarnessError
from harness.files import data_rows, read_data
from harness.model import Status

Layer = Literal["articles", "outside", "user"]
"""`articles`: the five articles and their quotes. `outside`: complementary figures. `user`: added with --facts."""
FactStatus = Literal[
    "measured", "audited", "leaked", "stated", "reported", "inferred", "estimated", "projection", "target", "rumour",
    "error",
]  # fmt: skip
"""How the source knows the figure. `error`: the article contradicts its source."""
Bound = Literal["=", ">=", "~", "<=", "range", ""]
"""What the wording claims: exactly, at least, about, at most, between two ends; empty: no number."""
AXES = {row["axis"]: row["tags"].split() for row in data_rows("axes.csv")}
"""The ways in which two figures may differ in kind; a figure has at most one tag of each axis."""
UNITS = {row["kind"]: row["words"].split() for row in data_rows("fact_units.csv")}
"""Kind -> words of units; `none` is the unit of a row without a number."""
PLAIN = UNITS["without dimension"]
WORDS: Words = {word: (1.0, () if word in PLAIN else (word,)) for words in UNITS.values() for word in words}
"""Every word is a base unit: published figures are not converted."""


def unit_powers(text: str) -> dict[str, int]:
    """A unit such as `USD/GPU-hour` as powers of its words.

    >>> unit_powers("USD/GPU-hour"), unit_powers("fraction")
    ({'USD': 1, 'GPU': -1, 'hour': -1}, {})
    """
    try:
        return reduced(text, WORDS)[1]
    except KeyError:
        raise ValueError(f"words among {', '.join(WORDS)}, joined with - and /") from None


NUMBER = "a number of at least 0, such as 2.5e9 (a loss goes by its metric, not its sign; a fraction may be below 0)"


def _number(text: str | float | None) -> float | None:
    if not isinstance(text, str):
        return text
    if not re.fullmatch(r"(-?\d*\.?\d+([eE][+-]?\d+)?)?", text, re.ASCII) or abs(float(text or 0)) == math.inf:
        raise ValueError(NUMBER)
    return float(text) if text else None


def _basis(text: str | frozenset[str]) -> frozenset[str]:
    tags = frozenset(text.split()) if isinstance(text, str) else text
    known = {tag for axis in AXES.values() for tag in axis} | {"unstated"}
    if not tags or not tags <= known or any(len(tags & set(axis)) > 1 for axis in AXES.values()):
        axes = "; ".join(" or ".join(axis) for axis in AXES.values())
        raise ValueError(f"unstated, or tags with spaces between and at most one of each group: {axes}")
    return tags


def half_digit(text: str, unit: str) -> float:
    """Half a unit of the last digit of a printed number; 0 for counts and dates.

    Of a whole number without an exponent, zeros at its end do not count as printed.

    >>> [half_digit(text, "USD") for text in ("8.65e9", "34.00e9", "13e9", "3700000")]
    [5000000.0, 5000000.0, 500000000.0, 50000.0]
    """
    found = re.fullmatch(r"-?(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d+))?", text, re.ASCII)
    if not found or unit in ("count", "date", "none"):
        return 0.0
    whole, decimals, power = found[1], found[2] or "", found[3]
    zeros = 0 if decimals or power else len(whole) - len(whole.rstrip("0"))
    return 0.5 * 10.0 ** (int(power or 0) - len(decimals) + zeros)


def _text(check: Callable[[str], object], expected: str = "") -> AfterValidator:
    """A check of text. `check` raises ValueError with the expected form, or is false if the text is not `expected`."""

    def checked(text: str) -> str:
        if not check(text) and expected:
            raise ValueError(expected)
        return text

    return AfterValidator(checked)


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


Id = Annotated[str, _text(re.compile(r"[\w.-]+").fullmatch, "letters, digits, dots and dashes only")]
Date = Annotated[str, _text(lambda text: text and day(text, last=True))]
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
    half_digit: SkipJsonSchema[float] = 0.0
    """Half a unit of the last printed digit of `value`; not a column."""

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

    `ladder` says how the bill for a prompt depends on it: `*` and `/` multiply and divide it, `output` and `input` are
    its tokens; empty: not at all.
    """

    name: Filled
    label: Filled
    low: Number
    value: Annotated[float, BeforeValidator(_number)]
    high: Number
    unit: Unit
    status: Status
    source: Filled
    ladder: Literal["*", "/", "output", "input", ""]
    given: Distribution | None = None
    """A distribution of the user's; not a column."""

    @property
    def distribution(self) -> Distribution:
        """As given, or else a lognormal between `low` and `high`."""
        if self.low is None or self.high is None:
            return self.given or distribution("value", self.value)
        return self.given or distribution("lognormal", self.low, self.high)


@pydantic.dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """A row of comparisons.csv: numerator / denominator, as formulas in ids of facts, assumptions and other rows.

    `facts.formulas` reads the formulas. An empty denominator is 1. `span` is the period (YYYY-MM..YYYY-MM) over which
    states are held and that `month`, `day`… in a formula measure; `scope` says which suppliers are in it.
    """

    name: Filled
    table: Filled
    provider: Filled
    label: Filled
    numerator: Filled
    denominator: str
    span: str
    scope: str

    @property
    def period(self) -> Period | None:
        start, _, end = self.span.partition("..")
        return period(start, end or start) if start else None


@pydantic.dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """A row of screen.csv: what the first screen of `compare` shows of a provider. Without a `row`, `remark` says why.

    `row` is a row of comparisons.csv; of the section `subject` a fact. Names in braces in `remark` are filled in.
    """

    provider: Filled
    section: Literal["subject", "revenue", "measurement", "power"]
    row: str
    label: str
    remark: str


@dataclass(frozen=True, slots=True)
class Book:
    """All facts by id, the articles that they cite, their contradictions, assumptions, comparisons and the screen."""

    facts: Mapping[str, Fact]
    sources: Mapping[str, Source]
    contradictions: tuple[Contradiction, ...]
    assumptions: Mapping[str, Assumption]
    comparisons: Mapping[str, Comparison]
    tables: Mapping[str, Mapping[str, str]]
    """Name that --table and --explain take -> row of comparison_tables.csv: title and note."""
    screen: tuple[Shown, ...]

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


TEXTS = ("facts.csv", "outside_facts.csv", "outside_facts_2026.csv")
"""The data files with facts."""


def read_book(added: Iterable[tuple[str, str]] = ()) -> Book:
    """The Book from the shipped files, and the texts of the user's facts files, as (name, text).

    HarnessError with file, row (the header is row 1), column, bad value and expected form. A fact of layer `articles`
    needs a quote and an article; ids are unique over all files.
    """

    def table(name: str, kind: Any) -> list[Any]:
        return [item for _, item in _rows(read_data(name), name, kind)]

    sources = {source.id: source for source in table("sources.csv", Source)}
    facts: dict[str, Fact] = {}
    for file, text in [*((name, read_data(name)) for name in TEXTS), *added]:
        for where, fact in _rows(text, file, Fact):
            _check(fact, where, sources)
            if fact.id in facts:
                raise refused(where, "id", fact.id, "an id that no other row has")
            facts[fact.id] = fact
    assumptions = {item.name: item for item in table("assumptions.csv", Assumption)}
    rows = {item.name: item for item in table("comparisons.csv", Comparison)}
    contradictions, screen = table("contradictions.csv", Contradiction), table("screen.csv", Shown)
    tables = {row["name"]: row for row in data_rows("comparison_tables.csv")}
    return Book(facts, sources, tuple(contradictions), assumptions, rows, tables, tuple(screen))


def assume(book: Book, changes: Mapping[str, object]) -> Book:
    """The Book with assumptions changed.

    To an exact number, to LOW:HIGH as p5 and p95 of a lognormal, or to a distribution as in a scenario, such as
    {uniform: {low: 0.2, high: 0.6}}.
    """
    found = dict(book.assumptions)
    for name, given in changes.items():
        if name not in found:
            raise HarnessError(f"unknown assumption '{name}'", f"{near(name, found)}choose one of {', '.join(found)}")
        try:
            shape = _shape(given)
            low, value, high = quantile(shape, np.array([0.05, 0.5, 0.95])).tolist()
            if not 0 < low <= high < math.inf or (found[name].unit == "fraction" and high > 1):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            most = " and at most 1" if found[name].unit == "fraction" else ""
            raise refused("--set", name, given, f"a number, LOW:HIGH or a distribution, above 0{most}") from None
        ends = (low, high) if low < high else (None, None)
        own = None if shape.kind in ("value", "lognormal") else shape
        changed = {"low": ends[0], "value": value, "high": ends[1], "given": own}
        found[name] = replace(found[name], status="assumed", source="set by the user", **changed)
    return replace(book, assumptions=found)


def _shape(given: object) -> Distribution:
    """A distribution from a number, LOW:HIGH or {kind: parameters}. ValueError, KeyError, TypeError if wrong."""
    if isinstance(given, dict):
        ((kind, raw),) = given.items()
        numbers = raw if isinstance(raw, list) else [raw[name] for name in PARAMETERS[kind]]
        return distribution(kind, *map(float, numbers))
    low, high = low_high(given)
    return distribution("lognormal", low, high) if low != high else distribution("value", low)


def columns_of(kind: Any) -> list[str]:
    """The columns of a file of facts, assumptions…, in order."""
    return [column.name for column in fields(kind) if column.name not in ("half_digit", "given")]


def _rows(text: str, file: str, kind: Any) -> Iterable[tuple[str, Any]]:
    columns, form, number = columns_of(kind), TypeAdapter(kind), 0
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), restkey="", strict=True)
    try:
        found = Counter(reader.fieldnames)
        if wrong := sorted((found - Counter(columns)) + (Counter(columns) - found)):
            what = f"{file} row 1: columns missing, unknown or twice: {', '.join(wrong)}"
            raise HarnessError(what, f"use {','.join(columns)}")
        number = 1
        for number, row in enumerate(reader, start=2):
            where = f"{file} row {number}"
            if "" in row or None in row.values():
                raise HarnessError(f"{where} has not {len(columns)} cells", "put cells that hold a comma in quotes")
            if kind is Fact:
                row |= {"half_digit": half_digit(row["value"], row["unit"])}
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
    currency = "".join(name for name in UNITS["currency"] if name in unit_powers(fact.unit))
    cited = fact.layer == "articles"
    for column, wrong, expected in (
        ("bound", given != numbers, form),
        ("value", fact.unit != "fraction" and min(fact.value_low or 0, fact.value or 0) < 0, NUMBER),
        ("value_low", fact.bound == "range" and (fact.value_low or 0) > (fact.value_high or 0), "at most value_high"),
        ("unit", (fact.unit == "none") != (fact.bound == ""), "none where there is no number, else the number's unit"),
        ("currency", fact.currency != currency, f"the currency in the unit '{fact.unit}', or nothing"),
        ("source", cited and fact.source not in sources, f"one of {', '.join(sources)}"),
        ("quote", cited and not fact.quote.strip(), "the article's own words"),
    ):
        if wrong:
            raise refused(where, column, getattr(fact, column), expected)
