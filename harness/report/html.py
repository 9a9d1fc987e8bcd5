"""Tables as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from harness.report.layout import Printed, printed
from harness.report.table import Table


def render(tables: Sequence[Table]) -> str:
    """A page of tables that needs nothing else."""
    style = "body{font-family:sans-serif} .scroll{overflow-x:auto} td,th{text-align:start;vertical-align:top}"
    head = f'<meta charset="utf-8"><title>Report</title><style>{style}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{render_tables(tables)}</body></html>\n'


def render_tables(tables: Sequence[Table]) -> str:
    """A `<section>` for each table, without style or script: the table with caption and heads, and its notes.

    Columns of figures have the class `figure`; text takes its direction from its first strong letter (`dir="auto"`).
    """
    return "".join(_section(table.name, printed(table)) for table in tables)


def _section(name: str, table: Printed) -> str:
    aside = f" <small>({escape(table.aside)})</small>" if table.aside else ""
    head = "".join(
        f'<th scope="col"{_kind(i, table)}>{escape(column)}</th>' for i, column in enumerate(table.header or ())
    )
    body = "".join(f"<tr>{''.join(_cell(i, cell, table) for i, cell in enumerate(row))}</tr>\n" for row in table.rows)
    notes = "".join(f'<li dir="auto">{escape(note)}</li>\n' for note in table.notes)
    return (
        f'<section data-table="{escape(name)}">\n<div class="scroll"><table>\n'
        f"<caption>{escape(table.title)}{aside}</caption>\n"
        + (f"<thead><tr>{head}</tr></thead>\n" if head else "")
        + f"<tbody>\n{body}</tbody>\n</table></div>\n"
        + (f'<ul class="notes">\n{notes}</ul>\n' if notes else "")
        + "</section>\n"
    )


def _cell(i: int, text: str, table: Printed) -> str:
    if i == 0:
        return f'<th scope="row" dir="auto">{escape(text)}</th>'
    return f'<td dir="auto"{_kind(i, table)}>{escape(text)}</td>'


def _kind(i: int, table: Printed) -> str:
    return ' class="figure"' if i in table.figures else ""
