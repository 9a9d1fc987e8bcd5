"""Read endpoints in the Prometheus text format, and a power meter based on one (default: NVIDIA's DCGM exporter)."""

import http.client
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from typing import Any

from harness.errors import HarnessError
from harness.files import data_rows
from harness.model import MeterDevice, MeterInfo, PowerSample

DCGM = {row["column"]: (row["metric"], float(row["factor"])) for row in data_rows("dcgm.csv")}
"""Column of a sample -> the exporter's metric and its factor to SI units."""
COLLECT_S = 30.0
"""The exporter's default collection interval (its option -c), and so the maximum age of its values."""
HOSTS = ("Hostname", "hostname", "instance", "node", "host")
"""Labels that name the host, the first that a line has. GPU 0 of each host is another GPU."""
TIMEOUT_S = 5.0
MOST_BYTES = 16 << 20
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
    """The text of the endpoint. Raises HarnessError if it does not answer, or if its answer does not end."""
    data, until_s = bytearray(), time.monotonic() + 2 * TIMEOUT_S
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            while part := answer.read1(MOST_BYTES):
                data += part
                if len(data) > MOST_BYTES or time.monotonic() > until_s:
                    raise OSError(f"the answer has no end after {len(data):,} bytes")
        return data.decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException) as failed:
        fix = "start the exporter, or give the meter's option `url`"
        raise HarnessError(f"{url} does not answer: {failed}", fix) from None


_Key = tuple[str, str, str]
"""Host, UUID and label of a device; empty if the exporter does not report it."""


class PrometheusReader:
    """Scrapes an exporter.

    Options: `url`; `every_s`, the scrape interval; `collect_s`, the maximum age of the values, which widens every
    bound; `metrics`, replaces `DCGM`; `label`, identifies the device on its host; `domain`, of the measured power. Of a
    GPU divided into MIG instances each instance's line has the power of the whole board, which counts once.
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
        self.devices: dict[_Key, str] = {}
        """Name of each device: its label, with its host or UUID where another device has the same."""

    def open(self) -> MeterInfo:
        """Find the devices. Raises HarnessError if the endpoint does not answer or has none of the metrics."""
        if "@" in self.url or "?" in self.url:  # the options of a meter are stored with the run
            raise HarnessError("the meter's url holds credentials or a query", "give an address that needs neither")
        found = self._scrape()
        if not found:
            fix = "check the exporter's list of fields, or give `metrics`"
            raise HarnessError(f"{self.url} has none of {', '.join(self.columns)}", fix)
        again = Counter(device for _, _, device in found)
        self.devices = {key: key[2] if again[key[2]] == 1 else f"{key[0] or key[1]}/{key[2]}" for key in sorted(found)}
        period_s, devices = max(self.collect_s, self.every_s), []
        for key, name in self.devices.items():
            labels = found[key]
            counter_s = period_s if "energy_j" in labels else None
            ids, mig = (labels.get("modelName"), labels.get("UUID")), bool(labels.get("GPU_I_ID"))
            devices.append(MeterDevice(name, self.domain, *ids, period_s=counter_s, average_period_s=period_s, mig=mig))
        return MeterInfo("prometheus", "measured", tuple(devices), clock_offset_s=self.collect_s)

    def read(self) -> Iterator[PowerSample]:
        before_s, error = time.monotonic(), None
        found: dict[_Key, dict[str, Any]] = {}
        try:
            found = self._scrape()
        except HarnessError:
            error = "device=unreachable"
        after_s = time.monotonic()
        self.next_s = after_s + self.every_s
        for key, name in self.devices.items():
            values = {column: found.get(key, {}).get(column) for column, _ in self.columns.values()}
            yield PowerSample(before_s, after_s, name, self.domain, error=error, **values)

    def _scrape(self) -> dict[_Key, dict[str, Any]]:
        """Device -> its labels, and its values by column."""
        found: dict[_Key, dict[str, Any]] = {}
        for metric, labels, value in parse(fetch(self.url), self.columns):
            column, scale = self.columns[metric]
            host = next((labels[name] for name in HOSTS if labels.get(name)), "")
            device = found.setdefault((host, labels.get("UUID", ""), labels.get(self.label, "0")), {})
            device.update(labels, **{column: value * scale})
        return found
