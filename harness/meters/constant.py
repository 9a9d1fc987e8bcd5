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
        self.watts, self.margin = float(watts), [-MARGIN_S]
        self.info = MeterInfo("constant", "assumed", (MeterDevice("assumed", domain, note=f"{watts:g} W declared"),))

    def start(self) -> MeterInfo:
        return self.info

    def drain(self) -> list[PowerSample]:
        instants = sorted(time.monotonic() + later_s for later_s in (0.0, *self.margin))
        self.margin = []
        (device,) = self.info.devices
        return [PowerSample(t, t, device.device, device.domain, average_w=self.watts) for t in instants]

    def stop(self) -> MeterInfo:
        self.margin.append(MARGIN_S)
        return self.info
