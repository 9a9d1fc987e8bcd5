"""The table of findings: it holds every code that the program yields, and no other, and its page is not stale."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from string import Formatter

import pytest
from places import ROOT

from harness.analysis.findings import Row, finding, findings


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a function of that name in harness/, and the file that it is in."""
    for path in sorted((ROOT / "harness").rglob("*.py")):
        if f"{name}(" not in (source := path.read_text()):
            continue  # to parse all takes seconds, and each process that runs tests would
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                yield path.name, node


def texts(node: ast.expr) -> set[str]:
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


YIELDED = [
    (code, {str(keyword.arg) for keyword in call.keywords})
    for _, call in calls("finding")
    for code in sorted(texts(call.args[0]))
]
"""Code and names of the values of each call of `finding`."""


def values_of(row: Row) -> set[str]:
    return {name for text in (row.seen, row.advice) for _, name, _, _ in Formatter().parse(text) if name}


def test_the_table_holds_the_codes_that_the_program_yields() -> None:
    assert {code for code, _ in YIELDED} == set(findings())
    assert {file for file, _ in calls("Finding")} == {"findings.py"}


@pytest.mark.parametrize(("code", "given"), YIELDED, ids=[code for code, _ in YIELDED])
def test_every_finding_gets_the_values_of_its_row(code: str, given: set[str]) -> None:
    row = findings()[code]
    assert given - {"serious"} == values_of(row)
    assert "serious" not in given or isinstance(row.serious, str)


def test_every_row_is_in_full_sentences() -> None:
    assert list(findings()) == sorted(findings())
    for row in findings().values():
        assert all(text.endswith(".") for text in (row.seen, row.about, row.advice))


def test_an_unknown_code_fails() -> None:
    with pytest.raises(KeyError):
        finding("no-such-code")


def test_the_page_is_that_of_the_table() -> None:
    loader = SourceFileLoader("findings_page", str(ROOT / "scripts/findings-page"))
    spec = spec_from_loader("findings_page", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    assert (ROOT / "docs/findings.md").read_text() == module.page(), "run scripts/findings-page > docs/findings.md"
