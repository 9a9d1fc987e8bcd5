"""The comparisons between published figures: tables of rows of comparisons.csv, and every pair of spend and revenue."""

from dataclasses import replace

from harness.errors import HarnessError
from harness.facts.claims import Quantity, Refused, about, combine, of_fact
from harness.facts.formulas import Context, Line, table_lines

PAIRS = "pairs"
"""The table that is not made of rows of comparisons.csv."""


def lines(c: Context, table: str) -> tuple[Line, ...]:
    """The results of a table of comparison_tables.csv. HarnessError for an unknown name."""
    if table not in c.book.tables:
        raise HarnessError(f"unknown comparison '{table}'", f"choose one of {', '.join(c.book.tables)}, contradictions")
    return pairs(c) if table == PAIRS else table_lines(c, table)


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
