"""Meters of hosts that show one thing several times, or not all of it."""

from __future__ import annotations

import contextlib
import http.server
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from gauntlet.trap import Load, Stand, Trap, Truth, Wrong
from places import ROOT
from redfish_stub import V1, chassis, collection, controller, link

LOAD = Load(requests=40, users=4)
SECONDS, OF_RUN = 2.5, 0.6
"""How long the simulated engine takes for that load, and the tolerance for the part of it that is the window."""


@contextlib.contextmanager
def rapl(zones: Mapping[str, str], watts: float, unreadable: str = "", range_j: float = 262143.0) -> Iterator[Stand]:
    """Zones (directory -> name) whose counters count `watts` while the stand is up, and begin again at `range_j`."""
    with tempfile.TemporaryDirectory() as made:
        root, began, stop = Path(made), time.monotonic(), threading.Event()

        def write() -> None:
            counter = f"{1e6 * ((1e3 + watts * (time.monotonic() - began)) % range_j):.0f}\n"
            for zone in zones:
                draft = root / zone / "draft"
                draft.write_text(counter)
                draft.replace(root / zone / "energy_uj")

        def count() -> None:
            while not stop.wait(0.005):
                write()

        for zone, name in zones.items():
            (root / zone).mkdir()
            (root / zone / "name").write_text(f"{name}\n")
            if zone != unreadable:
                (root / zone / "max_energy_range_uj").write_text(f"{range_j * 1e6:.0f}\n")
        write()
        thread = threading.Thread(target=count)
        thread.start()
        try:
            yield Stand(options=("--meter", f"rapl:root={root}"))
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def exporter(text: str) -> Iterator[Stand]:
    """An exporter that always shows this text."""

    class Exporter(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Exporter) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        yield Stand(options=("--meter", f"prometheus:url={url},every_s=0.2,collect_s=0.2"))
        server.shutdown()


@contextlib.contextmanager
def chassis_of_parts() -> Iterator[Stand]:
    """A server of 400 W with four boards inside, each of which tells the same 400 W."""
    names = ("Server", *(f"Board{i}" for i in range(4)))
    paths = [f"{V1}/Chassis/{name}" for name in names]
    resources = {f"{V1}/": {"Chassis": link(f"{V1}/Chassis")}, f"{V1}/Chassis": collection(*paths)}
    for name, path in zip(names, paths, strict=True):
        within = None if name == "Server" else "Server"
        resources[path] = chassis(name, within, EnvironmentMetrics=f"{path}/EnvironmentMetrics")
        resources[f"{path}/EnvironmentMetrics"] = {"PowerWatts": {"Reading": 400.0}}
    with controller(resources) as url:
        yield Stand(options=("--meter", f"redfish:url={url},every_s=0.2,renew_s=0.2"))


DIES = {f"intel-rapl:{i}": f"package-0-die-{i}" for i in range(4)}
SOCKETS = {f"intel-rapl:{i}": f"package-{i}" for i in range(2)}
POWER = "".join(line + "\n" for line in (ROOT / "tests/data/dcgm_mig.prom").read_text().splitlines() if "POWER" in line)
TRAPS = (
    Trap(
        name="rapl-mirrored-dies",
        kind="meter",
        behaviour="the counter of a package of 68 W is shown by each of its four dies",
        why="The package would use 272 W.",
        source="powercap zones named package-N-die-M on processors whose dies share a counter",
        stand=lambda: rapl(DIES, 68.0),
        load=LOAD,
        truths=(Truth("energy_j.cpu_package", 68 * SECONDS, within=OF_RUN),),
        falls=(Wrong("every zone adds up", {"energy_j.cpu_package": 4 * 68 * SECONDS}),),
    ),
    Trap(
        name="rapl-wrapped",
        kind="meter",
        behaviour="the counter of a package of 68 W begins again each 1.5 s",
        why="The energy would be negative, or that of the last turn.",
        source="powercap's max_energy_range_uj",
        stand=lambda: rapl({"intel-rapl:0": "package-0"}, 68.0, range_j=102.0),
        load=LOAD,
        truths=(Truth("energy_j.cpu_package", 68 * SECONDS, within=OF_RUN),),
        falls=(Wrong("the difference of two readings", {"energy_j.cpu_package": 68 * SECONDS % 102 - 102}),),
    ),
    Trap(
        name="rapl-unreadable-socket",
        kind="meter",
        behaviour="one of two packages cannot be read",
        why="Half of the processors' energy would pass for the whole.",
        source="powercap zones without a range, or without the permission to read",
        stand=lambda: rapl(SOCKETS, 68.0, unreadable="intel-rapl:1"),
        load=LOAD,
        truths=(Truth("energy_j.cpu_package", None),),
        must_say=("meter-error",),
        falls=(Wrong("the socket that can be read", {"energy_j.cpu_package": 68 * SECONDS}),),
    ),
    Trap(
        name="dcgm-mig",
        kind="meter",
        behaviour="a GPU of 52.6 W in two instances, whose lines each have the power of the board; another of 56.1 W",
        why="The board would count once for each instance, or the power of the board pass for one instance's.",
        source="dcgm-exporter's labels GPU_I_ID and GPU_I_PROFILE",
        stand=lambda: exporter(POWER),
        load=LOAD,
        truths=(Truth("gpu_power_w", 52.636 + 56.127, within=0.01),),
        must_say=("mig",),
        falls=(Wrong("every line adds up", {"gpu_power_w": 2 * 52.636 + 56.127}),),
    ),
    Trap(
        name="redfish-chassis-of-parts",
        kind="meter",
        behaviour="a server of 400 W holds four boards that tell a power too",
        why="The host would use 2,000 W.",
        source="Redfish's Links.ContainedBy (DMTF DSP0268)",
        stand=chassis_of_parts,
        load=LOAD,
        truths=(Truth("energy_j.rest_of_host", 400 * SECONDS, within=OF_RUN),),
        falls=(Wrong("every chassis adds up", {"energy_j.rest_of_host": 5 * 400 * SECONDS}),),
    ),
)
