"""Gates on the change of a figure between runs, and on the figures of one run, as `--fail-on` takes them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.analysis.diff import BETTER, COSTS, HEADLINES, Change
from harness.analysis.latency import LATENCIES, LATENCY_FIGURES
from harness.config import near
from harness.errors import HarnessError
from harness.model import Figure
from harness.workload.schema import doubt_seconds

GATED = (
    *(name for name in BETTER if name not in LATENCIES),
    *(name for name in LATENCY_FIGURES if name.partition(".")[0] in BETTER),
    *COSTS,
)
"""Figures that a gate may name; those of one run can lack some."""
SHORT = {
    "output_tps": "output_tokens_per_s",
    "total_tps": "total_tokens_per_s",
    "joules_per_token": "joules_per_output_token",
}
"""Short names of figures in gates."""

FORM = re.compile(r"\s*([\w.]+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(ms|s|min|%|)\s*")
UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0, "%": 0.01}
GATE = ("FIGURE<PERCENT%", "output_tps<-3%", "ttft_s.p99>+5%")
LIMIT = ("FIGURE>VALUE", "ttft_s.p99>500ms", "objectives_met<99%")
"""Form and examples."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit on the change of a figure, such as `output_tokens_per_s<-3%`, or on a figure, as `ttft_s.p99>500ms`."""

    text: str
    figure: str
    above: bool
    """True: above the limit fails; False: below."""
    limit: float
    """Of a change as a ratio, 0.97 for -3%; else in the figure's own unit (SI; shares from 0 to 1)."""


Outcome = Literal["failed", "passed", "undecided"]


def of_changes(gates: Sequence[Gate], changes: Sequence[Change]) -> list[tuple[Gate, Outcome]]:
    """failed: the whole 95% interval lies beyond the limit. undecided: the ratio does, and not the whole interval.

    Raises HarnessError if a figure is unknown or has no interval, because such a gate could never fail.
    """
    ratios = {change.ratio.name: change.ratio for change in changes}
    found: list[tuple[Gate, Outcome]] = []
    for gate in gates:
        ratio = ratios.get(gate.figure)
        if ratio is None:
            what = f"--fail-on '{gate.text}': the runs share no figure '{gate.figure}'"
            raise HarnessError(what, f"choose one of {', '.join([*ratios, *SHORT])}")
        if ratio.value is None or ratio.low is None or ratio.high is None:
            what = f"--fail-on '{gate.text}': its ratio has no interval: {ratio.reason}"
            raise HarnessError(what, "measure more requests or repeats, or gate another figure")
        beyond = [x > gate.limit if gate.above else x < gate.limit for x in (ratio.low, ratio.value, ratio.high)]
        found.append((gate, "failed" if all(beyond) else "undecided" if beyond[1] else "passed"))
    return found


def parse_gate(text: str, change: bool = True) -> Gate:
    """The gate from FIGURE, < or >, and a number: in percent of a change from the base; for one run, in ms, s, min, %
    or the figure's unit.

    >>> parse_gate("output_tps<-3%")
    Gate(text='output_tps<-3%', figure='output_tokens_per_s', above=False, limit=0.97)
    >>> parse_gate("ttft_s.p99>500ms", change=False).limit
    0.5
    """
    form = FORM.fullmatch(text)
    limit = change + float(form[3]) * UNITS[form[4]] if form else 0.0
    if form is None or (change and (form[4] != "%" or limit <= 0)):
        what, *examples = GATE if change else LIMIT
        fix = " or ".join(f"--fail-on '{each}'" for each in examples)
        raise HarnessError(f"--fail-on '{text}' is not of the form {what}", f"write for instance {fix}")
    if change and SHORT.get(form[1], form[1]) not in GATED:
        fix = f"{near(form[1], [*GATED, *SHORT])}choose one of {', '.join([*GATED, *SHORT])}"
        raise HarnessError(f"--fail-on '{text}': no figure '{form[1]}' is compared", fix)
    return Gate(text, SHORT.get(form[1], form[1]), form[2] == ">", limit)


def parse_share(option: str, text: str) -> float:
    """The share of an option such as `--least 0.5%`.

    >>> parse_share("--least", "0.5%")
    0.005
    """
    form = re.fullmatch(r"(\d+(?:\.\d+)?)%", text.strip())
    if form is None:
        raise HarnessError(f"{option} '{text}' is not a share in percent", f"write for instance {option} 1%")
    return float(form[1]) / 100


def of_figures(limits: Sequence[Gate], figures: Mapping[str, Figure]) -> list[tuple[Gate, Figure, Outcome]]:
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
