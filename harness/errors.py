"""Exceptions and exit codes."""

OK, GATE_FAILED, WRONG_USE, INCOMPLETE = 0, 1, 2, 3
"""Exit codes: success; a gate or check failed; wrong use or set-up; the run is incomplete."""


class HarnessError(Exception):
    """Wrong use or set-up: printed without a traceback; the command exits with 2.

    `what` quotes the wrong value; `fix` says what to do.

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
