"""Wrong use of the command line, as a HarnessError: what the parser finds, and options that would do nothing."""

from __future__ import annotations

import math
import re
from contextvars import ContextVar
from typing import Any

from harness.errors import HarnessError, system_refused
from harness.files import data_rows

FIXES = {"with": "name one of the two", "without": "add {other}, or omit {option}"}
"""Rule of option_pairs.csv -> the fix: an option does nothing with another option or argument, or without it."""
_named: ContextVar[frozenset[str]] = ContextVar("named")
named = _named.get
"""The options and arguments on the command line, under the names that --help prints."""


def check(context: Any) -> None:
    """HarnessError if an option does nothing in this call; `context` is that of the parser."""
    written = {
        max(each.opts, key=len) if each.opts[0][0] == "-" else each.metavar: context.params[each.name]
        for each in context.command.params
        if getattr(context.get_parameter_source(each.name), "name", "") == "COMMANDLINE"
    }
    _named.set(frozenset(written))
    for option, value in written.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise HarnessError(f"{option} {value}", "give a finite number")
    for row in data_rows("option_pairs.csv"):
        option, rule, other = row["option"], row["rule"], row["other"]
        if row["verb"] == context.command.name and option in written and (other in written) == (rule == "with"):
            raise HarnessError(f"{option} {rule} {other}", FIXES[rule].format(option=option, other=other))


def worded(error: Any) -> HarnessError:
    """What is wrong and what to do, of a HarnessError, what the system refused, or a UsageError of the parser."""
    from harness.config import near

    if isinstance(error, HarnessError):
        return error
    if isinstance(error, OSError | MemoryError):
        named = getattr(error, "filename", None) or "the command was stopped"
        return system_refused(named, error, "check that the path exists, is accessible and has space")
    words, context, kind = " ".join(error.format_message().split()), error.ctx, type(error).__name__
    quoted = re.findall("'([^']*)'", words)
    path = context.command_path if context else "harness"
    verbs = getattr(context and context.command, "commands", ())
    see = "options follow a verb; `harness --help` lists the verbs" if verbs else f"see `{path} --help`"
    if kind == "NoSuchOption":
        names = (name[2:] for each in context.command.params for name in each.opts if name.startswith("--"))
        meant = near(error.option_name.strip("-"), names).replace("'", "'--", 1)
        return HarnessError(f"{path} has no option {error.option_name}", meant + see)
    if kind == "MissingParameter":
        choices = words.partition("Choose from: ")[2] or error.param.help.rstrip(".")
        return HarnessError(f"{path} lacks {quoted[0]}", f"name one: {choices[:1].lower()}{choices[1:]}")
    if kind == "BadOptionUsage":
        return HarnessError(f"{error.option_name} has no value", f"write a value after {error.option_name}, or omit it")
    if kind == "BadParameter":
        cause, known = error.__cause__, quoted[2:]
        value = cause.errors()[0]["input"] if cause else ""
        what = f"{quoted[0]} {value}" if quoted[0].startswith("-") else f"{path}: unknown '{value}'"
        should = re.sub(".*Input should be", "it should be", words).partition(", unable")[0]
        fix = f"{near(str(value), known)}choose from {', '.join(known)}" if known else f"{should}; {see}"
        return HarnessError(what, fix)
    if words.startswith("No such command"):
        return HarnessError(f"no verb '{quoted[0]}'", f"{near(quoted[0], verbs)}`harness --help` lists the verbs")
    return HarnessError(f"{path}: {words[:1].lower()}{words[1:]}", f"omit it, or quote a value that has blanks; {see}")
