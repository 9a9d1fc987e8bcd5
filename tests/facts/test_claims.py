"""Bounds through arithmetic: known answers, and the property that no result claims more than its inputs allow."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.facts.appraisal import shipped_book
from harness.facts.book import Fact, Period, period
from harness.facts.claims import (
    Quantity,
    Refused,
    about,
    combine,
    exact,
    growth,
    held,
    length,
    of_fact,
    rebased,
    root,
    time_mean,
)

YEAR = period("2024", "2024")
FACTS = shipped_book()


def claim(
    bound: str, low: float, high: float | None = None, *, basis: str = "unstated", over: Period = YEAR
) -> Quantity:
    """A figure of an invented fact: `low` is its number, `low` and `high` its range."""
    ends = (low, None, high) if bound == "range" else (None, low, None)
    numbers = dict(
        zip(("value_low", "value", "value_high"), ("" if end is None else str(end) for end in ends), strict=True)
    )
    row: dict[str, Any] = {field.name: "x" for field in fields(Fact)} | numbers | {"half_digit": 0.0}
    row |= {"layer": "user", "bound": bound, "unit": "USD", "currency": "USD", "status": "reported", "basis": basis}
    return replace(of_fact(Fact(**row | {"period_start": "2024", "period_end": "2024"})), period=over)


@pytest.mark.parametrize(
    ("a", "sign", "b", "expected"),
    [
        (("=", 6), "/", ("=", 3), "= 2"),
        (("=", 6), "/", (">=", 3), "<= 2"),  # a floor in a denominator makes a ceiling
        (("=", 6), "/", ("<=", 3), ">= 2"),
        ((">=", 6), "/", ("=", 3), ">= 2"),
        ((">=", 6), "/", ("<=", 3), ">= 2"),
        (("<=", 6), "/", (">=", 3), "<= 2"),
        ((">=", 6), "/", (">=", 3), "n/a"),
        (("<=", 6), "/", ("<=", 3), "n/a"),
        (("~", 6), "/", ("=", 3), "~ 2"),
        (("~", 6), "/", ("~", 3), "~ 2"),
        (("~", 6), "/", (">=", 3), "n/a"),
        (("~", 6), "*", ("range", 2, 4), "~ 18"),
        (("=", 6), "/", ("range", 2, 3), "2 to 3"),
        ((">=", 6), "*", ("range", 2, 3), ">= 12"),
        ((">=", 6), "+", (">=", 3), ">= 9"),
        ((">=", 6), "-", ("<=", 3), ">= 3"),
        ((">=", 6), "-", (">=", 3), "n/a"),
        (("=", 6), "-", (">=", 3), "<= 3"),
        (("=", 1), "-", (">=", 3), "<= -2"),
        (("range", 1, 2), "-", ("range", 1, 2), "-1 to 1"),
        (("<=", 6), "+", ("range", 1, 2), "1 to 8"),
        (("=", 0), "*", (">=", 3), "= 0"),
    ],
)
def test_arithmetic_keeps_bounds_as_computed_by_hand(
    a: tuple[str, float], sign: str, b: tuple[str, float], expected: str
) -> None:
    assert combine(claim(*a), sign, claim(*b)).text() == expected


def test_a_divisor_that_may_be_zero_or_of_either_sign_claims_nothing() -> None:
    either = claim("range", 1, 4) - claim("range", 1, 4)  # -3 to 3
    assert (claim("=", 6) / either).text() == "n/a"
    assert (claim("=", 6) / (claim("range", 4, 7) - claim("=", 4))).text() == ">= 2"  # 6 over 0 to 3
    assert (claim("=", 6) / (claim("=", 4) - claim("range", 4, 7))).text() == "<= -2"


@st.composite
def known(draw: st.DrawFn) -> tuple[Quantity, float]:
    """A claim, and a true value that it allows."""
    truth = float(draw(st.integers(1, 60)))
    other, far = float(draw(st.integers(1, 60))), float(draw(st.integers(1, 60)))
    bound = draw(st.sampled_from(["=", ">=", "<=", "range", "~"]))
    if bound == "=":
        return claim("=", truth), truth
    if bound == "~":
        return claim("~", other), truth
    if bound == "range":
        return claim("range", min(truth, other), max(truth, far)), truth
    return claim(bound, min(truth, other) if bound == ">=" else max(truth, other)), truth


@st.composite
def formula(draw: st.DrawFn) -> tuple[Quantity, float]:
    """A random formula over one to five claims, with what it comes to for their true values."""
    a, x = draw(known())
    a = replace(a, unit=())
    for _ in range(draw(st.integers(0, 4))):
        b, y = draw(known())
        b = replace(b, unit=())
        if draw(st.booleans()):
            a, x, b, y = b, y, a, x
        sign = draw(st.sampled_from("+-*/"))
        if sign == "/":
            assume(abs(y) > 1e-3)
            assume(not (b.value == 0 and b.bound in ("=", "~")))
        a, x = combine(a, sign, b), {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else math.nan}[sign]
    return a, x


@settings(max_examples=150)
@given(formula())
def test_no_result_claims_more_than_its_inputs_allow(case: tuple[Quantity, float]) -> None:
    result, truth = case
    slack = 1e-6 * (1 + abs(truth))
    if result.kind == "~":  # about: its ends are no bounds
        return
    assert result.low - slack <= truth <= result.high + slack
    if result.bound == "n/a":
        return
    assert result.value is not None
    if result.bound == ">=":
        assert truth >= result.value - slack
    if result.bound == "<=":
        assert truth <= result.value + slack
    if result.bound == "=":
        assert truth == pytest.approx(result.value, abs=slack)
    if result.bound == "range":
        assert result.low - slack <= result.value <= result.high + slack


@given(known(), known(), st.sampled_from("+-*/"))
def test_a_result_is_hard_only_if_its_inputs_are(
    a: tuple[Quantity, float], b: tuple[Quantity, float], sign: str
) -> None:
    result = combine(replace(a[0], unit=()), sign, replace(b[0], unit=()))
    bounds = {a[0].bound, b[0].bound}
    assert (result.bound == "~") == ("~" in bounds and bounds <= {"~", "=", "range"})
    if "~" in bounds and not bounds <= {"~", "=", "range"}:
        assert result.bound == "n/a"


@given(known(), known())
def test_a_ratio_is_na_only_if_it_may_be_as_small_and_as_large_as_you_like(
    a: tuple[Quantity, float], b: tuple[Quantity, float]
) -> None:
    # a ratio of hard positive claims is n/a only where it may be as small and as large as one likes
    result = combine(a[0], "/", b[0])
    if result.bound == "n/a" and "~" not in (a[0].bound, b[0].bound):
        assert (a[0].bound, b[0].bound) in {(">=", ">="), ("<=", "<=")}


def test_figures_that_do_not_compare_are_refused_and_the_error_names_both() -> None:
    nine = period("2025-01", "2025-09")
    with pytest.raises(Refused, match="period 2024 with Jan-Sep 2025"):
        claim("=", 1) / claim("=", 1, over=nine)
    with pytest.raises(Refused, match="period 2024 with as of 2024-12"):
        claim("=", 1) / claim("=", 1, over=period("", "2024-12"))
    for one, other in (("recognised", "run-rate"), ("stock", "flow"), ("net", "gross"), ("daily", "weekly")):
        with pytest.raises(Refused, match=f"{one} with {other}"):
            claim("=", 1, basis=one) / claim("=", 1, basis=other)
    with pytest.raises(Refused, match="time flow with run-rate"):
        of_fact(FACTS["A15"]) / of_fact(FACTS["D06"])
    with pytest.raises(Refused, match="USD with user"):
        claim("=", 1) + replace(claim("=", 1), unit=(("user", 1),))


def test_force_stamps_the_result_and_results_made_from_it_and_bounds_nothing() -> None:
    forced = combine(claim("=", 6, basis="stock"), "/", claim("=", 3, basis="flow"), force=True)
    assert (forced.text(), forced.stamps) == ("~ 2", ("time stock with flow",))
    assert (exact(2, "ratio", "two") * forced).stamps == ("time stock with flow",)


def test_a_state_of_one_day_is_approximate_over_a_period_but_a_contract_keeps_its_bound() -> None:
    rate = of_fact(FACTS["A04"])
    assert (held(rate, YEAR).text(), held(rate, YEAR, by_contract=True).text()) == ("~ 0.2", "= 0.2")
    assert held(rate, YEAR).assumptions == ("A04 (as of 2025-11) held over 2024",)
    prompts = held(of_fact(FACTS["X01"]), period("2025-01", "2025-09"))
    assert prompts.text() == "~ 2.5e+09"  # at least 2.5e9 in July is no floor of January


def test_a_result_has_the_formula_ids_statuses_and_layers_of_its_inputs() -> None:
    result = of_fact(FACTS["X15"]) / of_fact(FACTS["A11"])
    assert (result.terms, result.ids, result.statuses) == ("X15 / A11", ("X15", "A11"), ("leaked", "reported"))
    assert (result.layers, str(result.period)) == (("outside", "articles"), "Jan-Jun 2025")
    one = exact(1, "ratio", "one")
    assert (one / (one - one * one + one)).terms == "one / (one - (one * one) + one)"


def test_a_result_has_the_unit_of_its_formula() -> None:
    price = exact(2, "USD/GPU-hour", "price")
    gpus = of_fact(FACTS["A16"]) / (price * length(FACTS["A16"].period, "hour"))
    assert (gpus.unit_text, gpus.value) == ("GPU", 8.65e9 / 2 / (273 * 24))
    assert (exact(1, "ratio", "one") / price).unit_text == "GPU-hour/USD"


def test_growth_compares_rates_and_names_both_periods() -> None:
    result = growth(of_fact(FACTS["A16"]), of_fact(FACTS["A15"]))
    assert f"{result.value:.6g}" == "3.03509"  # (8.65 / 9) / (3.8 / 12)
    assert (str(result.period), result.unit_text) == ("2024 -> Jan-Sep 2025", "ratio")
    assert root(exact(32, "ratio", "g"), 5).text() == "= 2"
    for bad in (of_fact(FACTS["A15"]), about(exact(-8, "ratio", "g"))):
        with pytest.raises(Refused, match="not of a positive ratio"):
            root(bad, 2)


def test_mean_over_time_is_linear_between_dates_and_flat_outside() -> None:
    states = [
        replace(claim("=", 100), period=period("", "2024-01-10"), unit=(), terms="a"),
        replace(claim("=", 200), period=period("", "2024-01-20"), unit=(), terms="b"),
    ]
    # ten days at 100, then 110, 120 … 200, then eleven days at 200
    mean = (10 * 100 + sum(range(110, 201, 10)) + 11 * 200) / 31
    result = time_mean(states, period("2024-01", "2024-01"))
    assert (result.bound, result.terms) == ("~", "time_mean(a, b)")
    assert result.value == pytest.approx(mean)


def test_a_fact_without_a_number_and_a_division_by_zero_are_refused() -> None:
    with pytest.raises(HarnessError, match=r"A06 .* gives no number: 'undisclosed'"):
        of_fact(FACTS["A06"])
    for zero in ("=", "~"):
        with pytest.raises(HarnessError, match="divides by zero"):
            claim("=", 1) / claim(zero, 0)


def test_about_and_rebased_record_their_assumption() -> None:
    assert about(claim(">=", 2)).text() == "~ 2"
    net = rebased(of_fact(FACTS["A01"]), "gross", "net is at most gross")
    assert (net.basis, net.assumptions) == (frozenset({"flow", "gross"}), ("net is at most gross",))
    assert (claim("=", 1e300) / claim("=", 1e-300)).figure("x").value is None  # too large for a number
    figure = (claim(">=", 6) / claim(">=", 3)).figure("x")
    assert (figure.value, figure.reason, figure.low) == (None, "its inputs bound nothing together", None)
