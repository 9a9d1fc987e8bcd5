"""NVIDIA GPUs by NVML (package nvidia-ml-py). What a GPU supports is found by asking it, not from its architecture."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import struct
import time
from collections.abc import Callable, Iterable
from ctypes import byref, c_int32
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from harness.errors import HarnessError
from harness.meters.tracker import FILL_S, GUARD_S, TRACK_S, EdgeTracker, period_s, quantum
from harness.model import MeterDevice, MeterInfo, PowerSample

SLOW_S = 1.0
"""Between readings of temperature, clocks, processes and limits, which cost more and change less."""
MEMORY_S = 0.5
"""Between samples of memory power, which is told as a mean over a second."""
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
_FOUR = c_int32(len(_FIELDS))
_FIELD = struct.Struct("=IIqqIIQ")
"""nvmlFieldValue_t: field, scope, timestamp, latency, type, status, value; pynvml's own class costs five times this."""
_NAMES = {
    value: name.removeprefix("NVML_ERROR_").lower()
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_ERROR_")
}


def code_name(code: int) -> str:
    """NVML's word for a return code.

    >>> code_name(15)
    'gpu_is_lost'
    """
    return str(_NAMES.get(code, f"code_{code}"))


@dataclass(slots=True)
class _Gpu:
    index: int
    handle: Any
    scope: int
    tracker: EdgeTracker
    fields: Any
    """The batch that every reading fills: made once, since making it costs as much as the call."""
    fields_at: Any
    uuid: str
    power_usage: bool = False
    """Neither power field is supported: ask as older drivers and GPUs want to be asked."""
    next_s: float = 0.0
    slow_s: float = 0.0
    counter: int | None = None
    memory_s: float = 0.0

    @property
    def domain(self) -> str:
        return "gpu module" if self.scope == pynvml.NVML_POWER_SCOPE_MODULE else "gpu"


class NvmlReader:
    """Energy counter, newest and average power, memory power, and once a second what explains them.

    Options: `devices`, a list of indices or UUIDs (default: CUDA_VISIBLE_DEVICES, else all); `harness_pid`, whose
    descendants' processes on a GPU are not foreign; `probe_s`, for how long to watch a GPU that was never seen before
    (its sensors' periods are then kept in `cache`).
    """

    def __init__(
        self,
        devices: list[int | str] | None = None,
        harness_pid: int | None = None,
        probe_s: float = PROBE_S,
        cache: str | None = None,
        fill_s: float = FILL_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        seed: int = 0,
    ) -> None:
        self.devices, self.probe_s, self.clock, self.sleep = devices, probe_s, clock, sleep
        self.harness_pid = harness_pid or os.getppid()
        self.fill_s = fill_s
        self.cache = Path(cache or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.rng = random.Random(seed)
        self.gpus: list[_Gpu] = []

    def open(self) -> MeterInfo:
        """Find the GPUs and what they support. Raises HarnessError where there is no driver or no GPU."""
        try:
            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            driver = str(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as absent:
            raise HarnessError(
                f"NVML does not answer: {absent}", "install the NVIDIA driver, or choose another meter"
            ) from None
        self._call = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetFieldValues")
        chosen = self._chosen(handles)
        if not chosen:
            raise HarnessError("NVML finds no GPU", "check CUDA_VISIBLE_DEVICES and the option `devices`")
        self.gpus = [self._gpu(index, handles[index], len(chosen)) for index in chosen]
        described = {gpu.index: self._describe(gpu) for gpu in self.gpus}
        self._probed(described, driver)
        now = self.clock()
        for gpu in self.gpus:
            device = described[gpu.index]
            gpu.tracker.period_s = device.period_s
            gpu.next_s = now
        memory = [
            MeterDevice(str(gpu.index), "gpu memory", average_period_s=MEMORY_S, average_window_s=AVERAGE_WINDOW_S)
            for gpu in self.gpus
            if self._fetch(gpu)[2][3] is not None
        ]
        return MeterInfo(
            meter="nvml",
            # A driver that calls itself simulated is a test bed's: nothing read through it may pass for a measurement.
            status="simulated" if "simulated" in driver else "measured",
            devices=(*described.values(), *memory),
            driver=driver,
        )

    def due_s(self) -> float:
        return min(gpu.next_s for gpu in self.gpus)

    def read(self) -> list[PowerSample]:
        """Read every GPU that is due, and those whose fill reading is due soon: waking up costs more than reading."""
        now_s = self.clock()
        samples: list[PowerSample] = []
        for gpu in self.gpus:
            if gpu.next_s <= now_s + (GUARD_S / 4 if gpu.next_s in gpu.tracker.plan else self.fill_s / 2):
                samples += self._read(gpu)
        return samples

    def _read(self, gpu: _Gpu) -> list[PowerSample]:
        before_s, after_s, (counter, average, instant, memory), error = self._fetch(gpu)
        changed = counter is not None and gpu.counter is not None and counter != gpu.counter
        gpu.tracker.saw(before_s, after_s, changed)
        gpu.counter = counter if counter is not None else gpu.counter
        slow: dict[str, Any] = {}
        if before_s >= gpu.slow_s and not changed:
            gpu.slow_s = before_s + SLOW_S
            slow = self._slow(gpu)
            if slow.pop("uuid") != gpu.uuid:
                error = f"{error or ''} device=uuid_changed".strip()
        if gpu.power_usage:
            average = _ask(gpu.handle, "nvmlDeviceGetPowerUsage")
        samples = [
            PowerSample(
                before_s,
                after_s,
                str(gpu.index),
                gpu.domain,
                energy_j=_thousandth(counter),
                power_w=_thousandth(instant),
                average_w=_thousandth(average),
                error=error,
                **slow,
            )
        ]
        if memory is not None and before_s >= gpu.memory_s:
            samples.append(PowerSample(before_s, after_s, str(gpu.index), "gpu memory", average_w=memory / 1000))
            gpu.memory_s = before_s + MEMORY_S
        gpu.next_s = gpu.tracker.due_s(self.clock())
        return samples

    def _fetch(self, gpu: _Gpu) -> tuple[float, float, list[int | None], str | None]:
        """Stamps, the four fields in NVML's units, and what went wrong beyond a plain `not supported`."""
        before_s = self.clock()
        code = self._call(gpu.handle, _FOUR, gpu.fields_at)
        after_s = self.clock()
        if code:
            return before_s, after_s, [None] * 4, f"device={code_name(code)}"
        error, values = None, []
        for i, (_, _, _, _, _, status, value) in enumerate(_FIELD.iter_unpack(gpu.fields)):
            if status and status != pynvml.NVML_ERROR_NOT_SUPPORTED:
                error = f"{error or ''} {_FIELDS[i][0]}={code_name(status)}".strip()
            # Boards without a sensor answer 0 mW, and none draws nothing; the counter may well be 0.
            values.append(None if status or (i and not value) else value if i == 0 else value & 0xFFFFFFFF)
        return before_s, after_s, values, error

    def _slow(self, gpu: _Gpu) -> dict[str, Any]:
        ask = functools.partial(_ask, gpu.handle)
        hertz = {f"{k}_clock_hz": ask("nvmlDeviceGetClockInfo", c) for k, c in (("sm", 1), ("memory", 2))}
        use = ask("nvmlDeviceGetUtilizationRates")
        memory = ask("nvmlDeviceGetMemoryInfo")
        limit_mw = ask("nvmlDeviceGetEnforcedPowerLimit")
        running = ask("nvmlDeviceGetComputeRunningProcesses")
        own = None if running is None else sum(_descends(process.pid, self.harness_pid) for process in running)
        return {
            "temperature_c": ask("nvmlDeviceGetTemperatureV", 0),
            **{name: None if mhz is None else mhz * 1e6 for name, mhz in hertz.items()},
            "utilisation": None if use is None else use.gpu / 100,
            "memory_used_bytes": None if memory is None else int(memory.used),
            "power_limit_w": _thousandth(limit_mw),
            "throttle": ask("nvmlDeviceGetCurrentClocksEventReasons"),
            "processes": own,
            "foreign_processes": None if running is None or own is None else len(running) - own,
            "uuid": ask("nvmlDeviceGetUUID") or gpu.uuid,
        }

    def _chosen(self, handles: list[Any]) -> list[int]:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        wanted: Iterable[int | str]
        if self.devices is not None:
            wanted = self.devices
        elif visible is not None and visible.strip():
            wanted = [part.strip() for part in visible.split(",")]
        else:
            return list(range(len(handles)))
        uuids = [str(_ask(handle, "nvmlDeviceGetUUID")) for handle in handles]
        by_uuid = {part: [i for i, uuid in enumerate(uuids) if uuid.startswith(str(part))] for part in wanted}
        chosen: list[int] = []
        for part in wanted:
            found = [int(part)] if str(part).isdigit() and int(part) < len(handles) else by_uuid[part]
            if not found:
                raise HarnessError(
                    f"no GPU '{part}'", f"choose indices below {len(handles)}, or one of {', '.join(uuids)}"
                )
            chosen += found
        return chosen

    def _gpu(self, index: int, handle: Any, together: int) -> _Gpu:
        def supported(scope: int) -> bool:
            value = _ask(handle, "nvmlDeviceGetFieldValues", [(pynvml.NVML_FI_DEV_POWER_INSTANT, scope)])
            return value is not None and not value[0].nvmlReturn

        module_only = not supported(pynvml.NVML_POWER_SCOPE_GPU) and supported(pynvml.NVML_POWER_SCOPE_MODULE)
        scope = pynvml.NVML_POWER_SCOPE_MODULE if module_only else pynvml.NVML_POWER_SCOPE_GPU
        fields = (pynvml.c_nvmlFieldValue_t * len(_FIELDS))()
        for value, (name, field_id) in zip(fields, _FIELDS, strict=True):
            value.fieldId = field_id
            value.scopeId = {"energy": 0, "memory": pynvml.NVML_POWER_SCOPE_MEMORY}.get(name, scope)
        tracker = EdgeTracker(self.rng, fill_s=self.fill_s, track_s=TRACK_S * max(1.0, together / 2))
        gpu = _Gpu(index, handle, scope, tracker, fields, byref(fields), str(_ask(handle, "nvmlDeviceGetUUID")))
        _, _, (_, average, instant, _), _ = self._fetch(gpu)
        gpu.power_usage = average is None and instant is None
        return gpu

    def _describe(self, gpu: _Gpu) -> MeterDevice:
        _, _, (counter, average, _, _), error = self._fetch(gpu)
        limit_mw = _ask(gpu.handle, "nvmlDeviceGetEnforcedPowerLimit")
        default_mw = _ask(gpu.handle, "nvmlDeviceGetPowerManagementDefaultLimit")
        mig = _ask(gpu.handle, "nvmlDeviceGetMigMode")
        return MeterDevice(
            device=str(gpu.index),
            domain=gpu.domain,
            name=_ask(gpu.handle, "nvmlDeviceGetName"),
            uuid=gpu.uuid,
            average_window_s=None if average is None else AVERAGE_WINDOW_S,
            power_limit_w=_thousandth(limit_mw),
            power_limit_default_w=_thousandth(default_mw),
            mig=mig is not None and mig[0] == 1,
            note=None if counter is not None else f"no energy counter ({error or 'not supported'})",
        )

    def _probed(self, described: dict[int, MeterDevice], driver: str) -> None:
        """Add the sensors' periods to the descriptions: from the cache, else by watching all GPUs at once."""
        path = self.cache / "inference-cost-harness" / "nvml-sensors.json"
        known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text())
        new = [gpu for gpu in self.gpus if f"{gpu.uuid} {driver}" not in known]
        for gpu, seen in zip(new, self._watch(new), strict=True):
            known[f"{gpu.uuid} {driver}"] = seen
        for gpu in self.gpus:
            described[gpu.index] = replace(described[gpu.index], **known[f"{gpu.uuid} {driver}"])
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
        return [
            {
                "period_s": period_s(counter),
                "quantum_j": quantum(counter, per=1000),
                "average_period_s": period_s(average),
                "power_period_s": period_s(instant),
            }
            for counter, average, instant in changes
        ]


def _ask(handle: Any, name: str, *arguments: Any) -> Any:
    try:
        return getattr(pynvml, name)(handle, *arguments)
    except pynvml.NVMLError:
        return None


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _descends(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor` or comes from it, as far as /proc tells."""
    for _ in range(64):
        if pid == ancestor:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
        if pid <= 1:
            return False
    return False
