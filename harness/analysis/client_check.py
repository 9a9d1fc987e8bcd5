"""Did the client send the requested load, and how late? docs/method.md derives the criteria."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from harness.analysis.findings import finding, of_step
from harness.analysis.latency import members
from harness.analysis.times import Mask, times
from harness.analysis.tokens import by_conversation, those
from harness.analysis.window import Window
from harness.model import Figure, Finding, Summary
from harness.stats import Array, least_n
from harness.store.run import Run
from harness.store.run_file import ClientSeen
from harness.workload.arrivals import Load, user_spans

MOVED = 0.05
"""Largest share of a figure that the client may account for without a finding."""
LEAST_GAPS = 100
"""Gaps between requests needed to state their coefficient of variation."""


def check_client(run: Run, summary: Summary, window: Window | None = None) -> Summary:
    """The summary with the figures and findings about the client: the load it offered, and its delays.

    `window` holds the requests that the latencies of the summary come from. The delay of the event loop counts against
    latencies only if the engine is a server: an engine inside the client's process runs on the same event loop.
    """
    if (load := run.load) is None:
        return summary
    clients, sent = run.file.clients, those(run.requests, run.requests["sent_s"].notna().to_numpy())
    offered = _streams(sent, load, run.file.workload.requests.count) if load.closed else _rate(sent, load)
    figures = [*offered, *_own(sent, clients, run.served)]
    if run.simulated:
        figures = [replace(figure, status="simulated") for figure in figures]
    late = _late(sent, members(sent, window), run, summary, load)
    not_held = tuple(_not_held({figure.name: figure for figure in offered}, load))
    not_held = not_held or tuple(_steps_not_held(sent, load, window))
    if not summary["requests.completed"].value:  # users wait where every request fails: that is no fault of the client
        not_held = ()
    bound_s = clock_bound_s(clients)
    return replace(
        summary,
        figures=(*(_widened(figure, bound_s) for figure in summary.figures), *figures),
        findings=(*late, *not_held, *summary.findings),
    )


def clock_bound_s(clients: Sequence[ClientSeen]) -> float:
    """Largest possible offset between the parent's clock and a client's, in seconds; 0 if all run on one machine."""
    return max((client.clock_bound_s for client in clients), default=0.0)


def _widened(figure: Figure, bound_s: float) -> Figure:
    """The figure with a wider interval if it compares the parent's clock (due times) with a client's (token times)."""
    if not figure.name.startswith(("response_s", "lag_s")) or figure.low is None or figure.high is None:
        return figure
    return replace(figure, low=figure.low - bound_s, high=figure.high + bound_s)


def _streams(sent: pd.DataFrame, load: Load, count: int | None) -> tuple[Figure, ...]:
    """Mean streams in use and mean users asked for, until the last request, or conversation, was begun.

    A conversation holds its stream from its first request to its last answer, thinking time included.
    """
    until_s = float(sent["sent_s"][sent["turn"].fillna(0) == 0].max())  # later turns are sent while the load drains too
    if not until_s > 0 or len(sent) < 2 * min(len(user_spans(load)), count or len(sent)):
        return ()
    asked_s = sum(min(end, until_s) - begin for user in user_spans(load) for begin, end in user if begin < until_s)
    return _pair("load.streams", _held(sent, 0.0, until_s), asked_s / until_s, "streams", len(sent))


def _held(sent: pd.DataFrame, begin_s: float, end_s: float) -> float:
    """Mean requests, or conversations, in flight."""
    spans = by_conversation(sent[["sent_s", "end_s"]].fillna({"end_s": end_s}), sent).clip(begin_s, end_s)
    return float((spans["end_s"] - spans["sent_s"]).sum()) / (end_s - begin_s)


def _steps_not_held(sent: pd.DataFrame, load: Load, window: Window | None) -> Iterator[Finding]:
    """The same of each step of the load that has a window: of one short step the mean of the run may tell nothing."""
    for i, step in enumerate(window.steps if window is not None else (), 1):
        if step.stage is None or step.whole is not None:
            continue
        if step.stage.users is None:
            offered = _rate(sent[sent["scheduled_s"].between(step.stage.begin_s, step.stage.end_s)], load)[:2]
        else:
            held = _held(sent, step.begin_s, step.end_s)
            offered = _pair("load.streams", held, step.stage.users, "streams", len(sent))
        for each in _not_held({figure.name: figure for figure in offered}, load):
            yield of_step(i, step, each)


def _pair(name: str, held: float, asked: float, unit: str, n: int) -> tuple[Figure, ...]:
    """What was sent, and what was asked for."""
    return Figure(name, held, unit, "measured", n=n), Figure(f"{name}.asked", asked, unit, "derived", n=n)


def _rate(sent: pd.DataFrame, load: Load) -> tuple[Figure, ...]:
    """Request rate and coefficient of variation of the gaps, as sent and as due.

    Only first turns count: later turns of a conversation have no due time.
    """
    first = sent[sent["turn"].fillna(0) == 0].sort_values("scheduled_s", kind="stable")
    due_s, sent_s = first["scheduled_s"].to_numpy(float), first["sent_s"].to_numpy(float)
    n, length_s = len(first), float(due_s[-1] - due_s[0]) if len(first) else 0.0
    if load.shape == "offline" or n < 2 or length_s <= 0:
        return ()
    # Medians of the first and the last tenth, because a single late request does not lower the rate.
    tenth, lag_s = max(1, n // 10), sent_s - due_s
    behind_s = max(0.0, float(np.median(lag_s[-tenth:]) - np.median(lag_s[:tenth])))
    rates = _pair("load.rate_per_s", (n - 1) / (length_s + behind_s), (n - 1) / length_s, "requests/s", n)
    return (*rates, *(_pair("load.gap_cv", _cv(sent_s), _cv(due_s), "ratio", n - 1) if n > LEAST_GAPS else ()))


def _cv(instants: Array) -> float:
    gaps = np.diff(np.sort(instants))
    return float(gaps.std() / gaps.mean())


def _not_held(offered: Mapping[str, Figure], load: Load) -> Iterator[Finding]:
    """Findings if the offered load is below the requested load, or its gaps do not vary as the load shape says."""
    capped = load.max_in_flight is not None
    for name, lowers in (("load.streams", "throughput"), ("load.rate_per_s", "every rate and queue")):
        if name in offered:
            held, asked = offered[name].value or 0.0, offered[f"{name}.asked"].value or 0.0
            if held < (1 - MOVED) * asked:
                off = f"{held:.4g} of {asked:.4g} {offered[name].unit} ({held / asked - 1:.1%}), which lowers {lowers}"
                off += f"; load.max_in_flight={load.max_in_flight} limited it" if capped else ""
                yield finding("load-not-held", difference=off, serious=not capped)
    if "load.gap_cv" in offered and not capped:
        sent, due = offered["load.gap_cv"].value or 0.0, offered["load.gap_cv.asked"].value or 0.0
        if abs(moved := (sent**2 - due**2) / (1 + due**2)) > MOVED:
            off = f"the gaps between requests have a CV of {sent:.2f} where {due:.2f} was due"
            off += f", which moves a queue's mean wait by {moved:+.0%}"
            yield finding("load-not-held", difference=off, serious=False)


def _own(sent: pd.DataFrame, clients: Sequence[ClientSeen], served: bool) -> Iterator[Figure]:
    """Figures of the client processes: for each figure, the worst process."""
    delays = [client.loop_delay_s for client in clients if client.loop_delay_s is not None]
    for name in ("p50", "p99", "max") if delays else ():
        worst_s = max(getattr(delay, name) for delay in delays)
        yield Figure(f"client.loop_delay_s.{name}", worst_s, "s", "measured", n=len(delays))
    shares = [x.cpu_s / x.elapsed_s for x in clients if x.cpu_s is not None and x.elapsed_s]
    if shares:
        yield Figure("client.cpu_share", max(shares), "share", "measured", n=len(shares))
    if served and len(sent):
        opened = int(sent["connect_s"].notna().sum())
        yield Figure("client.connected", opened / len(sent), "share", "measured", n=len(sent))


def _stamps_late_s(client: ClientSeen, gap_s: float) -> float:
    """p99 of how much too late the stamps of a client can be; 0 if too few were looked at for a p99.

    With the kernel's times a late loop moves an arrival only if two tokens come in one read. Runs before 0.10 do not
    tell how late the loop was in these reads: then it counts where it was late by half of the median ITL.
    """
    late = client.late_stamp_s or client.loop_delay_s
    if late is None or late.n < least_n(0.99):
        return 0.0
    return 0.0 if client.kernel_stamps and late is client.loop_delay_s and late.p99 < gap_s / 2 else late.p99


def _late(sent: pd.DataFrame, kept: Mask, run: Run, summary: Summary, load: Load) -> Iterator[Finding]:
    """Findings if the client's own delay could move a p99, of the requests that are kept, by more than `MOVED`."""
    seen, clients, served = times(sent, run.state), run.file.clients, run.served
    gap_s = summary["itl_s.p50"].value or 0.0
    loop_s = max((_stamps_late_s(client, gap_s) for client in clients if served), default=0.0)
    done = kept & seen.completed
    lag_s = 0.0
    # Offline requests have no due time of their own, and requests held back by `max_in_flight` are meant to wait. In a
    # closed loop a request is due when the client sends it: what delays it then is the engine in the client's process.
    due = load.shape != "offline" and load.max_in_flight is None and (served or not load.closed)
    ttft_s, response_s = (seen[name][done & ~np.isnan(seen.first_s)] for name in ("ttft_s", "first_response_s"))
    if due and len(ttft_s):
        lag_s = max(0.0, float(np.quantile(response_s, 0.99) - np.quantile(ttft_s, 0.99)))
    for name, sending_s in (("TTFT", lag_s), ("ITL", 0.0)):
        parts = {"late reading": loop_s, "late sending": sending_s}
        latency_s, moved_s = summary[f"{name.lower()}_s.p99"].value, loop_s + sending_s
        if latency_s is not None and moved_s > MOVED * latency_s > 0:
            delays = ", ".join(f"{part} {part_s * 1e3:.3g} ms" for part, part_s in parts.items() if part_s > 0)
            share = moved_s / latency_s
            yield finding("client-limited", latency=name, p99_ms=latency_s * 1e3, share=share, delays=delays)
