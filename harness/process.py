"""Child processes that end with the harness, and a watchdog for the processes that an engine starts."""

import contextlib
import importlib
import math
import os
import resource
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
"""Limit on the wait for a killed process; one inside a driver call ends only when the kernel can end it."""
_PIPES: weakref.WeakSet[Connection] = weakref.WeakSet()
"""The parent's ends of all pipes. A forked process must close its copies, or they stay open after the parent's end."""


def _close_pipes() -> None:
    for pipe in _PIPES:
        pipe.close()


os.register_at_fork(after_in_child=_close_pipes)


OTHER_FILES = 128
"""Files that a process needs open beside its connections."""
MANY_FILES = 65_536
"""Limit on open files that is set where the system allows it, for loads whose connections are not known before."""


def allow_files(connections: int) -> None:
    """Raise this process's limit on open files. HarnessError if the system allows too few for the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed, most = connections + OTHER_FILES, math.inf if hard == resource.RLIM_INFINITY else hard
    if needed > most:
        what = f"{connections:,} connections need {needed:,} open files, and the system allows {hard:,} (EMFILE)"
        fix = "raise the hard limit (ulimit -Hn, as root), share the load with --clients, or send fewer at once"
        raise HarnessError(what, fix)
    if soft != resource.RLIM_INFINITY and soft < (wanted := int(min(max(needed, MANY_FILES), most))):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Gone(Exception):
    """A child process ended unexpectedly; the message says how."""


class Child:
    """Runs `main(pipe, *args)`, a module's function, in another process. `options` are those of Popen.

    The child ignores Ctrl-C: the parent decides. It is killed when the parent ends, which closes the pipe. With
    `outlives` it is not killed; the next `pipe.recv()` in `main` then raises EOFError.
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

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # the child has ended, which `receive` reports
            self.pipe.send(message)

    def receive(self, wait_s: float | None = 0) -> Any:
        """The next message, or None if none arrives within `wait_s`. Raises Gone if the child has ended.

        If `main` raised HarnessError, that exception is the last message.
        """
        try:
            return self.pipe.recv() if self.pipe.poll(wait_s) else None
        except (EOFError, OSError):
            raise Gone(ended(self.process.wait())) from None

    def end(self, wait_s: float = 0) -> str:
        """Wait for the child's end, kill it after `wait_s`, and close the pipe. Returns how it ended."""
        with self.pipe, contextlib.suppress(subprocess.TimeoutExpired):
            return ended(self.process.wait(wait_s))
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_S)
        return "hung"


def ended(returncode: int) -> str:
    """How a process with this return code ended.

    >>> ended(-9), ended(1)
    ('was ended by signal 9', 'ended with status 1')
    """
    return f"was ended by signal {-returncode}" if returncode < 0 else f"ended with status {returncode}"


def run(outlives: bool) -> None:
    """The main function of a child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe, main = Connection(int(sys.argv[1])), getattr(importlib.import_module(sys.argv[2]), sys.argv[3])
    if not outlives:
        threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended
        try:
            main(pipe, *pipe.recv())
        except HarnessError as error:
            pipe.send(error)


def _end_with_parent(pipe: Connection) -> None:
    hang_up = select.poll()
    hang_up.register(pipe, 0)
    hang_up.poll()
    os.kill(os.getpid(), signal.SIGKILL)


LIST_PERIOD_S = 0.2
"""Interval of the watchdog's listings. A process younger than this survives a SIGKILL of the harness."""


class Descendants:
    """The processes that this process starts after the construction; they are killed at the latest when it ends."""

    def __init__(self) -> None:
        self._spared = {child.pid for child in psutil.Process().children(recursive=True)}
        self._seen: set[psutil.Process] = set()
        self._watchdog = Child(watchdog, os.getpid(), self._spared, outlives=True)
        self._spared.add(self._watchdog.process.pid)

    def settled(self) -> None:
        """Call when no more processes will be started: the watchdog makes its last listing and stops polling."""
        self._seen |= _descendants(psutil.Process(), self._spared)
        self._watchdog.send("settled")
        with contextlib.suppress(Gone):
            self._watchdog.receive(None)  # wait for the listing, or a SIGKILL before it would spare the youngest

    def kill(self) -> None:
        """Kill the processes that still run, and wait for their end."""
        self._seen |= _descendants(psutil.Process(), self._spared)
        _kill(self._seen)
        psutil.wait_procs(self._seen, 5.0)

    def close(self) -> None:
        """Kill the processes that still run, and end the watchdog.

        The watchdog also kills processes whose parent has ended: those are no longer listed as descendants.
        """
        self.kill()
        self._watchdog.pipe.close()
        self._watchdog.process.wait()


def watchdog(pipe: Connection, parent: int, spared: set[int]) -> None:
    """List the parent's descendants until the pipe closes, then kill them, except those in `spared` (pids)."""
    spared = {*spared, os.getpid()}
    seen: set[psutil.Process] = set()
    try:
        process = psutil.Process(parent)
        while not pipe.poll(LIST_PERIOD_S):
            seen |= _descendants(process, spared)
        pipe.recv()
        seen |= _descendants(process, spared)
        pipe.send("listed")
        pipe.recv()
    except psutil.NoSuchProcess:
        pass  # the parent ended during a listing
    finally:
        _kill(seen)


def _descendants(process: psutil.Process, spared: Iterable[int]) -> set[psutil.Process]:
    return {child for child in process.children(recursive=True) if child.pid not in spared}


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # psutil detects a reused pid
            process.kill()
