"""The load loop: it sends each request when it is due, stamps its tokens as they come, and records how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness import engines, load
from harness.errors import EngineDied, HarnessError, RequestFailed
from harness.model import Completion, Record, Request
from harness.workload import Workload

WARM_UP_INDEX = 1 << 40
"""Where the indices of warm-up requests begin: past every measured one, so that no prefix cache serves those later."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: what a live display shows."""

    phase: str
    """`starting`, `warming up`, `measuring` or `stopping`."""
    elapsed_s: float = 0.0
    finished: int = 0
    failed: int = 0
    in_flight: int = 0
    output_tokens: int = 0
    count: int | None = None
    """Requests that the run will send; None: as many as fit its duration."""
    duration_s: float | None = None


async def warm_up(engine: engines.Engine, make: Callable[[int], Request], count: int) -> None:
    """Send requests that are not recorded, all at once.

    Raises EngineDied, or HarnessError where the engine refuses even these.
    """

    async def one(index: int) -> None:
        try:
            await engine.generate(make(index), lambda _: None)
        except RequestFailed as refused:
            raise HarnessError(
                f"a warm-up request failed: {refused.kind}: {refused.message}",
                "make the workload's requests fit the engine, or set warmup.requests=0 to measure the failures",
            ) from None

    await asyncio.gather(*(one(WARM_UP_INDEX + i) for i in range(count)))


Follow = Callable[[Request, Completion], tuple[Request, float] | None]
"""From a finished request to the next of its conversation and the seconds of thought before it; None: it is over."""


class Sender:
    """Sends the requests as the load shape says, and hands each finished one to `add`.

    `share` (k, n): this is client k of n, which all know the whole schedule; it sends every n-th request from the k-th
    on, and of a closed loop it is every n-th user.
    """

    def __init__(
        self,
        workload: Workload,
        arrivals: load.Trace | None,
        engine: engines.Engine,
        make: Callable[[int], Request],
        add: Callable[[Record], None],
        follow: Follow | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.workload, self.arrivals, self.engine, self.make, self.add = workload, arrivals, engine, make, add
        self.follow = follow
        self.client, self.clients = share
        self.sent = self.finished = self.failed = self.output_tokens = 0
        self.began_ns = 0
        self.stopped = False

    async def run(self, began_ns: int) -> None:
        """Until every request is over. Raises an ExceptionGroup of EngineDied when the engine dies."""
        self.began_ns = began_ns
        async with asyncio.TaskGroup() as group:
            if self.workload.load.shape == "closed":
                indices = itertools.islice(itertools.count(), self.client, self.workload.requests.count, self.clients)
                for _ in range(self.client, self.workload.load.users or 0, self.clients):
                    group.create_task(self._user(indices))
            else:
                await self._open(group)

    def stop(self) -> None:
        """Send no further request; those in flight go on to their end."""
        self.stopped = True

    def progress(self) -> Progress:
        return Progress(
            "measuring",
            elapsed_s=self._now_s(),
            finished=self.finished,
            failed=self.failed,
            in_flight=self.sent - self.finished,
            output_tokens=self.output_tokens,
            count=self.workload.requests.count,
            duration_s=self.workload.load.duration_s,
        )

    def _now_s(self) -> float:
        return (time.monotonic_ns() - self.began_ns) / 1e9

    async def _user(self, indices: Iterator[int]) -> None:
        """One user of a closed loop: the next request is due when the last one is over."""
        limit_s = self.workload.load.duration_s
        while (scheduled_s := self._now_s()) < (limit_s or float("inf")) and not self.stopped:
            index = next(indices, None)
            if index is None:
                return
            await self._talk(self.make(index), scheduled_s)

    async def _open(self, group: asyncio.TaskGroup) -> None:
        """Send each request when it is due, whatever became of those before it."""
        shape = self.workload.load
        slots = asyncio.Semaphore(shape.max_in_flight) if shape.max_in_flight else contextlib.nullcontext()
        due_s = load.due_s(shape, self.workload.requests.count, self.workload.seed, self.arrivals)
        for index, scheduled_s in itertools.islice(enumerate(due_s), self.client, None, self.clients):
            request = self.make(index)
            # Also without a wait the loop must come round: what was sent has to leave, and tokens to be stamped.
            await asyncio.sleep(scheduled_s - self._now_s())
            if self.stopped:
                return
            group.create_task(self._when_free(slots, request, scheduled_s))

    async def _when_free(
        self, slots: contextlib.AbstractAsyncContextManager[None], request: Request, scheduled_s: float
    ) -> None:
        async with slots:
            await self._talk(request, scheduled_s)

    async def _talk(self, request: Request, scheduled_s: float) -> None:
        """Send a request and, where it opens a conversation, each turn that follows, until one fails."""
        completion = await self._one(request, scheduled_s)
        while self.follow is not None and completion is not None and not self.stopped:
            if (following := self.follow(request, completion)) is None:
                return
            request, think_s = following
            due_s = self._now_s() + think_s
            await asyncio.sleep(think_s)
            completion = await self._one(request, due_s)

    async def _one(self, request: Request, scheduled_s: float) -> Completion | None:
        """Send one request, stamp its tokens as they come, and record how it ended; None: it failed."""
        stamps_ns: list[int] = []
        counts: list[int] = []
        clock = time.monotonic_ns

        def arrived(tokens: int) -> None:
            if tokens > 0:  # a chunk without tokens is no token
                stamps_ns.append(clock())
                counts.append(tokens)
                self.output_tokens += tokens

        self.sent += 1
        completion: Completion | None = None
        failure: tuple[str, str] | None = None
        sent_ns = clock()
        try:
            async with asyncio.timeout(request.cancel_after_s):
                completion = await self.engine.generate(request, arrived)
        except TimeoutError:
            failure = "cancelled", f"the user gave up after {request.cancel_after_s} s"
        except RequestFailed as refused:
            failure = refused.kind, refused.message
        except EngineDied as died:
            failure = "engine_died", str(died)
            raise
        except asyncio.CancelledError:
            failure = "aborted", "the run ended before the request did"
            raise
        except Exception as fault:  # one request's fault, whatever it is, must not end the others
            failure = type(fault).__name__, str(fault)
        finally:
            end_ns = clock()
            self.finished += 1
            self.failed += failure is not None
            done, began = completion or Completion(None, None), self.began_ns
            self.add(
                Record(
                    index=request.index,
                    scheduled_s=scheduled_s,
                    sent_s=(sent_ns - began) / 1e9,
                    end_s=(end_ns - began) / 1e9,
                    arrival_s=tuple((stamp - began) / 1e9 for stamp in stamps_ns),
                    arrival_tokens=done.arrival_tokens or tuple(counts),
                    input_asked=len(request.prompt),
                    output_asked=request.output_tokens,
                    input_tokens=done.input_tokens,
                    output_tokens=done.output_tokens,
                    cached_tokens=done.cached_tokens,
                    finish_reason=done.finish_reason,
                    error=failure and failure[0],
                    error_text=failure and failure[1],
                    part=request.part,
                    conversation=request.conversation,
                    turn=request.turn,
                    connect_s=done.connect_s,
                    client=self.client if self.clients > 1 else None,
                )
            )
        return completion
