from __future__ import annotations

import time

import pytest

from harness.config import low_high, overrides, read_yaml
from harness.errors import HarnessError


def test_numbers_are_those_of_json_and_other_scalars_are_text() -> None:
    text = "{a: 1e3, b: 1.5E-3, c: -.5, d: +2, e: 0, f: .inf, g: 2026-11-21, h: 1:30, i: 0x1F, j: 010, k: true, l: ~}"
    assert read_yaml(text, "x")[0] == {
        "a": 1000.0, "b": 0.0015, "c": -0.5, "d": 2, "e": 0, "f": float("inf"), "g": "2026-11-21", "h": "1:30",
        "i": "0x1F", "j": "010", "k": True, "l": None,
    }  # fmt: skip


def test_a_yaml_bomb_is_refused_before_it_expands() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 64))
    with pytest.raises(HarnessError, match=r"^x.yaml:2: not YAML: an alias is not allowed"):
        read_yaml(bomb, "x.yaml")


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000, "a: \x00", "*a", "!!python/object:os.system {}", "{[]: 1}"])
def test_an_error_for_invalid_yaml_is_one_line(text: str) -> None:
    with pytest.raises(HarnessError, match="not YAML") as raised:
        read_yaml(text, "x.yaml")
    assert "\n" not in raised.value.what


def test_set_takes_yaml_and_the_last_value_of_a_key_wins() -> None:
    words = ["a.b=1e3", " c = {d: [x, '2']}", "a.b=null", "c.e=2026-01-02", "f="]
    assert overrides(words) == {"c": {"d": ["x", "2"]}, "a.b": None, "c.e": "2026-01-02", "f": None}
    assert list(overrides(["a=1", "b=2", "a=3"])) == ["b", "a"]


def test_overrides_given_as_a_map_are_not_parsed() -> None:
    assert overrides({"a.b": "1e3"}) == {"a.b": "1e3"}


@pytest.mark.parametrize(
    ("word", "what", "fix"),
    [
        ("price.usd", "--set 'price.usd' is not of the form KEY=VALUE", "--set price.usd=VALUE"),
        ("=4", "--set '=4' is not of the form KEY=VALUE", "--set load.users=4"),
        ("load.=4", "--set 'load.=4' is not of the form KEY=VALUE", "--set load.users=4"),
        ("seed=[1", "--set seed: not YAML: expected ',' or ']'", "quotes"),
        ("seed=&x [*x]", "--set seed: not YAML: an alias is not allowed", "quotes"),
        ("seed=" + "[" * 5000, "--set seed: not YAML: ", "quotes"),
        ("seed=" + "9" * 5000, "--set seed: not YAML: ", "quotes"),
    ],
)
def test_a_set_word_of_another_form_is_refused_by_name(word: str, what: str, fix: str) -> None:
    with pytest.raises(HarnessError) as raised:
        overrides([word])
    assert raised.value.what.startswith(what)
    assert fix in raised.value.fix


@pytest.mark.parametrize("value", ["", "lots", "1:2:3", "1:", ":", True, None, [1, 2], {"low": 1}])
def test_a_value_that_is_not_a_number_or_range_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        low_high(value)


def test_a_text_too_long_or_too_deep_is_refused_before_it_is_parsed() -> None:
    for text, word in (("a: 1\n" * 2_100_000, "characters"), ("[" * 60 + "]" * 60, "inside each other")):
        begun = time.process_time()
        with pytest.raises(HarnessError, match=word):
            read_yaml(text, "x.yaml")
        assert time.process_time() - begun < 1
    assert read_yaml("[" * 40 + "]" * 40, "x.yaml")[0]
