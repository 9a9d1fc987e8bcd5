"""Progress of a run on the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.measure.sender import Progress


EVERY_S = 30.0
"""Time between two lines where there is no terminal."""


class Display:
    """Shows the progress of a run on standard error: a bar on a terminal, else a line for each phase and 30 s."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet, self._said_s = quiet, 0.0
        self.series = ""
        """The place of the run in a series, such as `2 of 6, about 3 min left: `."""
        # A copy of the descriptor, since the run redirects descriptors 1 and 2 to the engine's log.
        self._stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors="replace")
        self._phase = ""

    def __enter__(self) -> Display:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        console = Console(file=self._stream)
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(10), TextColumn("{task.fields[detail]}"),
            console=console, transient=True, disable=self._quiet or not console.is_interactive,
            redirect_stdout=False, redirect_stderr=False,  # the engine's output goes to its log
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None, detail="")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()
            self._stream.close()

    def show(self, progress: Progress) -> None:
        with contextlib.suppress(OSError):  # the terminal may be closed; the run goes on
            if not self._quiet:
                self._show(progress)

    def _show(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self._phase, self._said_s = progress.phase, 0.0
            self._bar.reset(self._task, description=self.series + progress.phase, detail="")
            if self._bar.disable:
                print(f"{self.series}{progress.phase} …", file=self._stream, flush=True)
        if progress.log_line:
            self._bar.update(self._task, detail=progress.log_line)
        if progress.phase == "measuring" and progress.elapsed_s > 0:
            whole = progress.count or progress.duration_s
            done = progress.finished if progress.count else progress.elapsed_s
            detail = detail_of(progress, done, whole)
            self._bar.update(self._task, completed=done, total=whole, detail=detail)
            if self._bar.disable and progress.elapsed_s - self._said_s >= EVERY_S:
                self._said_s = progress.elapsed_s
                print(f"{progress.elapsed_s:.0f} s: {detail}", file=self._stream, flush=True)


def detail_of(now: Progress, done: float, whole: float | None) -> str:
    """The progress in words, the most wanted first; `done` of the `whole` load, if that is known."""
    parts = {
        "{:.0f} done": now.finished,
        "{:.0f} s left": now.elapsed_s * max(0.0, whole / done - 1) if whole and done else None,
        "{} failed": now.failed or None,
        "{} in flight": now.in_flight,
        "{:.1f} tok/s": now.output_tokens / now.elapsed_s,
        "TTFT p50 {:.0f} ms": now.ttft_s and now.ttft_s * 1e3,
        "ITL {:.1f} ms": now.itl_s and now.itl_s * 1e3,
        "{:.0f} W": now.power_w,
    }
    return ", ".join(text.format(value) for text, value in parts.items() if value is not None)
