"""Energy of CPU packages and DRAM: RAPL counters in Linux's powercap (Intel, and AMD under the same name)."""

import time
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.model import MeterDevice, MeterInfo, PowerSample

GRANT = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj /sys/class/powercap/intel-rapl:*:*/energy_uj"
UPDATE_S = 0.001
"""Update period of the counters (Intel Software Developer's Manual, volume 3B, RAPL)."""


@dataclass(slots=True)
class _Zone:
    device: str
    domain: str
    path: Path
    range_uj: int
    """The counter wraps to zero after this value."""
    last_uj: int
    wrapped_uj: int = 0
    """Energy counted before the last wrap."""

    def joules(self) -> float:
        """The counter with its wraps added."""
        now_uj = int((self.path / "energy_uj").read_text())
        if now_uj < self.last_uj:
            self.wrapped_uj += self.range_uj
        self.last_uj = now_uj
        return (now_uj + self.wrapped_uj) / 1e6


class RaplReader:
    """Reads every package and its DRAM. Options: `every_s`, the interval; `root`, replaces the sysfs directory."""

    next_s = 0.0

    def __init__(self, every_s: float = 0.1, root: str = "/sys/class/powercap") -> None:
        self.every_s, self.root = every_s, Path(root)
        self.zones: list[_Zone] = []

    def open(self) -> MeterInfo:
        """Find the zones. Raises HarnessError if there is none, or none is readable."""
        refused = None
        for path in sorted(self.root.glob("intel-rapl:*")):
            try:
                name = (path / "name").read_text().strip()
                if (domain := "cpu package" if name.startswith("package") else name) in ("cpu package", "dram"):
                    range_uj, now_uj = (int((path / f).read_text()) for f in ("max_energy_range_uj", "energy_uj"))
                    self.zones.append(_Zone(path.name.split(":")[1], domain, path, range_uj, now_uj))
            except PermissionError as error:
                refused = error
            except (OSError, ValueError):
                continue
        if not self.zones:
            if refused is not None:
                raise HarnessError(f"no permission to read RAPL: {refused.filename}", GRANT)
            raise HarnessError(f"no RAPL zone under {self.root}", "use a physical machine whose CPU has RAPL")
        devices = (MeterDevice(z.device, z.domain, z.path.name, period_s=UPDATE_S, quantum_j=1e-6) for z in self.zones)
        return MeterInfo("rapl", "measured", tuple(devices))

    def read(self) -> list[PowerSample]:
        samples = []
        for zone in self.zones:
            joules, error, before_s = None, None, time.monotonic()
            try:
                joules = zone.joules()
            except (OSError, ValueError) as failed:
                error = f"energy={type(failed).__name__}"
            after_s = time.monotonic()
            samples.append(PowerSample(before_s, after_s, zone.device, zone.domain, energy_j=joules, error=error))
        self.next_s = time.monotonic() + self.every_s
        return samples
