"""Workers: processes that measure the points of a sweep one after another, here or on the nodes of a Ray cluster.

A worker keeps its engine loaded while the next point needs the same engine. It is a separate process, so that a crash
(for instance out of memory) costs one point only.
"""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.measure import run as measuring
from harness.measure.nodes import Cluster
from harness.measure.run import PLAIN, Setup
from harness.measure.sender import Progress
from harness.measure.session import Kept
from harness.process import Child, Gone
from harness.store.directory import adopt
from harness.store.run import read_run
from harness.workload.schema import Workload

INTERRUPTED_S = 30.0
"""Longest time for a worker to store a point as interrupted."""
TELL_S = 0.5
"""Time between two messages of a worker on its progress."""


@dataclass(frozen=True, slots=True)
class Task:
    """One point to measure."""

    workload: Workload
    root: Path
    sweep: dict[str, Any]
    """The entry `sweep` of run.json: the sweep's name, the point's key and values."""
    setup: Setup = PLAIN


@dataclass(frozen=True, slots=True)
class Done:
    """How a point ended."""

    state: str
    """complete, interrupted, failed, or lost (the worker's node is gone)."""
    run: str | None = None
    error: str | None = None
    seconds: float = 0.0
    start_s: float = 0.0
    """Time of the engine's start in `seconds`; about 0 if it was loaded."""


class LocalWorker:
    """A process on this machine. If it dies, its point has failed, and the next point gets a new process.

    It measures one point at a time, and only `close` waits. `ended` returns None until the point has ended; `close`
    ends the worker and returns how the point in progress ended, if that is known. `OnNode` has the same methods.
    `ended` calls `watch` with the progress of the point.
    """

    def __init__(self, watch: Callable[[Progress], None] = lambda _: None) -> None:
        self._child: Child | None = None
        self._measuring = False
        self._watch = watch

    def ready(self) -> bool:
        """Whether the worker can begin a point: on a cluster, whether it has room."""
        return True

    def begin(self, task: Task) -> None:
        self._child = self._child or Child(work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._child.send(task)
        self._measuring = True

    def ended(self, wait_s: float | None = 0) -> Done | None:
        assert self._child is not None
        try:
            while isinstance(message := self._child.receive(wait_s), Progress):
                self._watch(message)
            done: Done | None = message
        except Gone as how:
            self._child, done = None, Done("failed", error=f"the measuring process {how} (out of memory?)")
        self._measuring = done is None
        return done

    def close(self) -> Done | None:
        """End the process; the point in progress is stored as interrupted."""
        if (child := self._child) is None:
            return None
        done = None
        if self._measuring:
            child.process.terminate()
            done = self.ended(INTERRUPTED_S)
        child.end()
        return done


def work(pipe: Connection) -> None:
    """The worker process: measures the tasks from the pipe until it closes."""
    kept, loaded = Kept(), None
    phase, said_s = "", 0.0

    def tell(seen: Progress) -> None:
        nonlocal phase, said_s
        if seen.phase != phase or time.monotonic() - said_s >= TELL_S:
            phase, said_s = seen.phase, time.monotonic()
            pipe.send(seen)

    while True:
        task: Task = pipe.recv()
        wanted = task.workload.engine, task.workload.model
        if wanted != loaded:
            kept.close()
            kept, loaded = Kept(), wanted
        try:
            directory = measuring.run(task.workload, task.root, tell, task.setup, sweep=task.sweep, kept=kept)
            run = read_run(directory)
            done = Done(run.state, directory.name, run.file.error, start_s=run.file.timings.engine_start_s or 0.0)
        except HarnessError as wrong:
            done = Done("failed", error=wrong.what)
        if done.state != "complete":  # the engine may be damaged: the next point gets a new one
            kept.close()
            kept = Kept()
        pipe.send(done)


class RemoteWorker:
    """The Ray actor: a `LocalWorker` on a node, with the GPUs that Ray assigns. It returns each run as files."""

    def __init__(self, threads: str | None) -> None:
        """`threads` is OMP_NUM_THREADS where the sweep was started; without it, Ray would set 1."""
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
    """A worker on a node of a Ray cluster that has room; after the loss of the node, on another one."""

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
        """How the point ended; its files are stored under the root of the sweep."""
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


Worker = LocalWorker | OnNode


@contextlib.contextmanager
def start_workers(
    ray: str | None, gpus: int, jobs: int | None, watch: Callable[[Progress], None] = lambda _: None
) -> Iterator[list[Worker]]:
    """One worker on this machine, which tells `watch` its progress.

    With `ray`, on a Ray cluster `jobs` workers, by default one per `gpus` GPUs of the cluster.

    If the points or the cluster have no GPUs, one per node. HarnessError if the cluster can never hold a worker.
    """
    if ray is None:
        yield [LocalWorker(watch)]
        return
    with Cluster(ray) as cluster:
        there = int(cluster.ray.cluster_resources().get("GPU", 0))
        needed = gpus if there else 0
        room = there // needed if needed else len(cluster.nodes)
        if room == 0:
            what = f"the Ray cluster at {ray} has {there} GPUs and a point needs {gpus}"
            raise HarnessError(what, "see `ray status`")
        yield [OnNode(cluster.ray, needed) for _ in range(jobs or room)]
