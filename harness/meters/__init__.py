"""Meters: they say what power and energy are now, from a process of their own, so that the load is not disturbed.

To add one, write a module with a class that follows `Meter`, or `Reader` where it has to be polled, and add its line.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import yaml

from harness.errors import HarnessError
from harness.model import MeterInfo, PowerSample

METERS: Mapping[str, str] = {
    "constant": "harness.meters.constant:ConstantMeter",
    "replay": "harness.meters.replay:ReplayMeter",
}
"""Name -> `module:class` of a meter that needs no polling."""

READERS: Mapping[str, str] = {
    "nvml": "harness.meters.nvml:NvmlReader",
    "prometheus": "harness.meters.prometheus:PrometheusReader",
    "rapl": "harness.meters.rapl:RaplReader",
}
"""Name -> `module:class` of a reader that `harness.meters.process` polls from another process."""


class Meter(Protocol):
    """One source of power readings. Constructed as `Class(options)`; nothing is opened before `start`.

    `start` raises HarnessError where there is nothing to read. After it nothing raises: a meter that is lost gives no
    more samples, or samples with an `error`, and the run goes on. `drain` never waits; call it about twice a second,
    and once more after `stop`.
    """

    def start(self) -> MeterInfo: ...

    def drain(self) -> list[PowerSample]: ...

    def stop(self) -> MeterInfo: ...


class Reader(Protocol):
    """What is polled. Lives in the reading process; times are CLOCK_MONOTONIC seconds."""

    def open(self) -> MeterInfo: ...

    def due_s(self) -> float: ...

    def read(self) -> list[PowerSample]: ...


def create(name: str, options: Mapping[str, Any] | None = None) -> Meter:
    """The meter of that name, not yet started.

    Raises HarnessError for an unknown name or an option that the meter does not know.

    >>> create("wattson")
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: unknown meter 'wattson'
      fix: choose one of constant, nvml, prometheus, rapl, replay
    """
    if name in READERS:
        from harness.meters.process import ProcessMeter

        return ProcessMeter(name, dict(options or {}))
    if name not in METERS:
        raise HarnessError(f"unknown meter '{name}'", f"choose one of {', '.join(sorted([*METERS, *READERS]))}")
    meter: Meter = construct(name, METERS[name], options or {})
    return meter


def chosen(asked: Sequence[str], engine: str) -> list[Meter]:
    """Meters from `NAME` or `NAME:KEY=VALUE,KEY=VALUE` words; `auto` is what is found here, `none` nothing.

    A simulated engine draws no power, so `auto` finds nothing to read beside it.

    >>> chosen(["auto"], "simulated"), chosen(["none"], "vllm")
    ([], [])
    """
    made = []
    for word in asked:
        name, _, rest = word.partition(":")
        if name == "auto":
            made += [create(found) for found in (available() if engine != "simulated" else ())]
        elif name != "none":
            pairs = [pair.partition("=") for pair in rest.split(",") if pair]
            made.append(create(name, {key: yaml.safe_load(value) for key, _, value in pairs}))
    return made


def construct(name: str, where: str, options: Mapping[str, Any]) -> Any:
    """`module:class` with those options as keywords. Raises HarnessError for one that it does not take."""
    module, _, cls = where.partition(":")
    try:
        return getattr(importlib.import_module(module), cls)(**options)
    except TypeError as wrong:
        raise HarnessError(
            f"meter '{name}' does not take the options {dict(options)}: {wrong}", "see docs/energy.md"
        ) from None


def available() -> list[str]:
    """Meters that would find something to read on this machine, in the order in which to open them."""
    found = []
    for name in ("nvml", "rapl"):
        try:
            construct(name, READERS[name], {}).open()
        except HarnessError:
            continue
        found.append(name)
    return found
