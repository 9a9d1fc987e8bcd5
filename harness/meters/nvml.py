"""NVIDIA GPUs, read with NVML (package nvidia-ml-py). Supported features are found by asking each GPU."""

import contextlib
import functools
import json
import os
import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pynvml

from harness.errors import HarnessError
from harness.files import cache_root, write_cache
from harness.meters.gpus import ask, boards, named, visible
from harness.meters.tracker import FILL_S, GUARD_S, TRACK_S, UpdateTracker, smallest_step, update_period_s
from harness.model import MeterDevice, MeterInfo, PowerSample

SLOW_S = 1.0
"""Interval of the slower readings: temperature, clocks, processes, limits and memory power."""
PROBE_S = 3.0
AVERAGE_WINDOW_S = 1.0
"""Averaging window of field 185 according to NVML's documentation. Boards with another window do not support it."""
_FIELDS = (
    ("energy", pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION),
    ("average", pynvml.NVML_FI_DEV_POWER_AVERAGE),
    ("instant", pynvml.NVML_FI_DEV_POWER_INSTANT),
    ("memory", pynvml.NVML_FI_DEV_POWER_AVERAGE),
)
"""The fields of one reading, in mJ (energy) and mW."""
_FIELD = struct.Struct("=IIqqIIQ")
"""nvmlFieldValue_t: field, scope, timestamp, latency, type, status, value. pynvml's class takes five times as long."""
_CODES = {code: name[11:].lower() for name, code in vars(pynvml).items() if name.startswith("NVML_ERROR_")}
"""NVML return code -> its name, for instance gpu_is_lost."""


@dataclass(slots=True)
class _Gpu:
    handle: Any
    device: MeterDevice
    tracker: UpdateTracker
    fields: Any
    """The array that every reading fills. Reused, because allocating it takes as long as the NVML call."""
    power_usage: bool = False
    """Neither power field is supported, so power is read with nvmlDeviceGetPowerUsage."""
    next_s: float = 0.0
    slow_s: float = 0.0
    """When the next slower reading is due."""
    counter: int | None = None
    """The energy counter at the last reading, in mJ."""


class NvmlReader:
    """Reads energy counter, instantaneous and average power, memory power, and once a second what explains them.

    Options: `devices`, a list of indices or UUID prefixes (default: those that CUDA shows to this process; all, if that
    is not known); `probe_s`, the duration of the probe of a GPU that is not in the cache; `fill_s`, the interval
    between readings. Processes that descend from this process's parent are the harness's own; others are foreign.
    """

    next_s = 0.0

    def __init__(
        self,
        devices: list[int | str] | None = None,
        probe_s: float = PROBE_S,
        fill_s: float = FILL_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.devices, self.probe_s, self.fill_s, self.clock, self.sleep = devices, probe_s, fill_s, clock, sleep
        self.harness_pid = os.getppid()
        self.rng = random.Random(0)
        self.gpus: list[_Gpu] = []

    def open(self) -> MeterInfo:
        """Find the GPUs and their features. Raises HarnessError without a driver or a GPU."""
        try:
            listed = dict(boards())
            driver = str(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as error:
            fix = "install the NVIDIA driver, or choose another meter"
            raise HarnessError(f"NVML does not answer: {error}", fix) from None
        self._call = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetFieldValues")
        chosen = visible([*listed], os.environ) if self.devices is None else named(self.devices, [*listed])
        chosen = tuple(board for board in listed if board.uuid) if chosen is None else chosen
        if not chosen:
            raise HarnessError("NVML finds no GPU", "check CUDA_VISIBLE_DEVICES and `nvidia-smi`")
        self.gpus = [self._gpu(board.index, listed[board], len(chosen)) for board in chosen]
        self._probe(driver)
        memory = [
            MeterDevice(gpu.device.device, "gpu memory", average_period_s=SLOW_S, average_window_s=AVERAGE_WINDOW_S)
            for gpu in self.gpus
            if self._fetch(gpu)[2][3] is not None
        ]
        return MeterInfo(
            meter="nvml",
            # A test's driver has "simulated" in its version: its readings must not pass for measurements.
            status="simulated" if "simulated" in driver else "measured",
            devices=(*(gpu.device for gpu in self.gpus), *memory),
            driver=driver,
        )

    def read(self) -> list[PowerSample]:
        """Read every GPU that is due now or soon: waking up for each one separately would cost more than reading."""
        now_s = self.clock()
        samples: list[PowerSample] = []
        for gpu in self.gpus:
            if gpu.next_s <= now_s + (GUARD_S / 4 if gpu.next_s in gpu.tracker.plan else self.fill_s / 2):
                samples += self._read(gpu)
        self.next_s = min(gpu.next_s for gpu in self.gpus)
        return samples

    def _read(self, gpu: _Gpu) -> list[PowerSample]:
        before_s, after_s, (counter, average, instant, memory), error = self._fetch(gpu)
        changed = counter is not None and gpu.counter is not None and counter != gpu.counter
        gpu.tracker.observe(before_s, after_s, changed)
        gpu.counter = counter if counter is not None else gpu.counter
        slow: dict[str, Any] = {}
        if before_s >= gpu.slow_s and not changed:
            gpu.slow_s = before_s + SLOW_S
            slow = self._slow(gpu.handle)
            if (ask(gpu.handle, "nvmlDeviceGetUUID") or gpu.device.uuid) != gpu.device.uuid:
                error = f"{error or ''} device=uuid_changed".strip()
        if gpu.power_usage:
            average = ask(gpu.handle, "nvmlDeviceGetPowerUsage")
        name, watts = gpu.device.device, (from_milli(instant), from_milli(average))
        fast = (before_s, after_s, name, gpu.device.domain, from_milli(counter), *watts)
        samples = [PowerSample(*fast, error=error, **slow)]
        if slow and memory is not None:
            samples.append(PowerSample(before_s, after_s, name, "gpu memory", average_w=memory / 1000))
        gpu.next_s = gpu.tracker.next_read_s(self.clock())
        return samples

    def _fetch(self, gpu: _Gpu) -> tuple[float, float, list[int | None], str | None]:
        """Times before and after the call, the values of `_FIELDS`, and errors other than `not supported`."""
        before_s = self.clock()
        code = self._call(gpu.handle, len(_FIELDS), gpu.fields)
        after_s = self.clock()
        if code:
            return before_s, after_s, [None] * 4, f"device={_CODES.get(code, code)}"
        error, values = None, []
        for i, (_, _, _, _, _, status, value) in enumerate(_FIELD.iter_unpack(gpu.fields)):
            if status and status != pynvml.NVML_ERROR_NOT_SUPPORTED:
                error = f"{error or ''} {_FIELDS[i][0]}={_CODES.get(status, status)}".strip()
            # A board without a power sensor reports 0 mW. The energy counter may be 0.
            values.append(None if status or (i and not value) else value if i == 0 else value & 0xFFFFFFFF)
        return before_s, after_s, values, error

    def _slow(self, handle: Any) -> dict[str, Any]:
        get = functools.partial(ask, handle)
        sm_mhz, memory_mhz = (get("nvmlDeviceGetClockInfo", clock) for clock in (1, 2))
        use, memory = get("nvmlDeviceGetUtilizationRates"), get("nvmlDeviceGetMemoryInfo")
        running = get("nvmlDeviceGetComputeRunningProcesses")
        own = None if running is None else sum(_descends(process.pid, self.harness_pid) for process in running)
        return {
            "temperature_c": get("nvmlDeviceGetTemperatureV", 0),
            "sm_clock_hz": sm_mhz and sm_mhz * 1e6,
            "memory_clock_hz": memory_mhz and memory_mhz * 1e6,
            "utilisation": use and use.gpu / 100,
            "memory_used_bytes": memory and int(memory.used),
            "power_limit_w": from_milli(get("nvmlDeviceGetEnforcedPowerLimit")),
            "throttle": get("nvmlDeviceGetCurrentClocksEventReasons"),
            "processes": own,
            "foreign_processes": None if own is None else len(running) - own,
        }

    def _gpu(self, index: int, handle: Any, count: int) -> _Gpu:
        """One of `count` GPUs with its features. Only Grace-Hopper reports power of the module but not of the GPU."""
        get = functools.partial(ask, handle)
        gpu_scope, module_scope = pynvml.NVML_POWER_SCOPE_GPU, pynvml.NVML_POWER_SCOPE_MODULE
        asked = [(pynvml.NVML_FI_DEV_POWER_INSTANT, scope) for scope in (gpu_scope, module_scope)]
        answers = get("nvmlDeviceGetFieldValues", asked)
        module_only = answers is not None and answers[0].nvmlReturn and not answers[1].nvmlReturn
        fields = (pynvml.c_nvmlFieldValue_t * len(_FIELDS))()
        scopes = {"energy": 0, "memory": pynvml.NVML_POWER_SCOPE_MEMORY}
        for value, (name, field_id) in zip(fields, _FIELDS, strict=True):
            value.fieldId = field_id
            value.scopeId = scopes.get(name, module_scope if module_only else gpu_scope)
        mig = get("nvmlDeviceGetMigMode")
        device = MeterDevice(
            device=str(index),
            domain="gpu module" if module_only else "gpu",
            name=get("nvmlDeviceGetName"),
            uuid=str(get("nvmlDeviceGetUUID")),
            power_limit_w=from_milli(get("nvmlDeviceGetEnforcedPowerLimit")),
            power_limit_default_w=from_milli(get("nvmlDeviceGetPowerManagementDefaultLimit")),
            mig=mig is not None and mig[0] == 1,
        )
        tracker = UpdateTracker(self.rng, fill_s=self.fill_s, track_s=TRACK_S * max(1.0, count / 2))
        gpu = _Gpu(handle, device, tracker, fields)
        _, _, (counter, average, instant, _), error = self._fetch(gpu)
        gpu.power_usage = average is None and instant is None
        note = None if counter is not None else f"no energy counter ({error or 'not supported'})"
        gpu.device = replace(device, average_window_s=None if average is None else AVERAGE_WINDOW_S, note=note)
        return gpu

    def _probe(self, driver: str) -> None:
        """Add the sensors' update periods to the devices: from the cache, else by measuring all GPUs at once."""
        path = cache_root() / "nvml-sensors.json"
        known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text())
        keys = [f"{gpu.device.uuid} {driver}" for gpu in self.gpus]
        new = {key: gpu for key, gpu in zip(keys, self.gpus, strict=True) if key not in known}
        known |= zip(new, self._measure_periods(list(new.values())), strict=True)
        now_s = self.clock()
        for gpu, key in zip(self.gpus, keys, strict=True):
            gpu.device = replace(gpu.device, **known[key])
            gpu.tracker.period_s, gpu.next_s = gpu.device.period_s, now_s
        # A counter that did not change is not cached: the cause may be temporary.
        kept = {key: periods for key, periods in known.items() if periods["period_s"] is not None}
        if new and kept:
            write_cache(path, json.dumps(kept))

    def _measure_periods(self, gpus: list[_Gpu]) -> list[dict[str, float | None]]:
        """Read up to once a millisecond for `probe_s`, and derive the update periods from the changes."""
        changes: list[list[list[tuple[float, int]]]] = [[[] for _ in range(3)] for _ in gpus]
        end_s = self.clock() + self.probe_s
        while gpus and self.clock() < end_s:
            for gpu, of_gpu in zip(gpus, changes, strict=True):
                before_s, _, values, _ = self._fetch(gpu)
                for of_field, value in zip(of_gpu, values, strict=False):
                    if value is not None and (not of_field or of_field[-1][1] != value):
                        of_field.append((before_s, value))
            self.sleep(0.001)
        return [
            {
                "period_s": update_period_s(energy),
                "average_period_s": update_period_s(average),
                "power_period_s": update_period_s(instant),
                "quantum_j": from_milli(smallest_step(energy)),
            }
            for energy, average, instant in changes
        ]


def from_milli(value: int | None) -> float | None:
    """mW to W, or mJ to J."""
    return None if value is None else value / 1000


def _descends(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor` or its descendant; False if that cannot be seen."""
    try:
        return pid == ancestor or ancestor in (parent.pid for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False
