"""A figure over the runs of a repository's history: the table of `harness report --trend`."""

from dataclasses import replace

from harness.analysis.diff import HEADLINES, check_comparable, judge
from harness.analysis.gates import SHORT
from harness.analysis.summary import Sweep
from harness.config import near
from harness.errors import HarnessError
from harness.report.table import Cell, Table

NOTES = (
    "commit: of the working directory at the time of the run; * with changes that were not committed",
    "judged with the assumed spread between runs; repeats would show the true one (harness diff, harness ab)",
)


def trend_table(sweep: Sweep, name: str) -> Table:
    """A row for each run, the oldest first: commit, figure, and its change from the run before, with a judgement.

    Runs that cannot be compared with the newest are left out and counted. HarnessError if no run has the figure.
    """
    name = SHORT.get(name, name)
    ordered = sorted(sweep, key=lambda each: each[0].file.created_utc)
    alike = [each for each in ordered if not check_comparable([each[0]], [ordered[-1][0]], force=True)[0]]
    known = dict.fromkeys(figure.name for _, summary in alike for figure in summary.figures)
    if name not in known:
        raise HarnessError(
            f"--trend {name}: no run has this figure",
            f"{near(name, [*known, *SHORT])}for instance {', '.join(HEADLINES)}",
        )
    rows: list[tuple[Cell, ...]] = []
    for i, (run, summary) in enumerate(alike):
        figure = next((each for each in summary.figures if each.name == name), None)
        found = judge([alike[i - 1][1]], [summary]) if i else ()
        change = next((each for each in found if each.ratio.name == name), None)
        project = run.environment.project
        commit = "" if project is None else (project.revision or "")[:10] + "*" * project.dirty
        ratio, told = ([None], "") if change is None else ([change.ratio], change.judgement)
        rows.append((run.id, commit, *(each and replace(each, n=None, reason=None) for each in (figure, *ratio)), told))
    columns = ("run", "commit", name, "new / before", "judgement")
    others = len(ordered) - len(alike)
    left = (f"{others} runs are incomplete, or not comparable with the newest, and left out",) if others else ()
    return Table("trend", f"{name} over {len(rows)} runs", columns, tuple(rows), (*left, *NOTES))
