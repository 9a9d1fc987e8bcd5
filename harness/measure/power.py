"""The meters of one run: from before it has a directory until after its engine has stopped."""

import time
from collections.abc import Sequence
from typing import Self

from harness.meters.base import start_meters
from harness.model import Charged
from harness.store.directory import RunWriter

IDLE_S = 3.0
"""Length of each metered span without load."""


class Power:
    """The meters asked for, their readings on the way into the run's journal, and the spans without load."""

    def __init__(self, asked: Sequence[str], gpus: Sequence[str] | None) -> None:
        started, self.absent = start_meters(asked, gpus)
        self.meters = [meter for meter, _ in started]
        self.infos = tuple(info for _, info in started)
        self.writer: RunWriter | None = None
        self._idle: dict[str, tuple[float, float]] = {}
        self._newest_w: dict[str, float] = {}
        """GPU -> its newest reading."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the meters, and store their last readings and their descriptions."""
        infos = tuple(meter.stop() for meter in self.meters)
        if self.writer is not None:
            self.drain()
            zero_s = self.writer.file.clock.monotonic_s if self.writer.file.clock else 0.0
            idle = {name: (begun - zero_s, ended - zero_s) for name, (begun, ended) in self._idle.items()}
            self.writer.update(meters=infos, idle=idle)

    def idle(self, name: str) -> None:
        """Wait for `IDLE_S`, so that the meters read the power without load."""
        if self.meters:
            self.drain()  # a meter stops reading while its pipe is full
            begun = time.monotonic()
            time.sleep(IDLE_S)
            self._idle[name] = begun, time.monotonic()
            self.drain()

    def forget(self, name: str) -> None:
        """Drop a span that turned out not to be idle."""
        self._idle.pop(name, None)

    def drain(self) -> None:
        """Move the readings of the meters into the run's journal."""
        for meter in self.meters:
            if (samples := meter.drain()) and self.writer is not None:
                self.writer.add(*samples)
            self._newest_w |= {x.device: x.power_w for x in samples if x.domain == "gpu" and x.power_w is not None}

    def now_w(self, charged: Charged | None) -> float | None:
        """Newest power of the charged GPUs together; None if none was read."""
        found = [watts for device, watts in self._newest_w.items() if charged and device in charged.devices]
        return sum(found) if found else None
