"""A run in progress, seen from another terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import errors
from harness.cli.app import RESULTS, Root, app

if TYPE_CHECKING:
    from rich.text import Text

    from harness.model import Finding
    from harness.watch import Seen

LOOK_S = 1.0
JUDGING = 0.002
"""Share of the time for judging the run so far, which takes longer the longer the run is."""


@app.command()
def watch(
    reference: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; the newest by default.")] = None,
    root: Root = RESULTS,
    seconds: Annotated[int, typer.Option(min=2, help="How long the last seconds are.")] = 10,
) -> None:
    """Show a run while it is measured: tokens/s, requests in flight, latencies, power, findings so far.

    It reads the run's directory and nothing else. Without a terminal it prints a line every so many seconds. It ends
    with the run, and leaves with 3 where that is not complete.
    """
    from rich.console import Console
    from rich.live import Live

    from harness import store
    from harness.watch import Watched

    directory = store.find(reference, root) if reference else _newest(root)
    watched, judge, console, looks = Watched(directory, seconds), _Judge(directory), Console(), 0
    seen = watched.look()
    live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
    with live, contextlib.suppress(KeyboardInterrupt):  # to look away is no failure
        while seen.file.state == "running":
            if console.is_interactive:
                live.update(_screen(seen, judge.findings(), seconds), refresh=True)
            elif looks % seconds == 0:
                typer.echo(_line(seen, judge.findings()))
            looks += 1
            time.sleep(LOOK_S)
            seen = watched.look()
    state = seen.file.state
    typer.echo(f"{seen.file.id}: {state}" + (f" ({seen.file.error})" if seen.file.error else ""))
    if state not in ("running", "complete"):
        raise typer.Exit(errors.INCOMPLETE)


def _newest(root: Path) -> Path:
    runs = sorted(path.parent for path in root.glob("*/run.json") if not path.parent.is_symlink())
    if not runs:
        raise errors.HarnessError(f"no run under {root}", "start one with `harness run`, or name --root")
    return runs[-1]


class _Judge:
    """What is doubtful about the run so far, looked at as often as `JUDGING` allows."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._found: tuple[Finding, ...] = ()
        self._next = time.monotonic() + 10

    def findings(self) -> tuple[Finding, ...]:
        from harness import store
        from harness.report.summaries import summary_of

        if time.monotonic() >= self._next:
            begun = time.process_time()
            run = store.read(self._directory)
            found = summary_of(run).findings if len(run.requests) else ()
            self._found = tuple(each for each in found if each.code != "incomplete")  # of course it is
            self._next = time.monotonic() + (time.process_time() - begun) / JUDGING
        return self._found


def _screen(seen: Seen, findings: tuple[Finding, ...], seconds: int) -> Text:
    """One text, aligned by hand: laying out a table of rich's takes several times as long as all else in a look."""
    from rich.text import Text

    from harness.report.layout import plain

    rows = [("", f"last {seconds} s", "so far"), ("output tokens/s", *map(_rate, seen.tokens_per_s))]
    rows += [(f"{name}, ms: p50 / p90 / p99", *map(_latency, spans)) for name, spans in seen.latency_s.items()]
    table = "".join(f"  {row:28}{last:22}{all_}\n" for row, last, all_ in rows)
    doubts = "".join(f"\n  {plain(each.code)}: {plain(each.text)}" for each in findings)
    text = Text(f"{seen.file.id}: {_phase(seen)}\n{table}  {_counts(seen)}; {_watts(seen)}", no_wrap=True)
    return text.append(doubts, "yellow")


def _line(seen: Seen, findings: tuple[Finding, ...]) -> str:
    latencies = [f"{name} p50 / p90 / p99 {_latency(last)} ms" for name, (last, _) in seen.latency_s.items()]
    recent, all_ = map(_rate, seen.tokens_per_s)
    parts = [_phase(seen), f"{recent} tokens/s (so far {all_})", _counts(seen), *latencies, _watts(seen)]
    return "; ".join([*parts, *(each.code for each in findings)])


def _phase(seen: Seen) -> str:
    progress = seen.progress
    if progress.phase != "measuring":
        return progress.phase
    total = f" of {progress.duration_s:g}" if progress.duration_s else ""
    return f"measuring, {progress.elapsed_s:.0f}{total} s"


def _counts(seen: Seen) -> str:
    progress = seen.progress
    total = "" if progress.count is None else f" of {progress.count:,}"
    return f"{progress.in_flight:,} in flight, {seen.finished:,}{total} done, {seen.failed:,} failed"


def _rate(rate: float | None) -> str:
    return "n/a" if rate is None else f"{rate:,.1f}"


def _latency(found: Mapping[str, float]) -> str:
    return " / ".join(f"{value * 1e3:.3g}" for value in found.values()) or "n/a"


def _watts(seen: Seen) -> str:
    watts = ", ".join(f"{domain} {power:,.0f} W" for domain, power in seen.power_w.items())
    return watts or ("no power read yet" if seen.file.meters else "no meter")
