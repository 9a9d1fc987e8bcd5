"""Arithmetic over published figures that keeps period, basis and bound, and refuses figures that do not compare.

A claim is an interval that contains the true value: `=` is a point, `>=` runs to infinity, `<=` starts at zero, `range`
has two ends, and `~` is unbounded. By interval arithmetic a floor in a denominator makes a ceiling, and `~` combined
with a one-sided claim bounds nothing (`n/a`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from harness.errors import HarnessError
from harness.facts.book import AXES, Fact, Period, unit_powers
from harness.model import Figure

NOTHING = "its inputs bound nothing together"


class Refused(HarnessError):
    """Two figures that differ in period, basis or unit; --force computes the result and stamps it."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A figure with its claim (low, high), its unit, period and basis, and the facts and assumptions behind it.

    Constants and parameters have no `period` and no `basis`. + - * / are `combine` without force.
    """

    value: float | None
    """The best single number: the end of a one-sided claim, a point inside a range; None if nothing is known."""
    low: float
    high: float
    rough: bool
    """True where the value is only approximate (`~`)."""
    unit: tuple[tuple[str, int], ...]
    period: Period | None
    basis: frozenset[str]
    ids: tuple[str, ...]
    """The facts behind it."""
    terms: str
    """The formula, in ids and named constants."""
    statuses: tuple[str, ...]
    layers: tuple[str, ...]
    assumptions: tuple[str, ...] = ()
    """Assumptions of the formula, for instance that a volume of one date held over a year."""
    stamps: tuple[str, ...] = ()
    """The mismatches that --force ignored; printed with the figure."""

    @property
    def bound(self) -> str:
        """`=`, `>=`, `<=`, `range`, `~`, or `n/a` if nothing is claimed."""
        if self.low == self.high:
            return "="
        if self.rough:
            return "~"
        if math.isinf(self.high):
            return "n/a" if self.low == 0 or math.isinf(self.low) else ">="
        return "<=" if self.low == 0 or math.isinf(self.low) else "range"

    @property
    def unit_text(self) -> str:
        """The unit as written in facts files; `ratio` for none."""
        over = "-".join(name for name, power in self.unit for _ in range(power))
        under = "-".join(name for name, power in self.unit for _ in range(-power))
        return (over or ("1" if under else "ratio")) + (f"/{under}" if under else "")

    def text(self) -> str:
        """The claim and its number in four digits.

        >>> exact(2.0, "ratio", "two").text()
        '= 2'
        """
        if self.bound == "range":
            return f"{self.low:.4g} to {self.high:.4g}"
        return "n/a" if self.bound == "n/a" or self.value is None else f"{self.bound} {self.value:.4g}"

    def figure(self, name: str) -> Figure:
        """As a figure for tables and JSON; low and high are the ends of the claim, None if unbounded."""
        known = self.value is not None and math.isfinite(self.value) and self.bound != "n/a"
        low, high = (end if known and math.isfinite(end) else None for end in (self.low, self.high))
        value, reason = (self.value, None) if known else (None, NOTHING)
        status = "reported" if self.ids == (self.terms,) else "derived"
        return Figure(name, value, self.unit_text, status, low, high, reason=reason, interval=f"bound {self.bound}")  # type: ignore[arg-type]

    def __add__(self, other: Quantity) -> Quantity:
        return combine(self, "+", other)

    def __sub__(self, other: Quantity) -> Quantity:
        return combine(self, "-", other)

    def __mul__(self, other: Quantity) -> Quantity:
        return combine(self, "*", other)

    def __truediv__(self, other: Quantity) -> Quantity:
        return combine(self, "/", other)


def exact(value: float, unit: str, name: str, *, status: str = "", why: str = "") -> Quantity:
    """A constant, or a parameter with its `status` and source (`why`), valid in every period; `name` is its formula."""
    statuses, whys = ((status,) if status else ()), ((f"{name} = {value:g} {unit}: {why}",) if why else ())
    return Quantity(value, value, value, False, _unit(unit), None, frozenset(), (), name, statuses, (), whys)


def of_fact(fact: Fact) -> Quantity:
    """A fact as a quantity. HarnessError for a fact without a number."""
    if fact.bound == "":
        raise HarnessError(f"{fact.id} ({fact.metric}) gives no number: '{fact.wording}'", "choose a fact with a value")
    if fact.value_low is not None and fact.value_high is not None:
        value, low, high = (fact.value_low + fact.value_high) / 2, fact.value_low, fact.value_high
    else:
        assert fact.value is not None
        value = fact.value
        low = {"=": value, ">=": value, "<=": 0.0}.get(fact.bound, -math.inf)
        high = {"=": value, "<=": value}.get(fact.bound, math.inf)
    basis, unit, by, of = fact.basis - {"unstated"}, _unit(fact.unit), (fact.status,), (fact.layer,)
    return Quantity(value, low, high, fact.bound == "~", unit, fact.period, basis, (fact.id,), fact.id, by, of)


def combine(a: Quantity, sign: str, b: Quantity, *, force: bool = False) -> Quantity:
    """a `sign` b for one of + - * /: a floor in a denominator makes a ceiling.

    >>> floor = at_least(exact(2.469, "USD", "floor"))
    >>> (exact(3.8, "USD", "spend") / floor).text()
    '<= 1.539'

    Refused if period or basis differ; with `force` the result is stamped and `~` instead. Refused if + or - mixes
    units, with `force` too. HarnessError for a division by zero.
    """
    stamps = mismatches(a, b)
    if stamps and not force:
        what = f"{a.terms} {sign} {b.terms} mixes {'; '.join(stamps)}"
        raise Refused(what, "choose figures that match, or --force it")
    powers = dict(a.unit)
    if sign in "*/":
        for name, power in b.unit:
            powers[name] = powers.get(name, 0) + (power if sign == "*" else -power)
    elif a.unit != b.unit:
        raise Refused(f"{a.terms} {sign} {b.terms} mixes {a.unit_text} with {b.unit_text}", "convert one of them first")
    if sign == "/" and b.value == 0 and b.bound in ("=", "~"):
        raise HarnessError(f"{a.terms} / {b.terms} divides by zero", "leave this ratio out")
    rough = "~" in (a.bound, b.bound) and {a.bound, b.bound} <= {"=", "~"}
    low, high = (-math.inf, math.inf) if rough else _ends(a, sign, b)
    unknown = a.value is None or b.value is None or (sign == "/" and b.value == 0)
    value = None if unknown else _OPERATIONS[sign](a.value, b.value)
    left = f"({a.terms})" if sign in "*/" and any(f" {mark} " in a.terms for mark in "+-") else a.terms
    right = f"({b.terms})" if sign != "+" and any(f" {mark} " in b.terms for mark in "+-*/") else b.terms
    found = Quantity(
        value, low, high, rough,
        tuple(sorted((name, power) for name, power in powers.items() if power)),
        a.period or b.period, a.basis | b.basis, _union(a.ids, b.ids), f"{left} {sign} {right}",
        _union(a.statuses, b.statuses), _union(a.layers, b.layers), _union(a.assumptions, b.assumptions),
        _union(a.stamps, b.stamps, stamps),
    )  # fmt: skip
    found = replace(found, value={">=": low, "<=": high, "n/a": None}.get(found.bound, value))
    return about(found) if stamps else found


def mismatches(a: Quantity, b: Quantity) -> tuple[str, ...]:
    """Why two figures do not compare: different periods, or different tags on one axis of the basis."""
    found = []
    if a.period is not None and b.period is not None and a.period != b.period:
        found.append(f"period {a.period} with {b.period}")
    for name, axis in AXES.items():
        left, right = a.basis & set(axis), b.basis & set(axis)
        if left and right and left != right:
            found.append(f"{name} {'/'.join(sorted(left))} with {'/'.join(sorted(right))}")
    return tuple(found)


def held(a: Quantity, over: Period, *, by_contract: bool = False) -> Quantity:
    """`a` as if it held over all of `over`; recorded as an assumption.

    The state of one day bounds nothing on other days, so the result is `~`; a rate that a contract fixes
    (`by_contract`) keeps its bound.
    """
    if a.period == over or a.period is None:
        return a
    said = _union(a.assumptions, (f"{a.terms} ({a.period}) held over {over}",))
    return replace(a if by_contract else about(a), period=over, assumptions=said)


def about(a: Quantity) -> Quantity:
    """`a` with the bound `~`; `n/a` stays `n/a`."""
    return a if a.bound == "n/a" else replace(a, low=-math.inf, high=math.inf, rough=True)


def at_least(a: Quantity) -> Quantity:
    """`a` as a floor of a larger amount that contains it."""
    return replace(a, high=math.inf)


def rebased(a: Quantity, tags: str, why: str) -> Quantity:
    """`a` with these basis tags in place of those on the same axes; `why` is recorded as an assumption."""
    new = frozenset(tags.split())
    dropped = {tag for axis in AXES.values() if new & set(axis) for tag in axis}
    return replace(a, basis=a.basis - dropped | new, assumptions=_union(a.assumptions, (why,)))


def length(a: Quantity, word: str) -> Quantity:
    """The length of the period of `a` in hours, days, weeks, months or years, by `word`."""
    if a.period is None:
        raise Refused(f"{a.terms} has no period to spread it over", "use a figure with a start and an end")
    days, months = float(a.period.days), a.period.months
    long = {"hour": days * 24, "day": days, "week": days / 7, "month": months, "year": months / 12}[word]
    return exact(long, word, f"{long:g} {word}s")


def growth(later: Quantity, earlier: Quantity) -> Quantity:
    """later / earlier, each as a rate per month of its period; the result's period names both."""
    a, b = (flow / length(flow, "month") for flow in (later, earlier))
    assert a.period is not None
    assert b.period is not None
    span = Period(b.period.start, a.period.end, f"{b.period} -> {a.period}")
    return replace(a, period=span) / replace(b, period=span)


def root(a: Quantity, n: int) -> Quantity:
    """The n-th root of a ratio, which keeps the bound. Refused for a ratio with a unit or below 0."""
    if a.unit or a.value is None or (a.value if a.rough else a.low) < 0:
        raise Refused(f"({a.terms}) ^ (1/{n}) is not of a positive ratio", "use a ratio of like figures")
    low, high = (end if math.isinf(end) else end ** (1 / n) for end in (a.low, a.high))
    return replace(a, value=a.value ** (1 / n), low=low, high=high, terms=f"({a.terms}) ^ (1/{n})")


def time_mean(states: Sequence[Quantity], over: Period) -> Quantity:
    """The mean over a period of a state reported at several dates, as `~`: linear between the dates, constant outside.

    A state of a month or year counts at its last day.
    """
    joint = reduce(operator.add, (held(state, over) for state in states))
    known = dict(sorted((s.period.end.toordinal(), s.value) for s in states if s.period and s.value is not None))
    days = over.end.toordinal() - np.arange(over.days)
    mean = float(np.interp(days, list(known), list(known.values())).mean())
    names = ", ".join(state.terms for state in states)
    said = (f"{names}: linear between their dates, flat outside",)
    return about(replace(joint, value=mean, terms=f"time_mean({names})", assumptions=said))


_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def _ends(a: Quantity, sign: str, b: Quantity) -> tuple[float, float]:
    if sign == "+":
        return a.low + b.low, a.high + b.high
    if sign == "-":
        return a.low - b.high, a.high - b.low
    low, high = b.low, b.high
    if sign == "/":
        if low < 0 < high:
            return -math.inf, math.inf
        low, high = (1 / high if high else -math.inf), (1 / low if low else math.inf)
    # 0 * infinity is 0: an infinite end means any large finite number
    ends = [0.0 if 0 in (x, y) else x * y for x in (a.low, a.high) for y in (low, high)]
    return min(ends), max(ends)


def _unit(text: str) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(unit_powers(text).items()))


def _union(*parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for part in parts for item in part))
