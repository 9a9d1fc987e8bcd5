"""Turns a failed start of vLLM into an error message with a fix."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.config import data_yaml
from harness.engines import weights
from harness.errors import HarnessError

SILENT = "one of its processes ended without an error message"
_RAISED = re.compile(r"(?:^|\] )(?:\w+\.)*(\w*(?:Error|Exception): .+)$", re.MULTILINE)
_WRAPPER = re.compile(r"root cause|initialization failed")
"""Errors that only report that another one happened."""
LONGEST = 300
"""Maximum characters of vLLM's message that are shown."""


def explained(model: str, error: Exception, given: Mapping[str, Any], log: str | None) -> HarnessError:
    """The HarnessError for an exception that ended vLLM's start.

    `given` are the engine's options. `log` is the output of vLLM's processes, None if it cannot be read: most failures
    happen in those processes, and the exception here only reports that one failed.

    >>> log = "(Worker pid=7) ERROR 11-21 22:55:10 [x.py:9] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
    >>> explained("m", RuntimeError("Engine core initialization failed. See root cause above."), {}, log).what
    "vllm cannot serve 'm': OutOfMemoryError: CUDA out of memory. Tried 2 GiB (more in engine.log)"
    """
    text = str(error)
    if isinstance(error, ValidationError):
        faults = error.errors()
        values = {str(value): name for name, value in given.items()}
        fault = next((fault for fault in faults if str(fault["input"]) in values), faults[0])
        text = fault["msg"].removeprefix("Value error, ")
        if name := values.get(str(fault["input"])) or ".".join(map(str, fault["loc"])):
            return HarnessError(f"vllm refuses engine.{name}={fault['input']}", text.replace("Input should be", "give"))
    elif log is not None and _WRAPPER.search(text):
        text = f"{(raised(log) or [SILENT])[-1]} (more in engine.log)"
    text = " ".join(text.split())
    fix = known_fix(text)
    if fix is None and isinstance(error, OSError):
        return weights.hub_error(model, error)
    options = ", ".join(f"engine.{name}={value}" for name, value in given.items())
    what = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    fix = fix or f"check the model{' and ' if options else ''}{options}"
    return HarnessError(f"vllm cannot serve '{model}': {what}", fix)


def known_fix(text: str) -> str | None:
    """The fix for the first pattern of vllm_fixes.yaml found in the text; None if there is none."""
    return next((row["fix"] for row in data_yaml("vllm_fixes.yaml") if re.search(row["pattern"], text)), None)


def raised(log: str) -> list[str]:
    """The error messages in a log, in order, without those that only report another one."""
    return [cause for cause in _RAISED.findall(log) if not _WRAPPER.search(cause)]


class Log:
    """The output of this process and its children from construction on: the rest of the file stdout goes to."""

    def __init__(self) -> None:
        stdout = Path("/proc/self/fd/1")
        # Kept open: a later run of this process sends its output to another file.
        self._file = stdout.open("rb") if stdout.is_file() else None
        self._start = self._file.seek(0, os.SEEK_END) if self._file else 0

    def read(self) -> str | None:
        """The text written so far; None if stdout is not a file."""
        if self._file is None:
            return None
        self._file.seek(self._start)
        return self._file.read().decode(errors="replace")
