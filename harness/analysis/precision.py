"""How precise figures are, when a run may stop, what a wanted precision still needs; docs/method.md has the rule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.analysis.window import WHOLE
from harness.errors import HarnessError
from harness.model import Summary

DEFAULTS = ("output_tokens_per_s", "joules_per_output_token")
"""What a precision without a name is of: the second where energy is measured."""
GROWTH = 1.05
"""From one look to the next a run grows by this factor."""
IN_A_ROW = 2
"""So many looks must find every figure precise enough."""
LEAST = 100
"""Requests before the first look."""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure whose 95% interval shall reach no further than this share of its value."""

    figure: str
    share: float


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a figure's interval reaches, as a share of its value; None where it has none, for that reason."""

    target: Target
    half: float | None
    reason: str
    requests: int
    """In the window that it rests on."""

    @property
    def met(self) -> bool:
        return self.half is not None and self.half <= self.target.share

    @property
    def factor(self) -> float | None:
        """How many times as many requests it needs: the interval shrinks with the root of their number."""
        return None if self.half is None else max(1.0, (self.half / self.target.share) ** 2)

    @property
    def more(self) -> int | None:
        """Requests that are still needed."""
        return None if self.factor is None else math.ceil(self.requests * (self.factor - 1) - 1e-9)


def parse(words: Sequence[str]) -> tuple[Target, ...]:
    """Targets from `2%` (of the default figures) and `FIGURE=2%` words.

    >>> parse(["ttft_s.mean=5%"])
    (Target(figure='ttft_s.mean', share=0.05),)
    >>> parse(["2"])
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: precision '2' is not a percentage
      fix: write 2%, or for another figure ttft_s.mean=2%
    """
    found = []
    for word in words:
        name, _, text = word.rpartition("=")
        share = float(text[:-1]) / 100 if re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*%", text) else 0.0
        if not 0 < share < 1:
            fix = "write 2%, or for another figure ttft_s.mean=2%"
            raise HarnessError(f"precision '{word}' is not a percentage", fix)
        found += [Target(figure, share) for figure in ([name.strip()] if name else DEFAULTS)]
    return tuple(found)


def check_shape(shape: str) -> None:
    """HarnessError where a load of that shape has no steady part whose figures could be precise."""
    if shape in WHOLE:
        raise HarnessError(
            f"--precision with load.shape={shape}: {WHOLE[shape]}, and one run has no interval",
            "repeat the run with --repeat, or measure at a steady load (closed, constant, poisson)",
        )


def reaches(summary: Summary, targets: Sequence[Target]) -> tuple[Reach, ...]:
    """Where each target stands. Of the default figures the one of energy only where the run has it.

    HarnessError for a figure that the summary does not have.
    """
    figures = {figure.name: figure for figure in summary.figures}
    requests = figures["requests_per_s"].n or 0
    found = []
    for target in targets:
        figure = figures.get(target.figure)
        if figure is None and target.figure != DEFAULTS[1]:
            known = ", ".join(name for name in figures if name.endswith((".mean", "_per_s")) and "whole" not in name)
            raise HarnessError(f"run {summary.run} has no figure '{target.figure}'", f"choose from {known}")
        if figure is None or (figure.value is None and target.figure == DEFAULTS[1] and len(targets) > 1):
            continue
        half: float | None = None
        if figure.value and figure.low is not None and figure.high is not None:
            half = max(figure.value - figure.low, figure.high - figure.value) / abs(figure.value)
        found.append(Reach(target, half, figure.reason or "it has no interval", requests))
    return tuple(found)


@dataclass(slots=True)
class Looks:
    """When to look at a run that grows, and when to stop it: the first look is at `LEAST` requests, each next one when
    there are `GROWTH` times as many, and `IN_A_ROW` of them must find it precise enough.

    A single look would often stop on an interval that is narrow by chance, and more often the more looks there are.
    """

    due: int = LEAST
    met: int = 0

    def enough(self, requests: int, precise: Callable[[], bool]) -> bool:
        """Whether to stop at so many requests; asks whether it is `precise` only when a look is due."""
        if requests >= self.due:
            self.due = math.ceil(requests * GROWTH)
            self.met = self.met + 1 if precise() else 0
        return self.met >= IN_A_ROW


def whole_prefix(requests: pd.DataFrame) -> pd.DataFrame:
    """The requests of a run in progress that were sent before any that is still in flight.

    A journal holds what has ended: of what was sent lately the short ones alone. In conversations, whose later turns
    nobody can count ahead, what was sent longer ago than the longest request took.
    """
    if requests["conversation"].isna().all():
        known = np.sort(requests["index"].to_numpy(int))
        settled = requests["index"] < int((known == np.arange(len(known))).sum())
    else:
        stay_s = (requests["end_s"] - requests["sent_s"]).max()
        settled = requests["sent_s"] < requests["end_s"].max() - stay_s
    return pd.DataFrame(requests[settled])
