"""The load loop: sends each request when it is due, stamps its tokens when they arrive, and records how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from harness.engines.base import Engine, Exchanging, Waiting
from harness.errors import EngineDied, HarnessError, RequestFailed
from harness.measure.eventloop import delay_class
from harness.model import Completion, Record, Request
from harness.workload.arrivals import due_times, user_spans
from harness.workload.requests import Conversations
from harness.workload.schema import Workload

WARM_UP_INDEX = 1 << 40
"""Index of the first warm-up request: above all measured ones, so that no prefix cache shares their prompts."""
OF_REQUEST = ("index", "part", "conversation", "turn", "stand_in_tokens", "shared_tokens", "age_tokens")
OF_ANSWER = ("input_tokens", "output_tokens", "cached_tokens", "finish_reason", "connect_s")
"""Fields of `Request` and of `Completion` that a record has too."""
NO_TOKEN = ("empty", "filtered")
"""Kinds of failure of an answer that has come to its end without a token."""
ALIVE = (*NO_TOKEN, "cancelled")
"""Kinds of failure of a request that a working server answered."""
BACK_OFF_S = 0.01, 1.0
"""First and longest wait of a user before the next request while every request of all users fails."""
PREBUILT_TOKENS = 2_000_000
"""Limit on the prompt tokens built before the load begins: some 100 MB."""
PREBUILD_S = 2.0
"""Limit on the time to build requests before the load begins."""
PREBUILT_PER_USER = 4
"""Requests pre-built per user when the total is unknown."""
MAX_UNPARSED = 1000
"""Limit on the number of answers that wait to be parsed."""
LAST_PARSE_S = 2.0
"""Limit on the time to parse answers, which can be large, after a load that did not complete."""
RECENT = 100
"""Answers that the live display judges latency by."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run, for a live display."""

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
    log_line: str = ""
    """The last line of the engine's log, during the start."""
    ttft_s: float | None = None
    itl_s: float | None = None
    """Medians of the last RECENT answers, the second of their means."""
    power_w: float | None = None
    """Sum of the newest readings of the charged GPUs."""
    failing_s: float = 0.0
    """Time since a request succeeded; 0 if none has failed since."""
    oldest_s: float = 0.0
    """Time since the oldest request in flight was sent, without that of parsing; 0 if none is in flight."""


async def probe(engine: Engine, request: Request) -> Completion:
    """Send one request without recording it. Raises EngineDied, and HarnessError if the request fails."""
    try:
        return await engine.generate(request, lambda _: None)
    except RequestFailed as failed:
        if failed.kind in NO_TOKEN:  # the engine works; the measurement counts such answers
            return Completion(None, None)
        raise HarnessError(
            f"a warm-up request failed: {failed.kind}: {failed.message}",
            "make the workload's requests fit the engine, or set warmup.requests=0 to measure the failures",
        ) from None


class Sender:
    """Sends the requests of a load shape, and calls `add` with the record of each finished one.

    `share` is (k, n) for client k of n. All clients compute the whole schedule; client k sends every n-th request, or
    runs every n-th user of a closed loop, starting from the k-th. Requests are built before the load begins up to
    PREBUILT_TOKENS; each request sent is replaced by a new one right after it is on its way. Parsing an answer waits
    until the loop has time, unless the next turn of a conversation needs it, so that arrivals are stamped first.
    """

    def __init__(
        self,
        workload: Workload,
        engine: Engine,
        talk: Conversations,
        add: Callable[[Record], None],
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.workload, self.engine, self.talk, self.add = workload, engine, talk, add
        self.client, self.clients = share
        self.finished = self.output_tokens = self.waves = self.own_stamps = 0
        self.failures: Counter[str] = Counter()
        """Kind of failure -> number of requests."""
        self.late: Counter[int] = Counter()
        """Histogram, over all arrivals, of how much too late the stamp of an arrival's first token can be."""
        self.began_ns = self._success_ns = self._parsing_ns = self._streak = 0
        self._in_flight: dict[int, _InFlight] = {}
        """The requests in flight by their `id`, the oldest first."""
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        """TTFT and mean ITL of the last answers."""
        self._stop, self._drained = asyncio.Event(), asyncio.Event()
        self._exchange = engine.exchange if isinstance(engine, Exchanging) else self._generate
        self._unparsed: deque[_InFlight] = deque()
        self._error: Exception | None = None
        shape, count = workload.load, workload.requests.count
        users = user_spans(shape) if shape.closed else []
        self._users, self._spans = len(users), users[self.client :: self.clients]
        """Number of all users, and the spans of each user of this client."""
        in_turn = itertools.islice(itertools.repeat(0.0), count)
        due_s = in_turn if shape.closed else due_times(shape, count, workload.seed, talk.arrivals)
        # Requests are dealt to users, not to clients: with an uneven number of users per client, all users send alike.
        own = [turn % self.clients == self.client for turn in range(len(users) or self.clients)]
        self._schedule = itertools.compress(enumerate(due_s), itertools.cycle(own))
        self._exhausted = False
        self._prebuilt: deque[tuple[Request, float]] = deque()
        self._first: dict[int, Request] = {}
        """The first wave by its numbers, as far as it is pre-built."""
        self._builder = ThreadPoolExecutor(1) if isinstance(engine, Waiting) and engine.prepare_waits else None
        self._building: deque[Future[bool]] = deque()
        self._build_ahead(PREBUILT_PER_USER * len(self._spans) if shape.closed and count is None else None)

    async def warm_up(self, made: Conversations) -> None:
        """Send this client's share of the warm-up at once without recording it. Raises as `probe`."""
        share = math.ceil(self.workload.warmup.requests / self.clients)
        indices = range(WARM_UP_INDEX + self.client * share, WARM_UP_INDEX + (self.client + 1) * share)
        await asyncio.gather(*(probe(self.engine, made.make(index)) for index in indices))

    async def run(self, began_ns: int, late_s: Callable[[float], float] = lambda _: 0.0) -> None:
        """Send the load and wait for every request. Raises an ExceptionGroup of EngineDied if the engine dies.

        `late_s` says for how long the event loop had not run at an instant of CLOCK_MONOTONIC.
        """
        self.began_ns = self._success_ns = began_ns
        self._late_s = late_s
        until_s = math.inf
        try:
            async with asyncio.TaskGroup() as group:
                if self.workload.load.closed:
                    for user, spans in enumerate(self._spans):
                        group.create_task(self._user(user, spans))
                else:
                    await self._open_loop(group)
        except BaseException:
            until_s = time.monotonic() + LAST_PARSE_S
            raise
        finally:
            if self._builder is not None:
                self._builder.shutdown(cancel_futures=True)
            while self._unparsed:
                sent = self._unparsed.popleft()
                self._record(sent if time.monotonic() < until_s else sent.without_answer())
        if self._error is not None:
            raise ExceptionGroup("the load ended early", [self._error])

    def stop(self) -> None:
        """Send no more requests; those in flight continue to their end."""
        self._stop.set()
        self._drained.set()

    def progress(self) -> Progress:
        """The progress, without its time."""
        now_ns, oldest = time.monotonic_ns(), next(iter(self._in_flight.values()), None)
        ttft_s, itl_s = map(statistics.median, zip(*self._recent, strict=True)) if self._recent else (None, None)
        return Progress(
            "measuring",
            finished=self.finished - self.waves,
            failed=self.failures.total(),
            in_flight=len(self._in_flight),
            output_tokens=self.output_tokens,
            ttft_s=ttft_s,
            itl_s=itl_s,
            failing_s=(now_ns - self._success_ns) / 1e9 if self._streak else 0.0,
            oldest_s=(now_ns - oldest.sent_ns - self._parsing_ns + oldest.parsing_ns) / 1e9 if oldest else 0.0,
        )

    def _now_s(self) -> float:
        return (time.monotonic_ns() - self.began_ns) / 1e9

    def _prepared(self, request: Request) -> Request:
        self.engine.prepare(request)
        return request

    def _build_ahead(self, most: int | None) -> None:
        """Build requests of the first wave, then at most `most` of the schedule, up to the limits."""
        tokens, until_s = 0, time.monotonic() + PREBUILD_S
        users = iter(range(len(self._spans) if self.workload.load.in_equilibrium else 0))
        while tokens < PREBUILT_TOKENS and time.monotonic() < until_s:
            if (user := next(users, None)) is not None:
                number = self._wave(user, 0)
                request = self._first[number] = self._prepared(self.talk.first_wave(number))
            elif len(self._prebuilt) != most and self._build():
                request, _ = self._prebuilt[-1]
            else:
                return
            tokens += len(request.prompt)

    def _build(self) -> bool:
        """Build the next request of the schedule; False if there is none."""
        for index, due_s in self._schedule:
            self._prebuilt.append((self._prepared(self.talk.make(index)), due_s))
            return True
        self._exhausted = True
        return False

    def _wave(self, user: int, span: int) -> int:
        """Number of the first request of a span of this client's n-th user, which no other client uses."""
        return (self.client + user * self.clients) + span * self._users

    def _soon(self, work: Callable[[], object]) -> None:
        """Do the work in the next iteration of the loop. If it raises, the load ends with that exception."""
        asyncio.get_running_loop().call_soon(self._guarded, work)

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # asyncio would only log it
            self._error = error

    def _next(self) -> tuple[Request, float] | None:
        """The next request and its due time, None if there is none. A replacement is built after it is sent."""
        if self._error is not None:
            raise self._error
        while self._building and (self._building[0].done() or not self._prebuilt):
            self._building.popleft().result()
        if not self._prebuilt and not self._build():
            self._drained.set()
            return None
        if not self._exhausted and self._builder is not None:
            self._building.append(self._builder.submit(self._build))
        elif not self._exhausted:
            self._soon(self._build)
        return self._prebuilt.popleft()

    async def _user(self, user: int, spans: Sequence[tuple[float, float]]) -> None:
        """One user of a closed loop during its (from, until) spans: each request is due when the previous one ends.

        In equilibrium the first of a span is one of the first wave. It is none of the schedule's requests.
        """
        for span, (start_s, until_s) in enumerate(spans):
            await self._sleep(start_s, self._drained)
            if self.workload.load.in_equilibrium and self._now_s() < until_s and not self._drained.is_set():
                number = self._wave(user, span)
                first = self._first.pop(number, None) or self._prepared(self.talk.first_wave(number))
                await self._converse(first, self._now_s(), until_s)
            while (scheduled_s := self._now_s()) < until_s and not self._stop.is_set():
                if (following := self._next()) is None:
                    return
                await self._converse(following[0], scheduled_s, until_s)
                if (all_failed := self._streak / len(self._spans)) > 1:  # times in a row
                    wait_s = min(BACK_OFF_S[0] * 2 ** min(all_failed, 20), BACK_OFF_S[1])
                    await self._sleep(self._now_s() + wait_s, self._stop)

    async def _open_loop(self, group: asyncio.TaskGroup) -> None:
        """Start each request when it is due, regardless of the others."""
        most = self.workload.load.max_in_flight
        # If the clients cannot share the limit evenly, the first ones get one more.
        slots = None if most is None else asyncio.Semaphore(len(range(self.client, most, self.clients)))

        async def converse(request: Request, scheduled_s: float) -> None:
            async with slots or contextlib.nullcontext():
                await self._converse(request, scheduled_s, self.workload.load.end_s)

        while (following := self._next()) is not None:
            request, scheduled_s = following
            # Yields even without a wait, so that sockets are written and tokens stamped.
            await asyncio.sleep(scheduled_s - self._now_s())
            if self._stop.is_set():
                return
            group.create_task(converse(request, scheduled_s))

    async def _converse(self, request: Request, scheduled_s: float, until_s: float) -> None:
        """Send a request and the later turns of its conversation that are due before `until_s`, until one fails."""
        completion = await self._send(request, scheduled_s)
        while completion is not None and not self._stop.is_set():
            if (following := self.talk.follow(request, completion)) is None:
                return
            request, think_s = following
            if (due_s := self._now_s() + think_s) >= until_s:
                return
            self.engine.prepare(request)
            await self._sleep(due_s, self._stop)
            completion = None if self._stop.is_set() else await self._send(request, due_s)

    async def _sleep(self, until_s: float, unless: asyncio.Event) -> None:
        if (wait_s := until_s - self._now_s()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(unless.wait(), wait_s)

    async def _send(self, request: Request, scheduled_s: float) -> Completion | None:
        """Send one request and stamp its tokens. Returns the completion only if a turn may follow."""
        sent = _InFlight(request, scheduled_s)
        stamps_ns, counts, clock = sent.stamps_ns, sent.counts, time.monotonic_ns

        def arrived(tokens: int, at_ns: int | None = None) -> None:
            if tokens > 0:
                self.own_stamps += at_ns is None
                stamps_ns.append(clock() if at_ns is None else at_ns)
                counts.append(tokens)
                self.output_tokens += tokens

        self._in_flight[id(sent)] = sent
        sent.sent_ns, sent.parsing_ns = clock(), self._parsing_ns
        try:
            if request.cancel_after_s is None:
                sent.parse = await self._exchange(request, arrived)
            else:
                async with asyncio.timeout(request.cancel_after_s):
                    sent.parse = await self._exchange(request, arrived)
        except BaseException as error:
            sent.error = error
            if isinstance(error, EngineDied) or not isinstance(error, Exception):
                raise  # any other exception is the failure of this request only
        finally:
            sent.end_ns = clock()
            del self._in_flight[id(sent)]
            self.finished += 1
            self.waves += request.age_tokens is not None
            completion = None
            unparsed = sent.parse or callable(getattr(sent.error, "arrival_tokens", None))
            if not unparsed or (sent.parse and request.conversation is not None):
                completion = self._record(sent)
            else:
                self._record_later(sent)
        return completion

    async def _generate(self, request: Request, arrived: Callable[[int], None]) -> Callable[[], Completion]:
        completion = await self.engine.generate(request, arrived)
        return lambda: completion

    def _record_later(self, sent: _InFlight) -> None:
        """Parse one answer per iteration of the loop, so that a token waits for at most one before it is stamped."""
        self._unparsed.append(sent)
        if len(self._unparsed) == 1:
            self._soon(self._record_next)
        elif len(self._unparsed) > MAX_UNPARSED:
            self._record(self._unparsed.popleft())

    def _record_next(self) -> None:
        if self._unparsed:  # not empty unless the load has ended
            sent = self._unparsed.popleft()
            if self._unparsed:
                self._soon(self._record_next)
            self._record(sent)

    def _record(self, sent: _InFlight) -> Completion | None:
        """Parse a request's answer and record the request. Returns None if it failed."""
        request, error, began, parsing_ns = sent.request, sent.error, self.began_ns, time.monotonic_ns()
        completion: Completion | None = None
        try:
            completion = sent.parse() if sent.parse is not None else None
        except Exception as failed:
            error = failed.with_traceback(None)  # whose frames would keep the answer until garbage is collected
        kind, text = (None, None) if error is None else _failure(error, request)
        # A timeout's cause is the exception that the engine raised when it was cancelled.
        ended = completion or (error.__cause__ if error and kind == "cancelled" else error)
        stamps_ns, counts, done = sent.stamps_ns, sent.counts, completion or Completion(None, None)
        counted = counted() if callable(counted := getattr(ended, "arrival_tokens", None)) else counted
        self._parsing_ns += time.monotonic_ns() - parsing_ns
        if counted is not None:  # replaces the counts of `arrived`
            self.output_tokens += sum(counted) - sum(counts)
            stamps_ns = [stamp for stamp, tokens in zip(stamps_ns, counted, strict=True) if tokens]
            counts = [tokens for tokens in counted if tokens]
        self._add_late(stamps_ns, counts)
        if kind is not None:
            self.failures[kind] += 1
        if kind is None or kind in ALIVE:
            self._success_ns, self._streak = sent.end_ns, 0
        else:
            self._streak += 1
        if sum(counts) > 1:
            gaps = sum(counts[1:]) or 1  # all tokens came at once
            self._recent.append(((stamps_ns[0] - sent.sent_ns) / 1e9, (stamps_ns[-1] - stamps_ns[0]) / gaps / 1e9))
        self.add(
            Record(
                **{name: getattr(request, name) for name in OF_REQUEST},
                **{name: getattr(done, name) for name in OF_ANSWER},
                scheduled_s=sent.scheduled_s,
                sent_s=(sent.sent_ns - began) / 1e9,
                end_s=(sent.end_ns - began) / 1e9,
                arrival_s=tuple([(stamp - began) / 1e9 for stamp in stamps_ns]),
                arrival_tokens=tuple(counts),
                input_asked=len(request.prompt),
                output_asked=request.output_tokens,
                error=kind,
                error_text=text,
                client=self.client if self.clients > 1 else None,
                hidden_tokens=done.hidden_tokens or None,
                retries=done.retries or None,
            )
        )
        return completion

    def _add_late(self, stamps_ns: Sequence[int], counts: Sequence[int]) -> None:
        """An arrival has the time of its last bytes from the kernel: a late loop moves only the tokens before these."""
        several = [stamp for stamp, tokens in zip(stamps_ns, counts, strict=True) if tokens > 1]
        self.late[delay_class(0.0)] += len(counts) - len(several)
        for stamp in several:
            self.late[delay_class(self._late_s(stamp / 1e9))] += 1


@dataclass(slots=True)
class _InFlight:
    """A request that was sent, and its answer so far."""

    request: Request
    scheduled_s: float
    sent_ns: int = 0
    parsing_ns: int = 0
    """Time that answers had been parsed for by then."""
    end_ns: int = 0
    stamps_ns: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    parse: Callable[[], Completion] | None = None
    error: BaseException | None = None

    def without_answer(self) -> _InFlight:
        """The request as if nothing of its answer had arrived."""
        ended = RequestFailed("aborted", "the run ended before the answer was parsed")
        return replace(self, stamps_ns=[], counts=[], parse=None, error=ended)


def _failure(error: BaseException, request: Request) -> tuple[str, str]:
    """The kind and text of a request's error."""
    match error:
        case TimeoutError() if request.cancel_after_s is not None:
            return "cancelled", f"the user gave up after {request.cancel_after_s} s"
        case RequestFailed():
            return error.kind, error.message
        case EngineDied():
            return "engine_died", str(error)
        case Exception():
            return type(error).__name__, str(error)
    return "aborted", "the run ended before the request did"
