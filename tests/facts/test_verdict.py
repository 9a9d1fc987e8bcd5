"""The rules of the verdict, on both sides of each boundary."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from harness.facts.appraisal import appraise, shipped_book, with_spend
from harness.facts.book import Book
from harness.facts.claims import at_least, exact
from harness.facts.gap import Factor, claim, deciding, moved, place, plausible, power
from harness.model import Figure


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (None, "n/a"), (0.0, "below belief"), (0.049, "below belief"), (0.05, "low end"), (0.249, "low end"),
        (0.25, "as believed"), (0.75, "as believed"), (0.751, "high end"), (0.95, "high end"), (0.951, "above belief"),
    ],
)  # fmt: skip
def test_a_value_lies_at_an_end_of_the_belief_in_its_outer_quarters(share: float | None, said: str) -> None:
    assert place(share) == said


@pytest.mark.parametrize(
    ("reach", "said"),
    [
        (0.049, "not plausible"), (0.05, "plausible only with"), (0.249, "plausible only with"), (0.25, "plausible"),
        (0.95, "plausible"), (0.951, "lower than believed"),
    ],
)  # fmt: skip
def test_a_bill_is_plausible_if_the_beliefs_reach_it_with_one_chance_in_four(reach: float, said: str) -> None:
    assert plausible(reach) == said


@pytest.mark.parametrize(
    ("bill", "whole", "said"),
    [
        ((1.9, 1.99), None, "neither shown nor excluded"),  # other suppliers may add any amount
        ((1.9, 1.99), (1.9, 1.99), "excluded"),
        ((1.9, 2.0), (1.9, 1.99), "neither shown nor excluded"),
        ((2.0, 3.0), None, "shown"),  # the whole is at least the bill
    ],
)
def test_twice_revenue_is_shown_by_a_lower_and_excluded_by_both_upper_bounds(
    bill: tuple[float, float], whole: tuple[float, float] | None, said: str
) -> None:
    low, high = bill
    q = replace(exact(low, "ratio", "bill"), high=high)
    all_of_it = at_least(q) if whole is None else replace(q, low=whole[0], high=whole[1])
    assert claim(2, q, all_of_it) == said
    assert math.isinf(at_least(q).high)


@pytest.mark.parametrize(
    ("price", "said"),
    [((2.1, 3.0), "fits"), ((2.09, 3.0), "fits in part"), ((1.0, 2.1), "fits in part"), ((1.0, 2.09), "does not fit")],
)
def test_a_price_fits_the_power_if_its_low_end_is_above_the_floor(price: tuple[float, float], said: str) -> None:
    assert power(price, 2.1) == said


def test_the_widest_beliefs_decide() -> None:
    found = appraise([]).agreement
    assert found is not None
    widths = [f.width for f in deciding(found.factors)]
    assert widths == sorted(widths, reverse=True)
    assert len(widths) == 3
    assert widths[-1] >= max(f.width for f in found.factors if f not in deciding(found.factors))


def test_a_belief_decides_from_a_width_of_2() -> None:
    def factor(high: float) -> Factor:
        belief = Figure("f", 1, "ratio", "derived", 1.0, high)
        return Factor("f", "f", belief, belief, belief, 0.5)

    assert [f.width for f in deciding([factor(2.0), factor(1.99), factor(3.0)])] == [3.0, 2.0]


def test_the_factors_that_move_furthest_are_named_with_their_direction() -> None:
    belief = Figure("f", 1, "ratio", "derived", 1.0, 2.0)
    shares = {"a": 0.9, "b": 0.6, "c": 0.05, "d": 0.2, "e": None}
    assert moved([Factor(n, n, belief, belief, belief, share) for n, share in shares.items()]) == [
        "low c", "high a", "low d",
    ]  # fmt: skip


def changed(**values: float) -> Book:
    """The shipped book with other numbers of facts."""
    book = shipped_book()
    return replace(
        book, facts={**book.facts} | {i: replace(book[i], value=value, half_digit=0.0) for i, value in values.items()}
    )


@pytest.mark.parametrize(
    ("facts", "topic", "said"),
    [
        # revenue of at most (2 + 4.5) / 2 = 3.25 bn: the bill is at least 8.645 / 3.25 = 2.66 times that
        ({"A11": 2e9, "E09": 4.5e9}, "claims", "'more than it earns' and 'twice what it earns': shown"),
        # at most (4 + 8.5) / 2 = 6.25 bn: at least 1.38
        ({"A11": 4e9, "E09": 8.5e9}, "claims", "'more than it earns': shown; 'twice what it earns': neither"),
        ({"A16": 2e9}, "claims", "'more than it earns' and 'twice what it earns': neither"),
        # 8.65e9 / 6552 / ((0.6 + 1.14 * 137 / 365) * 1e6 / 1.73) = 2.222; the p5 of the belief is 2.2
        ({"X166": 1.74}, "power", "below 2.2"),
        ({"X166": 1.78}, "power", "the believed price needs no more"),  # 2.189
        ({"X166a": 0.2, "X166": 0.6}, "power", "every believed price buys more"),  # 6.5: above the p95
        ({"X01": 2.5e10, "X03": 18e10, "X162": 3e10, "X163": 2.6e10, "X02": 1e10}, "bill", "lower than believed"),
        ({"X01": 1e8, "X03": 7e8, "X162": 1e8, "X163": 1e8, "X02": 1e8}, "bill", "not plausible"),
    ],
)
def test_the_verdict_follows_the_facts(facts: dict[str, float], topic: str, said: str) -> None:
    assert dict(appraise([], changed(**facts)).verdict)[topic].startswith(said)


@pytest.mark.parametrize(
    ("spend", "said"), [(0.5e9, "lower than believed"), (8.65e9, "plausible:"), (200e9, "not plausible")]
)
def test_the_verdict_follows_the_bill(spend: float, said: str) -> None:
    assert dict(appraise([], with_spend(shipped_book(), spend)).verdict)["bill"].startswith(said)


def test_a_dear_bill_is_plausible_only_with_named_ends() -> None:
    said = dict(appraise([], with_spend(shipped_book(), 45e9)).verdict)["bill"]
    assert said.startswith("plausible only with ")
    assert "high " in said.partition(":")[0]
