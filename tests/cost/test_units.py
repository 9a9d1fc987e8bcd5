"""Units convert by their words; a word that is unknown and a unit of another kind are refused."""

import pytest

from harness.cost.scenario import factor


@pytest.mark.parametrize(
    ("given", "wanted", "by"),
    [
        ("percent", "1", 0.01),
        ("cent/hour", "USD/hour", 0.01),
        ("USD/day", "USD/hour", 1 / 24),
        ("kW", "W", 1000.0),
        ("USD/MWh", "USD/kWh", 0.001),
        ("USD/kW-hour", "USD/kWh", 1.0),
        ("USD/MW/year", "USD/kW/month", 0.001 / 12),
        ("percent/month", "1/year", 0.12),
        ("minute", "second", 60.0),
    ],
)
def test_a_unit_converts_into_another_of_its_kind(given: str, wanted: str, by: float) -> None:
    assert factor(given, wanted) == pytest.approx(by)


@pytest.mark.parametrize("given", ["zorkmid/hour", "zorkmid/zorkmid", "USD/", "", "USD per hour"])
def test_a_unit_with_an_unknown_word_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=f"unknown unit '{given}'"):
        factor(given, "USD/hour")


@pytest.mark.parametrize("given", ["USD", "hour/USD", "W", "1"])
def test_a_unit_of_another_kind_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=f"unit '{given}' is not a unit of USD/hour"):
        factor(given, "USD/hour")
