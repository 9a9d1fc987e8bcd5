"""The interface of a meter, the table of meters, and their start from the command line's words.

To add a meter, write a module with a class that implements `Meter`, or `sampler.Reader` if it must be polled, and add a
line to `METERS`.
"""

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from harness.config import read_yaml
from harness.errors import HarnessError
from harness.meters.sampler import Polled
from harness.model import MeterInfo, PowerSample

METERS: Mapping[str, str] = {
    "constant": "harness.meters.replay:ConstantMeter",
    "nvml": "harness.meters.nvml:NvmlReader",
    "prometheus": "harness.meters.prometheus:PrometheusReader",
    "rapl": "harness.meters.rapl:RaplReader",
    "redfish": "harness.meters.redfish:RedfishReader",
    "replay": "harness.meters.replay:ReplayMeter",
}
"""Name -> `module:class`. A class whose name ends in Reader is polled by a separate process (`sampler.Polled`)."""
AUTO = ("nvml", "rapl")
"""The meters that `auto` tries, in this order."""


class Meter(Protocol):
    """One source of power readings, constructed as `Class(options)`.

    `start` opens it and raises HarnessError if there is nothing to read. Later methods do not raise: a meter that fails
    returns no more samples, or samples with an `error`, and the run continues. `drain` returns the samples since the
    last call without waiting; call it about twice a second, and once after `stop`.
    """

    def start(self) -> MeterInfo: ...

    def drain(self) -> list[PowerSample]: ...

    def stop(self) -> MeterInfo: ...


def create_meter(name: str, options: Mapping[str, Any] | None = None) -> Meter:
    """Construct the meter of that name without starting it.

    Raises HarnessError for an unknown name or an option the meter does not have.

    >>> create_meter("wattson")
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: unknown meter 'wattson'
      fix: choose one of constant, nvml, prometheus, rapl, redfish, replay
    """
    if name not in METERS:
        raise HarnessError(f"unknown meter '{name}'", f"choose one of {', '.join(METERS)}")
    if METERS[name].endswith("Reader"):
        return Polled(name, PowerSample, construct, name, options or {})
    meter: Meter = construct(name, options or {})
    return meter


def construct(name: str, options: Mapping[str, Any]) -> Any:
    """Construct the class in `METERS` with the options as keyword arguments. Raises HarnessError for an unknown one."""
    module, _, cls = METERS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), cls)(**options)
    except TypeError as wrong:
        why = str(wrong).rpartition("() ")[2]
        raise HarnessError(f"meter '{name}': {why}", "see docs/energy.md for its options: NAME:KEY=VALUE") from None


def found_meters(asked: Sequence[str], gpus: Sequence[str] | None = None) -> bool:
    """Whether `start_meters` would start any; they are started and stopped."""
    started, _ = start_meters(asked, gpus)
    for meter, _ in started:
        meter.stop()
    return bool(started)


def start_meters(
    asked: Sequence[str], gpus: Sequence[str] | None = None
) -> tuple[list[tuple[Meter, MeterInfo]], list[str]]:
    """Start the meters for words of the form `NAME` or `NAME:KEY=VALUE,KEY=VALUE`.

    `auto` starts each meter of `AUTO` that has something to read; `none` starts none. `gpus`, indices or UUIDs, is the
    option `devices` of nvml. Returns the started meters, and for each meter that `auto` could not start a text with the
    reason. Raises HarnessError if a meter given by name cannot start; the meters started before it are stopped.

    >>> start_meters(["none"])
    ([], [])
    """
    started: list[tuple[Meter, MeterInfo]] = []
    absent: list[str] = []
    with contextlib.ExitStack() as undo:
        for word in asked:
            name, _, rest = word.partition(":")
            pairs = [pair.partition("=") for pair in rest.split(",") if pair]
            options = {key: read_yaml(value, f"--meter {word}")[0] for key, _, value in pairs}
            for each in {"auto": AUTO, "none": ()}.get(name, (name,)):
                of_gpus = {} if each != "nvml" or gpus is None else {"devices": [*gpus]}
                meter = create_meter(each, options | of_gpus)
                try:
                    started.append((meter, meter.start()))
                except HarnessError as error:
                    if name != "auto":
                        raise
                    absent.append(f"{each}: {error.what}")
                else:
                    undo.callback(meter.stop)
        undo.pop_all()
    return started, absent
