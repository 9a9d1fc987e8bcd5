"""Figures and tables as text. Only this module converts and rounds numbers and writes their units."""

import math
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from harness.analysis.latency import LATENCIES
from harness.errors import plain
from harness.files import data_rows
from harness.model import Figure
from harness.report.table import PROPERTIES, Cell, Table


def labels(place: str) -> dict[str, str]:
    """Figure -> its label in that place of labels.csv, in the order in which they are shown."""
    return {row["figure"]: row["label"] for row in data_rows("labels.csv") if row["place"] == place}


def scale(figure: Figure) -> tuple[float, str]:
    """The factor and the unit in which a figure is printed: latencies in ms, shares in %, others in SI units."""
    latency = re.sub(r"^(whole_run|step\.\d+)\.", "", figure.name).partition(".")[0]
    if figure.unit == "s" and latency in (*LATENCIES, "client"):
        return 1e3, "ms"
    return (100.0, "%") if figure.unit in ("share", "1") else (1.0, re.sub("/(1e6 |M)token$", "/M tokens", figure.unit))


MOST_DECIMALS = {"ms": 3}
"""Unit -> the most decimals printed: time stamps are accurate to some tens of microseconds."""
SIZES = (1e12, " tn"), (1e9, " bn"), (1e6, " M")


def number(value: float) -> str:
    """A number without an interval: three significant digits, or fewer if exact; whole ones below a million in full.

    >>> [number(x) for x in (0, 0.5, 9.998, 12.3456, 8264.4, 123456, 8.658e8, 13e12, 2.31e-7)]
    ['0', '0.5', '10.0', '12.3', '8,260', '123,456', '866 M', '13 tn', '2.31e-07']
    """
    return texts(Figure("", value, "", "measured"))[0]


def brief(value: float, digits: int = 2, like: float | None = None) -> str:
    """A number at `digits` significant digits, as a screen prints it; `like`: at the scale of that number.

    >>> [brief(x) for x in (0.0123, 1.358, 684123.0, 1.187e9, 1249, 0)]
    ['0.012', '1.4', '0.68 M', '1.2 bn', '1,200', '0']
    >>> brief(1.9994, 3), brief(6.38e9, 3, 8.7e9)
    ('2.00', '6.38 bn')
    """
    size = abs(value if like is None else like)
    for least, unit, word in ((1e12, 1e12, " tn"), (1e9, 1e9, " bn"), (1e5, 1e6, " M")):
        if size >= least:
            return brief(value / unit, digits, 1.0) + word
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, places)
    return f"{rounded:.{digits}g}" if abs(value) < 1e-4 else f"{rounded:,.{max(0, places)}f}"


def span(low: float, high: float, digits: int = 2, like: float | None = None) -> str:
    """Two ends at one scale, which is printed once; one number, if they print alike.

    >>> span(6.375e9, 8.75e9, 3), span(0.988, 1.3576, 3), span(1.0, 1.001)
    ('6.38-8.75 bn', '0.988-1.36', '1.0')
    """
    like = high if like is None else like
    first, last = brief(low, digits, like), brief(high, digits, like)
    return last if first == last else f"{first.partition(' ')[0]}-{last}"


def texts(figure: Figure) -> tuple[str, str, str]:
    """Value, low and high in the unit of `scale`, with the digits that the interval carries; n/a, or empty, if unknown.

    A half-width keeps two digits if they are below 3.55 of their power of ten, else one, and the value ends at the
    same place (Particle Data Group, Review of Particle Physics 2024, section 5.3); at most four digits, three without
    an interval, or fewer if they are exact. Whole numbers below a million without an interval, such as counts, have all
    their digits. An end above 0 keeps at least one digit.

    >>> texts(Figure("usd_per_query", 0.034123, "USD/query", "derived", 0.0239, 0.0443))
    ('0.034', '0.024', '0.044')
    >>> texts(Figure("gap", 1.13, "ratio", "derived", 0.152, 8.81)), texts(Figure("spend", 8.65e9, "USD", "reported"))
    (('1', '0.2', '9'), ('8.65 bn', '', ''))
    """
    if figure.value is None:
        return "n/a", "", ""
    factor, name = scale(figure)
    size = abs(figure.value * factor)
    many, word = next(((many, word) for many, word in SIZES if size >= many), (1.0, ""))
    value, low, high = (None if x is None else x * factor / many for x in (figure.value, figure.low, figure.high))
    assert value is not None
    leading = _power(float(f"{value:.2e}"))  # 9.998 is 10.0
    places = min(2 - leading, MOST_DECIMALS.get(name, 2 - leading))
    if low is not None and high is not None and high > low:
        half = (high - low) / 2
        places = max(-leading, min(3 - leading, (half < 3.55 * 10 ** _power(half)) - _power(half)))
    else:
        places = 0 if not word and value == round(value) else places
        while places > 0 and round(value, places - 1) == value:
            places -= 1
    ends = ["" if x is None else _rounded(x, max(places, -_power(x) if low and low > 0 else places), size) + word
            for x in (low, high)]  # fmt: skip
    return _rounded(value, places, size) + word, ends[0], ends[1]


def _power(x: float) -> int:
    return math.floor(math.log10(abs(x))) if x else 0


def _rounded(x: float, places: int, size: float) -> str:
    rounded = round(x, places)
    return f"{rounded:.3g}" if 0 < size < 1e-6 else f"{rounded:,.{max(0, places)}f}"


def carried(figure: Figure) -> tuple[str, str]:
    """The value as `texts` has it, and its interval or bound: as a share of the value if it is about even and narrow.

    >>> carried(Figure("rate", 15866.0, "tokens/s", "measured", 15422.0, 16310.0))
    ('15,900', '±2.8%')
    >>> carried(Figure("usd_per_query", 0.1134, "USD/query", "derived", 0.05, 0.23))
    ('0.11', '0.05-0.23')
    >>> carried(Figure("ttft_s.p99", 0.083124, "s", "measured"))
    ('83.1', '')
    """
    value, low, high = texts(figure)
    if low and high and figure.value and figure.low is not None and figure.high is not None:
        half, size = (figure.high - figure.low) / 2, abs(figure.value)
        below, above = figure.value - figure.low, figure.high - figure.value
        if half == 0 or (half < 0.2 * size and abs(above - below) <= 0.2 * half):
            return value, f"±{100 * half / size:.2g}%"
    return value, f"{_once(low, high)}-{high}" if low and high else f">= {low}" if low else f"<= {high}" if high else ""


def _once(low: str, high: str) -> str:
    """The low end without the word that the high end has too, such as ` bn`."""
    return low.partition(" ")[0] if high else low


def ends(figure: Figure) -> str | None:
    """The interval or bound of a figure without its value; None if it has none."""
    _, low, high = texts(figure)
    return f"{_once(low, high)}–{high}" if low and high else f"≥ {low}" if low else f"≤ {high}" if high else None


def amount(figure: Figure, *, unit: bool = True) -> str:
    """The value with its unit, or why there is no value."""
    if figure.value is None:
        return f"n/a ({figure.reason or 'not recorded'})"
    shown, name = texts(figure)[0], scale(figure)[1]
    return shown + (name if name == "%" else f" {name}") if unit else shown


def words(figure: Figure, without: Container[str] = ()) -> str:
    """A figure in full, without the parts that are printed elsewhere.

    The parts are `unit`, `bound` (the ends of the interval), `interval` (its name), `n`, `reason` and `status`.

    >>> words(Figure("usd_per_query", 0.12, "USD/query", "derived", 0.09, 0.16, interval="p5-p95"))
    '0.120 USD/query (p5-p95: 0.090–0.160; derived)'
    >>> words(Figure("ttft_s.p99", 0.2, "s", "measured", n=3), {"status"})
    '200 ms (n=3)'
    """
    details = beside(figure, without)
    known = figure.value is not None or "reason" not in without
    return (amount(figure, unit="unit" not in without) if known else "n/a") + (f" ({details})" if details else "")


def beside(figure: Figure, without: Container[str]) -> str:
    """What stands beside the value of a figure: the parts of `words` but the unit."""
    between = None if "bound" in without else ends(figure)
    known = figure.value is not None
    parts = {
        "bound": between if between is None or "interval" in without else f"{figure.interval}: {between}",
        "n": f"n={number(figure.n)}" if known and between is None and figure.n is not None else None,
        "reason": figure.reason if known else None,
        "status": figure.status if known else None,
    }
    return "; ".join(text for part, text in parts.items() if text and part not in without)


CLAIM = ("bound", "value", "unit")
"""Columns that are printed as one phrase, as in `<= 1.539 ratio`."""


@dataclass(frozen=True, slots=True)
class Printed:
    """A table as text. `aside`: what all its figures share; `header`: None if the columns need no names."""

    title: str
    aside: str
    header: tuple[str, ...] | None
    rows: tuple[tuple[str, ...], ...]
    figures: frozenset[int]
    """Columns of figures."""
    notes: tuple[str, ...]


def printed(table: Table) -> Printed:
    """The table for formats without a fixed width: each interval beside its value, reasons as numbered notes.

    The unit of a column of several rows stands in its head.

    >>> rate = Figure("rate", 12.3456, "tokens/s", "measured", reason="one run")
    >>> printed(Table("t", "T", ("figure", "value"), (("x", rate),), source="run-1")).rows
    (('x', '12.3 tokens/s (measured) [1]'),)
    """
    table = readable(table)
    common = shared(table)
    marks = footnotes(table, common)
    without = {*common, *table.columns, "reason"}
    units = units_of(table, common) if len(table.rows) > 1 else {}
    heads = [_headed(name, units.get(i)) for i, name in enumerate(table.columns)]

    def cell(i: int, content: Cell) -> str:
        if not isinstance(content, Figure):
            return content or ""
        elsewhere = {name for name, out in (("interval", len(content.interval) > SHORT), ("unit", i in units)) if out}
        return f"{words(content, without | elsewhere)} {marks_of(content, common, marks)}".rstrip()

    notes = (*marks.texts(), *table.notes)
    return Printed(
        table.title,
        aside(table, common, "interval in brackets"),
        None if table.columns == PROPERTIES else tuple(heads),
        tuple(tuple(cell(i, content) for i, content in enumerate(row)) for row in table.rows)
        or (("none", *[""] * (len(table.columns) - 1)),),
        frozenset(figure_columns(table)),
        (*notes, f"source: {table.source}") if table.source else notes,
    )


def _headed(name: str, unit: str | None) -> str:
    """The head of a column, with its unit unless the name has it.

    >>> [_headed(name, unit) for name, unit in (("TTFT p50", "ms"), ("USD per query", "USD/query"), ("J/token", "J"))]
    ['TTFT p50, ms', 'USD per query', 'J/token']
    """
    has_unit = unit is None or name.endswith(unit) or re.match(rf"{re.escape(unit.partition('/')[0])}\b", name)
    return name if has_unit else f"{name}, {unit}"


def readable(table: Table) -> Table:
    """The table for people: one column `claim` in place of the columns of CLAIM, and no control characters."""
    table = replace(
        table,
        title=plain(table.title),
        columns=tuple(map(plain, table.columns)),
        rows=tuple(tuple(map(_plain, row)) for row in table.rows),
        notes=tuple(map(plain, table.notes)),
        source=plain(table.source),
    )
    at = table.columns.index(CLAIM[0]) if CLAIM[0] in table.columns else 0
    if table.columns[at : at + 3] != CLAIM:
        return table
    rows = tuple((*row[:at], _claim(row[at], row[at + 1], table.columns), *row[at + 3 :]) for row in table.rows)
    return replace(table, columns=(*table.columns[:at], "claim", *table.columns[at + 3 :]), rows=rows)


def _plain(cell: Cell) -> Cell:
    if not isinstance(cell, Figure):
        return cell and plain(cell)
    reason = cell.reason and plain(cell.reason)
    return replace(cell, unit=plain(cell.unit), reason=reason, interval=plain(cell.interval))


def _claim(bound: Cell, value: Cell, columns: tuple[str, ...]) -> str:
    if not isinstance(value, Figure) or value.value is None:
        return amount(value) if isinstance(value, Figure) else value or ""
    without = {"n", "status"}.intersection(columns) | ({"bound"} if value.interval.startswith("bound") else set())
    if bound == "range" and (between := ends(value)):
        return words(value, without).replace(amount(value, unit=False), between.replace("–", " to "), 1)
    return f"{bound} {words(replace(value, low=None, high=None) if 'bound' in without else value, without)}"


def figure_columns(table: Table) -> set[int]:
    return {i for row in table.rows for i, cell in enumerate(row) if isinstance(cell, Figure)}


def same_columns(table: Table) -> list[int]:
    """The columns but the first whose text is the same in all rows."""
    same = [i for i in range(1, len(table.columns)) if len({row[i] for row in table.rows}) == 1 < len(table.rows)]
    return [i for i in same if table.rows[0][i] and isinstance(table.rows[0][i], str)]


def units_of(table: Table, common: Mapping[str, str]) -> dict[int, str]:
    """Column -> the unit that all its figures have, if the title does not tell it and they are no shares."""
    columns = {i: {scale(x)[1] for row in table.rows if isinstance(x := row[i], Figure)} for i in figure_columns(table)}
    known = {"unit"} & {*common, *table.columns}
    return {i: units.pop() for i, units in columns.items() if len(units) == 1 and not units & {"", "%"} and not known}


def shared(table: Table) -> dict[str, str]:
    """Of unit, interval, n and status those that are the same for all figures of a table."""
    figures = [cell for row in table.rows for cell in row if isinstance(cell, Figure)]
    if len(figures) < 2:
        return {}
    every: dict[str, set[str]] = {
        "unit": {scale(figure)[1] for figure in figures} if len(figure_columns(table)) > 1 else set(),
        "interval": {figure.interval for figure in figures if ends(figure)},
        "n": {"" if figure.n is None else number(figure.n) for figure in figures},
        "status": {figure.status for figure in figures},
    }
    return {kind: found.pop() for kind, found in every.items() if len(found) == 1 and found != {""}}


def aside(table: Table, common: Mapping[str, str], where: str = "") -> str:
    """What all figures share, as printed beside the title; `where` says where the intervals are printed."""
    said = {kind: what for kind, what in common.items() if kind not in table.columns}
    interval = said.get("interval", "") if where else ""
    beside_each = re.sub(r"^bound \S+ interval", "bounds", f"{interval} {where}")
    parts = [
        said.get("unit", ""),
        f"{where}: {interval}" if len(interval) > SHORT else beside_each if interval else "",
        f"n={said['n']}" if "n" in said else "",
        said.get("status", "").replace("simulated", "SIMULATED"),
    ]
    return ", ".join(part for part in parts if part)


SHORT = 12
"""An interval's name of up to this many characters, such as 95%, is printed beside it; a longer name is a note."""


def asides(figure: Figure, common: Mapping[str, str]) -> list[str]:
    """The notes of a figure: why it has no value or interval, and a long name of its interval."""
    long = "interval" not in common and len(figure.interval) > SHORT and ends(figure)
    why = figure.reason or ("not recorded" if figure.value is None else None)
    notes = (why, f"interval: {figure.interval}" if long else None)
    return [note for note in notes if note]


NEEDS = re.compile(r"(.*needs \d+ [\w. ]+), has (\d+)")


class Footnotes:
    """Reasons, numbered in the order in which they are first met; those that differ in a count share a number."""

    def __init__(self) -> None:
        self.reasons: dict[str, list[int]] = {}
        """Reason -> the counts that it was given for."""

    def mark(self, reason: str | None) -> str:
        """The mark of a reason, such as ` [1]`; nothing without one."""
        if not reason:
            return ""
        counted = NEEDS.fullmatch(reason)
        self.reasons.setdefault(counted[1] if counted else reason, []).extend([int(counted[2])] if counted else [])
        return f" [{list(self.reasons).index(counted[1] if counted else reason) + 1}]"

    def cell(self, figure: Figure | None, unit: bool = True, interval: bool = True) -> str:
        """A figure with its interval, or with the mark of the reason why it has none."""
        if figure is None:
            return "n/a" + self.mark("not recorded")
        value, between = carried(figure)
        between = "" if not interval else f" {between}" if between[:1] in ("", "±") else f" ({between})"
        name = scale(figure)[1]
        named = "" if not unit or figure.value is None else name if name == "%" else f" {name}"
        why = figure.reason or ("not recorded" if figure.value is None else None)
        return f"{value}{named}{between.rstrip()}{self.mark(why)}"

    def texts(self) -> list[str]:
        """A note for each reason."""
        notes = []
        for i, (reason, counts) in enumerate(self.reasons.items(), 1):
            has = "" if not counts else f", has {'-'.join(f'{x}' for x in sorted({min(counts), max(counts)}))}"
            notes.append(f"[{i}] {reason}{has}")
        return notes


def footnotes(table: Table, common: Mapping[str, str]) -> Footnotes:
    """Every note of the table's figures, in reading order."""
    notes = Footnotes()
    for note in (note for row in table.rows for x in row if isinstance(x, Figure) for note in asides(x, common)):
        notes.mark(note)
    return notes


def marks_of(figure: Figure, common: Mapping[str, str], notes: Footnotes) -> str:
    """The numbers of a figure's notes, such as `[1] [3]`."""
    return "".join(map(notes.mark, asides(figure, common))).strip()
