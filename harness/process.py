"""Child processes that cannot outlive the harness, and a watcher for those that an engine starts."""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import psutil

from harness.errors import HarnessError

KILL_S = 2.0
"""How long a killed process may take to end: one in a driver's hands is ended by the kernel when it can."""
_PIPES: weakref.WeakSet[Connection] = weakref.WeakSet()
"""The ends that are the parent's alone. A forked process would keep them open after the parent's end."""


def _close_pipes() -> None:
    for pipe in _PIPES:
        pipe.close()


os.register_at_fork(after_in_child=_close_pipes)


class Gone(Exception):
    """The process ended unasked; how."""


class Child:
    """Runs `main(pipe, *args)`, a function of a module, in another process; `options` are those of Popen.

    It is out of reach of the terminal's Ctrl-C, which the parent hears for all, and is killed when the parent's end of
    the pipe closes, which it does with the parent. With `outlives` it is not: `main` ends by itself, by the EOFError
    that its next reading of the pipe raises.
    """

    def __init__(self, main: Callable[..., None], *args: Any, outlives: bool = False, **options: Any) -> None:
        self.pipe, end = Pipe()
        _PIPES.add(self.pipe)
        code = f"from {__name__} import run; run(outlives={outlives})"
        with end:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(end.fileno()), main.__module__, main.__name__],
                stdin=subprocess.DEVNULL,
                pass_fds=[end.fileno()],
                start_new_session=True,
                **options,
            )
        self.send(args)

    def send(self, said: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone, which `receive` says
            self.pipe.send(said)

    def receive(self, wait_s: float | None = 0) -> Any:
        """What it said next; None where nothing came in that time. A HarnessError that it met is its last word."""
        try:
            return self.pipe.recv() if self.pipe.poll(wait_s) else None
        except (EOFError, OSError):
            raise Gone(ended(self.process.wait())) from None

    def end(self, wait_s: float = 0) -> str:
        """How it ended by itself in that time; else it is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return ended(self.process.wait(wait_s))
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_S)
        return "hung"


def ended(status: int) -> str:
    """How a process of this return code ended.

    >>> ended(-9), ended(1)
    ('was ended by signal 9', 'ended with status 1')
    """
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"


def run(outlives: bool) -> None:
    """The process itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe, main = Connection(int(sys.argv[1])), getattr(importlib.import_module(sys.argv[2]), sys.argv[3])
    if not outlives:
        threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        try:
            main(pipe, *pipe.recv())
        except HarnessError as wrong:
            pipe.send(wrong)


def _end_with_parent(pipe: Connection) -> None:
    hung_up = select.poll()
    hung_up.register(pipe, 0)
    hung_up.poll()
    os.kill(os.getpid(), signal.SIGKILL)


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
