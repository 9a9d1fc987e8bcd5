"""Tables as Markdown, in the dialect of GitHub, and as LaTeX longtables for \\input."""

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


def latex(tables: Sequence[Table]) -> str:
    """Every table with caption, notes, and for the first table of its name the label `tab:NAME`."""
    seen: set[str] = set()
    parts = [PREAMBLE]
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
