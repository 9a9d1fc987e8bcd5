"""The command as a fixture: called in this process, in an empty directory, 80 columns wide."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import cli


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Calls the command in this process, in an empty directory, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["harness", *words])
        code: object = 0
        before = {number: signal.getsignal(number) for number in cli.SIGNALS}  # which main() ignores from its end on
        try:
            cli.main()
        except SystemExit as left:
            code = left.code or 0
        finally:
            for number, act in before.items():
                signal.signal(number, act)
        assert isinstance(code, int)
        return Outcome(code, *capfd.readouterr())

    return call


QUICK = ("run", "smoke", "--engine", "simulated", "--set", "engine.ttft_s=0.01", "--set", "engine.itl_s=0.001")
