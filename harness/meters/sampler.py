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
from collections.abc import Callable
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from typing import Any, Generic

from harness.errors import HarnessError
from harness.meters.base import Reader, Row
from harness.model import MeterInfo
from harness.process import Child, Gone

FLUSH_S = 0.2
"""How long rows gather before they are sent: a write for each would cost more than the reading."""
START_S = 30.0
STOP_S = 6.0
"""How long to wait for a reader to open, and to end; past it, it is taken for hung. One HTTP answer may take 5 s."""


class Polled(Generic[Row]):
    """A reader that another process polls: `make(*args)`, made there. `row` is the dataclass that it reads.

    It reads at once, then whenever it is due, and a last time at the stop. This process never waits for it but in
    `start` and, bounded, in `stop`.
    """

    def __init__(self, name: str, row: type[Row], make: Callable[..., Reader[Row]], *args: Any) -> None:
        self.name, self._asked = name, (row, make, *args)
        self.row: Callable[..., Row] = row
        self._rows: list[Row] = []
        self._info: MeterInfo | None = None

    def start(self) -> MeterInfo:
        """Read for the first time. Raises HarnessError where there is nothing to read, or no answer comes in time."""
        self._child = Child(poll, *self._asked, stdout=subprocess.DEVNULL)
        self._receive(START_S)
        if self._info is None:
            raise HarnessError(f"meter '{self.name}' did not start: it {self._child.end()}", "run `harness doctor`")
        return self._info

    def drain(self) -> list[Row]:
        self._receive(0)
        rows, self._rows = self._rows, []
        return rows

    def stop(self) -> MeterInfo:
        """End the reading; what had been read is still to be drained. Kills a reader that hangs."""
        assert self._info is not None
        self._child.send("stop")
        self._receive(STOP_S)
        how = self._child.end()
        if self._info.elapsed_s is None:  # its last word did not come
            self._info = replace(self._info, error=f"the reading process {how}")
        return self._info

    def _receive(self, wait_s: float) -> None:
        """Take what has been sent; wait so long for each message until there is one that is not of rows."""
        with contextlib.suppress(Gone):
            while (said := self._child.receive(wait_s)) is not None:
                if isinstance(said, HarnessError):
                    self._child.end()
                    raise said
                if isinstance(said, MeterInfo):
                    self._info, wait_s = said, 0
                else:
                    self._rows += [self.row(*values) for values in said]


def poll(pipe: Connection, row: type[Row], make: Callable[..., Reader[Row]], *args: Any) -> None:
    """What the process does: read whenever the reader is due until told to stop, and send what was read."""
    values_of = operator.attrgetter(*(field.name for field in fields(row)))
    reader = make(*args)
    info = reader.open()
    gc.collect()
    gc.freeze()
    gc.disable()
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    flushed_s = began_s
    rows = [values_of(each) for each in reader.read()]
    pipe.send(info)  # the parent waits for this, so that a reading is there from before the load
    while not select.select([pipe], [], [], max(0.0, reader.next_s - time.monotonic()))[0]:
        rows += [values_of(each) for each in reader.read()]
        if (now := time.monotonic()) - flushed_s > FLUSH_S:
            pipe.send(rows)
            rows, flushed_s = [], now
    rows += [values_of(each) for each in reader.read()]
    pipe.send(rows)
    pipe.send(replace(info, cpu_s=time.process_time() - began_cpu_s, elapsed_s=time.monotonic() - began_s))
