"""NVIDIA GPUs, read with NVML (package nvidia-ml-py). Supported features are found by asking each GPU."""

import contextlib
import functools
import json
import math
import os
import random
import statistics
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pynvml

from harness.errors import HarnessError
from harness.files import cache_root, write_cache
from harness.meters.gpus import ask, boards, descends, named, visible
from harness.meters.tracker import UpdateTracker, period_of, smallest_step, update_period_s
from harness.model import MeterDevice, MeterInfo, PowerSample, Status
from harness.periodic import LOOSE, STEADIEST

SLOW_S, SLOWEST_SLOW_S = 5.0, 7.0
"""Bounds of the interval of the slower readings: average and memory power, the time held back, and calls of `_CALLS`.
It is drawn anew each time, or they could meet a periodic load in the same phase."""
PROBE_S, LONGEST_PROBE_S = 3.0, 8.0
"""Duration of the probe; and at most, for a counter that moves so rarely that its period is not yet seen."""
SEARCHES, EXTRA = 30, 4
"""Most readings at random times and trials of a GPU in a round; trials after which an update is located."""
ROUNDS, GAP_S = 3, 3.0
"""Rounds for GPUs of which one is not in the cache, and the time between the first two: a long span narrows the
period. The time is in proportion to `probe_s`, and this for the usual probe."""
FIRST_S, LAST_S = 24.0, 6.0
"""Limits on the time of all trials before the load, and after it: eight slow counters could take minutes."""
SWEEP_S = 0.012
"""If reading all GPUs takes longer, one GPU of each name is probed, and the others take over its periods."""
ALIKE = 3e-4
"""Largest relative difference of such a period between boards of one name: their clocks are quartz."""
SHARE, SHARE_ALONE, SHARE_POWER = 0.004, 0.007, 0.02
"""Processor time spent on one GPU, as a share of a core: of several, of the only one, and without a counter. Up to a
half of it is for `_CALLS`."""
MOST_EACH, MOST = 0.008, 0.0344
"""Largest share of one GPU, and of all: what readings leave of it is for `_CALLS` as well."""
OWN_S = 0.0001
"""Processor time of a reading beside the driver's."""
LEAST_CALLS = 0.008
"""Smallest share of `_CALLS` to make with a slower reading of a GPU: one call in 150 s."""
FASTEST_S, SLOWEST_S = 0.25, 1.0
"""Bounds of the time between two readings of a GPU; without a counter `FASTEST_POWER_S` is the shortest."""
FASTEST_POWER_S = 0.04
SHORTEST_PERIOD_S = 0.005
"""Updates that come more often cannot be told apart, and are not located."""
SHORTEST_S = 0.0005
"""Least time that is allowed for a call."""
TOGETHER_S = 0.0005
"""Readings due this soon are taken now: waking up again would cost more."""
AVERAGE_WINDOW_S = 1.0
"""Averaging window of field 185 by NVML's documentation (nvml.h of CUDA 13.0, NVML_FI_DEV_POWER_AVERAGE)."""
GA100 = ("A100", "A30", "A800", "CMP 170HX")
"""Boards whose average power is over 25 ms of each 100 ms (Yang, Adamek and Armour, SC24), not over a second."""
_FIELDS = (
    ("energy", pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION),
    ("instant", pynvml.NVML_FI_DEV_POWER_INSTANT),
    ("average", pynvml.NVML_FI_DEV_POWER_AVERAGE),
    ("memory", pynvml.NVML_FI_DEV_POWER_AVERAGE),
    ("power_capped", pynvml.NVML_FI_DEV_PERF_POLICY_POWER),
    ("heat_capped", pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL),
)
"""The fields of a reading, in mJ (energy), mW and ns. Most readings are of the first `_FAST` alone, since a call takes
about a millisecond per field; power is among them because its spread bounds the error of a window's ends."""
_FAST, _FAST_POWER = 2, 3
_CALLS = (
    ("nvmlDeviceGetComputeRunningProcesses",),
    ("nvmlDeviceGetTemperatureV", 0),
    ("nvmlDeviceGetClockInfo", 1),
    ("nvmlDeviceGetCurrentClocksEventReasons",),
    ("nvmlDeviceGetUUID",),
)
"""What no field has: calls with their arguments. A GPU's calls are made in turn, as many as the share allows."""
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
    fast: int = _FAST
    """Number of fields of most readings."""
    next_s: float = 0.0
    slow_s: float = -math.inf
    """When the next slower reading is due."""
    counter: int | None = None
    """The energy counter at the last reading, in mJ."""
    calls: float = len(_CALLS)
    """Number of `_CALLS` to make with the next slower reading, and the fraction of one; all of them at first."""
    turn: int = 0
    """Number of `_CALLS` made so far."""
    key: str = ""
    """Under which the cache keeps its periods."""


class NvmlReader:
    """Reads energy counter and newest power, and every `SLOW_S` average and memory power and what explains them.

    Options: `devices`, a list of indices or UUID prefixes (default: those that CUDA shows to this process; all, if that
    is not known); `probe_s`, the duration of the probe of a GPU that is not in the cache (0: no GPU is probed or
    located); `every_s`, the interval between readings (default: from the time that a call takes, between `FASTEST_S`
    and `SLOWEST_S`). Processes that descend from this process's parent are the harness's own; others are foreign.
    """

    next_s = 0.0

    def __init__(
        self,
        devices: list[int | str] | None = None,
        probe_s: float = PROBE_S,
        every_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.devices, self.probe_s, self.every_s, self.clock, self.sleep = devices, probe_s, every_s, clock, sleep
        self.harness_pid = os.getppid()
        self.rng = random.Random(0)
        self.gpus: list[_Gpu] = []
        self.rows: list[PowerSample] = []
        self.calls_s: deque[float] = deque(maxlen=100)
        self.interval_s, self.jitter, self.calls = SLOWEST_S, 0.0, float(len(_CALLS))
        self.began_s = 0.0

    def open(self) -> MeterInfo:
        """Find the GPUs and their features. Raises HarnessError without a driver or a GPU."""
        try:
            listed = dict(boards())
            driver = str(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as error:
            fix = "install the NVIDIA driver, or choose another meter"
            raise HarnessError(f"NVML does not answer: {error}", fix) from None
        self._call = None
        with contextlib.suppress(pynvml.NVMLError):  # older drivers have no such function
            self._call = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetFieldValues")
        chosen = visible([*listed], os.environ) if self.devices is None else named(self.devices, [*listed])
        chosen = tuple(board for board in listed if board.uuid) if chosen is None else chosen
        if not any(board.uuid for board in listed):
            what = f"none of the {len(listed)} GPUs answers NVML" if listed else "NVML finds no GPU"
            raise HarnessError(what, "check `nvidia-smi`")
        if not chosen:
            what = f"CUDA_VISIBLE_DEVICES='{os.environ['CUDA_VISIBLE_DEVICES']}' shows none of the {len(listed)} GPUs"
            raise HarnessError(what, "correct or unset it, or name the engine's GPUs, for instance `--gpus 0`")
        self.gpus = [self._gpu(board.index, listed[board]) for board in chosen]
        new = self._probe(driver)
        if self.probe_s:
            rounds, gap_s = (ROUNDS, GAP_S * self.probe_s / PROBE_S) if new else (1, 0.0)
            self.rows = self._locate(rounds, gap_s, FIRST_S)
        self._begin()
        memory = [
            MeterDevice(
                gpu.device.device, "gpu memory", average_period_s=SLOWEST_SLOW_S, average_window_s=AVERAGE_WINDOW_S
            )
            for gpu in self.gpus
            if self._fetch(gpu, len(_FIELDS))[2][3] is not None
        ]
        # A test's driver has "simulated" in its version: its readings must not pass for measurements.
        status: Status = "simulated" if "simulated" in driver else "measured"
        return MeterInfo("nvml", status, (*(gpu.device for gpu in self.gpus), *memory), driver)

    def read(self) -> list[PowerSample]:
        """Read every GPU that is due; the first time, return the readings from before the load as well."""
        rows, self.rows = self.rows, []
        for gpu in sorted(self.gpus, key=lambda each: each.next_s):
            if gpu.next_s <= (now_s := self.clock()) + TOGETHER_S:  # the clock moves on: a call takes milliseconds
                gpu.next_s = gpu.tracker.safe_s(now_s)  # later, if the calls for other GPUs have made this one late
                rows += self._read(gpu) if gpu.next_s <= now_s + TOGETHER_S else []
        self.next_s = min(gpu.next_s for gpu in self.gpus)
        return rows

    def close(self) -> list[PowerSample]:
        """The last readings: they locate the updates again, so that those of the whole run lie between two bursts."""
        for gpu in self.gpus:
            gpu.tracker.plan, gpu.slow_s, gpu.calls = [], -math.inf, len(_CALLS)
        return [row for gpu in self.gpus for row in self._read(gpu)] + self._locate(1, 0.0, LAST_S)

    def _read(self, gpu: _Gpu, slow: bool = True) -> list[PowerSample]:
        """Read a GPU: `slow`, with what is read every `SLOW_S` if that is due."""
        slow = slow and self.clock() >= gpu.slow_s and not gpu.tracker.plan
        before_s, after_s, values, error = self._fetch(gpu, len(_FIELDS) if slow else gpu.fast)
        counter, instant, average, memory, power_capped, heat_capped = values
        changed = counter is not None and gpu.counter is not None and counter != gpu.counter
        gpu.tracker.observe(before_s, after_s, changed)
        gpu.counter = counter if counter is not None else gpu.counter
        more: dict[str, Any] = {}
        if slow:
            gpu.slow_s = before_s + self.rng.uniform(SLOW_S, SLOWEST_SLOW_S)
            capped = zip(("power_capped_s", "heat_capped_s"), (power_capped, heat_capped), strict=True)
            more = self._told(gpu) | {name: None if ns is None else ns / 1e9 for name, ns in capped}
            if (more.pop("uuid") or gpu.device.uuid) != gpu.device.uuid:
                error = f"{error or ''} device=uuid_changed".strip()
        if gpu.power_usage and (slow or gpu.fast == _FAST_POWER):
            average = ask(gpu.handle, "nvmlDeviceGetPowerUsage")
        name, watts = gpu.device.device, (from_milli(instant), from_milli(average))
        fast = (before_s, after_s, name, gpu.device.domain, from_milli(counter), *watts)
        samples = [PowerSample(*fast, error=error, **more)]
        if memory is not None:
            samples.append(PowerSample(before_s, after_s, name, "gpu memory", average_w=memory / 1000))
        line = gpu.tracker.line
        # In each interval all GPUs are read once, at a random time of its first part. Trials of several GPUs, or a
        # trial and the other GPUs' readings, would make each other late: so one GPU's trial, and in the second half.
        n, count = int((self.clock() - self.began_s) / self.interval_s) + 1, len(self.gpus)
        slot_s = self.began_s + (n + random.Random(n).uniform(0.0, self.jitter)) * self.interval_s
        if self.interval_s >= FASTEST_S and before_s + AVERAGE_WINDOW_S >= gpu.slow_s:
            slot_s = before_s + AVERAGE_WINDOW_S  # the counter is read at both ends of the second of average power
        trial_from_s = slot_s + self.interval_s / 2 * (count > 1) if self.gpus[n % count] is gpu else None
        if gpu.tracker.doubtful:
            trial_from_s = self.clock()
        gpu.next_s = gpu.tracker.next_read_s(self.clock(), slot_s, trial_from_s)
        if gpu.tracker.line is not line:
            self._narrow(gpu)
        return samples

    def _fetch(self, gpu: _Gpu, count: int) -> tuple[float, float, list[int | None], str | None]:
        """Times before and after the call, the values of `_FIELDS`, and errors other than `not supported`."""
        values: list[int | None] = [None] * len(_FIELDS)
        before_s = self.clock()
        if self._call is None:
            values[0] = ask(gpu.handle, "nvmlDeviceGetTotalEnergyConsumption")
            self.calls_s.append(self.clock() - before_s)
            return before_s, self.clock(), values, None
        code = self._call(gpu.handle, count, gpu.fields)
        after_s = self.clock()
        self.calls_s.append(after_s - before_s)
        if code:
            return before_s, after_s, values, f"device={_CODES.get(code, code)}"
        error = None
        for i, (_, _, _, _, _, status, value) in enumerate(_FIELD.iter_unpack(gpu.fields)):
            if i >= count:
                break
            if status and status != pynvml.NVML_ERROR_NOT_SUPPORTED:
                error = f"{error or ''} {_FIELDS[i][0]}={_CODES.get(status, status)}".strip()
            # A board without a power sensor reports 0 mW. The energy counter may be 0.
            if not status and (value or not 0 < i < 4):
                values[i] = value & 0xFFFFFFFF if 0 < i < 4 else value
        return before_s, after_s, values, error

    def _told(self, gpu: _Gpu) -> dict[str, Any]:
        """Make the calls of `_CALLS` whose turn it is; the columns of a reading, and the UUID."""
        made: dict[str, Any] = {}
        while gpu.calls >= 1:
            function, *arguments = _CALLS[gpu.turn % len(_CALLS)]
            made[function] = ask(gpu.handle, function, *arguments)
            gpu.calls, gpu.turn = gpu.calls - 1, gpu.turn + 1
        gpu.calls += self.calls
        get = made.get
        sm_mhz, running = get("nvmlDeviceGetClockInfo"), get("nvmlDeviceGetComputeRunningProcesses")
        own = [descends(process.pid, self.harness_pid) for process in running or ()]
        return {
            "temperature_c": get("nvmlDeviceGetTemperatureV"),
            "sm_clock_hz": sm_mhz and sm_mhz * 1e6,
            "throttle": get("nvmlDeviceGetCurrentClocksEventReasons"),
            "processes": None if running is None else sum(own),
            "foreign_processes": None if running is None else len(own) - sum(own),
            "uuid": get("nvmlDeviceGetUUID"),
        }

    def _gpu(self, index: int, handle: Any) -> _Gpu:
        """A GPU with its features. Only Grace-Hopper reports power of the module but not of the GPU."""
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
        gpu = _Gpu(handle, device, UpdateTracker(self.rng), fields)
        _, _, (counter, instant, average, *_), error = self._fetch(gpu, len(_FIELDS))
        gpu.power_usage = average is None and instant is None
        gpu.fast = _FAST_POWER if counter is None or (instant is None and average is not None) else _FAST
        second = average is not None and not any(board in (device.name or "") for board in GA100)
        note = None if counter is not None else f"no energy counter ({error or 'not supported'})"
        gpu.device = replace(device, average_window_s=AVERAGE_WINDOW_S if second else None, note=note)
        return gpu

    def _probe(self, driver: str) -> bool:
        """Add the sensors' update periods to the devices: from the cache, else by measuring. Whether a GPU is new."""
        path = cache_root() / "nvml-sensors.json"
        known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text())
        for gpu in self.gpus:
            gpu.key = f"{gpu.device.uuid} {driver}"
        new = [gpu for gpu in self.gpus if gpu.key not in known]
        slow = statistics.median(self.calls_s or [0.0]) * len(new) > SWEEP_S
        groups: dict[Any, list[_Gpu]] = {}
        for gpu in new:
            groups.setdefault((gpu.device.name, gpu.device.note) if slow else gpu.key, []).append(gpu)
        for group, periods in zip(groups.values(), self._measure_periods([g[0] for g in groups.values()]), strict=True):
            for gpu in group:
                known[gpu.key] = dict(periods)
                if gpu is not group[0] and (half_s := periods["period_half_s"]) is not None:
                    known[gpu.key]["period_half_s"] = half_s + ALIKE * (periods["period_s"] or 0.0)
        self.cached = known
        for gpu in self.gpus:
            self._adopt(gpu)
        if new:
            self._remember()
        return bool(new)

    def _adopt(self, gpu: _Gpu) -> None:
        """Give a GPU the periods that the cache has for it."""
        gpu.device = replace(gpu.device, **self.cached[gpu.key])
        if (period_s := gpu.device.period_s) is not None and period_s > SHORTEST_PERIOD_S:
            half_s = max(gpu.device.period_half_s or LOOSE * period_s, STEADIEST * period_s)
            gpu.tracker.period = period_s - half_s, period_s + half_s

    def _probe_slower(self) -> None:
        """Probe the GPUs whose counters are slower than the period that they took over, and keep what they show."""
        slower = [gpu for gpu in self.gpus if gpu.tracker.slower]
        for gpu in slower:
            gpu.tracker = UpdateTracker(self.rng)
        for gpu, periods in zip(slower, self._measure_periods(slower), strict=True):
            if periods["period_s"] is not None:  # else it stands still
                self.cached[gpu.key] = periods
                self._adopt(gpu)
        if slower:
            self._remember()

    def _remember(self) -> None:
        """Keep the sensors' periods. A counter that did not change is not cached: the cause may be temporary."""
        kept = {key: periods for key, periods in self.cached.items() if periods["period_s"] is not None}
        if kept:
            write_cache(cache_root() / "nvml-sensors.json", json.dumps(kept))

    def _locate(self, rounds: int, gap_s: float, limit_s: float) -> list[PowerSample]:
        """Make the readings that locate the counters' updates, when there is no load.

        Rounds are `gap_s` apart, then three times as long each time. What is left of `limit_s` is shared out evenly
        among the trials of the GPUs and rounds to come.
        """
        rows: list[PowerSample] = []
        left = rounds * len(self.gpus)
        for round_ in range(rounds):
            for gpu in self.gpus:
                more, began_s = EXTRA, self.clock()
                for _ in range(SEARCHES):
                    if gpu.tracker.period is None or not more or self.clock() > began_s + limit_s / left:
                        break
                    rows += self._trial(gpu, self.clock())
                    gpu.tracker.call_s = max(SHORTEST_S, 1.25 * statistics.median(self.calls_s))
                    more -= gpu.tracker.located
                self._narrow(gpu)
                limit_s, left = limit_s - (self.clock() - began_s), left - 1
            if round_ < rounds - 1:
                self._probe_slower()
                self.sleep(gap_s * 3**round_)
        return rows

    def _trial(self, gpu: _Gpu, begin_s: float) -> list[PowerSample]:
        rows: list[PowerSample] = []
        for instant in gpu.tracker.trial_s(begin_s):
            self.sleep(max(0.0, instant - self.clock()))
            rows += self._read(gpu, slow=False)
        gpu.tracker.locate()
        return rows

    def _begin(self) -> None:
        """Set the interval of the readings, and begin them."""
        counted = all(gpu.device.period_s is not None for gpu in self.gpus)
        share = SHARE_POWER if not counted else SHARE_ALONE if len(self.gpus) == 1 else SHARE
        fastest_s = FASTEST_S if counted else FASTEST_POWER_S
        self.jitter = 0.2 if counted else 0.8
        began_s, reading_s = self.clock(), statistics.median(self.calls_s) + OWN_S
        for function, *arguments in _CALLS:
            ask(self.gpus[0].handle, function, *arguments)
        all_s = max(SHORTEST_S, self.clock() - began_s)
        left = max(share / 2, share - all_s / SLOW_S)
        self.interval_s = self.every_s or min(SLOWEST_S, max(fastest_s, reading_s / left))
        most = max(share, min(MOST_EACH, MOST / len(self.gpus)))
        calls = (most - reading_s / self.interval_s) * SLOW_S / all_s
        self.calls = len(_CALLS) * min(1.0, max(LEAST_CALLS, calls))
        self.began_s = self.clock()
        for i, gpu in enumerate(self.gpus):  # not all GPUs make a call at the same time
            gpu.next_s, gpu.calls = self.began_s, len(_CALLS) + i / len(self.gpus)

    def _narrow(self, gpu: _Gpu) -> None:
        """Keep the period of a counter, with its doubt, if it is known better than before."""
        better, known_s = period_of(gpu.tracker.line, None), gpu.device.period_half_s
        if (half_s := better["period_half_s"]) is not None and (known_s is None or half_s < 0.7 * known_s):
            gpu.device = replace(gpu.device, period_s=better["period_s"], period_half_s=half_s)
            self.cached[gpu.key] |= better
            self._remember()

    def _measure_periods(self, gpus: list[_Gpu]) -> list[dict[str, float | None]]:
        """Read up to once a millisecond for `probe_s`, and derive the update periods from the changes."""
        changes: list[list[list[tuple[float, int]]]] = [[[] for _ in range(3)] for _ in gpus]
        began_s = self.clock()
        longest_s = max(self.probe_s, LONGEST_PROBE_S) if self.probe_s >= PROBE_S else self.probe_s
        rare = True  # some counter has moved, but not often enough for its period
        while gpus and (passed_s := self.clock() - began_s) < (longest_s if rare else self.probe_s):
            for gpu, of_gpu in zip(gpus, changes, strict=True):
                before_s, after_s, values, _ = self._fetch(gpu, 3)
                moved = bool(of_gpu[0]) and values[0] is not None and of_gpu[0][-1][1] != values[0]
                gpu.tracker.observe(before_s, after_s, moved)
                for of_field, value in zip(of_gpu, values, strict=False):
                    if value is not None and (not of_field or of_field[-1][1] != value):
                        of_field.append((before_s, value))
            rare = any(1 < len(energy) < 7 or (passed_s < PROBE_S and len(energy) == 1) for energy, *_ in changes)
            self.sleep(0.001)
        for gpu, (energy, _, _) in zip(gpus, changes, strict=True):
            if (period_s := update_period_s(energy)) is not None:
                gpu.tracker.period = period_s * (1 - LOOSE), period_s * (1 + LOOSE)
                gpu.tracker.locate()
        return [
            {
                **period_of(gpu.tracker.line, update_period_s(energy)),
                "power_period_s": update_period_s(instant),
                "average_period_s": update_period_s(average),
                "quantum_j": from_milli(smallest_step(energy)),
            }
            for gpu, (energy, instant, average) in zip(gpus, changes, strict=True)
        ]


def from_milli(value: int | None) -> float | None:
    """mW to W, or mJ to J."""
    return None if value is None else value / 1000
