"""An engine without a model: tokens arrive on a configured schedule, so every measured figure has a known answer."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pydantic import Field

from harness.config import Section, checked
from harness.errors import EngineDied, RequestFailed
from harness.model import Completion, EngineInfo, ModelIdentity, Request


class Schedule(Section, allow_inf_nan=False):
    """The options of the simulated engine."""

    ttft_s: float = Field(0.1, ge=0)
    """From the start of service to the first token."""
    itl_s: float = Field(0.01, ge=0)
    """Between two consecutive tokens."""
    jitter: float = Field(0.0, ge=0, lt=1)
    """Coefficient of variation of TTFT and of each gap (independent, gamma distributed)."""
    capacity: int | None = Field(None, gt=0)
    """Requests served concurrently; the others wait in first-in, first-out order. None: no limit."""
    failure_share: float = Field(0.0, ge=0, le=1)
    """Share of requests that fail after their first token."""
    dies_after: int | None = Field(None, ge=0)
    """The engine dies when it has started this many requests. None: never."""
    start_s: float = Field(0.0, ge=0)
    """Duration of `start`."""
    seed: int = Field(0, ge=0)


class SimulatedEngine:
    """Serves concurrent requests independently; the times of a request depend only on the seed and its index."""

    def __init__(self, _model: str | None, options: Mapping[str, Any]) -> None:
        self.schedule = checked(Schedule, options, "simulated engine")
        self._slots: contextlib.AbstractAsyncContextManager[None] = contextlib.nullcontext()
        self._served = 0

    async def start(self) -> EngineInfo:
        await asyncio.sleep(self.schedule.start_s)
        if self.schedule.capacity is not None:
            self._slots = asyncio.Semaphore(self.schedule.capacity)
        return EngineInfo(
            engine="simulated",
            version=None,
            model=ModelIdentity(None),
            device="none",
            device_count=1,
            vocabulary=32_000,
            max_length=None,
            options=self.schedule.model_dump(),
            encode=lambda text: [3 + byte for byte in text.encode()],
        )

    def prepare(self, request: Request) -> None:
        """Nothing to prepare."""

    async def generate(self, request: Request, arrived: Callable[[int], None]) -> Completion:
        async with self._slots:
            if self.schedule.dies_after is not None and self._served >= self.schedule.dies_after:
                raise EngineDied(f"the simulated engine died after {self._served} requests, as its schedule says")
            self._served += 1
            rng = np.random.default_rng([self.schedule.seed, request.index])
            fails = rng.random() < self.schedule.failure_share
            tokens = 1 if fails else request.output_tokens
            clock = asyncio.get_running_loop().time
            begin_s = clock()
            for offset_s in self.offsets_s(tokens, rng):
                await asyncio.sleep(begin_s + offset_s - clock())
                arrived(1)
            if fails:
                raise RequestFailed("simulated", "this request fails, as the schedule says")
            return Completion(input_tokens=len(request.prompt), output_tokens=tokens, finish_reason="length")

    async def stop(self) -> None:
        """Nothing to stop."""

    def offsets_s(self, tokens: int, rng: np.random.Generator) -> list[float]:
        """The time of each token, in seconds from the start of service."""
        gaps = np.full(tokens, self.schedule.itl_s)
        gaps[:1] = self.schedule.ttft_s
        if self.schedule.jitter > 1e-6:  # below this the gamma shape parameter overflows
            shape = self.schedule.jitter**-2
            gaps *= rng.gamma(shape, 1 / shape, tokens)
        offsets: list[float] = np.cumsum(gaps).tolist()
        return offsets
