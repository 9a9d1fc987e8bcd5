"""Polls a reader from a process of its own: `python -m harness.meters.process NAME OPTIONS` is that process.

A process and not a thread: a thread's readings would wait for the interpreter's lock while the load loop or an
in-process engine holds it, and would hold it while tokens wait to be stamped; and a driver call that never returns
would hang the run. What passes between them
are frames: a length, and a marshalled list of samples or a mapping; JSON would cost five times as much, on both sides.
The reading end stops when its standard input closes, so it cannot outlive the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gc
import json
import marshal
import operator
import os
import select
import signal
import struct
import subprocess
import sys
import time
from typing import Any

from harness import meters
from harness.errors import HarnessError
from harness.model import MeterDevice, MeterInfo, PowerSample

FLUSH_S = 0.2
"""How long samples gather before they are sent: a write for each would cost more than the reading."""
PIPE_BYTES = 1 << 20
"""Room in the pipe: tens of seconds of samples, should the run be too busy to drain."""
START_S = 30.0
STOP_S = 2.0
"""How long to wait for a reader to open, and to end; past it, it is taken for hung."""


class ProcessMeter:
    """A meter whose reader is polled by another process. Never waits for it but in `start` and, bounded, in `stop`."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name, self.options = name, options
        self._buffer = bytearray()
        self._samples: list[PowerSample] = []
        self._said: dict[str, Any] = {}
        """What the other end said last, apart from samples."""

    def start(self) -> MeterInfo:
        """Start reading. Raises HarnessError where there is nothing to read, or it does not answer in time."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__, self.name, json.dumps(self.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._child.stdout is not None
        self._out = self._child.stdout.fileno()
        with contextlib.suppress(OSError):  # unprivileged users may not be allowed that much
            fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self._out, False)
        deadline = time.monotonic() + START_S
        while not self._said and time.monotonic() < deadline and self._child.poll() is None:
            select.select([self._out], [], [], 0.1)
            self._receive()
        self._receive()
        opened, self._said = self._said, {}
        if "devices" not in opened:
            self._kill()
            what = f"meter '{self.name}' did not start within {START_S:.0f} s"
            raise HarnessError(opened.get("what", what), opened.get("fix", "run `harness doctor`"))
        opened["devices"] = tuple(MeterDevice(**device) for device in opened["devices"])
        self._info = MeterInfo(**opened)
        return self._info

    def drain(self) -> list[PowerSample]:
        self._receive()
        samples, self._samples = self._samples, []
        return samples

    def stop(self) -> MeterInfo:
        """End the reading; what had been read is still to be drained. Kills a reader that hangs."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        deadline = time.monotonic() + STOP_S
        while self._child.poll() is None and time.monotonic() < deadline:
            select.select([self._out], [], [], 0.05)  # a full pipe would keep it from ending
            self._receive()
        hung = self._child.poll() is None
        self._kill()
        why = "hung" if hung else f"ended by itself with status {self._child.returncode}"
        return dataclasses.replace(self._info, **(self._said or {"error": f"the reading process {why}"}))

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._out, 1 << 16):
                self._buffer += chunk
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            said = marshal.loads(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            if isinstance(said, dict):
                self._said = said
            else:
                self._samples += [PowerSample(*row) for row in said]

    def _kill(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # in the driver's hands: the kernel ends it when it can
                self._child.wait(STOP_S)
        self._receive()


_LENGTH = struct.Struct("=I")
_row = operator.attrgetter(*(field.name for field in dataclasses.fields(PowerSample)))


def _frame(said: dict[str, Any] | list[Any]) -> bytes:
    body = marshal.dumps(said)
    return _LENGTH.pack(len(body)) + body


def poll(reader: meters.Reader) -> None:
    """Read whenever the reader is due, until standard input closes; samples go to standard output."""
    out = sys.stdout.buffer
    out.write(_frame(dataclasses.asdict(reader.open())))
    out.flush()
    gc.collect()
    gc.freeze()
    gc.disable()
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    flushed_s, error = began_s, None
    rows: list[Any] = []
    while not select.select([0], [], [], max(0.0, reader.due_s() - time.monotonic()))[0]:
        try:
            rows += map(_row, reader.read())
        except HarnessError as lost:
            error = lost.what
            break
        if (now := time.monotonic()) - flushed_s > FLUSH_S:
            out.write(_frame(rows))
            out.flush()
            rows, flushed_s = [], now
    cost = {"cpu_s": time.process_time() - began_cpu_s, "elapsed_s": time.monotonic() - began_s, "error": error}
    out.write(_frame(rows) + _frame(cost))
    out.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name, options = sys.argv[1], json.loads(sys.argv[2])
    try:
        poll(meters.construct(name, meters.READERS[name], options))
    except HarnessError as wrong:
        sys.stdout.buffer.write(_frame({"what": wrong.what, "fix": wrong.fix}))
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # the run is gone; nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
