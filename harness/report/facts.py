"""Tables of published figures and of the comparisons with them: no figure without period, basis and source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from harness.errors import HarnessError
from harness.facts.appraisal import Appraisal
from harness.facts.book import Book, Fact
from harness.facts.claims import of_fact
from harness.facts.comparisons import COMPARISONS, Context, Line, per_query, spend_revenue
from harness.facts.gap import PUBLISHED_ENERGY, Ladder, Point, layer_of
from harness.model import Figure
from harness.report import format, formats, text
from harness.report.formats import Format
from harness.report.table import PROPERTIES, Cell, Table

COLUMNS = ("quantity", "bound", "value", "unit", "period", "basis", "status", "layer", "source")
Row = tuple[Cell, ...]


def first_table(c: Context, run: str, costs: Sequence[tuple[str, Figure]] = (), caveats: Sequence[str] = ()) -> Table:
    """Inference spend against revenue, the spend a query, and the run's own `costs`, as (label, figure), beside them.

    `caveats`: what the run cannot speak for.
    """
    revenue, query = spend_revenue(c), per_query(c)
    ratios = [Line(f"inference spend / {revenue[i].label}", revenue[i].result) for i in (0, 2, 3, 5)]
    body, notes = rows([*ratios, *query[::2]], c.book)
    mine = tuple(measured_row(label, figure, run, "this machine") for label, figure in costs)
    title = "Reported inference spend, and the cost measured here"
    return Table("reported", title, COLUMNS, (*body, *mine), (*caveats, *notes))


def facts_table(facts: Iterable[Fact]) -> Table:
    """The facts given, a row each; a fact in words shows its words in place of the value."""
    body = tuple(_row(f"{fact.id} {fact.entity}: {fact.metric}", fact) for fact in facts)
    return Table("facts", "Published figures", COLUMNS, body, ("`harness facts ID` prints the quote of one.",))


def fact_text(book: Book, fact_id: str, format_: Format = "text") -> str | bytes:
    """All that is known of one fact, its quote verbatim and on one line; save in text after its `facts_table`."""
    fact = fact_table(book, fact_id)
    return _document([] if format_ == "text" else [facts_table([book[fact_id]])], [fact], format_)


def fact_table(book: Book, fact_id: str) -> Table:
    """All that is known of one fact, a row to a property."""
    fact = book[fact_id]
    ends = (fact.value,) if fact.value is not None else (fact.value_low, fact.value_high)
    number = " to ".join(f"{end:,.12g}" for end in ends if end is not None)
    said = {
        "value": f"{fact.bound} {number} {fact.unit}" if fact.bound else "no number",
        "period": str(fact.period),
        "basis": ", ".join(sorted(fact.basis)),
        "status": f"{fact.status} ({fact.layer})",
        "source": book.source(fact_id),
        **{name: getattr(fact, name) for name in ("cited", "wording", "quote", "gloss", "note")},
    }
    title = f"{fact.id}  {fact.entity}: {fact.metric}"
    return Table("fact", title, PROPERTIES, tuple((name, text) for name, text in said.items() if text))


def comparison_table(c: Context, name: str) -> Table:
    """One of COMPARISONS, or `contradictions`, as a table. Raises HarnessError for an unknown one."""
    if name == "contradictions":
        found = [(item, c.book[i]) for item in c.book.contradictions for i in item.ids]
        body = tuple(_row(f"{item.topic}: {fact.entity}, {fact.metric}", fact) for item, fact in found)
        notes = tuple(f"{item.topic} ({', '.join(item.ids)}): {item.why}" for item in c.book.contradictions)
        return Table(name, "Contradictions within and between the sources", COLUMNS, body, notes)
    if name not in COMPARISONS:
        raise HarnessError(f"unknown comparison '{name}'", f"choose one of {', '.join(COMPARISONS)}, contradictions")
    title, lines, said = COMPARISONS[name]
    body, notes = rows(lines(c), c.book)
    return Table(name, title, COLUMNS, body, ((said,) if said else ()) + notes)


def explained(c: Context, name: str, format_: Format = "text") -> str | bytes:
    """A comparison with its formulas and what it takes for granted, then every fact that it names with its quote."""
    table = comparison_table(c, name)
    return _document([table], [fact_table(c.book, i) for i in _named(c.book, [table])], format_)


def sources_table(book: Book, tables: Iterable[Table]) -> Table:
    """What the tables rest on: every fact that they name, with its words, and where they were published."""
    facts = [book[i] for i in _named(book, tables)]
    rows = tuple((f.id, f"{f.entity}: {f.metric}", f.quote or f.wording, f.gloss, book.source(f.id)) for f in facts)
    return Table("sources", "Sources and quotes", ("id", "figure", "quote", "in English", "source"), rows)


def _named(book: Book, tables: Iterable[Table]) -> list[str]:
    words = {word for table in tables for word in re.findall(r"[\w-]+(?:\.[\w-]+)*", f"{table.rows} {table.notes}")}
    return [i for i in book.facts if i in words]


def _document(tables: list[Table], facts: list[Table], format_: Format) -> str | bytes:
    """Tables, then facts; as text with each property on a line of its own, so that a quote is never broken."""
    if format_ != "text":
        return formats.render([*tables, *facts], format_)
    found = [[table.title, *(f"  {name}: {said}" for name, said in table.rows)] for table in facts]
    paragraphs = ("\n".join(format.plain(line) for line in lines) for lines in found)
    return (text.render(tables) if tables else "") + "\n\n".join(paragraphs) + "\n"


def compare_tables(appraisal: Appraisal) -> tuple[Table, ...]:
    """The reported and the measured cost and energy of a query, side by side, then the gap as a ladder.

    HarnessError if no point has a cost. If the first point is a published measurement, since no GPU run was given, the
    title says so.
    """
    c, points = appraisal.context, appraisal.points
    if appraisal.ladder is None:
        raise HarnessError("no run given has a cost of a query", "compare a run with finished requests and a price")
    start = appraisal.gaps[0][0]
    over = [Line(f"reported / {point.model}", found) for point, found in appraisal.gaps]
    body, notes = rows([*per_query(c)[::2], *over], c.book)
    usd = [measured_row(f"cost, {p.model}", p.usd_per_query, p.source, p.conditions) for p in points]
    wh = [measured_row(f"energy, {p.model}", p.wh_per_query, p.source, p.conditions) for p in points if p.wh_per_query]
    said = [_row(f"{c.book[i].entity}: {c.book[i].metric}", c.book[i]) for i in PUBLISHED_ENERGY]
    title = "A query, reported and measured"
    if start.usd_per_query.status == "published":
        title = f"No GPU run given: published GPU measurements ({start.source}) stand in. {title}"
    prices = {f"measured cost at {p.usd_per_gpu_hour:g} USD/GPU-hour" for p in points if p.usd_per_gpu_hour is not None}
    beneath = (*appraisal.caveats, *sorted(prices), *notes)
    first = Table("compare", title, COLUMNS, (*usd, *body, *wh, *said), beneath)
    return first, ladder_table(appraisal.ladder, start)


def ladder_table(steps: Ladder, start: Point) -> Table:
    """The gap between the reported cost and a point's, factor by factor, and what the gap asks of each factor."""
    about = (str(steps.gap.period), ", ".join(sorted(steps.gap.basis)))
    names = " * ".join(rung.assumption.name for rung in steps.rungs)
    ends = [
        ("gap", steps.gap.figure("gap"), steps.gap.terms),
        ("product of the factors", steps.product, names),
        ("left over: gap / product", steps.left, f"gap of {', '.join(steps.gap.ids)} / product"),
    ]
    first, *last = [(label, figure, "", *about, "derived", source) for label, figure, source in ends]
    body = [
        (a.label, rung.multiplier, rung.needed, *about, a.status, f"{a.name}: {a.source}")
        for a, rung in ((rung.assumption, rung) for rung in steps.rungs)
    ]
    notes = (
        f"from {start.model}, {start.conditions} ({start.source})",
        "factors are independent and lognormal with the p5 and p95 shown; --set NAME=LOW:HIGH changes one",
        "needed: what the provider's value must be for the factors to multiply to the gap",
    )
    columns = ("factor", "multiplies by", "needed", "period", "basis", "status", "source")
    return Table("ladder", "What must be true for the two to agree", columns, (first, *body, *last), notes)


def rows(lines: Iterable[Line], book: Book) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Table rows of comparison lines, and the notes that they need: assumptions and sources."""
    body: list[Row] = []
    granted: dict[str, None] = {}
    sources: dict[str, str] = {}
    for label, q in ((line.label, line.result) for line in lines):
        if isinstance(q, HarnessError):
            body.append((label, "", f"refused ({q.what})", *[""] * (len(COLUMNS) - 3)))
            continue
        stamp = f" (FORCED: mixes {'; '.join(q.stamps)})" if q.stamps else ""
        basis = _basis(q.basis) + stamp
        when, status, layers = str(q.period or "any period"), " + ".join(q.statuses), " + ".join(q.layers)
        body.append((label, q.bound, q.figure(label), q.unit_text, when, basis, status, layers, q.terms))
        granted.update(dict.fromkeys(q.assumptions))
        known = [book[i] for i in q.ids if i in book.facts]
        sources.update((f.source if f.source in book.sources else f.id, book.source(f.id)) for f in known)
    said = (f"taken for granted: {'; '.join(granted)}",) if granted else ()
    return tuple(body), (*said, *(f"{key}: {text}" for key, text in sorted(sources.items())))


def measured_row(label: str, figure: Figure, source: str, conditions: str) -> Row:
    """A row for a figure of a run or of a published measurement, whose period is that measurement."""
    bound = "n/a" if figure.value is None else "~"
    return (label, bound, figure, figure.unit, "the measurement", conditions, figure.status, layer_of(figure), source)


def _row(label: str, fact: Fact) -> Row:
    shown: Cell = of_fact(fact).figure(fact.id) if fact.bound else fact.wording or fact.gloss
    source = f"{fact.id} ({fact.source})"
    return (label, fact.bound, shown, fact.unit, str(fact.period), _basis(fact.basis), fact.status, fact.layer, source)


def _basis(tags: frozenset[str]) -> str:
    return ", ".join(sorted(tags - {"unstated"})) or "basis unstated"
