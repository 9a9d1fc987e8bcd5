"""Says when a run is precise enough: `python -m harness.judge TARGETS` is the process that looks at its journals.

A process of its own at the lowest priority: what it computes must not delay what the load loop sends and stamps.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from harness import precision, store
from harness.errors import HarnessError
from harness.precision import Looks, Target
from harness.report.summaries import made_of
from harness.store import Run

PERIOD_S, PERIOD_SHARE = 0.1, 0.025
"""Between two readings of the journals, at first, and of the time that has passed, later."""


class Judge:
    """Asked by a run with its directory: whether its figures are precise enough. Never waits, but at its end."""

    def __init__(self, targets: Sequence[Target]) -> None:
        words = [f"{each.figure}={each.share * 100!r}%" for each in targets]
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        self._told = self._enough = False

    def __call__(self, directory: Path) -> bool:
        """Whether it is enough; the same from then on. A judge that died never says so."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        if not self._told:
            self._told = True
            with contextlib.suppress(OSError):
                self._child.stdin.write(f"{json.dumps(str(directory.resolve()))}\n".encode())
        if not self._enough and select.select([self._child.stdout], [], [], 0)[0]:
            self._enough = self._child.stdout.read(1) != b""
        return self._enough

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()  # it holds nothing that is not in the journals
        self._child.communicate()

    @property
    def died(self) -> bool:
        """Whether it has ended by a fault of its own."""
        return self._child.poll() not in (None, 0)


def watch(directory: Path, targets: Sequence[Target]) -> bool:
    """Look until every target is met; False where the parent closed standard input before."""
    looks, began_s = Looks(), time.monotonic()
    while not select.select([0], [], [], max(PERIOD_S, PERIOD_SHARE * (time.monotonic() - began_s)))[0]:
        with contextlib.suppress(HarnessError):  # a row that is just being written, or no request yet
            run = store.read(directory)
            known = precision.whole_prefix(run.requests)
            if looks.enough(len(known), lambda: _precise(run, known, targets)):  # noqa: B023
                return True
    return False


def _precise(run: Run, known: pd.DataFrame, targets: Sequence[Target]) -> bool:
    """Whether every target is met by the requests that are known, as though the run had ended with them."""
    file = run.file.model_copy(update={"state": "complete"})
    found = precision.reaches(made_of(replace(run, file=file, requests=known)), targets)
    return bool(found) and all(each.met for each in found)


def main() -> None:
    os.nice(19)
    targets = precision.parse(sys.argv[1:])
    with open(0, "rb", buffering=0, closefd=False) as parent:
        directory = parent.readline()
    if directory and watch(Path(json.loads(directory)), targets):
        print("enough", flush=True)


if __name__ == "__main__":
    main()
