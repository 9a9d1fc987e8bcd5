"""The comparisons between published figures, each with its formula and its inputs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from harness.errors import HarnessError
from harness.facts.book import Book, period
from harness.facts.claims import (
    Quantity,
    Refused,
    about,
    at_least,
    combine,
    exact,
    growth,
    held,
    length,
    of_fact,
    rebased,
    root,
    time_mean,
)

Y2024, NINE, TO_2030 = period("2024", "2024"), period("2025-01", "2025-09"), period("2026", "2030")
SPENDS = ("A15", "A16")
"""Inference spend of 2024 and of the first nine months of 2025."""
ONE = exact(1, "ratio", "1")


@dataclass(frozen=True, slots=True)
class Context:
    """The inputs of a comparison: facts, assumptions, and the measured cost if there is one."""

    book: Book
    measured: Quantity | None = None
    """Of output tokens, in USD/Mtoken; its `ids` name the run."""
    force: bool = False
    """Compute ratios of figures that do not compare, and stamp them."""

    def fact(self, fact_id: str) -> Quantity:
        return of_fact(self.book[fact_id])

    def given(self, name: str) -> Quantity:
        """An assumption: `~` if it has a p5 and p95, else exact."""
        a = self.book.assumptions[name]
        number = exact(a.value, a.unit, name, status=a.status, why=a.source)
        return number if a.low is None else about(number)


@dataclass(frozen=True, slots=True)
class Line:
    """One result of a comparison, or why it was refused."""

    label: str
    result: Quantity | HarnessError


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


def revenue_floor(c: Context, share: str) -> Quantity:
    """Total revenue from the net `share` that a partner kept: net share / rate; a floor, since net <= gross.

    The rate (A04) is taken to hold over the share's period; its status, rumour, is among the result's statuses.
    """
    why = f"{share} is net of what the partner owes back (A07), so at most the gross share"
    gross = at_least(rebased(c.fact(share), "gross", why))
    return gross / held(c.fact("A04"), c.book[share].period, by_contract=True)


def nine_months(half: Quantity, year: Quantity, path: str) -> Quantity:
    """Revenue of the first nine months from the first half H1 and the year, for a `path` of quarterly revenue.

    With H2 = year - H1 and H2 >= H1. `non-falling`: if revenue never falls, Q3 lies between H1 / 2 and H2 / 2, so nine
    months lie in [1.5 H1, (H1 + year) / 2], a range. The others assume one path, so they are `~`: `linear`, quarters a,
    a+d, a+2d, a+3d with d = (H2 - H1) / 4 and Q3 = H1 / 2 + 3 d / 2; `geometric`, a factor g = sqrt(H2 / H1) per
    quarter and Q3 = H1 g^2 / (1 + g); `pro rata`, 3/4 of the year, whatever H1 is.
    """
    first, whole = half.period, year.period
    if first is None or whole is None or first.start is None or whole.start != first.start:
        raise Refused(f"{half.terms} ({first}) does not begin {year.terms} ({whole})", "give a half and its year")
    if (first.months, whole.months) != (6, 12):
        raise Refused(f"{half.terms} ({first}) is not half of {year.terms} ({whole})", "give a half and its year")
    if half.bound != "=" or year.bound != "=" or half.value is None or year.value is None:
        raise Refused(f"{half.text()} with {year.text()} leaves the path of quarters open", "give exact figures")
    h1, h2 = half.value, year.value - half.value
    if h2 < h1:
        raise Refused(f"second half {h2:g} is below the first {h1:g}: revenue fell", "give figures that do not fall")
    g = math.sqrt(h2 / h1)
    third = {"linear": h1 / 2 + 3 / 8 * (h2 - h1), "geometric": h1 * g**2 / (1 + g), "pro rata": 0.75 * year.value - h1}
    both = replace(
        replace(half, period=whole) + year,
        period=period(f"{first.start.year}-01", f"{first.start.year}-09"),
        terms=f"nine_months({half.terms}, {year.terms}, {path})",
        assumptions=(f"quarters of {first.start.year}: {path}",),
    )
    if path == "non-falling":
        return replace(both, value=h1 + third["geometric"], low=1.5 * h1, high=h1 + h2 / 2)
    return about(replace(both, value=h1 + third[path]))


def press_nine(c: Context, path: str = "non-falling") -> Quantity:
    """Press revenue of Jan-Sep 2025, from the figures of its first half and of the year."""
    return nine_months(c.fact("A11"), c.fact("E09"), path)


def spend_revenue(c: Context) -> tuple[Line, ...]:
    """Spend / revenue of the same period, for each published revenue."""
    s24, s25 = (c.fact(spend) for spend in SPENDS)
    floor, rounded = "revenue at least net share / 20%", "the article's rounding of that floor"
    return (
        Line(floor, s24 / revenue_floor(c, "A01")),
        Line(rounded, s24 / c.fact("A08")),
        Line("revenue as the press has it", s24 / c.fact("A10")),
        Line(floor, s25 / revenue_floor(c, "A02")),
        Line(rounded, s25 / c.fact("A09")),
        Line("press H1 and year, every path that does not fall", s25 / press_nine(c)),
        Line("press H1 and year, quarters growing by one factor", s25 / press_nine(c, "geometric")),
        Line("press H1 and year, quarters growing by one step", s25 / press_nine(c, "linear")),
        Line("press year, pro rata (ignores growth)", s25 / press_nine(c, "pro rata")),
    )


def pairs(c: Context) -> tuple[Line, ...]:
    """Every inference spend / every revenue of the same entity whose period overlaps."""
    numbers = [(fact, fact.period) for fact in c.book.facts.values() if fact.bound and fact.currency]
    earned = ("revenue", "annual revenue", "annual recurring revenue", "year-end revenue", "ARR")
    return tuple(
        ratio(c, f"{s.entity}: {s.metric} / {r.metric}", of_fact(s), of_fact(r))
        for s, p in numbers
        for r, q in numbers
        if "inference" in s.basis and r.metric.startswith(earned) and r.entity == s.entity and r.status != "target"
        if (p.start or p.end) <= q.end and (q.start or q.end) <= p.end
    )


def revenue_share(c: Context) -> tuple[Line, ...]:
    """The net payment's share of press revenue, and what was paid back if the rumoured gross rate holds."""
    found = []
    for share, over, revenue in (("A01", Y2024, c.fact("A10")), ("A02", NINE, press_nine(c))):
        net, rate = c.fact(share), held(c.fact("A04"), over, by_contract=True)
        same = rebased(net, "gross", "gross share - net share = what the partner paid back")
        found.append(Line("effective share of press revenue", net / revenue))
        found.append(Line("implied reverse payment", revenue * rate - same))
    return tuple(found)


def trend(c: Context) -> tuple[Line, ...]:
    """Spend per month and day, and its growth from one period to the next."""
    s24, s25 = (c.fact(spend) for spend in SPENDS)
    return (
        *(Line(f"spend a {word}", s / length(s, word)) for word in ("month", "day") for s in (s24, s25)),
        Line("growth of spend a month", growth(s25, s24)),
        Line("growth of the net share a month", growth(c.fact("A02"), c.fact("A01"))),
        Line("growth of the revenue floor a month", growth(revenue_floor(c, "A02"), revenue_floor(c, "A01"))),
    )


def per_user(c: Context) -> tuple[Line, ...]:
    """Spend per weekly user and month, and the number of subscribers that would cover it."""
    spend, counts = c.fact("A16") / length(c.fact("A16"), "month"), ("D03", "X04", "E22")
    mean = time_mean([c.fact(count) for count in counts], NINE)
    payers = spend / c.given("subscription")
    return (
        *(Line(f"spend a weekly user, {c.book[u].period}", spend / held(c.fact(u), NINE)) for u in counts),
        Line("spend a weekly user, mean of the period", spend / mean),
        Line("subscribers that would cover it", payers),
        Line("those among weekly users", payers / mean),
    )


VOLUMES = (("A15", ("X02",)), ("A16", ("X01",)), ("A16", ("X03",)), ("A16", ("X02", "X01")))
"""Each spend with the reported volumes nearest in time; of two volumes the mean over time is used."""


def volume(c: Context, spend: str, reported: tuple[str, ...]) -> Quantity:
    """Prompts or messages in the period of a spend, from one volume or from the mean over time of several."""
    over, states = c.book[spend].period, [c.fact(one) for one in reported]
    rate = held(states[0], over) if len(states) == 1 else time_mean(states, over)
    return rate * length(c.fact(spend), next(word for word, exponent in rate.unit if exponent < 0))


def as_queries(count: Quantity) -> Quantity:
    """Prompts or messages counted as queries."""
    return replace(count, unit=(("query", 1),), assumptions=(*count.assumptions, "a prompt or message is a query"))


def per_query(c: Context) -> tuple[Line, ...]:
    """Spend per prompt or message: of all the spend, then of the share that goes to chat text."""
    found = []
    for spend, reported in VOLUMES:
        count = volume(c, spend, reported)
        dates = "volume, mean over time" if len(reported) > 1 else f"volume {c.book[reported[0]].period}"
        found.append(Line(f"spend a {count.unit_text}, {dates}", c.fact(spend) / count))
        found.append(Line("that for chat text", c.fact(spend) * c.given("chat_share") / count))
    return tuple(found)


def tokens(c: Context) -> tuple[Line, ...]:
    """Spend per million output tokens, and the tokens that the spend buys at the measured cost."""
    million, found = exact(1e6, "token/Mtoken", "1e6"), []
    for spend, reported in VOLUMES:
        output = as_queries(volume(c, spend, reported)) * c.given("tokens_per_query")
        label = f"spend a million output tokens, volume {' and '.join(reported)}"
        found.append(Line(label, c.fact(spend) / output * million))
    if c.measured is not None:
        found += [Line("million output tokens at the measured cost", c.fact(spend) / c.measured) for spend in SPENDS]
        found.append(Line("measured cost over list price", c.measured / c.given("list_price")))
    return tuple(found)


def energy(c: Context) -> tuple[Line, ...]:
    """GPUs that the spend rents, the power that they draw, and the energy per query over published figures."""
    price, draw, found = c.given("gpu_price"), c.given("gpu_power"), []
    for spend in SPENDS:
        hours = length(c.fact(spend), "hour")
        gpus = c.fact(spend) / (price * hours)
        watts = gpus * draw / exact(1e6, "kW/GW", "1e6")
        found += [Line("GPUs rented all the time", gpus), Line("power of those GPUs", watts)]
    all_compute = rebased(held(c.fact("X13"), NINE), "flow inference", "inference as a part of all compute")
    queries = as_queries(volume(c, "A16", ("X02", "X01")))
    each = gpus * draw * hours * exact(1000, "Wh/kW-hour", "1000") / queries
    found.append(Line("that power over all compute", watts / all_compute))
    bill = held(c.fact("X24"), NINE) * exact(1, "kWh/kW-hour", "1") * draw
    found.append(Line("electricity's share of the price", bill / price))
    found.append(Line("energy bought a query", each))
    for one in ("X08", "X09", "X10", "X11"):
        label = f"that over {c.book[one].entity}'s {c.fact(one).value:g} Wh"
        found.append(Line(label, each / held(c.fact(one), NINE)))
    return tuple(found)


def break_even(c: Context) -> tuple[Line, ...]:
    """The cut in cost at which spend = revenue, and at which spend = (1 - margin) x revenue."""
    found = []
    for spend, name, revenue in (
        ("A15", "revenue floor", revenue_floor(c, "A01")),
        ("A15", "press revenue", c.fact("A10")),
        ("A16", "revenue floor", revenue_floor(c, "A02")),
        ("A16", "press revenue", press_nine(c)),
    ):
        left = (ONE - c.given("gross_margin")) * revenue
        found.append(Line(f"cut for spend = {name}", ONE - revenue / c.fact(spend)))
        found.append(Line(f"cut for the margin, {name}", ONE - left / c.fact(spend)))
    return tuple(found)


def plan_2030(c: Context) -> tuple[Line, ...]:
    """What the plan to 2030 needs: growth, and compute / revenue, with stock and flow labelled."""
    now, then = c.fact("E09"), c.fact("E11")
    yearly = root(growth(then, now), 5)
    assert yearly.value is not None
    powers = sum(yearly.value**k for k in range(1, 6))
    factor = exact(powers, "ratio", "sum(g^1..g^5)", why="one growth factor g a year")
    added = rebased(about(replace(now, period=TO_2030) * factor), "stock", "revenue of five years added up")
    total = replace(added, ids=("E09", "E11"), terms="E09 * sum(g^1..g^5), g = (E11 / E09) ^ (1/5)")
    plan = replace(c.fact("E10"), period=TO_2030, assumptions=("E10 read as spent from 2026 to 2030",))
    return (
        Line("revenue of 2030 over 2025", growth(then, now)),
        Line("growth factor a year", yearly),
        Line("revenue 2026-2030 on that path", total),
        Line("compute (stock) / revenue 2026-2030 (stock)", plan / total),
        ratio(c, "compute (stock) / revenue of 2030 (flow)", c.fact("E10"), then),
        Line("compute a year, plan of 2026", plan / length(plan, "year")),
        Line("commitments a year, as told in 2025", c.fact("E06") / length(c.fact("E06"), "year")),
        ratio(c, "commitments of 2025 / plan of 2026", c.fact("E06"), c.fact("E10")),
    )


COMPARISONS: Mapping[str, tuple[str, Callable[[Context], tuple[Line, ...]], str]] = {
    "spend-revenue": (
        "Inference spend / revenue",
        spend_revenue,
        "'Twice what it earns' is the line of 2025 against the floor, and a floor under revenue makes that a ceiling. "
        "Spend is mostly cash (A18); press revenue is assumed to be recognised.",
    ),
    "pairs": ("Inference spend / revenue, every pair of facts by basis", pairs, ""),
    "revenue-share": ("The revenue share behind the floor", revenue_share, ""),
    "trend": ("Inference spend, 2024 -> Jan-Sep 2025", trend, ""),
    "per-user": ("Inference spend of Jan-Sep 2025 a weekly user and month", per_user, ""),
    "per-query": (
        "Inference spend a query",
        per_query,
        "Spend and volume differ in date; a volume late in the period makes the spend a query look smaller.",
    ),
    "tokens": ("Reported spend a million output tokens", tokens, ""),
    "energy": (
        "GPUs, power and energy that the reported spend buys",
        energy,
        "X13 is all compute, training included, at the end of 2025; the spend is inference over nine months.",
    ),
    "break-even": ("Cost cut at which the spend is covered (below 0: it is already)", break_even, ""),
    "plan-2030": (
        "The plan to 2030",
        plan_2030,
        "The compute figures are not like for like: E06 is a commitment over eight years to 2033, for infrastructure; "
        "E10 is spend by 2030 as stated to investors; neither says how much of it is inference.",
    ),
}
"""Name, as --explain and --table take it -> title, function, and a note."""
