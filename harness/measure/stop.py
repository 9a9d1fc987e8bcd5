"""Says when a run is precise enough, by looking at its journals.

A process of its own at the lowest priority: what it computes must not delay what the load loop sends and stamps.
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

from harness.analysis import precision
from harness.analysis.precision import Looks, Target
from harness.analysis.summary import made_of
from harness.errors import HarnessError
from harness.process import Child, Gone
from harness.store.run import Run, read_run

PERIOD_S, PERIOD_SHARE = 0.1, 0.025
"""Between two readings of the journals, at first, and of the time that has passed, later."""


class Stop:
    """Asked by a run with its directory: whether its figures are precise enough. Never waits, but at its end."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._child = Child(look, tuple(targets), stderr=subprocess.DEVNULL)
        self._told = self._enough = False

    def __call__(self, directory: Path) -> bool:
        """Whether it is enough; the same from then on. A judge that died never says so."""
        if not self._told:
            self._told = True
            self._child.send(directory.resolve())
        with contextlib.suppress(Gone):
            self._enough = self._enough or self._child.receive() is not None
        return self._enough

    def __enter__(self) -> Stop:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.end()  # it holds nothing that is not in the journals

    @property
    def died(self) -> bool:
        """Whether it has ended by a fault of its own."""
        return self._child.process.poll() not in (None, 0)


def look(pipe: Connection, targets: Sequence[Target]) -> None:
    """What the process does: look at the run that it is told of until every target is met, and say so."""
    os.nice(19)
    directory = pipe.recv()
    looks, began_s = Looks(), time.monotonic()
    while True:
        time.sleep(max(PERIOD_S, PERIOD_SHARE * (time.monotonic() - began_s)))
        with contextlib.suppress(HarnessError):  # a row that is just being written, or no request yet
            run = read_run(directory)
            known = precision.whole_prefix(run.requests)
            if looks.enough(len(known), lambda: _precise(run, known, targets)):  # noqa: B023
                pipe.send("enough")
                return


def _precise(run: Run, known: pd.DataFrame, targets: Sequence[Target]) -> bool:
    """Whether every target is met by the requests that are known, as though the run had ended with them."""
    file = run.file.model_copy(update={"state": "complete"})
    found = precision.reaches(made_of(Run(run.directory, file, known)), targets)
    return bool(found) and all(each.met for each in found)
