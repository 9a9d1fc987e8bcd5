"""CO2 and water of electricity, by the real package."""

from __future__ import annotations

import sys

import pytest
from ecologits.electricity_mix_repository import electricity_mixes

from harness.cost.bill import Costs, in_zone
from harness.errors import HarnessError
from harness.model import Figure

FIGURES = (
    Figure("usd_per_query", 0.1, "USD/query", "derived"),
    Figure("wh_per_query", 2.0, "Wh/query", "derived", 1.0, 4.0),
    Figure("wh_per_query.mean", 2.1, "Wh/query", "derived"),
    Figure("wh_per_million_output_tokens", None, "Wh/1e6 token", "derived", reason="no joules"),
)
COSTS = Costs("on-demand", FIGURES, {}, (), ())


def test_co2_and_water_are_those_of_a_kwh_times_the_energy() -> None:
    mix = electricity_mixes.find_electricity_mix("DEU")
    assert mix is not None
    found = in_zone(COSTS, "DEU")
    co2, water = found["co2_g_per_query"], found["water_ml_per_query"]
    assert (co2.value, co2.low, co2.high) == pytest.approx((2 * mix.gwp, mix.gwp, 4 * mix.gwp))
    assert (water.value, co2.unit, water.unit) == (2 * mix.wue, "g/query", "mL/query")
    assert found["co2_g_per_million_output_tokens"].reason == "no joules"
    assert len(found.figures) == len(COSTS.figures) + 4


def test_a_zone_whose_values_are_the_worlds_says_so() -> None:
    warned = next(each for each in electricity_mixes.list_electricity_mixes() if each.warnings)
    assert len(in_zone(COSTS, warned.zone).notes) > len(in_zone(COSTS, "DEU").notes)


def test_without_a_zone_nothing_is_added_and_mistakes_name_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_zone(COSTS, None) is COSTS
    with pytest.raises(HarnessError, match="did you mean 'USA'"):
        in_zone(COSTS, "US")
    monkeypatch.setitem(sys.modules, "ecologits.electricity_mix_repository", None)
    with pytest.raises(HarnessError, match="-m pip install"):
        in_zone(COSTS, "USA")
