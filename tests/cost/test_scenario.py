"""Scenarios: every shipped one reads, and every mistake is refused with its file, key, value and the expected form."""

from pathlib import Path

import pytest
import yaml
from places import ROOT

import harness
from harness.config import overrides
from harness.cost.bill import priced
from harness.cost.gpus import Gpu, read_rows
from harness.cost.scenario import KEYS, PRICE, WORDS, Scenario, factor, parse_scenario, rental_prices
from harness.errors import HarnessError
from harness.model import Device

DATA = Path(harness.__file__).parent / "data"
CPU = (DATA / "scenarios/cpu-smoke.yaml").read_text()


@pytest.mark.parametrize("path", sorted((DATA / "scenarios").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_scenario_reads_and_names_its_sources(path: Path) -> None:
    scenario = parse_scenario(path.read_text(), path.name)
    assert scenario.file.name == path.stem
    assert all(given.source and given.date for given in scenario.inputs.values())


def test_the_example_in_the_documentation_reads() -> None:
    text = (ROOT / "docs/economics.md").read_text().split("```yaml\n")[1].split("```")[0]
    scenario = parse_scenario(text, "docs/economics.md")
    assert scenario.file.correlations == (("query.visible_tokens", "measured", 0.5),)


def test_a_correlation_of_an_unknown_input_is_refused() -> None:
    for link in (
        "[serving.overhead, query.speed, 0.5]",
        "[serving.overhead, serving.overhead, 0.5]",
        "[serving.overhead, measured, 1]",
    ):
        with pytest.raises(HarnessError, match="correlations"):
            parse_scenario(f"{CPU}correlations: [{link}]\n", "mine.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("price.usd_per_hour=-1", ["price.usd_per_hour", "-1", "above 0"]),
        ("price.usd_per_hour=0", ["price.usd_per_hour", "above 0"]),
        ("price.usd_per_hour={value: 3, unit: W}", ["price.usd_per_hour", "'W'", "USD/hour"]),
        ("price.usd_per_hour={value: 3, unit: zorkmid/hour}", ["zorkmid/hour", "USD/hour"]),
        ("price.usd_per_hour={lognormal: {p5: 3, p95: 1}}", ["p5 3.0", "p95 1.0"]),
        ("price.usd_per_hour={lognormal: {p5: 3}}", ["lognormal", "p95"]),
        ("price.usd_per_hour={value: 3, lognormal: {p5: 3, p95: 4}}", ["exactly one"]),
        ("price.usd_per_hour={value: .nan}", ["finite"]),
        ("price.usd_per_hour=cheap", ["price.usd_per_hour", "cheap"]),
        ("price.usd_per_hour={value: '3'}", ["price.usd_per_hour.value", "'3'"]),
        ("price.usd_per_hour=60%", ["price.usd_per_hour", "'60%'", "a number"]),
        ("price.usd_per_hour=3:1", ["p5 3.0", "p95 1.0"]),
        ("serving.utilisation=0.3:0.6", ["serving.utilisation", "no upper limit"]),
        ("serving.utilisation=1.2", ["serving.utilisation is 1.2\n", "at most 1"]),
        ("serving.utilisation={lognormal: {p5: 0.3, p95: 0.6}}", ["serving.utilisation", "no upper limit"]),
        ("serving.utilisation={value: 120, unit: percent}", ["percent", "at most 1"]),
        ("serving.utilization=0.5", ["serving.utilization", "serving.utilisation"]),
        ("price", ["KEY=VALUE"]),
    ],
)
def test_a_wrong_input_is_refused_by_name(override: str, words: list[str]) -> None:
    with pytest.raises(HarnessError) as refused:
        parse_scenario(CPU, "cpu-smoke.yaml", overrides([override]))
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "--set" in str(refused.value)


def test_a_share_may_be_given_in_percent() -> None:
    shares = [parse_scenario(CPU, "x", {"serving.utilisation": x}).inputs["serving.utilisation"] for x in ("60%", 0.6)]
    assert shares[0] == shares[1]


def test_a_range_that_is_set_is_a_lognormal_from_p5_to_p95() -> None:
    key = "price.usd_per_hour"
    ranged, spelt = (
        parse_scenario(CPU, "cpu-smoke.yaml", {key: value}).inputs[key]
        for value in ("0.03:0.04", {"lognormal": {"p5": 0.03, "p95": 0.04}})
    )
    assert ranged == spelt
    assert (ranged.unit, ranged.source, ranged.status) == ("USD/hour", "--set", "assumed")


def test_a_mistake_in_a_scenario_names_its_line_unless_it_was_set() -> None:
    number = next(i for i, line in enumerate(CPU.splitlines(), 1) if "price.usd_per_hour" in line)
    with pytest.raises(HarnessError, match=f"^cpu-smoke.yaml:{number}: inputs.price.usd_per_hour.unit is missing"):
        parse_scenario(CPU.replace("    unit: USD/hour\n", ""), "cpu-smoke.yaml")
    with pytest.raises(HarnessError, match=r"^--set: inputs.price.usd_per_hour.status is 'sure'"):
        parse_scenario(CPU, "cpu-smoke.yaml", {"price.usd_per_hour": {"value": 3, "status": "sure"}})


def test_a_wrong_file_names_itself() -> None:
    without = yaml.safe_load(CPU)
    del without["inputs"]["serving.overhead"]
    for text, words in (
        (CPU.replace("unit: USD/hour", "unit: kg"), ["mine.yaml", "price.usd_per_hour", "'kg'"]),
        (CPU.replace("tier: machine", "tier: free"), ["mine.yaml", "tier", "free"]),
        (yaml.safe_dump(without), ["mine.yaml", "serving.overhead", "missing"]),
        ("[1, 2]", ["mine.yaml", "not a map", "docs/economics.md"]),
        ("a: [", ["mine.yaml", "YAML"]),
    ):
        with pytest.raises(HarnessError) as refused:
            parse_scenario(text, "mine.yaml")
        assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize(("inputs", "fix"), [({}, "add it"), ({"inputs": "x"}, "expected inputs: a map")])
def test_the_names_of_inputs_are_no_values_of_the_map(inputs: dict[str, str], fix: str) -> None:
    content = {key: value for key, value in yaml.safe_load(CPU).items() if key != "inputs"} | inputs
    with pytest.raises(HarnessError) as refused:
        parse_scenario(yaml.safe_dump(content), "mine.yaml")
    assert refused.value.fix == fix


def test_every_input_has_a_unit_that_is_known() -> None:
    assert {factor(key.unit, key.unit) for key in KEYS.values()} == {1.0}


def test_the_documentation_names_every_word_of_a_unit() -> None:
    text = (ROOT / "docs/economics.md").read_text()
    assert [word for word in WORDS if f"`{word}`" not in text] == []


GPUS = read_rows("gpus.csv", Gpu)
PRICES = rental_prices()


def price_of(scenario: Scenario) -> tuple[float, ...]:
    return priced(scenario, Device("gpu", "H100", 1), GPUS, PRICES).inputs[PRICE].distribution.parameters


def test_a_price_comes_from_the_scenario_or_else_from_the_table() -> None:
    on_demand = parse_scenario((DATA / "scenarios/on-demand.yaml").read_text(), "on-demand.yaml")
    reserved = parse_scenario((DATA / "scenarios/reserved.yaml").read_text(), "reserved.yaml")
    assert price_of(on_demand) == (2.72, 7.18)
    assert price_of(reserved) == (1.93, 5.4)
    given = parse_scenario((DATA / "scenarios/on-demand.yaml").read_text(), "x", {"price.usd_per_hour": 2.5})
    assert price_of(given) == (2.5,)
    for gpu in ("H20", None):
        assert "--set price.usd_per_hour" in (priced(on_demand, Device("gpu", gpu, 1), GPUS, PRICES).no_price or "")
