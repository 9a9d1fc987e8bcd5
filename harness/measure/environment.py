"""Describe where a run takes place: machine, GPUs, software, and settings that affect an engine."""

import contextlib
import fcntl
import functools
import os
import platform
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pynvml

import harness
from harness.config import data_yaml
from harness.files import installed_version
from harness.meters.gpus import ask, boards
from harness.meters.nvml import from_milli

RECORDED = data_yaml("environment.yaml")
LOCK = Path(tempfile.gettempdir()) / "inference-cost-harness.lock"


def capture() -> dict[str, Any]:
    """The environment as JSON values; unreadable values are None."""
    memory = psutil.virtual_memory()
    return {
        "cpu": {
            "model": _cpu_model(),
            "architecture": platform.machine(),
            "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "cores_physical": psutil.cpu_count(logical=False),
            "cores_logical": psutil.cpu_count(),
        },
        "memory_bytes": memory.total,
        "os": platform.platform(),
        "python": sys.version.split()[0],
        "harness": harness.__version__,
        "packages": {name: version for name in RECORDED["packages"] if (version := installed_version(name))},
        "git": _git(Path(__file__).resolve().parent, Path(__file__).name),
        "project": _git(Path.cwd()),
        "settings": settings(os.environ),
        "governors": governors(),
        "swap": _swapped(),
        "debug": debugging(os.environ),
        "command": sys.argv,
        **_gpus(),
    }


def ended(captured: Mapping[str, Any]) -> dict[str, Any]:
    """`capture()` from the start of a run, updated at its end: `swap` becomes the bytes swapped during the run."""
    before, after = captured.get("swap") or {}, _swapped()
    during = {direction: after[direction] - before[direction] for direction in after if direction in before}
    return {**captured, "swap": during, "debug": debugging(os.environ)}


def governors(cpus: Path = Path("/sys/devices/system/cpu")) -> list[str]:
    """The CPU frequency governors in use: `performance`, `powersave`…; empty if the system does not report them."""
    found = set()
    for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        with contextlib.suppress(OSError):
            found.add(path.read_text().strip())
    return sorted(found)


def debugging(variables: Mapping[str, str]) -> list[str]:
    """Debug settings and debug builds in this process, which reduce speed.

    >>> debugging({"CUDA_LAUNCH_BLOCKING": "1", "VLLM_TRACE_FUNCTION": "0"})
    ['CUDA_LAUNCH_BLOCKING=1']
    """
    found = [f"{name}={variables[name]}" for name in RECORDED["debug"] if variables.get(name, "0") not in ("", "0")]
    found += ["a debug build of Python"] if hasattr(sys, "gettotalrefcount") else []
    torch = sys.modules.get("torch.version")  # only if an engine has imported torch
    return found + (["a debug build of torch"] if getattr(torch, "debug", False) else [])


def _swapped() -> dict[str, int]:
    """Bytes swapped since the machine started; empty if the system does not report them."""
    with warnings.catch_warnings(), contextlib.suppress(OSError, RuntimeError):
        warnings.simplefilter("error", RuntimeWarning)
        memory = psutil.swap_memory()
        return {"in_bytes": memory.sin, "out_bytes": memory.sout}
    return {}


def settings(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that affect engines, without secret values.

    >>> settings({"VLLM_CPU_KVCACHE_SPACE": "2", "HF_TOKEN": "hf_x", "LANG": "C"})
    {'HF_TOKEN': '(set)', 'VLLM_CPU_KVCACHE_SPACE': '2'}
    """
    return {
        name: "(set)" if any(word in name for word in RECORDED["secret"]) else variables[name]
        for name in sorted(variables)
        if name.startswith(tuple(RECORDED["settings"]))
    }


def _cpu_model() -> str | None:
    with contextlib.suppress(OSError):
        if named := re.search(r"^model name\s*: *(.+)", Path("/proc/cpuinfo").read_text(), re.M):
            return named[1].strip()
    return platform.processor() or None


def _git(inside: Path, tracked: str = ".") -> dict[str, Any] | None:
    """Revision of the clone, and whether tracked files have changes; None outside a clone that has `tracked`."""

    def git(*words: str) -> str:
        command, silent = ["git", "-C", str(inside), *words], subprocess.DEVNULL
        return subprocess.check_output(command, text=True, timeout=10, stderr=silent).strip()

    try:
        if git("ls-files", tracked) == "":
            return None  # an installed copy inside another repository
        revision, _, dirty = git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty").partition("-")
        return {"revision": revision, "dirty": dirty != ""}
    except (OSError, subprocess.SubprocessError):
        return None


def _gpus() -> dict[str, Any]:
    """Driver and GPUs as NVML reports them; without a GPU `gpus` is empty and `nvml` has the reason."""
    try:
        listed = boards()
        gpus = [{"index": board.index, **_gpu(handle)} for board, handle in listed if board.uuid]
        driver = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return {"gpus": [], "driver": None, "nvml": str(error)}
    lost = ", ".join(str(board.index) for board, _ in listed if not board.uuid)
    return {"gpus": gpus, "driver": driver, "nvml": f"no answer from GPU {lost}" if lost else None}


def _gpu(handle: Any) -> dict[str, Any]:
    get = functools.partial(ask, handle)
    memory, capability = get("nvmlDeviceGetMemoryInfo"), get("nvmlDeviceGetCudaComputeCapability")
    return {
        "name": get("nvmlDeviceGetName"),
        "uuid": get("nvmlDeviceGetUUID"),
        "memory_bytes": None if memory is None else int(memory.total),
        "power_limit_w": from_milli(get("nvmlDeviceGetPowerManagementLimit")),
        "power_limit_default_w": from_milli(get("nvmlDeviceGetPowerManagementDefaultLimit")),
        "compute_capability": None if capability is None else ".".join(map(str, capability)),
        "persistence_mode": get("nvmlDeviceGetPersistenceMode"),
        "sm_clock_max_mhz": get("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
    }


class Beside:
    """A shared lock of all runs on one machine, held from the construction until `close`.

    Each run appends a byte, so that an earlier run sees a later one, also one that has ended. The kernel releases the
    lock when a process ends, however that happens. Where the file cannot be written, no other run is seen.
    """

    def __init__(self, path: Path = LOCK) -> None:
        self._file: int | None = None
        self._earlier, self._size = False, 0
        with contextlib.suppress(OSError):
            if not path.exists():  # O_CREAT on another user's file is refused in a directory for all users
                path.touch()
                path.chmod(0o666)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._earlier = True
            fcntl.flock(self._file, fcntl.LOCK_SH)
            os.write(self._file, b".")
            self._size = os.fstat(self._file).st_size

    def seen(self) -> bool:
        """Whether another run has overlapped with this one so far."""
        return self._file is not None and (self._earlier or os.fstat(self._file).st_size > self._size)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
