"""The doctor on machines with scripted GPUs, through the real pynvml, and without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import library

from harness.errors import GATE_FAILED
from harness.measure import doctor, environment
from harness.model import Finding


def examined(cwd: Path, variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, list[str]], int, set[str]]:
    """Parts, text and advice by finding, exit code, and modules that the command had loaded."""
    code = (
        "import sys, atexit; from harness.cli import main; sys.argv = 'harness doctor --format json'.split();"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=dict(variables), capture_output=True, text=True, check=False)
    tables: list[dict[str, Any]] = json.loads(done.stdout)["tables"]
    machine, findings = (table["rows"] for table in tables)
    return dict(machine), {code: rest for code, *rest in findings}, done.returncode, set(done.stderr.split())


def test_each_fault_of_a_gpu_is_a_finding_with_the_command_that_repairs_it(fake_nvml: Path, tmp_path: Path) -> None:
    faults = ("unloads 0", "mig 0", "tenant 0", "throttle 0 66", "unsupported 0 counter")
    script = ["gpus 2", "gpu 0 name H100", "gpu 1 limit 300", *(f"gpu 1 fault {fault}" for fault in faults)]
    parts, found, code, modules = examined(tmp_path, library.environment(fake_nvml, "\n".join(script)))
    assert parts["driver"] == "570.00-simulated"
    assert parts["GPU 0"].startswith("H100, limit 400 W, has an energy counter, clock 1410 of 1410 MHz, not seen")
    assert "no energy counter" in parts["GPU 1"]
    assert "set by hand" in parts["GPU 1"]
    expected = {
        "power-limit": (
            "The power limit of GPU 1 is 300 W, below the default of 400 W.",
            "sudo nvidia-smi -i 1 -pl 400",
        ),
        "mig": ("GPU 1 is divided into instances (MIG)", "sudo nvidia-smi -i 1 -mig 0"),
        "foreign-process": (
            "The harness did not start 1 of the processes on GPU 1.",
            "nvidia-smi -i 1 --query-compute",
        ),
        "throttled": ("GPU 1 was held back: hardware thermal slowdown.", "nvidia-smi -i 1 -q -d PERFORMANCE"),
        "persistence-off": ("Persistence mode of GPU 1 is off.", "sudo nvidia-smi -i 1 -pm 1"),
    }
    for name, (text, command) in expected.items():
        seen, advice = found[name]
        assert seen.startswith(text)
        assert f"`{command}" in advice
    assert code == 0
    assert not modules & {"torch", "transformers", "vllm"}


def test_a_good_gpu_and_no_gpu_give_no_gpu_finding(fake_nvml: Path, tmp_path: Path) -> None:
    _, good, _, _ = examined(tmp_path, library.environment(fake_nvml, "gpus 1"))
    nowhere = {**library.environment(fake_nvml, "gpus 0"), "HARNESS_RESULTS": "/proc/nowhere"}
    parts, none, code, _ = examined(tmp_path, nowhere)
    of_gpus = {"power-limit", "persistence-off", "mig", "foreign-process", "throttled", "nvml-absent"}
    assert not of_gpus & {*good, *none}
    assert parts["GPUs"] == "NVML finds no GPU"
    assert "no-room (serious)" in none
    assert code == GATE_FAILED  # for nothing can be stored there
    assert {"RAPL", "CPU", "models", "engine vllm", "room for results"} <= parts.keys()


def test_a_lost_gpu_is_named_and_the_others_are_examined(fake_nvml: Path, tmp_path: Path) -> None:
    parts, found, _, _ = examined(tmp_path, library.environment(fake_nvml, "gpus 3\ngpu 1 fault lost 0\n"))
    assert {"GPU 0", "GPU 2"} <= parts.keys()
    assert "GPU 1" not in parts
    assert found["nvml-absent"][0] == "The machine has an NVIDIA driver, but no answer from GPU 1."


def codes(place: Mapping[str, Any], results: Path) -> set[str]:
    """The findings of a machine with that environment."""
    seen = [*doctor._engines(place), *doctor._host(place), *doctor._room(results)]
    return {each.code for each in seen if isinstance(each, Finding)}


def test_missing_engines_and_cores_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = environment.capture()
    assert "no-engine" not in codes(here, tmp_path)
    monkeypatch.setattr(doctor, "NEEDS", {"vllm": ("no_such_package", "x")})
    cramped = {**here, "cpu": {**here["cpu"], "cores_usable": 2}, "governors": ["powersave"]}
    found = codes(cramped, tmp_path)
    assert {"no-engine", "cpu-frequency", "few-cores"} <= found
    roomy = {**here, "cpu": {**here["cpu"], "cores_usable": 10_000}, "governors": ["performance"]}
    assert not {"few-cores", "busy", "cpu-frequency"} & codes(roomy, tmp_path)


def test_models_in_the_hub_cache_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models--Qwen--Qwen3-8B").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert "Qwen/Qwen3-8B" in list(doctor._models())
