"""The schema of published figures: every shipped row passes, and each mistake is refused by row and column."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path

import pytest
from places import ROOT

from harness.errors import HarnessError
from harness.facts.appraisal import shipped_book
from harness.facts.book import Fact, assume, columns_of, period, read_book, unit_powers
from harness.report import text
from harness.report.facts import fact_table

DATA = ROOT / "harness" / "data"
ROW = {
    **{"id": "U1", "layer": "user", "entity": "Acme", "metric": "inference spend", "value_low": "", "value": "2e6"},
    **{"value_high": "", "bound": "=", "unit": "USD", "currency": "USD", "period_start": "2024", "period_end": "2024"},
    **{"status": "reported", "basis": "flow inference", "cited": "", "source": "Acme's report", "wording": ""},
    **{"quote": "", "gloss": "", "note": ""},
}


def table(*rows: dict[str, str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns_of(Fact))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def test_every_shipped_row_is_valid() -> None:
    layers = [fact.layer for fact in shipped_book().facts.values()]
    assert (layers.count("articles"), layers.count("outside"), len(layers)) == (88, 136, 224)


def test_quotes_are_kept_to_the_letter() -> None:
    quotes = "\n".join(f"{fact.id} {fact.quote}" for fact in shipped_book().select(layer="articles"))
    # of the collected rows, before they came into this schema: Arabic, French, Hebrew and Chinese
    assert hashlib.sha256(quotes.encode()).hexdigest() == (
        "1802d398b380fe0185707ed74f076f07d83ef47f811150adaa8930b1e5080fcc"
    )


def test_every_contradiction_and_source_names_a_fact() -> None:
    shipped = shipped_book()
    assert all(i in shipped.facts for item in shipped.contradictions for i in item.ids)
    assert {fact.source for fact in shipped.select(layer="articles")} == set("ABCDE") == set(shipped.sources)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("id", "A01", "an id that no other row has"),
        ("id", "my id", "letters, digits, dots and dashes only"),
        ("source", "", "text, not an empty cell"),
        ("layer", "press", "'articles', 'outside' or 'user'"),
        ("unit", "dollars", "words among USD"),
        ("unit", "none", "the number's unit"),
        ("currency", "EUR", "the currency in the unit 'USD'"),
        ("value", "2,5", "a number of at least 0"),
        ("value", "2_5", "a number of at least 0"),
        ("value", "nan", "a number of at least 0"),
        ("value", "inf", "a number of at least 0"),
        ("value_low", "1", "value_low and value_high with range"),
        ("value", "", "value_low and value_high with range"),
        ("bound", ">", "'=', '>='"),
        ("bound", "range", "value_low and value_high with range"),
        ("period_end", "", "a date as YYYY, YYYY-MM or YYYY-MM-DD"),
        ("period_end", "2024-13", "a date as YYYY"),
        ("period_end", "2024-02-30", "a date as YYYY"),
        ("period_end", "2023", "a date on or after period_start 2024"),
        ("period_start", "H1 2024", "a date as YYYY"),
        ("status", "gossip", "'rumour'"),
        ("basis", "", "unstated"),
        ("basis", "flow stock", "at most one of each group"),
        ("basis", "cashflow", "cash or non-cash"),
    ],
)
def test_a_mistake_is_refused_with_row_and_column(column: str, value: str, expected: str) -> None:
    text = table(ROW, {**ROW, "id": "U2", column: value})
    with pytest.raises(HarnessError) as refused:
        read_book([("mine.csv", text)])
    named = {"value_low": "bound", "bound": "bound"}.get(column, column)
    if column == "value" and not value:
        named = "bound"
    assert refused.value.what == f"mine.csv row 3: {named} is '{(ROW | {column: value})[named]}'"
    assert expected in refused.value.fix


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"source": "Z"}, "source is 'Z'"),  # no such article
        ({"source": "A"}, "quote is ''"),  # an article's figure without its words
    ],
)
def test_a_figure_of_an_article_needs_article_and_quote(change: dict[str, str], what: str) -> None:
    with pytest.raises(HarnessError, match=f"mine.csv row 2: {what}"):
        read_book([("mine.csv", table({**ROW, "layer": "articles", **change}))])


def test_a_file_with_other_columns_or_too_many_cells_is_refused() -> None:
    with pytest.raises(HarnessError, match="row 1: columns missing, unknown or twice: quote, words"):
        read_book([("mine.csv", table().replace("quote", "words"))])
    with pytest.raises(HarnessError, match="columns missing, unknown or twice: note"):
        read_book([("mine.csv", table().replace("note", "note,note"))])
    with pytest.raises(HarnessError, match=r"mine\.csv row 2 has not 20 cells"):
        read_book([("mine.csv", table(ROW).rstrip() + ",one more\n")])
    with pytest.raises(HarnessError, match=r"mine\.csv row 2: unexpected end of data"):
        read_book([("mine.csv", table() + '"A')])
    with pytest.raises(HarnessError, match=r"mine\.csv row 1: ',' expected after '\"'"):
        read_book([("mine.csv", '"id"x' + table())])


def test_only_a_fraction_may_be_below_0() -> None:
    margin = ROW | {"value": "-0.9", "unit": "fraction", "currency": ""}
    assert read_book([("mine.csv", table(margin))]).facts["U1"].value == -0.9
    with pytest.raises(HarnessError, match=r"value is -1.0\n.*a fraction may be below 0"):
        read_book([("mine.csv", table(ROW | {"value": "-1"}))])


def test_a_belief_may_have_any_distribution() -> None:
    changed = assume(shipped_book(), {"utilisation": {"uniform": {"low": 0.2, "high": 0.6}}}).assumptions["utilisation"]
    # p5 and p95 of a uniform: 0.2 + 0.05 * 0.4 and 0.2 + 0.95 * 0.4
    assert [changed.low, changed.value, changed.high] == pytest.approx([0.22, 0.4, 0.58])
    assert changed.distribution.kind == "uniform"
    with pytest.raises(HarnessError, match="a number, LOW:HIGH or a distribution"):
        assume(shipped_book(), {"utilisation": {"uniform": {"low": 0.2}}})


def test_a_fact_must_pass_every_filter() -> None:
    shipped = shipped_book()
    assert [f.id for f in shipped.select(metric="inference spend", layer="articles")] == ["A15", "A16"]
    assert [f.id for f in shipped.select(entity="openai", status="rumour", period="2025-11")] == ["A04"]
    assert [f.id for f in shipped.select(period="Jan-Sep 2025", status="leaked", layer="articles")] == ["A02", "A16"]
    with pytest.raises(HarnessError, match="unknown status 'true'"):
        shipped.select(status="true")
    with pytest.raises(HarnessError, match="no fact 'Z9'"):
        shipped["Z9"]


def test_a_users_facts_file_is_read_and_its_control_characters_are_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("\ufeff" + table({**ROW, "wording": "à peu près"}), encoding="utf-8")  # with a byte-order mark
    assert [fact.wording for fact in shipped_book([path]).select(layer="user")] == ["à peu près"]
    path.write_text(table({**ROW, "note": "alarm \x1b[31m\nbelow"}), encoding="utf-8")
    shown = text.render([fact_table(shipped_book([path]), "U1")])
    assert "  note: alarm  [31m below\n" in shown  # no character of the file controls the terminal
    with pytest.raises(HarnessError, match=r"cannot read .*none\.csv"):
        shipped_book([tmp_path / "none.csv"])


def test_assumptions_change_by_value_or_interval() -> None:
    changed = assume(shipped_book(), {"chat_share": 0.3, "utilisation": "0.1:0.4"}).assumptions
    assert (changed["chat_share"].low, changed["chat_share"].value) == (None, 0.3)
    assert [changed["utilisation"].low, changed["utilisation"].value] == pytest.approx([0.1, 0.2])
    for wrong in ("lots", "0.5:0.1", 0, "0.1:0.2:0.3", "0.5:1.1", "nan", True, None):
        with pytest.raises(
            HarnessError, match=r"--set: chat_share is .*\n.* LOW:HIGH or a distribution, above 0 and at most 1"
        ):
            assume(shipped_book(), {"chat_share": wrong})
    with pytest.raises(HarnessError, match=r"unknown assumption 'chat'\n.*choose one of"):
        assume(shipped_book(), {"chat": 1})


@pytest.mark.parametrize(
    ("start", "end", "text", "days", "months"),
    [
        ("2024", "2024", "2024", 366, 12),
        ("2025-01", "2025-06", "Jan-Jun 2025", 181, 6),
        ("2023-11", "2023-11", "Nov 2023", 30, 1),
        ("9999", "9999", "9999", 365, 12),  # the last year that a date can have
        ("2025-11", "2033-10", "Nov 2025-Oct 2033", 2922, 96),
        ("2025-02-27", "2025-02-28", "2025-02-27 to 2025-02-28", 2, 2 / 28),
    ],
)
def test_a_period_has_a_short_text_its_days_and_its_months(
    start: str, end: str, text: str, days: int, months: float
) -> None:
    found = period(start, end)
    assert (str(found), found.days) == (text, days)
    assert found.months == pytest.approx(months)


def test_the_date_of_a_state_has_no_length() -> None:
    with pytest.raises(HarnessError, match="'as of 2025-07' is a date, not a span"):
        _ = period("", "2025-07").days


def test_a_unit_is_a_product_of_powers_of_words() -> None:
    assert unit_powers("Wh/kW-hour") == {"Wh": 1, "kW": -1, "hour": -1}
    assert unit_powers("user/user") == {}


def test_the_documentation_names_every_column_and_shows_the_error_as_it_is() -> None:
    text = (DATA.parents[1] / "docs" / "reported.md").read_text("utf-8")
    assert [name for name in columns_of(Fact) if f"`{name}`" not in text] == []
    with pytest.raises(HarnessError) as refused:
        read_book([("mine.csv", table(ROW, {**ROW, "id": "U2", "period_start": "", "period_end": "H1 2024"}))])
    assert f"    error: {refused.value}".replace("\n", "\n    ") in text
