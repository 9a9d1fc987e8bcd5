"""Absolute limits on the figures of a run, as `harness check --fail-on` takes them."""

from collections.abc import Mapping, Sequence

from harness.analysis.diff import HEADLINES, SHORT, Gate, Outcome
from harness.config import near
from harness.errors import HarnessError
from harness.model import Figure
from harness.workload.schema import doubt_seconds


def outcomes(limits: Sequence[Gate], figures: Mapping[str, Figure]) -> list[tuple[Gate, Figure, Outcome]]:
    """failed: the whole interval lies beyond the limit, or there is no value. undecided: the interval holds the limit.

    A figure without an interval is judged by its value. HarnessError for a figure that the run does not have.
    """
    found: list[tuple[Gate, Figure, Outcome]] = []
    for each in limits:
        figure = figures.get(each.figure)
        if figure is None:
            what = f"--fail-on '{each.text}': the run has no figure '{each.figure}'"
            raise HarnessError(what, f"{near(each.figure, [*figures, *SHORT])}for instance {', '.join(HEADLINES)}")
        if figure.unit == "s" and "%" in each.text:
            what = f"--fail-on '{each.text}': {each.figure} is a time, not a share"
            raise HarnessError(what, f"write for instance {each.figure}>500ms; `harness diff` takes changes in percent")
        if each.text.rstrip()[-1].isdigit():
            doubt_seconds(f"--fail-on '{each.text}': {each.figure}", each.figure.partition(".")[0], each.limit)
        ends = [figure.value if end is None else end for end in (figure.low, figure.high)]
        beyond = [end is None or (end > each.limit if each.above else end < each.limit) for end in ends]
        found.append((each, figure, "failed" if all(beyond) else "undecided" if any(beyond) else "passed"))
    return found
