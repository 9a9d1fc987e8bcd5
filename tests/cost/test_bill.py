"""Costs against sums done by hand, and the parts of their interval that are measured and assumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harness
from harness.config import overrides
from harness.cost.bill import Costs, annuity, cost_of_run, owned_usd_per_hour, priced, tornado
from harness.cost.gpus import Gpu, find_gpu, read_rows
from harness.cost.scenario import Scenario, parse_scenario, rental_prices
from harness.errors import HarnessError
from harness.model import Device, Figure, Status, Summary

DATA = Path(harness.__file__).parent / "data"
GPUS = read_rows("gpus.csv", Gpu)
PRICES = rental_prices()
H100 = Device("gpu", "NVIDIA H100 80GB HBM3", 2)


def summary(
    status: Status = "measured", low: float | None = None, high: float | None = None, value: float | None = 1000.0
) -> Summary:
    rates = {"output_tokens_per_s": 1.0, "total_tokens_per_s": 4.0, "requests_per_s": 0.01}
    figures = tuple(
        Figure(
            name, None if value is None else value * k, "1/s", status, low and low * k, high and high * k, reason="x"
        )
        for name, k in rates.items()
    )
    return Summary("r", "complete", figures, {})


def scenario(name: str, *words: str) -> Scenario:
    return parse_scenario((DATA / f"scenarios/{name}.yaml").read_text(), f"{name}.yaml", overrides(words))


def cost(found_scenario: Scenario, device: Device = H100, of: Summary | None = None, n: int = 2**14) -> Costs:
    return cost_of_run(of or summary(), device, priced(found_scenario, device, GPUS, PRICES), n)


def exactly(name: str, value: float, unit: str) -> Figure:
    near: Any = pytest.approx(value)
    return Figure(name, near, unit, "derived", interval="p5-p95")


CERTAIN = ("price.usd_per_hour=3.6", "serving.utilisation=0.5", "serving.overhead=1.2", "query.requests=3")


def test_a_bill_equals_the_calculation_by_hand() -> None:
    # 2 GPUs at USD 3.6 an hour are USD 0.002 a second; x 1.2 / 0.5 is USD 0.0048 a second of serving.
    assert cost(scenario("on-demand", *CERTAIN)).figures == (
        exactly("usd_per_hour", 7.2, "USD/hour"),
        exactly("usd_per_million_output_tokens", 4.8, "USD/1e6 token"),
        exactly("usd_per_million_total_tokens", 1.2, "USD/1e6 token"),
        exactly("usd_per_query", 0.0048 / 10 * 3, "USD/query"),
    )


def test_the_smoke_scenario_prices_every_vcpu() -> None:
    found = cost(scenario("cpu-smoke"), Device("cpu", "Neoverse-V1", 2))
    assert found.figures[0].value == pytest.approx(0.0816)
    assert found.figures[1].value == pytest.approx(0.0816 / 3600 * 1e6 / 1000)
    assert any("CPU" in note for note in found.notes)


@settings(deadline=None)  # other work on the machine must not fail it
@given(st.floats(0.01, 100), st.floats(0.01, 1), st.floats(1, 3), st.floats(0.1, 1e5))
def test_the_cost_of_all_tokens_is_the_whole_bill(
    price: float, utilisation: float, overhead: float, rate: float
) -> None:
    given_scenario = scenario(
        "on-demand", f"price.usd_per_hour={price}", f"serving.utilisation={utilisation}", f"serving.overhead={overhead}"
    )
    found = {f.name: f.value or 0.0 for f in cost(given_scenario, of=summary(value=rate), n=4).figures}
    tokens_in_paid_hour = rate * 3600 * utilisation
    bill = found["usd_per_hour"] * overhead
    assert found["usd_per_million_output_tokens"] * tokens_in_paid_hour / 1e6 == pytest.approx(bill)
    assert found["usd_per_million_total_tokens"] * 4 * tokens_in_paid_hour / 1e6 == pytest.approx(bill)


@pytest.mark.parametrize(
    ("name", "device"),
    # In the second only the price is drawn: the rate must be independent of the first dimension.
    [("on-demand", H100), ("cpu-smoke", Device("cpu", "x", 2))],
)
def test_draws_agree_with_the_closed_form_where_all_is_lognormal(name: str, device: Device) -> None:
    price = "price.usd_per_hour={lognormal: {p5: 1.75, p95: 6.16}, status: reported}"
    made = scenario(name, "serving.utilisation=0.5", "serving.overhead=1.2", price)
    found = cost(made, device, summary(low=800.0, high=1250.0))
    sigma = {
        "price.usd_per_hour": np.log(6.16 / 1.75) / (2 * 1.644854),
        "output_tokens_per_s": np.log(1250 / 800) / (2 * 1.959964),
    }
    total = np.sqrt(sum(s**2 for s in sigma.values()))
    median = 2 / 3600 * 1e6 * 1.2 / (0.5 * 1000) * np.sqrt(1.75 * 6.16)
    figure, mean = (f for f in found.figures if f.name.startswith("usd_per_million_output_tokens"))
    expected = [median * np.exp(z * total) for z in (-1.644854, 0, 1.644854)]
    assert [figure.low, figure.value, figure.high] == pytest.approx(expected, rel=0.01)
    assert mean.value == pytest.approx(median * np.exp(total**2 / 2), rel=0.01)
    shares = found.shares["usd_per_million_output_tokens"]
    by_status = dict(zip(("reported", "measured"), (s**2 / total**2 for s in sigma.values()), strict=True))
    assert shares == pytest.approx({"assumed": 0.0, **by_status}, abs=0.01)


def test_a_note_names_the_costs_whose_rate_has_no_interval() -> None:
    whole = summary(low=800.0, high=1250.0)
    one = replace(whole, figures=(*whole.figures[:2], replace(whole.figures[2], low=None, high=None)))
    notes = [cost(scenario("on-demand"), of=of).notes for of in (whole, one)]
    named = [[note.partition(":")[0] for note in found if "no interval" in note] for found in notes]
    assert named == [[], ["usd_per_query"]]


def test_the_tornado_is_the_closed_form_and_opens_an_owned_price_up() -> None:
    rented = priced(scenario("on-demand", "serving.utilisation=0.5", "serving.overhead=1.2"), H100, GPUS, PRICES)
    owned = priced(scenario("owned-h100"), H100, GPUS, PRICES)
    rate = summary(low=800.0, high=1250.0)["output_tokens_per_s"]
    found = {name: share for name, (_, share) in tornado(rented, rate).items()}
    variance = {
        "price.usd_per_hour": (np.log(7.18 / 2.72) / 3.289707) ** 2,
        rate.name: (np.log(1.5625) / 3.919928) ** 2,
    }
    for name, part in variance.items():
        assert found[name] == pytest.approx(part / sum(variance.values()), abs=0.002)
    assert found["serving.overhead"] == found["serving.utilisation"] == 0
    opened = {name: share for name, (_, share) in tornado(owned, rate).items()}
    assert next(iter(opened)) == "serving.utilisation"
    assert opened["owned.capital_usd"] > opened["owned.usd_per_kwh"] > 0
    assert sum(opened.values()) == pytest.approx(1, abs=0.03)


def test_an_input_that_can_be_zero_has_a_share() -> None:
    owned = priced(scenario("owned-h100", "owned.staff_usd_per_hour={empirical: [0, 1]}"), H100, GPUS, PRICES)
    assert 0 < tornado(owned, summary()["output_tokens_per_s"])["owned.staff_usd_per_hour"][1] < 1


def test_twice_the_price_is_twice_the_cost() -> None:
    once = cost(scenario("on-demand", "price.usd_per_hour={uniform: {low: 1, high: 2}}"))
    twice = cost(scenario("on-demand", "price.usd_per_hour={uniform: {low: 2, high: 4}}"))
    for a, b in zip(once.figures, twice.figures, strict=True):
        for one, two in ((a.value, b.value), (a.low, b.low), (a.high, b.high)):
            assert two == (None if one is None else pytest.approx(2 * one))


def test_electricity_is_in_the_price_of_an_owned_gpu_and_never_on_top_of_a_rent() -> None:
    def hourly(name: str, *words: str) -> float:
        return cost(scenario(name, *words)).figures[0].value or 0.0

    assert hourly("owned-h100", "owned.usd_per_kwh=0.4") > hourly("owned-h100", "owned.usd_per_kwh=0.1")
    expected = pytest.approx(2 * (1.93 * 5.4) ** 0.5, rel=1e-3)
    assert hourly("reserved", "owned.usd_per_kwh=0.4", "energy.pue=3") == expected
    assert hourly("reserved") == expected


def test_the_price_of_an_owned_gpu_equals_the_calculation_by_hand() -> None:
    # 35064 USD over 4 years of 8766 h without interest is 1.0; 2 kW x 1.5 x 0.1 = 0.3; 2 x 73.05 / 730.5 = 0.2; + 0.25
    x = {
        "owned.capital_usd": 35064.0, "owned.life_years": 4.0, "owned.cost_of_capital": 0.0, "owned.power_kw": 2.0,
        "owned.usd_per_kwh": 0.1, "energy.pue": 1.5, "owned.hosting_usd_per_kw_month": 73.05,
        "owned.staff_usd_per_hour": 0.25,
    }  # fmt: skip
    assert owned_usd_per_hour({key: np.array(value) for key, value in x.items()}) == pytest.approx(1.75)
    assert annuity(0.05, 5) * sum(1.05**-year for year in range(1, 6)) == pytest.approx(1)


ENERGY = (*CERTAIN, "energy.pue=1.2", "energy.host_share=0.5", "energy.idle_w=100")


def with_energy(value: float | None = 720.0) -> Summary:
    joules = Figure("joules_per_request", value, "J", "measured", reason=None if value else "the GPU was lost")
    return Summary("r", "complete", (*summary().figures, joules), {})


def test_the_energy_of_a_query_equals_the_calculation_by_hand() -> None:
    # A query is 3 requests of 720 J, 0.6 Wh; host half of that; 2 GPUs x 3 / 10 s, idle as long as busy, at 100 W.
    found = {f.name: f.value for f in cost(scenario("on-demand", *ENERGY), of=with_energy()).figures}
    stack = {"accelerator": 0.6, "host": 0.3, "idle": 60 / 3600, "overhead": 0.2 * (0.9 + 60 / 3600)}
    assert {rung: found[f"wh_per_query.{rung}"] for rung in stack} == pytest.approx(stack)
    assert found["wh_per_query"] == pytest.approx(sum(stack.values()))


def test_half_the_utilisation_is_twice_the_money_but_only_idle_energy() -> None:
    full, half = (
        {f.name: f.value or 0.0 for f in cost(scenario("on-demand", *ENERGY, u), of=with_energy()).figures}
        for u in ("serving.utilisation=1", "serving.utilisation=0.5")
    )
    assert half["usd_per_query"] == pytest.approx(2 * full["usd_per_query"])
    assert half["wh_per_query"] - full["wh_per_query"] == pytest.approx(1.2 * 60 / 3600)


def test_an_input_about_one_gpu_is_taken_to_another_by_their_power_limits() -> None:
    def idle_w(device: str, *words: str) -> tuple[float, ...]:
        used = priced(scenario("on-demand", *words), Device("gpu", device, 1), GPUS, PRICES)
        return used.inputs["energy.idle_w"].distribution.parameters

    assert idle_w("H100") == (90, 125, 140)
    assert idle_w("B200") == pytest.approx([x * 1000 / 700 for x in (90, 125, 140)])
    assert idle_w("L4") == pytest.approx([x * 72 / 700 for x in (90, 125, 140)])
    assert idle_w("B200", "energy.idle_w=50") == (50,)
    wrong = scenario("on-demand", "energy.idle_w={value: 50, unit: W, about: H1OO}")
    with pytest.raises(HarnessError, match="about 'H1OO', which is no GPU"):
        priced(wrong, H100, GPUS, PRICES)


def test_missing_energy_or_assumptions_give_a_reason() -> None:
    lost = cost(scenario("on-demand", *ENERGY), of=with_energy(None)).figures[-1]
    assert lost.text() == "n/a (joules_per_request is not known: the GPU was lost)"
    on_cpu = cost(scenario("cpu-smoke"), Device("cpu", "x", 2), with_energy()).figures[-1]
    assert on_cpu.text() == "n/a (scenario 'cpu-smoke' has no energy.pue, energy.host_share, energy.idle_w)"


def test_a_simulated_rate_gives_simulated_costs() -> None:
    assert {f.status for f in cost(scenario("on-demand"), of=summary(status="simulated")).figures} == {
        "simulated",
        "derived",
    }
    assert {f.status for f in cost(scenario("cpu-smoke"), Device("none", None, 1)).figures} == {"simulated"}


@pytest.mark.parametrize("name", ["on-demand", "owned-h100", "cpu-smoke"])
def test_a_simulated_run_has_no_price_under_any_scenario(name: str) -> None:
    found = cost(scenario(name), Device("none", None, 1)).figures
    assert {figure.value for figure in found if figure.unit.startswith("USD")} == {None}
    assert "the engine is simulated" in str(found[0].reason)


@pytest.mark.parametrize(
    ("device", "of", "words"),
    [
        (Device("gpu", "NVIDIA Zonk 9000", 1), None, "NVIDIA Zonk 9000"),
        (Device("gpu", None, 1), None, "--set price.usd_per_hour"),
        (Device("gpu", "NVIDIA H20", 1), None, "no on-demand price of H20"),
        (H100, summary(value=None), "output_tokens_per_s is not known: x"),
        (H100, summary(value=0.0), "output_tokens_per_s is 0"),
        (H100, Summary("r", "complete", (), {}), "is not recorded"),
    ],
)
def test_an_unknown_price_or_rate_gives_no_cost_but_a_reason(device: Device, of: Summary | None, words: str) -> None:
    figure = next(
        f for f in cost(scenario("on-demand"), device, of).figures if f.name == "usd_per_million_output_tokens"
    )
    assert figure.value is None
    assert words in figure.text()


def test_a_scenario_of_another_device_is_refused() -> None:
    for name, device in (
        ("cpu-smoke", H100),
        ("on-demand", Device("cpu", "x", 2)),
        ("owned-h100", Device("gpu", "NVIDIA L4", 1)),
    ):
        with pytest.raises(HarnessError, match="scenario"):
            cost(scenario(name), device)


@pytest.mark.parametrize(
    ("nvml", "row"),
    [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA H100 NVL", "H100 NVL"),
     ("NVIDIA H200", "H200"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
     ("NVIDIA A100 80GB PCIe", "A100-80GB PCIe"), ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("NVIDIA L40S", "L40S"),
     ("NVIDIA L4", "L4"), ("NVIDIA GB200", "GB200"), ("H100", "H100"), ("Tesla V100", None),
     ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None)],
)  # fmt: skip
def test_nvml_names_find_their_row(nvml: str, row: str | None) -> None:
    found = find_gpu(nvml, GPUS)
    assert (found and found.name) == row
