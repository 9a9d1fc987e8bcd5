"""One run: starts the engine and the meters, measures the load on one event loop, and stores the result."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from harness.engines.base import Engine, Naming, Resetting, Telling, choose_engine, create_engine
from harness.errors import EngineDied, HarnessError
from harness.measure import environment
from harness.measure.beside import Beside
from harness.measure.clients import PROGRESS_PERIOD_S, Clients, Ended, Inputs, Job, Link, Local, measure
from harness.measure.eventloop import Interrupt, LoopMonitor, event_loop
from harness.measure.logs import last_line, output_to
from harness.measure.nodes import Cluster
from harness.measure.sender import WARM_UP_INDEX, Progress, Sender, probe, warm_up
from harness.meters.base import start_meters
from harness.meters.gpus import Board, Use, choose, look, named, processes_of
from harness.meters.sampler import Polled
from harness.meters.server import ServerReader, counters
from harness.model import SERVED, Charged, EngineInfo, ServerSample
from harness.store.directory import RunWriter, engine_record, new_id
from harness.store.run_file import Anchor, Prompts, RunFile, State
from harness.workload.arrivals import Trace
from harness.workload.library import read_files
from harness.workload.requests import Conversations
from harness.workload.schema import Workload

CACHING = ("openai", "vllm")
"""Engines that may have a prefix cache."""
SALT_BITS = 48
IDLE_S = 3.0
"""Length of each metered span without load."""
LEAD_S = 0.02, 0.3
"""Time between choosing second zero and reaching it: with a sender in this process, and with client processes."""
Notify = Callable[[Progress], None]
Enough = Callable[[Path], bool]
"""Called four times a second while measuring, with the run's directory; True stops sending, and the run completes."""


class Kept:
    """An engine that stays loaded for several runs in one process, with its event loop."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner(loop_factory=event_loop)
        self.engine: Engine | None = None
        self.info: EngineInfo | None = None
        self.charged: Charged | None = None
        self.log: IO[bytes] | None = None
        """The engine.log of the run that started the engine: its processes write there until they end."""

    def close(self) -> None:
        """Stop the engine; errors of an engine that is already dead are ignored."""
        if self.engine is not None:
            with contextlib.suppress(Exception):
                self.runner.run(self.engine.stop())
        if self.log is not None:
            self.log.close()
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
    same_prompts: bool = False,
    reset_cache: bool = False,
    gpus: Sequence[str] | None = None,
) -> Path:
    """Measure the workload once, and return the directory under `root` that holds the run.

    The run is stored in every case once its set-up is valid: after an interrupt or the death of the engine with the
    requests measured so far, and the state `interrupted` or `failed`. `power` names the meters
    (`harness.meters.base.start_meters`), which are read from before the engine starts until after it has stopped.
    `gpus` are indices or UUIDs of the GPUs to charge where the engine's own cannot be seen.
    `declared` and `sweep` are the fields of `RunFile`. `clients` is the number of processes that send the load; with
    `ray`, the address of a cluster, they run on its nodes, by default one per node. A `kept` engine is started by the
    first run, serves the later ones as it is, and is stopped by `Kept.close`.

    An engine that ran before gets prompts that no earlier run sent, unless `same_prompts` asks for those of the seed;
    `reset_cache` resets its prefix cache before the warm-up.

    Raises HarnessError for a mistake in the set-up, before or while the engine starts.
    """
    name = choose_engine() if workload.engine.name == "auto" else workload.engine.name
    here = kept or Kept()
    if here.engine is None:
        options = workload.engine_options(name)
        if clients not in (None, 1) or ray is not None:
            options.pop("connections", None)  # the clients open them
        here.engine = create_engine(name, workload.engine_model(name), options)
    if reset_cache and not isinstance(here.engine, Resetting):
        raise HarnessError(f"engine '{name}' has no prefix cache that can be reset", "omit --reset-cache")
    files = read_files(workload)
    arrivals = files.get(workload.load.trace or "")
    attached = here.info is not None or (name == "openai" and not workload.engine_options(name).get("serve"))
    drawn = secrets.randbits(SALT_BITS) if attached else None
    prompts = Prompts(salt=None if same_prompts else drawn, attached=attached, cache_reset=reset_cache)
    inputs = Inputs(files, arrivals if isinstance(arrivals, Trace) else None, prompts.salt, drawn)
    if gpus is not None and here.info is None:
        named(gpus, look())  # reports a mistake before anything is stored
    now = datetime.now(UTC)
    writer = None
    try:
        with (
            closing(Beside()) as beside,
            _links(clients, ray, name, workload) as (count, link),
            _Power(power, gpus) as meter,
        ):
            writer = meter.writer = RunWriter(
                root,
                RunFile(
                    id=new_id(now, _model_name(name, workload, here), workload.name),
                    created_utc=now,
                    pid=os.getpid(),
                    # A model that was not asked of a running server is not asked of it in a rerun.
                    workload=workload.model_dump(
                        mode="json", exclude=set() if workload.engine_model(name) else {"model"}
                    ),
                    engine_asked=name,
                    environment=environment.capture(),
                    declared=declared or {},
                    meters_asked=power,
                    meters=meter.infos,
                    meters_absent=meter.absent,
                    prompts=prompts,
                    sweep=sweep,
                ),
            )
            log = writer.directory / "engine.log"
            with output_to(log, here.log):
                if kept is not None and kept.log is None:
                    kept.log = log.open("rb")
                session = _Session(
                    workload, inputs, here, here.engine, writer, notify, meter, count, link, enough, gpus
                )
                ended = session.run(kept is None, attached)
            writer.update(
                environment={**environment.ended(writer.file.environment.model_dump()), "other_run": beside.seen()}
            )
    except BaseException as stopped:
        if writer is not None:
            state: State = "interrupted" if isinstance(stopped, KeyboardInterrupt) else "failed"
            writer.finish(state, str(stopped) or type(stopped).__name__)
        raise
    finally:
        if kept is None:
            here.runner.close()
    writer.finish(ended.state, ended.error)
    return writer.directory


def _model_name(engine: str, workload: Workload, here: Kept) -> str | None:
    """The model's name for the run's directory: a server's own, if it answers; none of a simulated engine."""
    if isinstance(here.engine, Naming):
        return here.runner.run(here.engine.model_name())
    return None if engine == "simulated" else workload.model


@contextlib.contextmanager
def _links(
    clients: int | None, ray: str | None, engine: str, workload: Workload
) -> Iterator[tuple[int, Callable[[Job], Link] | None]]:
    """Number of clients, and the function that starts one; None: this process sends the load itself."""
    if clients in (None, 1) and ray is None:
        yield 1, None
        return
    if engine not in SERVED:
        raise HarnessError(
            f"engine '{engine}' runs inside the harness's own process, which is its only client",
            "omit --clients and --ray, or measure a server with --engine openai",
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
    """One run on one engine, which is started unless it is running already."""

    workload: Workload
    inputs: Inputs
    kept: Kept
    engine: Engine
    writer: RunWriter
    notify: Notify
    power: _Power
    clients: int
    link: Callable[[Job], Link] | None
    enough: Enough | None
    gpus: Sequence[str] | None

    def run(self, stops: bool, attached: bool) -> Ended:
        """How the run ended, with the error if it did not complete.

        `stops`: stop the engine at the end. `attached`: the engine ran before this run.
        """
        runner = self.kept.runner
        with Interrupt() as interrupt:
            try:
                gpus = self.writer.file.environment.gpus or any(info.meter == "nvml" for info in self.power.infos)
                before = look() if gpus and self.kept.info is None else ()
                if not attached:
                    self.power.idle("bare")
                with self._timed("engine_start_s", "starting"):
                    self.kept.info = info = self.kept.info or runner.run(self._start())
                server = getattr(self.engine, "server_record", None)
                self.writer.update(engine=engine_record(info), server=server)
                if self.writer.file.prompts and self.writer.file.prompts.cache_reset:
                    runner.run(self._reset_cache())
                talk = self.inputs.conversations(self.workload, info) if self.link is None else None
                with self._sender(talk) as sender:
                    with self._timed("warmup_s", "warming up"):
                        runner.run(self._warm_up(sender, talk, info))
                    self.kept.charged = charged = self.kept.charged or self._charged(before, info, attached)
                    if any(board.processes for board in before if str(board.index) in charged.devices):
                        self.power.forget("bare")
                    self.writer.update(charged=charged)
                    self.power.idle("loaded")
                    with self._server_metrics(info) as metrics, self._timed("measured_s", "measuring"):
                        ended = runner.run(self._measure(sender, metrics, interrupt))
            except KeyboardInterrupt:
                begun = "while measuring" if self.writer.file.clock else "before the measured part began"
                ended = Ended("interrupted", f"interrupted {begun}")
            except EngineDied as died:
                ended = Ended("failed", str(died))
            finally:
                # The load has ended: an interrupt changes no result any more.
                if stops:
                    with contextlib.suppress(KeyboardInterrupt), self._timed("engine_stop_s", "stopping"):
                        runner.run(self.engine.stop())
            if ended.state == "complete":
                with contextlib.suppress(KeyboardInterrupt):
                    self.power.idle("after")
            return ended

    async def _start(self) -> EngineInfo:
        """Start the engine, and show its last log line meanwhile, because a large model takes minutes."""
        start = asyncio.ensure_future(self.engine.start())
        while not (await asyncio.wait([start], timeout=PROGRESS_PERIOD_S))[0]:
            self.notify(Progress("starting", log_line=last_line(self.writer.directory / "engine.log")))
            self.power.drain()
        return start.result()

    def _charged(self, before: Sequence[Board], info: EngineInfo, attached: bool) -> Charged:
        """The GPUs to charge. `before`: what NVML listed before the engine started."""
        processes, variables = processes_of(addresses(info))
        count = None if info.device == "unknown" else info.device_count
        use = Use(info.device, count, processes, started=not attached)
        return choose(before, look() if before else (), use, variables or os.environ, self.gpus or ())

    @contextlib.contextmanager
    def _sender(self, talk: Conversations | None) -> Iterator[Sender | Clients]:
        """The sender of the load: in this process, or several client processes."""
        if self.link is None:
            assert talk is not None
            yield Sender(
                self.workload,
                self.inputs.arrivals,
                self.engine,
                talk.make,
                self.writer.add,
                talk.follow,
                first_wave=talk.first_wave,
            )
            return
        name = self.writer.file.engine_asked
        # If the harness started the server, the engine knows the address for the clients.
        options = dict(getattr(self.engine, "client_options", self.workload.engine_options(name)))
        if most := self.workload.engine_options(name).get("connections"):
            options["connections"] = math.ceil(most / self.clients)
        jobs = [
            Job(self.workload, self.inputs, name, options, self.writer.client_journal(k), (k, self.clients))
            for k in range(self.clients)
        ]
        clients = Clients(self.workload, [self.link(job) for job in jobs])
        try:
            yield clients
        finally:
            self.writer.update(clients=clients.close())

    async def _reset_cache(self) -> None:
        assert isinstance(self.engine, Resetting)
        await self.engine.reset_cache()

    async def _warm_up(self, sender: Sender | Clients, talk: Conversations | None, info: EngineInfo) -> None:
        """Warm the engine up, then find out how much of one more new prompt its cache supplies."""
        count, prompts = self.workload.warmup.requests, self.writer.file.prompts
        if isinstance(sender, Clients):
            await sender.ready()
        made = self.inputs.warm_up(self.workload, info, talk)
        if prompts is not None:
            prompts = prompts.model_copy(update={"random": made.random})
            self.writer.update(prompts=prompts)
        if isinstance(sender, Sender):
            await warm_up(self.engine, made.make, count)
        if count == 0 or info.engine not in CACHING or prompts is None:
            return
        request = replace(made.make(WARM_UP_INDEX + count), output_tokens=1)
        before = await asyncio.to_thread(self._hits, info)
        try:
            cached = (await probe(self.engine, request)).cached_tokens
        except HarnessError:  # a server that fails now and then: the load counts that
            return
        if cached is None and before is not None and (after := await asyncio.to_thread(self._hits, info)) is not None:
            cached = int(after - before)
        if cached is not None:
            alone = max(0, cached - request.shared_tokens)
            self.writer.update(prompts=prompts.model_copy(update={"cached_alone": alone}))

    def _hits(self, info: EngineInfo) -> float | None:
        """Tokens that the server's prefix cache has supplied so far; None: it does not tell."""
        samples = ServerReader(addresses(info)).read()
        return next((each.value for each in samples if each.name == "prefix_cache_hits"), None)

    @contextlib.contextmanager
    def _server_metrics(self, info: EngineInfo) -> Iterator[Polled[ServerSample] | None]:
        """Reads the server's own metrics meanwhile; None if the engine is not a server: it is read at both ends."""
        if not (urls := addresses(info)):
            self._read_counters()
            try:
                yield None
            finally:
                self._read_counters()
            return
        metrics = Polled("server", ServerSample, ServerReader, urls)
        metrics.start()
        try:
            yield metrics
        finally:
            metrics.stop()
            self.writer.add_server(metrics.drain())

    def _read_counters(self) -> None:
        if isinstance(self.engine, Telling):
            self.writer.add_server(counters(self.engine.metrics()))

    async def _measure(
        self, sender: Sender | Clients, metrics: Polled[ServerSample] | None, interrupt: Interrupt
    ) -> Ended:
        """Send the load from second zero to its end."""
        with LoopMonitor() as monitor:
            lead_s = LEAD_S[isinstance(sender, Clients)]
            began_ns = time.monotonic_ns() + int(lead_s * 1e9)
            zero = datetime.now(UTC) + timedelta(seconds=lead_s)
            self.writer.update(clock=Anchor(utc=zero, monotonic_s=began_ns / 1e9))
            load = measure(sender, began_ns, monitor) if isinstance(sender, Sender) else sender.run(began_ns)
            task, ticker = asyncio.ensure_future(load), asyncio.ensure_future(self._tick(sender, metrics))
            with interrupt.cancels(task):
                await asyncio.wait({task, ticker}, return_when=asyncio.FIRST_COMPLETED)
                ended = await task if task.done() else await _given_up(task, ticker)
            ticker.cancel()
        if ended.monitor:
            self.writer.update(clients=[{"client": 0, **ended.monitor}])
        return _judged(ended)

    async def _tick(self, sender: Sender | Clients, metrics: Polled[ServerSample] | None) -> str:
        """Four times a second: show the progress, journal the readings, and stop if the figures are precise enough.

        Returns the reason if requests have failed for so long that the load must end.
        """
        limit_s = self.workload.give_up_s
        while (seen := sender.progress()).failing_s < limit_s or seen.oldest_s >= limit_s:
            self.power.drain()
            self.notify(replace(seen, power_w=self.power.now_w(self.kept.charged)))
            if metrics is not None:
                self.writer.add_server(metrics.drain())
            if self.enough is not None and self.enough(self.writer.directory):
                sender.stop()
            await asyncio.sleep(PROGRESS_PERIOD_S)
        return f"no request succeeded for {seen.failing_s:.0f} s (--give-up {limit_s:g}s)"

    @contextlib.contextmanager
    def _timed(self, name: str, phase: str) -> Iterator[None]:
        self.notify(Progress(phase))
        began = time.monotonic()
        try:
            yield
        finally:
            timings = self.writer.file.timings.model_copy(update={name: time.monotonic() - began})
            self.writer.update(timings=timings)


async def _given_up(load: asyncio.Task[Ended], ticker: asyncio.Task[str]) -> Ended:
    """End the load, because the ticker returned a reason, or raised HarnessError."""
    load.cancel()
    ended = await load
    return replace(ended, state="failed", error=ticker.result())


def _judged(ended: Ended) -> Ended:
    """The end of the load; with most of its requests failed it has failed."""
    failures = Counter({kind: n for kind, n in ended.failures.items() if kind not in ("cancelled", "aborted")})
    kinds = ", ".join(f"{kind} {n:,}" for kind, n in failures.most_common(3))
    failed = f"{failures.total():,} of {ended.finished:,} requests failed: {kinds}"
    if ended.state == "complete" and failures.total() > ended.finished / 2:
        return replace(ended, state="failed", error=failed)
    return replace(ended, error=f"{ended.error}; {failed}") if ended.state == "failed" and failures else ended


class _Power:
    """The meters of a run, from before it has a directory until after its engine has stopped."""

    def __init__(self, asked: Sequence[str], gpus: Sequence[str] | None) -> None:
        started, self.absent = start_meters(asked, gpus)
        self.meters = [meter for meter, _ in started]
        self.infos = tuple(info for _, info in started)
        self.writer: RunWriter | None = None
        self._idle: dict[str, tuple[float, float]] = {}
        self._newest_w: dict[str, float] = {}
        """GPU -> its newest reading."""

    def __enter__(self) -> _Power:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the meters, and store their last readings and their descriptions."""
        infos = tuple(meter.stop() for meter in self.meters)
        if self.writer is not None:
            self.drain()
            zero_s = self.writer.file.clock.monotonic_s if self.writer.file.clock else 0.0
            idle = {name: (begun - zero_s, ended - zero_s) for name, (begun, ended) in self._idle.items()}
            self.writer.update(meters=infos, idle=idle)

    def idle(self, name: str) -> None:
        """Wait for `IDLE_S`, so that the meters read the power without load."""
        if self.meters:
            self.drain()  # a meter stops reading while its pipe is full
            begun = time.monotonic()
            time.sleep(IDLE_S)
            self._idle[name] = begun, time.monotonic()
            self.drain()

    def forget(self, name: str) -> None:
        """Drop a span that turned out not to be idle."""
        self._idle.pop(name, None)

    def drain(self) -> None:
        """Move the readings of the meters into the run's journal."""
        for meter in self.meters:
            if (samples := meter.drain()) and self.writer is not None:
                self.writer.add_power(samples)
            self._newest_w |= {x.device: x.power_w for x in samples if x.domain == "gpu" and x.power_w is not None}

    def now_w(self, charged: Charged | None) -> float | None:
        """Newest power of the charged GPUs together; None if none was read."""
        found = [watts for device, watts in self._newest_w.items() if charged and device in charged.devices]
        return sum(found) if found else None


def addresses(info: EngineInfo) -> list[str]:
    """The addresses of the server; empty: the engine is no server."""
    urls = info.options.get("base_url") or []
    return [urls] if isinstance(urls, str) else list(urls)
