"""The event loop that a run lives on: timers good to microseconds, and signals that end the load in good order."""

from __future__ import annotations

import asyncio
import contextlib
import select
import selectors
import signal
from collections.abc import Iterator
from types import FrameType


class _MicrosecondSelector(selectors.EpollSelector):
    """epoll waits in whole milliseconds, which would make every timer up to 1 ms late; select() on it does not."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def event_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are good to some tens of microseconds."""
    return asyncio.SelectorEventLoop(_MicrosecondSelector())


class Interrupt:
    """SIGINT, SIGTERM, SIGHUP: KeyboardInterrupt at once, or, while measuring, the first ends the load in order."""

    def __enter__(self) -> Interrupt:
        self._task: asyncio.Future[None] | None = None
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def cancels(self, task: asyncio.Future[None]) -> Iterator[None]:
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
