"""A run from its set-up to its stored end: the engine, the meters and the load, on one event loop."""

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

from harness import engines, environment, meters, shipped, store
from harness.conversations import Conversations
from harness.errors import EngineDied, HarnessError
from harness.eventloop import Interrupt, event_loop
from harness.load import Trace
from harness.sender import Progress, Sender, warm_up
from harness.workload import Prompts, Workload

PROGRESS_PERIOD_S = 0.25
IDLE_S = 3.0
"""How long each span without load is metered."""

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
    files = shipped.read_files(workload)
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
    session = _Session(workload, files, engine, writer, notify, _Power(power, writer))
    try:
        with _output_to(writer.directory / "engine.log"):
            state, error = session.run()
    except BaseException as stopped:
        writer.finish("failed", str(stopped) or type(stopped).__name__)
        raise
    writer.finish(state, error)
    store.point_latest(root, writer.file.id)
    return writer.directory


@dataclass(slots=True)
class _Session:
    """One engine from start to stop, on one event loop."""

    workload: Workload
    files: Mapping[str, Trace | Prompts]
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
                talk = Conversations(self.workload, info.vocabulary, info.max_length, self.files, info.encode)
                with self._timed("warmup_s", "warming up"):
                    runner.run(warm_up(self.engine, talk.make, self.workload.warmup.requests))
                self.power.idle("loaded")
                with self._timed("measured_s", "measuring"):
                    ended = runner.run(self._measure(talk, interrupt))
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

    async def _measure(self, talk: Conversations, interrupt: Interrupt) -> tuple[store.State, str | None]:
        arrivals = self.files.get(self.workload.load.trace or "")
        assert not isinstance(arrivals, tuple)
        loop = Sender(self.workload, arrivals, self.engine, talk.make, self.writer.add, talk.follow)
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

    async def _tick(self, loop: Sender) -> None:
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
