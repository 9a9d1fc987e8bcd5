"""Ends a run when its figures are precise enough, from the journals of the run.

The figures are computed in another process at a low priority, so that they do not delay the load loop. At the lowest,
a busy machine would never come to them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd

from harness.analysis.precision import TURNOVERS, Looks, Target, reaches, whole_prefix
from harness.analysis.summary import made_of
from harness.errors import HarnessError
from harness.process import Child, Gone
from harness.store.run import Run, read_run

PERIOD_S, PERIOD_SHARE = 0.1, 0.025
"""Time between two readings of the journals: at least the first, and this share of the time since the start."""


class Stop:
    """Called by a run with its directory: are its figures precise enough? The answer comes without waiting."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._child = Child(look, tuple(targets), stderr=subprocess.DEVNULL)
        self._started = self._enough = False

    def __call__(self, directory: Path) -> bool:
        """True from the moment the process has found every figure precise; never True if the process has died."""
        if not self._started:
            self._started = True
            self._child.send(directory.resolve())
        with contextlib.suppress(Gone):
            self._enough = self._enough or self._child.receive() is not None
        return self._enough

    def __enter__(self) -> Stop:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.end()


def look(pipe: Connection, targets: Sequence[Target]) -> None:
    """The process: looks at the run whose directory it receives, until every target is met, and sends a word then."""
    os.nice(10)
    directory = pipe.recv()
    looks, began_s = Looks(), time.monotonic()
    while True:
        time.sleep(max(PERIOD_S, PERIOD_SHARE * (time.monotonic() - began_s)))
        with contextlib.suppress(HarnessError):  # a row is incomplete, or there is no request yet
            run = read_run(directory)
            known = whole_prefix(run.requests, run.users)
            if len(known) < TURNOVERS * (run.users or 0):
                continue
            if looks.enough(len(known), lambda: _precise(run, known, targets)):  # noqa: B023
                pipe.send("enough")
                return


def _precise(run: Run, known: pd.DataFrame, targets: Sequence[Target]) -> bool:
    """Whether the run would meet every target if it ended with the known requests."""
    file = run.file.model_copy(update={"state": "complete"})
    found = reaches(made_of(Run(run.directory, file, known)), targets)
    return bool(found) and all(each.met for each in found)
