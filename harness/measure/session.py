"""The part of a run that has an engine: its start, the warm-up, the load, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

from harness.engines.base import Engine, Resetting, Telling
from harness.errors import EngineDied, HarnessError
from harness.measure.clients import PROGRESS_PERIOD_S, Clients, Ended, Inputs, Job, Link, measure
from harness.measure.eventloop import Interrupt, LoopMonitor, event_loop
from harness.measure.power import Power
from harness.measure.sender import WARM_UP_INDEX, Progress, Sender, probe
from harness.meters.gpus import Board, Use, choose, look, processes_of
from harness.meters.sampler import Polled
from harness.meters.server import ServerReader, counters
from harness.model import Charged, EngineInfo, ServerSample
from harness.store.directory import RunWriter, engine_record
from harness.store.run_file import Anchor
from harness.workload.schema import Workload

CACHING = ("openai", "vllm")
"""Engines that may have a prefix cache."""
LEAD_S = 0.02, 0.3
"""Time between choosing second zero and reaching it: with a sender in this process, and with client processes."""
LOG = "engine.log"
KEPT = b"(the engine was started for an earlier run, whose engine.log has its start)\n"
"""First line of the engine.log of a run on a kept engine."""
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


@dataclass(slots=True)
class Session:
    """One run on one engine, which is started unless it is running already."""

    workload: Workload
    inputs: Inputs
    kept: Kept
    engine: Engine
    writer: RunWriter
    notify: Notify
    power: Power
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
                asked = self.writer.file.prompts
                if asked and asked.cache_reset and isinstance(self.engine, Resetting):
                    runner.run(self.engine.reset_cache())
                with self._sender(info) as sender:
                    with self._timed("warmup_s", "warming up"):
                        runner.run(self._warm_up(sender, info))
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
            self.notify(Progress("starting", log_line=last_line(self.writer.directory / LOG)))
            self.power.drain()
        return start.result()

    def _charged(self, before: Sequence[Board], info: EngineInfo, attached: bool) -> Charged:
        """The GPUs to charge. `before`: what NVML listed before the engine started."""
        processes, variables = processes_of(addresses(info))
        count = None if info.device == "unknown" else info.device_count
        use = Use(info.device, count, processes, started=not attached)
        return choose(before, look() if before else (), use, variables or os.environ, self.gpus or ())

    @contextlib.contextmanager
    def _sender(self, info: EngineInfo) -> Iterator[Sender | Clients]:
        """The sender of the load: in this process, or several client processes."""
        if self.link is None:
            talk = self.inputs.conversations(self.workload, info)
            yield Sender(self.workload, self.engine, talk, self.writer.add)
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
        clients = Clients([self.link(job) for job in jobs])
        try:
            yield clients
        finally:
            self.writer.update(clients=clients.close())

    async def _warm_up(self, sender: Sender | Clients, info: EngineInfo) -> None:
        """Warm the engine up, then find out how much of one more new prompt its cache supplies."""
        prompts = self.writer.file.prompts
        assert prompts is not None
        made = self.inputs.warm_up(self.workload, info, sender.talk)
        prompts = prompts.model_copy(update={"random": made.random})
        self.writer.update(prompts=prompts)
        await sender.warm_up(made)
        if self.workload.warmup.requests == 0 or info.engine not in CACHING:
            return
        # Each client has sent its share of the warm-up, rounded up.
        new = WARM_UP_INDEX + self.workload.warmup.requests + self.clients
        request = replace(made.make(new), output_tokens=1)
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
            self.writer.add(*metrics.drain())

    def _read_counters(self) -> None:
        if isinstance(self.engine, Telling):
            self.writer.add(*counters(self.engine.metrics()))

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
            task, ticker = asyncio.ensure_future(load), asyncio.ensure_future(self._tick(sender, metrics, began_ns))
            with interrupt.cancels(task):
                await asyncio.wait({task, ticker}, return_when=asyncio.FIRST_COMPLETED)
                ended = await task if task.done() else await _given_up(task, ticker)
            ticker.cancel()
        if ended.monitor:
            self.writer.update(clients=[{"client": 0, **ended.monitor}])
        return _judged(ended)

    async def _tick(self, sender: Sender | Clients, metrics: Polled[ServerSample] | None, began_ns: int) -> str:
        """Four times a second: show the progress, journal the readings, and stop if the figures are precise enough.

        Returns the reason if requests have failed for so long that the load must end.
        """
        limit_s, count, most_s = self.workload.give_up_s, self.workload.requests.in_all, self.workload.load.duration_s
        while (seen := sender.progress()).failing_s < limit_s or seen.oldest_s >= limit_s:
            self.power.drain()
            elapsed_s, power_w = max(0.0, (time.monotonic_ns() - began_ns) / 1e9), self.power.now_w(self.kept.charged)
            self.notify(replace(seen, elapsed_s=elapsed_s, count=count, duration_s=most_s, power_w=power_w))
            if metrics is not None:
                self.writer.add(*metrics.drain())
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


def addresses(info: EngineInfo) -> list[str]:
    """The addresses of the server; empty: the engine is no server."""
    urls = info.options.get("base_url") or []
    return [urls] if isinstance(urls, str) else list(urls)


def last_line(log: Path) -> str:
    """The last line of a log without its prefix in brackets, at most 60 characters."""
    lines = log.read_bytes()[-2000:].decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    return "".join(filter(str.isprintable, last.rpartition("] ")[2]))[:60]


@contextlib.contextmanager
def output_to(path: Path, first: IO[bytes] | None = None) -> Iterator[None]:
    """Append the output of this process and its children to a file, so that an engine's log is stored with the run.

    `first` is the open log of the run that started a kept engine: the engine's processes write there until they end,
    and what they write meanwhile is appended at the end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    originals = [os.dup(1), os.dup(2)]
    if first is not None:
        first.seek(0, os.SEEK_END)
    try:
        with path.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in enumerate(originals, 1):
            os.dup2(original, number)
            os.close(original)
        if first is not None:
            with path.open("ab") as log:
                log.write(KEPT + first.read())
