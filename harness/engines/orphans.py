"""No process that an engine starts outlives the harness, however the harness ends.

Python cannot act on its own kill -9, and vLLM's engine process waits for ever for a parent that is gone (seen in 0.32).
So a watcher process, out of reach of the terminal's Ctrl-C, lists what the engine starts, waits for the harness to end,
and kills what is left. It lists only while the engine starts: in the measured part it sleeps.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable

import psutil

PERIOD_S = 0.2
"""Between two listings: a process younger than this is missed if the harness is killed at that moment."""


class Descendants:
    """What this process starts between here and `kill`, except what it had started before."""

    def __init__(self) -> None:
        self._before = {child.pid for child in psutil.Process().children(recursive=True)}
        self._seen: set[psutil.Process] = set()
        self._watcher = subprocess.Popen(
            # -P: this file's directory holds modules named like the packages that they drive
            [sys.executable, "-P", __file__, str(os.getpid()), *map(str, self._before)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._before.add(self._watcher.pid)

    def settled(self) -> None:
        """No more processes will be started: the watcher lists them once more, and then no longer."""
        self._seen |= _others(psutil.Process(), self._before)
        tell, heard = self._watcher.stdin, self._watcher.stdout
        if tell is not None and heard is not None and not tell.closed:
            tell.close()
            heard.read(1)  # a kill -9 before that listing would spare the youngest

    def kill(self, timeout_s: float = 5.0) -> None:
        """Kill those that still run, and wait until they are gone."""
        self._seen |= _others(psutil.Process(), self._before)
        _kill(self._seen)
        psutil.wait_procs(self._seen, timeout_s)

    def close(self) -> None:
        """Kill those that still run, and end the watcher."""
        self.kill()
        self.settled()
        self._watcher.terminate()  # which kills what it saw: a dead process's children are no longer ours
        self._watcher.wait()


def _others(process: psutil.Process, known: Iterable[int]) -> set[psutil.Process]:
    return {child for child in process.children(recursive=True) if child.pid not in known}


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # psutil sees to it that a pid's next owner is spared
            process.kill()


def _watch(parent: int, known: set[int]) -> None:
    """Wait for `parent` to end, or for SIGTERM; then kill its descendants that are not `known`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    known = {*known, os.getpid()}
    seen: set[psutil.Process] = set()
    try:
        end = os.pidfd_open(parent)
        process = psutil.Process(parent)
        while not select.select([end, sys.stdin], [], [], PERIOD_S)[0]:
            seen |= _others(process, known)
        seen |= _others(process, known)
        os.write(1, b".")
        select.select([end], [], [])
    except (ProcessLookupError, psutil.NoSuchProcess, BrokenPipeError):
        pass  # it ended in between
    finally:
        _kill(seen)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), {int(pid) for pid in sys.argv[2:]})
