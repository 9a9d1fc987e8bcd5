"""Polls a reader from a process of its own.

A process and not a thread: a thread's readings would wait for the interpreter's lock while the load loop or an
in-process engine holds it, and would hold it while tokens wait to be stamped; and a driver call that never returns
would hang the run.
"""

from __future__ import annotations

import contextlib
import gc
import operator
import select
import subprocess
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from typing import Any

from harness import meters
from harness.child import Child, Gone
from harness.errors import HarnessError
from harness.model import MeterInfo, PowerSample

FLUSH_S = 0.2
"""How long samples gather before they are sent: a write for each would cost more than the reading."""
START_S = 30.0
STOP_S = 2.0
"""How long to wait for a reader to open, and to end; past it, it is taken for hung."""


class ProcessMeter:
    """A meter whose reader is polled by another process. Never waits for it but in `start` and, bounded, in `stop`."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name, self.options = name, options
        self._samples: list[PowerSample] = []
        self._info: MeterInfo | None = None

    def start(self) -> MeterInfo:
        """Start reading. Raises HarnessError where there is nothing to read, or it does not answer in time."""
        self._child = Child(poll, self.name, self.options, stdout=subprocess.DEVNULL)
        self._receive(START_S)
        if self._info is None:
            raise HarnessError(
                f"meter '{self.name}' did not start: it {self._child.end(STOP_S)}", "run `harness doctor`"
            )
        return self._info

    def drain(self) -> list[PowerSample]:
        self._receive(0)
        samples, self._samples = self._samples, []
        return samples

    def stop(self) -> MeterInfo:
        """End the reading; what had been read is still to be drained. Kills a reader that hangs."""
        assert self._info is not None
        self._child.send("stop")
        self._receive(STOP_S)
        how = self._child.end(STOP_S)
        if self._info.elapsed_s is None:  # its last word did not come
            self._info = replace(self._info, error=f"the reading process {how}")
        return self._info

    def _receive(self, wait_s: float) -> None:
        """Take what has been sent; wait so long for each message until there is one that is not of samples."""
        with contextlib.suppress(Gone):
            while (said := self._child.receive(wait_s)) is not None:
                if isinstance(said, HarnessError):
                    self._child.end(STOP_S)
                    raise said
                if isinstance(said, MeterInfo):
                    self._info, wait_s = said, 0
                else:
                    self._samples += [PowerSample(*row) for row in said]


_row = operator.attrgetter(*(field.name for field in fields(PowerSample)))


def poll(pipe: Connection, name: str, options: Mapping[str, Any]) -> None:
    """What the process does: read whenever the reader is due until told to stop, and send what was read."""
    reader: meters.Reader = meters.construct(name, options)
    info = reader.open()
    pipe.send(info)
    gc.collect()
    gc.freeze()
    gc.disable()
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    flushed_s = began_s
    rows: list[Any] = []
    while not select.select([pipe], [], [], max(0.0, reader.next_s - time.monotonic()))[0]:
        rows += map(_row, reader.read())
        if (now := time.monotonic()) - flushed_s > FLUSH_S:
            pipe.send(rows)
            rows, flushed_s = [], now
    pipe.send(rows)
    pipe.send(replace(info, cpu_s=time.process_time() - began_cpu_s, elapsed_s=time.monotonic() - began_s))
