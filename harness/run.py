"""The measuring loop: it sends, stamps and records. The only part of the harness that reads the clock."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from harness import engines, environment, load, meters, shipped, store
from harness.errors import EngineDied, HarnessError, RequestFailed
from harness.eventloop import Interrupt, event_loop
from harness.model import Completion, EngineInfo, Record, Request
from harness.workload import Prompt, Workload, request_maker

PROGRESS_PERIOD_S = 0.25
IDLE_S = 3.0
"""How long each span without load is metered."""
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


Notify = Callable[[Progress], None]


def run(
    workload: Workload,
    root: Path,
    notify: Notify,
    power: Sequence[str] = (),
    declared: Mapping[str, float] | None = None,
) -> Path:
    """Measure the workload once, and return the directory under `root` that holds the run.

    The run is stored whatever happens after the engine was asked to start. An interrupt or a dying engine ends the
    measuring and keeps what was measured, with the state `interrupted` or `failed`. `power` names the meters
    (`harness.meters.start`), which are read from before the engine starts until after it has stopped;
    `declared` is what `RunFile.declared` says.

    Raises HarnessError where the set-up is wrong, before or while the engine starts.
    """
    name = engines.choose() if workload.engine.name == "auto" else workload.engine.name
    engine = engines.create(name, workload.model, workload.engine_options(name))
    inputs = _inputs(workload)
    now = datetime.now(UTC)
    writer = store.RunWriter(
        root,
        store.RunFile(
            id=store.new_id(now, None if name == "simulated" else workload.model, workload.name),
            created_utc=now,
            pid=os.getpid(),
            workload=workload.model_dump(mode="json"),
            engine_asked=name,
            environment=environment.capture(),
            declared=dict(declared or {}),
        ),
    )
    session = _Session(workload, inputs, engine, writer, notify, _Power(power, writer))
    try:
        with _output_to(writer.directory / "engine.log"):
            state, error = session.run()
    except BaseException as stopped:
        writer.finish("failed", str(stopped) or type(stopped).__name__)
        raise
    writer.finish(state, error)
    store.point_latest(root, writer.file.id)
    return writer.directory


@dataclass(frozen=True, slots=True)
class _Inputs:
    lengths: load.Trace | None
    arrivals: load.Trace | None
    texts: Sequence[Prompt] | None


def _inputs(workload: Workload) -> _Inputs:
    """The files that the workload names, read before anything starts."""
    return _Inputs(
        lengths=shipped.read_trace(workload.requests.trace) if workload.requests.trace else None,
        arrivals=shipped.read_trace(workload.load.trace) if workload.load.trace else None,
        texts=shipped.read_prompts(workload.requests.prompts) if workload.requests.prompts else None,
    )


@dataclass(slots=True)
class _Session:
    """One engine from start to stop, on one event loop."""

    workload: Workload
    inputs: _Inputs
    engine: engines.Engine
    writer: store.RunWriter
    notify: Notify
    power: _Power
    timings: store.Timings = field(default_factory=store.Timings)

    def run(self) -> tuple[store.State, str | None]:
        """How the run ended, and why if it did not end well."""
        with asyncio.Runner(loop_factory=event_loop) as runner, Interrupt() as interrupt, self.power:
            try:
                self.power.idle("bare")
                with self._timed("engine_start_s", "starting"):
                    info = runner.run(self.engine.start())
                self.writer.update(engine=store.engine_record(info))
                make = self._maker(info)
                with self._timed("warmup_s", "warming up"):
                    runner.run(_warm_up(self.engine, make, self.workload.warmup.requests))
                self.power.idle("loaded")
                with self._timed("measured_s", "measuring"):
                    ended = runner.run(self._measure(make, interrupt))
            except KeyboardInterrupt:
                begun = "while measuring" if self.writer.file.clock else "before the measured part began"
                ended = "interrupted", f"interrupted {begun}"
            except EngineDied as died:
                ended = "failed", str(died)
            finally:
                # An interrupt from here on changes nothing of what was measured.
                with contextlib.suppress(KeyboardInterrupt), self._timed("engine_stop_s", "stopping"):
                    runner.run(self.engine.stop())
            if ended[0] == "complete":
                with contextlib.suppress(KeyboardInterrupt):
                    self.power.idle("after")
            return ended

    def _maker(self, info: EngineInfo) -> Callable[[int], Request]:
        return request_maker(
            self.workload,
            vocabulary=info.vocabulary,
            max_length=info.max_length,
            trace=self.inputs.lengths,
            texts=self.inputs.texts or (),
            encode=info.encode,
        )

    async def _measure(self, make: Callable[[int], Request], interrupt: Interrupt) -> tuple[store.State, str | None]:
        loop = _LoadLoop(self.workload, self.inputs.arrivals, self.engine, make, self.writer.add)
        # What start-up left behind is set aside, so that no collection walks through it while requests are timed.
        gc.collect()
        gc.freeze()
        began_ns = time.monotonic_ns()
        self.writer.update(clock=store.Anchor(utc=datetime.now(UTC), monotonic_s=began_ns / 1e9))
        task = asyncio.ensure_future(loop.run(began_ns))
        ticker = asyncio.ensure_future(self._tick(loop))
        try:
            with interrupt.cancels(task):
                await task
        except asyncio.CancelledError:
            return "interrupted", "interrupted while measuring"
        except ExceptionGroup as group:
            if (wrong := group.subgroup(HarnessError)) is not None:  # the disk is full, say
                raise wrong.exceptions[0] from None
            died, others = group.split(EngineDied)
            if died is None or others is not None:
                raise
            return "failed", f"the engine died: {died.exceptions[0]}"
        finally:
            ticker.cancel()
            gc.unfreeze()
        return "complete", None

    async def _tick(self, loop: _LoadLoop) -> None:
        for tick in itertools.count():
            self.notify(loop.progress())
            if tick % 2 == 0:
                self.power.drain()
            await asyncio.sleep(PROGRESS_PERIOD_S)

    @contextlib.contextmanager
    def _timed(self, name: str, phase: str) -> Iterator[None]:
        self.notify(Progress(phase))
        began = time.monotonic()
        try:
            yield
        finally:
            self.timings = self.timings.model_copy(update={name: time.monotonic() - began})
            self.writer.update(timings=self.timings)


async def _warm_up(engine: engines.Engine, make: Callable[[int], Request], count: int) -> None:
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


class _LoadLoop:
    """Sends the requests as the load shape says, and hands each finished one to `add`."""

    def __init__(
        self,
        workload: Workload,
        arrivals: load.Trace | None,
        engine: engines.Engine,
        make: Callable[[int], Request],
        add: Callable[[Record], None],
    ) -> None:
        self.workload, self.arrivals, self.engine, self.make, self.add = workload, arrivals, engine, make, add
        self.sent = self.finished = self.failed = self.output_tokens = 0
        self.began_ns = 0

    async def run(self, began_ns: int) -> None:
        """Until every request is over. Raises an ExceptionGroup of EngineDied when the engine dies."""
        self.began_ns = began_ns
        async with asyncio.TaskGroup() as group:
            if self.workload.load.shape == "closed":
                indices = itertools.islice(itertools.count(), self.workload.requests.count)
                for _ in range(self.workload.load.users or 0):
                    group.create_task(self._user(indices))
            else:
                await self._open(group)

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
        while (scheduled_s := self._now_s()) < (limit_s or float("inf")):
            index = next(indices, None)
            if index is None:
                return
            await self._one(self.make(index), scheduled_s)

    async def _open(self, group: asyncio.TaskGroup) -> None:
        """Send each request when it is due, whatever became of those before it."""
        shape = self.workload.load
        slots = asyncio.Semaphore(shape.max_in_flight) if shape.max_in_flight else contextlib.nullcontext()
        due_s = load.due_s(shape, self.workload.requests.count, self.workload.seed, self.arrivals)
        for index, scheduled_s in enumerate(due_s):
            request = self.make(index)
            # Also without a wait the loop must come round: what was sent has to leave, and tokens to be stamped.
            await asyncio.sleep(scheduled_s - self._now_s())
            group.create_task(self._when_free(slots, request, scheduled_s))

    async def _when_free(
        self, slots: contextlib.AbstractAsyncContextManager[None], request: Request, scheduled_s: float
    ) -> None:
        async with slots:
            await self._one(request, scheduled_s)

    async def _one(self, request: Request, scheduled_s: float) -> None:
        """Send one request, stamp its tokens as they come, and record how it ended."""
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
            completion = await self.engine.generate(request, arrived)
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
                )
            )


class _Power:
    """The meters of a run, from before its engine starts until after it has stopped."""

    def __init__(self, asked: Sequence[str], writer: store.RunWriter) -> None:
        self.asked, self.writer = asked, writer
        self.meters: list[meters.Meter] = []
        self._idle: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> None:
        started, absent = meters.start(self.asked)
        self.meters = [meter for meter, _ in started]
        self.writer.update(meters=[dataclasses.asdict(info) for _, info in started], meters_absent=absent)

    def __exit__(self, *_: object) -> None:
        infos = [dataclasses.asdict(meter.stop()) for meter in self.meters]
        self.drain()
        zero_s = self.writer.file.clock.monotonic_s if self.writer.file.clock else 0.0
        idle = {name: (begun - zero_s, ended - zero_s) for name, (begun, ended) in self._idle.items()}
        self.writer.update(meters=infos, idle=idle)

    def idle(self, name: str) -> None:
        """Do nothing for a while, so that the meters see what the machine draws without load."""
        if self.meters:
            begun = time.monotonic()
            time.sleep(IDLE_S)
            self._idle[name] = begun, time.monotonic()
            self.drain()

    def drain(self) -> None:
        """Move what the meters have read into the run's journal."""
        for meter in self.meters:
            if samples := meter.drain():
                self.writer.add_power(samples)


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what this process and its children print to a file: an engine's log belongs to the run, not on the table."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in enumerate(kept, 1):
            os.dup2(original, number)
            os.close(original)
        os.close(log)
