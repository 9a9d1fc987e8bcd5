"""No process that an engine starts outlives the harness, however the harness ends.

Python cannot act on its own kill -9, and vLLM's engine process waits for ever for a parent that is gone (seen in 0.32).
So a watcher process lists what the engine starts, waits for the harness to end, and kills what is left. It lists only
while the engine starts: in the measured part it sleeps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from multiprocessing.connection import Connection

import psutil

from harness.child import Child, Gone

PERIOD_S = 0.2
"""Between two listings: a process younger than this is missed if the harness is killed at that moment."""


class Descendants:
    """What this process starts between here and `kill`, except what it had started before."""

    def __init__(self) -> None:
        self._before = {child.pid for child in psutil.Process().children(recursive=True)}
        self._seen: set[psutil.Process] = set()
        self._watcher = Child(watch, os.getpid(), self._before, outlives=True)
        self._before.add(self._watcher.process.pid)

    def settled(self) -> None:
        """No more processes will be started: the watcher lists them once more, and then no longer."""
        self._seen |= _others(psutil.Process(), self._before)
        self._watcher.send("settled")
        with contextlib.suppress(Gone):
            self._watcher.receive(None)  # a kill -9 before that listing would spare the youngest

    def kill(self, timeout_s: float = 5.0) -> None:
        """Kill those that still run, and wait until they are gone."""
        self._seen |= _others(psutil.Process(), self._before)
        _kill(self._seen)
        psutil.wait_procs(self._seen, timeout_s)

    def close(self) -> None:
        """Kill those that still run, and end the watcher, which kills what it saw: a dead process's children are no
        longer ours."""
        self.kill()
        self._watcher.pipe.close()
        self._watcher.process.wait()


def watch(pipe: Connection, parent: int, known: set[int]) -> None:
    """What the watcher does: wait for the pipe to close, then kill the parent's descendants that are not `known`."""
    known = {*known, os.getpid()}
    seen: set[psutil.Process] = set()
    try:
        process = psutil.Process(parent)
        while not pipe.poll(PERIOD_S):
            seen |= _others(process, known)
        pipe.recv()
        seen |= _others(process, known)
        pipe.send("listed")
        pipe.recv()
    except psutil.NoSuchProcess:
        pass  # it ended in between
    finally:
        _kill(seen)


def _others(process: psutil.Process, known: Iterable[int]) -> set[psutil.Process]:
    return {child for child in process.children(recursive=True) if child.pid not in known}


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # psutil sees to it that a pid's next owner is spared
            process.kill()
