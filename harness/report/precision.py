"""What a wanted precision saved, or still needs: a table of one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness.diff import HEADLINES
from harness.model import Summary
from harness.precision import Reach, Target, reaches
from harness.report.cells import number
from harness.report.summaries import Sweep
from harness.report.table import Cell, Table
from harness.report.tables import mixed
from harness.stats import repeats_half
from harness.store import RunFile

COLUMNS = ("figure", "value", "within", "wanted", "more requests", "or more such runs", "device-seconds for it")


def precision_table(file: RunFile, summary: Summary, targets: Sequence[Target]) -> Table:
    """Each figure's 95% half-width against the wanted one, and what a longer run, or more runs, would take."""
    begin_s, end_s = (summary[f"window.{end}_s"].value or 0.0 for end in ("begin", "end"))
    device_s = ((file.engine or {}).get("device_count") or 1) * (end_s - begin_s)
    found = reaches(summary, targets)
    rows = tuple(_row(summary, each, device_s) for each in found)
    return Table("precision", "Precision", COLUMNS, rows, _saved(file, summary, found, device_s), summary.run)


def _row(summary: Summary, reach: Reach, device_s: float) -> tuple[Cell, ...]:
    begun: tuple[Cell, ...] = reach.target.figure, summary[reach.target.figure]
    wanted = f"{reach.target.share * 100:.3g}%"
    if reach.half is None or reach.factor is None or reach.more is None:
        return *begun, f"n/a ({reach.reason})", wanted, None, None, None
    runs, seconds = math.ceil(reach.factor - 1 - 1e-9), (reach.factor - 1) * device_s
    return *begun, f"{reach.half * 100:.3g}%", wanted, number(reach.more), number(runs), number(round(seconds, 1))


def _saved(file: RunFile, summary: Summary, found: Sequence[Reach], device_s: float) -> tuple[str, ...]:
    """What of the workload's budget was not needed, where every figure is precise enough."""
    sent, asked = summary["requests.sent"].value, (file.workload.get("requests") or {}).get("count")
    if not found or not all(each.met for each in found) or asked is None or sent is None or sent >= asked:
        return ()
    spared = (asked - sent) * device_s / max(1, found[0].requests)
    text = f"reached after {number(sent)} of {number(asked)} requests"
    return (f"{text}: about {number(round(spared, 1))} device-seconds saved",)


def repeats_table(runs: Sweep) -> Table:
    """The `HEADLINES` over repeats of one run: the mean with the t interval between runs, then each run's."""
    rows: list[tuple[Cell, ...]] = []
    for name in HEADLINES:
        each = [next((f for f in summary.figures if f.name == name), None) for _, summary in runs]
        known = [figure for figure in each if figure is not None and figure.value is not None]
        if known and len(known) == len(runs):
            values = np.array([figure.value for figure in known], float)
            mean, half = float(values.mean()), repeats_half(values)
            ends = (None, None) if half is None else (mean - half, mean + half)
            over = replace(known[0], value=mean, low=ends[0], high=ends[1], n=len(runs), reason=None)
            rows.append((name, over, *(replace(figure, low=None, high=None, reason=None) for figure in known)))
    notes = ["each run started its engine anew and sent the same requests; the interval is of the mean, between runs"]
    if differs := mixed([file for file, _ in runs]):
        notes.append(f"{differs.code}: {differs.text}")
    return Table("repeats", "Repeats", ("figure", "mean", *(file.id for file, _ in runs)), tuple(rows), tuple(notes))
