"""A declared constant power: for machines where nothing can be read. Always assumed, never measured."""

from __future__ import annotations

import math
import time

from harness.errors import HarnessError
from harness.model import MeterDevice, MeterInfo, PowerSample

MARGIN_S = 60.0
"""A constant held before and after the run too, so that it spans every window of it."""


class ConstantMeter:
    """Options: `watts`, of all devices together; `domain` that they are of."""

    def __init__(self, watts: float, domain: str = "gpu") -> None:
        if not (math.isfinite(watts) and watts > 0):
            raise HarnessError(f"assumed power {watts} W", "give watts above 0, for instance --assume-power 350")
        self.watts, self.domain = float(watts), domain
        self.samples: list[PowerSample] = []

    def start(self) -> MeterInfo:
        self._say(-MARGIN_S)
        return self._info()

    def drain(self) -> list[PowerSample]:
        self._say(0.0)
        samples, self.samples = self.samples, []
        return samples

    def stop(self) -> MeterInfo:
        self._say(0.0)
        self._say(MARGIN_S)
        return self._info()

    def _say(self, later_s: float) -> None:
        at_s = time.monotonic() + later_s
        if not self.samples or at_s > self.samples[-1].after_s:
            self.samples.append(PowerSample(at_s, at_s, "assumed", self.domain, average_w=self.watts))

    def _info(self) -> MeterInfo:
        return MeterInfo(
            "constant", "assumed", (MeterDevice("assumed", self.domain, note=f"{self.watts:g} W declared"),)
        )
