"""The comparisons against figures computed by hand from the printed numbers, to five significant digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.facts.appraisal import shipped_book
from harness.facts.book import assume, period
from harness.facts.claims import Quantity, Refused, at_least, exact, nine_months, of_fact
from harness.facts.formulas import PAIRS, Context, Line, evaluate, lines, named_ids, quantity, result
from harness.files import read_data

BOOK = shipped_book()
CONTEXT, PRINTED = Context(BOOK), Context(BOOK, rounding=False)

BY_HAND = [
    # revenue, as the comparisons divide by it
    ("revenue_floor_2024", "2.469e+09 USD"),  # 493.8e6/0.20
    ("revenue_floor_2025", "4.329e+09 USD"),  # 865.8e6/0.20
    ("revenue_nine_geometric", "7.92056e+09 USD"),  # 4.3e9+4.3e9*(8.8/4.3)/(1+(8.8/4.3)**0.5)
    ("revenue_nine_linear", "8.1375e+09 USD"),  # 0.75*4.3e9+0.375*13.1e9
    ("revenue_nine_prorata", "9.825e+09 USD"),  # 13.1e9*9/12
    ("revenue_annualised", "1.05607e+10 USD"),  # 7.9205608e9*12/9
    # inference bill / revenue
    ("bill_floor_2024", "1.53908 ratio"),  # 3.8/(0.4938/0.20)
    ("bill_rounded_floor_2024", "1.52 ratio"),  # 3.8/2.5
    ("bill_press_2024", "0.95 ratio"),  # 3.8/4
    ("bill_accounts_2024", "1.02703 ratio"),  # 3.8/3.7
    ("bill_floor", "1.99815 ratio"),  # 8.65/(0.8658/0.20)
    ("bill_rounded_floor", "1.99769 ratio"),  # 8.65/4.33
    ("bill_geometric", "1.09209 ratio"),  # 8.65/7.9205608
    ("bill_linear", "1.06298 ratio"),  # 8.65/8.1375
    ("bill_prorata", "0.880407 ratio"),  # 8.65/9.825
    ("bill_h1", "1.16744 ratio"),  # 5.02/4.3
    ("bill_h1_floor", "2.20805 ratio"),  # 5.02/(0.4547/0.20)
    ("bill_q3", "1.00261 ratio"),  # (8.65-5.02)/(7.9205608-4.3)
    ("sacra_2025", "0.642693 ratio"),  # 8.4/13.07
    ("investors_2025", "0.612089 ratio"),  # 8.0/13.07
    # margins
    ("cost_revenue_2025", "0.573833 ratio"),  # 7.5/13.07
    ("cost_revenue_2024", "0.716216 ratio"),  # 2.65/3.7
    ("gross_margin_2025", "0.426167 ratio"),  # 1-7.5/13.07
    ("cost_growth", "2.83019 ratio"),  # 7.5/2.65
    ("accounts_growth", "3.53243 ratio"),  # 13.07/3.7
    ("loss_revenue", "1.60061 ratio"),  # 20.92/13.07
    ("microsoft_revenue", "1.31599 ratio"),  # 17.2/13.07
    ("microsoft_cost", "0.806267 ratio"),  # 6.047/7.5
    ("bill_cost", "1.43046 ratio"),  # 8.65/6.047
    ("serving_limit", "0.650289 ratio"),  # 7.5*0.75/8.65
    ("free_share", "0.4375 ratio"),  # 1-4.5/8
    ("epoch_margin", "0.47541 ratio"),  # 1-3.2/6.1
    # revenue share
    ("net_share_2024", "0.12345 ratio"),  # 0.4938/4
    ("reverse_2024", "3.062e+08 USD"),  # 4e9*0.20-493.8e6
    ("partner_2024", "1.531e+09 USD"),  # (4e9*0.20-493.8e6)/0.20
    ("partner_2025_geometric", "3.59156e+09 USD"),  # 7.9205608e9-865.8e6/0.20
    # trend
    ("spend_month_2024", "3.16667e+08 USD/month"),  # 3.8e9/12
    ("spend_month_2025", "9.61111e+08 USD/month"),  # 8.65e9/9
    ("spend_day_2024", "1.03825e+07 USD/day"),  # 3.8e9/366
    ("spend_day_2025", "3.1685e+07 USD/day"),  # 8.65e9/273
    ("spend_q3", "3.63e+09 USD"),  # 8.65e9-5.02e9
    ("spend_growth", "3.03509 ratio"),  # (8.65/9)/(3.8/12)
    ("revenue_growth", "2.64019 ratio"),  # (7.9205608/9)/(4/12)
    ("spend_over_revenue_growth", "1.14957 ratio"),  # (8.65/9)/(3.8/12)/((7.9205608/9)/(4/12))
    ("share_growth", "2.33779 ratio"),  # (865.8/9)/(493.8/12)
    ("spend_annualised", "1.15333e+10 USD"),  # 8.65e9*12/9
    ("spend_q3_annualised", "1.452e+10 USD"),  # (8.65e9-5.02e9)*4
    # a weekly user and month
    ("spend_user_500", "1.92222 USD/month-user"),  # 8.65e9/9/500e6
    ("spend_user_700", "1.37302 USD/month-user"),  # 8.65e9/9/700e6
    ("spend_user_900", "1.0679 USD/month-user"),  # 8.65e9/9/900e6
    ("revenue_user_800", "1.10008 USD/month-user"),  # 7.9205608e9/9/800e6
    ("revenue_user_year_800", "1.36458 USD/month-user"),  # 13.1e9/12/800e6
    ("floor_user_500", "0.962 USD/month-user"),  # 865.8e6/0.20/9/500e6
    ("users_linear", "5.63939e+08 user"),  # ((181+31)*500e6+200e6/31*31*32/2+61*700e6+100e6/92*61*62/2)/273
    # (181*500e6+sum(500e6*(7/5)**(k/31) for k in range(1,32))+sum(700e6*(8/7)**(k/92) for k in range(1,62)))/273
    ("users_log", "5.63027e+08 user"),
    ("spend_user_log", "1.70704 USD/month-user"),  # 8.65e9/9/563.0268e6
    ("payers", "4.80556e+07 user"),  # 8.65e9/9/20
    ("paying_users_share", "0.05 ratio"),  # 40/800
    # a query
    ("volume_linear", "1.92033e+09 prompt/day"),  # (212*1e9+1.5e9/212*212*213/2+61*2.5e9)/273
    ("volume_log", "1.83261e+09 prompt/day"),  # (sum(1e9*2.5**(k/212) for k in range(1,213))+61*2.5e9)/273
    ("spend_query_x02", "0.0103825 USD/prompt"),  # 3.8e9/(366*1e9)
    ("spend_query_x01", "0.012674 USD/prompt"),  # 8.65e9/(273*2.5e9)
    ("spend_query_x03", "0.0123219 USD/message"),  # 8.65e9/(39*18e9)
    ("spend_query_x162", "0.0105617 USD/message"),  # 8.65e9/(273*3e9)
    ("spend_query_x163", "0.0120613 USD/message"),  # 8.65e9/(273*2.627e9)
    ("spend_query_linear", "0.0164998 USD/prompt"),  # 8.65e9/(273*1.9203297e9)
    ("spend_query_log", "0.0172895 USD/prompt"),  # 8.65e9/(273*1.8326097e9)
    ("chat_query_linear", "0.0065999 USD/prompt"),  # 0.4*8.65e9/(273*1.9203297e9)
    ("revenue_query_x01", "0.0116052 USD/prompt"),  # 7.9205608e9/(273*2.5e9)
    ("prompts_user", "3.57143 prompt/day-user"),  # 2.5e9/700e6
    # tokens
    ("spend_token_x01", "25.348 USD/Mtoken"),  # 8.65e9/(273*2.5e9)/500*1e6
    ("tokens_0_1_2025", "8.65e+16 token"),  # 8.65e9/0.1*1e6
    ("tokens_0_3_2025", "2.88333e+16 token"),  # 8.65e9/0.3*1e6
    ("tokens_1_2024", "3.8e+15 token"),  # 3.8e9*1e6
    ("tokens_10_2025", "8.65e+14 token"),  # 8.65e9/10*1e6
    ("tokens_prompt_3", "5763.18 token/prompt"),  # 8.65e9/3*1e6/(273*1.8326097e9)
    # GPUs and power that the bill buys
    ("gpu_hours_1_3_2025", "6.65385e+09 GPU-hour"),  # 8.65e9/1.3
    ("gpus_1_3_2025", "1.01554e+06 GPU"),  # 8.65e9/1.3/6552
    ("gw_1_3_2025", "1.75689 GW"),  # 8.65e9/1.3/6552*1.73/1e6
    ("gw_low_1_3_2025", "1.26943 GW"),  # 8.65e9/1.3/6552*1.25/1e6
    ("gpus_1_41_2025", "936317 GPU"),  # 8.65e9/1.41/6552
    ("gpus_2_2025", "660104 GPU"),  # 8.65e9/2/6552
    ("gw_3_2025", "0.76132 GW"),  # 8.65e9/3/6552*1.73/1e6
    ("gpus_1_3_2024", "332773 GPU"),  # 3.8e9/1.3/8784
    ("gw_1_3_2024", "0.575697 GW"),  # 3.8e9/1.3/8784*1.73/1e6
    # power that stood
    ("gw_stood", "1.08795 GW"),  # 0.6+1.3*137/365
    ("gw_stood_2024", "0.400546 GW"),  # 0.2+0.4*183.5/366
    ("price_floor", "2.09933 USD/GPU-hour"),  # 8.65e9/6552/((0.6+1.3*137/365)*1e6/1.73)
    ("price_floor_low", "1.51686 USD/GPU-hour"),  # 8.65e9/6552/((0.6+1.3*137/365)*1e6/1.25)
    ("mw_0_34_x01", "35.4167 MW"),  # 2.5e9*0.34/24/1e6
    ("mw_share_0_34_x01", "0.0325537 ratio"),  # 2.5e9*0.34/24/1e9/(0.6+1.3*137/365)
    ("mw_share_end", "0.0186404 ratio"),  # 2.5e9*0.34/24/1e9/1.9
    ("electricity_0_08_1_73", "0.1384 USD/GPU-hour"),  # 0.08*1.73
    ("electricity_share_0_08_1_73_1_3", "0.106462 ratio"),  # 0.08*1.73/1.3
    ("electricity_bill_0_08", "5.70257e+08 USD"),  # (0.6+1.3*137/365)*1e6*6552*0.08
    ("electricity_bill_share_0_08", "0.0659257 ratio"),  # (0.6+1.3*137/365)*1e6*6552*0.08/8.65e9
    # DeepSeek's day
    ("nodes_input", "95.4822 node"),  # 608e9/(73.7e3*86400)
    ("nodes_output", "131.381 node"),  # 168e9/(14.8e3*86400)
    ("nodes", "226.864 node"),  # 608e9/(73.7e3*86400)+168e9/(14.8e3*86400)
    ("cost_input", "0.0603045 USD/Mtoken"),  # 16/(73.7e3*3600)*1e6
    ("cost_output", "0.3003 USD/Mtoken"),  # 16/(14.8e3*3600)*1e6
    ("cost_day_reported", "87072 USD/day"),  # 226.75*8*24*2
    ("cost_all_output", "0.518286 USD/Mtoken"),  # 87072/168e3
    ("cost_all_tokens", "0.112206 USD/Mtoken"),  # 87072/776e3
    ("azure_request", "0.000133035 USD/request"),  # (1154.70*16/73.7e3+211.126*16/14.8e3)/3600
    ("list_margin", "0.845075 ratio"),  # 1-87072/562027
    ("cached", "0.5625 ratio"),  # 342/608
    # the API as a second volume
    ("api_day", "8.64e+12 token/day"),  # 6e9*1440
    ("api_tokens", "2.35872e+15 token"),  # 6e9*1440*273
    ("api_price", "3.66724 USD/Mtoken"),  # 8.65e9/(6e9*1440*273)*1e6
    ("api_price_rest", "2.20035 USD/Mtoken"),  # 0.6*8.65e9/(6e9*1440*273)*1e6
    ("api_prompt", "3456 token/prompt"),  # 6e9*1440/2.5e9
    # where the bill is covered
    ("cut_floor", "0.499538 ratio"),  # 1-0.8658/0.20/8.65
    ("cut_margin_press_2024", "0.684211 ratio"),  # 1-0.3*4/3.8
    ("margin_geometric", "-0.0920944 ratio"),  # 1-8.65/7.9205608
    ("result_geometric", "-7.29439e+08 USD"),  # 7.9205608e9-8.65e9
    ("utilisation_even", "0.414996 ratio"),  # 0.38*8.65/7.9205608
    ("utilisation_even_floor", "0.759298 ratio"),  # 0.38*8.65/(0.8658/0.20)
    ("deepseek_even_utilisation", "0.154925 ratio"),  # 87072/562027
    ("deepseek_even_price", "12.9095 USD/GPU-hour"),  # 2*562027/87072
    ("gw_share_2_2025", "1.04967 ratio"),  # 8.65e9/2/6552*1.73/1e6/(0.6+1.3*137/365)
    ("spend_user_year_700", "16.4762 USD/user"),  # 8.65e9*12/9/700e6
    ("gpus_day", "1814.91 GPU"),  # 8*(608e9/(73.7e3*86400)+168e9/(14.8e3*86400))
    ("price_even_2", "1.83134 USD/GPU-hour"),  # 2*7.9205608/8.65
    # ARR
    # (sum(5.5e9+4.5e9*k/181 for k in range(1,182))+sum(10e9+10e9*k/184 for k in range(1,185)))/365
    ("arr_linear", "1.14247e+10 USD"),
    # (sum(5.5e9*(10/5.5)**(k/181) for k in range(1,182))+sum(10e9*2**(k/184) for k in range(1,185)))/365
    ("arr_log", "1.10253e+10 USD"),
    ("arr_ratio_linear", "0.872115 ratio"),  # 11.4247e9/13.1e9
    # the plan to 2030
    ("plan_growth", "21.374 ratio"),  # 280/13.1
    ("plan_yearly", "1.84492 ratio"),  # (280/13.1)**0.2
    ("plan_revenue", "5.82788e+11 USD"),  # 13.1e9*sum((280/13.1)**(k/5) for k in range(1,6))
    ("plan_year", "1.2e+11 USD/year"),  # 600e9/5
    ("plan_year_revenue", "9.16031 ratio"),  # 120/13.1
    ("plan_year_2030", "0.428571 ratio"),  # 120/280
    ("commitments_year", "1.75e+11 USD/year"),  # 1.4e12/8
    ("deck_year", "1.712e+11 USD/year"),  # 856e9/5
    ("deck_growth", "1.7658 ratio"),  # (350/36)**0.25
    # Anthropic
    ("anthropic_inference", "0.588235 ratio"),  # 2.7/4.59
    ("anthropic_compute", "1.59695 ratio"),  # 7.33/4.59
    ("anthropic_margin", "0.411765 ratio"),  # 1-2.7/4.59
    ("anthropic_spacex", "7.78331 USD/GPU-hour"),  # 1.25e9/730/220e3
    # as other pages print it, by the margins, at other volumes, and the ends of the ARR path
    ("revenue_floor_annualised", "5.772e+09 USD"),  # 865.8e6/0.20*12/9
    ("bill_floor_867", "2.00277 ratio"),  # 8.67/(0.8658/0.20)
    ("spend_q3_867_annualised", "1.46e+10 USD"),  # (8.67e9-5.02e9)*4
    ("bill_cost_all", "1.15333 ratio"),  # 8.65/7.5
    ("not_serving", "3.025e+09 USD"),  # 8.65e9-7.5e9*0.75
    ("serving_gross", "0.6135 ratio"),  # 0.67*7.9205608/8.65
    ("serving_paying", "0.274701 ratio"),  # 0.3*7.9205608/8.65
    ("paying_revenue", "1.5e+10 USD"),  # 4.5e9/0.3
    ("partner_2025_linear", "3.8085e+09 USD"),  # 8.1375e9-865.8e6/0.20
    ("partner_h1", "2.0265e+09 USD"),  # 4.3e9-454.7e6/0.20
    ("tokens_prompt_linear_1", "16499.8 token/prompt"),  # 8.65e9*1e6/(273*1.9203297e9)
    ("gw_1_93_2025", "1.1834 GW"),  # 8.65e9/1.93/6552*1.73/1e6
    ("gw_share_2_2024", "0.934231 ratio"),  # 3.8e9/2/8784*1.73/1e6/(0.2+0.4*183.5/366)
    ("price_floor_low_end", "0.868558 USD/GPU-hour"),  # 8.65e9/6552/(1.9e6/1.25)
    ("mw_0_34_x162", "42.5 MW"),  # 3e9*0.34/24/1e6
    ("electricity_query_share_0_08_x01", "0.00214613 ratio"),  # 0.34*0.08/1e3/(8.65e9/(273*2.5e9))
    ("cost_day_share_input", "0.420879 ratio"),  # 608*0.0603045/(608*0.0603045+168*0.3003)
    ("api_chat", "6.912 ratio"),  # 6e9*1440/(2.5e9*500)
    ("chat_of_tokens", "0.12639 ratio"),  # 1.25/(1.25+8.64)
    ("margin_h1", "-0.167442 ratio"),  # 1-5.02/4.3
    ("price_even_2_floor_2024", "1.29947 USD/GPU-hour"),  # 2*(0.4938/0.20)/3.8
    ("arr_ratio_log_ends", "0.858899 ratio"),  # sum(5.5*(20/5.5)**(k/365) for k in range(1,366))/365/13.1
    ("arr_q4", "0.965355 ratio"),  # 20/((13.1-7.9205608)*4)
    ("commitments_2030", "0.625 ratio"),  # 1400/8/280
    ("deck_revenue", "7.60029e+11 USD"),  # 36e9*sum((350/36)**(k/4) for k in range(5))
    ("google_api_day", "2.736e+13 token/day"),  # 19e9*1440
]


@pytest.mark.parametrize(("name", "expected"), BY_HAND)
def test_a_comparison_gives_the_answer_computed_by_hand(name: str, expected: str) -> None:
    q = quantity(PRINTED, name)
    assert q.value == pytest.approx(float(expected.split()[0]), rel=1e-5)
    assert q.unit_text == expected.split()[1]


def ends(name: str) -> str:
    """Bound, number and ends in four digits, with half a digit carried."""
    q = quantity(CONTEXT, name)
    return f"{q.bound} {q.value:.4g} [{q.low:.4g}, {q.high:.4g}]"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bill_floor_2024", "<= 1.559 [0, 1.559]"),  # 3.85 / (493.75e6 / 0.20)
        ("bill_floor", "<= 1.999 [0, 1.999]"),  # 8.655 / (865.75e6 / 0.20)
        ("bill_press", "range 1.092 [0.988, 1.358]"),  # 8.645 / 8.75, 8.655 / 6.375
        ("revenue_nine", "range 7.921e+09 [6.375e+09, 8.75e+09]"),  # 1.5 * 4.25, (4.35 + 13.15) / 2
        ("all_press", ">= 0.988 [0.988, inf]"),  # 8.645 / 8.75: one supplier is a floor of all
        ("revenue_floor_2025", ">= 4.329e+09 [4.329e+09, inf]"),  # 865.75e6 / 0.20
        ("spend_month_2025", "= 9.611e+08 [9.606e+08, 9.617e+08]"),  # 8.645e9 / 9, 8.655e9 / 9
        ("chat_query_x01", "~ 0.00507 [0.002533, 0.01015]"),  # 0.2 and 0.8 (p5, p95) of 8.645 and 8.655 / 682.5
        ("gpus_2_2025", "= 6.601e+05 [6.597e+05, 6.605e+05]"),
        ("margin_press", "range -0.09209 [-0.3576, 0.012]"),  # 1 - 1.3576, 1 - 0.988
        ("plan_growth", ">= 21.29 [21.29, inf]"),  # 280 / 13.15
    ],
)
def test_half_a_printed_digit_and_the_ends_of_a_belief_are_carried(name: str, expected: str) -> None:
    assert ends(name) == expected


def test_two_floors_bound_nothing_and_a_ratio_says_whose_bill() -> None:
    for name in ("all_floor", "floor_growth"):
        assert quantity(CONTEXT, name).bound == "n/a"
    scopes = {line.name: line.scope for line in lines(CONTEXT, "spend-revenue")}
    assert (scopes["bill_press"], scopes["all_press"]) == ("one supplier", "all suppliers")
    assert all(scopes.values())
    with pytest.raises(Refused, match="suppliers one-supplier with all-suppliers"):
        evaluate(CONTEXT, "moved(A16, '2025-01', '2025-12') / X119")


def test_every_row_has_a_result_or_a_refusal_that_is_meant() -> None:
    refused = {name for name in BOOK.comparisons if isinstance(result(CONTEXT, name), HarnessError)}
    measured = {"tokens_measured", "tokens_measured_2024", "list_price_ratio", "utilisation_list", "measured_deepseek"}
    assert refused == {*measured, "plan_stock_flow", "commitments_plan"}
    assert {row.table for row in BOOK.comparisons.values()} == set(BOOK.tables) - {PAIRS}


def test_every_row_of_the_screen_and_every_fact_of_a_contradiction_exists() -> None:
    assert all(not row.row or row.row in BOOK.comparisons or row.section == "subject" for row in BOOK.screen)
    assert not set(BOOK.comparisons) & {*BOOK.facts, *BOOK.assumptions}
    assert all(i in BOOK.facts for item in BOOK.contradictions for i in item.ids)


def test_an_exact_input_gives_an_exact_result_and_a_wrong_formula_is_refused() -> None:
    assert evaluate(CONTEXT, "2 * 3 - 1").text() == "= 5"
    for wrong in ("2 ** 3", "nothing + 1", "exec('x')", "mean(X02, X01)"):
        with pytest.raises(HarnessError):
            evaluate(CONTEXT, wrong)
    assert list(named_ids(["A16 / month", "floor(A02)"])) == ["A16", "month", "floor", "A02"]


def six(line: Line) -> str:
    """Bound and number in six digits; what a refusal names."""
    q = line.result
    if isinstance(q, HarnessError):
        return "refused: " + q.what.partition(" mixes ")[2]
    return "n/a" if q.value is None else f"{q.bound} {q.value:.6g}"


def test_pairs_that_match_are_computed_and_others_refused() -> None:
    found = {(q.terms if isinstance(q, Quantity) else q.what.split(" mixes ")[0]): six(Line("", q))
             for q in (line.result for line in lines(CONTEXT, PAIRS))}  # fmt: skip
    assert found["X15 / A11"] == "~ 1.16744"  # 5.02 / 4.3, both of the first half
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
    found = lines(Context(shipped_book([path])), PAIRS)
    assert [six(line) for line in found if line.label.startswith("Acme")] == ["~ 0.95", "refused: unit USD with EUR"]
    forced = lines(Context(shipped_book([path]), force=True), PAIRS)
    q = [line.result for line in forced if line.label.startswith("Acme")][1]
    assert isinstance(q, Quantity)
    assert (q.text(), q.unit_text, q.stamps) == ("~ 0.95", "USD/EUR", ("unit USD with EUR",))


def test_forcing_stamps_what_was_refused() -> None:
    forced = quantity(Context(BOOK, force=True), "commitments_plan")
    assert (forced.text(), forced.stamps) == ("~ 2.333", ("period Nov 2025-Oct 2033 with as of 2030",))


def test_the_measured_cost_gives_tokens_bought_and_a_ratio_to_the_list_price() -> None:
    cost = replace(exact(2, "USD/Mtoken", "run1", status="derived"), ids=("run1",))
    c = Context(BOOK, cost, rounding=False)
    assert quantity(c, "tokens_measured").value == 4.325e9  # 8.65e9 / 2
    assert quantity(c, "list_price_ratio").value == 0.2  # 2 / 10


def test_assumptions_move_the_comparisons() -> None:
    c = Context(assume(BOOK, {"gross_margin": 0.5, "chat_share": "0.2:0.5"}), rounding=False)
    assert six(Line("", result(c, "cut_margin_floor_2024"))) == "<= 0.675132"  # 1 - 0.5 * 2.469 / 3.8
    assert six(Line("", result(c, "chat_query_x02"))) == "~ 0.00328324"  # 0.0103825 * sqrt(0.2 * 0.5)


@pytest.mark.parametrize("path", ["linear", "geometric", "non-falling"])
def test_every_path_of_quarters_lies_in_the_range_of_non_falling_paths(path: str) -> None:
    half, year = PRINTED.printed("A11"), PRINTED.printed("E09")
    found = nine_months(half, year, path)
    assert found.value is not None
    assert 6.45e9 <= found.value <= 8.7e9
    flat = nine_months(half, replace(year, value=8.6e9, low=8.6e9, high=8.6e9), path)  # equal halves: one path is left
    assert flat.value == pytest.approx(6.45e9)


def test_an_estimated_half_year_counts_at_its_printed_digits_and_says_so() -> None:
    assert of_fact(BOOK["A11"]).bound == "~"
    assert any("A11" in said and "printed digits" in said for said in quantity(CONTEXT, "revenue_nine").assumptions)


def test_nine_months_need_a_half_year_and_its_year() -> None:
    half, year = PRINTED.printed("A11"), PRINTED.printed("E09")
    for bad, what in (
        (replace(half, period=period("2024-01", "2024-06")), "is not the first half of"),
        (replace(half, period=period("2025-01", "2025-03")), "is not the first half of"),
        (of_fact(BOOK["D03"]), "is not the first half of"),
        (replace(half, value=9e9, low=9e9, high=9e9), "revenue fell"),
        (at_least(half), "leaves the path of quarters open"),
        (of_fact(BOOK["A11"]), "leaves the path of quarters open"),
    ):
        with pytest.raises(Refused, match=what):
            nine_months(bad, year, "linear")
