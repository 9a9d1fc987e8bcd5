"""The first screen of `compare`: is the reported bill plausible, and what would have to be true."""

import re

from harness.errors import HarnessError
from harness.facts.appraisal import Appraisal
from harness.facts.claims import Quantity
from harness.facts.formulas import Context, result
from harness.facts.gap import Agreement, chance, place, predicted
from harness.model import Figure
from harness.report.format import brief, span
from harness.report.table import PROPERTIES, Cell, Table

SCREEN = ("question", "against-revenue", "against-measurement", "against-power", "verdict")
"""The tables of the screen."""


def screen_tables(appraisal: Appraisal, quote: bool = False) -> list[Table]:
    """The screen of one provider, in reading order; `quote`: with a sentence for a report and its caveat."""
    said = (*appraisal.verdict, *(quotable(appraisal) if quote else ()))
    return [
        Table("question", question(appraisal), PROPERTIES, tuple(_yours(appraisal))),
        _section(appraisal, "revenue", "1  Against revenue", ("ratio", "value", "of", "explain")),
        _measurement(appraisal),
        _section(appraisal, "power", "3  Against power", ("quantity", "value", "of", "explain")),
        Table("verdict", "Verdict", PROPERTIES, said),
    ]


def question(appraisal: Appraisal) -> str:
    """What the screen answers, in one line."""
    row = appraisal.subject
    fact = appraisal.context.book[row.row]
    money, _, per = fact.unit.partition("/")
    amount = f"{money} {brief(fact.value or 0.0, 3)}" + (f" a {per}" if per else "")
    return f"Is {fact.entity}'s {amount} {row.label} {fact.period} plausible?"


def quotable(appraisal: Appraisal) -> tuple[tuple[str, str], ...]:
    """One sentence for a report, and the caveat that must go with it; empty where nothing was judged."""
    found, c = appraisal.agreement, appraisal.context
    if found is None:
        return ()
    fact = c.book[appraisal.subject.row]
    ratio = claim_text(result(c, "bill_press"), 3)
    whose = "in the measurement" if appraisal.starts else "in published GPU measurements"
    sentence = (
        f"{fact.entity}'s {fact.status} inference bill of USD {brief(fact.value or 0.0, 3)} in {fact.period} is "
        f"{ratio} times its press revenue; per prompt it is {times(found.gap)} times the cost of a query {whose}, and "
        f"assumed factors that nobody reports reach it with a probability of {chance(found.reach)}."
    )
    caveat = (
        f"The bill is {fact.status}, of one supplier and not confirmed; prompts, model, price, and the shares for chat "
        "and for serving are assumptions with the ranges shown, not measurements."
    )
    return ("to quote", sentence), ("only with", caveat)


def must_be_table(found: Agreement) -> Table:
    """What must be true: every factor's value here, what is believed, and what it must be, as figures."""
    figures = (
        ("reported bill a prompt", found.reported, "gap"),
        ("measured cost a query", found.measured, "gap"),
        ("reported / measured", found.gap, "gap"),
        ("reported / what the believed factors make", found.left, "left"),
        ("probability that the believed factors reach the bill", Figure("reach", found.reach, "1", "derived"), "reach"),
    )
    rows: list[tuple[Cell, ...]] = [(label, "", figure, "", "", name) for label, figure, name in figures]
    for f in found.factors:
        own = f.start if f.start.value is not None else ""
        rows.append((f.label, own, f.believed, f.needed, place(f.share), f.name))
    notes = (
        f"models: {', '.join(predicted())}; each kind, each reading of the volume as likely as any other",
        "must be: p5, median and p95 of the draws in which all factors make up the bill; "
        "--set NAME=LOW:HIGH (or a distribution) changes a belief, --spend the bill",
    )
    columns = ("factor", "yours", "believed", "must be", "verdict", "explain")
    return Table("must-be", "What must be true", columns, tuple(rows), notes)


def claim_text(q: Quantity | HarnessError, digits: int = 2) -> str:
    """A claim at few digits.

    >>> from harness.facts.claims import at_least, exact
    >>> claim_text(at_least(exact(0.9942, "ratio", "a")))
    '>= 0.99'
    """
    if isinstance(q, HarnessError) or q.value is None or q.bound == "n/a":
        return "n/a"
    low, high = (end if abs(end) < float("inf") else q.value for end in (q.low, q.high))
    ends = span(low, high, digits, q.value)
    if q.bound == "range":
        return ends
    value = brief(q.value, digits)
    return f"{q.bound} {value}" + (f" ({ends})" if q.bound == "~" and ends != value else "")


def times(figure: Figure, digits: int = 2) -> str:
    """Median and interval, such as `27 (10-60)`; n/a without a value."""
    if figure.value is None:
        return "n/a"
    low, high, middle = figure.low, figure.high, brief(figure.value, digits)
    return middle if low is None or high is None or low == high else f"{middle} ({span(low, high, digits)})"


def carried(figure: Figure) -> int:
    """The significant digits that weighted draws carry: an end of 1,000 effective draws is known to some percent."""
    return 1 if (figure.n or 0) < 1000 else 2


def between(figure: Figure, digits: int = 2) -> str:
    """The ends of an interval, with a digit more for a narrow one above 1; else the value, or n/a."""
    if figure.value is None or figure.low is None or figure.high is None:
        return "n/a" if figure.value is None else brief(figure.value, digits)
    return span(figure.low, figure.high, digits + (1 <= figure.low > figure.high / 2))


def _yours(appraisal: Appraisal) -> list[tuple[str, str]]:
    """What is set against the bill, then the first doubt about a run, and the assumptions against facts."""
    rows = []
    if appraisal.agreement is None:
        fact = appraisal.context.book[appraisal.subject.row]
        rows = [("the figure", "; ".join(x for x in (fact.status, *fact.note.split("; ")) if not x.startswith("http")))]
    if appraisal.starts:
        first, *others = appraisal.starts
        label = f"first of {len(appraisal.starts)} runs" if others else "yours"
        rows.append((label, f"{first.model}, {first.conditions}"))
    elif not rows:
        rows = [("no evidence given", "large published models on H100 stand in (ML.ENERGY leaderboard v3)")]
    doubts = [row for row in appraisal.caveats if row[0] != "against facts"]
    more = f" (and {len(doubts) - 1} more)" if doubts[1:] else ""
    return [*rows, *((kind, why + more) for kind, why in doubts[:1]), *appraisal.caveats[len(doubts) :]]


def _section(appraisal: Appraisal, section: str, title: str, columns: tuple[str, ...]) -> Table:
    c = appraisal.context
    rows = []
    for row in appraisal.shown(section):
        value = result(c, row.row) if row.row else HarnessError(row.remark, "")
        unit = "" if isinstance(value, HarnessError) or value.unit_text == "ratio" else f" {value.unit_text}"
        digits = 2 if isinstance(value, Quantity) and value.bound == "~" else 3
        rows.append((row.label, claim_text(value, digits) + unit, filled(c, row.remark), row.row))
    return Table(f"against-{section}", title, columns, tuple(rows))


def filled(c: Context, text: str) -> str:
    """The text with `{NAME}` replaced by the claim of a row, a fact or an assumption.

    >>> from harness.facts.appraisal import shipped_book
    >>> filled(Context(shipped_book()), "revenue {revenue_nine}")
    'revenue 6.38-8.75 bn'
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name in c.book.assumptions:
            a = c.book.assumptions[name]
            return f"{span(a.low or a.value, a.high or a.value)} {a.unit}"
        return claim_text(c.fact(name) if name in c.book.facts else result(c, name), 3).removeprefix("= ")

    return re.sub(r"\{(\w+)\}", value, text)


def _measurement(appraisal: Appraisal) -> Table:
    found = appraisal.agreement
    if found is None:
        return _section(appraisal, "measurement", "2  Against your measurement", ("quantity", "value", "of", "explain"))
    whose, kind = ("yours", "yours") if appraisal.starts else ("H100", "published on H100")
    cents = f"reported {_cents(found.reported)} c, {kind} {_cents(found.measured)} c"
    title = f"2  A prompt: {cents}, gap {times(found.gap)}"
    rows = tuple(
        (f.label, "" if f.start.value is None else brief(f.start.value), between(f.believed),
         between(f.needed, carried(f.needed)), place(f.share), f.name)
        for f in found.factors
    )  # fmt: skip
    reach = f"reach: {chance(found.reach)} of draws reach the bill"
    left = f"left: bill / product of the beliefs, {times(found.left)}; {reach}"
    reasons = {f.needed.reason for f in found.factors if f.needed.reason}
    columns = ("to close it", whose, "believed", "must be", "verdict", "explain")
    return Table("against-measurement", title, columns, rows, (left, *sorted(reasons)))


def _cents(figure: Figure) -> str:
    scaled = [None if x is None else 100 * x for x in (figure.value, figure.low, figure.high)]
    return times(Figure("cents", scaled[0], "c", "derived", scaled[1], scaled[2]))
