"""The mean of a figure over repeats of one run."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness.analysis.diff import HEADLINES
from harness.analysis.summary import Sweep
from harness.model import Figure
from harness.stats import repeats_half


def repeated(runs: Sweep) -> list[tuple[Figure, list[Figure]]]:
    """For each of the `HEADLINES` that every run has: its mean over the runs, and the figure of each run.

    The interval of the mean is a t interval from the spread between runs.
    """
    found = []
    for name in HEADLINES:
        each = [figure for _, summary in runs for figure in summary.figures if figure.name == name]
        if len(each) == len(runs) and all(figure.value is not None for figure in each):
            found.append((_mean(each), each))
    return found


def _mean(figures: Sequence[Figure]) -> Figure:
    values = np.array([figure.value for figure in figures], float)
    mean, half = float(values.mean()), repeats_half(values)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return replace(figures[0], value=mean, low=low, high=high, n=len(figures), reason=None)
