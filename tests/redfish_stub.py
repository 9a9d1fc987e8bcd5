"""A management controller of known power, by Redfish's schema, on loopback."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from places import ROOT

CERTIFICATE = ROOT / "tests/data/redfish/loopback.pem"
"""Made for these tests: it proves nothing, and is valid for 127.0.0.1 for a hundred years."""
V1 = "/redfish/v1"
Resources = Mapping[str, Mapping[str, Any]]


def link(path: str) -> dict[str, str]:
    return {"@odata.id": path}


def collection(*paths: str) -> dict[str, Any]:
    return {"Members": [link(path) for path in paths], "Members@odata.count": len(paths)}


def chassis(name: str, within: str | None = None, **links: str) -> dict[str, Any]:
    contained = {} if within is None else {"ContainedBy": link(f"{V1}/Chassis/{within}")}
    about = {"Id": name, "Name": f"chassis {name}", "ChassisType": "RackMount", "Links": contained}
    return about | {key: link(path) for key, path in links.items()}


def modern(watts: float) -> dict[str, Any]:
    """One chassis with EnvironmentMetrics, as since 2020."""
    return {
        f"{V1}/": {"Chassis": link(f"{V1}/Chassis")},
        f"{V1}/Chassis": collection(f"{V1}/Chassis/1U"),
        f"{V1}/Chassis/1U": chassis("1U", EnvironmentMetrics=f"{V1}/Chassis/1U/EnvironmentMetrics"),
        f"{V1}/Chassis/1U/EnvironmentMetrics": {"PowerWatts": {"Reading": watts, "ReadingUnits": "W"}},
    }


def older(*controls: Mapping[str, Any]) -> dict[str, Any]:
    """One chassis with the Power resource, as before 2020."""
    return {
        f"{V1}/": {"Chassis": link(f"{V1}/Chassis")},
        f"{V1}/Chassis": collection(f"{V1}/Chassis/1U"),
        f"{V1}/Chassis/1U": chassis("1U", Power=f"{V1}/Chassis/1U/Power"),
        f"{V1}/Chassis/1U/Power": {"PowerControl": list(controls)},
    }


@contextlib.contextmanager
def controller(
    resources: Resources, allowed: Callable[[Mapping[str, str]], bool] = lambda _: True, tls: bool = False
) -> Iterator[str]:
    """The URL of a controller with these resources, which answers 401 to headers that are not allowed."""

    class Controller(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = resources.get(self.path)
            self.send_response(404 if found is None else 200 if allowed(dict(self.headers)) else 401)
            self.end_headers()
            self.wfile.write(json.dumps(found or {}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Controller) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
        server.shutdown()
