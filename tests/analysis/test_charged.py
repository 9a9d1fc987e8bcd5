"""Which of the GPUs that were read are charged to a stored run."""

from __future__ import annotations

from typing import Any

import pytest
from builders import CPU, GPU, a_run

from harness.analysis.energy import charge
from harness.model import Charged, MeterDevice, MeterInfo

EIGHT = MeterInfo(
    "nvml", "measured", tuple(MeterDevice(str(i), domain) for domain in ("gpu", "gpu memory") for i in range(8))
)
ONE = MeterInfo("nvml", "measured", (MeterDevice("0", "gpu"),))
OTHERS = MeterInfo("rapl", "measured", (MeterDevice("package-0", "cpu package"),))
SEEN = Charged(("3", "5"), "its processes run there", "H100")
UNKNOWN = Charged((), "nothing was seen")


@pytest.mark.parametrize(
    ("engine", "charged", "meter", "devices", "why", "codes"),
    [
        (GPU, SEEN, EIGHT, {"3", "5"}, None, []),
        (GPU, UNKNOWN, EIGHT, set(), "nothing was seen", ["gpus-unknown"]),
        (GPU, SEEN, ONE, set(), "the meter did not read GPU 3, 5, which the engine used", ["gpus-unknown"]),
        (GPU, Charged(("3",), "so it is", asked=("0",)), EIGHT, {"3"}, None, ["gpus-differ"]),
        (CPU, Charged((), "on the CPU"), EIGHT, set(), "the engine ran on the CPU", []),
        # Runs of an older harness do not say: as many GPUs as the engine used are its GPUs, and no more.
        (GPU, None, ONE, {"0"}, None, []),
        (GPU | {"device_count": 8}, None, EIGHT, {str(i) for i in range(8)}, None, []),
        (GPU, None, EIGHT, set(), "the run does not say which of 8 GPUs its engine used", ["gpus-unknown"]),
        (CPU, None, ONE, set(), "the engine ran on the CPU", []),
    ],
)
def test_energy_is_that_of_the_charged_gpus(
    engine: Any, charged: Charged | None, meter: MeterInfo, devices: set[str], why: str | None, codes: list[str]
) -> None:
    infos, uncharged, found = charge(a_run(engine=engine, charged=charged), [meter, OTHERS])
    assert {device.device for device in infos[0].devices} == devices
    assert infos[1] == OTHERS
    assert uncharged == why
    assert [each.code for each in found] == codes
    assert all(each.serious for each in found)


def test_without_nvml_nothing_is_in_question() -> None:
    assert charge(a_run(engine=GPU, charged=UNKNOWN), [OTHERS]) == ([OTHERS], None, [])


def test_price_counts_the_charged_gpus() -> None:
    place = {"gpus": [{"name": "T4"}, {"name": "H100"}]}
    seen = a_run(engine=GPU, charged=SEEN, environment=place).device
    assert (seen.kind, seen.name, seen.count) == ("gpu", "H100", 2)
    told = a_run(engine=GPU | {"device_count": 4}, charged=UNKNOWN, environment=place).device
    assert (told.name, told.count) == ("T4", 4)  # the engine's own count
    elsewhere = a_run(engine=GPU | {"device": "unknown"}, charged=SEEN, environment=place)
    assert elsewhere.on_gpu
    assert elsewhere.device.name == "H100"
    assert a_run(engine=CPU, charged=Charged((), "on the CPU"), environment=place).device.kind == "cpu"
