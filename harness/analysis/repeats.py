"""Repeats of one run: the mean of a figure, and what earlier ones show of the spread between runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import numpy as np

from harness.analysis.diff import HEADLINES, LENGTH, Between, differences, spread, values
from harness.analysis.summary import Sweep, summary_of
from harness.model import Figure
from harness.stats import repeats_half
from harness.store.directory import list_runs
from harness.store.run import Run

SESSION = timedelta(hours=1)
"""Runs of one session begin no longer than this after each other."""
LEAST_EARLIER = 5
"""Fewest earlier runs from which the spread between runs is learned."""
NO_MATTER = ("seed", "git.", "sweep", *LENGTH)
"""Differences, by how they begin, between runs that are repeats of each other."""


def repeated(runs: Sweep) -> list[tuple[Figure, list[Figure]]]:
    """For each of the `HEADLINES` that every run has: its mean over the runs, and the figure of each run.

    The interval of the mean is a t interval from the spread between runs.
    """
    found = []
    for name in HEADLINES:
        each = [figure for _, summary in runs for figure in summary.figures if figure.name == name]
        if len(each) == len(runs) and all(figure.value is not None for figure in each):
            found.append((mean_of(each), each))
    return found


def mean_of(figures: Sequence[Figure]) -> Figure:
    """The mean of a figure over runs, with its t interval between them; the figure of a single run, or one without a
    value, as it is."""
    lacking = [figure for figure in figures if figure.value is None]
    if lacking or len(figures) == 1:
        return (lacking or figures)[0]
    known = np.array([figure.value for figure in figures], float)
    mean, half = float(known.mean()), repeats_half(known) or 0.0
    return replace(figures[0], value=mean, low=mean - half, high=mean + half, n=len(figures), reason=None)


def learned(base: Sequence[Run], new: Sequence[Run]) -> Callable[[str], Between]:
    """The spread between runs for each figure, from complete runs beside the first of `base` that are repeats of it.

    If the sides are of one session: the spread within sessions; if not: between the first runs of each session. Fewer
    than `LEAST_EARLIER` runs or sessions teach nothing, and the default of `Between` is assumed.
    """
    sides = {run.id for run in (*base, *new)}
    found = [each for _, each in list_runs(base[0].directory.parent) if isinstance(each, Run) and each.id not in sides]
    found = [run for run in found if run.state == "complete" and not _differ(base[0], run)]
    sessions = _sessions(found)
    together = len(_sessions([*base, *new])) == 1
    groups = sessions if together else [[each[0] for each in sessions]]
    summaries = [[summary_of(run) for run in group] for group in groups if len(group) > 1]

    def between(name: str) -> Between:
        each = [values(group, name) for group in summaries]
        if (count := sum(map(len, each))) < LEAST_EARLIER:
            return Between()
        return spread(each, f"learned from {count} earlier {'runs' if together else 'sessions'}") or Between()

    return between


def _differ(base: Run, run: Run) -> bool:
    must, noted = differences(base, run)
    return bool(must) or any(not each.startswith(NO_MATTER) for each in noted)


def _sessions(runs: Sequence[Run]) -> list[list[Run]]:
    sessions: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: run.file.created_utc):
        if sessions and run.file.created_utc - sessions[-1][-1].file.created_utc <= SESSION:
            sessions[-1].append(run)
        else:
            sessions.append([run])
    return sessions
