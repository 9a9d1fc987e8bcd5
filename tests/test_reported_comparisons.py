"""The comparisons against figures computed by hand from the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.reported.algebra import Quantity
from harness.reported.comparisons import Line, revenue_floor, spend_per_query, spend_per_revenue
from harness.reported.records import Book, read_book, read_sources

DATA = Path(__file__).parents[1] / "harness" / "data"


def shipped() -> Book:
    texts = {name: (DATA / name).read_text("utf-8") for name in ("sources.csv", "facts.csv", "outside_facts.csv")}
    return read_book(list(texts.items())[1:], read_sources(texts["sources.csv"]))


def six(result: object, end: str = "value") -> str:
    assert isinstance(result, Quantity)
    return f"{result.bound} {getattr(result, end):.6g}"


def test_the_net_share_over_the_rumoured_rate_is_a_floor() -> None:
    # 493.8e6 / 0.20 and 865.8e6 / 0.20
    assert six(revenue_floor(shipped(), "A01")) == ">= 2.469e+09"
    assert six(revenue_floor(shipped(), "A02")) == ">= 4.329e+09"


def test_spend_over_revenue_by_hand() -> None:
    assert [six(x.result) for x in spend_per_revenue(shipped())] == [
        "<= 1.53908",  # 3.8 / 2.469
        "<= 1.52",  # 3.8 / 2.5
        "~ 0.95",  # 3.8 / 4.0
        "<= 1.99815",  # 8.65 / 4.329
        "<= 1.99769",  # 8.65 / 4.33
        "range 1.09209",  # inside: 8.65 / 7.92056
        "~ 1.09209",  # g = sqrt(8.8 / 4.3) = 1.430563; Q3 = 4.3 g^2 / (1 + g) = 3.62056; 8.65 / 7.92056
        "~ 1.06298",  # d = 1.125; Q3 = 2.15 + 1.6875 = 3.8375; 8.65 / 8.1375
        "~ 0.880407",  # 8.65 / (13.1 * 0.75)
    ]


def test_every_path_that_does_not_fall_by_hand() -> None:
    falls = spend_per_revenue(shipped())[5].result
    assert isinstance(falls, Quantity)
    # nine months in [1.5 * 4.3, (4.3 + 13.1) / 2] = [6.45, 8.7]
    assert [falls.low, falls.high] == pytest.approx([8.65 / 8.7, 8.65 / 6.45])


def test_spend_a_prompt_by_hand() -> None:
    lines: tuple[Line, ...] = spend_per_query(shipped())
    assert [six(x.result) for x in lines] == [
        "~ 0.0103825",  # 3.8e9 / (366 days * 1e9)
        "~ 0.012674",  # 8.65e9 / (273 days * 2.5e9): the floor of July says nothing of the other months, so only ~
        "~ 0.0123219",  # 8.65e9 / (39 weeks * 18e9)
    ]
