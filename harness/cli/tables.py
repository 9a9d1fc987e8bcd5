"""Tables of stored runs, shipped files, engines, and the points of a sweep."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.analysis.index import runs, swept
from harness.engines.base import missing
from harness.errors import HarnessError
from harness.files import install, read_data
from harness.model import ENGINES, Figure
from harness.report.format import brief, carried
from harness.report.lines import fitted
from harness.report.table import Table
from harness.report.text import render
from harness.workload.library import list_workloads

if TYPE_CHECKING:
    from harness.measure.search import Point
    from harness.measure.sweep import Plan
    from harness.measure.workers import Done

MOST_PRICED = 100
"""With more runs than this none is priced: each takes about 20 ms."""
FIGURES = {
    "tok/s": ("output_tokens_per_s", 1.0),
    "TTFT p99 ms": ("ttft_s.p99", 1e3),
    "J/token": ("joules_per_output_token", 1.0),
}
"""Column -> figure and factor."""
LEAST = ("device", "J/token", "model", "TTFT p99 ms", "load")
"""Columns that are left out of a narrow list, in this order."""


def runs_tables(root: Path, where: str | None = None) -> list[Table]:
    """Stored runs, oldest first, with the columns that the conditions name; then set-ups that sent no request."""
    found = runs(root, where)
    sent = found["requests.sent"] if "requests.sent" in found else pd.Series(0.0, index=found.index)
    never = found["state"].isin(["failed", "damaged"]) & ~(sent > 0)
    named = dict.fromkeys(re.findall(r"[\w.]+(?=\s*[!=<>])", where or ""))
    named |= dict.fromkeys(swept(found) if found["sweep"].nunique() == 1 else ())
    ran, failed = found[~never], found[never]
    about = ran[["device", "device_count", "gpu", "load", "users", "rate_per_s"]].to_dict("records")
    usd = [_usd(root / run) if len(ran) <= MOST_PRICED else "" for run in ran["run"]]
    columns = {
        "run": list(map(str, ran["run"])),
        "model": [_cut(model) for model in ran["model"]],
        "device": [_device(row) for row in about],
        "load": [_load(row) for row in about],
        **{head: _numbers(ran, *figure) for head, figure in FIGURES.items()},
        "USD/M": usd,
        "state": list(map(str, ran["state"])),
    }
    columns |= {
        name: [f"{x:g}" if isinstance(x, float) else _cut(x) for x in ran[name]]
        for name in named
        if name not in columns
    }
    made = [Table("runs", f"Runs in {root}", tuple(columns), tuple(zip(*columns.values(), strict=True)))]
    if len(failed):
        rows = tuple(
            (str(run), str(state), _text(error)) for run, state, error in failed[["run", "state", "error"]].to_numpy()
        )
        made.append(Table("failed", "Set-ups that failed before a request was sent", ("run", "state", "error"), rows))
    return made


def runs_lines(tables: Sequence[Table], width: int) -> str:
    """A line a run, of at most `width`; where the whole name of a run has no room, its start as far as needed."""
    (first, *others), starts = tables, 16
    rows = [[str(cell or "") for cell in row] for row in first.rows]
    while len({row[0][:starts] for row in rows}) < len(rows):
        starts += 1
    whole = fitted(first.columns, rows, width, LEAST)
    if whole[-1].startswith("no room for"):
        whole = fitted(first.columns, [[row[0][:starts], *row[1:]] for row in rows], width, LEAST)
    lines = [first.title, *(whole if rows else ["  none"])]
    return "\n".join(lines) + "\n\n" * bool(others) + render(others, width) + "\n" * (not others)


def _usd(directory: Path) -> str:
    """The price of a million output tokens, at the scenario of the run; n/a if it has none."""
    from harness.analysis.summary import load
    from harness.cost.pricing import price_run

    try:
        cost = price_run(*load(directory)).costs["usd_per_million_output_tokens"]
    except HarnessError:
        return "n/a"
    return carried(cost)[0]


def _numbers(ran: pd.DataFrame, name: str, factor: float) -> list[str]:
    values = ran[name] if name in ran else [math.nan] * len(ran)
    return ["n/a" if pd.isna(x) else brief(x * factor, 3) for x in values]


def _load(row: Mapping[Any, Any]) -> str:
    if not pd.isna(row["users"]):
        return f"{row['users']:g} user{'s' * (row['users'] != 1)}"
    return f"{row['load']} {row['rate_per_s']:g}/s" if not pd.isna(row["rate_per_s"]) else _text(row["load"])


def _device(row: Mapping[Any, Any]) -> str:
    if row["device"] == "cuda" or _text(row["gpu"]):
        return f"{row['device_count']:g} x {_text(row['gpu']).removeprefix('NVIDIA ') or 'GPU'}"
    return _text(row["device"])


def _text(cell: object) -> str:
    return str(cell) if isinstance(cell, str) else ""


def _cut(cell: object) -> str:
    text = _text(cell).rpartition("/")[2]
    return text if len(text) <= 24 else f"{text[:23]}…"


def workloads() -> Table:
    """Shipped workloads, and those under ./workloads."""
    return Table("workloads", "Workloads", ("name", "requests", "load", "description"), list_workloads())


def engine_table() -> Table:
    """Engines, and whether what they need is installed here."""
    rows = tuple((name, f"no: {install(extra)}" if (extra := missing(name)) else "yes") for name in sorted(ENGINES))
    return Table("engines", "Engines", ("engine", "installed"), rows)


def models() -> Table:
    """Short names of models."""
    rows = tuple(csv.reader(io.StringIO(read_data("short_names.csv"))))
    notes = ("Any Hugging Face id, local directory or GGUF file works as well.",)
    return Table("models", "Models with a short name", tuple(rows[0]), tuple(map(tuple, rows[1:])), notes)


def scenarios() -> Table:
    """Shipped cost scenarios."""
    from harness.cost.pricing import list_scenarios

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


def ended_tables(plan: Plan, ended: Mapping[Point, Done]) -> list[Table]:
    """The points that failed, and of a search the load at saturation and the highest that meets the objective."""
    from harness.measure.search import highest_feasible, saturation
    from harness.measure.sweep import figures_of, outcome_of

    failed = [(in_words(point), state_of(done)) for point, done in ended.items() if done.state != "complete"]
    made = [Table("failed", "Points that failed", ("point", "state"), tuple(failed))] if failed else []
    if (auto := plan.sweep.auto) is None:
        return made
    searches: dict[Point, dict[float, list[dict[str, Figure]]]] = {}
    for point, done in ended.items():
        loads = searches.setdefault(point.without(auto.axis, plan.sweep.repeat), {})
        loads.setdefault(point.values[auto.axis], []).append(figures_of(plan.root, done))
    found = {at: {load: outcome_of(auto, each) for load, each in loads.items()} for at, loads in searches.items()}
    limits = " and ".join(f"{figure} <= {limit:g} s" for figure, limit in auto.objective.items())
    rows = tuple(
        (in_words(at), saturation(seen).text(auto.limit), highest_feasible(seen).text(auto.limit) if limits else "")
        for at, seen in found.items()
    )
    columns = ("at", f"{auto.axis} at saturation", f"highest with {limits}" if limits else "objective")
    return [*made, Table("search", f"Search over {auto.axis} up to {auto.limit:g}", columns, rows)]


def state_of(done: Done) -> str:
    """How a point ended."""
    return done.state if done.error is None else f"{done.state}: {done.error}"


def in_words(point: Point) -> str:
    """The values of a point under the last part of their keys.

    >>> from harness.measure.search import Point
    >>> in_words(Point({"load.users": 4, "model": "a"}, repeat=1))
    'users 4, model a, repeat 1'
    """
    values = [
        f"{key.rpartition('.')[2]} {x if isinstance(x, str) else json.dumps(x)}" for key, x in point.values.items()
    ]
    return ", ".join(values + [f"repeat {point.repeat}"] * bool(point.repeat)) or "the workload"
