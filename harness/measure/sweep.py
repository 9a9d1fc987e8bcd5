"""A sweep carried out: points on workers, each point a run, everything needed to resume it in the store.

On this machine there is one worker for each set of GPUs that a point needs; with Ray they are on many machines.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.analysis.summary import summary_of
from harness.errors import HarnessError
from harness.measure import environment
from harness.measure.search import (
    Auto,
    Outcome,
    Point,
    Sweep,
    next_load,
    parse_sweep,
    points,
)
from harness.measure.workers import Done, LocalWorker, Task, Worker, WorkerLost, remote_workers
from harness.model import ENGINES, Figure
from harness.store.directory import list_runs
from harness.store.run import read_run
from harness.workload.library import read_workload
from harness.workload.schema import Workload

ATTEMPTS = 3
"""How often a point is begun whose worker is lost with its machine."""
PLACED_S = 120.0
"""How long a cluster may have room for no worker at all."""


@dataclass(frozen=True, slots=True)
class Status:
    """How far a sweep is."""

    point: Point
    done: Done | None
    """None: the point begins."""
    finished: int
    failed: int
    known: int
    """Points planned so far; a search adds to them."""
    left_s: float | None
    """Estimate of the time to the end; None: no point has ended yet."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep that was read and checked: what its points are, and which are done."""

    sweep: Sweep
    root: Path
    points: tuple[Point, ...]
    """All but those that a search will add."""
    stored: dict[str, str]
    """Key of a point -> its complete run, the first where there are several."""
    gpus: int
    """GPUs that a point needs, the most of any."""
    simulated: bool

    def workload(self, point: Point) -> Workload:
        return read_workload(self.sweep.workload, point.overrides(self.sweep))


def read_plan(file: Path, root: Path) -> Plan:
    """The plan of a sweep's file. HarnessError for a mistake in it, and for a point that is no valid workload."""
    try:
        sweep = parse_sweep(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as unreadable:
        raise HarnessError(f"{file}: {unreadable}", "give a readable YAML file") from None
    if not Path(sweep.workload).is_file() and (file.parent / sweep.workload).is_file():
        sweep = sweep.model_copy(update={"workload": str(file.parent / sweep.workload)})
    return planned(sweep, root)


def planned(sweep: Sweep, root: Path) -> Plan:
    """The plan of a sweep. HarnessError for a point that is no valid workload."""
    load: dict[str, Any] = {} if sweep.auto is None else {sweep.auto.axis: sweep.auto.start}
    first = tuple(points(sweep))
    full = [replace(point, values={**point.values, **load}).overrides(sweep) for point in first]
    workloads = [read_workload(sweep.workload, overrides) for overrides in full]
    simulated = all(workload.engine.name == "simulated" for workload in workloads)
    return Plan(sweep, root, first, _stored(sweep, root), max(map(gpus_of, workloads)), simulated)


@contextlib.contextmanager
def start_workers(plan: Plan, jobs: int | None = None, ray: str | None = None) -> Iterator[list[Worker]]:
    """Workers on this machine, or on the nodes of a Ray cluster: `jobs` of them, else as many as its GPUs allow."""
    if ray is not None:
        with remote_workers(ray, 0 if plan.simulated else plan.gpus, jobs) as remote:
            yield remote
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(len(environment.capture()["gpus"]))]
    sets = [gpus[i : i + plan.gpus] for i in range(0, len(gpus) - plan.gpus + 1, plan.gpus)]
    if plan.simulated or not sets:
        yield [LocalWorker() for _ in range(jobs or 1)]
    else:
        yield [LocalWorker(each) for each in sets[: jobs or len(sets)]]


@dataclass(slots=True)
class _Queue:
    """Which points are left, and which a search wants next. Every method is called under one lock."""

    sweep: Sweep
    waiting: deque[Point]
    searches: dict[Point, dict[float, Outcome]] = field(default_factory=dict)
    """Of a sweep with `auto`: by combination, what its loads have shown."""

    def begin(self) -> None:
        if self.sweep.auto is not None:
            self.searches = {combination: {} for combination in self.waiting}
            self.waiting.clear()
            for combination in self.searches:
                self._search(self.sweep.auto, combination)

    def next(self, engine: str | None) -> Point | None:
        """A point, if possible for the engine that the worker has loaded."""
        if not self.waiting:
            return None
        point = next((each for each in self.waiting if each.engine == engine), self.waiting[0])
        self.waiting.remove(point)
        return point

    def ended(self, point: Point, outcome: Outcome) -> None:
        if (auto := self.sweep.auto) is not None:
            combination = point.without(auto.axis)
            self.searches[combination][point.values[auto.axis]] = outcome
            self._search(auto, combination)

    def _search(self, auto: Auto, combination: Point) -> None:
        if (load := next_load(auto, self.searches[combination])) is not None:
            self.waiting.append(Point({**combination.values, auto.axis: load}, combination.repeat))


def _stored(sweep: Sweep, root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, run in list_runs(root):
        if isinstance(run, HarnessError) or run.state != "complete" or run.file.sweep is None:
            continue
        if run.file.sweep.name == sweep.name:
            found.setdefault(run.file.sweep.key, path.name)
    return found


def carry_out(
    plan: Plan,
    workers: Sequence[Worker],
    notify: Callable[[Status], None],
    power: Sequence[str] = (),
    budget_gpu_hours: float | None = None,
) -> dict[Point, Done]:
    """Measure every point of the sweep that is not stored yet, on all workers at once; how each ended.

    A point that fails is recorded and the others go on. With a budget no point is begun once it is spent.
    Raises HarnessError where another process carries out a sweep of this name in this root.
    """
    with _alone(plan.sweep, plan.root):
        return _Carried(plan, notify, tuple(power), budget_gpu_hours).run(workers)


@contextlib.contextmanager
def _alone(sweep: Sweep, root: Path) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".sweep-{sweep.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HarnessError(f"sweep {sweep.name} is being carried out in {root}", "wait for its end") from None
        yield


class _Carried:
    def __init__(
        self, plan: Plan, notify: Callable[[Status], None], power: tuple[str, ...], budget: float | None
    ) -> None:
        self.plan, self.notify, self.power, self.budget = plan, notify, power, budget
        self.queue = _Queue(plan.sweep, deque(plan.points))
        self.queue.begin()
        self.ended: dict[Point, Done] = {}
        self.running = 0
        self.losses: Counter[str] = Counter()
        self.stopping = False
        self.fault: BaseException | None = None
        self.changed = threading.Condition()

    def run(self, workers: Sequence[Worker]) -> dict[Point, Done]:
        threads = [threading.Thread(target=self._work, args=(worker, len(workers)), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        finally:
            with self.changed:
                self.stopping = True
                self.changed.notify_all()
            for worker in workers:
                worker.close()
        if self.fault is not None:
            raise self.fault
        return self.ended

    def _work(self, worker: Worker, of: int) -> None:
        engine, ready_s = None, time.monotonic()
        try:
            while not self._over():
                if not worker.ready():
                    if self.running == 0 and time.monotonic() - ready_s > PLACED_S:
                        raise HarnessError(
                            f"no worker has had room for {PLACED_S:g} s", "see `ray status`, then --resume"
                        )
                    continue
                if (point := self._take(engine)) is None:
                    return
                engine = point.engine
                done = self._measured(worker, point)
                ready_s = time.monotonic()
                with self.changed:
                    self.running -= 1
                    if done is None:
                        self.queue.waiting.appendleft(point)
                        self.changed.notify_all()
                    else:
                        self._end(point, done)
                        self._tell(point, done, of)
        except BaseException as fault:  # the disk is full, say: no worker can go on
            with self.changed:
                self.fault, self.stopping = fault, True
                self.changed.notify_all()

    def _over(self) -> bool:
        with self.changed:
            return self.stopping or self._spent() or (self.running == 0 and not self.queue.waiting)

    def _take(self, engine: str | None) -> Point | None:
        with self.changed:
            while not self.stopping and not self._spent():
                point = self.queue.next(engine)
                if point is not None and (run := self.plan.stored.get(point.key)) is not None:
                    self._end(point, Done("complete", run))
                elif point is not None:
                    self.running += 1
                    self._tell(point, None, 1)
                    return point
                elif self.running == 0:
                    return None
                else:
                    self.changed.wait()
            return None

    def _end(self, point: Point, done: Done) -> None:
        self.ended[point] = done
        figures = figures_of(self.plan.root, done) if self.plan.sweep.auto is not None else {}
        self.queue.ended(point, outcome_of(self.plan.sweep.auto, figures))
        self.changed.notify_all()

    def _measured(self, worker: Worker, point: Point) -> Done | None:
        """How the point ended; None where its worker was lost and another is to try."""
        workload = self.plan.workload(point)
        about = {"name": self.plan.sweep.name, "key": point.key, "values": dict(point.values), "repeat": point.repeat}
        try:
            done = worker.measure(Task(workload, self.plan.root, about, point.engine, self.power))
        except WorkerLost as lost:
            self.losses[point.key] += 1
            if self.losses[point.key] < ATTEMPTS:
                return None
            done = Done("failed", error=f"its worker was lost {ATTEMPTS} times: {lost}")
        with (self.plan.root / f"sweep-{self.plan.sweep.name}.jsonl").open("a") as log:
            log.write(json.dumps({**about, **asdict(done)}) + "\n")
        return done

    def _spent(self) -> bool:
        spent_s = sum(done.seconds for done in self.ended.values()) * self.plan.gpus
        return self.budget is not None and spent_s / 3600 >= self.budget

    def _tell(self, point: Point, done: Done | None, of: int) -> None:
        took = [each.seconds for each in self.ended.values() if each.seconds > 0]
        left = len(self.queue.waiting) + self.running
        failed = sum(each.state != "complete" for each in self.ended.values())
        left_s = sum(took) / len(took) * left / of if took else None
        self.notify(Status(point, done, len(self.ended), failed, len(self.ended) + left, left_s))


def outcome_of(auto: Auto | None, figures: Mapping[str, Figure]) -> Outcome:
    """What a search needs to know of a point."""
    if auto is None or not figures:
        return Outcome(None, None, False)
    values = {name: figure.value for name, figure in figures.items()}
    limits = [(values.get(name), limit) for name, limit in auto.objective.items()]
    meets = all(value is not None and value <= limit for value, limit in limits)
    return Outcome(values.get("output_tokens_per_s"), values.get("tpot_s.p50"), meets)


def gpus_of(workload: Workload) -> int:
    """GPUs that its engine needs: tensor x pipeline parallel, by the options of whichever engine has them."""
    options = [workload.engine_options(name) for name in ENGINES]
    sizes = [[int(each.get(f"{kind}_parallel_size") or 1) for kind in ("tensor", "pipeline")] for each in options]
    return max(math.prod(pair) for pair in sizes)


def figures_of(root: Path, done: Done) -> dict[str, Figure]:
    if done.state != "complete" or done.run is None:
        return {}
    return {figure.name: figure for figure in summary_of(read_run(root / done.run)).figures}
