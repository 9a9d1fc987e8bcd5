"""The event loop of a run: precise timers, signals that end the load in order, and a monitor of its delays."""

from __future__ import annotations

import asyncio
import bisect
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

CHECK_S = 0.005
"""Mean interval of the monitor's timers: 200 a second take a thousandth of a core."""
STALL_S = 0.001
"""Shortest delay of a timer that is kept with its instant."""
_CLASSES = 32
"""Histogram classes per doubling of the delay; percentiles are at most 2% too high."""


class _MicrosecondSelector(selectors.EpollSelector):
    """epoll rounds timeouts up to whole milliseconds, which makes timers up to 1 ms late; select() does not."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)  # under load some file is always ready, and one system call is enough
        if ready or (timeout is not None and timeout <= 0):
            return ready
        select.select([self.fileno()], [], [], timeout)
        return super().select(0)


def event_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are precise to some tens of microseconds."""
    return asyncio.SelectorEventLoop(_MicrosecondSelector())


class Interrupt:
    """Handles SIGINT, SIGTERM and SIGHUP: raises KeyboardInterrupt, or cancels the load if one is running."""

    def __enter__(self) -> Interrupt:
        self._load: asyncio.Future[Any] | None = None
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup sets SIG_IGN
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def cancels(self, load: asyncio.Future[Any]) -> Iterator[None]:
        """Meanwhile the first signal cancels the load."""
        self._load = load
        try:
            yield
        finally:
            self._load = None

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        load, self._load = self._load, None
        if load is None:
            raise KeyboardInterrupt
        load.get_loop().call_soon_threadsafe(load.cancel)


class LoopMonitor:
    """Measures the process that sends the load: delays of its event loop, processor time and garbage collections.

    The delay of a timer bounds the error of a timestamp. Timers have random intervals, so that they do not run in step
    with a periodic load. Timers that were due during a stall count too, so that a long stall has its weight. Objects
    that exist at the start are frozen, so that no garbage collection during the load traverses them.
    """

    def __enter__(self) -> LoopMonitor:
        self._delays: Counter[int] = Counter()
        self._stalls: list[tuple[float, float]] = []
        """When a timer was due and when it ran, in seconds on CLOCK_MONOTONIC, of those later than STALL_S."""
        gc.collect()
        gc.freeze()
        self._timer: asyncio.TimerHandle | None = None
        return self

    def begin(self) -> None:
        """Call when the load begins."""
        self._loop, self._random = asyncio.get_running_loop(), random.Random(0)
        self._began_s, self._began_cpu_s = time.monotonic(), time.process_time()
        self._due_s = self._loop.time()
        self._check()

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        gc.unfreeze()

    def result(self) -> dict[str, Any]:
        """elapsed_s, cpu_s and loop_delay_s since `begin`, as JSON values; empty before `begin`."""
        if self._timer is None:
            return {}
        return {
            "elapsed_s": time.monotonic() - self._began_s,
            "cpu_s": time.process_time() - self._began_cpu_s,
            "loop_delay_s": percentiles(self._delays),
        }

    def late_s(self, at_s: float) -> float:
        """For how long a timer had been due at that instant of CLOCK_MONOTONIC: the loop had not run in that time."""
        following = bisect.bisect_left(self._stalls, at_s, key=lambda stall: stall[1])
        due_s = self._stalls[following][0] if following < len(self._stalls) else at_s
        return max(0.0, at_s - due_s)

    def _check(self) -> None:
        now_s = self._loop.time()
        if now_s - self._due_s > STALL_S:
            self._stalls.append((self._due_s, now_s))
        while self._due_s <= now_s:
            self._delays[delay_class(now_s - self._due_s)] += 1
            self._due_s += self._random.uniform(0.5, 1.5) * CHECK_S
        self._timer = self._loop.call_at(self._due_s, self._check)


def delay_class(delay_s: float) -> int:
    """The histogram class of a delay; those below 1 us share one."""
    return math.ceil(math.log2(max(delay_s, 1e-6)) * _CLASSES)


def percentiles(histogram: Mapping[int, int]) -> dict[str, float]:
    """p50, p99, max and n from a histogram whose class k counts delays up to 2^(k / 32) s. Returns class limits.

    >>> percentiles({-320: 99, 0: 1})
    {'p50': 0.0009765625, 'p99': 0.0009765625, 'max': 1.0, 'n': 100}
    """
    classes = sorted(histogram)
    ranks = list(itertools.accumulate(histogram[each] for each in classes))
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    limits_s = {name: 2 ** (classes[bisect.bisect_left(ranks, p * ranks[-1])] / _CLASSES) for name, p in shares.items()}
    return {**limits_s, "n": ranks[-1]}
