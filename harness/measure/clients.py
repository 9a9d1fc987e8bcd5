"""Several client processes as one load: one schedule, one clock, no broker.

Each process builds the engine's client, prepares its share of the load and waits for the instant that the parent names
as second zero for all. Processes of one machine share CLOCK_MONOTONIC. Each keeps a journal of its own; nothing of a
request passes between processes, only progress, four times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol

from harness.engines.base import create_engine
from harness.errors import EngineDied, HarnessError
from harness.measure.eventloop import Watch, event_loop
from harness.measure.sender import Progress, Sender, warm_up
from harness.model import EngineInfo
from harness.process import Child, Gone
from harness.store.journal import Journal
from harness.workload.arrivals import Trace
from harness.workload.requests import Conversations
from harness.workload.schema import Prompts, Workload

PROGRESS_PERIOD_S = 0.25
POLL_S = 0.05
"""Between two looks at what the clients have said."""
GRACE_S = 10.0
"""How long a client may take to end its load in good order."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that the workload names, as read."""

    files: Mapping[str, Trace | Prompts]
    arrivals: Trace | None

    def conversations(self, workload: Workload, info: EngineInfo) -> Conversations:
        return Conversations(workload, info.vocabulary, info.max_length, self.files, info.encode)


@dataclass(frozen=True, slots=True)
class Job:
    """What one client process is to do."""

    workload: Workload
    inputs: Inputs
    engine: str
    options: Mapping[str, Any]
    journal: Path
    share: tuple[int, int]
    """Client k of n."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the load ended, why if not well, and what the process that sent it saw of itself."""

    state: Literal["complete", "interrupted", "failed"]
    error: str | None = None
    seen: Mapping[str, Any] = field(default_factory=dict)


class Link(Protocol):
    """A client process at the other end. `receive` gives what it said next, None where there is nothing, or Gone."""

    offset_ns: int
    """Its clock less this process's."""

    def send(self, command: tuple[Any, ...]) -> None: ...

    def receive(self) -> Any: ...

    def close(self) -> Mapping[str, Any]:
        """See that the process ends; what is known of the link goes beside what the client saw of itself."""
        ...


async def measure(sender: Sender, began_ns: int, watch: Watch) -> Ended:
    """The load from `began_ns`, a little ahead, to its end; cancelling it is the interrupt that ends it in good order.

    Raises HarnessError where what was measured cannot be written.
    """
    try:
        await asyncio.sleep((began_ns - time.monotonic_ns()) / 1e9)
        watch.begin()
        await sender.run(began_ns)
    except asyncio.CancelledError:
        return Ended("interrupted", "interrupted while measuring", watch.seen())
    except ExceptionGroup as group:
        if (wrong := group.subgroup(HarnessError)) is not None:  # the disk is full, say
            raise wrong.exceptions[0] from None
        died, others = group.split(EngineDied)
        if died is None or others is not None:
            raise
        return Ended("failed", f"the engine died: {died.exceptions[0]}", watch.seen())
    return Ended("complete", None, watch.seen())


class Clients:
    """All clients, in the place of one Sender."""

    def __init__(self, workload: Workload, links: Sequence[Link]) -> None:
        self.workload, self.links = workload, links
        self._ready: set[int] = set()
        self._progress: dict[int, Progress] = {}
        self._ended: dict[int, Ended] = {}
        self._began_ns = 0
        self._deadline_s = float("inf")

    async def ready(self) -> None:
        """Until every client stands by. HarnessError where one cannot."""
        while len(self._ready) < len(self.links):
            self._hear()
            if failed := self._failed():
                raise HarnessError(f"{failed.error} before the load", "read engine.log in the run's directory")
            await asyncio.sleep(POLL_S)

    async def run(self, began_ns: int) -> Ended:
        """As `measure` does, for all clients: where one fails the others end in good order."""
        self._began_ns = began_ns
        for link in self.links:
            link.send(("begin", began_ns + link.offset_ns))
        cancelled = False
        while len(self._ended) < len(self.links) and time.monotonic() < self._deadline_s:
            try:
                await asyncio.sleep(POLL_S)
            except asyncio.CancelledError:
                cancelled = True
            self._hear()
            if (cancelled or self._failed()) and self._deadline_s == float("inf"):
                self._deadline_s = time.monotonic() + GRACE_S
                self._tell("cancel")
        if failed := self._failed():
            return failed
        return Ended("interrupted", "interrupted while measuring") if cancelled else Ended("complete")

    def stop(self) -> None:
        """Send no further request; those in flight go on to their end."""
        self._tell("stop")

    def progress(self) -> Progress:
        """The sum over the clients, as of what each said last."""
        last = self._progress.values()
        return Progress(
            "measuring",
            elapsed_s=(time.monotonic_ns() - self._began_ns) / 1e9,
            finished=sum(each.finished for each in last),
            failed=sum(each.failed for each in last),
            in_flight=sum(each.in_flight for each in last),
            output_tokens=sum(each.output_tokens for each in last),
            count=self.workload.requests.in_all,
            duration_s=self.workload.load.duration_s,
        )

    def close(self) -> list[dict[str, Any]]:
        """End the processes, all at once; what each saw of itself."""
        self._tell("cancel")
        seen = {k: ended.seen for k, ended in self._ended.items()}
        return [{"client": k, **link.close(), **seen.get(k, {})} for k, link in enumerate(self.links)]

    def _failed(self) -> Ended | None:
        return next((ended for ended in self._ended.values() if ended.state == "failed"), None)

    def _tell(self, *command: Any) -> None:
        for k, link in enumerate(self.links):
            if k not in self._ended:
                link.send(command)

    def _hear(self) -> None:
        """Take what the clients have said; raises the HarnessError that one of them met."""
        for k, link in enumerate(self.links):
            try:
                while k not in self._ended and (said := link.receive()) is not None:
                    if isinstance(said, HarnessError):
                        raise said
                    if isinstance(said, Ended):
                        self._ended[k] = said
                    elif isinstance(said, Progress):
                        self._progress[k] = said
                    else:
                        self._ready.add(k)
            except Gone as gone:
                self._ended[k] = Ended("failed", f"client process {k} {gone} (engine.log says more)")


class Local(Child):
    """A client process on this machine; what it prints goes where this process prints."""

    offset_ns = 0

    def __init__(self, job: Job) -> None:
        super().__init__(serve, job)

    def close(self) -> Mapping[str, Any]:
        self.end(GRACE_S)
        return {}


def serve(pipe: Connection, job: Job) -> None:
    """What a client process does."""
    with contextlib.suppress(asyncio.CancelledError), asyncio.Runner(loop_factory=event_loop) as runner:
        pipe.send(runner.run(_serve(job, pipe)))


async def _serve(job: Job, pipe: Connection) -> Ended:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    began_ns: asyncio.Future[int] = loop.create_future()

    def heard() -> None:
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

    k, n = job.share
    engine = create_engine(job.engine, job.workload.engine_model(job.engine), job.options)
    talk = job.inputs.conversations(job.workload, await engine.start())
    journal = Journal(job.journal)
    sender = Sender(job.workload, job.inputs.arrivals, engine, talk.make, journal.add, talk.follow, job.share)
    loop.add_reader(pipe, heard)
    reporter = asyncio.ensure_future(report())
    try:
        share = math.ceil(job.workload.warmup.requests / n)
        await warm_up(engine, lambda i: talk.make(i + k * share), share)
        with Watch() as watch:
            pipe.send("ready")
            return await measure(sender, await began_ns, watch)
    except EngineDied as died:
        return Ended("failed", str(died))
    finally:
        loop.remove_reader(pipe)
        reporter.cancel()
        journal.close()
        await engine.stop()
