"""Tables of changes: between runs, over commits, of repeats, and of a wanted precision; gates as JUnit XML."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args
from xml.etree import ElementTree

from harness.analysis import diff
from harness.analysis import gates as gating
from harness.analysis.diff import HEADLINES, check_comparable, judge
from harness.analysis.findings import mixed
from harness.analysis.gates import SHORT
from harness.analysis.precision import Reach, Target, reaches
from harness.analysis.repeats import learned, repeated
from harness.analysis.summary import Sweep, summary_of
from harness.config import near
from harness.errors import HarnessError, plain
from harness.model import Figure, Finding, Summary
from harness.report.answer import FIGURES
from harness.report.format import carried, labels, number, scale
from harness.report.table import Cell, Table, properties
from harness.report.tables import FINDING, finding_row
from harness.store.run import Run

Gate = tuple[str, str, str]
"""What fails, what was seen, and the outcome (`passed`, `failed` or `undecided`)."""
ORDER = get_args(diff.Judgement)
WHOLE_TABLE = (
    "improved and regressed hold for the whole table: at most 5% of comparisons name any figure wrongly (Holm)"
)
EFFECT, POWER, MOST_REPEATS = 0.03, 0.8, 100
"""Change of a figure, and the chance to name it, for which the needed repeats are counted; their greatest number."""


def difference(
    base: Sequence[Run],
    new: Sequence[Run],
    gates: Sequence[gating.Gate] = (),
    force: bool = False,
    least: float = diff.LEAST,
    full: bool = True,
    between: float | None = None,
) -> tuple[list[Table], list[Gate], list[str]]:
    """The tables of `harness diff`, its judged gates, and annotations for GitHub Actions.

    HarnessError as for `diff.check_comparable` and `gates.of_changes`.

    `least`: the least effect, as a share. `between`: the declared standard deviation between runs, as a share; None:
    learned or assumed. Not `full`: figures that did not change and findings that are not serious are only counted.
    """
    must, noted = diff.check_comparable(base, new, force)
    sides = [[summary_of(run) for run in side] for side in (base, new)]
    spread = learned(base, new) if between is None else lambda _: diff.Between(between, known="declared")
    turns = diff.interleaved(base, new)
    changes = diff.judge(sides[0], sides[1], least, spread, turns)
    ratios = {change.ratio.name: change.ratio for change in changes}
    judged: list[Gate] = [
        (gate.text, _changed(ratios[gate.figure]), outcome) for gate, outcome in gating.of_changes(gates, changes)
    ]
    title = "NEW against BASE" + (" (FORCED)" if must else "")
    known = {
        "base": ", ".join(run.id for run in base),
        "new": ", ".join(run.id for run in new),
        "verdict": _verdict(changes, least),
        "between runs": _between(sides, None if turns else spread(diff.HEADLINES[0]), least),
        "forced despite": "; ".join(must),
        "also different": "; ".join(noted),
    }
    ordered = sorted(changes, key=lambda change: ORDER.index(change.judgement))
    columns, rows = _whole(ordered) if full else _moved(ordered)
    notes = [WHOLE_TABLE, *([] if full else _counted(changes, least))]
    doubts = [(summary.run, finding) for side in sides for summary in side for finding in summary.findings]
    doubts += [(name, found) for name, side in (("base", base), ("new", new)) if (found := mixed(side))]
    made = [
        gates_table(judged, "change, 95%"),
        properties("verdict", title, known),
        Table("diff", f"Figures of {title}" if full else "What moved", columns, rows, tuple(notes)),
        _doubted(doubts, full),
    ]
    lines = annotations(judged)
    lines += [_annotation("warning", f"{run}: {x.code}: {x.text}") for run, x in doubts if x.serious]
    lines += [_annotation("warning", f"forced despite {'; '.join(must)}")] if must else []
    return [table for table in made if table.rows or table.name in ("diff", "findings")], judged, lines


def _between(sides: Sequence[Sequence[Summary]], sessions: diff.Between | None, least: float) -> str:
    """The spread of the throughput between runs, where it is from, and the chance that it leaves to see a change.

    `sessions`: the spread that adds to each side whose runs did not take turns.
    """
    repeats = diff.spread([diff.values(side, diff.HEADLINES[0]) for side in sides], "between the repeats of a side")
    effect, fewer = max(EFFECT, least), min(map(len, sides))
    known = [each for each in (repeats, sessions) if each is not None]
    if not known:
        return ""
    if sessions is None:
        chance = diff.power(effect, known[0].sd, fewer)
    else:
        within = 0.0 if repeats is None else repeats.sd / math.sqrt(fewer)
        chance = diff.power(effect, math.hypot(within, sessions.sd), 1)
    needs = next((k for k in range(2, MOST_REPEATS) if diff.power(effect, known[0].sd, k) >= POWER), None)
    text = ", and ".join(f"{each.sd:.1%}{' ' if each is repeats else ', '}{each.known}" for each in known)
    text = f"standard deviation {text}: a true {effect:.0%} is named in {chance:.0%} of cases"
    return f"{text}, and in {POWER:.0%} with {needs or f'over {MOST_REPEATS}'} repeats a side in turns (harness ab)"


def points_table(runs: Sequence[Run], least: float, between: float | None) -> Table:
    """Each point of a sweep against its first, by the repeats of both: the change of each headline figure."""
    points: dict[str, list[Run]] = {}
    for run in runs:
        values = {} if run.file.sweep is None else run.file.sweep.values
        points.setdefault(", ".join(f"{key} {value}" for key, value in values.items()), []).append(run)
    (name, base), *others = points.items()
    rows = []
    for point, new in others:
        spread = learned(base, new) if between is None else lambda _: diff.Between(between, known="declared")
        sides, turns = [[summary_of(run) for run in side] for side in (base, new)], diff.interleaved(base, new)
        found = {c.ratio.name: c for c in diff.judge(sides[0], sides[1], least, spread, turns, len(others))}
        rows.append((point, *(_judged(found.get(figure)) for figure in diff.HEADLINES)))
    notes = (WHOLE_TABLE, "* no difference seen, or undecided")
    columns = ("point", *(FIGURES[name] for name in diff.HEADLINES))
    return Table("points", f"Points against {name}", columns, tuple(rows), notes)


def _judged(change: diff.Change | None) -> str | None:
    if change is None or change.ratio.value is None:
        return None
    return f"{change.ratio.value - 1:+.1%}" + ("" if change.judgement in ("improved", "regressed") else "*")


def gates_table(gates: Sequence[Gate], seen: str) -> Table:
    """Gates with what was seen, and their outcomes."""
    return Table("gates", "Gates", ("fail on", seen, "outcome"), tuple(gates))


def annotations(gates: Sequence[Gate]) -> list[str]:
    """Annotations of the gates that did not pass."""
    return [
        _annotation("error" if outcome == "failed" else "warning", f"{outcome}: {text}: {seen}")
        for text, seen, outcome in gates
        if outcome != "passed"
    ]


def _doubted(doubts: Sequence[tuple[str, Finding]], full: bool) -> Table:
    """The findings of each run; not `full`: the serious ones with their runs, and how many others there are."""
    if full:
        rows = tuple((run, *finding_row(each)) for run, each in doubts)
        return Table("findings", "Findings", ("run", *FINDING), rows)
    serious = {
        each.code: ", ".join(dict.fromkeys(run for run, x in doubts if x.code == each.code))
        for _, each in doubts
        if each.serious
    }
    others = sum(not each.serious for _, each in doubts)
    notes = (f"{others} that are not serious: --full, or harness check RUN",) if others else ()
    return Table("findings", "Serious findings", ("finding", "runs"), tuple(serious.items()), notes)


Rows = tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]
"""Columns and rows."""


def _whole(changes: Sequence[diff.Change]) -> Rows:
    columns = ("figure", "base", "new", "new / base", "judgement")
    return columns, tuple((c.ratio.name, _bare(c.base), _bare(c.new), c.ratio, c.judgement) for c in changes)


def _moved(changes: Sequence[diff.Change]) -> Rows:
    """Rates, joules, and p50 and p99 of latencies, if they regressed or improved; costs follow from the rates."""
    moved = [c for c in changes if c.judgement in ("regressed", "improved") and c.ratio.name not in diff.COSTS]
    shown = [c for c in moved if c.ratio.name.partition(".")[2] in ("", "p50", "p99")]
    rows = tuple((c.ratio.name, _from_to(c), _changed(c.ratio), c.judgement) for c in shown)
    return ("figure", "base -> new", "change, 95%", "judgement"), rows


def _from_to(c: diff.Change) -> str:
    before, after = (carried(side)[0] for side in (c.base, c.new))
    return f"{before} -> {after} {scale(c.base)[1].replace('tokens', 'tok').replace('requests', 'req')}"


def _changed(ratio: Figure) -> str:
    """A ratio as a change in percent, with its 95% interval."""
    value, low, high = (100 * ((x or math.nan) - 1) for x in (ratio.value, ratio.low, ratio.high))
    return f"{value:+.1f}% ({low:+.1f} to {high:+.1f})"


COUNTED = labels("judgement")
"""Judgements of figures that are only counted, in words."""


def _counted(changes: Sequence[diff.Change], least: float) -> list[str]:
    """How many figures did not change or could not be judged; costs are not counted."""
    counts: Counter[str] = Counter(c.judgement for c in changes if c.ratio.name not in diff.COSTS)
    counted = {text.format(least=100 * least): counts[judgement] for judgement, text in COUNTED.items()}
    lines = [f"{count} figures: {text}" for text, count in counted.items() if count]
    return [*lines, "--full has every figure, also means, p90 and p95"]


def _verdict(changes: Sequence[diff.Change], least: float) -> str:
    """The headline figures that changed, in words; if none did, the changes that their intervals leave room for."""
    judged = [c for c in changes if c.ratio.name in diff.HEADLINES and c.p is not None]
    if not judged:
        return "none: no headline figure has an interval"
    if shown := diff.verdict(changes):
        return "; ".join(f"{c.ratio.name} {c.judgement}: {_changed(c.ratio)}" for c in shown)
    ends = [(c.ratio.name, *((x or math.nan) - 1 for x in (c.ratio.low, c.ratio.high))) for c in judged]
    room = ", ".join(f"{name} {low:+.1%} to {high:+.1%}" for name, low, high in ends)
    return f"no difference seen of {100 * least:g}% or more; the 95% intervals leave room for {room}"


def _bare(figure: Figure) -> Figure:
    """The figure without its interval and count."""
    return replace(figure, low=None, high=None, n=None, reason=figure.reason if figure.value is None else None)


def _annotation(kind: str, text: str) -> str:
    """A workflow command of GitHub Actions, on one line."""
    return f"::{kind} title=harness::{plain(text).replace('%', '%25')}"


COLUMNS = ("figure", "value", "half-width", "wanted", "more requests", "or more runs", "device-seconds")


def precision_table(run: Run, summary: Summary, targets: Sequence[Target]) -> Table:
    """The 95% half-width of each figure beside the wanted one, and how much more measuring that needs."""
    begin_s, end_s = (summary[f"window.{end}_s"].value or 0.0 for end in ("begin", "end"))
    device_s = run.device_count * (end_s - begin_s)
    found = reaches(summary, targets)
    rows = tuple(_precision_row(summary, each, device_s) for each in found)
    return Table("precision", "Precision", COLUMNS, rows, _saved(run, summary, found, device_s), summary.run)


def _precision_row(summary: Summary, reach: Reach, device_s: float) -> tuple[Cell, ...]:
    name = reach.target.figure
    figure: tuple[Cell, ...] = name, summary.get(name)
    wanted = f"{reach.target.share * 100:.3g}%"
    if reach.half is None or reach.factor is None or reach.more is None:
        return *figure, f"n/a ({reach.reason})", wanted, None, None, None
    runs, seconds = math.ceil(reach.factor - 1 - 1e-9), (reach.factor - 1) * device_s
    return *figure, f"{reach.half * 100:.3g}%", wanted, number(reach.more), number(runs), number(round(seconds, 1))


def _saved(run: Run, summary: Summary, found: Sequence[Reach], device_s: float) -> tuple[str, ...]:
    """A note on the requests that the run did not need to send, if every target is met."""
    sent, asked = summary["requests.sent"].value, run.file.workload.requests.count
    if not found or not all(each.met for each in found) or asked is None or sent is None or sent >= asked:
        return ()
    saved_s = (asked - sent) * device_s / max(1, found[0].requests)
    text = f"reached after {number(sent)} of {number(asked)} requests"
    return (f"{text}: about {number(round(saved_s, 1))} device-seconds saved",)


def repeats_table(runs: Sweep) -> Table:
    """The headline figures of repeats of one run: the mean with its interval, then the value of each run."""
    bare = partial(replace, low=None, high=None, reason=None)
    rows = tuple((mean.name, mean, *map(bare, each)) for mean, each in repeated(runs))
    attached = any(run.file.prompts is not None and run.file.prompts.attached for run, _ in runs)
    fresh = "each run sent new prompts to a server that ran already" if attached else "each run started its engine anew"
    notes = [f"{fresh}; the requests had the same lengths; the interval is of the mean, between runs"]
    if differs := mixed([run for run, _ in runs]):
        notes.append(f"{differs.code}: {differs.text}")
    return Table("repeats", "Repeats", ("figure", "mean", *(run.id for run, _ in runs)), rows, tuple(notes))


NOTES = (
    "commit: of the working directory at the time of the run; * with changes that were not committed",
    "judged with the assumed spread between runs; repeats would show the true one (harness diff, harness ab)",
)


def trend_table(sweep: Sweep, name: str) -> Table:
    """A row for each run, the oldest first: commit, figure, and its change from the run before, with a judgement.

    Runs that do not compare with the newest complete one are left out and counted. HarnessError if none has the figure.
    """
    name = SHORT.get(name, name)
    ordered = sorted(sweep, key=lambda each: each[0].file.created_utc)
    newest = next((run for run, _ in reversed(ordered) if run.state == "complete"), ordered[-1][0])
    alike = [each for each in ordered if not check_comparable([each[0]], [newest], force=True)[0]]
    known = dict.fromkeys(figure.name for _, summary in alike for figure in summary.figures)
    if name not in known:
        fix = f"{near(name, [*known, *SHORT])}for instance {', '.join(HEADLINES)}"
        raise HarnessError(f"--trend {name}: no run has this figure", fix)
    rows: list[tuple[Cell, ...]] = []
    for i, (run, summary) in enumerate(alike):
        found = judge([alike[i - 1][1]], [summary]) if i else ()
        change = next((each for each in found if each.ratio.name == name), None)
        project = run.environment.project
        commit = "" if project is None else (project.revision or "")[:10] + "*" * project.dirty
        ratio, judgement = ([None], "") if change is None else ([change.ratio], change.judgement)
        seen = (each and replace(each, n=None, reason=None) for each in (summary.get(name), *ratio))
        rows.append((run.id, commit, *seen, judgement))
    columns = ("run", "commit", name, "new / before", "judgement")
    others = len(ordered) - len(alike)
    left = (f"left out: {others} incomplete or not comparable with the newest complete run",) if others else ()
    return Table("trend", f"{name} over {len(rows)} run{'s' * (len(rows) != 1)}", columns, tuple(rows), (*left, *NOTES))


KINDS = {"failures": "failed", "skipped": "undecided"}
"""Attribute of a test suite -> the outcome that it counts."""


def as_xml(suite: str, gates: Iterable[Gate]) -> str:
    """A test suite with a test for each gate; an undecided one is skipped, with the reason.

    >>> as_xml("run", [("ttft_s.p99>500ms", "612 ms", "failed")]).splitlines()[1]
    '<testsuites><testsuite name="run" tests="1" failures="1" skipped="0">\
<testcase classname="run" name="ttft_s.p99&gt;500ms">\
<failure message="612 ms" /></testcase></testsuite></testsuites>'
    """
    every, suite = [(plain(name), plain(seen), outcome) for name, seen, outcome in gates], plain(suite)
    counts = {name: f"{sum(each[2] == kind for each in every)}" for name, kind in KINDS.items()}
    root = ElementTree.Element("testsuites")
    tests = ElementTree.SubElement(root, "testsuite", {"name": suite, "tests": f"{len(every)}", **counts})
    for name, seen, outcome in every:
        test = ElementTree.SubElement(tests, "testcase", {"classname": suite, "name": name})
        for tag, kind in (("failure", "failed"), ("skipped", "undecided")):
            if outcome == kind:
                ElementTree.SubElement(test, tag, {"message": seen})
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"
