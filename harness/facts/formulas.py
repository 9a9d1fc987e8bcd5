"""Comparisons of published figures: formulas of comparisons.csv over facts, assumptions and other rows."""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, repeat

from harness.errors import HarnessError
from harness.facts import claims
from harness.facts.book import Book, Comparison, Period, period
from harness.facts.claims import Quantity, Refused, about, at_least, combine, exact, held, length, of_fact, rebased

PAIRS = "pairs"
"""The table that is not made of rows of comparisons.csv: every pair of spend and revenue."""
LENGTHS = ("month", "week", "day", "hour", "year")
SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


@dataclass(frozen=True, slots=True)
class Context:
    """The inputs of a comparison: facts, assumptions, and the measured cost if there is one."""

    book: Book
    measured: Quantity | None = None
    """Of output tokens, in USD/Mtoken; its `ids` name the run."""
    force: bool = False
    """Compute ratios of figures that do not compare, and stamp them."""
    rounding: bool = True
    """Carry half a digit of every printed number; without it a bare number is a point."""
    known: dict[str, "Quantity | HarnessError"] = field(default_factory=dict, compare=False, repr=False)
    """Results of rows that were computed before."""

    def fact(self, fact_id: str) -> Quantity:
        return of_fact(self.book[fact_id], self.rounding)

    def printed(self, fact_id: str) -> Quantity:
        """A fact at its printed digits, also if it says `about`."""
        return claims.printed(self.book[fact_id], self.rounding)

    def given(self, name: str) -> Quantity:
        """An assumption: `~` with its p5 and p95 as ends, or exact if it has none."""
        a = self.book.assumptions[name]
        number = exact(a.value, a.unit, name, status=a.status, why=a.source)
        return number if a.low is None or a.high is None else replace(about(number), low=a.low, high=a.high)


@dataclass(frozen=True, slots=True)
class Line:
    """One result of a comparison, or why it was refused."""

    label: str
    result: Quantity | HarnessError
    name: str = ""
    scope: str = ""


def lines(c: Context, table: str) -> tuple[Line, ...]:
    """The results of a table of comparison_tables.csv. HarnessError for an unknown name."""
    if table not in c.book.tables:
        raise HarnessError(f"unknown comparison '{table}'", f"choose one of {', '.join(c.book.tables)}, contradictions")
    if table == PAIRS:
        return pairs(c)
    rows = (row for row in c.book.comparisons.values() if row.table == table)
    return tuple(Line(row.label, result(c, row.name), row.name, row.scope) for row in rows)


def result(c: Context, name: str) -> Quantity | HarnessError:
    """The result of a row, or why it was refused."""
    if name not in c.known:
        try:
            c.known[name] = _row(c, c.book.comparisons[name])
        except HarnessError as refusal:
            c.known[name] = refusal
    return c.known[name]


def quantity(c: Context, name: str) -> Quantity:
    """The result of a row. HarnessError if it was refused, or if there is no such row."""
    if name not in c.book.comparisons:
        raise HarnessError(f"no row '{name}' in comparisons.csv", "see `harness compare --full`")
    found = result(c, name)
    if isinstance(found, HarnessError):
        raise found
    return found


def evaluate(c: Context, formula: str, over: Period | None = None) -> Quantity:
    """The value of a formula. States of one date are held over the period `over`. HarnessError for a wrong formula."""
    return _value(c, ast.parse(formula.strip(), mode="eval").body, over)


def _row(c: Context, row: Comparison) -> Quantity:
    above = evaluate(c, row.numerator, row.period)
    if not row.denominator:
        return above
    return combine(above, "/", evaluate(c, row.denominator, row.period), force=c.force)


def _value(c: Context, node: ast.expr, over: Period | None) -> Quantity:
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        left, right = _value(c, node.left, over), _value(c, node.right, over)
        return combine(left, SIGNS[type(node.op)], right, force=c.force)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return exact(node.value, "ratio", f"{node.value:g}")
    if isinstance(node, ast.Name):
        return _named(c, node.id, over)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        # A function gets a figure as it is: a named state is not held over the period.
        values = (
            arg.value if isinstance(arg, ast.Constant) else _value(c, arg, None if isinstance(arg, ast.Name) else over)
            for arg in node.args
        )
        if node.func.id in FUNCTIONS:
            return FUNCTIONS[node.func.id](*values)
        if node.func.id in OF_PERIOD and over is not None:
            return OF_PERIOD[node.func.id](over, *values)
        if node.func.id in OF_CONTEXT:
            return OF_CONTEXT[node.func.id](c, over, *values)
    raise HarnessError(f"'{ast.unparse(node)}' is not a formula", "use ids of facts, names of rows, numbers, + - * /")


def _named(c: Context, name: str, over: Period | None) -> Quantity:
    if name in LENGTHS and over is not None:
        return length(over, name)
    if name == "measured":
        if c.measured is None:
            raise Refused("no measured cost", "name a run")
        return c.measured
    if name in c.book.assumptions:
        return c.given(name)
    found = c.fact(name) if name in c.book.facts else quantity(c, name)
    state = found.period is not None and found.period.start is None
    return held(found, over) if state and over is not None else found


def _revenue_floor(c: Context, _: Period | None, share: Quantity) -> Quantity:
    """Total revenue from the net `share` that a partner kept: net share / rate; a floor, since net <= gross.

    The rate (A04) is taken to hold over the share's period; its status, rumour, is among the result's statuses.
    """
    return at_least(_gross(share)) / _rate(c, share.period, c.fact("A04"))


def _gross(share: Quantity) -> Quantity:
    why = f"{share.terms} is net of what the partner owes back (A07), so at most the gross share"
    return rebased(share, "gross", why)


def _rate(c: Context, over: Period | None, fact: Quantity) -> Quantity:
    """A rate that a contract fixes: exact, and valid over the whole period."""
    rate = of_fact(c.book[fact.terms])
    return rate if over is None else held(rate, over, by_contract=True)


def _nine(c: Context, _: Period | None, path: str, *ends: Quantity) -> Quantity:
    """Revenue of the first nine months from the figures of the first half and of the year (`nine_months`)."""
    half, year = (end.terms for end in ends) if ends else ("A11", "E09")
    return claims.nine_months(c.printed(half), c.printed(year), path)


def _plan_sum(over: Period, base: Quantity, yearly: Quantity, years: int) -> Quantity:
    """Revenue of the next `years` years added up, growing from `base` by one factor a year."""
    assert yearly.value is not None
    powers = sum(accumulate(repeat(yearly.value, years), operator.mul))
    total = about(replace(base, period=over) * exact(powers, "ratio", f"sum(g^1..g^{years})"))
    assumptions = (*total.assumptions, f"revenue grows by one factor a year, g = {yearly.terms}")
    ids = tuple(dict.fromkeys((*base.ids, *yearly.ids)))
    return replace(rebased(total, "stock", "revenue of several years added up"), ids=ids, assumptions=assumptions)


def _moved(a: Quantity, first: str, last: str) -> Quantity:
    """A figure whose date or span is read as this period, as an assumption."""
    into = period(first, last)
    return replace(a, period=into, assumptions=(*a.assumptions, f"{a.terms} read as {into}"))


def _whole(bill: Quantity) -> Quantity:
    """One supplier's bill as a floor of what all suppliers were paid."""
    return at_least(rebased(bill, "all-suppliers", f"{bill.terms} is one supplier's: a floor for all of them"))


FUNCTIONS: Mapping[str, Callable[..., Quantity]] = {
    "gross": _gross,
    "whole": _whole,
    "rest": claims.rest,
    "growth": claims.growth,
    "root": claims.root,
    "moved": _moved,
    "basis": lambda a, tags: rebased(a, tags, f"{a.terms} counted as {tags}"),
    "number": lambda value, unit: exact(value, unit, f"{value:g}", status="given"),
}
OF_PERIOD: Mapping[str, Callable[..., Quantity]] = {
    "mean": lambda over, *states: claims.time_mean(states, over),
    "log_mean": lambda over, *states: claims.time_mean(states, over, logs=True),
    "prorata": lambda over, a: claims.prorata(a, over),
    "plan_sum": _plan_sum,
}
"""Functions of the row's span, which it must have, and the arguments."""
OF_CONTEXT: Mapping[str, Callable[..., Quantity]] = {
    "floor": _revenue_floor,
    "nine": _nine,
    "printed": lambda c, _, fact: c.printed(fact.terms),
    "rate": _rate,
}
"""Functions of the context, the row's span if there is one, and the arguments."""


def named_ids(formulas: Sequence[str]) -> Iterator[str]:
    """The names in formulas, in order."""
    for formula in formulas:
        for node in ast.walk(ast.parse(formula.strip() or "1", mode="eval")):
            if isinstance(node, ast.Name):
                yield node.id


def ratio(c: Context, label: str, a: Quantity, b: Quantity) -> Line:
    """a / b, or the refusal; `c.force` computes it despite a different period, basis or unit."""
    try:
        found = combine(a, "/", b, force=c.force)
        if found.unit:
            mixed = f"unit {a.unit_text} with {b.unit_text}"
            if not c.force:
                raise Refused(f"{found.terms} mixes {mixed}", "give both in one unit, or --force it")
            found = about(replace(found, stamps=(*found.stamps, mixed)))
        return Line(label, found)
    except HarnessError as refusal:
        return Line(label, refusal)


def pairs(c: Context) -> tuple[Line, ...]:
    """Every inference spend / every revenue of the same entity whose period overlaps."""
    numbers = [(fact, fact.period) for fact in c.book.facts.values() if fact.bound and fact.currency]
    earned = ("revenue", "annual revenue", "annual recurring revenue", "year-end revenue", "ARR")
    return tuple(
        ratio(c, f"{s.entity}: {s.metric} / {r.metric}", of_fact(s, c.rounding), of_fact(r, c.rounding))
        for s, p in numbers
        for r, q in numbers
        if "inference" in s.basis and r.metric.startswith(earned) and r.entity == s.entity and r.status != "target"
        if "net" not in r.basis and (p.start or p.end) <= q.end and (q.start or q.end) <= p.end
    )
