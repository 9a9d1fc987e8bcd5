"""Tables of published figures and of their comparisons: every figure with its period, basis and source."""

import re
from collections.abc import Iterable, Sequence

from harness.errors import HarnessError
from harness.facts.appraisal import Appraisal
from harness.facts.book import Book, Fact
from harness.facts.claims import of_fact
from harness.facts.comparisons import COMPARISONS, Context, Line, per_query, spend_revenue
from harness.facts.gap import PUBLISHED_ENERGY, Ladder, Measurement, layer_of
from harness.model import Figure
from harness.report.table import FACT, PROPERTIES, Cell, Table
from harness.store.run import Run

COLUMNS = ("quantity", "bound", "value", "unit", "period", "basis", "status", "layer", "source")
Row = tuple[Cell, ...]


def first_table(c: Context, run: Run, costs: Sequence[tuple[str, Figure]] = (), caveats: Sequence[str] = ()) -> Table:
    """Inference spend / revenue and spend per query, and below them the run's `costs`, as (label, figure)."""
    revenue, query = spend_revenue(c), per_query(c)
    ratios = [Line(f"inference spend / {revenue[i].label}", revenue[i].result) for i in (0, 2, 3, 5)]
    body, notes = rows([*ratios, *query[::2]], c.book)
    date = f"{run.file.created_utc:%Y-%m-%d}"
    own = tuple(_measured_row(label, figure, date, "this machine", run.id) for label, figure in costs)
    title = "Reported inference spend, and the cost measured here"
    return Table("reported", title, COLUMNS, (*body, *own), (*caveats, *notes))


def facts_table(facts: Iterable[Fact]) -> Table:
    """A row for each fact; a fact without a number shows its words as the value."""
    body = tuple(_fact_row(f"{fact.id} {fact.entity}: {fact.metric}", fact) for fact in facts)
    return Table("facts", "Published figures", COLUMNS, body, ("`harness facts ID` prints the quote of one fact.",))


def fact_table(book: Book, fact_id: str) -> Table:
    """All properties of one fact, a row for each; as text each property is one line, so that quotes stay whole."""
    fact = book[fact_id]
    ends = (fact.value,) if fact.value is not None else (fact.value_low, fact.value_high)
    number = " to ".join(f"{end:,.12g}" for end in ends if end is not None)
    properties = {
        "value": f"{fact.bound} {number} {fact.unit}" if fact.bound else "no number",
        "period": str(fact.period),
        "basis": ", ".join(sorted(fact.basis)),
        "status": f"{fact.status} ({fact.layer})",
        "source": book.source(fact_id),
        **{name: getattr(fact, name) for name in ("cited", "wording", "quote", "gloss", "note")},
    }
    title = f"{fact.id}  {fact.entity}: {fact.metric}"
    return Table(FACT, title, PROPERTIES, tuple((name, text) for name, text in properties.items() if text))


def comparison_table(c: Context, name: str) -> Table:
    """One of COMPARISONS, or `contradictions`, as a table. HarnessError for an unknown name."""
    if name == "contradictions":
        found = [(item, c.book[i]) for item in c.book.contradictions for i in item.ids]
        body = tuple(_fact_row(f"{item.topic}: {fact.entity}, {fact.metric}", fact) for item, fact in found)
        notes = tuple(f"{item.topic} ({', '.join(item.ids)}): {item.why}" for item in c.book.contradictions)
        return Table(name, "Contradictions within and between the sources", COLUMNS, body, notes)
    if name not in COMPARISONS:
        raise HarnessError(f"unknown comparison '{name}'", f"choose one of {', '.join(COMPARISONS)}, contradictions")
    title, lines, note = COMPARISONS[name]
    body, notes = rows(lines(c), c.book)
    return Table(name, title, COLUMNS, body, ((note,) if note else ()) + notes)


def explained(c: Context, name: str) -> list[Table]:
    """A comparison with its formulas and assumptions, then every fact that it names, with its quote."""
    table = comparison_table(c, name)
    return [table, *(fact_table(c.book, i) for i in _named(c.book, [table]))]


def sources_table(book: Book, tables: Iterable[Table]) -> Table:
    """Every fact that the tables name, with its quote and its source."""
    facts = [book[i] for i in _named(book, tables)]
    body = tuple((f.id, f"{f.entity}: {f.metric}", f.quote or f.wording, f.gloss, book.source(f.id)) for f in facts)
    return Table("sources", "Sources and quotes", ("id", "figure", "quote", "in English", "source"), body)


def _named(book: Book, tables: Iterable[Table]) -> list[str]:
    words = {word for table in tables for word in re.findall(r"[\w-]+(?:\.[\w-]+)*", f"{table.rows} {table.notes}")}
    return [i for i in book.facts if i in words]


def compare_tables(appraisal: Appraisal) -> tuple[Table, Table]:
    """The reported and the measured cost and energy of a query, then the factors of the gap.

    HarnessError if no measurement has a cost. If published measurements stand in for a GPU run, the title says so.
    """
    c, found = appraisal.context, appraisal.measurements
    if appraisal.ladder is None:
        raise HarnessError("no run given has a cost of a query", "compare a run with finished requests and a price")
    start = appraisal.gaps[0][0]
    gaps = [Line(f"reported / {each.model}", quantity) for each, quantity in appraisal.gaps]
    body, notes = rows([*per_query(c)[::2], *gaps], c.book)
    usd = [_row_of(each, f"cost, {each.model}", each.usd_per_query) for each in found]
    wh = [_row_of(each, f"energy, {each.model}", each.wh_per_query) for each in found if each.wh_per_query]
    reported = [_fact_row(f"{c.book[i].entity}: {c.book[i].metric}", c.book[i]) for i in PUBLISHED_ENERGY]
    title = "A query, reported and measured"
    if start.usd_per_query.status == "published":
        title = f"No GPU run given: published GPU measurements ({start.source}) stand in. {title}"
    prices = {each.usd_per_gpu_hour for each in found if each.usd_per_gpu_hour is not None}
    priced = sorted(f"measured cost at {price:g} USD/GPU-hour" for price in prices)
    first = Table("compare", title, COLUMNS, (*usd, *body, *wh, *reported), (*appraisal.caveats, *priced, *notes))
    return first, ladder_table(appraisal.ladder, start)


def ladder_table(steps: Ladder, start: Measurement) -> Table:
    """The gap between the reported and the measured cost, its factors, and the value that each factor needs."""
    about = (str(steps.gap.period), ", ".join(sorted(steps.gap.basis)))
    names = " * ".join(rung.assumption.name for rung in steps.rungs)
    gap = ("gap", steps.gap.figure("gap"), "", *about, "derived", steps.gap.terms)
    product = ("product of the factors", steps.product, "", *about, "derived", names)
    rest = f"gap of {', '.join(steps.gap.ids)} / product"
    left = ("left over: gap / product", steps.left, "", *about, "derived", rest)
    factors = (
        (a.label, rung.multiplier, rung.needed, *about, a.status, f"{a.name}: {a.source}")
        for a, rung in ((rung.assumption, rung) for rung in steps.rungs)
    )
    notes = (
        f"from {start.model}, {start.conditions} ({start.source})",
        "factors are independent and lognormal with the p5 and p95 shown; --set NAME=LOW:HIGH changes one",
        "needed: what the provider's value must be for the factors to multiply to the gap",
    )
    columns = ("factor", "multiplies by", "needed", "period", "basis", "status", "source")
    return Table("ladder", "What must be true for the two to agree", columns, (gap, *factors, product, left), notes)


def rows(lines: Iterable[Line], book: Book) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows of comparison lines, and notes with their assumptions and sources."""
    body: list[Row] = []
    assumptions: dict[str, None] = {}
    sources: dict[str, str] = {}
    for label, q in ((line.label, line.result) for line in lines):
        if isinstance(q, HarnessError):
            body.append((label, "", f"refused ({q.what})", *[""] * (len(COLUMNS) - 3)))
            continue
        stamp = f" (FORCED: mixes {'; '.join(q.stamps)})" if q.stamps else ""
        period, status, layers = str(q.period or "any period"), " + ".join(q.statuses), " + ".join(q.layers)
        figure = q.figure(label)
        body.append((label, q.bound, figure, q.unit_text, period, _basis(q.basis) + stamp, status, layers, q.terms))
        assumptions.update(dict.fromkeys(q.assumptions))
        known = [book[i] for i in q.ids if i in book.facts]
        sources.update((f.source if f.source in book.sources else f.id, book.source(f.id)) for f in known)
    assumed = (f"assumed: {'; '.join(assumptions)}",) if assumptions else ()
    return tuple(body), (*assumed, *(f"{key}: {text}" for key, text in sorted(sources.items())))


def _row_of(each: Measurement, label: str, figure: Figure) -> Row:
    return _measured_row(label, figure, each.period, each.conditions, each.source)


def _measured_row(label: str, figure: Figure, period: str, conditions: str, source: str) -> Row:
    """A figure of a run or of a published measurement; `conditions` stand in the column of the basis."""
    bound = "n/a" if figure.value is None else "~"
    return (label, bound, figure, figure.unit, period, conditions, figure.status, layer_of(figure), source)


def _fact_row(label: str, fact: Fact) -> Row:
    shown: Cell = of_fact(fact).figure(fact.id) if fact.bound else fact.wording or fact.gloss
    source = f"{fact.id} ({fact.source})"
    return (label, fact.bound, shown, fact.unit, str(fact.period), _basis(fact.basis), fact.status, fact.layer, source)


def _basis(tags: frozenset[str]) -> str:
    return ", ".join(sorted(tags - {"unstated"})) or "basis unstated"
