"""The rules of the verdict, on both sides of each boundary."""

from __future__ import annotations

import math

import pytest

from harness.facts.appraisal import appraise, shipped_book, with_spend
from harness.facts.claims import at_least, exact
from harness.facts.verdict import claim, deciding, place, plausible, power


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
    from dataclasses import replace

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


@pytest.mark.parametrize(
    ("spend", "said"), [(0.5e9, "lower than believed"), (8.65e9, "plausible:"), (200e9, "not plausible")]
)
def test_the_verdict_follows_the_bill(spend: float, said: str) -> None:
    assert dict(appraise([], with_spend(shipped_book(), spend)).verdict)["bill"].startswith(said)


def test_a_dear_bill_is_plausible_only_with_named_ends() -> None:
    said = dict(appraise([], with_spend(shipped_book(), 45e9)).verdict)["bill"]
    assert said.startswith("plausible only with ")
    assert "high " in said.partition(":")[0]
