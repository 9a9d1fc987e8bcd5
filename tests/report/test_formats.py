"""One stored run in every format: the same numbers in each, read back; text that each format could take for its own."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from builders import changed, stored
from markdown_it import MarkdownIt

from harness import errors
from harness.analysis.summary import load, summary_of
from harness.model import Figure
from harness.report import changes, document, format, formats, page, tables, text
from harness.report.facts import SCREEN
from harness.report.format import scale
from harness.report.formats import Format, latex
from harness.report.table import Table
from harness.store.run import read_run


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    """Every table of one run."""
    return document.report([load(stored(tmp_path_factory.mktemp("one")))], "on-demand")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    """Every table over three runs that differ in load."""
    root = tmp_path_factory.mktemp("several")
    return document.report([load(stored(root, users)) for users in (4, 8, 32)], "on-demand", ["all"])


def test_the_tables_of_one_run(one: list[Table]) -> None:
    assert [table.name for table in one] == [
        "run", "throughput", "latency", "goodput", "tokens", "whole-run", "client", "errors", "energy", "joules",
        "limits", "findings", "cost", "tiers", "tornado", "assumptions", *SCREEN, "must-be", "reported", "sources",
        "environment",
    ]  # fmt: skip
    assert {table.source for table in one if table.name not in (*page.PRESS, "sources")} == {one[0].source}
    assert all(len(row) == len(table.columns) for table in one for row in table.rows)


def test_the_tables_over_several_runs_come_before_those_of_each(several: list[Table]) -> None:
    names = [table.name for table in several]
    assert names[:12] == ["runs", "slo", "interactivity", "tiers", *SCREEN, "must-be", "reported", "sources"]
    assert {"A01", "A02"} <= {row[0] for row in several[11].rows}
    assert names.count("latency") == 3
    assert len({table.source for table in several if table.name == "latency"}) == 3


def test_tables_of_several_runs_name_software_that_differs(tmp_path: Path) -> None:
    run, other = (read_run(stored(tmp_path, users)) for users in (4, 8))
    newer = changed(other, environment={"packages": {"vllm": "0.12"}})
    said = "The runs were measured with different software: vllm 0.11, 0.12."
    (note,) = tables.runs_table([(each, summary_of(run)) for each in (run, newer)]).notes
    assert note == f"mixed-versions: {said}"
    within = changes.difference([run, newer], [run], force=True)[0][-1]
    assert [row[:3] for row in within.rows if row[0] == "base"] == [("base", "mixed-versions (serious)", said)]
    across = changes.difference([run], [newer], force=True)[0][-1]  # to set versions side by side is the aim
    assert [row for row in across.rows if "mixed" in str(row[1])] == []


def test_a_report_has_the_tables_that_are_named(tmp_path: Path) -> None:
    sweep = [load(stored(tmp_path, users)) for users in (4, 8)]
    assert [table.name for table in document.report(sweep, names=["latency"])] == ["latency", "latency"]
    assert [table.name for table in document.report(sweep, names=["runs"])] == ["runs"]
    assert [table.name for table in document.report(sweep[:1], names=["tiers", "run"])] == ["run", "tiers"]
    with pytest.raises(errors.HarnessError, match="no table 'latencies'") as refused:
        document.report(sweep, names=["latencies"])
    assert "runs" in refused.value.fix
    assert "latency" in refused.value.fix


Grid = list[list[str]]


def from_markdown(text: str) -> list[Grid]:
    grids: list[Grid] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            grids.append([])
        elif token.type == "tr_open":
            grids[-1].append([])
        elif token.type == "inline" and grids and token.level > 3:
            grids[-1][-1].append("".join(child.content for child in token.children or ()))
    return [grid[1:] for grid in grids]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.grids: list[Grid] = []
        self.inside = False

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.grids.append([])
        elif tag == "tr":
            self.grids[-1].append([])
        elif tag in ("td", "th"):
            self.grids[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.grids[-1][-1][-1] += data


def from_html(text: str) -> list[Grid]:
    page = Page()
    page.feed(re.sub("<thead>.*?</thead>", "", text, flags=re.S))
    return page.grids


UNDO = (
    (r"\\allowbreak\{\}|\\kern0pt\{\}", ""), (r"\\textless\{\}", "<"), (r"\\textgreater\{\}", ">"), (r"\$\\sim\$", "~"),
    (r"\$\\le\$", "≤"), (r"\$\\ge\$", "≥"), (r"\$\\times\$", "×"), (r"\\textendash\{\}", "–"), (r"\\textmu\{\}", "µ"),
    (r"\\textbar\{\}", "|"), (r"\\textasciicircum\{\}", "^"), (r"\{\[\}", "["), (r"\{\*\}", "*"), (r"\$\\to\$", "→"),
    (r"\\dots\{\}", "…"), (r"\\textperiodcentered\{\}", "·"), (r"\\textasciigrave\{\}", "`"),
    (r"\\([&%$#_{}])", r"\1"), (r"\\textbackslash\{\}", r"\\"),
)  # fmt: skip


def plain(cell: str) -> str:
    for pattern, new in UNDO:
        cell = re.sub(pattern, new, cell)
    return cell.strip()


def from_latex(text: str) -> list[Grid]:
    bodies = re.findall(r"\\endfoot\n(.*?)\\end\{longtable\}", text, re.S)
    rows = [[line.removesuffix(r" \\[1pt]") for line in body.splitlines()] for body in bodies]
    return [[[plain(cell) for cell in re.split(r"(?<!\\)&", row)] for row in body] for body in rows]


READ = {"md": from_markdown, "html": from_html, "latex": from_latex}


def numbers(text: str) -> list[float]:
    """What is printed, without marks of footnotes."""
    found = re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?: (?:M|bn|tn)\b)?", re.sub(r"\[\d+\]", "", text))
    times = {" M": 1e6, " bn": 1e9, " tn": 1e12}
    return [float(re.sub("[, Mbnt]", "", each)) * times.get(each.lstrip("-0123456789.,e+"), 1.0) for each in found]


def near(printed: float, x: float, figure: Figure) -> bool:
    """To the digits that the interval carries, 0.5 of 3.55 in the half-width at most, and to three without one."""
    factor = scale(figure)[0]
    low, high = (None if end is None else end * factor for end in (figure.low, figure.high))
    half = (high - low) / 2 if low is not None and high is not None else 0.0
    size = max(abs((figure.value or 0.0) * factor), abs(x))
    return math.isclose(
        printed, x, rel_tol=0.0, abs_tol=max(0.141 * half, 5.01e-4 * size if half else 5.01e-3 * size, 5.01e-4)
    )


def figures(table: Table) -> Iterator[tuple[int, int, Figure]]:
    """Row, column of the printed table, and the figure there; a claim is one cell."""
    merged = format.readable(table).columns
    for i, row in enumerate(table.rows):
        for column, cell in zip(table.columns, row, strict=True):
            if isinstance(cell, Figure):
                yield i, merged.index("claim" if "claim" in merged and column == "value" else column), cell


@pytest.mark.parametrize("format_", ["md", "html", "latex"])
@pytest.mark.parametrize("which", ["one", "several"])
def test_each_format_for_people_has_the_same_numbers(
    which: str, format_: Format, request: pytest.FixtureRequest
) -> None:
    made: list[Table] = request.getfixturevalue(which)
    rendered = formats.render(made, format_)
    assert isinstance(rendered, str)
    grids = READ[format_](rendered)
    assert len(grids) == len(made)
    if format_ == "html":  # a page has its tables in parts
        left = list(made)
        names = re.findall(r'data-table="(.*?)"', rendered)
        made = [left.pop(next(i for i, table in enumerate(left) if table.name == name)) for name in names]
    seen = 0
    for table, grid in zip(made, grids, strict=True):
        for row, column, figure in figures(table):
            text, factor = grid[row][column], scale(figure)[0]
            where = (table.name, row, column, text, figure)
            seen += 1
            if figure.value is None:
                assert text.startswith("n/a"), where
                continue
            ends = [end * factor for end in (figure.low, figure.high) if end is not None]
            hard = text.startswith(("<=", ">=", "=", "~")) and figure.interval.startswith("bound")
            value = [] if re.match(r"\S+ to ", text) else [figure.value * factor]
            expected = value + ([] if hard else ends)
            assert all(any(near(n, x, figure) for n in numbers(text)) for x in expected), where
            shared = format.shared(table)
            assert figure.status in text or "status" in shared or "status" in table.columns, where
        labels = {label for row in table.rows if isinstance(label := row[0], str)}
        assert (labels or {"none"}) == {row[0] for row in grid if labels or len(row) > 0}
    assert seen > 80


@pytest.mark.parametrize("which", ["one", "several"])
def test_text_has_the_same_numbers(which: str, request: pytest.FixtureRequest) -> None:
    for table in request.getfixturevalue(which):
        found = numbers(text.render([table], 400))
        for _, _, figure in figures(table):
            if figure.value is not None and not figure.interval.startswith("bound range"):
                assert any(near(n, figure.value * scale(figure)[0], figure) for n in found), (table.name, figure)


def from_long(frame: pd.DataFrame) -> list[Figure]:
    rows: Any = frame[frame["name"].notna()][list(Figure.__slots__)].to_dict("records")
    fields: list[dict[str, Any]] = [{name: None if pd.isna(x) else x for name, x in row.items()} for row in rows]
    return [Figure(**each) for each in fields]


@pytest.mark.parametrize("format_", ["csv", "parquet", "json"])
@pytest.mark.parametrize("which", ["one", "several"])
def test_formats_for_programs_give_back_every_figure_in_full(
    which: str, format_: Format, request: pytest.FixtureRequest
) -> None:
    made: list[Table] = request.getfixturevalue(which)
    content = formats.render(made, format_)
    if format_ == "json":
        cells = [cell for table in json.loads(content)["tables"] for row in table["rows"] for cell in row]
        back = [Figure(**cell) for cell in cells if isinstance(cell, dict)]
    elif isinstance(content, bytes):
        back = from_long(pd.read_parquet(io.BytesIO(content)))
    else:
        rows = list(csv.DictReader(io.StringIO(content)))
        back = [Figure(**{k: parse(k, row[k]) for k in Figure.__slots__}) for row in rows if row["name"]]
        assert {row["source"] for row in rows if row["table"] == "latency"} == {
            table.source for table in made if table.name == "latency"
        }
    assert back == [cell for table in made for row in table.rows for cell in row if isinstance(cell, Figure)]


def parse(field: str, text: str) -> Any:
    if text == "":
        return None
    return float(text) if field in ("value", "low", "high") else int(text) if field == "n" else text


HARD = Table(
    "hard",
    "50% & more_or_less # {x} $5 ~ \\end^2 | `a`",
    ("a|b", "c & d", "<e>"),
    (
        ("pipe | and \\| *stars* _under_ snake_case", "a\nnew line \x1b[31m", "<script>alert(1)</script> &amp;"),
        ("שלום עולם 3.8 מיליארד", "يُشاع أنها تمنح 20%", "≤ 5 µs ~ −3 × 10^6 – … · → ≥"),
        ("[1] first", "* second --set a=b", "$x$ {y} \\input{z} " + "w" * 90),
    ),
    ("note with | and <b> and \\textbf{c} & 100%",),
)


@pytest.mark.parametrize("format_", ["md", "html", "latex"])
def test_text_with_a_formats_special_characters_reads_back_unchanged(format_: Format) -> None:
    (grid,) = READ[format_](str(formats.render([HARD], format_)))
    assert grid == [[errors.plain(str(cell)).strip() for cell in row] for row in HARD.rows]


def test_html_has_no_tag_but_its_own() -> None:
    content = str(formats.render([HARD], "html"))
    found = set(re.findall(r"</?([a-z]+)", re.sub("<script>.*?</script>", "", content, flags=re.DOTALL)))
    assert found <= {"html", "head", "meta", "link", "title", "style", "body", "a", "header", "nav", "ol", "main", "h",
                     "section", "details", "summary", "div", "table", "small", "thead", "tbody", "tr", "th", "td",
                     "ul", "li"}  # fmt: skip
    assert content.count("<script>") == 1


def compiled(tables: Sequence[Table], folder: Path, engine: str, preamble: Sequence[str]) -> str:
    head = ["\\documentclass{article}", "\\usepackage{array,booktabs,longtable}", *preamble, "\\begin{document}"]
    (folder / "t.tex").write_text("\n".join([*head, latex(tables), "\\end{document}"]), encoding="utf-8")
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return (folder / "t.log").read_text(encoding="utf-8", errors="replace")


@pytest.mark.skipif(shutil.which("lualatex") is None, reason="no TeX: lualatex is not installed")
def test_latex_compiles_with_quotes_in_other_scripts(one: list[Table], tmp_path: Path) -> None:
    lines = page.asset("preamble.tex").splitlines()
    preamble = [line[1:].strip() for line in lines if "babel" in line and "chinese" not in line]
    log = compiled([*one, HARD], tmp_path, "lualatex", preamble)
    missing = set(re.findall(r"Missing character: There is no (.)", log))
    assert all("\u4e00" <= character <= "\u9fff" for character in missing), missing  # no font for Chinese was named


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX: pdflatex is not installed")
def test_latex_without_other_scripts_compiles_with_any_engine(one: list[Table], tmp_path: Path) -> None:
    log = compiled([table for table in one if table.name != "sources"], tmp_path, "pdflatex", [])
    assert "Output written on" in log


def test_csv_text_is_no_formula_and_numbers_stay_numbers() -> None:
    hostile = ["=cmd()", "+1", "-1", "@x", "\tx", "\rx", "a=b", "bell\x07", ""]
    table = pd.DataFrame({"text": hostile, "number": [-1.5] * len(hostile)})
    read = pd.read_csv(io.StringIO(formats.csv(table)), keep_default_na=False, lineterminator="\n")
    assert read["text"].tolist() == ["'=cmd()", "'+1", "'-1", "'@x", "'\tx", "\ufffdx", "a=b", "bell\ufffd", ""]
    assert read["number"].tolist() == [-1.5] * len(hostile)
