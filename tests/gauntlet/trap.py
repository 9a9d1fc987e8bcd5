"""The form of a trap: something of known behaviour that a benchmark measures, and what an honest benchmark reports.

A trap is one file in `traps/`, which names its `TRAP`. It describes the stand (a server, a meter, a load or a result
file) and the load in words that every tool's driver can translate, and it states the truth by the names of
docs/glossary.md. A tool passes where each figure lies within its tolerance, or is n/a where nobody can know it, or
where the tool says of the run what is wrong with it: a trap catches figures that are wrong in silence.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Truth:
    """What a figure must be. `value` None: the figure cannot be known, so that any value is wrong."""

    figure: str
    value: float | None
    within: float = 0.05
    """Tolerance, relative to the value."""
    slack: float = 0.0
    """Tolerance in the figure's unit, added to the relative one: a client's own milliseconds, for instance."""

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


@dataclass(frozen=True, slots=True)
class Stand:
    """Where the tool measures."""

    url: str | None = None
    """Of an OpenAI-compatible server, without /v1; None: the harness's simulated engine, or a file."""
    file: Path | None = None
    """A result file to import."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables under which a process sees the stand's hardware."""
    options: tuple[str, ...] = ()
    """More words of this harness's command line that are known only once the stand is up, such as a meter's address."""
    truths: Callable[[], tuple[Truth, ...]] = tuple
    """Truths that are known only after the measurement, such as a server's own account."""


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


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool reported of one run."""

    figures: Mapping[str, float | None]
    findings: frozenset[str] = frozenset()
    refused: str | None = None
    """The message with which the tool refused to measure, which is an honest answer as well."""


def faults(trap: Trap, answer: Answer, known: tuple[Truth, ...] = ()) -> list[str]:
    """What is wrong in an answer, a line a fault; empty if the tool passes."""
    if answer.refused is not None:
        return [] if "refused" in trap.says else [f"refused: {answer.refused}"]
    silent = not answer.findings & set(trap.says)
    wrong = [
        f"{truth.figure}: {answer.figures.get(truth.figure)}, true: {truth.value}"
        for truth in (*trap.truths, *known)
        if silent and not truth.fits(answer.figures.get(truth.figure))
    ]
    return wrong + [f"does not say {code}" for code in trap.must_say if code not in answer.findings]


def traps() -> Iterator[Trap]:
    """Every trap, in the order of the files' names; a file may hold several in TRAPS."""
    from gauntlet import traps as room

    for each in sorted(module.name for module in pkgutil.iter_modules(room.__path__)):
        module: Any = importlib.import_module(f"gauntlet.traps.{each}")
        yield from getattr(module, "TRAPS", None) or [module.TRAP]
