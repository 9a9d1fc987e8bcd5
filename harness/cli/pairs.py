"""Options that would do nothing in a call: one that lacks another, or that another makes void, is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from harness.errors import HarnessError

WITHOUT: Mapping[str, Mapping[str, str]] = {
    "report": {"--chart-format": "--charts"},
    "diff": {"--junit": "--fail-on"},
    "sweep": {"--jobs": "--ray"},
    "compare": {"--chart-format": "--charts", "--scenario": "RUN"},
    "cost": {"--fleet": "--objective"},
    "predict": {"--chart-format": "--charts", "--root": "--run"},
}
"""Verb -> option -> the option or argument without which it does nothing."""
WITH: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "run": {"--url": ("--serve",), "--users": ("--rate",)},
    "report": {
        "--where": ("RUN",),
        "--table": ("--full",),
        "--trend": ("--table", "--full", "--scenario", "--requests-csv"),
    },
    "compare": {"--explain": ("--table", "--full", "--charts")},
    "cost": {"--split": ("--objective", "--fleet")},
    "facts": {"ID": ("--entity", "--metric", "--period", "--status", "--layer")},
}
"""Verb -> option or argument -> options that do nothing beside it."""
_named: ContextVar[frozenset[str]] = ContextVar("named")
named = _named.get
"""The options and arguments on the command line, under the names that --help prints."""


def check(context: Any) -> None:
    """HarnessError if an option does nothing in this call; `context` is that of the parser."""
    written = (each for each in context.command.params if _source(context, each.name) == "COMMANDLINE")
    _named.set(frozenset(max(each.opts, key=len) if each.opts[0][0] == "-" else each.metavar for each in written))
    verb = context.command.name
    for option, other in WITHOUT.get(verb, {}).items():
        if option in named() and other not in named():
            raise HarnessError(f"{option} without {other}", f"add {other}, or omit {option}")
    for option, void in WITH.get(verb, {}).items():
        for other in void if option in named() else ():
            if other in named():
                raise HarnessError(f"{option} with {other}", "name one of the two")


def _source(context: Any, name: str) -> str:
    return str(getattr(context.get_parameter_source(name), "name", ""))
