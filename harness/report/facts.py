"""Tables of published figures and of their comparisons: every figure with its period, basis and source."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.config import near
from harness.errors import HarnessError
from harness.facts.appraisal import Appraisal
from harness.facts.book import Book, Fact
from harness.facts.claims import of_fact
from harness.facts.formulas import Context, Line, lines, named_ids, result
from harness.facts.gap import CANDIDATES, READINGS, layer_of
from harness.model import Figure
from harness.report.screen import must_be_table, screen_tables
from harness.report.table import FACT, PROPERTIES, Cell, Table
from harness.store.run import Run

COLUMNS = ("quantity", "bound", "value", "unit", "period", "basis", "status", "layer", "source")
SCOPED = (*COLUMNS, "scope", "name", "at printed digits")
"""Of comparisons: which suppliers the figure covers, what --explain takes, and the figure without half a digit."""
FIRST = ("bill_floor_2024", "bill_press_2024", "bill_floor", "bill_press",
         "spend_query_x02", "spend_query_x01", "spend_query_x03", "spend_query_linear")  # fmt: skip
"""Rows of comparisons.csv that a run's report shows."""
CONTRADICTIONS = "contradictions"
Row = tuple[Cell, ...]


def first_table(
    c: Context, run: Run | None = None, costs: Sequence[tuple[str, Figure]] = (), caveats: Sequence[str] = ()
) -> Table:
    """Inference spend / revenue and spend per query, and below them the `costs` of a run, as (label, figure)."""
    body, notes = rows([Line(c.book.comparisons[name].label, result(c, name)) for name in FIRST], c.book)
    date, name = (f"{run.file.created_utc:%Y-%m-%d}", run.id) if run else ("", "")
    own = tuple(_measured_row(label, figure, date, "this machine", name) for label, figure in costs)
    title = "Reported inference spend" + ", and the cost measured here" * bool(own)
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
    """A table of comparison_tables.csv, or `contradictions`. HarnessError for an unknown name."""
    if name == CONTRADICTIONS:
        found = [(item, c.book[i]) for item in c.book.contradictions for i in item.ids]
        body = tuple(_fact_row(f"{item.topic}: {fact.entity}, {fact.metric}", fact) for item, fact in found)
        notes = tuple(f"{item.topic} ({', '.join(item.ids)}): {item.why}" for item in c.book.contradictions)
        return Table(name, "Contradictions within and between the sources", COLUMNS, body, notes)
    made = lines(c, name)
    about = c.book.tables[name]
    body, notes = scoped(c, made)
    return Table(name, about["title"], SCOPED, body, ((about["note"],) if about["note"] else ()) + notes)


def scoped(c: Context, made: Sequence[Line]) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows of comparison lines in the columns SCOPED, and their notes."""
    plain = replace(c, rounding=False, known={})
    body, notes = rows(made, c.book)
    return tuple(
        (*row, line.scope, line.name, _point(plain, line)) for row, line in zip(body, made, strict=True)
    ), notes


def _point(plain: Context, line: Line) -> Figure | None:
    """The figure of a line without half a digit; None where that changes nothing."""
    q = line.result
    if isinstance(q, HarnessError) or not line.name or q.bound == "n/a" or q.low == q.high:
        return None
    point = result(plain, line.name)
    return None if isinstance(point, HarnessError) else point.figure(line.name)


def explained(appraisal: Appraisal, name: str) -> list[Table]:
    """A comparison, a row of one, a fact or an assumption: its formula, its inputs, then every fact with its quote.

    HarnessError for an unknown name.
    """
    c, book = appraisal.context, appraisal.context.book
    if name in book.tables or name == CONTRADICTIONS:
        tables = [comparison_table(c, name)]
    elif name in book.comparisons:
        tables = [_inputs_table(c, name)]
    elif name in book.facts:
        return [fact_table(book, name)]
    elif name in book.assumptions or name in GAP:
        tables = [_belief_table(book, name), *_behind(appraisal, name)]
    else:
        known = (*book.tables, CONTRADICTIONS, *GAP, *book.assumptions, *book.comparisons)
        raise HarnessError(f"nothing is named '{name}'", f"{near(name, known)}names stand in `harness compare --full`")
    return [*tables, *(fact_table(book, i) for i in _named(book, tables))]


def _inputs_table(c: Context, name: str) -> Table:
    """A row of comparisons.csv, below it every row that its formula names, with their formulas."""
    known, names = c.book.comparisons, [name]
    for each in names:  # grows by the rows that each names
        inner = dict.fromkeys(named_ids([known[each].numerator, known[each].denominator]))
        names += [found for found in inner if found in known and found not in names]
    row = known[name]
    formula = f"{name} = {row.numerator}" + (f" / ({row.denominator})" if row.denominator else "")
    return _rows_table(c, row.label, names, formula)


def _rows_table(c: Context, title: str, names: Iterable[str], *first: str) -> Table:
    """Rows of comparisons.csv by name."""
    found = [c.book.comparisons[name] for name in names]
    body, notes = scoped(c, [Line(row.label, result(c, row.name), row.name, row.scope) for row in found])
    return Table("explained", title, SCOPED, body, (*first, *notes))


def _behind(appraisal: Appraisal, name: str) -> list[Table]:
    """The rows of what must be true, and the inputs of a figure of the gap."""
    if appraisal.agreement is None:
        return []
    must = must_be_table(appraisal.agreement)
    named = must.rows if name in ("left", "reach") else tuple(row for row in must.rows if row[-1] == name)
    found = [replace(must, rows=named)] if named else []
    if name == "gap":
        readings = _rows_table(appraisal.context, "The bill, for each reading of the volume", READINGS)
        found += [readings, _measured_table(appraisal)]
    if name == "model":
        models = tuple((each["kind"], each["model"], each["precision"]) for each in CANDIDATES)
        found.append(Table("explained", "Models of the belief", ("kind", "model", "precision"), models))
    return found


GAP = {
    "gap": "reported bill a prompt / cost of a query: yours, or of published models with 60e9 parameters or more",
    "left": "reported bill a prompt / what the believed factors make of it; an interval with 1 inside can agree",
    "reach": "share of the draws in which the believed factors make at least the reported bill",
    "model": "device-seconds of a million tokens; an input token counts as input_weight output tokens",
}
"""Figures of the gap -> their formula."""
BILL = (
    "bill a prompt = model x (tokens_per_query + input_weight x input_tokens) x gpu_price / 3600 x overhead "
    "x efficiency x latency x supplier_share / (utilisation x chat_share x text_share x serving_share)"
)


def _belief_table(book: Book, name: str) -> Table:
    """The formula of a figure of the gap; of an assumption also its value and its source."""
    if name in GAP:
        return Table("explained", name, PROPERTIES, (("formula", GAP[name]),), (BILL,))
    a = book.assumptions[name]
    properties = (
        ("formula", BILL if a.ladder else "a number that no fact gives"),
        ("value", f"{a.value:g} {a.unit}"),
        ("p5-p95", f"{a.low:g} to {a.high:g}" if a.low and a.high else "exact"),
        ("status", a.status),
        ("source", a.source),
    )
    return Table("explained", a.label, PROPERTIES, properties)


def sources_table(book: Book, tables: Iterable[Table]) -> Table:
    """Every fact that the tables name, with its quote and its source."""
    facts = [book[i] for i in _named(book, tables)]
    body = tuple((f.id, f"{f.entity}: {f.metric}", f.quote or f.wording, f.gloss, book.source(f.id)) for f in facts)
    return Table("sources", "Sources and quotes", ("id", "figure", "quote", "in English", "source"), body)


def _named(book: Book, tables: Iterable[Table]) -> list[str]:
    words = {word for table in tables for word in re.findall(r"[\w-]+(?:\.[\w-]+)*", f"{table.rows} {table.notes}")}
    return [i for i in book.facts if i in words]


def compare_tables(appraisal: Appraisal) -> list[Table]:
    """The screen, and what must be true as figures."""
    found = appraisal.agreement
    return [*screen_tables(appraisal, quote=True), *([must_be_table(found)] if found is not None else [])]


def full_tables(appraisal: Appraisal) -> list[Table]:
    """Everything that `compare` knows: the screen, the measurements, every comparison and the contradictions."""
    c = appraisal.context
    named = (comparison_table(c, name) for name in (*c.book.tables, CONTRADICTIONS))
    return [*compare_tables(appraisal), _measured_table(appraisal), *named]


def _measured_table(appraisal: Appraisal) -> Table:
    """Cost and energy of a query, of the runs and of the published measurements."""
    body = []
    for kind, field in (("cost", "usd_per_query"), ("energy", "wh_per_query")):
        for each in (*appraisal.measurements, *appraisal.points):
            if figure := getattr(each, field):
                label = f"{kind} of a query, {each.model}"
                body.append(_measured_row(label, figure, each.period, each.conditions, each.source))
    doubts = tuple(why for _, why in appraisal.caveats)
    return Table("measured", "Measured cost and energy of a query", COLUMNS, tuple(body), doubts)


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
