"""Several client processes that send one load, with one schedule and one clock.

Each process creates its own engine client and builds its share of the requests, then waits for the start time that the
parent sets for all. Processes on one machine share CLOCK_MONOTONIC. Each writes its own journal; between processes
only progress is sent, four times a second.
"""

import asyncio
import contextlib
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol

from harness.engines.base import create_engine
from harness.errors import EngineDied, HarnessError
from harness.measure.eventloop import LoopMonitor, event_loop, percentiles
from harness.measure.sender import Progress, Sender
from harness.model import EngineInfo
from harness.process import Child, Gone
from harness.store.access import Journal
from harness.workload.arrivals import Trace
from harness.workload.requests import Conversations
from harness.workload.schema import Prompts, Workload

PROGRESS_PERIOD_S = 0.25
POLL_S = 0.05
"""Interval at which the parent reads the clients' messages."""
LIMITS = (
    ("max_num_batched_tokens", "max_batch_tokens", "chunked_prefill_size"),
    ("max_num_seqs", "max_requests_per_batch", "max_running_requests"),
)
"""Options of engines that limit the tokens in a step, and the requests that are decoded at a time."""
GRACE_S = 10.0
"""Limit on the time a client takes to end its load after a cancel."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The contents of the files named in the workload, and the salts of the measured and of the warm-up prompts."""

    files: Mapping[str, Trace | Prompts | str]
    salt: int | None = None
    warm_up_salt: int | None = None

    def warm_up(self, workload: Workload, info: EngineInfo, talk: Conversations | None) -> Conversations:
        """The conversations of the warm-up; `talk` are those of the load, if they were made already."""
        made = talk if self.warm_up_salt == self.salt else None
        return made or replace(self, salt=self.warm_up_salt).conversations(workload, info)

    def conversations(self, workload: Workload, info: EngineInfo) -> Conversations:
        urls = info.options.get("base_url")
        engines = (len(urls) if isinstance(urls, list) else 1) * (info.options.get("data_parallel_size") or 1)
        given = [[each for name in names if (each := info.options.get(name) or 0) > 0] for names in LIMITS]
        limits = [each[0] * engines if each else None for each in given]
        return Conversations(workload, info.vocabulary, info.max_length, self.files, info.encode, self.salt, *limits)


@dataclass(frozen=True, slots=True)
class Job:
    """The task of one client process."""

    workload: Workload
    inputs: Inputs
    engine: str
    options: Mapping[str, Any]
    journal: Path
    share: tuple[int, int]
    """(k, n) for client k of n."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the load ended: state, error if not complete, `LoopMonitor.result()` of the sending process, and counts."""

    state: Literal["complete", "interrupted", "failed"]
    error: str | None = None
    monitor: Mapping[str, Any] = field(default_factory=dict)
    finished: int = 0
    """Requests that were sent and came to an end."""
    failures: Counter[str] = field(default_factory=Counter)
    """Kind of failure -> number of requests."""


COUNTS = ("finished", "failed", "in_flight", "output_tokens")
INTERRUPTED = Ended("interrupted", "interrupted while measuring")


class Link(Protocol):
    """The parent's connection to a client process."""

    offset_ns: int
    """The client's clock minus this process's."""

    def send(self, command: tuple[Any, ...]) -> None: ...

    def receive(self) -> Any:
        """The next message, None if there is none. Raises Gone if the client has ended."""
        ...

    def close(self) -> Mapping[str, Any]:
        """End the process. Returns facts about the connection, which are stored with the client's monitor result."""
        ...


async def measure(sender: Sender, began_ns: int, monitor: LoopMonitor) -> Ended:
    """Wait until `began_ns` and send the load to its end. Cancelling ends the load in order, as interrupted.

    Raises HarnessError if the records cannot be written.
    """
    ended = Ended("complete")
    try:
        await asyncio.sleep((began_ns - time.monotonic_ns()) / 1e9)
        monitor.begin()
        await sender.run(began_ns, monitor.late_s)
    except asyncio.CancelledError:
        ended = INTERRUPTED
    except ExceptionGroup as group:
        if (errors := group.subgroup(HarnessError)) is not None:  # for instance a full disk
            raise errors.exceptions[0] from None
        died, others = group.split(EngineDied)
        if died is None or others is not None:
            raise
        ended = Ended("failed", f"the engine died: {died.exceptions[0]}")
    seen = monitor.result() | {"kernel_stamps": not sender.own_stamps}
    if sender.late and not sender.own_stamps:
        seen["late_stamp_s"] = percentiles(sender.late)
    return replace(ended, monitor=seen, finished=sender.finished, failures=sender.failures)


class Clients:
    """All client processes; it has the interface of one Sender."""

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = links
        self.talk = None
        self._ready: set[int] = set()
        self._progress: dict[int, Progress] = {}
        self._ended: dict[int, Ended] = {}

    async def warm_up(self, _made: Conversations) -> None:
        """Wait until every client has sent its share of the warm-up. Raises HarnessError if one fails."""
        while len(self._ready) < len(self.links):
            self._receive()
            if failed := self._failed():
                raise HarnessError(f"{failed.error} before the load", "see engine.log in the run's directory")
            await asyncio.sleep(POLL_S)

    async def run(self, began_ns: int) -> Ended:
        """Send the load with all clients. If one fails, the others end their load in order."""
        for link in self.links:
            link.send(("begin", began_ns + link.offset_ns))
        cancelled, deadline_s = False, math.inf
        while len(self._ended) < len(self.links) and time.monotonic() < deadline_s:
            try:
                await asyncio.sleep(POLL_S)
            except asyncio.CancelledError:
                cancelled = True
            self._receive()
            if (cancelled or self._failed()) and deadline_s == math.inf:
                deadline_s = time.monotonic() + GRACE_S
                self._send("cancel")
        ended = self._failed() or (INTERRUPTED if cancelled else Ended("complete"))
        each = self._ended.values()
        failures = sum((one.failures for one in each), Counter())
        return replace(ended, monitor={}, finished=sum(one.finished for one in each), failures=failures)

    def stop(self) -> None:
        """Send no more requests; those in flight continue to their end."""
        self._send("stop")

    def progress(self) -> Progress:
        """Of the clients' last reports: sums, medians of latencies, shortest time without a success, longest age."""
        each = self._progress.values()
        counts = {name: sum(getattr(one, name) for one in each) for name in COUNTS}
        known = {name: [x for one in each if (x := getattr(one, name)) is not None] for name in ("ttft_s", "itl_s")}
        return Progress(
            "measuring",
            **counts,
            **{name: statistics.median(values) for name, values in known.items() if values},
            failing_s=min((one.failing_s for one in each), default=0.0),
            oldest_s=max((one.oldest_s for one in each), default=0.0),
        )

    def close(self) -> list[dict[str, Any]]:
        """End all processes. Returns for each its number, facts about the link, and its monitor result."""
        self._send("cancel")
        monitors = {k: ended.monitor for k, ended in self._ended.items()}
        return [{"client": k, **link.close(), **monitors.get(k, {})} for k, link in enumerate(self.links)]

    def _failed(self) -> Ended | None:
        return next((ended for ended in self._ended.values() if ended.state == "failed"), None)

    def _send(self, *command: Any) -> None:
        for k, link in enumerate(self.links):
            if k not in self._ended:
                link.send(command)

    def _receive(self) -> None:
        """Take all messages. Raises a HarnessError that a client raised."""
        for k, link in enumerate(self.links):
            try:
                while k not in self._ended and (message := link.receive()) is not None:
                    if isinstance(message, HarnessError):
                        raise message
                    if isinstance(message, Ended):
                        self._ended[k] = message
                    elif isinstance(message, Progress):
                        self._progress[k] = message
                    else:
                        self._ready.add(k)
            except Gone as gone:
                self._ended[k] = Ended("failed", f"client process {k} {gone} (see engine.log)")


class Local(Child):
    """A client process on this machine. It inherits stdout and stderr."""

    offset_ns = 0

    def __init__(self, job: Job) -> None:
        super().__init__(serve, job)

    def close(self) -> Mapping[str, Any]:
        self.end(GRACE_S)
        return {}


def serve(pipe: Connection, job: Job) -> None:
    """The main function of a client process."""
    with contextlib.suppress(asyncio.CancelledError), asyncio.Runner(loop_factory=event_loop) as runner:
        pipe.send(runner.run(_serve(job, pipe)))


async def _serve(job: Job, pipe: Connection) -> Ended:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    began_ns: asyncio.Future[int] = loop.create_future()

    def on_message() -> None:
        word, *rest = pipe.recv()
        if word == "begin":
            began_ns.set_result(*rest)
        elif word == "stop":
            sender.stop()
        else:
            task.cancel()

    async def report() -> None:
        await began_ns
        while True:
            pipe.send(sender.progress())
            await asyncio.sleep(PROGRESS_PERIOD_S)

    engine = create_engine(job.engine, job.workload.engine_model(job.engine), job.options)
    info = await engine.start()
    talk = job.inputs.conversations(job.workload, info)
    journal = Journal(job.journal)
    sender = Sender(job.workload, engine, talk, journal.add, job.share)
    loop.add_reader(pipe, on_message)
    reporter = asyncio.ensure_future(report())
    try:
        await sender.warm_up(job.inputs.warm_up(job.workload, info, talk))
        with LoopMonitor() as monitor:
            pipe.send("ready")
            return await measure(sender, await began_ns, monitor)
    except EngineDied as died:
        return Ended("failed", str(died))
    finally:
        loop.remove_reader(pipe)
        reporter.cancel()
        journal.close()
        await engine.stop()
