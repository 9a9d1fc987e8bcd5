"""Exceptions and exit codes."""

import errno
import os
import re

OK, GATE_FAILED, WRONG_USE, INCOMPLETE = 0, 1, 2, 3
"""Exit codes: success; a gate or check failed; wrong use or set-up; the run is incomplete."""


INTERRUPTED = 130
"""Exit code of a command that the user interrupted, by convention of shells."""


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]+")


def plain(text: str) -> str:
    """Text without control characters, direction marks and halves of surrogate pairs, which names and errors may have.

    >>> plain("a\\x1b[2Jb")
    'a [2Jb'
    """
    return CONTROL.sub(" ", text)


class HarnessError(Exception):
    """Wrong use or set-up: printed without a traceback; the command exits with 2.

    `what` quotes the wrong value, a URL without its credentials; `fix` says what to do.

    >>> print(HarnessError("unknown engine 'tgi'", "choose one of simulated, vllm"))
    unknown engine 'tgi'
      fix: choose one of simulated, vllm
    """

    def __init__(self, what: str, fix: str) -> None:
        what, fix = plain(re.sub(r"(?<=://)[^/\s'\"@]+@", "…@", what)), plain(fix)
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n  fix: {self.fix}"


_HELP = {
    errno.EMFILE: "allow more open files, for instance: ulimit -n 65536",
    errno.ENOMEM: "free memory, or use a machine with more; what is stored is not damaged",
    errno.EACCES: "give this user access to it",
    errno.ENOSPC: "free space, or name another place",
}


def system_refused(what: str, error: OSError | MemoryError, fix: str) -> HarnessError:
    """The error for what the system refused, with the name of the cause; `fix` if no more is known of it.

    >>> print(system_refused("cannot open a", OSError(24, "Too many open files"), "try again"))
    cannot open a: Too many open files (EMFILE)
      fix: allow more open files, for instance: ulimit -n 65536
    """
    number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
    if number is None:
        return HarnessError(f"{what}: {error}", fix)
    cause = f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
    return HarnessError(f"{what}: {cause}", _HELP.get(number, fix))


class RequestFailed(Exception):
    """One request failed: its record stores this `kind` as the error, and the run continues.

    `kind` is a short fixed word by which summaries count failures (`rejected`, `timeout`, `aborted`…);
    `message` is the engine's text.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class EngineDied(Exception):
    """The engine process ended: the run stops, its rows are kept, and the command exits with 3."""
