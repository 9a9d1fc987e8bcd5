"""A sweep carried out: points on workers, each point a run, everything needed to resume it in the store."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from harness.measure.workers import Done, Task, Worker
from harness.model import ENGINES, SERVED, Figure
from harness.store.directory import list_runs
from harness.store.run import read_run
from harness.workload.library import read_workload
from harness.workload.schema import Workload

LOOK_S = 0.05
"""Between two looks at the workers."""
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
    engines: frozenset[str]
    """The names of its points' engines."""

    @property
    def simulated(self) -> bool:
        return self.engines == {"simulated"}

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
    names = frozenset(workload.engine.name for workload in workloads)
    return Plan(sweep, root, first, _stored(sweep, root), max(map(gpus_of, workloads)), names)


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
        return _Carried(plan, workers, notify, tuple(power), budget_gpu_hours).run()


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
    """A sweep while it is carried out."""

    def __init__(
        self,
        plan: Plan,
        workers: Sequence[Worker],
        notify: Callable[[Status], None],
        power: tuple[str, ...],
        budget: float | None,
    ) -> None:
        self.plan, self.workers, self.notify, self.power, self.budget = plan, workers, notify, power, budget
        self.waiting = list(plan.points)
        self.running: dict[Worker, tuple[Point, Task, float]] = {}
        """With the time at which it began."""
        self.ended: dict[Point, Done] = {}
        self.loaded: dict[Worker, str] = {}
        """The engine of the last point of each worker."""
        self.losses: Counter[Point] = Counter()
        self.searches: dict[Point, dict[float, Outcome]] = {}
        """Of a sweep with `auto`: by combination, what its loads have shown."""
        if (auto := plan.sweep.auto) is not None:
            self.waiting, self.searches = [], {combination: {} for combination in plan.points}
            for combination in self.searches:
                self._search(auto, combination)

    def run(self) -> dict[Point, Done]:
        placed_s = time.monotonic()
        try:
            while True:
                self._begin()
                if self.running:
                    placed_s = time.monotonic()
                elif self._next(None) is None:
                    return self.ended
                elif time.monotonic() - placed_s > PLACED_S:
                    what = f"no worker has had room for {PLACED_S:g} s"
                    raise HarnessError(what, "see `ray status`, then --resume")
                time.sleep(LOOK_S)
                for worker in tuple(self.running):
                    if (done := worker.ended()) is not None:
                        self._take(worker, done)
        finally:
            for worker in self.workers:
                if (done := worker.close()) is not None and worker in self.running:
                    self._take(worker, done)

    def _begin(self) -> None:
        """Give each worker that is free the next point."""
        for worker in self.workers:
            point = None if worker in self.running else self._next(self.loaded.get(worker))
            if point is not None and worker.ready():
                name, values = self.plan.sweep.name, dict(point.values)
                about = {"name": name, "key": point.key, "values": values, "repeat": point.repeat}
                task = Task(self.plan.workload(point), self.plan.root, about, self.power)
                self.waiting.remove(point)
                self.running[worker], self.loaded[worker] = (point, task, time.monotonic()), point.engine
                worker.begin(task)
                self._tell(point, None)

    def _next(self, engine: str | None) -> Point | None:
        """The next point to measure, if possible for that engine; None: there is none, or the budget is spent."""
        while self.waiting and not self._spent():
            point = next((each for each in self.waiting if each.engine == engine), self.waiting[0])
            if (run := self.plan.stored.get(point.key)) is None:
                return point
            self.waiting.remove(point)
            self._end(point, Done("complete", run))
        return None

    def _take(self, worker: Worker, done: Done) -> None:
        """The worker's point has ended."""
        point, task, begun_s = self.running.pop(worker)
        if done.state == "lost":
            del self.loaded[worker]
            self.losses[point] += 1
            if self.losses[point] < ATTEMPTS:
                self.waiting.insert(0, point)
                return
            done = replace(done, state="failed", error=f"its worker was lost {ATTEMPTS} times: {done.error}")
        done = replace(done, seconds=time.monotonic() - begun_s)
        with (self.plan.root / f"sweep-{self.plan.sweep.name}.jsonl").open("a") as log:
            log.write(json.dumps({**task.sweep, **asdict(done)}) + "\n")
        self._end(point, done)
        self._tell(point, done)

    def _end(self, point: Point, done: Done) -> None:
        self.ended[point] = done
        if (auto := self.plan.sweep.auto) is not None:
            combination = point.without(auto.axis)
            outcome = outcome_of(auto, figures_of(self.plan.root, done))
            self.searches[combination][point.values[auto.axis]] = outcome
            self._search(auto, combination)

    def _search(self, auto: Auto, combination: Point) -> None:
        if (load := next_load(auto, self.searches[combination])) is not None:
            self.waiting.append(Point({**combination.values, auto.axis: load}, combination.repeat))

    def _spent(self) -> bool:
        spent_s = sum(done.seconds for done in self.ended.values()) * self.plan.gpus
        return self.budget is not None and spent_s / 3600 >= self.budget

    def _tell(self, point: Point, done: Done | None) -> None:
        took = [each.seconds for each in self.ended.values() if each.seconds > 0]
        left = len(self.waiting) + len(self.running)
        failed = sum(each.state != "complete" for each in self.ended.values())
        left_s = sum(took) / len(took) * left / len(self.workers) if took else None
        self.notify(Status(point, done, len(self.ended), failed, len(self.ended) + left, left_s))


def outcome_of(auto: Auto, figures: Mapping[str, Figure]) -> Outcome:
    """What a search needs to know of a point."""
    if not figures:
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


def hint_of(plan: Plan) -> str | None:
    """How a sweep without Ray could use more of this machine; None: it could not."""
    if plan.engines & {*SERVED} or len(plan.points) == 1:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(visible.split(",") if visible else environment.capture()["gpus"])
    if (at_a_time := gpus // plan.gpus) < 2:
        return None
    return f"this machine has {gpus} GPUs and a point needs {plan.gpus}: --ray local measures {at_a_time} at a time"


def figures_of(root: Path, done: Done) -> dict[str, Figure]:
    if done.state != "complete" or done.run is None:
        return {}
    return {figure.name: figure for figure in summary_of(read_run(root / done.run)).figures}
