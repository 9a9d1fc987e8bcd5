"""The Redfish meter against a management controller of known power."""

from __future__ import annotations

import base64
import json
import os
import time
from typing import Any

import pandas as pd
import pytest
from builders import frame_of
from redfish_stub import CERTIFICATE, V1, chassis, collection, controller, link, modern, older

from harness.analysis.energy import measure_energy
from harness.errors import HarnessError
from harness.meters.base import create_meter
from harness.meters.redfish import PASSWORD, TOKEN, USER, RedfishReader
from harness.model import MeterDevice, MeterInfo, PowerSample

PATH = f"{V1}/Chassis/1U"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (USER, PASSWORD, TOKEN):
        monkeypatch.delenv(name, raising=False)


def read(resources: dict[str, Any], **options: Any) -> tuple[tuple[MeterDevice, ...], list[PowerSample]]:
    with controller(resources) as url:
        reader = RedfishReader(url, **options)
        return reader.open().devices, list(reader.read())


def test_environment_metrics_are_instant_readings() -> None:
    (device,), (sample,) = read(modern(412.0), renew_s=3.0)
    assert (device.device, device.domain, device.name) == ("127.0.0.1/1U", "host", "chassis 1U")
    assert (device.power_period_s, device.average_window_s) == (3.0, None)
    assert device.note == f"instant readings of {PATH}/EnvironmentMetrics"
    assert (sample.power_w, sample.average_w, sample.error) == (412.0, None, None)


def test_the_older_power_resource_counts_the_chassis_and_not_its_parts() -> None:
    controls = (
        {"MemberId": "1", "PhysicalContext": "CPU", "PowerConsumedWatts": 150},
        {
            "MemberId": "0",
            "PowerConsumedWatts": 344,
            "PowerMetrics": {"IntervalInMin": 20, "AverageConsumedWatts": 319},
        },
    )
    (device,), (sample,) = read(older(*controls))
    assert (sample.power_w, sample.average_w, device.average_window_s) == (344.0, None, None)


def test_means_have_the_interval_that_the_controller_tells() -> None:
    (device,), (sample,) = read(older({"PowerMetrics": {"IntervalInMin": 1, "AverageConsumedWatts": 319}}))
    assert (device.average_window_s, device.average_period_s, device.power_period_s) == (60.0, 60.0, None)
    assert device.note == f"means over 1 min of {PATH}/Power"
    assert (sample.power_w, sample.average_w) == (None, 319.0)


def test_inputs_of_power_supplies_are_added_where_the_chassis_tells_no_power() -> None:
    resources = modern(0) | {f"{PATH}/EnvironmentMetrics": {"TemperatureCelsius": {"Reading": 40}}}
    resources[PATH]["PowerSubsystem"] = link(f"{PATH}/PowerSubsystem")
    resources |= {
        f"{PATH}/PowerSubsystem": {"PowerSupplies": link(f"{PATH}/PowerSupplies"), "CapacityWatts": 3000},
        f"{PATH}/PowerSupplies": collection(f"{PATH}/PS0", f"{PATH}/PS1"),
        **{f"{PATH}/PS{i}": {"Metrics": link(f"{PATH}/PS{i}/Metrics")} for i in (0, 1)},
        **{f"{PATH}/PS{i}/Metrics": {"InputPowerWatts": {"Reading": 200.0 + i}} for i in (0, 1)},
    }
    assert [sample.power_w for sample in read(resources)[1]] == [401.0]


def test_a_link_to_a_resource_that_is_absent_or_tells_no_number_is_passed_over() -> None:
    resources = older({"PowerConsumedWatts": 344})
    resources[PATH] |= {"EnvironmentMetrics": link(f"{PATH}/Absent"), "PowerSubsystem": link(f"{PATH}/Absent")}
    assert [sample.power_w for sample in read(resources)[1]] == [344.0]
    resources[f"{PATH}/Absent"] = {"PowerWatts": {"Reading": "N/A"}}
    assert [sample.power_w for sample in read(resources)[1]] == [344.0]


def several() -> dict[str, Any]:
    """Two servers on two pages of the collection; the first holds a board of GPUs, and a module of unknown place."""
    names = ("A", "GPUs", "Module", "B")
    inner = {"A": None, "GPUs": "A", "Module": None, "B": None}
    paths = [f"{V1}/Chassis/{name}" for name in names]
    resources: dict[str, Any] = {
        f"{V1}/": {"Chassis": link(f"{V1}/Chassis")},
        f"{V1}/Chassis": collection(*paths[:3]) | {"Members@odata.nextLink": f"{V1}/Chassis?$skip=3"},
        f"{V1}/Chassis?$skip=3": collection(*paths[3:]),
    }
    for name, path, watts in zip(names, paths, (900.0, 600.0, 300.0, 500.0), strict=True):
        resources[path] = chassis(name, inner[name], EnvironmentMetrics=f"{path}/EnvironmentMetrics")
        resources[f"{path}/EnvironmentMetrics"] = {"PowerWatts": {"Reading": watts}}
    resources[paths[2]]["ChassisType"] = "Module"
    return resources


def test_of_several_chassis_those_inside_another_are_not_counted_again() -> None:
    devices, samples = read(several())
    assert [device.device for device in devices] == ["127.0.0.1/A", "127.0.0.1/B"]
    assert [sample.power_w for sample in samples] == [900.0, 500.0]
    assert [sample.power_w for sample in read(several(), chassis="GPUs")[1]] == [600.0]
    with pytest.raises(HarnessError, match=r"no chassis asked for \(chassis: A, GPUs, Module, B\)"):
        read(several(), chassis="C")


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({USER: "u", PASSWORD: "secret"}, ("Authorization", f"Basic {base64.b64encode(b'u:secret').decode()}")),
        ({TOKEN: "secret"}, ("X-Auth-Token", "secret")),
    ],
)
def test_credentials_come_from_the_environment_and_are_stored_nowhere(
    variables: dict[str, str], header: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {key.lower(): value for key, value in (header,)}
    with controller(
        modern(400.0), lambda got: sent.items() <= {k.lower(): v for k, v in got.items()}.items(), tls=True
    ) as url:
        reader = RedfishReader(url, ca=str(CERTIFICATE))
        with pytest.raises(HarnessError, match="HTTP 401") as refused:
            reader.open()
        assert USER in refused.value.fix
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        info = reader.open()
        assert [sample.power_w for sample in reader.read()] == [400.0]
    assert "secret" not in json.dumps([str(info), [str(each) for each in vars(reader).values()]])
    from harness.measure.environment import settings

    assert not {USER, PASSWORD, TOKEN} & set(settings(os.environ))


def test_credentials_are_neither_taken_from_the_url_nor_sent_unencrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HarnessError, match="url holds credentials"):
        RedfishReader("https://u:secret@127.0.0.1:9").open()
    monkeypatch.setenv(TOKEN, "secret")
    with pytest.raises(HarnessError, match="would be sent unencrypted"):
        RedfishReader("http://bmc.example").open()


def test_a_certificate_is_verified_unless_the_user_says_not_to() -> None:
    with controller(modern(400.0), tls=True) as url:
        with pytest.raises(HarnessError, match="CERTIFICATE_VERIFY_FAILED"):
            RedfishReader(url).open()
        (device,) = RedfishReader(url, verify=False).open().devices
        assert str(device.note).endswith("whose certificate was not verified")
        assert RedfishReader(url, ca=str(CERTIFICATE)).open().devices
    with pytest.raises(HarnessError, match="certificates in"):
        RedfishReader(url, ca="/none.pem")


def test_a_controller_that_stops_answering_is_an_error_in_its_samples() -> None:
    resources = modern(400.0)
    with controller(resources) as url:
        reader = RedfishReader(url)
        reader.open()
        resources[f"{PATH}/EnvironmentMetrics"] = {"PowerWatts": {"Reading": None}}
        assert [(sample.power_w, sample.error) for sample in reader.read()] == [(None, "power=absent")]
        del resources[f"{PATH}/EnvironmentMetrics"]
        assert [(sample.power_w, sample.error) for sample in reader.read()] == [(None, "device=unreachable")]


def test_the_chassis_less_what_other_meters_read_is_the_rest_of_the_host() -> None:
    """500 W for 4 s, of which a package used 100 W; nobody read the memory, which is in the rest, and says so."""
    with controller(modern(500.0)) as url:
        meter = create_meter("redfish", {"url": url, "every_s": 0.1, "renew_s": 0.1})
        info = meter.start()
        began = time.monotonic()
        time.sleep(1.2)
        meter.stop()
        host = meter.drain()
    package = MeterInfo("rapl", "measured", (MeterDevice("0", "cpu package", period_s=0.001, quantum_j=1e-6),))
    counter = [PowerSample(x, x + 1e-4, "0", "cpu package", energy_j=100 * x) for x in (0.01 * i for i in range(120))]
    rows = pd.DataFrame([*host, *counter])
    rows.iloc[: len(host), :2] -= began
    rest = measure_energy(rows, (info, package), frame_of([]), 0.2, 1.0)["energy_j.rest_of_host"]
    assert rest.value == pytest.approx(0.8 * 400, rel=0.02)
    assert rest.status == "measured"
    assert "gpu, dram in it" in rest.interval
