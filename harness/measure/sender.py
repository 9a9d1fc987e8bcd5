"""The load loop: it sends each request when it is due, stamps its tokens as they come, and records how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.engines.base import Engine, Exchanging
from harness.errors import EngineDied, HarnessError, RequestFailed
from harness.model import Completion, Record, Request
from harness.workload.arrivals import Trace, due_times, user_spans
from harness.workload.schema import Workload

WARM_UP_INDEX = 1 << 40
"""Where the indices of warm-up requests begin: past every measured one, so that no prefix cache serves those later."""
AHEAD_TOKENS = 2_000_000
"""Of prompts made before the load begins: some 100 MB."""
AHEAD_S = 2.0
"""How long that may take; the others are made as they are sent."""
MOST_UNREAD = 1000
"""Answers that may wait to be read."""
LOOK_AHEAD = 4
"""Requests made ahead for each user where nobody knows how many there will be."""


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
    said: str = ""
    """What the engine logged last, while it starts."""


async def warm_up(engine: Engine, make: Callable[[int], Request], count: int) -> None:
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
    on, or is every n-th user of a closed loop, with the requests that fall to those in turn. Requests that are sure to
    come are made before the load begins, as far as memory goes; each one sent makes room for another, made once it is
    on its way. Answers are read when there is time, unless a turn follows: first what arrives is stamped.
    """

    def __init__(
        self,
        workload: Workload,
        arrivals: Trace | None,
        engine: Engine,
        make: Callable[[int], Request],
        add: Callable[[Record], None],
        follow: Follow | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.workload, self.engine, self.make, self.add, self.follow = workload, engine, make, add, follow
        self.client, self.clients = share
        self.sent = self.finished = self.failed = self.output_tokens = 0
        self.began_ns = 0
        self.stopped = False
        self._stop, self._drained = asyncio.Event(), asyncio.Event()
        shape, count = workload.load, workload.requests.count
        users = user_spans(shape) if shape.closed else []
        if shape.closed:
            self._spans = users[self.client :: self.clients]
            due_s: Iterator[float] = itertools.repeat(0.0) if count is None else itertools.repeat(0.0, count)
        else:
            due_s = due_times(shape, count, workload.seed, arrivals)
        # Of users that the clients do not share evenly, each still has as many requests as any other.
        own = [turn % self.clients == self.client for turn in range(len(users) or self.clients)]
        self._schedule = itertools.compress(enumerate(due_s), itertools.cycle(own))
        self._ahead: deque[tuple[Request, float]] = deque()
        self._more = True
        self._unread: deque[_Sent] = deque()
        self._wrong: Exception | None = None
        self._exchange = engine.exchange if isinstance(engine, Exchanging) else self._whole
        most = LOOK_AHEAD * len(self._spans) if shape.closed and count is None else None
        tokens, until_s = 0, time.monotonic() + AHEAD_S
        while tokens < AHEAD_TOKENS and time.monotonic() < until_s and len(self._ahead) != most and self._make_one():
            tokens += len(self._ahead[-1][0].prompt)

    async def run(self, began_ns: int) -> None:
        """Until every request is over. Raises an ExceptionGroup of EngineDied when the engine dies."""
        self.began_ns = began_ns
        try:
            async with asyncio.TaskGroup() as group:
                if self.workload.load.closed:
                    for spans in self._spans:
                        group.create_task(self._user(spans))
                else:
                    await self._open(group)
        finally:
            while self._unread:
                self._record(self._unread.popleft())
        if self._wrong is not None:
            raise ExceptionGroup("the load ended early", [self._wrong])

    def stop(self) -> None:
        """Send no further request; those in flight go on to their end."""
        self.stopped = True
        self._stop.set()
        self._drained.set()

    def progress(self) -> Progress:
        return Progress(
            "measuring",
            elapsed_s=self._now_s(),
            finished=self.finished,
            failed=self.failed,
            in_flight=self.sent - self.finished,
            output_tokens=self.output_tokens,
            count=self.workload.requests.in_all,
            duration_s=self.workload.load.duration_s,
        )

    def _now_s(self) -> float:
        return (time.monotonic_ns() - self.began_ns) / 1e9

    def _make_one(self) -> bool:
        """Make the next request of the schedule; False: there is none."""
        for index, due_s in self._schedule:
            request = self.make(index)
            self.engine.prepare(request)
            self._ahead.append((request, due_s))
            return True
        self._more = False
        return False

    def _next(self) -> tuple[Request, float] | None:
        """The next request and when it is due; None: there is none. Another is made when this one has left."""
        if self._wrong is not None:
            raise self._wrong
        if not self._ahead and not self._make_one():
            self._drained.set()
            return None
        if self._more:
            asyncio.get_running_loop().call_soon(self._make_another)
        return self._ahead.popleft()

    def _make_another(self) -> None:
        try:
            self._make_one()
        except Exception as wrong:  # a callback's exception would be lost
            self._wrong = wrong

    async def _user(self, spans: Sequence[tuple[float, float]]) -> None:
        """One user of a closed loop, while there: the next request is due when the last one is over."""
        for start_s, until_s in spans:
            await self._sleep(start_s, self._drained)
            while (scheduled_s := self._now_s()) < until_s and not self.stopped:
                if (following := self._next()) is None:
                    return
                await self._talk(following[0], scheduled_s, until_s)

    async def _open(self, group: asyncio.TaskGroup) -> None:
        """Send each request when it is due, whatever became of those before it."""
        most = self.workload.load.max_in_flight
        # Of a limit that the clients do not divide evenly, the first ones have one more.
        share = None if most is None else len(range(self.client, most, self.clients))
        slots = None if share is None else asyncio.Semaphore(share)
        while (following := self._next()) is not None:
            request, scheduled_s = following
            # Also without a wait the loop must come round: what was sent has to leave, and tokens to be stamped.
            await asyncio.sleep(scheduled_s - self._now_s())
            if self.stopped:
                return
            talk = self._talk(request, scheduled_s, self.workload.load.end_s)
            group.create_task(talk if slots is None else _when_free(slots, talk))

    async def _talk(self, request: Request, scheduled_s: float, until_s: float) -> None:
        """Send a request and, where it opens a conversation, each turn due before `until_s`, until one fails."""
        completion = await self._one(request, scheduled_s)
        while self.follow is not None and completion is not None and not self.stopped:
            if (following := self.follow(request, completion)) is None:
                return
            request, think_s = following
            if (due_s := self._now_s() + think_s) >= until_s:
                return
            self.engine.prepare(request)
            await self._sleep(due_s, self._stop)
            completion = None if self.stopped else await self._one(request, due_s)

    async def _sleep(self, until_s: float, unless: asyncio.Event) -> None:
        if (wait_s := until_s - self._now_s()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(unless.wait(), wait_s)

    async def _one(self, request: Request, scheduled_s: float) -> Completion | None:
        """Send one request, and stamp its tokens as they come; what it came to, where a turn may follow it."""
        sent = _Sent(request, scheduled_s)
        stamps_ns, counts, clock = sent.stamps_ns, sent.counts, time.monotonic_ns

        def arrived(tokens: int) -> None:
            if tokens > 0:  # a chunk without tokens is no token
                stamps_ns.append(clock())
                counts.append(tokens)
                self.output_tokens += tokens

        self.sent += 1
        sent.sent_ns = clock()
        try:
            if request.cancel_after_s is None:
                sent.answer = await self._exchange(request, arrived)
            else:
                async with asyncio.timeout(request.cancel_after_s):
                    sent.answer = await self._exchange(request, arrived)
        except BaseException as ended:
            sent.ended = ended
            if isinstance(ended, EngineDied) or not isinstance(ended, Exception):
                raise  # one request's fault, whatever it is, must not end the others
        finally:
            sent.end_ns = clock()
            self.finished += 1
            completion = None
            if sent.ended is not None or request.conversation is not None:
                completion = self._record(sent)
            else:
                self._record_later(sent)
        return completion

    async def _whole(self, request: Request, arrived: Callable[[int], None]) -> Callable[[], Completion]:
        completion = await self.engine.generate(request, arrived)
        return lambda: completion

    def _record_later(self, sent: _Sent) -> None:
        """One for each round of the loop, so that no token waits for more than one to be stamped."""
        self._unread.append(sent)
        if len(self._unread) == 1:
            asyncio.get_running_loop().call_soon(self._record_next)
        elif len(self._unread) > MOST_UNREAD:
            self._record(self._unread.popleft())

    def _record_next(self) -> None:
        try:
            if self._unread:
                self._record(self._unread.popleft())
        except Exception as wrong:  # a callback's exception would be lost
            self._wrong = wrong
        if self._unread:
            asyncio.get_running_loop().call_soon(self._record_next)

    def _record(self, sent: _Sent) -> Completion | None:
        """Read a request's answer, and record how it ended; None: it failed."""
        request, ended, began = sent.request, sent.ended, self.began_ns
        completion: Completion | None = None
        if sent.answer is not None:
            try:
                completion = sent.answer()
            except Exception as wrong:
                ended = wrong
        error, text = (None, None) if ended is None else _failure(ended, request)
        told = getattr(ended.__cause__ if ended and error == "cancelled" else ended, "arrival_tokens", None)
        stamps_ns, counts, done = sent.stamps_ns, sent.counts, completion or _UNKNOWN
        if (told := done.arrival_tokens if ended is None else told) is not None:
            self.output_tokens += sum(told) - sum(counts)
            stamps_ns = [stamp for stamp, tokens in zip(stamps_ns, told, strict=True) if tokens]
            counts = [tokens for tokens in told if tokens]
        self.failed += error is not None
        self.add(
            Record(
                index=request.index,
                scheduled_s=sent.scheduled_s,
                sent_s=(sent.sent_ns - began) / 1e9,
                end_s=(sent.end_ns - began) / 1e9,
                arrival_s=tuple([(stamp - began) / 1e9 for stamp in stamps_ns]),
                arrival_tokens=tuple(counts),
                input_asked=len(request.prompt),
                output_asked=request.output_tokens,
                input_tokens=done.input_tokens,
                output_tokens=done.output_tokens,
                cached_tokens=done.cached_tokens,
                finish_reason=done.finish_reason,
                error=error,
                error_text=text,
                part=request.part,
                conversation=request.conversation,
                turn=request.turn,
                stand_in_tokens=request.stand_in_tokens,
                connect_s=done.connect_s,
                client=self.client if self.clients > 1 else None,
            )
        )
        return completion


@dataclass(slots=True)
class _Sent:
    """A request on its way, and what came back."""

    request: Request
    scheduled_s: float
    sent_ns: int = 0
    end_ns: int = 0
    stamps_ns: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    answer: Callable[[], Completion] | None = None
    ended: BaseException | None = None


_UNKNOWN = Completion(None, None)


def _failure(ended: BaseException, request: Request) -> tuple[str, str]:
    """A failed request's kind, and what there is to say of it."""
    match ended:
        case TimeoutError() if request.cancel_after_s is not None:
            return "cancelled", f"the user gave up after {request.cancel_after_s} s"
        case RequestFailed():
            return ended.kind, ended.message
        case EngineDied():
            return "engine_died", str(ended)
        case Exception():
            return type(ended).__name__, str(ended)
    return "aborted", "the run ended before the request did"


async def _when_free(slots: asyncio.Semaphore, talk: Coroutine[Any, Any, None]) -> None:
    async with slots:
        await talk
