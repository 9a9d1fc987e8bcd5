"""Precision of figures, when a run may stop, and how many more requests it needs; docs/method.md has the rule."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.analysis.latency import LATENCY_FIGURES
from harness.analysis.tokens import ordinary
from harness.analysis.window import WHOLE
from harness.config import near
from harness.errors import HarnessError
from harness.model import Summary
from harness.workload.schema import Workload

DEFAULTS = ("output_tokens_per_s", "joules_per_output_token")
"""Figures of a precision without a name; the second only if energy is measured."""
FIGURES = (
    *("output_tokens_per_s", "total_tokens_per_s", "input_tokens_per_s", "requests_per_s", "goodput_per_s"),
    *("joules_per_output_token", "joules_per_input_token", "joules_per_request"),
    *LATENCY_FIGURES,
)
"""Figures that can have a 95% interval."""
GROWTH = 1.05
"""Factor between the numbers of requests at two successive looks."""
IN_A_ROW = 4
"""Number of successive looks that must find every figure precise enough."""
LEAST, TURNOVERS = 100, 20
"""Number of requests at the first look, in all and per user: fewer show too little of what slows all users at times."""


@dataclass(frozen=True, slots=True)
class Target:
    """Target relative half-width of the 95% interval of a figure."""

    figure: str
    share: float


@dataclass(frozen=True, slots=True)
class Reach:
    """Relative half-width of a figure's interval; None, with the reason, if the figure has no interval."""

    target: Target
    half: float | None
    reason: str
    requests: int
    """Requests in the window of the figure."""

    @property
    def met(self) -> bool:
        return self.half is not None and self.half <= self.target.share

    @property
    def factor(self) -> float | None:
        """Factor on the number of requests that reaches the target; the half-width is inverse to the square root."""
        return None if self.half is None else max(1.0, (self.half / self.target.share) ** 2)

    @property
    def more(self) -> int | None:
        """Number of further requests needed."""
        return None if self.factor is None else math.ceil(self.requests * (self.factor - 1) - 1e-9)


def parse(words: Sequence[str]) -> tuple[Target, ...]:
    """Targets from `2%` (of the default figures) and `FIGURE=2%` words.

    >>> parse(["ttft_s.mean=5%"])
    (Target(figure='ttft_s.mean', share=0.05),)
    >>> parse(["2"])
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: precision '2' is not a percentage above 0% and below 100%
      fix: write 2%, or for another figure ttft_s.mean=2%
    """
    found = []
    for word in words:
        name, _, text = word.rpartition("=")
        share = float(text[:-1]) / 100 if re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*%", text) else 0.0
        if not 0 < share < 1:
            fix = "write 2%, or for another figure ttft_s.mean=2%"
            raise HarnessError(f"precision '{word}' is not a percentage above 0% and below 100%", fix)
        if name and (name := name.strip()) not in FIGURES:
            fix = f"{near(name, FIGURES)}choose one of {', '.join(FIGURES)}"
            raise HarnessError(f"precision '{word}': no figure '{name}' can be judged", fix)
        found += [Target(figure, share) for figure in ([name] if name else DEFAULTS)]
    return tuple(found)


def check(targets: Sequence[Target], workload: Workload, energy: Callable[[], bool]) -> None:
    """HarnessError for a target that the run cannot reach: known before it begins. `energy`: whether there is a meter.

    Some loads have no measured window, and so no intervals.
    """
    for name in (target.figure for target in targets):
        if name == "goodput_per_s" and not any(limit for _, limit in workload.objectives):
            raise HarnessError(f"--precision {name}: the workload has no objectives", "add --set objectives.ttft_s=0.5")
        if name.startswith("joules") and name not in (DEFAULTS if len(targets) > 1 else ()) and not energy():
            raise HarnessError(f"--precision {name}: no meter is read", "add --meter, or see `harness doctor`")
    if (shape := workload.load.shape) in WHOLE:
        raise HarnessError(
            f"--precision with load.shape={shape}: {WHOLE[shape]}, so that it cannot end early",
            "repeat the run with --repeat, or measure at a steady load (closed, constant, poisson)",
        )


def reaches(summary: Summary, targets: Sequence[Target]) -> tuple[Reach, ...]:
    """The half-width of each target's figure; the default energy figure is left out if the run has no energy."""
    figures = {figure.name: figure for figure in summary.figures}
    requests = figures["requests_per_s"].n or 0
    found = []
    for target in targets:
        figure = figures.get(target.figure)
        if (figure is None or figure.value is None) and target.figure == DEFAULTS[1] and len(targets) > 1:
            continue
        half: float | None = None
        if figure and figure.value and figure.low is not None and figure.high is not None:
            half = max(figure.value - figure.low, figure.high - figure.value) / abs(figure.value)
        reason = (figure and figure.reason) or ("it has no interval" if figure else "not recorded")
        found.append(Reach(target, half, reason, requests))
    return tuple(found)


@dataclass(slots=True)
class Looks:
    """When to look at a growing run, and when to stop it: the first look is at `LEAST` requests, each next one at
    `GROWTH` times as many; the run stops after `IN_A_ROW` successive looks that find it precise.

    A single look would often stop on an interval that is narrow by chance, more often with more looks.
    """

    due: int = LEAST
    met: int = 0

    def enough(self, requests: int, precise: Callable[[], bool]) -> bool:
        """Whether to stop at this number of requests; calls `precise` only if a look is due."""
        if requests >= self.due:
            self.due = math.ceil(requests * GROWTH)
            self.met = self.met + 1 if precise() else 0
        return self.met >= IN_A_ROW


def whole_prefix(requests: pd.DataFrame, users: int | None = None) -> pd.DataFrame:
    """The requests of a run in progress that were sent before every request still in flight.

    A journal holds ended requests only: of those sent recently, only the short ones. In conversations, whose later
    turns have no consecutive index: the requests sent longer ago than the longest request took. No request while one
    of the first wave of `users` is in flight.
    """
    wave = ~ordinary(requests)
    if 0 < wave.sum() < (users or 0):
        return requests.iloc[:0]
    if requests["conversation"].isna().all():
        known = np.sort(requests["index"].to_numpy(int))
        settled = (requests["index"] < int((known == np.arange(len(known))).sum())) | wave
    else:
        stay_s = (requests["end_s"] - requests["sent_s"]).max()
        settled = requests["sent_s"] < requests["end_s"].max() - stay_s
    return pd.DataFrame(requests[settled])
