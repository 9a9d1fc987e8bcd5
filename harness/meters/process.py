"""Polls a reader from a process of its own: `python -m harness.meters.process PIPE NAME OPTIONS` is that process.

A process and not a thread: a thread's readings would wait for the interpreter's lock while the load loop or an
in-process engine holds it, and would hold it while tokens wait to be stamped; and a driver call that never returns
would hang the run. The reading end stops when its standard input closes, so it cannot outlive the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import operator
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from harness import meters
from harness.errors import HarnessError
from harness.model import MeterInfo, PowerSample

FLUSH_S = 0.2
"""How long samples gather before they are sent: a write for each would cost more than the reading."""
PIPE_BYTES = 1 << 20
"""Room in the pipe: tens of seconds of samples, should the run be too busy to drain."""
START_S = 30.0
STOP_S = 2.0
"""How long to wait for a reader to open, and to end; past it, it is taken for hung."""


class ProcessMeter:
    """A meter whose reader is polled by another process. Never waits for it but in `start` and, bounded, in `stop`."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name, self.options = name, json.dumps(options)
        self._samples: list[PowerSample] = []
        self._info: MeterInfo | None = None

    def start(self) -> MeterInfo:
        """Start reading. Raises HarnessError where there is nothing to read, or it does not answer in time."""
        self._pipe, end = Pipe(duplex=False)
        with contextlib.suppress(OSError):  # unprivileged users may not be allowed that much
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        with end:
            self._child = subprocess.Popen(
                [sys.executable, "-m", __name__, str(end.fileno()), self.name, self.options],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[end.fileno()],
                start_new_session=True,
            )
        self._receive(START_S)
        if self._info is None:
            raise HarnessError(f"meter '{self.name}' did not start: it {self._end()}", "run `harness doctor`")
        return self._info

    def drain(self) -> list[PowerSample]:
        self._receive(0)
        samples, self._samples = self._samples, []
        return samples

    def stop(self) -> MeterInfo:
        """End the reading; what had been read is still to be drained. Kills a reader that hangs."""
        assert self._child.stdin is not None
        assert self._info is not None
        self._child.stdin.close()
        self._receive(STOP_S)
        how = self._end()
        if self._info.elapsed_s is None:  # its last word did not come
            self._info = replace(self._info, error=f"the reading process {how}")
        return self._info

    def _receive(self, wait_s: float) -> None:
        """Take what has been sent; wait so long for each message until there is one that is not of samples."""
        with contextlib.suppress(EOFError):
            while self._pipe.poll(wait_s):
                said = self._pipe.recv()
                if isinstance(said, HarnessError):
                    self._end()
                    raise said
                if isinstance(said, MeterInfo):
                    self._info, wait_s = said, 0
                else:
                    self._samples += [PowerSample(*row) for row in said]

    def _end(self) -> str:
        """See that the process ends, and say how it did."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"ended by itself with status {self._child.wait(STOP_S)}"
        self._child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # in the driver's hands: the kernel ends it when it can
            self._child.wait(STOP_S)
        return "hung"


_row = operator.attrgetter(*(field.name for field in fields(PowerSample)))


def poll(reader: meters.Reader, pipe: Connection) -> None:
    """Read whenever the reader is due, until standard input closes, and send what was read."""
    info = reader.open()
    pipe.send(info)
    gc.collect()
    gc.freeze()
    gc.disable()
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    flushed_s = began_s
    rows: list[Any] = []
    while not select.select([0], [], [], max(0.0, reader.next_s - time.monotonic()))[0]:
        rows += map(_row, reader.read())
        if (now := time.monotonic()) - flushed_s > FLUSH_S:
            pipe.send(rows)
            rows, flushed_s = [], now
    pipe.send(rows)
    pipe.send(replace(info, cpu_s=time.process_time() - began_cpu_s, elapsed_s=time.monotonic() - began_s))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe, name, options = Connection(int(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3])
    with contextlib.suppress(BrokenPipeError):  # the run is gone; nobody is left to tell
        try:
            poll(meters.construct(name, options), pipe)
        except HarnessError as wrong:
            pipe.send(wrong)


if __name__ == "__main__":
    main()
