"""Progress of a run on the terminal."""

from __future__ import annotations

import contextlib
import os
import sys

from harness.errors import plain
from harness.measure.sender import Progress
from harness.report.text import columns_of_terminal

EVERY_S = 30.0
"""Time between two lines where there is no terminal."""
CLEAR = "\r\x1b[K"
"""To the begin of the line, and erase it."""


class Display:
    """Shows the progress of a run on standard error: one line on a terminal, else a line for each phase and 30 s."""

    def __init__(self, quiet: bool = False, phases: bool = True) -> None:
        """`phases`: without a terminal, a line for each phase."""
        self._quiet, self._phases, self._phase, self._said_s = quiet, phases, "", 0.0
        self.series = ""
        """The place of the run in a series, such as `2 of 6, about 3 min left: `."""
        # A copy of the descriptor, since the run redirects descriptors 1 and 2 to the engine's log.
        self._stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors="replace")
        self._live = self._stream.isatty() and not quiet

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(CLEAR * self._live)
            self._stream.close()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        with contextlib.suppress(OSError):
            if not self._quiet:
                print(CLEAR * self._live + text, file=self._stream, flush=True)

    def show(self, progress: Progress) -> None:
        with contextlib.suppress(OSError):  # the terminal may be closed; the run goes on
            if not self._quiet:
                self._show(progress)

    def _show(self, now: Progress) -> None:
        begins, self._phase = now.phase != self._phase, now.phase
        self._said_s = 0.0 if begins else self._said_s
        measuring = now.phase == "measuring" and now.elapsed_s > 0
        detail = detail_of(now) if measuring else now.log_line or ""
        if self._live:
            line, room = self.series + (detail if measuring else f"{now.phase} … {detail}"), columns_of_terminal()
            line = plain(line)
            while measuring and len(line) >= room and ", " in line:  # no figure is cut in two
                line = line.rpartition(", ")[0]
            self._stream.write(CLEAR + line[: room - 1])
            self._stream.flush()
            return
        if begins and self._phases:
            self.line(f"{self.series}{now.phase} …")
        if measuring and now.elapsed_s - self._said_s >= EVERY_S:
            self._said_s = now.elapsed_s
            self.line(f"{self.series}{now.elapsed_s:.0f} s: {detail}")


def detail_of(now: Progress) -> str:
    """The progress in words, the most wanted first; the time left if the size of the load is known."""
    whole = now.count or now.duration_s
    done = now.finished if now.count else now.elapsed_s
    rate = now.output_tokens / now.elapsed_s
    parts = {
        "{:.0f} done": now.finished,
        "{:.0f} s left": now.elapsed_s * max(0.0, whole / done - 1) if whole and done else None,
        "{} failed": now.failed or None,
        "{} in flight": now.in_flight,
        f"{{:.{int(rate < 100)}f}} tok/s": rate,
        "TTFT p50 {:.0f} ms": now.ttft_s and now.ttft_s * 1e3,
        "ITL {:.1f} ms": now.itl_s and now.itl_s * 1e3,
        "{:.0f} W": now.power_w,
    }
    return ", ".join(text.format(value) for text, value in parts.items() if value is not None)


def about(left_s: float | None) -> str:
    """The time left of a series of runs; empty if it is not known.

    >>> about(40), about(200), about(None)
    (', about 40 s left', ', about 3 min left', '')
    """
    if left_s is None:
        return ""
    return f", about {left_s / 60:.0f} min left" if left_s >= 90 else f", about {left_s:.0f} s left"
