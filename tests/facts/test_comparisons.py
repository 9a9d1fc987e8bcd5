"""The comparisons against figures computed by hand from the rows, to six significant digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.facts.appraisal import shipped_book
from harness.facts.book import assume, period
from harness.facts.claims import Quantity, Refused, exact, of_fact
from harness.facts.comparisons import COMPARISONS, Context, Line, nine_months, revenue_floor
from harness.files import read_data

CONTEXT = Context(shipped_book())


def six(line: Line) -> str:
    """Bound and number in six digits; the ends of a range; what a refusal names."""
    q = line.result
    if isinstance(q, HarnessError):
        return "refused: " + q.what.partition(" mixes ")[2]
    if q.bound == "range":
        return f"{q.low:.6g} to {q.high:.6g}"
    return "n/a" if q.value is None else f"{q.bound} {q.value:.6g}"


EXPECTED = {
    "spend-revenue": [
        "<= 1.53908",  # 3.8 / (0.4938 / 0.20)
        "<= 1.52",  # 3.8 / 2.5
        "~ 0.95",  # 3.8 / 4.0
        "<= 1.99815",  # 8.65 / (0.8658 / 0.20)
        "<= 1.99769",  # 8.65 / 4.33
        "0.994253 to 1.34109",  # 8.65 / 8.7 and 8.65 / 6.45: H1 4.3, year 13.1, so nine months in [6.45, 8.7]
        "~ 1.09209",  # g = sqrt(8.8 / 4.3) = 1.430563; Q3 = 4.3 g^2 / (1 + g) = 3.62056; 8.65 / 7.92056
        "~ 1.06298",  # d = 1.125; Q3 = 2.15 + 1.6875 = 3.8375; 8.65 / 8.1375
        "~ 0.880407",  # 8.65 / (13.1 * 0.75)
    ],
    "revenue-share": [
        "~ 0.12345",  # 0.4938 / 4.0
        "~ 3.062e+08",  # 4.0e9 * 0.20 - 493.8e6
        "0.0995172 to 0.134233",  # 865.8e6 / 8.7e9 and / 6.45e9
        "4.242e+08 to 8.742e+08",  # 6.45e9 * 0.20 - 865.8e6 and 8.7e9 * 0.20 - 865.8e6
    ],
    "trend": [
        "= 3.16667e+08",  # 3.8e9 / 12
        "= 9.61111e+08",  # 8.65e9 / 9
        "= 1.03825e+07",  # 3.8e9 / 366
        "= 3.1685e+07",  # 8.65e9 / 273
        "= 3.03509",  # 961.111 / 316.667
        "= 2.33779",  # (865.8 / 9) / (493.8 / 12)
        "n/a",  # a floor over a floor
    ],
    "per-user": [
        "~ 1.92222",  # 961.111e6 / 500e6
        "~ 1.37302",  # 961.111e6 / 700e6
        "~ 1.20139",  # 961.111e6 / 800e6
        # 500 M to 30 June (181 days), rising to 700 M on 31 July, then by 100 M / 92 a day: (181 * 500 + 31 * 500 +
        # 200 / 31 * 31 * 32 / 2 + 61 * 700 + 100 / 92 * 61 * 62 / 2) / 273 = 563.939; 961.111 / 563.939
        "~ 1.70428",
        "= 4.80556e+07",  # 961.111e6 / 20
        "~ 0.0852141",  # 48.0556 / 563.939
    ],
    "per-query": [
        "~ 0.0103825",  # 3.8e9 / (366 * 1e9)
        "~ 0.00415301",  # * 0.4
        "~ 0.012674",  # 8.65e9 / (273 * 2.5e9): the floor of July says nothing of the other months
        "~ 0.0050696",
        "~ 0.0123219",  # 8.65e9 / (39 * 18e9)
        "~ 0.00492877",
        # 1 to 2.5 (e9 a day) over the 212 days to 31 July, then 2.5: (212 + 1.5 * 213 / 2 + 61 * 2.5) / 273 = 1.92033
        "~ 0.0164998",  # 8.65 / (273 * 1.92033)
        "~ 0.0065999",
    ],
    "tokens": ["~ 20.765", "~ 25.348", "~ 24.6439", "~ 32.9995"],  # USD a query / 500 tokens * 1e6
    "energy": [
        "~ 332773",  # 3.8e9 / (1.3 * 8784 h)
        "~ 0.575697",  # * 1.73 kW / 1e6
        "~ 1.01554e+06",  # 8.65e9 / (1.3 * 6552 h)
        "~ 1.75689",
        "~ 0.92468",  # 1.75689 / 1.9 GW
        "~ 0.10726",  # 0.0806 * 1.73 / 1.3
        "~ 21.9574",  # 0.0164998 / 1.3 * 1.73 * 1000 Wh
        "~ 64.5805",  # / 0.34
        "~ 91.4891",  # / 0.24
        "~ 73.1913",  # / 0.3
        "~ 64.5805",  # / 0.34
    ],
    "break-even": [
        "<= 0.350263",  # 1 - 2.469 / 3.8
        "<= 0.805079",  # 1 - 0.3 * 2.469 / 3.8
        "~ -0.0526316",  # 1 - 4.0 / 3.8
        "~ 0.684211",  # 1 - 0.3 * 4.0 / 3.8
        "<= 0.499538",  # 1 - 4.329 / 8.65
        "<= 0.849861",  # 1 - 0.3 * 4.329 / 8.65
        "-0.00578035 to 0.254335",  # 1 - 8.7 / 8.65 and 1 - 6.45 / 8.65
        "0.698266 to 0.776301",  # 1 - 0.3 * 8.7 / 8.65 and 1 - 0.3 * 6.45 / 8.65
    ],
    "plan-2030": [
        ">= 21.374",  # 280 / 13.1
        ">= 1.84492",  # 21.374^(1/5)
        "~ 5.82788e+11",  # 13.1 * (1.84492 + 3.40373 + 6.27960 + 11.5854 + 21.3740)
        "~ 1.02953",  # 600 / 582.788
        "refused: period as of 2030 with 2030; time stock with flow",
        "~ 1.2e+11",  # 600e9 / 5
        "~ 1.75e+11",  # 1.4e12 / 8
        "refused: period Nov 2025-Oct 2033 with as of 2030",
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_comparison_gives_the_answers_computed_by_hand(name: str) -> None:
    assert [six(line) for line in COMPARISONS[name][1](CONTEXT)] == EXPECTED[name]


def test_every_comparison_is_tested() -> None:
    assert set(COMPARISONS) == {*EXPECTED, "pairs"}


def test_the_net_share_over_the_rumoured_rate_is_a_floor() -> None:
    assert six(Line("", revenue_floor(CONTEXT, "A01"))) == ">= 2.469e+09"  # 493.8e6 / 0.20
    assert six(Line("", revenue_floor(CONTEXT, "A02"))) == ">= 4.329e+09"  # 865.8e6 / 0.20
    assert "rumour" in revenue_floor(CONTEXT, "A01").statuses


def test_pairs_that_match_are_computed_and_others_refused() -> None:
    found = {(q.terms if isinstance(q, Quantity) else q.what.split(" mixes ")[0]): six(Line("", q))
             for q in (line.result for line in COMPARISONS["pairs"][1](CONTEXT))}  # fmt: skip
    assert found["X15 / A11"] == "= 1.16744"  # 5.02 / 4.3, both of the first half
    assert found["A16 / E09"] == "refused: period Jan-Sep 2025 with 2025"
    assert found["A15 / D06"] == "refused: time flow with run-rate"
    assert found["X19 / A08"] == "n/a"  # about 2 bn over at least 2.5 bn
    assert "A15 / E09" not in found  # no time in common


def test_pairs_include_the_companies_of_the_users_file(tmp_path: Path) -> None:
    header, *shipped = read_data("facts.csv").splitlines()
    mine = [row.replace("articles,OpenAI", "user,Acme") for row in shipped if row.startswith(("A15", "A10"))]
    mine += [f"B{mine[0].replace('USD', 'EUR')}"]  # revenue in another currency
    path = tmp_path / "acme.csv"
    path.write_text("\n".join([header, *(f"U{row}" for row in mine)]), encoding="utf-8")
    lines = COMPARISONS["pairs"][1](Context(shipped_book([path])))
    assert [six(line) for line in lines if line.label.startswith("Acme")] == ["~ 0.95", "refused: unit USD with EUR"]
    forced = COMPARISONS["pairs"][1](Context(shipped_book([path]), force=True))
    found = [line.result for line in forced if line.label.startswith("Acme")][1]
    assert isinstance(found, Quantity)
    assert (found.text(), found.unit_text, found.stamps) == ("~ 0.95", "USD/EUR", ("unit USD with EUR",))


def test_forcing_stamps_what_was_refused() -> None:
    forced = COMPARISONS["plan-2030"][1](Context(CONTEXT.book, force=True))[-1].result
    assert isinstance(forced, Quantity)
    assert (forced.text(), forced.stamps) == ("~ 2.333", ("period Nov 2025-Oct 2033 with as of 2030",))


def test_the_measured_cost_gives_tokens_bought_and_a_ratio_to_the_list_price() -> None:
    cost = replace(exact(2, "USD/Mtoken", "run1", status="derived"), ids=("run1",))
    lines = COMPARISONS["tokens"][1](Context(CONTEXT.book, cost))[-3:]
    assert [six(line) for line in lines] == [
        "= 1.9e+09",
        "= 4.325e+09",
        "= 0.2",
    ]  # Mtoken: 3.8e9 / 2, 8.65e9 / 2; 2 / 10


def test_assumptions_move_the_comparisons() -> None:
    c = Context(assume(CONTEXT.book, {"gross_margin": 0.5, "chat_share": "0.2:0.5"}))
    assert six(COMPARISONS["break-even"][1](c)[1]) == "<= 0.675132"  # 1 - 0.5 * 2.469 / 3.8
    assert six(COMPARISONS["per-query"][1](c)[1]) == "~ 0.00328324"  # 0.0103825 * sqrt(0.2 * 0.5)


@pytest.mark.parametrize("path", ["linear", "geometric", "non-falling"])
def test_every_path_of_quarters_lies_in_the_range_of_non_falling_paths(path: str) -> None:
    half, year = of_fact(CONTEXT.book["A11"]), of_fact(CONTEXT.book["E09"])
    found = nine_months(half, year, path)
    assert found.value is not None
    assert 6.45e9 <= found.value <= 8.7e9
    flat = nine_months(half, replace(year, value=8.6e9, low=8.6e9, high=8.6e9), path)  # equal halves: one path is left
    assert flat.value == pytest.approx(6.45e9)


def test_nine_months_need_a_half_year_and_its_year() -> None:
    half, year = of_fact(CONTEXT.book["A11"]), of_fact(CONTEXT.book["E09"])
    for bad, what in (
        (replace(half, period=period("2024-01", "2024-06")), "does not begin"),
        (replace(half, period=period("2025-01", "2025-03")), "is not half of"),
        (of_fact(CONTEXT.book["D03"]), "does not begin"),
        (replace(half, value=9e9, low=9e9, high=9e9), "revenue fell"),
        (replace(half, high=9e9), "leaves the path of quarters open"),
    ):
        with pytest.raises(Refused, match=what):
            nine_months(bad, year, "linear")
