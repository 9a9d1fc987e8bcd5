"""The interface of an engine, the table of engines, and the choice of one by name.

To add an engine, write a module with a class that implements `Engine`, and add a line to `harness.model.ENGINES`.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from harness.errors import HarnessError
from harness.files import install
from harness.model import ENGINES, Completion, EngineInfo, Request

NEEDS: Mapping[str, tuple[str, str]] = {"transformers": ("transformers", "cpu"), "vllm": ("vllm", "vllm")}
"""Engine -> (the package it imports, the extra that installs the package)."""


class Engine(Protocol):
    """One system under test, constructed as `Class(model, options)`. `start` loads the model.

    `generate` calls `arrived(n)` as soon as n tokens have arrived, and returns the engine's token counts at the end. It
    raises RequestFailed if the engine rejects or loses the request, and EngineDied if no further request can succeed.
    Cancelling `generate` aborts the request inside the engine. `prepare` is called ahead of `generate` when the request
    is known in advance; work that need not wait for the send time goes there.
    """

    async def start(self) -> EngineInfo: ...

    def prepare(self, request: Request) -> None: ...

    async def generate(self, request: Request, arrived: Callable[[int], None]) -> Completion: ...

    async def stop(self) -> None: ...


Arrived = Callable[[int, int | None], None]
"""`arrived(n, at_ns)`: n tokens arrived at `at_ns` on CLOCK_MONOTONIC; None: just now."""

Counts = tuple[int, ...] | Callable[[], tuple[int, ...]]


@runtime_checkable
class Exchanging(Protocol):
    """An engine that can defer parsing: `generate(...)` equals `(await exchange(...))()`.

    `exchange` waits for the last byte and returns a function that parses the answer and may raise RequestFailed.
    Exceptions from either may carry an attribute `arrival_tokens`, with the meaning of `Completion.arrival_tokens`, or
    a function that parses what arrived and returns that.
    """

    async def exchange(self, request: Request, arrived: Arrived) -> Callable[[], Completion]: ...


@runtime_checkable
class Waiting(Protocol):
    """An engine whose `prepare` can wait for a server. During the load it is then called in another thread."""

    @property
    def prepare_waits(self) -> bool: ...


@runtime_checkable
class Naming(Protocol):
    """An engine that can be asked for the model's name before it starts. HarnessError if it cannot be started."""

    async def model_name(self) -> str | None: ...


@runtime_checkable
class Telling(Protocol):
    """An engine in this process that counts its work: the text of a server's /metrics."""

    def metrics(self) -> str: ...


@runtime_checkable
class Resetting(Protocol):
    """An engine whose prefix cache can be emptied. Raises HarnessError if it refuses."""

    async def reset_cache(self) -> None: ...


def create_engine(name: str, model: str | None, options: Mapping[str, Any]) -> Engine:
    """Construct the engine of that name, other than `auto`, without starting it.

    Raises HarnessError for an unknown name, a package that is not installed, or an option the engine does not have.

    >>> create_engine("tgi", None, {})
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: unknown engine 'tgi'
      fix: choose one of auto, openai, simulated, transformers, vllm
    """
    if name not in ENGINES:
        raise HarnessError(f"unknown engine '{name}'", f"choose one of {', '.join(['auto', *sorted(ENGINES)])}")
    if extra := missing(name):
        package = NEEDS[name][0]
        raise HarnessError(f"engine '{name}' needs the package {package}, which is not installed", install(extra))
    module, _, cls = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), cls)(model, options)
    return engine


def choose_engine() -> str:
    """The engine that `auto` stands for: vllm if installed, else transformers. Raises HarnessError if neither is."""
    for name in ("vllm", "transformers"):
        if not missing(name):
            return name
    raise HarnessError(
        "no engine that runs a real model is installed", f"{install('cpu')}; with an NVIDIA GPU {install('vllm')}"
    )


def missing(name: str) -> str | None:
    """The extra that the engine needs; None: its package is there, or it needs none."""
    package, extra = NEEDS.get(name, (None, None))
    return extra if package and importlib.util.find_spec(package) is None else None
