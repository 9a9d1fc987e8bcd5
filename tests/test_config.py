from __future__ import annotations

import pytest

from harness.config import read_yaml
from harness.errors import HarnessError


def test_numbers_are_those_of_json_and_all_else_is_text() -> None:
    text = "{a: 1e3, b: 1.5E-3, c: -.5, d: +2, e: 0, f: .inf, g: 2026-11-21, h: 1:30, i: 0x1F, j: 010, k: true, l: ~}"
    assert read_yaml(text, "x")[0] == {
        "a": 1000.0, "b": 0.0015, "c": -0.5, "d": 2, "e": 0, "f": float("inf"), "g": "2026-11-21", "h": "1:30",
        "i": "0x1F", "j": "010", "k": True, "l": None,
    }  # fmt: skip


def test_a_bomb_is_refused_before_it_unfolds() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 64))
    with pytest.raises(HarnessError, match=r"^x.yaml:2: not YAML: an alias is not taken here"):
        read_yaml(bomb, "x.yaml")


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000, "a: \x00", "*a", "!!python/object:os.system {}", "{[]: 1}"])
def test_what_is_not_yaml_is_said_in_a_line(text: str) -> None:
    with pytest.raises(HarnessError, match="not YAML") as raised:
        read_yaml(text, "x.yaml")
    assert "\n" not in raised.value.what
