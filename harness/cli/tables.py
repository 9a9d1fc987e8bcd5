"""Tables of stored runs, shipped files, engines, and the points of a sweep."""

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from harness.analysis.index import runs
from harness.cost.pricing import list_scenarios
from harness.engines.base import missing
from harness.files import read_data
from harness.measure.search import Outcome, Point, highest_feasible, saturation
from harness.measure.sweep import Plan, figures_of, outcome_of
from harness.measure.workers import Done
from harness.model import ENGINES
from harness.report.table import Cell, Table
from harness.workload.library import list_workloads


def runs_table(root: Path, where: str | None = None) -> Table:
    """Stored runs, oldest first, with the columns that the conditions name."""
    found = runs(root, where)
    named = re.findall(r"[\w.]+(?=\s*[!=<>])", where or "")
    columns = list(dict.fromkeys(["run", "state", "workload", "engine", "model", *named]))
    if (found["state"] == "damaged").any():
        columns.append("error")
    rows = tuple(tuple(None if pd.isna(cell) else str(cell) for cell in row) for row in found[columns].to_numpy())
    return Table("runs", f"Runs in {root}", tuple(columns), rows)


def workloads() -> Table:
    """Shipped workloads, and those under ./workloads."""
    return Table("workloads", "Workloads", ("name", "requests", "load", "description"), list_workloads())


def engine_table() -> Table:
    """Engines, and whether what they need is installed here."""
    rows = tuple((name, f"no: pip install {extra}" if (extra := missing(name)) else "yes") for name in sorted(ENGINES))
    return Table("engines", "Engines", ("engine", "installed"), rows)


def models() -> Table:
    """Short names of models."""
    rows = tuple(csv.reader(io.StringIO(read_data("short_names.csv"))))
    notes = ("Any Hugging Face id, local directory or GGUF file works as well.",)
    return Table("models", "Models with a short name", tuple(rows[0]), tuple(map(tuple, rows[1:])), notes)


def scenarios() -> Table:
    """Shipped cost scenarios."""
    return Table("scenarios", "Cost scenarios", ("name", "description"), list_scenarios())


TABLES = {"workloads": workloads, "engines": engine_table, "models": models, "scenarios": scenarios}
"""Word of `harness list` -> table; `runs` has its own."""


def plan_table(plan: Plan) -> Table:
    """The points in order, with the run of those that are done."""
    rows = tuple((in_words(point), plan.stored.get(point.key, "to do")) for point in plan.points)
    auto = plan.sweep.auto
    needs = "" if plan.simulated else f"; GPUs for each: {plan.gpus}"
    notes = [f"{len(plan.points)} points, {len(plan.stored)} done{needs}"]
    if auto is not None:
        notes = [f"at each of these a search over {auto.axis} from {auto.start:g} to {auto.limit:g}"]
    return Table("plan", f"Plan of sweep {plan.sweep.name}", ("point", "run"), rows, tuple(notes))


def ended_table(plan: Plan, ended: Mapping[Point, Done]) -> Table:
    """The figures and the end of each point; of a search also the load at saturation and the highest feasible load."""
    names = ("output_tokens_per_s", "ttft_s.p99", "tpot_s.p50")
    rows: list[tuple[Cell, ...]] = []
    searches: dict[Point, dict[float, Outcome]] = {}
    auto = plan.sweep.auto
    for point, done in ended.items():
        figures = figures_of(plan.root, done)
        rows.append((in_words(point), *(figures.get(name) for name in names), done.run, state_of(done)))
        if auto is not None:
            loads = searches.setdefault(point.without(auto.axis), {})
            loads[point.values[auto.axis]] = outcome_of(auto, figures)
    notes = [
        f"{in_words(combination)}: saturates at {auto.axis} = {saturation(seen) or 'n/a'}; the highest that meets "
        f"{auto.objective or 'no objective'} is {highest_feasible(seen) or 'n/a (none does)'}"
        for combination, seen in searches.items()
        if auto is not None
    ]
    return Table("sweep", f"Sweep {plan.sweep.name}", ("point", *names, "run", "state"), tuple(rows), tuple(notes))


def state_of(done: Done) -> str:
    """How a point ended."""
    return done.state if done.error is None else f"{done.state}: {done.error}"


def in_words(point: Point) -> str:
    """The values of a point under the last part of their keys.

    >>> in_words(Point({"load.users": 4, "model": "a"}, repeat=1))
    'users 4, model a, repeat 1'
    """
    values = [
        f"{key.rpartition('.')[2]} {x if isinstance(x, str) else json.dumps(x)}" for key, x in point.values.items()
    ]
    return ", ".join(values + [f"repeat {point.repeat}"] * bool(point.repeat)) or "the workload"
