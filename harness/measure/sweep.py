"""Measures the points of a sweep on workers. Each point is a stored run, from which the sweep can be resumed."""

import fcntl
import functools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.analysis.diff import flat, unequal
from harness.analysis.repeats import mean_of
from harness.analysis.summary import summary_of
from harness.config import shown
from harness.errors import HarnessError
from harness.files import read_text, text_digest
from harness.measure.run import PLAIN, Setup
from harness.measure.search import Auto, Outcome, Point, Sweep, next_load, parse_sweep, points
from harness.measure.workers import Done, Task, Worker
from harness.model import ENGINES, Figure
from harness.store.directory import list_runs
from harness.store.run import Run, read_run
from harness.workload.library import named_files, read_workload
from harness.workload.schema import Workload, workload_of

LOOK_S = 0.05
"""Time between two looks at the workers."""
ATTEMPTS = 3
"""Number of times a point is started whose worker is lost with its node."""
PLACED_S = 120.0
"""Longest time without room for any worker on the cluster."""


@dataclass(frozen=True, slots=True)
class Status:
    """Progress of a sweep."""

    point: Point
    done: Done | None
    """None: the point starts."""
    finished: int
    failed: int
    known: int
    """Points planned so far; a search adds more."""
    left_s: float | None
    """Estimated time to the end; None: no point has ended yet."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked sweep: its points, and the stored runs of those that are done."""

    sweep: Sweep
    root: Path
    points: tuple[Point, ...]
    """All points except those that a search adds; of a search, its combinations."""
    stored: dict[str, str]
    """Key of a point -> its first complete run with a successful request."""
    gpus: int
    """Largest number of GPUs that a point needs."""
    simulated: bool
    """Whether every engine is."""


def read_plan(file: Path, root: Path) -> Plan:
    """The plan of a sweep's file. HarnessError for a mistake in the file, and for a point with an invalid workload."""
    sweep = parse_sweep(read_text(file), str(file))
    if not Path(sweep.workload).is_file() and (file.parent / sweep.workload).is_file():
        sweep = sweep.model_copy(update={"workload": str(file.parent / sweep.workload)})
    return planned(sweep, root)


def planned(sweep: Sweep, root: Path) -> Plan:
    """The plan of a sweep.

    HarnessError for a point with an invalid workload, and if the root holds points of this sweep's name that were asked
    otherwise: a sweep that was changed would mix two measurements.
    """
    auto = sweep.auto
    load: dict[str, Any] = {} if auto is None else {auto.axis: auto.rounded(min(auto.start, auto.limit))}
    first = tuple(points(sweep))
    full = [replace(point, values={**point.values, **load}).overrides(sweep) for point in first]
    by = f"sweep {sweep.name}"
    workloads = [read_workload(sweep.workload, keys, dict.fromkeys(keys, by)) for keys in full]
    simulated = all(workload.engine.name == "simulated" for workload in workloads)
    return Plan(sweep, root, first, _stored(sweep, root), max(map(gpus_of, workloads)), simulated)


def _stored(sweep: Sweep, root: Path) -> dict[str, str]:
    """Key of a point -> its first complete run with a successful request."""
    found: dict[str, str] = {}
    digest = functools.cache(text_digest)  # of a file that many points name
    for path, run in list_runs(root):
        if isinstance(run, Run) and run.state == "complete" and (of := run.file.sweep) and of.name == sweep.name:
            if changes := _changes(sweep, Point(of.values, of.repeat), run, digest):
                what = f"sweep {sweep.name} has changed since {path.name}: {'; '.join(changes[:3])}"
                raise HarnessError(what, "give the changed sweep another name, or another --root")
            if run.requests["error"].isna().any():
                found.setdefault(of.key, path.name)
    return found


def _changes(sweep: Sweep, point: Point, run: Run, digest: Callable[[Path], str]) -> list[str]:
    """What the sweep asks of the point otherwise than the stored run was asked: `key: stored -> asked`.

    `digest` gives that of a file's text: what a trace or prompts file holds is asked too.
    """
    now = read_workload(sweep.workload, point.overrides(sweep))
    held = run.file.prompts.files if run.file.prompts else {}
    texts = [(name, held[name], digest(path)) for name, path in named_files(now).items() if name in held]
    asked = flat(now.model_dump(mode="json"))
    workload = workload_of(run.file.workload.model_dump(mode="json"), f"{run.directory}/run.json", {})
    stored = flat(workload.model_dump(mode="json"))
    pairs = sorted(unequal(stored, asked), key=lambda pair: pair[0])
    changed = [f"the text of {name} (SHA-256 {a:.12} -> {b:.12})" for name, a, b in texts if a != b]
    return changed + [f"{key}: {shown(a)} -> {shown(b)}" for key, a, b in pairs if key not in ("name", "description")]


def carry_out(
    plan: Plan,
    workers: Sequence[Worker],
    notify: Callable[[Status], None],
    setup: Setup = PLAIN,
    budget_gpu_hours: float | None = None,
    cooldown_s: float = 0.0,
) -> dict[Point, Done]:
    """Measure every point of the sweep that is not stored yet, on all workers at once. Returns how each point ended.

    A point that fails is recorded, and the others go on. No point starts after the budget is spent. A worker rests for
    `cooldown_s` between two points.
    Raises HarnessError if another process is measuring a sweep of this name in this root.
    """
    name, root = plan.sweep.name, plan.root
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".sweep-{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HarnessError(f"sweep {name} is being measured in {root}", "wait until it has ended") from None
        return _Measuring(plan, workers, notify, setup, budget_gpu_hours, cooldown_s).run()


@dataclass(slots=True)
class _Measuring:
    """A sweep while it is measured."""

    plan: Plan
    workers: Sequence[Worker]
    notify: Callable[[Status], None]
    setup: Setup
    budget_gpu_hours: float | None
    cooldown_s: float
    rested_s: dict[Worker, float] = field(default_factory=dict)
    """Worker -> when its rest ends."""
    waiting: list[Point] = field(default_factory=list)
    running: dict[Worker, tuple[Point, Task, float]] = field(default_factory=dict)
    """Worker -> its point, its task and the time of its start."""
    ended: dict[Point, Done] = field(default_factory=dict)
    loaded: dict[Worker, str] = field(default_factory=dict)
    """Worker -> the engine of its last point."""
    losses: Counter[Point] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for point in self.plan.points:
            if self.plan.sweep.auto is None:
                self.waiting.append(point)
            else:
                self._search(self.plan.sweep.auto, point, {})

    def run(self) -> dict[Point, Done]:
        placed_s = time.monotonic()
        try:
            while True:
                self._begin()
                if self.running:
                    placed_s = time.monotonic()
                elif self._next(None) is None:
                    return self.ended
                elif max(self.rested_s.values(), default=0.0) > time.monotonic():
                    placed_s = time.monotonic()
                elif time.monotonic() - placed_s > PLACED_S:
                    what = f"the cluster has had no room for a worker for {PLACED_S:g} s"
                    raise HarnessError(what, "see `ray status`, then continue with --resume")
                time.sleep(LOOK_S)
                for worker in tuple(self.running):
                    if (done := worker.ended()) is not None:
                        self._take(worker, done)
        finally:
            for worker in self.workers:
                if (done := worker.close()) is not None and worker in self.running:
                    self._take(worker, done)

    def _begin(self) -> None:
        """Start the next point on each free worker."""
        for worker in self.workers:
            busy = worker in self.running or time.monotonic() < self.rested_s.get(worker, 0.0)
            point = None if busy else self._next(self.loaded.get(worker))
            if point is not None and worker.ready():
                sweep, values = self.plan.sweep, dict(point.values)
                about = {"name": sweep.name, "key": point.key, "values": values, "repeat": point.repeat}
                workload = read_workload(sweep.workload, point.overrides(sweep))
                task = Task(workload, self.plan.root, about, self.setup)
                self.waiting.remove(point)
                self.running[worker], self.loaded[worker] = (point, task, time.monotonic()), point.engine
                worker.begin(task)
                self._report(point, None)

    def _next(self, engine: str | None) -> Point | None:
        """The next point to measure, of the same repeat with that engine if possible; None: none is left, or the budget
        is spent."""
        while self.waiting and not self._spent():
            turn = [each for each in self.waiting if each.repeat == self.waiting[0].repeat]
            point = next((each for each in turn if each.engine == engine), turn[0])
            if (run := self.plan.stored.get(point.key)) is None:
                return point
            self.waiting.remove(point)
            self._end(point, Done("complete", run))
        return None

    def _take(self, worker: Worker, done: Done) -> None:
        """Record the end of the worker's point; a point whose worker was lost waits again."""
        point, task, begun_s = self.running.pop(worker)
        self.rested_s[worker] = time.monotonic() + self.cooldown_s
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
        self._report(point, done)

    def _end(self, point: Point, done: Done) -> None:
        self.ended[point] = done
        if (auto := self.plan.sweep.auto) is not None:
            at = point.without(auto.axis, self.plan.sweep.repeat)
            self._search(auto, at, searched(auto, self.plan, self.ended)[at])

    def _search(self, auto: Auto, at: Point, measured: Mapping[float, Outcome]) -> None:
        if (load := next_load(auto, measured)) is not None:
            before = measured[load].runs if load in measured else 0
            self.waiting.append(Point({**at.values, auto.axis: load}, at.repeat + self.plan.sweep.repeat * before))

    def _spent(self) -> bool:
        spent_s = sum(done.seconds for done in self.ended.values()) * self.plan.gpus
        return self.budget_gpu_hours is not None and spent_s / 3600 >= self.budget_gpu_hours

    def _report(self, point: Point, done: Done | None) -> None:
        took = [(each.seconds, each.start_s) for each in self.ended.values() if each.seconds > 0]
        left = len(self.waiting) + len(self.running)
        starts = len({(each.repeat, each.engine) for each in self.waiting if each.engine not in self.loaded.values()})
        failed = sum(each.state != "complete" for each in self.ended.values())
        left_s = time_left_s(took, left, starts) if took else None
        known = len(self.ended) + left
        self.notify(Status(point, done, len(self.ended), failed, known, left_s and left_s / len(self.workers)))


def time_left_s(took: Sequence[tuple[float, float]], runs: int, starts: int) -> float:
    """Time that `runs` more runs need, of which `starts` start an engine, in seconds.

    `took`: the time of each ended run, and of the engine's start in it.

    >>> time_left_s([(130.0, 100.0), (30.0, 0.0)], runs=3, starts=1)
    190.0
    """
    measuring = sum(seconds - start for seconds, start in took) / len(took)
    return runs * measuring + starts * max(start for _, start in took)


def searched(auto: Auto, plan: Plan, ended: Mapping[Point, Done]) -> dict[Point, dict[float, Outcome]]:
    """The outcome of every load at each combination of a sweep with a search."""
    runs: dict[Point, dict[float, list[dict[str, Figure]]]] = {}
    for point, done in ended.items():
        loads = runs.setdefault(point.without(auto.axis, plan.sweep.repeat), {})
        loads.setdefault(point.values[auto.axis], []).append(_figures(plan.root, done))
    return {at: {load: outcome_of(auto, each) for load, each in loads.items()} for at, loads in runs.items()}


def outcome_of(auto: Auto, runs: Sequence[Mapping[str, Figure]]) -> Outcome:
    """The outcome of a load from the figures of each of its runs; if a run has none, the load has failed.

    Several runs have the interval of their mean between runs.
    """
    if not all(runs):
        return Outcome(None, None, False, len(runs))
    names = ("output_tokens_per_s", "tpot_s.p50", *auto.objective)
    rate, tpot, *limited = (mean_of([run[name] for run in runs]) if name in runs[0] else None for name in names)
    meets: set[bool | None] = set()
    for figure, limit in zip(limited, auto.objective.values(), strict=True):
        if figure is None or figure.value is None:
            meets.add(False)
        else:
            sure = figure.low is not None and figure.high is not None and not figure.low <= limit < figure.high
            meets.add(figure.value <= limit if sure else None)
    all_met = False if False in meets else None if None in meets else True
    return Outcome(rate, None if tpot is None else tpot.value, all_met, len(runs))


def gpus_of(workload: Workload) -> int:
    """GPUs that the workload needs: tensor x pipeline parallel size, the largest of any engine's options."""
    options = [workload.engine_options(name) for name in ENGINES]
    sizes = [[int(each.get(f"{kind}_parallel_size") or 1) for kind in ("tensor", "pipeline")] for each in options]
    return max(math.prod(pair) for pair in sizes)


def _figures(root: Path, done: Done) -> dict[str, Figure]:
    """The figures of a point's run by name; none unless the run is complete."""
    if done.state != "complete" or done.run is None:
        return {}
    return {figure.name: figure for figure in summary_of(read_run(root / done.run)).figures}
