"""Energy of CPU packages and DRAM: RAPL counters in Linux's powercap (Intel, and AMD under the same name)."""

import functools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from harness.errors import HarnessError
from harness.model import MeterDevice, MeterInfo, PowerSample

GRANT = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj /sys/class/powercap/intel-rapl:*:*/energy_uj"
UPDATE_S = 0.001
"""Update period of the counters (Intel Software Developer's Manual, volume 3B, RAPL)."""
MIRROR_UJ, MIRROR_S = 200_000, 0.03
"""Counters of two dies are one if two readings at once come so close, and are mostly apart by what the package uses in
so short a time: a package of 200 W uses 0.2 J in an update period."""
LOOKS, LOOK_S = 20, 0.05


@dataclass(slots=True)
class _Zone:
    device: str
    domain: str
    path: Path
    place: str
    """The package to whose die the zone belongs; empty if the package is not divided into dies."""
    range_uj: int = 0
    """The counter wraps to zero after this value."""
    last_uj: int = 0
    wrapped_uj: int = 0
    """Energy counted before the last wrap."""
    fault: str | None = None
    """Why the zone cannot be read."""

    def counter_uj(self) -> int:
        return int((self.path / "energy_uj").read_text())

    def joules(self) -> float:
        """The counter with its wraps added."""
        now_uj = self.counter_uj()
        if now_uj < self.last_uj:
            self.wrapped_uj += self.range_uj
        self.last_uj = now_uj
        return (now_uj + self.wrapped_uj) / 1e6


class RaplReader:
    """Reads every package and its DRAM. Options: `every_s`, the interval; `root`, replaces the sysfs directory.

    Some machines show the counter of a package once for each die: such a counter is read once. A zone that cannot be
    read keeps its place, with an error in its samples, so that the others do not pass for the whole.
    """

    next_s = 0.0

    def __init__(self, every_s: float = 0.1, root: str = "/sys/class/powercap") -> None:
        self.every_s, self.root = every_s, Path(root)
        self.zones: list[_Zone] = []

    def open(self) -> MeterInfo:
        """Find the zones. Raises HarnessError if there is none, or none is readable."""
        refused = None
        for path in sorted(self.root.glob("intel-rapl:*")):
            zone = _zone(path)
            if zone is None:
                continue
            try:
                zone.range_uj, zone.last_uj = int((path / "max_energy_range_uj").read_text()), zone.counter_uj()
            except (OSError, ValueError) as error:
                zone.fault = type(error).__name__
                refused = error if isinstance(error, PermissionError) else refused
            if not any(_mirrored(zone, other) for other in self.zones):
                self.zones.append(zone)
        if all(zone.fault for zone in self.zones):
            if refused is not None:
                raise HarnessError(f"no permission to read RAPL: {refused.filename}", GRANT)
            raise HarnessError(f"no RAPL zone under {self.root}", "use a physical machine whose CPU has RAPL")
        device = functools.partial(MeterDevice, period_s=UPDATE_S, quantum_j=1e-6)
        devices = (device(zone.device, zone.domain, zone.path.name, note=zone.fault) for zone in self.zones)
        return MeterInfo("rapl", "measured", tuple(devices))

    def read(self) -> Iterator[PowerSample]:
        for zone in self.zones:
            joules, fault, before_s = None, zone.fault, time.monotonic()
            if fault is None:
                try:
                    joules = zone.joules()
                except (OSError, ValueError) as failed:
                    fault = type(failed).__name__
            error, after_s = fault and f"energy={fault}", time.monotonic()
            yield PowerSample(before_s, after_s, zone.device, zone.domain, energy_j=joules, error=error)
        self.next_s = time.monotonic() + self.every_s


def _zone(path: Path) -> _Zone | None:
    """The package's or DRAM's zone in this directory; None for another kind of zone."""
    try:
        name = (path / "name").read_text().strip()
        above = path.name.rpartition(":")[0]  # of a zone of DRAM: its package's
        package = name if name.startswith("package") else (path.parent / above / "name").read_text().strip()
    except OSError:
        return None
    domain = "cpu package" if name.startswith("package") else name
    die = re.fullmatch(r"(package-\d+)-die-\d+", package)
    known = domain in ("cpu package", "dram")
    return _Zone(path.name.split(":")[1], domain, path, die[1] if die else "") if known else None


def _mirrored(zone: _Zone, other: _Zone) -> bool:
    """Whether two dies of one package show the same counter: apart by what is used between two readings.

    Counters of two dies differ by what one has used more than the other since the machine started.
    """
    if zone.fault or other.fault or not zone.place or (zone.place, zone.domain) != (other.place, other.domain):
        return False
    began_s, first_uj, apart_uj = time.monotonic(), zone.counter_uj(), []
    for _ in range(LOOKS):
        apart_uj.append(abs(zone.counter_uj() - other.counter_uj()))
        time.sleep(LOOK_S)
    power_uw = (zone.counter_uj() - first_uj) / (time.monotonic() - began_s)
    return min(apart_uj) <= MIRROR_UJ and median(apart_uj) <= max(MIRROR_UJ, MIRROR_S * power_uw)
