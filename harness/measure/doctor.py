"""What this machine can measure, and what would put a run here in doubt; docs/quiet-machine.md has the reasons."""

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from harness.analysis.energy_findings import THROTTLE
from harness.analysis.findings import finding
from harness.engines.base import NEEDS
from harness.engines.weights import short_names
from harness.errors import HarnessError
from harness.files import cache_root, install
from harness.measure import environment
from harness.meters.nvml import NvmlReader
from harness.meters.rapl import GRANT, RaplReader
from harness.model import Finding, MeterDevice, PowerSample

BUSY_SHARE = 0.25
"""Largest share of the cores that other processes may use without a finding."""
SWAP_SHARE = 0.01
"""Largest share of the memory in swap without a finding; a little is always there."""
LEAST_BYTES, ROOM_BYTES = 1e8, 2e10
"""Free space below which a run may not fit, and below which a large model cannot be downloaded."""
USER_CLOCKS = 0x02
"""NVML's clock event reason for clocks set by a user."""
Seen = tuple[str, str] | Finding
"""A part of the machine and its description, or a finding."""


def examine(results: Path) -> Iterator[Seen]:
    """The parts of this machine and the findings about them. Imports no engine, needs no GPU, changes nothing.

    The only serious finding is that no run can be stored in `results`: the engine may be a server on another machine.
    """
    place = environment.capture()
    yield "harness", f"{place['harness']}, Python {place['python']}, {place['os']}"
    if (place["git"] or {}).get("dirty"):
        yield finding("dirty-tree", revision=str(place["git"]["revision"]))
    if place["debug"]:
        yield finding("debug-build", debug=", ".join(place["debug"]), serious=False)
    yield from _engines(place)
    yield from _gpus(place)
    yield from _host(place)
    yield from _room(results)


def _engines(place: Mapping[str, Any]) -> Iterator[Seen]:
    missing = [name for name, (package, _) in NEEDS.items() if importlib.util.find_spec(package) is None]
    for name, (package, extra) in NEEDS.items():
        versions = [f"{p} {place['packages'][p]}" for p in (package, f"{package}-cpu") if p in place["packages"]]
        yield f"engine {name}", f"not installed: {install(extra)}" if name in missing else ", ".join(versions)
    yield "packages", ", ".join(f"{name} {version}" for name, version in place["packages"].items())
    yield "models", ", ".join(_models()) or "none is cached"
    if len(missing) == len(NEEDS):
        yield finding("no-engine", install=install("cpu"))
    elif place["gpus"] and "vllm" in missing:
        yield finding("gpu-unused", install=install("vllm"))


def _models() -> Iterator[str]:
    """Models that need no download: those in installed packages and in the cache of the Hugging Face hub."""
    for name, row in short_names().items():
        if importlib.util.find_spec(row["package"].replace("-", "_")) is not None:
            yield name
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    for path in sorted(Path(os.environ.get("HF_HUB_CACHE") or home / "hub").glob("models--*")):
        yield path.name.removeprefix("models--").replace("--", "/")


def _gpus(place: Mapping[str, Any]) -> Iterator[Seen]:
    reader = NvmlReader(probe_s=0.0)
    reader.harness_pid = os.getpid()
    try:
        reader.open()
    except HarnessError as absent:
        yield "GPUs", absent.what
        if Path("/proc/driver/nvidia").exists():
            yield finding("nvml-absent", what=absent.what, fix=absent.fix)
        return
    yield "driver", str(place["driver"])
    if place["nvml"] is not None:
        yield finding("nvml-absent", what=place["nvml"], fix="look for Xid errors in `dmesg`, and reset the GPU")
    samples = {sample.device: sample for sample in reader.read() if sample.domain != "gpu memory"}
    known = {str(gpu["index"]): gpu for gpu in place["gpus"]}
    for device in (gpu.device for gpu in reader.gpus):
        yield from _gpu(device, samples[device.device], known[device.device])


def _gpu(device: MeterDevice, now: PowerSample, known: Mapping[str, Any]) -> Iterator[Seen]:
    i, bits, limit_w, default_w = device.device, now.throttle or 0, device.power_limit_w, device.power_limit_default_w
    mhz = "n/a" if now.sm_clock_hz is None else f"{now.sm_clock_hz / 1e6:.0f}"
    by_hand = "set by hand" if bits & USER_CLOCKS else f"not seen to be set by hand (sudo nvidia-smi -i {i} -lgc)"
    limits = f"limit {'n/a' if limit_w is None else f'{limit_w:g} W'}, {device.note or 'has an energy counter'}"
    gpu = f"GPU {i}"
    yield gpu, f"{device.name}, {limits}, clock {mhz} of {known['sm_clock_max_mhz']} MHz, {by_hand}"
    if limit_w is not None and default_w is not None and limit_w < default_w:
        yield finding("power-limit", gpu=gpu, device=i, limit_w=limit_w, default_w=default_w)
    if known["persistence_mode"] == 0:
        yield finding("persistence-off", gpu=gpu, device=i)
    if device.mig:
        yield finding("mig", gpu=gpu, device=i, serious=False)
    if now.foreign_processes:
        yield finding("foreign-process", gpu=gpu, device=i, count=now.foreign_processes, serious=False)
    if held := [reason for bit, reason in THROTTLE.items() if bits & bit]:
        yield finding("throttled", gpu=gpu, device=i, reasons=", ".join(held))


def _host(place: Mapping[str, Any]) -> Iterator[Seen]:
    cores, memory, swap = place["cpu"]["cores_usable"], place["memory_bytes"], psutil.swap_memory().used
    busy, governor = psutil.getloadavg()[0], ", ".join(place["governors"])
    yield "CPU", f"{place['cpu']['model']}, {cores} cores usable, governor {governor or 'n/a'}, load {busy:.2f}"
    yield "memory", f"{memory / 1e9:.1f} GB, {swap / 1e9:.1f} GB in swap"
    try:
        yield "RAPL", ", ".join(device.domain for device in RaplReader().open().devices)
    except HarnessError as refused:
        yield "RAPL", refused.what
        if refused.fix == GRANT:
            yield finding("rapl-permission", what=refused.what, command=GRANT)
    if governor not in ("performance", ""):
        yield finding("cpu-frequency", governor=governor)
    if swap > SWAP_SHARE * memory:
        yield finding("swap", swapped=f"{swap / 1e9:.1f} GB are in swap")
    if busy > BUSY_SHARE * cores:
        yield finding("busy", busy=busy, cores=cores)
    if cores < 3:
        yield finding("few-cores", cores=cores)


def _room(results: Path) -> Iterator[Seen]:
    """Free space for runs and models, in the nearest existing directory."""
    for what, path in (("results", results), ("model cache", cache_root())):
        there = next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())
        free = shutil.disk_usage(there).free
        yield f"room for {what}", f"{free / 1e9:.1f} GB at {path}"
        if what == "results" and (free < LEAST_BYTES or not os.access(there, os.W_OK)):
            yield finding("no-room", directory=there)
        elif free < ROOM_BYTES:
            yield finding("little-room", free_gb=free / 1e9, what=what, directory=there)
