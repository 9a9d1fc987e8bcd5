"""Polls a reader in a separate process.

A thread would wait for the interpreter's lock while the load loop or an in-process engine holds it, and would hold the
lock while tokens wait for their timestamp; and a driver call that never returns would hang the run.
"""

import contextlib
import gc
import operator
import select
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from typing import Any, Generic, Protocol, TypeVar

from harness.errors import HarnessError
from harness.model import MeterInfo, PowerSample, ServerSample
from harness.process import Child, Gone

Row = TypeVar("Row", PowerSample, ServerSample)
Read = TypeVar("Read", covariant=True)
FLUSH_S = 0.2
"""Interval at which rows are sent to the parent: a write per row would cost more than the reading."""
START_S = 90.0
"""Limit on the time from start to the first reading."""
STOP_S = 10.0
"""Limit on the time to stop; then the process is killed. One HTTP answer may take 5 s, locating eight counters 6 s."""


class Reader(Protocol[Read]):
    """A source that must be polled. It lives in the polling process; times are CLOCK_MONOTONIC seconds."""

    next_s: float
    """When `read` is due."""

    def open(self) -> MeterInfo:
        """Raises HarnessError if there is nothing to read."""
        ...

    def read(self) -> Iterable[Read]:
        """The readings that are due. A reader may have `close` as well: the last readings, after the load."""
        ...


class Polled(Generic[Row]):
    """A reader, constructed as `make(*args)` in a separate process and polled there; it implements `Meter`.

    `row` is the dataclass that it reads. It is read at the start, whenever it is due, and at the stop. This process
    waits for the other one only in `start` and, with a limit, in `stop`.
    """

    def __init__(self, name: str, row: type[Row], make: Callable[..., Reader[Row]], *args: Any) -> None:
        self.name, self._task = name, (row, make, *args)
        self.row: Callable[..., Row] = row
        self._rows: list[Row] = []
        self._info: MeterInfo | None = None

    def start(self) -> MeterInfo:
        """Read for the first time. Raises HarnessError if there is nothing to read, or no answer within START_S."""
        self._child = Child(poll, *self._task, stdout=subprocess.DEVNULL)
        self._receive(START_S)
        if self._info is None:
            raise HarnessError(f"meter '{self.name}' did not start: it {self._child.end()}", "run `harness doctor`")
        return self._info

    def drain(self) -> list[Row]:
        self._receive(0)
        rows, self._rows = self._rows, []
        return rows

    def stop(self) -> MeterInfo:
        """End the reading, and kill a process that hangs. Call `drain` afterwards for the last rows."""
        assert self._info is not None
        self._child.send("stop")
        self._receive(STOP_S)
        how = self._child.end()
        if self._info.elapsed_s is None:  # the final MeterInfo did not arrive
            self._info = replace(self._info, error=f"the reading process {how}")
        return self._info

    def _receive(self, wait_s: float) -> None:
        """Take all messages; wait up to `wait_s` for each until a MeterInfo arrives."""
        with contextlib.suppress(Gone):
            while (message := self._child.receive(wait_s)) is not None:
                if isinstance(message, HarnessError):
                    self._child.end()
                    raise message
                if isinstance(message, MeterInfo):
                    self._info, wait_s = message, 0
                else:
                    self._rows += [self.row(*values) for values in message]


def poll(pipe: Connection, row: type[Row], make: Callable[..., Reader[Row]], *args: Any) -> None:
    """The main function of the process: read whenever the reader is due, and send the rows, until a message arrives."""
    values_of = operator.attrgetter(*(field.name for field in fields(row)))  # tuples pickle faster than dataclasses
    reader = make(*args)
    info = reader.open()
    gc.collect()
    gc.freeze()
    gc.disable()
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    flushed_s = began_s
    rows = [values_of(each) for each in reader.read()]
    pipe.send(info)  # the parent waits for this, so there is a reading from before the load
    while not select.select([pipe], [], [], max(0.0, reader.next_s - time.monotonic()))[0]:
        rows += [values_of(each) for each in reader.read()]
        if (now := time.monotonic()) - flushed_s > FLUSH_S:
            pipe.send(rows)
            rows, flushed_s = [], now
    cpu_s, elapsed_s = time.process_time() - began_cpu_s, time.monotonic() - began_s
    pipe.send(rows + [values_of(each) for each in getattr(reader, "close", reader.read)()])
    pipe.send(replace(info, cpu_s=cpu_s, elapsed_s=elapsed_s))
