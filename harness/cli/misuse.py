"""Mistakes that the parser of the command line finds, in the words of a HarnessError."""

from __future__ import annotations

import re
from typing import Any

from harness.errors import HarnessError


def worded(error: Any) -> HarnessError:
    """The mistake and what to do; `error` is a UsageError of click, or of the copy of click in typer."""
    from harness.config import near

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
    return HarnessError(f"{path}: {words[:1].lower()}{words[1:]}", f"quote a value that has blanks; {see}")
