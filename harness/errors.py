"""The ways in which the harness fails, and the exit codes that tell them apart."""

from __future__ import annotations

OK, GATE_FAILED, WRONG_USE, INCOMPLETE = 0, 1, 2, 3
"""Exit codes: all well; a gate or check failed; wrong use or set-up; the run is incomplete."""


class HarnessError(Exception):
    """A wrong set-up or wrong use: printed without a traceback, exit code 2.

    `what` quotes the bad value; `fix` names the way out.

    >>> print(HarnessError("unknown engine 'tgi'", "choose one of simulated, vllm"))
    unknown engine 'tgi'
      fix: choose one of simulated, vllm
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n  fix: {self.fix}"


class RequestFailed(Exception):
    """One request failed: it becomes a record with this `kind`, and the run goes on.

    `kind` is a short stable word that summaries count by (`rejected`, `timeout`, `aborted`…);
    the message is the engine's own.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class EngineDied(Exception):
    """The engine is gone: the run ends here, what was measured is kept, exit code 3."""
