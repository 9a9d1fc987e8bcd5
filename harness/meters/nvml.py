"""NVIDIA GPUs by NVML (package nvidia-ml-py). What a GPU supports is found by asking it, not from its architecture."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pynvml

from harness.errors import HarnessError
from harness.files import cache_root
from harness.meters.tracker import FILL_S, GUARD_S, TRACK_S, EdgeTracker, period_s, quantum
from harness.model import MeterDevice, MeterInfo, PowerSample

SLOW_S = 1.0
"""Between readings of temperature, clocks, processes and limits, which cost more and change less; and of memory."""
PROBE_S = 3.0
AVERAGE_WINDOW_S = 1.0
"""NVML's documentation of field 185, which boards that average otherwise do not support."""
_FIELDS = (
    ("energy", pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION),
    ("average", pynvml.NVML_FI_DEV_POWER_AVERAGE),
    ("instant", pynvml.NVML_FI_DEV_POWER_INSTANT),
    ("memory", pynvml.NVML_FI_DEV_POWER_AVERAGE),
)
"""What one reading asks for: millijoules, then milliwatts."""
_FIELD = struct.Struct("=IIqqIIQ")
"""nvmlFieldValue_t: field, scope, timestamp, latency, type, status, value; pynvml's own class costs five times this."""
_CODES = {code: name[11:].lower() for name, code in vars(pynvml).items() if name.startswith("NVML_ERROR_")}
"""NVML's word for each return code, for instance gpu_is_lost."""


@dataclass(slots=True)
class _Gpu:
    handle: Any
    device: MeterDevice
    tracker: EdgeTracker
    fields: Any
    """The batch that every reading fills: made once, since making it costs as much as the call."""
    power_usage: bool = False
    """Neither power field is supported: ask as older drivers and GPUs want to be asked."""
    next_s: float = 0.0
    slow_s: float = 0.0
    counter: int | None = None


class NvmlReader:
    """Energy counter, newest and average power, memory power, and once a second what explains them.

    Options: `devices`, a list of indices or UUIDs (default: CUDA_VISIBLE_DEVICES, else all); `probe_s`, for how long to
    watch a GPU that was never seen before; `fill_s` between readings. Processes on a GPU that descend from this one's
    parent are not foreign.
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
        """Find the GPUs and what they support. Raises HarnessError where there is no driver or no GPU."""
        try:
            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            driver = str(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as absent:
            fix = "install the NVIDIA driver, or choose another meter"
            raise HarnessError(f"NVML does not answer: {absent}", fix) from None
        self._call = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetFieldValues")
        chosen = self._chosen([str(_ask(handle, "nvmlDeviceGetUUID")) for handle in handles])
        if not chosen:
            raise HarnessError("NVML finds no GPU", "check CUDA_VISIBLE_DEVICES and the option `devices`")
        self.gpus = [self._gpu(index, handles[index], len(chosen)) for index in chosen]
        self._probe(driver)
        memory = [
            MeterDevice(gpu.device.device, "gpu memory", average_period_s=SLOW_S, average_window_s=AVERAGE_WINDOW_S)
            for gpu in self.gpus
            if self._fetch(gpu)[2][3] is not None
        ]
        return MeterInfo(
            meter="nvml",
            # A driver that calls itself simulated is a test bed's: nothing read through it may pass for a measurement.
            status="simulated" if "simulated" in driver else "measured",
            devices=(*(gpu.device for gpu in self.gpus), *memory),
            driver=driver,
        )

    def read(self) -> list[PowerSample]:
        """Read every GPU that is due, and those whose fill reading is due soon: waking up costs more than reading."""
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
        gpu.tracker.saw(before_s, after_s, changed)
        gpu.counter = counter if counter is not None else gpu.counter
        slow: dict[str, Any] = {}
        if before_s >= gpu.slow_s and not changed:
            gpu.slow_s = before_s + SLOW_S
            slow = self._slow(gpu.handle)
            if (_ask(gpu.handle, "nvmlDeviceGetUUID") or gpu.device.uuid) != gpu.device.uuid:
                error = f"{error or ''} device=uuid_changed".strip()
        if gpu.power_usage:
            average = _ask(gpu.handle, "nvmlDeviceGetPowerUsage")
        name, watts = gpu.device.device, (_thousandth(instant), _thousandth(average))
        fast = (before_s, after_s, name, gpu.device.domain, _thousandth(counter), *watts)
        samples = [PowerSample(*fast, error=error, **slow)]
        if slow and memory is not None:
            samples.append(PowerSample(before_s, after_s, name, "gpu memory", average_w=memory / 1000))
        gpu.next_s = gpu.tracker.due_s(self.clock())
        return samples

    def _fetch(self, gpu: _Gpu) -> tuple[float, float, list[int | None], str | None]:
        """Stamps, the four fields in NVML's units, and what went wrong beyond a plain `not supported`."""
        before_s = self.clock()
        code = self._call(gpu.handle, len(_FIELDS), gpu.fields)
        after_s = self.clock()
        if code:
            return before_s, after_s, [None] * 4, f"device={_CODES.get(code, code)}"
        error, values = None, []
        for i, (_, _, _, _, _, status, value) in enumerate(_FIELD.iter_unpack(gpu.fields)):
            if status and status != pynvml.NVML_ERROR_NOT_SUPPORTED:
                error = f"{error or ''} {_FIELDS[i][0]}={_CODES.get(status, status)}".strip()
            # Boards without a sensor answer 0 mW, and none draws nothing; the counter may well be 0.
            values.append(None if status or (i and not value) else value if i == 0 else value & 0xFFFFFFFF)
        return before_s, after_s, values, error

    def _slow(self, handle: Any) -> dict[str, Any]:
        ask = functools.partial(_ask, handle)
        sm_mhz, memory_mhz = (ask("nvmlDeviceGetClockInfo", clock) for clock in (1, 2))
        use, memory = ask("nvmlDeviceGetUtilizationRates"), ask("nvmlDeviceGetMemoryInfo")
        running = ask("nvmlDeviceGetComputeRunningProcesses")
        own = None if running is None else sum(_descends(process.pid, self.harness_pid) for process in running)
        return {
            "temperature_c": ask("nvmlDeviceGetTemperatureV", 0),
            "sm_clock_hz": sm_mhz and sm_mhz * 1e6,
            "memory_clock_hz": memory_mhz and memory_mhz * 1e6,
            "utilisation": use and use.gpu / 100,
            "memory_used_bytes": memory and int(memory.used),
            "power_limit_w": _thousandth(ask("nvmlDeviceGetEnforcedPowerLimit")),
            "throttle": ask("nvmlDeviceGetCurrentClocksEventReasons"),
            "processes": own,
            "foreign_processes": None if own is None else len(running) - own,
        }

    def _chosen(self, uuids: list[str]) -> list[int]:
        """Indices of the GPUs asked for, each by index or by how its UUID begins."""
        wanted: Sequence[int | str] | None = self.devices
        if wanted is None and (visible := os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()):
            wanted = [part.strip() for part in visible.split(",")]
        chosen = []
        for part in range(len(uuids)) if wanted is None else map(str, wanted):
            found = [i for i, uuid in enumerate(uuids) if str(part) == str(i) or uuid.startswith(str(part))]
            if not found:
                fix = f"choose indices below {len(uuids)}, or one of {', '.join(uuids)}"
                raise HarnessError(f"no GPU '{part}'", fix)
            chosen += found
        return chosen

    def _gpu(self, index: int, handle: Any, together: int) -> _Gpu:
        """One of `together` GPUs, with what it supports. Only Grace-Hopper's tell just their module's power."""
        ask = functools.partial(_ask, handle)
        gpu_scope, module_scope = pynvml.NVML_POWER_SCOPE_GPU, pynvml.NVML_POWER_SCOPE_MODULE
        asked = [(pynvml.NVML_FI_DEV_POWER_INSTANT, scope) for scope in (gpu_scope, module_scope)]
        answers = ask("nvmlDeviceGetFieldValues", asked)
        module_only = answers is not None and answers[0].nvmlReturn and not answers[1].nvmlReturn
        fields = (pynvml.c_nvmlFieldValue_t * len(_FIELDS))()
        scopes = {"energy": 0, "memory": pynvml.NVML_POWER_SCOPE_MEMORY}
        for value, (name, field_id) in zip(fields, _FIELDS, strict=True):
            value.fieldId = field_id
            value.scopeId = scopes.get(name, module_scope if module_only else gpu_scope)
        mig = ask("nvmlDeviceGetMigMode")
        device = MeterDevice(
            device=str(index),
            domain="gpu module" if module_only else "gpu",
            name=ask("nvmlDeviceGetName"),
            uuid=str(ask("nvmlDeviceGetUUID")),
            power_limit_w=_thousandth(ask("nvmlDeviceGetEnforcedPowerLimit")),
            power_limit_default_w=_thousandth(ask("nvmlDeviceGetPowerManagementDefaultLimit")),
            mig=mig is not None and mig[0] == 1,
        )
        tracker = EdgeTracker(self.rng, fill_s=self.fill_s, track_s=TRACK_S * max(1.0, together / 2))
        gpu = _Gpu(handle, device, tracker, fields)
        _, _, (counter, average, instant, _), error = self._fetch(gpu)
        gpu.power_usage = average is None and instant is None
        note = None if counter is not None else f"no energy counter ({error or 'not supported'})"
        gpu.device = replace(device, average_window_s=None if average is None else AVERAGE_WINDOW_S, note=note)
        return gpu

    def _probe(self, driver: str) -> None:
        """Add the sensors' periods to the descriptions: from the cache, else by watching all GPUs at once."""
        path = cache_root() / "nvml-sensors.json"
        known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text())
        keys = [f"{gpu.device.uuid} {driver}" for gpu in self.gpus]
        new = {key: gpu for key, gpu in zip(keys, self.gpus, strict=True) if key not in known}
        known |= zip(new, self._watch(list(new.values())), strict=True)
        now_s = self.clock()
        for gpu, key in zip(self.gpus, keys, strict=True):
            gpu.device = replace(gpu.device, **known[key])
            gpu.tracker.period_s, gpu.next_s = gpu.device.period_s, now_s
        # A counter that did not move is not worth remembering: it may be the fault of the moment.
        kept = {key: seen for key, seen in known.items() if seen["period_s"] is not None}
        if new and kept:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = path.with_suffix(f".{os.getpid()}")
                draft.write_text(json.dumps(kept))
                draft.replace(path)

    def _watch(self, gpus: list[_Gpu]) -> list[dict[str, float | None]]:
        """Read as fast as once a millisecond for `probe_s`, and time the changes."""
        changes: list[list[list[tuple[float, int]]]] = [[[] for _ in range(3)] for _ in gpus]
        end_s = self.clock() + self.probe_s
        while gpus and self.clock() < end_s:
            for gpu, seen in zip(gpus, changes, strict=True):
                before_s, _, values, _ = self._fetch(gpu)
                for changed, value in zip(seen, values, strict=False):
                    if value is not None and (not changed or changed[-1][1] != value):
                        changed.append((before_s, value))
            self.sleep(0.001)
        periods = ("period_s", "average_period_s", "power_period_s")
        return [
            {**dict(zip(periods, map(period_s, seen), strict=True)), "quantum_j": quantum(seen[0], per=1000)}
            for seen in changes
        ]


def _ask(handle: Any, name: str, *arguments: Any) -> Any:
    try:
        return getattr(pynvml, name)(handle, *arguments)
    except pynvml.NVMLError:
        return None


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _descends(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor` or comes from it, as far as one may see."""
    try:
        return pid == ancestor or ancestor in (parent.pid for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False
