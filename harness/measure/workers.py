"""Workers: processes that measure one point after another, here or on the nodes of a Ray cluster.

A worker keeps its engine loaded while the next point wants the same one. It is a process of its own so that a point
that brings it down (out of memory, say) is one failed point.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from harness.errors import HarnessError
from harness.process import Child, Gone
from harness.store.directory import adopt
from harness.store.run import read_run
from harness.workload.schema import Workload

INTERRUPTED_S = 30.0
"""How long a worker may take to store a point as interrupted."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is asked: one point."""

    workload: Workload
    root: Path
    sweep: dict[str, Any]
    """What run.json says of the sweep: its name, the point's key and values."""
    power: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """How a point ended."""

    state: str
    """complete, interrupted, failed, or lost: with the worker's machine, for no fault of the point's that is known."""
    run: str | None = None
    error: str | None = None
    seconds: float = 0.0


class Worker(Protocol):
    """Measures one point at a time, none while it has no room (`ready`). Nothing waits but `close`.

    `ended` is None until the point has ended. `close` is how the point ended that was cut short, where that is known.
    """

    def ready(self) -> bool: ...

    def begin(self, task: Task) -> None: ...

    def ended(self) -> Done | None: ...

    def close(self) -> Done | None: ...


class LocalWorker:
    """A process on this machine. One that dies over a point is a failed point, and the next gets another process."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def ready(self) -> bool:
        return True

    def begin(self, task: Task) -> None:
        self._child = self._child or Child(work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._child.send(task)

    def ended(self, wait_s: float | None = 0) -> Done | None:
        assert self._child is not None
        try:
            done: Done | None = self._child.receive(wait_s)
        except Gone as how:
            self._child, done = None, Done("failed", error=f"the measuring process {how} (out of memory?)")
        return done

    def close(self) -> Done | None:
        """End the process; a point that it measures is stored as interrupted."""
        if (child := self._child) is None:
            return None
        child.process.terminate()
        done = self.ended(INTERRUPTED_S)
        child.end()
        return done


def work(pipe: Connection) -> None:
    """What a worker process does, until the pipe that brings tasks closes."""
    from harness.measure import run as measuring

    kept, loaded = measuring.Kept(), None
    while True:
        task: Task = pipe.recv()
        wanted = task.workload.engine, task.workload.model
        if wanted != loaded:
            kept.close()
            kept, loaded = measuring.Kept(), wanted
        try:
            directory = measuring.run(task.workload, task.root, lambda _: None, task.power, sweep=task.sweep, kept=kept)
            run = read_run(directory)
            done = Done(run.state, directory.name, run.file.error)
        except HarnessError as wrong:
            done = Done("failed", error=wrong.what)
        if done.state != "complete":  # whatever is wrong with it, the next point gets another engine
            kept.close()
            kept = measuring.Kept()
        pipe.send(done)


class RemoteWorker:
    """The actor: a `LocalWorker` on a node, with the GPUs that Ray shows it, whose runs go back as files."""

    def __init__(self, threads: str | None) -> None:
        """`threads` is OMP_NUM_THREADS where the sweep was started. Ray sets it to 1 where it is not set."""
        os.environ.pop("OMP_NUM_THREADS", None)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
        self._worker = LocalWorker()

    def measure(self, task: Task) -> tuple[Done | None, dict[str, bytes]]:
        with tempfile.TemporaryDirectory(prefix="harness-") as place:
            self._worker.begin(replace(task, root=Path(place)))
            done = self._worker.ended(None)
            runs = [path for path in Path(place).iterdir() if path.is_dir() and not path.is_symlink()]
            return done, {file.name: file.read_bytes() for run in runs for file in run.iterdir() if file.is_file()}


class OnNode:
    """A worker on some node of a Ray cluster with room for it; after a loss, on another one."""

    def __init__(self, ray: Any, gpus: int) -> None:
        self._ray, self._needs = ray, {"num_gpus": gpus} if gpus else {"num_cpus": 1}
        self._actor: Any = None
        self._placed: Any = None
        self._answer: Any = None
        self._root = Path()

    def ready(self) -> bool:
        if self._actor is None:
            actor = self._ray.remote(RemoteWorker).options(**self._needs)
            self._actor = actor.remote(os.environ.get("OMP_NUM_THREADS"))
            self._placed = self._actor.__ray_ready__.remote()
        try:
            return bool(self._ray.wait([self._placed], timeout=0)[0] and self._ray.get(self._placed))
        except self._ray.exceptions.RayError:
            self.close()
            return False

    def begin(self, task: Task) -> None:
        self._root, self._answer = task.root, self._actor.measure.remote(task)

    def ended(self) -> Done | None:
        """How the point ended, its files brought to the root here."""
        if not self._ray.wait([self._answer], timeout=0)[0]:
            return None
        try:
            done, files = self._ray.get(self._answer)
        except self._ray.exceptions.RayError as lost:
            self.close()
            return Done("lost", error=str(lost).strip().splitlines()[0])
        ended: Done = replace(done, run=adopt(self._root, files)) if files else done
        return ended

    def close(self) -> None:
        if self._actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(self._actor)
            self._actor = None


@contextlib.contextmanager
def start_workers(ray: str | None, gpus: int, jobs: int | None) -> Iterator[list[Worker]]:
    """One worker on this machine, or those on a Ray cluster: `jobs` of them, else one for each `gpus` GPUs there.

    With no GPUs wanted, or none there, one for each node. HarnessError where no worker will ever have room.
    """
    if ray is None:
        if jobs is not None:
            raise HarnessError(
                "--jobs without --ray", "add --ray local, which uses this machine's GPUs, or leave it out"
            )
        yield [LocalWorker()]
        return
    from harness.measure.nodes import Cluster

    with Cluster(ray) as cluster:
        there = int(cluster.ray.cluster_resources().get("GPU", 0))
        needed = gpus if there else 0
        room = there // needed if needed else len(cluster.nodes)
        if room == 0:
            raise HarnessError(
                f"the Ray cluster at {ray} has {there} GPUs and a point needs {gpus}", "see `ray status`"
            )
        yield [OnNode(cluster.ray, needed) for _ in range(jobs or room)]
