"""The stored description of the machine."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from harness.measure import environment


def test_the_environment_is_json_and_describes_the_machine() -> None:
    found = json.loads(json.dumps(environment.capture()))
    assert found["cpu"]["cores_usable"] >= 1
    assert found["memory_bytes"] > 1e8
    assert found["packages"]["numpy"]
    assert isinstance(found["gpus"], list)
    assert (found["nvml"] is None) == bool(found["gpus"] or found["driver"])


def test_only_settings_that_affect_engines_are_stored_and_no_secret() -> None:
    variables = {
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "",
        "VLLM_API_KEY": "sk-x",
        "PATH": "/bin",
        "HOME": "/root",
    }
    assert environment.settings(variables) == {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "2",
        "VLLM_API_KEY": "(set)",
    }


def test_the_end_of_a_run_adds_swapped_bytes_and_debug_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = environment.capture()
    before = {way: count - 5_000_000 for way, count in captured["swap"].items()}
    monkeypatch.setitem(sys.modules, "torch.version", types.SimpleNamespace(debug=True))
    found = environment.ended({**captured, "swap": before})
    assert all(moved >= 5_000_000 for moved in found["swap"].values())
    assert "a debug build of torch" in found["debug"]
    assert {**found, "swap": 0, "debug": 0} == {**captured, "swap": 0, "debug": 0}
    assert environment.ended({})["swap"] == {}


def test_governors_are_listed_once_each_and_may_be_absent(tmp_path: Path) -> None:
    for number, governor in enumerate(("powersave", "performance", "powersave")):
        path = tmp_path / f"cpu{number}" / "cpufreq" / "scaling_governor"
        path.parent.mkdir(parents=True)
        path.write_text(f"{governor}\n")
    assert environment.governors(tmp_path) == ["performance", "powersave"]
    assert environment.governors(tmp_path / "none") == []
