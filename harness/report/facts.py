"""Published figures as tables: the first screen of `compare`, and comparisons with period, basis and source."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.config import near
from harness.errors import HarnessError
from harness.facts.appraisal import Appraisal
from harness.facts.book import Book, Fact
from harness.facts.claims import Quantity, of_fact
from harness.facts.formulas import Context, Line, lines, named_ids, result
from harness.facts.gap import CANDIDATES, READINGS, Agreement, chance, layer_of, place, predicted
from harness.model import Figure
from harness.report.answer import times_of
from harness.report.format import brief, labels, number, span
from harness.report.table import FACT, PROPERTIES, Cell, Table, properties
from harness.store.run import Run

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
    amount = f"{money} {number(fact.value or 0.0)}" + (f" a {per}" if per else "")
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
        f"{fact.entity}'s {fact.status} inference bill of USD {number(fact.value or 0.0)} in {fact.period} is "
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
    reach = Figure("reach", found.reach, "1", "derived")
    rows: list[tuple[Cell, ...]] = [
        ("reported bill a prompt", "", found.reported, "", "", "gap"),
        ("measured cost a query", "", found.measured, "", "", "gap"),
        ("reported / measured", "", found.gap, "", "", "gap"),
        ("reported / what the believed factors make", "", found.left, "", "", "left"),
        ("probability that the believed factors reach the bill", "", reach, "", "", "reach"),
    ]
    for f in found.factors:
        own = f.start if f.start.value is not None else ""
        rows.append((f.label, own, f.believed, f.needed, place(f.share), f.name))
    notes = (
        f"models: {', '.join(predicted())}; each kind, each reading of the volume as likely as any other",
        "must be: p5, median and p95 of the draws in which all factors make up the bill; "
        "--set NAME=LOW:HIGH (or a distribution) changes a belief, --spend the bill",
    )
    columns = ("factor", "measured", "believed", "must be", "verdict", "explain")
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
    value = number(q.value) if q.bound == "=" else brief(q.value, digits)
    return f"{q.bound} {value}" + (f" ({ends})" if q.bound == "~" and ends != value else "")


def times(figure: Figure) -> str:
    """Median and interval, such as `27 (10-60)`; n/a without a value."""
    if figure.value is None:
        return "n/a"
    low, high, middle = figure.low, figure.high, brief(figure.value)
    return middle if low is None or high is None or low == high else f"{middle} ({span(low, high)})"


FEW_DRAWS = 1000
"""With fewer effective draws one digit is printed: an end of as many is known to some percent."""


def between(figure: Figure, digits: int = 2) -> str:
    """The ends of an interval, with a digit more for a narrow one above 1; else the value, or n/a."""
    if figure.value is None or figure.low is None or figure.high is None:
        return "n/a" if figure.value is None else brief(figure.value, digits)
    return span(figure.low, figure.high, digits + (1 <= figure.low > figure.high / 2))


def _yours(appraisal: Appraisal) -> list[tuple[str, str]]:
    """What is set against the bill, then why a run is not, or the first doubt about it; assumptions against facts."""
    rows = []
    if appraisal.agreement is None:
        fact = appraisal.context.book[appraisal.subject.row]
        rows = [("the figure", "; ".join(x for x in (fact.status, *fact.note.split("; ")) if not x.startswith("http")))]
    if appraisal.starts:
        first, *others = appraisal.starts
        label = f"first of {len(appraisal.starts)} runs" if others else "yours"
        rows.append((label, f"{first.model}, {first.conditions}"))
    elif not rows:
        why = "" if appraisal.measurements else "; no run was named"
        rows = [("compared with", f"large published models on H100 (ML.ENERGY leaderboard v3){why}")]
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
    whose, kind = ("yours", "yours") if appraisal.starts else ("H100", "on H100")
    bill, cost = (times(times_of(figure, 100)) for figure in (found.reported, found.measured))
    title = f"2  Cents a prompt: reported {bill}, {kind} {cost}; the gap is {times(found.gap)} times"
    rows = tuple(
        (f.label, "" if f.start.value is None else brief(f.start.value), between(f.believed),
         between(f.needed, 1 if (f.needed.n or 0) < FEW_DRAWS else 2), place(f.share), f.name)
        for f in found.factors
    )  # fmt: skip
    left = f"the bill is {times(found.left)} times what these beliefs come to (1: they agree)"
    left += "; more: --explain left"
    reasons = {f.needed.reason for f in found.factors if f.needed.reason}
    columns = ("what would explain it", whose, "believed", "must be", "verdict", "explain")
    return Table("against-measurement", title, columns, rows, (left, *sorted(reasons)))


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
    known = {
        "value": f"{fact.bound} {number} {fact.unit}" if fact.bound else "no number",
        "period": str(fact.period),
        "basis": ", ".join(sorted(fact.basis)),
        "status": f"{fact.status} ({fact.layer})",
        "source": book.source(fact_id),
        **{name: getattr(fact, name) for name in ("cited", "wording", "quote", "gloss", "note")},
    }
    title = f"{fact.id}  {fact.entity}: {fact.metric}"
    return properties(FACT, title, known)


def comparison_table(c: Context, name: str) -> Table:
    """A table of comparison_tables.csv, or `contradictions`. HarnessError for an unknown name."""
    if name == CONTRADICTIONS:
        found = [(item, c.book[i]) for item in c.book.contradictions for i in item.ids]
        body = tuple(_fact_row(f"{item.topic}: {fact.entity}, {fact.metric}", fact) for item, fact in found)
        notes = tuple(f"{item.topic} ({', '.join(item.ids)}): {item.why}" for item in c.book.contradictions)
        return Table(name, "Contradictions within and between the sources", COLUMNS, body, notes)
    made = lines(c, name)
    about = c.book.tables[name]
    return _scoped(c, name, about["title"], made, (about["note"],) if about["note"] else ())


def _scoped(c: Context, name: str, title: str, made: Sequence[Line], first: Sequence[str]) -> Table:
    """Comparison lines in the columns SCOPED, with their notes after the `first` ones."""
    plain = replace(c, rounding=False, known={})
    body, notes = rows(made, c.book)
    shown = ((*row, x.scope, x.name, _point(plain, x)) for row, x in zip(body, made, strict=True))
    return Table(name, title, SCOPED, tuple(shown), (*first, *notes))


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
    elif name in book.assumptions or name in FORMULAS:
        tables = [_belief_table(book, name), *_behind(appraisal, name)]
    else:
        known = (*book.tables, CONTRADICTIONS, *FORMULAS, *book.assumptions, *book.comparisons)
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
    made = [Line(row.label, result(c, row.name), row.name, row.scope) for row in found]
    return _scoped(c, "explained", title, made, first)


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


FORMULAS = labels("formula")
"""Figure of the gap -> its formula."""
BILL = FORMULAS.pop("bill")


def _belief_table(book: Book, name: str) -> Table:
    """The formula of a figure of the gap; of an assumption also its value and its source."""
    if name in FORMULAS:
        return Table("explained", name, PROPERTIES, (("formula", FORMULAS[name]),), (BILL,))
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
