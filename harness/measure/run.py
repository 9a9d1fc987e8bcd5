"""A run from its set-up to its stored end: the engine, the meters and the load, on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness.engines.base import Engine, choose_engine, create_engine
from harness.errors import EngineDied, HarnessError
from harness.measure import environment
from harness.measure.clients import PROGRESS_PERIOD_S, Clients, Ended, Inputs, Job, Link, Local, measure
from harness.measure.eventloop import Interrupt, LoopMonitor, event_loop
from harness.measure.nodes import Cluster
from harness.measure.sender import Progress, Sender, warm_up
from harness.meters.base import start_meters
from harness.meters.sampler import Polled
from harness.meters.server import ServerReader
from harness.model import SERVED, EngineInfo, ServerSample
from harness.store.directory import RunWriter, engine_record, new_id, point_latest
from harness.store.run_file import Anchor, RunFile, Timings
from harness.workload.arrivals import Trace
from harness.workload.library import read_files
from harness.workload.schema import Workload

IDLE_S = 3.0
"""How long each span without load is metered."""
LEAD_S = 0.02, 0.3
"""How long before second zero it is named: to a sender in this process, and to client processes."""
Notify = Callable[[Progress], None]
Enough = Callable[[Path], bool]
"""Asked four times a second while measuring, with the run's directory: True ends the load in good order."""


class Kept:
    """An engine that stays loaded from one run to the next of the same process, with the event loop it lives on."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner(loop_factory=event_loop)
        self.engine: Engine | None = None
        self.info: EngineInfo | None = None

    def close(self) -> None:
        """Stop the engine; an error of one that is already dead is of no interest."""
        if self.engine is not None:
            with contextlib.suppress(Exception):
                self.runner.run(self.engine.stop())
        self.runner.close()


def run(
    workload: Workload,
    root: Path,
    notify: Notify,
    power: Sequence[str] = (),
    declared: Mapping[str, float] | None = None,
    clients: int | None = None,
    ray: str | None = None,
    enough: Enough | None = None,
    sweep: Mapping[str, Any] | None = None,
    kept: Kept | None = None,
) -> Path:
    """Measure the workload once, and return the directory under `root` that holds the run.

    The run is stored whatever happens after the engine was asked to start. An interrupt or a dying engine ends the
    measuring and keeps what was measured, with the state `interrupted` or `failed`. `power` names the meters
    (`harness.meters.base.start_meters`), which are read from before the engine starts until after it has stopped;
    `declared` is what `RunFile.declared` says. With more than one of `clients`, so many processes send the load; with
    `ray`, a cluster's address, they are on its nodes, one on each unless `clients` says more. `sweep` is what
    `RunFile.sweep` says. An engine that is `kept` is started once, whatever the later workloads say of it, and stopped
    by `Kept.close`.

    Raises HarnessError where the set-up is wrong, before or while the engine starts.
    """
    name = choose_engine() if workload.engine.name == "auto" else workload.engine.name
    here = kept or Kept()
    here.engine = here.engine or create_engine(name, workload.engine_model(name), workload.engine_options(name))
    files = read_files(workload)
    arrivals = files.get(workload.load.trace or "")
    inputs = Inputs(files, arrivals if isinstance(arrivals, Trace) else None)
    now = datetime.now(UTC)
    writer = None
    try:
        with _links(clients, ray, name, workload) as (count, link), _Power(power) as meter:
            writer = meter.writer = RunWriter(
                root,
                RunFile(
                    id=new_id(now, None if name == "simulated" else workload.model, workload.name),
                    created_utc=now,
                    pid=os.getpid(),
                    workload=workload.model_dump(mode="json"),
                    engine_asked=name,
                    environment=environment.capture(),
                    declared=dict(declared or {}),
                    meters_asked=list(power),
                    meters=meter.infos,
                    meters_absent=meter.absent,
                    sweep=None if sweep is None else dict(sweep),
                ),
            )
            with _output_to(writer.directory / "engine.log"):
                session = _Session(workload, inputs, here, writer, notify, meter, count, link, enough)
                ended = session.run(stops=kept is None)
    except BaseException as stopped:
        if writer is not None:
            writer.finish("failed", str(stopped) or type(stopped).__name__)
        raise
    finally:
        if kept is None:
            here.runner.close()
    writer.update(environment=environment.ended(writer.file.environment.model_dump()))
    writer.finish(ended.state, ended.error)
    point_latest(root, writer.file.id)
    return writer.directory


@contextlib.contextmanager
def _links(
    clients: int | None, ray: str | None, engine: str, workload: Workload
) -> Iterator[tuple[int, Callable[[Job], Link] | None]]:
    """How many clients there are, and what starts one; None: this process is the only one."""
    if clients in (None, 1) and ray is None:
        yield 1, None
        return
    if engine not in SERVED:
        raise HarnessError(
            f"engine '{engine}' works inside the harness's own process, where one client sends",
            "leave --clients and --ray out, or measure a server with --engine openai",
        )
    with contextlib.nullcontext() if ray is None else Cluster(ray) as cluster:
        count = clients or (len(cluster.nodes) if cluster else 1)
        for key in ("users", "max_in_flight"):
            most = getattr(workload.load, key)
            if most is not None and most < count:
                what = f"{count} clients cannot share load.{key}={most}"
                raise HarnessError(what, f"give {most} with --clients, or raise it")
        yield count, cluster or Local


@dataclass(slots=True)
class _Session:
    """One load on one engine, from its start where it does not run yet."""

    workload: Workload
    inputs: Inputs
    kept: Kept
    writer: RunWriter
    notify: Notify
    power: _Power
    clients: int
    link: Callable[[Job], Link] | None
    enough: Enough | None
    timings: Timings = field(default_factory=Timings)
    server: Polled[ServerSample] | None = None
    """Reads what the server says of itself while it is measured."""

    @property
    def engine(self) -> Engine:
        assert self.kept.engine is not None
        return self.kept.engine

    def run(self, stops: bool) -> Ended:
        """How the run ended, and why if it did not end well; the engine `stops` with it, or stays."""
        runner = self.kept.runner
        with Interrupt() as interrupt:
            try:
                self.power.idle("bare")
                with self._timed("engine_start_s", "starting"):
                    self.kept.info = info = self.kept.info or runner.run(self._start())
                server = getattr(self.engine, "server_record", None)
                self.writer.update(engine=engine_record(info), server=server)
                with self._sender(info) as sender:
                    with self._timed("warmup_s", "warming up"):
                        runner.run(
                            sender.ready()
                            if isinstance(sender, Clients)
                            else warm_up(self.engine, sender.make, self.workload.warmup.requests)
                        )
                    self.power.idle("loaded")
                    with self._server_read(info), self._timed("measured_s", "measuring"):
                        ended = runner.run(self._measure(sender, interrupt))
            except KeyboardInterrupt:
                begun = "while measuring" if self.writer.file.clock else "before the measured part began"
                ended = Ended("interrupted", f"interrupted {begun}")
            except EngineDied as died:
                ended = Ended("failed", str(died))
            finally:
                # An interrupt from here on changes nothing of what was measured.
                if stops:
                    with contextlib.suppress(KeyboardInterrupt), self._timed("engine_stop_s", "stopping"):
                        runner.run(self.engine.stop())
            if ended.state == "complete":
                with contextlib.suppress(KeyboardInterrupt):
                    self.power.idle("after")
            return ended

    async def _start(self) -> EngineInfo:
        """Start the engine; meanwhile what it logs is shown, since a large model takes minutes."""
        start = asyncio.ensure_future(self.engine.start())
        while not (await asyncio.wait([start], timeout=PROGRESS_PERIOD_S))[0]:
            self.notify(Progress("starting", log_line=_last_line(self.writer.directory / "engine.log")))
            self.power.drain()
        return start.result()

    @contextlib.contextmanager
    def _sender(self, info: EngineInfo) -> Iterator[Sender | Clients]:
        """What sends the load: this process itself, or several others."""
        if self.link is None:
            talk = self.inputs.conversations(self.workload, info)
            yield Sender(self.workload, self.inputs.arrivals, self.engine, talk.make, self.writer.add, talk.follow)
            return
        name = self.writer.file.engine_asked
        # Of a server that the harness started, clients are told the address.
        options = dict(getattr(self.engine, "client_options", self.workload.engine_options(name)))
        if "connections" in options:
            options["connections"] = math.ceil(options["connections"] / self.clients)
        jobs = [
            Job(self.workload, self.inputs, name, options, self.writer.client_journal(k), (k, self.clients))
            for k in range(self.clients)
        ]
        clients = Clients(self.workload, [self.link(job) for job in jobs])
        try:
            yield clients
        finally:
            self.writer.update(clients=clients.close())

    @contextlib.contextmanager
    def _server_read(self, info: EngineInfo) -> Iterator[None]:
        """Read what the server says of itself meanwhile, where the engine is one."""
        if not (urls := info.options.get("base_url")):
            yield
            return
        self.server = Polled("server", ServerSample, ServerReader, [urls] if isinstance(urls, str) else urls)
        self.server.start()
        try:
            yield
        finally:
            self.server.stop()
            self.writer.add_server(self.server.drain())
            self.server = None

    def _drain(self) -> None:
        """Move what other processes have read into the run's journals."""
        self.power.drain()
        if self.server is not None:
            self.writer.add_server(self.server.drain())

    async def _measure(self, sender: Sender | Clients, interrupt: Interrupt) -> Ended:
        with LoopMonitor() as monitor:
            lead_s = LEAD_S[isinstance(sender, Clients)]
            began_ns = time.monotonic_ns() + int(lead_s * 1e9)
            zero = datetime.now(UTC) + timedelta(seconds=lead_s)
            self.writer.update(clock=Anchor(utc=zero, monotonic_s=began_ns / 1e9))
            load = measure(sender, began_ns, monitor) if isinstance(sender, Sender) else sender.run(began_ns)
            task, ticker = asyncio.ensure_future(load), asyncio.ensure_future(self._tick(sender))
            try:
                with interrupt.cancels(task):
                    ended = await task
            finally:
                ticker.cancel()
        if ended.monitor:
            self.writer.update(clients=[{"client": 0, **ended.monitor}])
        return ended

    async def _tick(self, sender: Sender | Clients) -> None:
        for tick in itertools.count():
            self.notify(sender.progress())
            if tick % 2 == 0:
                self._drain()
            if self.enough is not None and self.enough(self.writer.directory):
                sender.stop()
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
    """The meters of a run, from before it has a directory until after its engine has stopped."""

    def __init__(self, asked: Sequence[str]) -> None:
        started, self.absent = start_meters(asked)
        self.meters = [meter for meter, _ in started]
        self.infos = [dataclasses.asdict(info) for _, info in started]
        self.writer: RunWriter | None = None
        self._idle: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> _Power:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the meters, and store what they have read and said."""
        infos = [dataclasses.asdict(meter.stop()) for meter in self.meters]
        if self.writer is not None:
            self.drain()
            zero_s = self.writer.file.clock.monotonic_s if self.writer.file.clock else 0.0
            idle = {name: (begun - zero_s, ended - zero_s) for name, (begun, ended) in self._idle.items()}
            self.writer.update(meters=infos, idle=idle)

    def idle(self, name: str) -> None:
        """Do nothing for a while, so that the meters see what the machine draws without load."""
        if self.meters:
            self.drain()  # a meter whose pipe is full reads nothing
            begun = time.monotonic()
            time.sleep(IDLE_S)
            self._idle[name] = begun, time.monotonic()
            self.drain()

    def drain(self) -> None:
        """Move what the meters have read into the run's journal."""
        for meter in self.meters:
            if (samples := meter.drain()) and self.writer is not None:
                self.writer.add_power(samples)


def _last_line(log: Path) -> str:
    """The end of a log in at most 60 characters, without what stands in brackets before the message."""
    with log.open("rb") as opened:
        opened.seek(max(0, log.stat().st_size - 2000))
        lines = opened.read().decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    return "".join(filter(str.isprintable, last.rpartition("] ")[2]))[:60]


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
