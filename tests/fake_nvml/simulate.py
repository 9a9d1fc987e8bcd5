"""Runs the NVML reader on the library's virtual clock: options as JSON on stdin, what it read on stdout.

Sleeping overruns as on a real machine: some tens of microseconds, and once in a hundred times 5 ms.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import random
import sys

import pynvml

from harness.meters.nvml import NvmlReader

READ_S = 5e-6
BEFORE_S = 45.0
"""The reader is opened this long before t = 0, as before a load: it probes the GPUs and locates their updates."""


class VirtualClock:
    """Time that passes only when it is asked for, or slept through."""

    def __init__(self) -> None:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        self._set, self._time = library.fake_nvml_set_time, library.fake_nvml_time
        self._set.argtypes, self._time.restype = [ctypes.c_double], ctypes.c_double
        self._rng = random.Random(11)
        self.go(-BEFORE_S)

    @property
    def now_s(self) -> float:
        """The library's clock: a call that keeps the processor busy moves it on."""
        return float(self._time())

    def go(self, now_s: float) -> None:
        self._set(now_s)

    def read(self) -> float:
        self.go(self.now_s + READ_S)
        return self.now_s

    def sleep(self, seconds: float) -> None:
        late_s = self._rng.expovariate(1 / 80e-6) + (0.005 if self._rng.random() < 0.01 else 0.0)
        self.go(self.now_s + max(0.0, seconds) + late_s)


def main() -> None:
    asked = json.load(sys.stdin)
    clock = VirtualClock()
    reader = NvmlReader(clock=clock.read, sleep=clock.sleep, **asked.get("reader", {}))
    info = reader.open()
    rows = [dataclasses.asdict(sample) for sample in reader.read()]
    while clock.now_s < asked["seconds"]:
        clock.sleep(reader.next_s - clock.now_s)
        rows += [dataclasses.asdict(sample) for sample in reader.read()]
    rows += [dataclasses.asdict(sample) for sample in reader.close()]
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    differences = []
    for start_s, end_s in asked.get("windows", []):
        pair = []
        for instant in (start_s, end_s):
            clock.go(instant)
            pair.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
        differences.append(pair[1] - pair[0])
    json.dump({"info": dataclasses.asdict(info), "rows": rows, "differences": differences}, sys.stdout)


if __name__ == "__main__":
    main()
