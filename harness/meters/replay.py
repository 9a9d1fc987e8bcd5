"""Power that is not read from hardware: a recording, an external meter's log of this run, or a declared constant."""

import math
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from harness.errors import HarnessError
from harness.files import read_text
from harness.model import MeterDevice, MeterInfo, PowerSample

MARGIN_S = 60.0
"""A constant is reported from this long before the run to this long after it, so that it covers every window."""


class ConstantMeter:
    """Constant power, for machines without a meter. Options: `watts` of all devices together; their `domain`."""

    def __init__(self, watts: float, domain: str = "gpu") -> None:
        if not (math.isfinite(watts) and watts > 0):
            raise HarnessError(f"assumed power {watts} W", "give watts above 0, for instance --assume-power 350")
        self.watts, self.domain, self.margin = float(watts), domain, [-MARGIN_S]

    def start(self) -> MeterInfo:
        device = MeterDevice("assumed", self.domain, average_window_s=MARGIN_S, note=f"{self.watts:g} W declared")
        return MeterInfo("constant", "assumed", (device,))

    def drain(self) -> list[PowerSample]:
        instants = sorted(time.monotonic() + later_s for later_s in (0.0, *self.margin))
        self.margin = []
        return [PowerSample(t, t, "assumed", self.domain, average_w=self.watts) for t in instants]

    def stop(self) -> MeterInfo:
        self.margin.append(MARGIN_S)
        return self.start()


class ReplayMeter:
    """Replays rows of `seconds,watts` from a CSV file, which may be gzipped.

    Options: `path`; `clock`; `offset_s`, the maximum error of the file's clock; `domain` and `device` of the measured
    power (domain `host`: at the plug). With `clock: relative` times count from the meter's start, and the samples are
    simulated. With `clock: unix` times are Unix time in the log of an external meter, the file is read at the end of
    the run, and the samples are measured.
    """

    def __init__(
        self, path: str, clock: str = "relative", offset_s: float = 0.0, domain: str = "gpu", device: str = "0"
    ) -> None:
        if clock not in ("relative", "unix"):
            raise HarnessError(f"replay: clock '{clock}'", "choose relative or unix")
        self.path, self.relative = Path(path), clock == "relative"
        devices = (MeterDevice(device, domain, self.path.name),)
        self.info = MeterInfo("replay", "simulated" if self.relative else "measured", devices, clock_offset_s=offset_s)
        self.samples: list[PowerSample] = []

    def start(self) -> MeterInfo:
        """Raises HarnessError if the file (unix: its folder) is missing or has another form."""
        if self.relative:
            self._load(time.monotonic())
        elif not self.path.parent.is_dir():
            raise HarnessError(f"no folder {self.path.parent} for the external meter's log", "give the log's path")
        return self.info

    def drain(self) -> list[PowerSample]:
        """The rows up to now that were not returned yet."""
        now_s = time.monotonic()
        due = [s for s in self.samples if s.after_s <= now_s]
        self.samples = self.samples[len(due) :]
        return due

    def stop(self) -> MeterInfo:
        if not self.relative:
            try:
                self._load(time.monotonic() - time.time())
            except HarnessError as wrong:
                return replace(self.info, error=wrong.what)
        return self.info

    def _load(self, zero_s: float) -> None:
        rows = read_table(self.path)
        spacing_s = float(np.median(np.diff([t for t, _ in rows])))
        # A logging meter reports the mean since its previous row.
        device = replace(self.info.devices[0], average_period_s=spacing_s, average_window_s=spacing_s)
        self.info = replace(self.info, devices=(device,))
        of = device.device, device.domain
        self.samples = [PowerSample(zero_s + t, zero_s + t, *of, average_w=w) for t, w in rows]


def read_table(path: Path) -> list[tuple[float, float]]:
    """The (seconds, watts) rows of a CSV file; a header and lines that start with # are skipped.

    Raises HarnessError if the file is unreadable, a row has another form (naming its line), there are fewer than two
    rows, or times do not increase.
    """
    rows: list[tuple[float, float]] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        cells = [cell.strip(' "') for cell in line.split(",")]
        if cells == [""] or cells[0].startswith("#"):
            continue
        try:
            time_s, watts = map(float, cells[:2])
            if not (math.isfinite(time_s) and 0 <= watts < math.inf):
                raise ValueError
            rows.append((time_s, watts))
        except ValueError:
            if rows or cells[0][:1].isdigit():
                raise HarnessError(f"{path}:{number}: '{line:.80}'", "each line is seconds,watts") from None
    if len(rows) < 2 or any(b[0] <= a[0] for a, b in pairwise(rows)):
        what = f"{path}: {len(rows)} rows, or times that do not increase"
        raise HarnessError(what, "give two or more rows, in time order")
    return rows
