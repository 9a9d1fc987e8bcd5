"""The event loop that a run lives on: timers good to microseconds, signals that end the load in good order, and a watch
on how late it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import random
import select
import selectors
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

LOOK_S = 0.005
"""The mean time between two looks at how late the loop runs: 200 a second take a thousandth of a core."""
_CLASSES = 32
"""Of delays, in each doubling: percentiles are told to 2%."""


class _MicrosecondSelector(selectors.EpollSelector):
    """epoll waits in whole milliseconds, which would make every timer up to 1 ms late; select() on it does not."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)  # under load there is always something, and one call to the system will do
        if ready or (timeout is not None and timeout <= 0):
            return ready
        select.select([self.fileno()], [], [], timeout)
        return super().select(0)


def event_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are good to some tens of microseconds."""
    return asyncio.SelectorEventLoop(_MicrosecondSelector())


class Interrupt:
    """SIGINT, SIGTERM, SIGHUP: KeyboardInterrupt at once, or, while measuring, the first ends the load in order."""

    def __enter__(self) -> Interrupt:
        self._task: asyncio.Future[Any] | None = None
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def cancels(self, task: asyncio.Future[Any]) -> Iterator[None]:
        self._task = task
        try:
            yield
        finally:
            self._task = None

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        task, self._task = self._task, None
        if task is None:
            raise KeyboardInterrupt
        task.get_loop().call_soon_threadsafe(task.cancel)


class Watch:
    """What a process sees of itself while it sends load: how late its event loop runs, processor time, gc pauses.

    A timer is late by as much as a stamp may be. Its instants are drawn at random, so that no load in step with them is
    seen at one phase alone, and those that pass while the loop is busy count too: a long stall is more than one look.
    What start-up left behind is set aside meanwhile, so that no collection of garbage walks through it.
    """

    def __enter__(self) -> Watch:
        self._late: Counter[int] = Counter()
        self._gc = {"max": 0.0, "total": 0.0, "n": 0}
        self._collecting_s = 0.0
        gc.collect()
        gc.freeze()
        gc.callbacks.append(self._collection)
        self._timer: asyncio.TimerHandle | None = None
        return self

    def begin(self) -> None:
        """The load begins."""
        self._loop, self._random = asyncio.get_running_loop(), random.Random(0)
        self._began_s, self._began_cpu_s = time.monotonic(), time.process_time()
        self._due_s = self._loop.time()
        self._look()

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        gc.callbacks.remove(self._collection)
        gc.unfreeze()

    def seen(self) -> dict[str, Any]:
        """Since the load began, as JSON values: elapsed_s, cpu_s, loop_delay_s, gc_pause_s; else nothing."""
        if self._timer is None:
            return {}
        return {
            "elapsed_s": time.monotonic() - self._began_s,
            "cpu_s": time.process_time() - self._began_cpu_s,
            "loop_delay_s": percentiles(self._late),
            "gc_pause_s": dict(self._gc),
        }

    def _look(self) -> None:
        now_s = self._loop.time()
        while self._due_s <= now_s:
            self._late[math.ceil(math.log2(max(now_s - self._due_s, 1e-6)) * _CLASSES)] += 1
            self._due_s += self._random.uniform(0.5, 1.5) * LOOK_S
        self._timer = self._loop.call_at(self._due_s, self._look)

    def _collection(self, phase: str, _info: Mapping[str, int]) -> None:
        now_s = time.monotonic()
        if phase == "stop":
            pause_s = now_s - self._collecting_s
            longest_s, total_s, n = self._gc.values()
            self._gc = {"max": max(longest_s, pause_s), "total": total_s + pause_s, "n": n + 1}
        self._collecting_s = now_s


def percentiles(late: Mapping[int, int]) -> dict[str, float]:
    """p50, p99, max and n of counted delays; the upper ends of their classes, so at most 2% too high.

    >>> percentiles({-320: 99, 0: 1})
    {'p50': 0.0009765625, 'p99': 0.0009765625, 'max': 1.0, 'n': 100}
    """
    ordered = sorted(late)
    ranks = list(itertools.accumulate(late[each] for each in ordered))
    ends_s = [2 ** (each / _CLASSES) for each in ordered]
    at = {
        name: next(s for s, rank in zip(ends_s, ranks, strict=True) if rank >= p * ranks[-1])
        for name, p in (("p50", 0.5), ("p99", 0.99), ("max", 1))
    }
    return {**at, "n": ranks[-1]}
