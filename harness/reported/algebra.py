"""Arithmetic over published figures that keeps period, basis and bound, and refuses what does not compare.

A claim is kept as an interval that the true value is known to lie in: `=` is a point, `>=` runs to infinity, `<=`
starts at zero, `range` has two ends, `~` claims nothing hard. Interval arithmetic then carries every claim soundly: a
floor in a denominator becomes a ceiling, and a `~` beside a one-sided claim leaves nothing (`n/a`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.errors import HarnessError
from harness.model import Figure
from harness.reported.records import AXES, Fact, Period, unit_powers


class Refused(HarnessError):
    """Two figures that differ in a way that matters; `force` computes and stamps the result."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A figure with what it claims (low, high), what it is about (unit, period, basis) and what it rests on.

    `value` is the best single number, None where nothing can be said. `period` None and empty `basis` belong to
    constants and parameters. `ids` are the facts and other sources behind it; `terms` the formula in ids.
    """

    value: float | None
    low: float
    high: float
    about: bool
    """True where the value is only approximate (`~`)."""
    unit: tuple[tuple[str, int], ...]
    period: Period | None
    basis: frozenset[str]
    ids: tuple[str, ...]
    terms: str
    statuses: tuple[str, ...]
    layers: tuple[str, ...]
    assumptions: tuple[str, ...] = ()
    """What was taken for granted on the way, for instance that a volume of one date held over a year."""
    stamps: tuple[str, ...] = ()
    """The mismatches that were forced; every table that shows the figure shows them."""

    @property
    def bound(self) -> str:
        """The claim in one word: `=`, `>=`, `<=`, `range`, `~`, or `n/a` where nothing can be claimed."""
        if self.low == self.high:
            return "="
        if self.about:
            return "~"
        if math.isinf(self.high):
            return ">=" if self.low > 0 or -math.inf < self.low < 0 else "n/a"
        return "<=" if self.low <= 0 and (self.low == 0 or math.isinf(self.low)) else "range"

    @property
    def unit_text(self) -> str:
        """The unit as written in facts files; `ratio` for none."""
        over = "-".join(name for name, power in self.unit for _ in range(power))
        under = "-".join(name for name, power in self.unit for _ in range(-power))
        return (over or ("1" if under else "ratio")) + (f"/{under}" if under else "")

    def text(self, digits: int = 4) -> str:
        """The claim and its number, for instance `<= 1.539`.

        >>> text = exact(2.0, "ratio", "two").text(); text
        '= 2'
        """
        bound = self.bound
        if self.value is None or bound == "n/a":
            return "n/a (its inputs bound nothing together)"
        if bound == "range":
            return f"{self.low:.{digits}g} to {self.high:.{digits}g}"
        return f"{bound} {self.value:.{digits}g}"

    def figure(self, name: str) -> Figure:
        """The same as a figure for tables and JSON; low and high are the ends of the claim, None where open."""
        known = self.value is not None and self.bound != "n/a"
        ends = [end if known and math.isfinite(end) else None for end in (self.low, self.high)]
        return Figure(
            name,
            self.value if known else None,
            self.unit_text,
            "reported" if "(" not in self.terms and " " not in self.terms else "derived",
            low=ends[0],
            high=ends[1],
            reason=None if known else "its inputs bound nothing together",
            interval=f"bound {self.bound}",
        )


def exact(value: float, unit: str, name: str, *statuses: str) -> Quantity:
    """A constant (no status) or a parameter, the same in every period; `name` stands for it in formulas."""
    return Quantity(value, value, value, False, _unit(unit), None, frozenset(), (), name, statuses, ())


def of_fact(fact: Fact) -> Quantity:
    """A fact as a quantity. Raises HarnessError for one that gives words instead of a number."""
    low, value, high = fact.value_low, fact.value, fact.value_high
    if fact.bound == "":
        raise HarnessError(f"{fact.id} ({fact.metric}) gives no number: '{fact.wording}'", "choose a fact with a value")
    if low is not None and high is not None:
        value = (low + high) / 2
    else:
        assert value is not None
        low = {"=": value, ">=": value, "<=": 0.0}.get(fact.bound, -math.inf)
        high = {"=": value, "<=": value}.get(fact.bound, math.inf)
    return Quantity(
        value,
        low,
        high,
        fact.bound == "~",
        _unit(fact.unit),
        fact.period,
        fact.basis - {"unstated"},
        (fact.id,),
        fact.id,
        (fact.status,),
        (fact.layer,),
    )


def add(a: Quantity, b: Quantity, *, force: bool = False) -> Quantity:
    """a + b; both in one unit."""
    return _combine("+", a, b, lambda x, y: x + y, (a.low + b.low, a.high + b.high), force)


def subtract(a: Quantity, b: Quantity, *, force: bool = False) -> Quantity:
    """a - b; both in one unit."""
    return _combine("-", a, b, lambda x, y: x - y, (a.low - b.high, a.high - b.low), force)


def multiply(a: Quantity, b: Quantity, *, force: bool = False) -> Quantity:
    """a * b."""
    return _combine("*", a, b, lambda x, y: x * y, _product((a.low, a.high), (b.low, b.high)), force)


def divide(a: Quantity, b: Quantity, *, force: bool = False) -> Quantity:
    """a / b: a floor in `b` makes a ceiling.

    >>> floor = replace(exact(2.469, "USD", "floor"), high=math.inf)
    >>> divide(exact(3.8, "USD", "spend"), floor).text(6)
    '<= 1.53908'

    Raises HarnessError where b is zero.
    """
    if b.value == 0 or b.low == b.high == 0:
        raise HarnessError(f"{a.terms} / {b.terms} divides by zero", "leave this ratio out")
    return _combine("/", a, b, lambda x, y: x / y, _product((a.low, a.high), _reciprocal(b.low, b.high)), force)


def held(a: Quantity, over: Period, *, by_contract: bool = False) -> Quantity:
    """`a`, which its source dates otherwise, taken to hold over all of `over`: an assumption, recorded as one.

    A state of one day says nothing hard of the days before and after it, so the result is `~`; only terms that
    were agreed once (a rate `by_contract`) keep their bound.
    """
    if a.period == over or a.period is None:
        return a
    said = _union(a.assumptions, (f"{a.terms} ({a.period}) held over {over}",))
    return replace(a if by_contract else about(a), period=over, assumptions=said)


def about(a: Quantity) -> Quantity:
    """`a` as an approximation only, whatever it claimed; `n/a` stays `n/a`."""
    return a if a.bound == "n/a" else replace(a, low=-math.inf, high=math.inf, about=True)


def rebased(a: Quantity, tags: str, why: str) -> Quantity:
    """`a` with these basis tags instead of those on the same axes: an assumption, and recorded as one."""
    new = frozenset(tags.split())
    dropped = {tag for axis in AXES.values() if new & set(axis) for tag in axis}
    return replace(a, basis=a.basis - dropped | new, assumptions=_union(a.assumptions, (why,)))


def at_least(a: Quantity) -> Quantity:
    """`a` as a floor of something that contains it."""
    return replace(a, high=math.inf)


def per_time(a: Quantity, word: str) -> Quantity:
    """A flow over its own period as a mean rate per day or month; the period is kept."""
    if a.period is None:
        raise HarnessError(f"{a.terms} has no period to spread it over", "use a figure with a start and an end")
    length = {"day": float(a.period.days), "month": a.period.months}[word]
    return divide(a, exact(length, word, f"{length:g} {word}s"))


def growth(later: Quantity, earlier: Quantity) -> Quantity:
    """later / earlier, rates of two periods, which is what a trend compares; the period names both."""
    for a in (later, earlier):
        if a.period is None or not any(word in dict(a.unit) for word in ("day", "month", "year")):
            raise Refused(f"{a.terms} is no rate over a period", "spread it over its period first")
    assert later.period is not None
    assert earlier.period is not None
    span = Period(earlier.period.start, later.period.end, f"{earlier.period} -> {later.period}")
    return replace(divide(replace(later, period=span), replace(earlier, period=span)), period=span)


def _combine(
    sign: str,
    a: Quantity,
    b: Quantity,
    point: Callable[[float, float], float],
    ends: tuple[float, float],
    force: bool,
) -> Quantity:
    stamps = _mismatches(a, b)
    if stamps and not force:
        raise Refused(
            f"{a.terms} {sign} {b.terms} mixes {'; '.join(stamps)}", "choose figures that match, or --force to stamp it"
        )
    powers = dict(a.unit)
    if sign in "*/":
        for name, power in b.unit:
            powers[name] = powers.get(name, 0) + (power if sign == "*" else -power)
    elif a.unit != b.unit:
        raise Refused(
            f"{a.terms} {sign} {b.terms} mixes units {a.unit_text} and {b.unit_text}", "convert one of them first"
        )
    low, high = ends
    bounds = {a.bound, b.bound}
    rough = "~" in bounds and bounds <= {"=", "~"}
    value = point(a.value, b.value) if a.value is not None and b.value is not None else None
    if rough:
        low, high = -math.inf, math.inf
    else:
        value = _representative(value, low, high)
    left = f"({a.terms})" if sign in "*/" and any(f" {mark} " in a.terms for mark in "+-") else a.terms
    right = f"({b.terms})" if sign != "+" and any(f" {mark} " in b.terms for mark in "+-*/") else b.terms
    return Quantity(
        value,
        low,
        high,
        rough,
        tuple(sorted((name, power) for name, power in powers.items() if power)),
        a.period if a.period is not None else b.period,
        a.basis | b.basis,
        _union(a.ids, b.ids),
        f"{left} {sign} {right}",
        _union(a.statuses, b.statuses),
        _union(a.layers, b.layers),
        _union(a.assumptions, b.assumptions),
        _union(a.stamps, b.stamps, stamps),
    )


def _mismatches(a: Quantity, b: Quantity) -> tuple[str, ...]:
    found = []
    if a.period is not None and b.period is not None and a.period != b.period:
        found.append(f"period {a.period} with {b.period}")
    for name, axis in AXES.items():
        left, right = a.basis & set(axis), b.basis & set(axis)
        if left and right and left != right:
            found.append(f"{name} {'/'.join(sorted(left))} with {'/'.join(sorted(right))}")
    return tuple(found)


def _representative(value: float | None, low: float, high: float) -> float | None:
    """The end of a one-sided claim, or the value inside a range; None where neither end is known."""
    if math.isinf(low) and math.isinf(high):
        return None
    if math.isinf(high):
        return low if low != 0 else None
    if math.isinf(low) or low == 0:
        return high
    return value


def _product(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    # 0 * infinity is 0 here: the infinity stands for every finite number above, never for itself
    ends = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
    return min(ends), max(ends)


def _reciprocal(low: float, high: float) -> tuple[float, float]:
    if low < 0 < high:
        return -math.inf, math.inf
    return (1 / high if high else -math.inf), (1 / low if low else math.inf)


def _unit(text: str) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(unit_powers(text).items()))


def _union(*parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for part in parts for item in part))
