"""What a run would measure: requests, tokens, time and price, from the workload and from an earlier run of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

from harness.analysis.index import runs
from harness.analysis.summary import load
from harness.cost.pricing import price_run
from harness.errors import HarnessError
from harness.measure import environment
from harness.measure.sweep import gpus_of
from harness.report.format import brief
from harness.report.table import Table
from harness.workload.library import in_short, read_files
from harness.workload.requests import Conversations
from harness.workload.schema import Workload

SAMPLE, VOCABULARY = 256, 32_000
"""Requests whose lengths stand for all, and the vocabulary that they are drawn from."""
COLUMNS = ("load", "requests", "input tokens", "output tokens", "longest s", "expected s", "GPUs", "USD")


def planned_table(specs: Sequence[Workload], root: Path) -> Table:
    """A row for each run. Nothing is measured or stored; what is not known before a run is n/a."""
    rows = tuple(_row(spec, root) for spec in specs)
    title = f"Plan of {specs[0].name}: nothing is measured"
    notes = (
        "requests of a duration, expected s of a closed loop, and USD follow from the last complete run of this "
        "workload, model and load; n/a: there is none",
        *["the GPUs of a server elsewhere are not known: it is asked in a run"] * ("n/a" in (row[6] for row in rows)),
    )
    return Table("plan", title, COLUMNS, rows, notes)


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
    same &= (found["users"] == spec.load.users) & (found["state"] == "complete")
    for run in reversed(found[same]["run"].tolist()):
        with contextlib.suppress(HarnessError):
            stored, summary = load(root / run)
            cost = None if stored.simulated else price_run(stored, summary).costs["usd_per_query"].value
            return summary["requests_per_s"].value or math.nan, cost
    return math.nan, None
