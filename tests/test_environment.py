"""What is recorded of the machine."""

from __future__ import annotations

import json

from harness import environment


def test_the_environment_is_json_and_names_the_machine() -> None:
    found = json.loads(json.dumps(environment.capture()))
    assert found["cpu"]["cores_usable"] >= 1
    assert found["memory_bytes"] > 1e8
    assert found["packages"]["numpy"]
    assert isinstance(found["gpus"], list)
    assert (found["nvml"] is None) == bool(found["gpus"] or found["driver"])


def test_only_settings_that_change_engines_are_kept_and_no_secret() -> None:
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
