"""Tables of runs, shipped files, engines, the points of a sweep, and what a run would measure."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.analysis.index import runs, swept
from harness.analysis.summary import load
from harness.cost.pricing import list_scenarios, price_run
from harness.engines.base import missing
from harness.errors import HarnessError
from harness.files import data_rows, install
from harness.measure import environment
from harness.measure.search import Point, highest_feasible, saturation
from harness.measure.sweep import Plan, gpus_of, searched
from harness.measure.workers import Done
from harness.model import ENGINES
from harness.report.format import brief, carried
from harness.report.table import Table
from harness.report.text import fitted, flowed, render
from harness.workload.library import in_short, list_workloads, read_files
from harness.workload.requests import Conversations
from harness.workload.schema import Workload

MOST_PRICED = 100
"""With more runs than this none is priced: each takes about 20 ms."""
FIGURES = {
    "tok/s": ("output_tokens_per_s", 1.0),
    "TTFT p99 ms": ("ttft_s.p99", 1e3),
    "J/token": ("joules_per_output_token", 1.0),
}
"""Column -> figure and factor."""
COLUMNS = ("run", "model", "device", "load", *FIGURES, "USD/M", "state")
READ = {
    *("run", "model", "device", "device_count", "gpu", "load", "users", "rate_per_s", "state", "error"),
    *("requests.sent", *(name for name, _ in FIGURES.values())),
}
"""Columns of the index that the list is made of."""
TOLD = ("users", "rate_per_s", "load.users", "load.rate_per_s")
"""Columns that a list for the terminal leaves out: the column `load` tells them."""
LEAST = ("device", "J/token", "model", "TTFT p99 ms", "load")
"""Columns that are left out of a narrow list, in this order."""


def runs_tables(root: Path, where: str | None = None) -> list[Table]:
    """Stored runs, oldest first, with the columns that the conditions name; then set-ups that sent no request."""
    found = runs(root, where)
    named = re.findall(r"[\w.]+(?=\s*[!=<>])", where or "")
    named += swept(found) if found["sweep"].nunique() == 1 else []
    found = found[[name for name in found if name in READ or name in named]]
    every = found.astype(object).where(found.notna(), None).to_dict("records")
    failed = [row for row in every if row["state"] in ("failed", "damaged") and not row.get("requests.sent")]
    never = {row["run"] for row in failed}
    ran = [row for row in every if row["run"] not in never]
    listed = [_listed(row, root if len(ran) <= MOST_PRICED else None) for row in ran]
    columns = dict.fromkeys((*COLUMNS, *named))
    rows = tuple(
        tuple(cells[head] if head in COLUMNS else _cut(row[head]) for head in columns)
        for cells, row in zip(listed, ran, strict=True)
    )
    made = [Table("runs", f"Runs in {root}", tuple(columns), rows)]
    if failed:
        why = tuple((row["run"], row["state"], row["error"] or "") for row in failed)
        made.append(Table("failed", "Set-ups that failed before a request was sent", ("run", "state", "error"), why))
    return made


def _listed(row: Mapping[Any, Any], root: Path | None) -> dict[str, str]:
    """The cells of a run under COLUMNS; `root`: None leaves out the price."""
    gpu, users, rate = (row["gpu"] or "").removeprefix("NVIDIA "), row["users"], row["rate_per_s"]
    load_ = f"{row['load'] or ''} {rate:g}/s" if rate is not None else row["load"] or ""
    on_gpu = gpu or row["device"] == "cuda"
    return {
        "run": row["run"],
        "model": _cut((row["model"] or "").rpartition("/")[2]),
        "device": f"{row['device_count']:g} x {gpu or 'GPU'}"
        if on_gpu
        else _cut("simulated" if row["device"] == "none" else row["device"]),
        "load": load_ if users is None else f"{users:g} user{'s' * (users != 1)}",
        **{head: "n/a" if row.get(of) is None else brief(row[of] * x, 3) for head, (of, x) in FIGURES.items()},
        "USD/M": "" if root is None else _usd(root / row["run"]),
        "state": row["state"],
    }


def runs_lines(tables: Sequence[Table], width: int) -> str:
    """A line a run, of at most `width`.

    Where that has no room, only the start of a run's name as far as needed, and the title tells what all rows share.
    """
    (first, *others), starts = tables, 16
    kept = [i for i, head in enumerate(first.columns) if head not in TOLD]
    heads, rows = [first.columns[i] for i in kept], [[str(row[i] or "") for i in kept] for row in first.rows]
    while len({row[0][:starts] for row in rows}) < len(rows):
        starts += 1
    title, whole = [first.title], fitted(heads, rows, width, LEAST)
    if whole[-1].startswith("no room for"):
        same = [i for i in range(1, len(heads)) if len({row[i] for row in rows}) == 1]
        title += [f"{heads[i]} {rows[0][i]}" for i in same if rows[0][i]]
        rest = [i for i in range(len(heads)) if i not in same]
        rows = [[row[0][:starts], *(row[i] for i in rest[1:])] for row in rows]
        whole = fitted([heads[i] for i in rest], rows, width, LEAST)
    lines = [*flowed(title, width, " · "), *(whole if rows else ["  none"])]
    return "\n".join(lines) + "\n\n" * bool(others) + render(others, width) + "\n" * (not others)


def _usd(directory: Path) -> str:
    """The price of a million output tokens, at the scenario of the run; n/a if it has none."""
    try:
        cost = price_run(*load(directory)).costs["usd_per_million_output_tokens"]
    except HarnessError:
        return "n/a"
    return carried(cost)[0]


def _cut(cell: Any) -> str:
    text = "" if cell is None else f"{cell:g}" if isinstance(cell, float) else str(cell)
    return text if len(text) <= 24 else f"{text[:23]}…"


def shipped(what: str) -> Table:
    """Workloads (also those under ./workloads), engines and whether they are installed, scenarios, or models."""
    if what == "workloads":
        return Table(what, "Workloads", ("name", "requests", "load", "description"), list_workloads())
    if what == "scenarios":
        return Table(what, "Cost scenarios", ("name", "description"), list_scenarios())
    if what == "engines":
        found = tuple((each, f"no: {install(of)}" if (of := missing(each)) else "yes") for each in sorted(ENGINES))
        return Table(what, "Engines", ("engine", "installed"), found)
    known = data_rows("short_names.csv")
    notes = ("Any Hugging Face id, local directory or GGUF file works as well.",)
    return Table(what, "Models with a short name", tuple(known[0]), tuple(tuple(row.values()) for row in known), notes)


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
    failed = [(in_words(point), state_of(done)) for point, done in ended.items() if done.state != "complete"]
    made = [Table("failed", "Points that failed", ("point", "state"), tuple(failed))] if failed else []
    if (auto := plan.sweep.auto) is None:
        return made
    limits = " and ".join(f"{figure} <= {limit:g} s" for figure, limit in auto.objective.items())
    rows = tuple(
        (in_words(at), saturation(seen).text(auto.limit), highest_feasible(seen).text(auto.limit) if limits else "")
        for at, seen in searched(auto, plan, ended).items()
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


# ---- what a run would measure ----

SAMPLE, VOCABULARY = 256, 32_000
"""Requests whose lengths stand for all, and the vocabulary that they are drawn from."""
PLANNED = ("load", "requests", "input tokens", "output tokens", "longest s", "expected s", "GPUs", "USD")


def planned_table(specs: Sequence[Workload], root: Path) -> Table:
    """A row for each run. Nothing is measured or stored; what is not known before a run is n/a."""
    rows = tuple(_row(spec, root) for spec in specs)
    title = f"Plan of {specs[0].name}: nothing is measured"
    notes = (
        "requests of a duration, expected s of a closed loop, and USD follow from the last complete run of this "
        "workload, model and load; n/a: there is none",
        *["the GPUs of a server elsewhere are not known: it is asked in a run"] * ("n/a" in (row[6] for row in rows)),
    )
    return Table("plan", title, PLANNED, rows, notes)


def _row(spec: Workload, root: Path) -> tuple[str, ...]:
    rate_per_s, usd = _earlier(spec, root)
    rate_per_s, longest_s = spec.load.rate_per_s or rate_per_s, spec.load.end_s
    count = spec.requests.in_all or rate_per_s * longest_s
    tokens = [each * count for each in _lengths(spec)]
    expected_s = longest_s if math.isnan(count) else min(count / rate_per_s, longest_s)
    figures = [brief(x, 3) if math.isfinite(x) else "n/a" for x in (count, *tokens, longest_s, expected_s)]
    return (
        in_short(spec.load.model_dump(exclude_defaults=True, exclude={"duration_s"})),
        *figures,
        _gpus(spec),
        brief(usd * count, 2) if usd else "n/a",
    )


def _gpus(spec: Workload) -> str:
    """GPUs that serve the model, of this machine or, if the workload names its device, of a server elsewhere."""
    options = spec.engine_options(spec.engine.name)
    if spec.engine.name == "openai" and not options.get("serve"):
        device, count = options.get("device"), options.get("device_count", 1)
        return {"cuda": f"{count}", "cpu": "0"}.get(str(device), "n/a")
    return f"{gpus_of(spec)}" if spec.engine.name != "simulated" and environment.capture()["gpus"] else "0"


def _lengths(spec: Workload) -> tuple[float, float]:
    """Mean input and output tokens of a request; NaN if they need the engine's tokenizer."""
    try:
        talk = Conversations(spec, VOCABULARY, files=read_files(spec))
        made = [talk.make(i) for i in range(min(SAMPLE, spec.requests.count or SAMPLE))]
    except HarnessError:
        return math.nan, math.nan
    return sum(len(each.prompt) for each in made) / len(made), sum(each.output_tokens for each in made) / len(made)


def _earlier(spec: Workload, root: Path) -> tuple[float, float | None]:
    """Requests/s and USD a query of the last complete run of this workload, model and load; NaN, None without one."""
    found = runs(root)
    same = (found["workload"] == spec.name) & (found["model"].fillna(spec.model) == spec.model)
    same &= (found["users"].fillna(0) == (spec.load.users or 0)) & (found["state"] == "complete")
    same &= found["rate_per_s"].fillna(0) == (spec.load.rate_per_s or 0)
    for run in reversed(found[same]["run"].tolist()):
        with contextlib.suppress(HarnessError):
            stored, summary = load(root / run)
            cost = None if stored.simulated else price_run(stored, summary).costs["usd_per_query"].value
            return summary["requests_per_s"].value or math.nan, cost
    return math.nan, None
