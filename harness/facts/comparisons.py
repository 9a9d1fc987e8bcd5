"""The comparisons between published figures: the tables of comparisons.csv, and every pair of spend and revenue."""

from collections.abc import Mapping
from dataclasses import replace

from harness.errors import HarnessError
from harness.facts.claims import Quantity, Refused, about, combine, of_fact
from harness.facts.formulas import Context, Line, table_lines

PAIRS = "pairs"
TABLES: Mapping[str, tuple[str, str]] = {
    "revenue": ("Revenue, as the comparisons divide by it", ""),
    "spend-revenue": (
        "Inference spend / revenue",
        "'Twice what it earns' is the line of 2025 against the floor, and a floor under revenue makes that a ceiling. "
        "The bill is one supplier's: a floor of all inference. Press revenue is assumed to be recognised.",
    ),
    PAIRS: ("Inference spend / revenue, every pair of facts by basis", ""),
    "margins": (
        "Cost of revenue, margins and what the leaked accounts say of serving",
        "The accounts are leaked, not confirmed. A year of cost of revenue lies below nine months of the leaked bill, "
        "so part of that bill is booked elsewhere (research, free users, or a period that differs).",
    ),
    "revenue-share": ("The revenue share behind the floor", ""),
    "trend": ("Inference bill and revenue over time", ""),
    "per-user": ("Inference bill and revenue a weekly user and month", ""),
    "per-query": (
        "Inference bill a query, for each reading of the volume",
        "Spend and volume differ in date; a volume late in the period makes the spend a query look smaller.",
    ),
    "tokens": ("Inference bill a million output tokens, and the tokens that it buys", ""),
    "fleet": ("GPUs and power that the bill buys", ""),
    "energy": (
        "Power that stood, energy a query, electricity",
        "The power is all compute, training included; the sources do not say whether IT or facility power. "
        "0.34 Wh times prompts is chat alone; the bill also pays for the API and for media.",
    ),
    "deepseek": (
        "DeepSeek's published day (27 to 28 Feb 2025), as a calibration of the split by phase",
        "The rates count cache hits as input; 226.86 nodes from the rates against 226.75 reported.",
    ),
    "api": ("API tokens a minute, as a second volume", "Input and output are not separated; a floor of October 2025."),
    "break-even": ("Where the bill is covered (below 0: it is already)", ""),
    "arr": (
        "The path of ARR against reported revenue",
        "ARR excludes licences and one-off deals (D05); a run-rate is no revenue.",
    ),
    "plan-2030": (
        "The plan to 2030",
        "The compute figures are not like for like: E06 is a commitment over eight years to 2033, for infrastructure; "
        "E10 is spend by 2030 as stated to investors; neither says how much of it is inference.",
    ),
    "anthropic": (
        "Anthropic: compute and revenue",
        "No volume of prompts is published, and no split of power: there is no cost a query to compare.",
    ),
    "others": ("Other providers", ""),
}
"""Table, as --explain and --table take it -> title and note."""


def lines(c: Context, table: str) -> tuple[Line, ...]:
    """The results of a table. HarnessError for an unknown name."""
    if table not in TABLES:
        raise HarnessError(f"unknown comparison '{table}'", f"choose one of {', '.join(TABLES)}, contradictions")
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
