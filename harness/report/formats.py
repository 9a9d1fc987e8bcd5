"""Every output format by name. For programs: JSON, and one long form (CSV, Parquet), in SI units, not rounded.

    {"schema_version": 1,
     "runs":   [{"run", "state", "figures": {name: figure}, "errors": {kind: count},
                 "findings": [{"code", "text", "advice", "serious"}]}],
     "tables": [{"name", "title", "columns": [text], "rows": [[text, figure or null]], "notes": [text]}]}

A figure is {"name", "value", "unit", "status", "low", "high", "n", "reason", "interval"}, the fields of
`harness.model.Figure`; a missing value is null and `reason` says why.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Literal

import pandas as pd

from harness.errors import CONTROL, HarnessError
from harness.model import Figure, Summary
from harness.report import text
from harness.report.format import Printed, printed
from harness.report.table import Table

Format = Literal["text", "md", "csv", "latex", "html", "json", "parquet"]
SCHEMA_VERSION = 1
"""Of the JSON format."""


def _page(tables: Sequence[Table]) -> str:
    """The tables with the charts of them, if the extra `charts` is installed."""
    from harness.report import charts, page

    drawings: list[page.Drawing] = []
    with suppress(HarnessError):
        drawings = charts.for_page(charts.of_tables(tables, charts.PAGE))
    return page.render(tables[0].title, tables, drawings)


def render(tables: Sequence[Table], format_: Format, summaries: Sequence[Summary] = ()) -> str | bytes:
    """The tables in one of the formats. JSON also has every figure of the `summaries`; only Parquet is bytes.

    ValueError for NaN or infinity, which JSON cannot hold; a missing value must be None.

    >>> render([], "json")
    '{"schema_version": 1, "runs": [], "tables": []}\\n'
    """
    if format_ == "json":
        runs = [asdict(each) | {"figures": {x.name: asdict(x) for x in each.figures}} for each in summaries]
        content = {"schema_version": SCHEMA_VERSION, "runs": runs, "tables": [asdict(table) for table in tables]}
        found = json.dumps(content, ensure_ascii=False, allow_nan=False)
        return CONTROL.sub(lambda wrong: "".join(f"\\u{ord(each):04x}" for each in wrong[0]), found) + "\n"
    if format_ == "parquet":
        buffer = io.BytesIO()
        long_form(tables).to_parquet(buffer, index=False)
        return buffer.getvalue()
    if format_ == "html":
        return _page(tables)
    if format_ == "csv":
        return csv(long_form(tables))
    return {"text": text.render, "md": markdown, "latex": latex}[format_](tables)


_FORMULA, _CONTROL = r"^[=+\-@\t\n＝＋－＠]", r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
"""Starts of a text that a spreadsheet runs as a formula; control characters other than tab and newline."""


def csv(table: pd.DataFrame, header: bool = True) -> str:
    """A table as CSV. Texts, and names of columns, that a spreadsheet would run as formulas get a leading '.

    Control characters become �.

    >>> csv(pd.DataFrame({"=x": ["=1+1", "-3%", "a", None], "y": [-1.5, 2, 3, None]}))
    "'=x,y\\n'=1+1,-1.5\\n'-3%,2.0\\na,3.0\\n,\\n"
    """
    texts = {str(name): table[name] for name in table if not pd.api.types.is_numeric_dtype(table[name])}
    safe = table.assign(**{name: _harmless(column) for name, column in texts.items()})
    return str(safe.to_csv(index=False, header=[*_harmless(pd.Series(table.columns))] if header else False))


def _harmless(texts: pd.Series) -> pd.Series:
    shown = texts.astype("string").str.replace(_CONTROL, "\ufffd", regex=True)
    return shown.str.replace(rf"({_FORMULA})", r"'\1", regex=True)


COLUMNS = {
    "table": "string", "row": "Int64", "key": "string", "column": "string", "text": "string", "name": "string",
    "value": "Float64", "unit": "string", "low": "Float64", "high": "Float64", "interval": "string", "n": "Int64",
    "status": "string", "reason": "string", "source": "string",
}  # fmt: skip
"""Columns of the long form. `row` counts from 0 in a table and `key` is the row's first cell; a cell has a `text` or a
figure's fields from `name` to `reason`. A note has the column `note` and no row."""


def long_form(tables: Sequence[Table]) -> pd.DataFrame:
    """A row for each cell and note. A missing value is NA, with its `reason`; `source` is the run or the facts.

    >>> rate = Figure("rate", 12.5, "tokens/s", "measured")
    >>> made = long_form([Table("t", "T", ("figure", "value"), (("x", rate),), source="run-1")])
    >>> made[["key", "column", "value", "unit", "status", "source"]].values.tolist()[1]
    ['x', 'value', 12.5, 'tokens/s', 'measured', 'run-1']
    """
    rows = [row for table in tables for row in _rows(table)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _rows(table: Table) -> Iterator[dict[str, Any]]:
    for i, row in enumerate(table.rows):
        named = dict(zip(table.columns, row, strict=True))
        source = next((text for by in ("run", "source") if isinstance(text := named.get(by), str)), table.source)
        place = {"table": table.name, "row": i, "key": row[0] if isinstance(row[0], str) else None, "source": source}
        for column, cell in named.items():
            if isinstance(cell, Figure):
                yield {**place, **asdict(cell), "column": column}
            elif cell:
                yield {**place, "column": column, "text": cell}
    for note in table.notes:
        yield {"table": table.name, "column": "note", "text": note, "source": table.source}


COMMANDS = {
    "\\": r"\textbackslash{}", "~": r"$\sim$", "^": r"\textasciicircum{}", "`": r"\textasciigrave{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "≤": r"$\le$", "≥": r"$\ge$", "×": r"$\times$",
    "→": r"$\to$", "µ": r"\textmu{}", "–": r"\textendash{}", "…": r"\dots{}", "·": r"\textperiodcentered{}",
    "[": "{[}", "*": "{*}", "\0": r"\allowbreak{}", "\1": r"-\kern0pt{}", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip
"""Character -> LaTeX. `[` and `*` after a row's end would be read as its argument."""
LINE = 82
"""Characters of \\footnotesize in a line of the article class; the columns of a wider table have fixed widths."""
WIDEST = 40
LONGEST_WORD = 20


def latex(tables: Sequence[Table]) -> str:
    """Every table with caption, notes, and for the first table of its name the label `tab:NAME`."""
    from harness.report import page

    seen: set[str] = set()
    parts = [page.asset("preamble.tex")]
    for table in tables:
        label = "" if table.name in seen else rf"\label{{tab:{table.name}}}"
        seen.add(table.name)
        parts.append(_latex_table(printed(table), label))
    return "\n".join(parts)


def _latex_table(table: Printed, label: str) -> str:
    caption = latex_text(table.title) + (f" ({latex_text(table.aside)})" if table.aside else "")
    head = [_latex_row(table.header), r"\midrule"] if table.header else []
    lines = [
        r"\begingroup\footnotesize",
        rf"\begin{{longtable}}{{{_columns(table)}}}",
        rf"\caption{{{caption}}}{label}\\ \toprule",
        *head,
        r"\endfirsthead \toprule",
        *head,
        r"\endhead \bottomrule \endfoot",
        *map(_latex_row, table.rows),
        r"\end{longtable}",
        *(rf"\noindent {latex_text(note)}\par" for note in table.notes),
        r"\endgroup",
        "",
    ]
    return "\n".join(lines)


def _columns(table: Printed) -> str:
    """Columns of natural width if the table fits a line; else shares of the line by the longest cell."""
    columns = list(zip(*table.rows, *([table.header] if table.header else []), strict=True))
    widest = [max(map(len, column)) for column in columns]
    if sum(widest) + 2 * len(widest) <= LINE:
        return "".join("r" if i in table.figures else "l" for i in range(len(widest)))
    words = [max((len(word) for cell in column for word in cell.split()), default=1) for column in columns]
    shares = [min(WIDEST, max(wide, 1)) + min(LONGEST_WORD, word) + 2 for wide, word in zip(widest, words, strict=True)]
    wrapped = r">{\raggedright\arraybackslash}p{\dimexpr %.3f\linewidth-2\tabcolsep\relax}"
    return "".join(wrapped % (share / sum(shares)) for share in shares)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\[1pt]"


def latex_text(text: str) -> str:
    """LaTeX that prints the text as it is; long words may be broken.

    >>> print(latex_text("50% of a_b <= $5 – 10^6"))
    50\\% of a\\_b \\textless{}= \\$5 \\textendash{} 10\\textasciicircum{}6
    """
    marked = re.sub(rf"(\S{{{LONGEST_WORD}}})(?=\S)", "\\1\0", text)
    return "".join(COMMANDS.get(c, c) for c in re.sub("-(?=-)", "\1", marked))  # hyphens in a row would be a dash


SPECIAL = re.compile(r"[\\`*|<>~$&]|(?<!\w)_|_(?!\w)|(?<=\])\(")


def markdown(tables: Sequence[Table]) -> str:
    """A heading, the rows and a list of notes for each table."""
    return "\n".join(_markdown_table(printed(table)) for table in tables)


def _markdown_table(table: Printed) -> str:
    width = len(table.rows[0])
    lines = [
        f"### {markdown_text(table.title)}" + (f" ({markdown_text(table.aside)})" if table.aside else ""),
        "",
        _markdown_row(table.header or ("",) * width),
        "|" + "|".join(" ---: " if i in table.figures else " --- " for i in range(width)) + "|",
        *map(_markdown_row, table.rows),
        "",
        *(f"- {markdown_text(note)}" for note in table.notes),
        *([""] if table.notes else []),
    ]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"


def markdown_text(text: str) -> str:
    """Markdown that prints the text as it is.

    >>> print(markdown_text("a|b <= *c* snake_case _d_ ~ $5"))
    a\\|b \\<= \\*c\\* snake_case \\_d\\_ \\~ \\$5
    """
    return SPECIAL.sub(lambda found: f"\\{found[0]}", text)
