"""Meters: what power and energy are now, and what a server says of itself, read without disturbing the load.

To add one, write a module with a class that follows `Meter`, or `Reader` where it has to be polled, and add its line.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from harness.config import read_yaml
from harness.errors import HarnessError
from harness.model import MeterInfo, PowerSample, ServerSample

Row = TypeVar("Row", PowerSample, ServerSample)
METERS: Mapping[str, str] = {
    "constant": "harness.meters.replay:ConstantMeter",
    "nvml": "harness.meters.nvml:NvmlReader",
    "prometheus": "harness.meters.prometheus:PrometheusReader",
    "rapl": "harness.meters.rapl:RaplReader",
    "replay": "harness.meters.replay:ReplayMeter",
}
"""Name -> `module:class`; a class named Reader is polled by `harness.meters.sampler`, from another process."""
AUTO = ("nvml", "rapl")
"""What `auto` looks for, in this order."""


class Meter(Protocol):
    """One source of power readings. Constructed as `Class(options)`; nothing is opened before `start`.

    `start` raises HarnessError where there is nothing to read. After it nothing raises: a meter that is lost gives no
    more samples, or samples with an `error`, and the run goes on. `drain` never waits; call it about twice a second,
    and once more after `stop`.
    """

    def start(self) -> MeterInfo: ...

    def drain(self) -> list[PowerSample]: ...

    def stop(self) -> MeterInfo: ...


class Reader(Protocol[Row]):
    """What is polled when `next_s` comes. Lives in the reading process; times are CLOCK_MONOTONIC seconds."""

    next_s: float

    def open(self) -> MeterInfo: ...

    def read(self) -> list[Row]: ...


def create_meter(name: str, options: Mapping[str, Any] | None = None) -> Meter:
    """The meter of that name, not yet started.

    Raises HarnessError for an unknown name or an option that the meter does not know.

    >>> create_meter("wattson")
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: unknown meter 'wattson'
      fix: choose one of constant, nvml, prometheus, rapl, replay
    """
    if name not in METERS:
        raise HarnessError(f"unknown meter '{name}'", f"choose one of {', '.join(METERS)}")
    if METERS[name].endswith("Reader"):
        from harness.meters.sampler import Polled

        return Polled(name, PowerSample, construct_reader, name, options or {})
    meter: Meter = construct_reader(name, options or {})
    return meter


def construct_reader(name: str, options: Mapping[str, Any]) -> Any:
    """The class of that name, with those options as keywords. Raises HarnessError for one that it does not take."""
    module, _, cls = METERS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), cls)(**options)
    except TypeError as wrong:
        raise HarnessError(f"meter '{name}' does not take {dict(options)}: {wrong}", "see docs/energy.md") from None


def start_meters(asked: Sequence[str]) -> tuple[list[tuple[Meter, MeterInfo]], list[str]]:
    """Meters from `NAME` or `NAME:KEY=VALUE,KEY=VALUE` words, started; and why each that `auto` looked for is absent.

    `auto` starts what finds something to read on this machine; `none` is nothing. Raises HarnessError for a meter that
    was named and cannot start; the others are stopped then.

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
            for found in {"auto": AUTO, "none": ()}.get(name, (name,)):
                meter = create_meter(found, options)
                try:
                    started.append((meter, meter.start()))
                except HarnessError as error:
                    if name != "auto":
                        raise
                    absent.append(f"{found}: {error.what}")
                else:
                    undo.callback(meter.stop)
        undo.pop_all()
    return started, absent
