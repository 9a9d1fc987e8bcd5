"""Read endpoints in the Prometheus text format, and a power meter based on one (default: NVIDIA's DCGM exporter)."""

import http.client
import re
import time
import urllib.request
from collections.abc import Container, Iterator, Mapping
from typing import Any

from harness.errors import HarnessError
from harness.model import MeterDevice, MeterInfo, PowerSample

DCGM: Mapping[str, tuple[str, float]] = {
    "energy_j": ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1e-3),
    "average_w": ("DCGM_FI_DEV_POWER_USAGE", 1.0),
    "temperature_c": ("DCGM_FI_DEV_GPU_TEMP", 1.0),
    "sm_clock_hz": ("DCGM_FI_DEV_SM_CLOCK", 1e6),
}
"""Column of a sample -> the exporter's metric and its factor to SI units."""
COLLECT_S = 30.0
"""The exporter's default collection interval (its option -c), and so the maximum age of its values."""
TIMEOUT_S = 5.0
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_LABELS = r'(?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*'
_LINE = re.compile(
    rf"^(?P<metric>[a-zA-Z_:][\w:]*)(?:\{{(?P<labels>{_LABELS})\}})?[ \t]+(?P<value>{_NUMBER})(?!\S)", re.M
)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def parse(text: str, metrics: Container[str]) -> Iterator[tuple[str, dict[str, str], float]]:
    """(metric, labels, value) of each line for one of the metrics; lines without a finite number are skipped.

    >>> list(parse('# HELP w x\\nw{gpu="1",name="{a}"} 71.5 1700000000000\\nw nan\\nx 3\\n', {"w"}))
    [('w', {'gpu': '1', 'name': '{a}'}, 71.5)]
    """
    for line in _LINE.finditer(text):
        if line["metric"] in metrics:
            yield line["metric"], dict(_LABEL.findall(line["labels"] or "")), float(line["value"])


def fetch(url: str) -> str:
    """The text of the endpoint. Raises HarnessError if it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode(errors="replace"))
    except (OSError, ValueError, http.client.HTTPException) as failed:
        fix = "start the exporter, or give the meter's option `url`"
        raise HarnessError(f"{url} does not answer: {failed}", fix) from None


class PrometheusReader:
    """Scrapes an exporter.

    Options: `url`; `every_s`, the scrape interval; `collect_s`, the maximum age of the values, which widens every
    bound; `metrics`, replaces `DCGM`; `label`, identifies the device; `domain`, of the measured power.
    """

    next_s = 0.0

    def __init__(
        self,
        url: str,
        every_s: float = 1.0,
        collect_s: float = COLLECT_S,
        metrics: Mapping[str, tuple[str, float]] = DCGM,
        label: str = "gpu",
        domain: str = "gpu",
    ) -> None:
        self.url, self.every_s, self.collect_s, self.label, self.domain = url, every_s, collect_s, label, domain
        self.columns = {metric: (column, scale) for column, (metric, scale) in metrics.items()}
        self.devices: list[str] = []

    def open(self) -> MeterInfo:
        """Find the devices. Raises HarnessError if the endpoint does not answer or has none of the metrics."""
        found = self._scrape()
        if not found:
            fix = "check the exporter's list of fields, or give `metrics`"
            raise HarnessError(f"{self.url} has none of {', '.join(self.columns)}", fix)
        self.devices = sorted(found)
        period_s, devices = max(self.collect_s, self.every_s), []
        for name in self.devices:
            labels = found[name]
            counter_s = period_s if "energy_j" in labels else None
            ids = labels.get("modelName"), labels.get("UUID")
            devices.append(MeterDevice(name, self.domain, *ids, period_s=counter_s, average_period_s=period_s))
        return MeterInfo("prometheus", "measured", tuple(devices), clock_offset_s=self.collect_s)

    def read(self) -> list[PowerSample]:
        before_s, error = time.monotonic(), None
        found: dict[str, dict[str, Any]] = {}
        try:
            found = self._scrape()
        except HarnessError:
            error = "device=unreachable"
        after_s = time.monotonic()
        self.next_s = after_s + self.every_s
        samples = []
        for name in self.devices:
            values = {column: found.get(name, {}).get(column) for column, _ in self.columns.values()}
            samples.append(PowerSample(before_s, after_s, name, self.domain, error=error, **values))
        return samples

    def _scrape(self) -> dict[str, dict[str, Any]]:
        """Device -> its labels, and its values by column."""
        found: dict[str, dict[str, Any]] = {}
        for metric, labels, value in parse(fetch(self.url), self.columns):
            column, scale = self.columns[metric]
            found.setdefault(labels.get(self.label, "0"), {}).update(labels, **{column: value * scale})
        return found
