"""Arithmetic over published figures that keeps period, basis and bound, and refuses figures that do not compare.

A claim is an interval that contains the true value: `=` is a point, `>=` runs to infinity, `<=` starts at zero and
`range` has two ends. By interval arithmetic a floor in a denominator makes a ceiling. `~` bounds nothing: its ends (the
p5 and p95 of an assumption or a run, half a printed digit) travel beside its value and show what it is known to miss.
`~` combined with a one-sided claim is `n/a`. Printed numbers are true to half of their last digit, which travels too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import reduce

import numpy as np

from harness.errors import HarnessError
from harness.facts.book import AXES, Fact, Period, period, unit_powers
from harness.model import Figure, Status

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
    kind: str
    """`~` where the value is only approximate: the ends are then no bounds. `=` where the claim is only as wide as half
    a printed digit, so that it still counts as exact. Otherwise empty: the ends are the claim."""
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
        if self.kind or self.low == self.high:
            return self.kind or "="
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
        wide = known and not (self.kind == "~" and self.low == self.high)
        low, high = (end if wide and math.isfinite(end) else None for end in (self.low, self.high))
        value, reason = (self.value, None) if known else (None, NOTHING)
        status: Status = "reported" if self.ids == (self.terms,) else "derived"
        interval = "about" if self.kind == "~" else f"bound {self.bound}"
        return Figure(name, value, self.unit_text, status, low, high, reason=reason, interval=interval)

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
    return Quantity(value, value, value, "=", _unit(unit), None, frozenset(), (), name, statuses, (), whys)


def of_fact(fact: Fact, rounding: bool = False) -> Quantity:
    """A fact as a quantity. HarnessError for a fact without a number.

    `rounding`: a number without a bound (`=`, `~`) is true to half of its last printed digit.
    """
    if fact.bound == "":
        raise HarnessError(f"{fact.id} ({fact.metric}) gives no number: '{fact.wording}'", "choose a fact with a value")
    if fact.value_low is not None and fact.value_high is not None:
        value, low, high = (fact.value_low + fact.value_high) / 2, fact.value_low, fact.value_high
    else:
        assert fact.value is not None
        value, half = fact.value, fact.half_digit if rounding else 0.0
        low = {">=": value, "<=": 0.0}.get(fact.bound, value - half)
        high = {">=": math.inf, "<=": value}.get(fact.bound, value + half)
    kind, unit, basis = fact.bound if fact.bound in ("=", "~") else "", _unit(fact.unit), fact.basis - {"unstated"}
    by, of = (fact.status,), (fact.layer,)
    return Quantity(value, low, high, kind, unit, fact.period, basis, (fact.id,), fact.id, by, of)


def printed(fact: Fact, rounding: bool = False) -> Quantity:
    """A fact that says `about` or `more than` as if its printed digits were true; recorded as an assumption."""
    q, half = of_fact(fact), fact.half_digit if rounding else 0.0
    if q.value is None or fact.bound == "range":
        return q
    notes = () if fact.bound == "=" else (f"{fact.id} ({fact.wording or fact.bound}) taken at its printed digits",)
    return replace(q, low=q.value - half, high=q.value + half, kind="=", assumptions=notes)


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
    bounds = {a.bound, b.bound}
    kind = "=" if bounds == {"="} else "~" if "~" in bounds <= {"=", "~", "range"} else ""
    low, high = _ends(a, sign, b) if kind or "~" not in bounds else (-math.inf, math.inf)
    unknown = a.value is None or b.value is None or (sign == "/" and b.value == 0)
    value = None if unknown else _OPERATIONS[sign](a.value, b.value)
    left = f"({a.terms})" if sign in "*/" and any(f" {mark} " in a.terms for mark in "+-") else a.terms
    right = f"({b.terms})" if sign != "+" and any(f" {mark} " in b.terms for mark in "+-*/") else b.terms
    found = Quantity(
        value, low, high, kind,
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
    assumptions = _union(a.assumptions, (f"{a.terms} ({a.period}) held over {over}",))
    return replace(a if by_contract else about(a), period=over, assumptions=assumptions)


def about(a: Quantity) -> Quantity:
    """`a` with the bound `~`; an end that is open becomes the value; `n/a` stays `n/a`."""
    if a.bound == "n/a" or a.value is None:
        return a
    low, high = (end if math.isfinite(end) and a.bound not in ("<=", ">=") else a.value for end in (a.low, a.high))
    return replace(a, low=low, high=high, kind="~")


def at_least(a: Quantity) -> Quantity:
    """`a` as a floor of a larger amount that contains it."""
    return replace(a, high=math.inf, kind="", value=a.low if a.bound == "=" else a.value)


def rebased(a: Quantity, tags: str, why: str) -> Quantity:
    """`a` with these basis tags in place of those on the same axes; `why` is recorded as an assumption."""
    new = frozenset(tags.split())
    dropped = {tag for axis in AXES.values() if new & set(axis) for tag in axis}
    return replace(a, basis=a.basis - dropped | new, assumptions=_union(a.assumptions, (why,)))


def length(over: Period, word: str) -> Quantity:
    """The length of a period in hours, days, weeks, months or years, by `word`."""
    days, months = float(over.days), over.months
    long = {"hour": days * 24, "day": days, "week": days / 7, "month": months, "year": months / 12}[word]
    return exact(long, word, f"{long:g} {word}s")


def growth(later: Quantity, earlier: Quantity) -> Quantity:
    """later / earlier, each as a rate per month of its period; the result's period names both."""
    a, b = later.period, earlier.period
    if a is None or b is None:
        raise Refused(f"{later.terms} or {earlier.terms} has no period", "use figures with a start and an end")
    span = Period(b.start, a.end, f"{b} -> {a}")
    return replace(later / length(a, "month"), period=span) / replace(earlier / length(b, "month"), period=span)


def root(a: Quantity, n: int) -> Quantity:
    """The n-th root of a ratio, which keeps the bound. Refused for a ratio with a unit or below 0."""
    if a.unit or a.value is None or a.low < 0:
        raise Refused(f"({a.terms}) ^ (1/{n}) is not of a positive ratio", "use a ratio of like figures")
    low, high = (end if math.isinf(end) else end ** (1 / n) for end in (a.low, a.high))
    return replace(a, value=a.value ** (1 / n), low=low, high=high, terms=f"({a.terms}) ^ (1/{n})")


def time_mean(states: Sequence[Quantity], over: Period, logs: bool = False) -> Quantity:
    """The mean over a period of a state reported at several dates, as `~`.

    Linear (with `logs`: linear in the logarithm) between the dates, constant outside. A state of a month or year counts
    at its last day.
    """
    joint = reduce(operator.add, (held(state, over) for state in states))
    known = {s.period.end.toordinal(): about(s) for s in states if s.period and s.value is not None}
    known = dict(sorted(known.items()))
    days = over.end.toordinal() - np.arange(over.days)

    def mean(values: Sequence[float]) -> float:
        path = np.exp(np.interp(days, list(known), np.log(values))) if logs else np.interp(days, list(known), values)
        return float(path.mean())

    names, kind = ", ".join(state.terms for state in states), "log_mean" if logs else "time_mean"
    assumptions = (f"{names}: {'log-linear' if logs else 'linear'} between their dates, flat outside",)
    low, value, high = (mean([getattr(s, end) for s in known.values()]) for end in ("low", "value", "high"))
    return replace(about(joint), value=value, low=low, high=high, terms=f"{kind}({names})", assumptions=assumptions)


def prorata(a: Quantity, over: Period) -> Quantity:
    """A flow spread evenly over its period, as if it had that rate over another, as `~`."""
    assert a.period is not None
    scale = exact(over.months / a.period.months, "ratio", f"{over.months:g}/{a.period.months:g} months")
    assumptions = _union(a.assumptions, (f"{a.terms} ({a.period}) spread evenly: its rate over {over}",))
    return replace(about(a * scale), period=over, assumptions=assumptions)


def rest(whole: Quantity, part: Quantity) -> Quantity:
    """What is left of a flow after a part that begins at the same time: the flow of the time between their ends."""
    w, p = whole.period, part.period
    if w is None or p is None or w.start is None or w.start != p.start or w.end <= p.end:
        raise Refused(f"{part.terms} ({p}) does not begin {whole.terms} ({w})", "give a span and its first part")
    after = period(str(p.end + timedelta(1)), str(w.end))
    return replace(whole, period=after) - replace(part, period=after)


def nine_months(half: Quantity, year: Quantity, path: str) -> Quantity:
    """Revenue of the first nine months from the first half H1 and the year, for a `path` of quarterly revenue.

    With H2 = year - H1 and H2 >= H1. `non-falling`: if revenue never falls, Q3 lies between H1 / 2 and H2 / 2, so nine
    months lie in [1.5 H1, (H1 + year) / 2], a range. The others assume one path, so they are `~`: `linear`, quarters a,
    a+d, a+2d, a+3d with d = (H2 - H1) / 4 and Q3 = H1 / 2 + 3 d / 2; `geometric`, a factor g = sqrt(H2 / H1) per
    quarter and Q3 = H1 g^2 / (1 + g); `pro rata`, 3/4 of the year, whatever H1 is. Half a digit of both figures widens
    the range. A figure that says `about` has to be read at its printed digits before (`printed`).
    """
    first, whole = half.period, year.period
    if not (first and whole and first.start and first.start == whole.start and (first.months, whole.months) == (6, 12)):
        what = f"{half.terms} ({first}) is not the first half of {year.terms} ({whole})"
        raise Refused(what, "give a half and its year")
    if half.bound != "=" or year.bound != "=" or half.value is None or year.value is None:
        raise Refused(f"{half.text()} with {year.text()} leaves the path of quarters open", "give exact figures")
    h1, h2 = half.value, year.value - half.value
    if h2 < h1:
        raise Refused(f"second half {h2:g} is below the first {h1:g}: revenue fell", "give figures that do not fall")
    both = replace(
        replace(half, period=whole) + year,
        period=period(f"{first.start.year}-01", f"{first.start.year}-09"),
        terms=f"nine_months({half.terms}, {year.terms}, {path})",
        assumptions=(*half.assumptions, *year.assumptions, f"quarters of {first.start.year}: {path}"),
        kind="",
    )
    if path == "non-falling":
        value, low, high = _path(h1, h2, "geometric"), 1.5 * half.low, (half.high + year.high) / 2
        return replace(both, value=value, low=low, high=high)
    low, high = (_path(a, max(b - a, a), path) for a, b in ((half.low, year.low), (half.high, year.high)))
    return replace(about(both), value=_path(h1, h2, path), low=low, high=high)


def _path(h1: float, h2: float, path: str) -> float:
    """Revenue of three quarters from that of two halves."""
    g = math.sqrt(h2 / h1)
    third = {"linear": h1 / 2 + 3 / 8 * (h2 - h1), "geometric": h1 * g**2 / (1 + g), "pro rata": 0.75 * (h1 + h2) - h1}
    return h1 + third[path]


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
