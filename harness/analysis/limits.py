"""Absolute limits on the figures of a run, as `harness check --fail-on` takes them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.analysis.diff import HEADLINES, SHORT, Outcome
from harness.config import near
from harness.errors import HarnessError
from harness.model import Figure

UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0, "%": 0.01}
"""Unit of a limit -> its size in the units of the figures (SI; shares from 0 to 1)."""
FORM = re.compile(r"\s*([\w.]+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(ms|s|min|%|)\s*")


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit such as `ttft_s.p99>500ms`, in the figure's own unit."""

    text: str
    figure: str
    above: bool
    """True: a figure above the limit fails; False: below."""
    limit: float


def parse_limit(text: str) -> Limit:
    """The limit from `FIGURE>VALUE` or `FIGURE<VALUE`; a value in ms, s, min, % or the figure's own unit.

    >>> parse_limit("ttft_s.p99>500ms")
    Limit(text='ttft_s.p99>500ms', figure='ttft_s.p99', above=True, limit=0.5)
    """
    form = FORM.fullmatch(text)
    if form is None:
        fix = "write for instance --fail-on 'ttft_s.p99>500ms' or --fail-on 'objectives_met<99%'"
        raise HarnessError(f"--fail-on '{text}' is not of the form FIGURE>VALUE", fix)
    return Limit(text, SHORT.get(form[1], form[1]), form[2] == ">", float(form[3]) * UNITS[form[4]])


def outcomes(limits: Sequence[Limit], figures: Mapping[str, Figure]) -> list[tuple[Limit, Figure, Outcome]]:
    """failed: the whole interval lies beyond the limit, or there is no value. undecided: the interval holds the limit.

    A figure without an interval is judged by its value. HarnessError for a figure that the run does not have.
    """
    found: list[tuple[Limit, Figure, Outcome]] = []
    for each in limits:
        figure = figures.get(each.figure)
        if figure is None:
            what = f"--fail-on '{each.text}': the run has no figure '{each.figure}'"
            raise HarnessError(what, f"{near(each.figure, [*figures, *SHORT])}for instance {', '.join(HEADLINES)}")
        ends = [figure.value if end is None else end for end in (figure.low, figure.high)]
        beyond = [end is None or (end > each.limit if each.above else end < each.limit) for end in ends]
        found.append((each, figure, "failed" if all(beyond) else "undecided" if any(beyond) else "passed"))
    return found
