"""The form of a trap: something of known behaviour that a benchmark measures, and what an honest benchmark reports.

A trap is one file in `traps/`, which names its `TRAP`. It describes the stand (a server, a meter, a load or a result
file) and the load in words that every tool's driver can translate, and it states the truth by the names of
docs/glossary.md. A tool passes where each figure lies within its tolerance, or is n/a where nobody can know it, or
where the tool says of the run what is wrong with it: a trap catches figures that are wrong in silence.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

LATE_S = 0.005
"""A stand that is later than this proves nothing: the trap is set again."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a figure must be. `value` None: the figure cannot be known, so that any value is wrong."""

    figure: str
    value: float | None
    within: float = 0.05
    """Tolerance, relative to the value."""
    slack: float = 0.0
    """Tolerance in the figure's unit, added to the relative one: a client's own milliseconds, for instance."""
    each: float | None = None
    """Of a rate: what a request adds to it. A tool whose rates are of the whole run is judged by the run's."""

    otherwise: float | None = None
    """What another sound definition gives, where that differs."""

    def fits(self, seen: float | None) -> bool:
        """Whether a reported value is the true one.

        >>> [Truth("ttft_s.p50", 0.2).fits(seen) for seen in (0.21, 0.3, None)]
        [True, False, False]
        >>> Truth("tpot_s.p50", None).fits(None)
        True
        """
        if seen is None or self.value is None:
            return seen is self.value
        return abs(seen - self.value) <= self.within * abs(self.value) + self.slack


@dataclass(frozen=True, slots=True)
class Load:
    """What a tool is asked to send, in words that each tool has: a closed loop of `users`, or `rate_per_s`."""

    requests: int = 20
    users: int | None = 1
    rate_per_s: float | None = None
    arrivals: Literal["poisson", "constant"] = "poisson"
    """Of an open loop."""
    input_tokens: int = 16
    output_tokens: int = 16
    endpoint: Literal["completions", "chat"] = "completions"
    ignore_eos: bool = True
    runs: int = 1
    """The tool runs so often against the same stand; each of its answers is judged."""


@dataclass(slots=True)
class Seen:
    """A request as a client sees it; the fields change while it is answered."""

    asked: int
    """Output tokens that were asked for."""
    sent_s: float
    events: list[tuple[float, Any]] = field(default_factory=list)
    """The time of each event, and its JSON; None for what is not JSON, such as a comment or [DONE]."""
    end_s: float = 0.0
    status: int = 200
    """0: the connection broke."""


@dataclass(frozen=True, slots=True)
class Stand:
    """Where the tool measures."""

    url: str | None = None
    """Of an OpenAI-compatible server, without /v1; None: the harness's simulated engine, or a file."""
    file: Path | None = None
    """A result file to import."""
    script: str | None = None
    """What a scripted NVML library plays on its virtual clock (tests/fake_nvml)."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables under which a process sees the stand's hardware."""
    options: tuple[str, ...] = ()
    """More words of this harness's command line that are known only once the stand is up, such as a meter's address."""
    core: int | None = None
    """The processor core on which the tool has to run; None: any."""
    seen: Callable[[], Mapping[str, float]] = dict
    """Figures that the stand itself saw of the tool's load."""
    late_s: Callable[[], float] = float
    """How late the stand itself was, at p95: where it was late, nothing can be said of the tool."""
    log: Callable[[], Sequence[Seen]] = tuple
    """What a server sent, for mutations that read it as a wrong tool would."""


def served_s(stand: Stand, load: Load) -> dict[str, float]:
    """How long the server had requests of the load, without those that came before; nothing if it keeps no log."""
    asked = list(stand.log())[-load.requests :]
    return {"served_s": max(seen.end_s for seen in asked) - asked[0].sent_s} if asked else {}


@dataclass(frozen=True, slots=True)
class Wrong:
    """A wrong tool and the figures that it would print."""

    name: str
    figures: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Trap:
    """A known behaviour and its truth."""

    name: str
    kind: Literal["server", "meter", "load", "file"]
    behaviour: str
    why: str
    """Why a wrong figure here misleads somebody."""
    source: str
    """The report from which the trap comes, or `docs/method.md` for a definition."""
    stand: Callable[[], AbstractContextManager[Stand]]
    truths: tuple[Truth, ...]
    load: Load = Load()
    says: tuple[str, ...] = ()
    """Codes of this harness's findings, one of which excuses a wrong or missing figure."""
    must_say: tuple[str, ...] = ()
    """Codes of this harness's findings that must be there, whatever the figures."""
    options: tuple[str, ...] = ()
    """More words of this harness's command line (`--set` or `--meter`), where the load's form has no word for them."""
    steady: bool = False
    """The truth is that of the part of the run at full load; figures of a whole run differ by definition."""
    alone: bool = False
    """No other trap may be measured meanwhile."""
    falls: tuple[str | Wrong, ...] = ()
    """Wrong tools, each of which this trap catches: figures, or the name of an estimator of `gauntlet.wrong`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool reported of one run."""

    figures: Mapping[str, float | None]
    findings: frozenset[str] = frozenset()
    refused: str | None = None
    """The message with which the tool refused to measure, which is an honest answer as well."""
    run: Path | None = None
    """This harness's stored run."""
    power: pd.DataFrame | None = None
    """Readings of a meter on a virtual clock."""

    def only(self, names: Set[str]) -> Answer:
        """With the figures of these names alone."""
        return replace(self, figures={name: value for name, value in self.figures.items() if name in names})

    def beside(self, seen: Mapping[str, float]) -> Answer:
        """With figures that the stand saw."""
        return replace(self, figures={**self.figures, **seen})


def faults(trap: Trap, answer: Answer) -> list[str]:
    """What is wrong in an answer of this harness, a line a fault; empty if it passes."""
    if answer.refused is not None:
        return [] if "refused" in trap.says else [f"refused: {answer.refused}"]
    silent = not answer.findings & set(trap.says)
    wrong = [
        f"{truth.figure}: {answer.figures.get(truth.figure)}, true: {truth.value}"
        for truth in trap.truths
        if silent and not truth.fits(answer.figures.get(truth.figure))
    ]
    return wrong + [f"does not say {code}" for code in trap.must_say if code not in answer.findings]


def traps() -> Iterator[Trap]:
    """Every trap, in the order of the files' names; a file may hold several in TRAPS."""
    room = importlib.import_module("gauntlet.traps")
    for each in sorted(module.name for module in pkgutil.iter_modules(room.__path__)):
        module: Any = importlib.import_module(f"gauntlet.traps.{each}")
        yield from getattr(module, "TRAPS", None) or [module.TRAP]


Verdict = Literal["right", "wrong", "defined otherwise", "not measured", "no result"]


def judge(trap: Trap, answers: Sequence[Answer], defines: Mapping[str, str]) -> tuple[Verdict, list[str]]:
    """The verdict on another tool, with what is off.

    Only figures that the tool reports are judged. `defines` holds its own definitions, by figure (`ttft_s` for all
    statistics of it) and, under `*`, that of the part of the run that its figures are of. Of two runs, the last counts.
    """
    if not answers:
        return "not measured", []
    answer = answers[-1]
    if answer.refused is not None:
        return ("right" if "refused" in trap.says else "no result"), [answer.refused]
    truths = [_own(truth, trap, answer, defines) for truth in trap.truths]
    names = {truth: truth.figure.removeprefix("whole_run.") for truth in truths}
    seen = {truth: answer.figures[name] for truth, name in names.items() if name in answer.figures}
    if not seen:
        return "not measured", []
    off = {truth: value for truth, value in seen.items() if not truth.fits(value)}
    texts = [f"{truth.figure} {_times(value, truth.value)}" for truth, value in off.items()]
    own = set(defines) - {"*"}
    excused = trap.steady or all(
        {truth.figure, truth.figure.partition(".")[0]} & own
        or (truth.otherwise is not None and replace(truth, value=truth.otherwise).fits(value))
        for truth, value in off.items()
    )
    if not off:
        return "right", []
    return ("defined otherwise" if excused else "wrong"), texts


def _own(truth: Truth, trap: Trap, answer: Answer, defines: Mapping[str, str]) -> Truth:
    """The truth of a rate by the tool's own definition: over the time in which the server had its requests."""
    served_s = answer.figures.get("served_s")
    if "*" not in defines or truth.each is None or not served_s:
        return truth
    return replace(truth, value=trap.load.requests * truth.each / served_s)


def _times(value: float | None, true: float | None) -> str:
    """How far off a value is.

    >>> _times(0.3, 0.2), _times(0.0, 8), _times(5, None)
    ('+50%', '0, true 8', '5, which cannot be known')
    """
    if value is None:
        return "n/a"
    if true is None:
        return f"{value:.3g}, which cannot be known"
    if value == 0 or true == 0 or value / true > 10:
        return f"{value:.3g}, true {true:.3g}"
    return f"{value / true - 1:+.0%}"
