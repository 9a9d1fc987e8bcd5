"""Power of a server's chassis, reported by its management controller over Redfish (DMTF DSP0266, DSP0268)."""

import base64
import contextlib
import http.client
import json
import math
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from harness.errors import HarnessError
from harness.model import MeterDevice, MeterInfo, PowerSample

USER, PASSWORD, TOKEN = "HARNESS_REDFISH_USER", "HARNESS_REDFISH_PASSWORD", "HARNESS_REDFISH_TOKEN"
"""Environment variables with the credentials. They are sent to the controller only, and stored nowhere."""
TIMEOUT_S = 5.0
RENEW_S = 10.0
"""Longest time between two readings of a controller's sensors; the standard does not limit it."""
_INSIDE = ("Card", "Component", "Module", "Zone")
"""Types of chassis that are parts of another one, also where the controller does not say of which."""
_PARTS = ("CPU", "Memory", "GPU", "Accelerator", "Fan", "StorageDevice")
"""Physical contexts of a PowerControl that is a part of the chassis."""


class RedfishReader:
    """Polls the power of every chassis that is not inside another one; the domain is `host`.

    Options: `url` of the controller; `every_s`, the interval; `renew_s`, the longest time between the controller's own
    readings, which widens every bound; `chassis`, the Id of the only chassis to read; `ca`, a file of certificates;
    `verify: false` accepts any certificate. Of a chassis it reads EnvironmentMetrics (PowerWatts), else the older Power
    resource (PowerConsumedWatts, or its mean over IntervalInMin), else the inputs of its power supplies.
    """

    next_s = 0.0

    def __init__(
        self,
        url: str,
        every_s: float = 1.0,
        renew_s: float = RENEW_S,
        chassis: str | None = None,
        ca: str | None = None,
        verify: bool = True,
    ) -> None:
        self.site, self.every_s, self.renew_s = urlsplit(url), every_s, renew_s
        self.chassis, self.verify = chassis, verify
        try:
            self.context = ssl.create_default_context(cafile=ca)
        except OSError as wrong:
            fix = "give a PEM file as the meter's option `ca`"
            raise HarnessError(f"certificates in '{ca}': {wrong}", fix) from None
        if not verify:
            self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        self.found: dict[MeterDevice, list[str]] = {}
        """Each chassis, and the resources whose readings together are its power."""

    def open(self) -> MeterInfo:
        """Find the chassis. Raises HarnessError if the controller does not answer, refuses, or reports no power."""
        if self.site.username or self.site.password:  # the options of a meter are stored with the run
            raise HarnessError("the meter's url holds credentials", f"set {USER} and {PASSWORD}, or {TOKEN}")
        every = {path: self._get(path) for path in self._members(_link(self._get("/redfish/v1/"), "Chassis"))}
        known = {
            path: source
            for path, each in every.items()
            if (each.get("ChassisType") not in _INSIDE if self.chassis is None else self.chassis == each.get("Id"))
            and (source := self._source(each)) is not None
        }
        self.found = dict(source for path, source in known.items() if not set(_around(path, every)) & set(known))
        if not self.found:
            ids = ", ".join(str(each.get("Id")) for each in every.values()) or "none"
            what = f"{self.site.netloc} reports the power of no chassis asked for (chassis: {ids})"
            raise HarnessError(what, "check the account's rights and the option `chassis`")
        return MeterInfo("redfish", "measured", tuple(self.found))

    def read(self) -> Iterator[PowerSample]:
        for device, paths in self.found.items():
            before_s, error, watts = time.monotonic(), None, None
            try:
                seen = [_watts(self._get(path)) for path in paths]
                watts = math.fsum(each[0] for each in seen if each)
                if not all(seen):
                    watts, error = None, "power=absent"
            except HarnessError:
                error = "device=unreachable"
            span = before_s, time.monotonic(), device.device, device.domain
            value: dict[str, Any] = {"power_w" if device.average_window_s is None else "average_w": watts}
            yield PowerSample(*span, error=error, **value)
        self.next_s = time.monotonic() + self.every_s

    def _source(self, chassis: Mapping[str, Any]) -> tuple[MeterDevice, list[str]] | None:
        """The chassis, and the resources with its power; None if the controller does not report it."""
        for paths in ([_link(chassis, "EnvironmentMetrics")], [_link(chassis, "Power")], list(self._supplies(chassis))):
            found = [path for path in paths if path]
            seen: list[tuple[float, float | None] | None] = []
            with contextlib.suppress(HarnessError):  # a link to a resource that is not there
                seen = [_watts(self._get(path)) for path in found]
            if seen and all(seen):
                break
        else:
            return None
        mean_s = next((each[1] for each in seen if each), None)
        kind = "instant readings" if mean_s is None else f"means over {mean_s / 60:g} min"
        return MeterDevice(
            f"{self.site.hostname}/{chassis.get('Id')}",
            "host",
            chassis.get("Model") or chassis.get("Name"),
            power_period_s=self.renew_s if mean_s is None else None,
            average_period_s=mean_s,
            average_window_s=mean_s,
            note=f"{kind} of {found[0]}{'' if self.verify else ', whose certificate was not verified'}",
        ), found

    def _supplies(self, chassis: Mapping[str, Any]) -> Iterator[str | None]:
        """The resources with the input power of each power supply."""
        subsystem = _link(chassis, "PowerSubsystem")
        with contextlib.suppress(HarnessError):
            supplies = _link(self._get(subsystem), "PowerSupplies") if subsystem else None
            for path in self._members(supplies):
                yield _link(self._get(path), "Metrics")

    def _members(self, path: str | None) -> Iterator[str]:
        """Paths of a collection's members, over all its pages."""
        while path:
            page = self._get(path)
            yield from (member["@odata.id"] for member in page.get("Members") or ())
            path = page.get("Members@odata.nextLink")

    def _get(self, path: str) -> dict[str, Any]:
        """A resource of this controller. HarnessError if there is no answer, or none that is a resource."""
        link = urlsplit(path)
        url = urlunsplit((self.site.scheme, self.site.netloc, link.path, link.query, ""))
        request = urllib.request.Request(url, headers={"Accept": "application/json"})
        for name, value in self._credentials().items():
            request.add_unredirected_header(name, value)  # another host does not get it
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=self.context) as answer:
                resource: dict[str, Any] = dict(json.load(answer))
        except urllib.error.HTTPError as refused:
            fix = f"set {USER} and {PASSWORD}, or {TOKEN}" if refused.code in (401, 403) else "check the option `url`"
            raise HarnessError(f"{url} refuses: HTTP {refused.code}", fix) from None
        except (OSError, ValueError, TypeError, http.client.HTTPException) as failed:
            fix = "check the option `url`; for the controller's own certificate give `ca`"
            raise HarnessError(f"{url} does not answer: {failed}", fix) from None
        return resource

    def _credentials(self) -> dict[str, str]:
        """The header with the credentials of the environment; empty if there are none."""
        token, user = os.environ.get(TOKEN), os.environ.get(USER)
        if token is None and user is None:
            return {}
        if self.site.scheme != "https" and self.site.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise HarnessError("the credentials would be sent unencrypted", "give the url with https://")
        if token is not None:
            return {"X-Auth-Token": token}
        pair = f"{user}:{os.environ.get(PASSWORD, '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _link(resource: Mapping[str, Any], name: str) -> str | None:
    path = (resource.get(name) or {}).get("@odata.id")
    return None if path is None else str(path)


def _around(path: str, every: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The chassis that hold this one, from the inside out."""
    seen = {path}
    while (outer := _link(every.get(path, {}).get("Links") or {}, "ContainedBy")) and outer not in seen:
        seen.add(outer)
        yield outer
        path = outer


def _watts(resource: Mapping[str, Any]) -> tuple[float, float | None] | None:
    """Watts, and the seconds of which they are the mean (None: an instant reading); None without a power."""
    for name in ("PowerWatts", "InputPowerWatts"):
        if isinstance(watts := (resource.get(name) or {}).get("Reading"), int | float):
            return float(watts), None
    for control in resource.get("PowerControl") or ():
        means = control.get("PowerMetrics") or {}
        if control.get("PhysicalContext") in _PARTS:
            continue
        if isinstance(watts := control.get("PowerConsumedWatts"), int | float):
            return float(watts), None
        if isinstance(watts := means.get("AverageConsumedWatts"), int | float) and means.get("IntervalInMin"):
            return float(watts), 60.0 * means["IntervalInMin"]
    return None
