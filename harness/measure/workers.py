"""Workers: processes that measure one point after another, here or on the nodes of a Ray cluster.

A worker keeps its engine loaded while the next point wants the same one. It is a process of its own so that a point
that brings it down (out of memory, say) is one failed point.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from harness.errors import HarnessError
from harness.process import Child, Gone
from harness.store.directory import adopt
from harness.store.run import read_run
from harness.workload.schema import Workload

LOOK_S = 2.0
"""How long one look at whether a cluster has room for a worker takes."""
INTERRUPTED_S = 30.0
"""How long a worker may take to store a point as interrupted."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is asked: one point."""

    workload: Workload
    root: Path
    sweep: dict[str, Any]
    """What run.json says of the sweep: its name, the point's key and values."""
    engine: str
    """Points with the same word can share a loaded engine."""
    power: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """How a point ended."""

    state: str
    """complete, interrupted or failed."""
    run: str | None = None
    error: str | None = None
    seconds: float = 0.0


class WorkerLost(Exception):
    """The worker's machine or process is gone, for no fault of the point's that is known."""


class Worker(Protocol):
    """Measures points, one at a time; `measure` blocks, and `close` may be called from another thread.

    `ready` is asked before a point is given: False, after a while, where there is no room for the worker at present.
    """

    def ready(self) -> bool: ...

    def measure(self, task: Task) -> Done: ...

    def close(self) -> None: ...


class LocalWorker:
    """A process on this machine, with the GPUs that it may use (None: whatever is there)."""

    def __init__(self, gpus: Sequence[str] | None = None) -> None:
        self._environment = dict(os.environ)
        if gpus is not None:
            self._environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self._child: Child | None = None

    def ready(self) -> bool:
        return True

    def measure(self, task: Task) -> Done:
        """One point; a process that dies over it is a failed point, and the next one gets another process."""
        begun = time.monotonic()
        if self._child is None:
            self._child = Child(work, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._child.send(task)
            done: Done = self._child.receive(None)
        except Gone as how:
            self._child, done = None, Done("failed", error=f"the measuring process {how} (out of memory?)")
        return replace(done, seconds=time.monotonic() - begun)

    def close(self) -> None:
        """End the process; a point that it measures is stored as interrupted."""
        if (child := self._child) is not None:
            child.process.terminate()
            child.end(INTERRUPTED_S)


def work(pipe: Connection) -> None:
    """What a worker process does, until the pipe that brings tasks closes."""
    from harness.measure import run as measuring

    kept, engine = None, None
    while True:
        task: Task = pipe.recv()
        if kept is not None and task.engine != engine:
            kept.close()
            kept = None
        kept, engine = kept or measuring.Kept(), task.engine
        try:
            directory = measuring.run(task.workload, task.root, lambda _: None, task.power, sweep=task.sweep, kept=kept)
            run = read_run(directory)
            done = Done(run.state, directory.name, run.file.error)
        except HarnessError as wrong:
            done = Done("failed", error=wrong.what)
        if done.state != "complete":  # whatever is wrong with it, the next point gets another engine
            kept.close()
            kept = None
        pipe.send(done)


class RemoteWorker:
    """The actor: a `LocalWorker` on a node, whose runs go back as files."""

    def __init__(self, gpus: int) -> None:
        ids = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        self._worker = LocalWorker(ids.split(",") if gpus and ids else None)

    def ready(self) -> bool:
        return True

    def measure(self, task: Task) -> tuple[Done, dict[str, bytes]]:
        with tempfile.TemporaryDirectory(prefix="harness-") as place:
            done = self._worker.measure(replace(task, root=Path(place)))
            runs = [path for path in Path(place).iterdir() if path.is_dir() and not path.is_symlink()]
            return done, {file.name: file.read_bytes() for run in runs for file in run.iterdir() if file.is_file()}


class OnNode:
    """A worker on some node of a Ray cluster with room for it; after a loss, on another one."""

    def __init__(self, ray: Any, gpus: int) -> None:
        self._ray, self._gpus = ray, gpus
        self._actor: Any = None
        self._placed: Any = None

    def ready(self) -> bool:
        if self._actor is None:
            needs = {"num_gpus": self._gpus} if self._gpus else {"num_cpus": 1}
            self._actor = self._ray.remote(RemoteWorker).options(**needs).remote(self._gpus)
            self._placed = self._actor.ready.remote()
        try:
            return bool(self._ray.wait([self._placed], timeout=LOOK_S)[0] and self._ray.get(self._placed))
        except self._ray.exceptions.RayError:
            self.close()
            return False

    def measure(self, task: Task) -> Done:
        """One point, its files brought to the root here. WorkerLost where the node is gone."""
        try:
            done, files = self._ray.get(self._actor.measure.remote(task))
        except self._ray.exceptions.RayError as lost:
            self.close()
            raise WorkerLost(str(lost).strip().splitlines()[0]) from None
        return Done(done.state, adopt(task.root, files), done.error, done.seconds) if files else done

    def close(self) -> None:
        if self._actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(self._actor)
            self._actor = None


@contextlib.contextmanager
def remote_workers(address: str, gpus: int, jobs: int | None) -> Iterator[list[Worker]]:
    """Workers on a Ray cluster, `gpus` for each: `jobs` of them, else one a set of GPUs, or one a node without GPUs."""
    from harness.measure.nodes import Cluster

    with Cluster(address) as cluster:
        room = int(cluster.ray.cluster_resources().get("GPU", 0) // gpus) if gpus else len(cluster.nodes)
        if room == 0:
            raise HarnessError(f"the Ray cluster at {address} has no {gpus} GPUs", "see `ray status`")
        yield [OnNode(cluster.ray, gpus) for _ in range(jobs or room)]
