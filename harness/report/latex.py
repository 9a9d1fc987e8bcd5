"""Tables as LaTeX longtables with booktabs rules, for \\input; a comment lists the packages that the preamble needs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.report.format import Printed, printed
from harness.report.table import Table

PREAMBLE = r"""
% In the preamble:
%   \usepackage{array,booktabs,longtable}
% and, where a quote is in another script, LuaLaTeX with
%   \usepackage[english,bidi=basic]{babel}
%   \babelprovide[import,onchar=ids fonts]{hebrew}  \babelfont[hebrew]{rm}{DejaVu Sans}
%   \babelprovide[import,onchar=ids fonts]{arabic}  \babelfont[arabic]{rm}{DejaVu Sans}
%   \babelprovide[import,onchar=ids fonts]{chinese} \babelfont[chinese]{rm}{Noto Sans CJK SC}
""".lstrip()
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


def render(tables: Sequence[Table]) -> str:
    """Every table with caption, notes, and for the first table of its name the label `tab:NAME`."""
    seen: set[str] = set()
    parts = [PREAMBLE]
    for table in tables:
        label = "" if table.name in seen else rf"\label{{tab:{table.name}}}"
        seen.add(table.name)
        parts.append(_one(printed(table), label))
    return "\n".join(parts)


def _one(table: Printed, label: str) -> str:
    caption = escape(table.title) + (f" ({escape(table.aside)})" if table.aside else "")
    head = [_row(table.header), r"\midrule"] if table.header else []
    lines = [
        r"\begingroup\footnotesize",
        rf"\begin{{longtable}}{{{_columns(table)}}}",
        rf"\caption{{{caption}}}{label}\\ \toprule",
        *head,
        r"\endfirsthead \toprule",
        *head,
        r"\endhead \bottomrule \endfoot",
        *map(_row, table.rows),
        r"\end{longtable}",
        *(rf"\noindent {escape(note)}\par" for note in table.notes),
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


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\[1pt]"


def escape(text: str) -> str:
    """LaTeX that prints the text as it is; long words may be broken.

    >>> print(escape("50% of a_b <= $5 – 10^6"))
    50\\% of a\\_b \\textless{}= \\$5 \\textendash{} 10\\textasciicircum{}6
    """
    marked = re.sub(rf"(\S{{{LONGEST_WORD}}})(?=\S)", "\\1\0", text)
    return "".join(COMMANDS.get(c, c) for c in re.sub("-(?=-)", "\1", marked))  # hyphens in a row would be a dash
