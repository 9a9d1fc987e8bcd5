"""Tables of differences between runs, and of a wanted precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from harness.analysis import diff
from harness.analysis.diff import HEADLINES
from harness.analysis.findings import mixed
from harness.analysis.precision import Reach, Target, reaches
from harness.analysis.summary import Sweep, summary_of
from harness.errors import HarnessError
from harness.model import Figure, Summary
from harness.report.format import number
from harness.report.table import PROPERTIES, Cell, Table
from harness.report.tables import FINDING, finding_row
from harness.stats import repeats_half
from harness.store.run import Run

ONE_EACH = "intervals are of one run each: they know nothing of what changes from run to run, which repeats would show"
BETWEEN = "intervals come from the spread between runs (Welch's t on logarithms)"
ORDER = get_args(diff.Judgement)
EACH_ALONE = "each judgement is at 95% alone, so some of many are wrong by chance; the verdict is not (Holm)"


@dataclass(frozen=True, slots=True)
class Difference:
    """What `harness diff` prints, whether a gate failed, and its annotations for GitHub."""

    tables: list[Table]
    failed: bool
    annotations: list[str]


def refuse(base: Sequence[Run], new: Sequence[Run], force: bool) -> tuple[list[str], list[str]]:
    """What forbids a comparison (empty unless `force`) and what it should be read with.

    Raises HarnessError naming every field that differs and every run that is not complete.
    """
    runs = [*base, *new]
    must = [f"{run.id} is {run.state}" for run in runs if run.state != "complete"]
    noted: list[str] = []
    first, *others = runs
    for other in others:
        forbids, beside = diff.differences(first, other)
        must, noted = must + forbids, noted + beside
    must, noted = list(dict.fromkeys(must)), list(dict.fromkeys(noted))
    if must and not force:
        fix = "compare complete runs that agree in this, or --force, which stamps what it prints"
        raise HarnessError(f"not comparable: {'; '.join(must)}", fix)
    return must, noted


def difference(
    base: Sequence[Run], new: Sequence[Run], gates: Sequence[diff.Gate] = (), force: bool = False
) -> Difference:
    """The runs compared, or HarnessError (see `refuse`, and `diff.Gate.outcome`)."""
    must, noted = refuse(base, new, force)
    sides = [[summary_of(run) for run in side] for side in (base, new)]
    changes = diff.compare(*sides)
    ratios = {change.ratio.name: change.ratio for change in changes}
    judged = [(gate.text, _changed(ratios[gate.figure]), outcome) for gate, outcome in diff.outcomes(gates, changes)]
    title = "NEW against BASE" + (" (FORCED)" if must else "")
    properties = {
        "base": ", ".join(run.id for run in base),
        "new": ", ".join(run.id for run in new),
        "verdict": _verdict(changes),
        "forced, though": "; ".join(must),
        "differs too": "; ".join(noted),
    }
    first = sorted(changes, key=lambda change: ORDER.index(change.judgement))
    rows = tuple((c.ratio.name, _bare(c.base), _bare(c.new), c.ratio, c.judgement) for c in first)
    notes = (ONE_EACH if len(base) == len(new) == 1 else BETWEEN, EACH_ALONE)
    doubts = [(summary.run, finding) for side in sides for summary in side for finding in summary.findings]
    repeats = (("base", base), ("new", new))
    doubts += [(name, found) for name, side in repeats if (found := mixed(side))]
    made = [
        Table("verdict", title, PROPERTIES, tuple((key, text) for key, text in properties.items() if text)),
        Table("diff", f"Figures of {title}", ("figure", "base", "new", "new / base", "judgement"), rows, notes),
        Table("gates", "Gates", ("fail on", "change", "outcome"), tuple(judged)),
        Table("findings", "Findings", ("run", *FINDING), tuple((run, *finding_row(x)) for run, x in doubts)),
    ]
    told = [f"{outcome}: {text}: {change}" for text, change, outcome in judged if outcome != "passed"]
    told += [f"{run}: {x.code}: {x.text}" for run, x in doubts if x.serious]
    told += [f"forced, though {'; '.join(must)}"] if must else []
    return Difference(
        [table for table in made if table.rows or table.name == "findings"],
        any(outcome == "failed" for _, _, outcome in judged),
        [_annotation("error" if text.startswith("failed") else "warning", text) for text in told],
    )


def _verdict(changes: Sequence[diff.Change]) -> str:
    """What the headline figures show, taken together."""
    judged = [c.ratio.name for c in changes if c.ratio.name in diff.HEADLINES and c.p is not None]
    if not judged:
        return "none: no headline figure has an interval"
    shown = diff.verdict(changes)
    if not shown:
        return f"no difference seen at this precision in {', '.join(judged)}"
    return "; ".join(f"{c.ratio.name} {c.judgement}: {_changed(c.ratio)}" for c in shown)


def _changed(ratio: Figure) -> str:
    """A ratio as a change in percent, with its interval."""
    value, low, high = (f"{x - 1:+.2%}" if x is not None else "n/a" for x in (ratio.value, ratio.low, ratio.high))
    return f"{value} (95%: {low} to {high})"


def _bare(figure: Figure) -> Figure:
    return replace(figure, low=None, high=None, n=None, reason=figure.reason if figure.value is None else None)


def _annotation(kind: str, text: str) -> str:
    """A workflow command of GitHub Actions; its data escapes per cent signs and ends of lines."""
    for character, escaped in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(character, escaped)
    return f"::{kind} title=harness diff::{text}"


COLUMNS = ("figure", "value", "within", "wanted", "more requests", "or more such runs", "device-seconds for it")


def precision_table(run: Run, summary: Summary, targets: Sequence[Target]) -> Table:
    """Each figure's 95% half-width against the wanted one, and what a longer run, or more runs, would take."""
    begin_s, end_s = (summary[f"window.{end}_s"].value or 0.0 for end in ("begin", "end"))
    device_s = (run.engine.device_count if run.engine else 1) * (end_s - begin_s)
    found = reaches(summary, targets)
    rows = tuple(_row(summary, each, device_s) for each in found)
    return Table("precision", "Precision", COLUMNS, rows, _saved(run, summary, found, device_s), summary.run)


def _row(summary: Summary, reach: Reach, device_s: float) -> tuple[Cell, ...]:
    begun: tuple[Cell, ...] = reach.target.figure, summary[reach.target.figure]
    wanted = f"{reach.target.share * 100:.3g}%"
    if reach.half is None or reach.factor is None or reach.more is None:
        return *begun, f"n/a ({reach.reason})", wanted, None, None, None
    runs, seconds = math.ceil(reach.factor - 1 - 1e-9), (reach.factor - 1) * device_s
    return *begun, f"{reach.half * 100:.3g}%", wanted, number(reach.more), number(runs), number(round(seconds, 1))


def _saved(run: Run, summary: Summary, found: Sequence[Reach], device_s: float) -> tuple[str, ...]:
    """What of the workload's budget was not needed, where every figure is precise enough."""
    sent, asked = summary["requests.sent"].value, run.file.workload.requests.count
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
    if differs := mixed([run for run, _ in runs]):
        notes.append(f"{differs.code}: {differs.text}")
    return Table("repeats", "Repeats", ("figure", "mean", *(run.id for run, _ in runs)), tuple(rows), tuple(notes))
