"""The meters other than NVML, and the contract of every meter."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from builders import frame_of
from places import ROOT

from harness.analysis.energy import measure_energy
from harness.errors import HarnessError
from harness.meters.base import create_meter
from harness.meters.prometheus import PrometheusReader
from harness.meters.rapl import RaplReader
from harness.model import MeterInfo, PowerSample

NO_REQUESTS = frame_of([])


def zone(root: Path, name: str, label: str, energy_uj: int, range_uj: int = 1_000_000) -> Path:
    path = root / name
    path.mkdir(parents=True)
    (path / "name").write_text(f"{label}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path


def test_rapl_reads_packages_and_dram_and_adds_wraps(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    dram = zone(tmp_path, "intel-rapl:0:1", "dram", 5_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1)
    zone(tmp_path, "intel-rapl:1", "psys", 1)
    reader = RaplReader(root=str(tmp_path))
    info = reader.open()
    assert [(d.device, d.domain) for d in info.devices] == [("0", "cpu package"), ("0", "dram")]
    seen = []
    for package_uj, dram_uj in ((900_000, 5_000), (999_000, 6_000), (100_000, 7_000), (50_000, 8_000)):
        (package / "energy_uj").write_text(str(package_uj))
        (dram / "energy_uj").write_text(str(dram_uj))
        seen.append([s.energy_j for s in reader.read()])
    assert seen == [[0.9, 0.005], [0.999, 0.006], [1.1, 0.007], [2.05, 0.008]]


def rapl_devices(root: Path) -> list[tuple[str, str, str | None]]:
    return [(d.device, d.domain, d.note) for d in RaplReader(root=str(root)).open().devices]


def test_rapl_reads_a_counter_that_two_dies_show_once_and_counters_of_two_dies_both(tmp_path: Path) -> None:
    for i in range(2):  # one counter, the second reading a moment later
        zone(tmp_path / "one", f"intel-rapl:{i}", f"package-0-die-{i}", 10**9 + 50 * i)
        zone(tmp_path / "one", f"intel-rapl:{i}:0", "dram", 10**8 + 50 * i)
        zone(tmp_path / "two", f"intel-rapl:{i}", f"package-0-die-{i}", 10**9 + 10**6 * i)  # 1 J apart
        zone(tmp_path / "same", f"intel-rapl:{i}", f"package-{i}", 10**9)  # two packages are never one
    assert rapl_devices(tmp_path / "one") == [("0", "cpu package", None), ("0", "dram", None)]
    assert rapl_devices(tmp_path / "two") == [("0", "cpu package", None), ("1", "cpu package", None)]
    assert len(rapl_devices(tmp_path / "same")) == 2


def test_a_rapl_zone_that_cannot_be_read_leaves_no_sum_of_the_others(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (zone(tmp_path, "intel-rapl:1", "package-1", 0) / "max_energy_range_uj").unlink()
    reader = RaplReader(root=str(tmp_path))
    info = reader.open()
    assert [d.note for d in info.devices] == [None, "FileNotFoundError"]
    rows = pd.DataFrame([sample for _ in range(3) for sample in reader.read()])
    assert rows["error"].dropna().unique().tolist() == ["energy=FileNotFoundError"]
    energy = measure_energy(rows, (info,), NO_REQUESTS, rows["after_s"].min(), rows["before_s"].max())
    package = energy["energy_j.cpu_package"]
    assert (package.value, package.reason) == (None, "cpu package 1 cannot be read")
    assert "cpu package 1" in next(each.text for each in energy.findings if each.code == "meter-error")


def test_rapl_without_permission_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    read_text = Path.read_text

    def refusing(self: Path, *arguments: Any, **options: Any) -> str:  # root ignores file modes
        if self == path / "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refusing)
    with pytest.raises(HarnessError, match="no permission to read") as refused:
        RaplReader(root=str(tmp_path)).open()
    assert refused.value.fix.startswith("sudo chmod a+r /sys/class/powercap")
    with pytest.raises(HarnessError, match="no RAPL zone"):
        RaplReader(root=str(tmp_path / "none")).open()


def test_rapl_polled_in_its_process_gives_the_energy_of_the_cpu_package(tmp_path: Path) -> None:
    """The counter is a file that this test writes: 10 W for a second."""
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0, range_uj=10**12)
    meter = create_meter("rapl", {"root": str(tmp_path), "every_s": 0.01})
    meter.start()
    began = time.monotonic()
    while (now := time.monotonic() - began) < 1.0:
        draft = package / "draft"
        draft.write_text(str(int(now * 10e6)))
        draft.replace(package / "energy_uj")
        time.sleep(0.002)
    info = meter.stop()
    power = pd.DataFrame(meter.drain())
    power[["before_s", "after_s"]] -= began
    figure = measure_energy(power, (info,), NO_REQUESTS, 0.2, 0.8)["energy_j.cpu_package"]
    assert figure.value == pytest.approx(6.0, rel=0.25)
    assert figure.low <= 6.0 <= figure.high  # type: ignore[operator]
    assert figure.status == "measured"


EXPORTED = """# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a",modelName="NVIDIA H100"} 412.5
DCGM_FI_DEV_POWER_USAGE{gpu="1",UUID="GPU-b",modelName="NVIDIA H100"} 88.25
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a",modelName="NVIDIA H100"} 1234567
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a",modelName="NVIDIA H100"} nan
"""


@contextlib.contextmanager
def exporting(text: str) -> Iterator[str]:
    class Exporter(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(text.encode() if self.path == "/metrics" else b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Exporter) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def exporter() -> Iterator[str]:
    with exporting(EXPORTED) as url:
        yield url


def test_gpus_of_several_hosts_and_instances_of_one_gpu_are_told_apart() -> None:
    """MIG: the line of each instance has the power of the whole board, 52.6 W here."""
    with exporting((ROOT / "tests/data/dcgm_mig.prom").read_text()) as url:
        reader = PrometheusReader(f"{url}/metrics")
        assert [(d.device, d.mig) for d in reader.open().devices] == [("0", True), ("1", False)]
        assert [(s.average_w, s.energy_j) for s in reader.read()] == [(52.636, 1000.0), (56.127, 2000.0)]
    line = 'DCGM_FI_DEV_POWER_USAGE{{gpu="0",UUID="GPU-{0}",{1}}} {2}\n'
    for label in ("Hostname", "instance"):
        text = "".join(line.format(host, f'{label}="{host}"', watts) for host, watts in (("a", 100), ("b", 200)))
        with exporting(text) as url:
            reader = PrometheusReader(f"{url}/metrics")
            assert [(d.device, d.uuid) for d in reader.open().devices] == [("a/0", "GPU-a"), ("b/0", "GPU-b")]
            assert [s.average_w for s in reader.read()] == [100, 200]
    with exporting(line.format("a", 'x="1"', 100) + line.format("b", 'x="1"', 200)) as url:  # no label names the host
        assert [d.device for d in PrometheusReader(f"{url}/metrics").open().devices] == ["GPU-a/0", "GPU-b/0"]


def test_prometheus_reads_the_metrics_of_dcgm(exporter: str) -> None:
    reader = PrometheusReader(f"{exporter}/metrics", collect_s=2.0)
    info = reader.open()
    assert [(d.device, d.uuid, d.period_s) for d in info.devices] == [("0", "GPU-a", 2.0), ("1", "GPU-b", None)]
    assert info.clock_offset_s == 2.0
    zero, one = reader.read()
    assert (zero.energy_j, zero.average_w, zero.temperature_c) == (1234.567, 412.5, None)
    assert (one.energy_j, one.average_w, one.error) == (None, 88.25, None)


def test_an_unreachable_exporter_is_an_error_in_its_samples(exporter: str) -> None:
    reader = PrometheusReader(f"{exporter}/metrics")
    reader.open()
    reader.url = "http://127.0.0.1:9/metrics"
    assert {(s.error, s.average_w) for s in reader.read()} == {("device=unreachable", None)}
    with pytest.raises(HarnessError, match="does not answer"):
        reader.open()
    with pytest.raises(HarnessError, match="has none of"):
        PrometheusReader(f"{exporter}/metrics", metrics={"average_w": ("node_power_watts", 1.0)}).open()


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_an_external_meters_log_is_read_at_the_end_and_measured(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    meter = create_meter("replay", {"path": str(path), "clock": "unix", "domain": "host", "device": "plug"})
    assert meter.start().status == "measured"
    began, utc = time.monotonic(), time.time()
    text = "time,watts\n" + "".join(f"{utc - 5 + i / 10:.3f},500\n" for i in range(101))
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    info = meter.stop()
    power = pd.DataFrame(meter.drain())
    power[["before_s", "after_s"]] -= began
    assert info.devices[0].average_period_s == pytest.approx(0.1, rel=0.01)
    assert 51 <= len(power) < 101  # rows after now are not part of the run
    assert power["before_s"].min() == pytest.approx(-5, abs=0.05)
    assert {(d, w) for d, w in zip(power["domain"], power["average_w"], strict=True)} == {("host", 500.0)}


def test_a_recording_is_simulated_and_returned_as_time_passes(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("# a recording\n0,100\n0.1,200\n3600,300\n")
    meter = create_meter("replay", {"path": str(path)})
    assert meter.start().status == "simulated"
    time.sleep(0.15)
    assert [s.average_w for s in meter.drain()] == [100, 200]
    assert meter.drain() == []
    assert meter.stop().status == "simulated"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1\nnow,2\n", "log.csv:2: 'now,2'"),
        ("0,1\n", "1 rows"),
        ("1,1\n1,2\n", "2 rows, or times that do not increase"),
        ("0,1\n1,nan\n2,1\n", ":2: '1,nan'"),
        ("0,-1\n1,1\n2,1\n", ":1: '0,-1'"),
        ("0,1\n" + 200_000 * "1", ":2: '1111"),
    ],
)
def test_an_invalid_recording_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(HarnessError, match=message):
        create_meter("replay", {"path": str(path)}).start()


def test_a_declared_constant_has_the_status_assumed() -> None:
    meter = create_meter("constant", {"watts": 350})
    info = meter.start()
    began = time.monotonic()
    samples = meter.drain()
    time.sleep(0.3)
    assert meter.stop() == info
    power = pd.DataFrame([*samples, *meter.drain()])
    power[["before_s", "after_s"]] -= began
    result = measure_energy(power, (info,), NO_REQUESTS, 0.0, 0.25)
    assert result["energy_j.gpu"].value == pytest.approx(350 * 0.25)
    assert {f.status for f in result.figures if f.name in ("energy_j.gpu", "gpu_power_w")} == {"assumed"}
    assert result["energy_j.gpu"].interval.startswith("bound of the power integral")
    with pytest.raises(HarnessError, match="assumed power -1"):
        create_meter("constant", {"watts": -1})


@pytest.mark.parametrize(("name", "options"), [("constant", {"watts": 5}), ("replay", None), ("rapl", None)])
def test_every_meter_fulfils_the_contract(tmp_path: Path, name: str, options: dict[str, Any] | None) -> None:
    """Samples are in time order, on the monotonic clock, and of devices that `start` returned."""
    (tmp_path / "log.csv").write_text("0,1\n0.01,2\n")
    zone(tmp_path, "intel-rapl:0", "package-0", 7)
    options = options or {"replay": {"path": str(tmp_path / "log.csv")}, "rapl": {"root": str(tmp_path)}}[name]
    meter = create_meter(name, options)
    info = meter.start()
    assert isinstance(info, MeterInfo)
    time.sleep(0.05)
    samples = meter.drain()
    closed = meter.stop()
    samples += meter.drain()
    assert closed.error is None
    assert samples
    assert all(isinstance(s, PowerSample) for s in samples)
    assert {(s.device, s.domain) for s in samples} <= {(d.device, d.domain) for d in info.devices}
    assert [s.before_s for s in samples] == sorted(s.before_s for s in samples)
    assert all(s.before_s <= s.after_s for s in samples)
