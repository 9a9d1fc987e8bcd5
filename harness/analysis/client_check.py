"""Whether the harness was fit for what it measured: the load that it offered against the one asked for, and its own
delay against the latencies. docs/method.md derives the criteria.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ValidationError

from harness.analysis.findings_table import finding
from harness.analysis.latency import Times, times
from harness.analysis.window import Window
from harness.model import Figure, Finding, Summary
from harness.stats import least_n
from harness.store.run_file import ClientSeen
from harness.workload.arrivals import Load, user_spans

Array = NDArray[np.float64]
MOVED = 0.05
"""Share of a figure by which the harness may move it: more, and the figure is as much the harness's as the engine's."""
LEAST_GAPS = 100
"""Between requests, for a word on their dispersion."""


def check_client(
    summary: Summary,
    requests: pd.DataFrame,
    load: Mapping[str, Any],
    *,
    count: int | None = None,
    clients: Sequence[ClientSeen] = (),
    served: bool = False,
    window: Window | None = None,
) -> Summary:
    """The summary with what the harness saw of itself, and what is doubtful about that.

    `load` and `count` are the workload's; `clients` is what each process that sent saw of itself. Its event loop counts
    against the latencies only where the engine is `served` from elsewhere: an engine inside the process works on that
    same loop, and its work is what is measured. `window` holds the requests that the summary's latencies are of.
    """
    try:
        shape = Load.model_validate(load)
    except ValidationError:  # of another version, or another tool
        return summary
    sent = requests[requests["sent_s"].notna()]
    offered = () if len(sent) < 2 else _streams(sent, shape, count) if shape.closed else _rate(sent, shape)
    own = (*offered, *_own(sent, clients, served))
    if summary["duration_s"].status == "simulated":
        own = tuple(replace(figure, status="simulated") for figure in own)
    late = _late(times(_within(sent, window), summary.state), summary, shape, clients if served else ())
    bound_s = clock_bound_s(clients)
    figures = tuple(_widened(figure, bound_s) for figure in summary.figures) + own
    findings = (*late, *_not_held({figure.name: figure for figure in offered}, shape), *summary.findings)
    return replace(summary, figures=figures, findings=tuple(sorted(findings, key=lambda each: not each.serious)))


def clock_bound_s(clients: Sequence[ClientSeen]) -> float:
    """How far the clocks of client processes on other machines may be from the parent's; 0 where all share one."""
    return max((client.clock_bound_s for client in clients), default=0.0)


def _within(sent: pd.DataFrame, window: Window | None) -> pd.DataFrame:
    if window is None or window.whole is not None:
        return sent
    return sent[sent["sent_s"].between(window.begin_s, window.end_s, inclusive="left")]


def _widened(figure: Figure, bound_s: float) -> Figure:
    """Latencies from the due time compare two clocks; those from sending lie on one."""
    if not figure.name.startswith(("response_s", "lag_s")) or figure.low is None or figure.high is None:
        return figure
    return replace(figure, low=figure.low - bound_s, high=figure.high + bound_s)


def _streams(sent: pd.DataFrame, load: Load, count: int | None) -> tuple[Figure, ...]:
    """Streams held against users, mean until the last request was sent. A user who thinks between turns holds one."""
    until_s = float(sent["sent_s"].max())
    if until_s <= 0 or len(sent) < 2 * min(len(user_spans(load)), count or len(sent)):
        return ()
    talk = sent["conversation"].astype(float).fillna(-1.0 - sent["index"])
    spans = sent.assign(end_s=sent["end_s"].fillna(until_s)).groupby(talk).agg({"sent_s": "min", "end_s": "max"})
    held_s = float((spans["end_s"].clip(upper=until_s) - spans["sent_s"]).sum())
    asked_s = sum(min(end, until_s) - begin for user in user_spans(load) for begin, end in user if begin < until_s)
    return (
        Figure("load.streams", held_s / until_s, "streams", "measured", n=len(sent)),
        Figure("load.streams.asked", asked_s / until_s, "streams", "derived", n=len(sent)),
    )


def _rate(sent: pd.DataFrame, load: Load) -> tuple[Figure, ...]:
    """Requests per second as sent against as due, and how the gaps between them vary. Later turns have no due time."""
    first = sent[sent["turn"].fillna(0) == 0].sort_values("scheduled_s", kind="stable")
    due_s, sent_s = first["scheduled_s"].to_numpy(float), first["sent_s"].to_numpy(float)
    n, length_s = len(first), float(due_s[-1] - due_s[0]) if len(first) else 0.0
    if load.shape == "offline" or n < 2 or length_s <= 0:
        return ()
    # Medians of the first and the last tenth: that one request is late is no lower rate.
    tenth, lag_s = max(1, n // 10), sent_s - due_s
    behind_s = max(0.0, float(np.median(lag_s[-tenth:]) - np.median(lag_s[:tenth])))
    found = [
        Figure("load.rate_per_s", (n - 1) / (length_s + behind_s), "requests/s", "measured", n=n),
        Figure("load.rate_per_s.asked", (n - 1) / length_s, "requests/s", "derived", n=n),
    ]
    if n > LEAST_GAPS:
        found += [
            Figure("load.gap_cv", _cv(sent_s), "ratio", "measured", n=n - 1),
            Figure("load.gap_cv.asked", _cv(due_s), "ratio", "derived", n=n - 1),
        ]
    return tuple(found)


def _cv(instants: Array) -> float:
    gaps = np.diff(np.sort(instants))
    return float(gaps.std() / gaps.mean())


def _not_held(offered: Mapping[str, Figure], load: Load) -> Iterator[Finding]:
    """Where less load was offered than asked, or its gaps vary otherwise than the shape has them."""
    for name, lowers in (("load.streams", "throughput"), ("load.rate_per_s", "every rate and queue")):
        if name in offered:
            held, asked = offered[name].value or 0.0, offered[f"{name}.asked"].value or 0.0
            if held < (1 - MOVED) * asked:
                capped = load.max_in_flight is not None
                off = f"{held:.4g} of {asked:.4g} {offered[name].unit} ({held / asked - 1:.1%}), which lowers {lowers}"
                off += f"; load.max_in_flight={load.max_in_flight} limited it" if capped else ""
                yield finding("load-not-held", difference=off, serious=not capped)
    if "load.gap_cv" in offered and load.max_in_flight is None:
        sent, due = offered["load.gap_cv"].value or 0.0, offered["load.gap_cv.asked"].value or 0.0
        if abs(moved := (sent**2 - due**2) / (1 + due**2)) > MOVED:
            off = f"the gaps between requests have a CV of {sent:.2f} where {due:.2f} was due"
            off += f", which moves a queue's mean wait by {moved:+.0%}"
            yield finding("load-not-held", difference=off, serious=False)


def _own(sent: pd.DataFrame, clients: Sequence[ClientSeen], served: bool) -> Iterator[Figure]:
    """The worst of the client processes, each by itself."""
    delays = [client.loop_delay_s for client in clients if client.loop_delay_s is not None]
    for name in ("p50", "p99", "max") if delays else ():
        yield Figure(
            f"client.loop_delay_s.{name}", max(getattr(delay, name) for delay in delays), "s", "measured", n=len(delays)
        )
    shares = [x.cpu_s / x.elapsed_s for x in clients if x.cpu_s is not None and x.elapsed_s]
    if shares:
        yield Figure("client.cpu_share", max(shares), "share", "measured", n=len(shares))
    if served and len(sent):
        opened = int(sent["connect_s"].notna().sum())
        yield Figure("client.connected", opened / len(sent), "share", "measured", n=len(sent))


def _late(seen: Times, summary: Summary, load: Load, clients: Sequence[ClientSeen]) -> Iterator[Finding]:
    """Where the harness's own delay could move a p99 by more than `MOVED`."""
    enough = [delay for client in clients if (delay := client.loop_delay_s) is not None and delay.n >= least_n(0.99)]
    loop_s = max((delay.p99 for delay in enough), default=0.0)
    done = seen.each[seen.completed]
    lag_s = 0.0
    # Offline nothing is due at a time of its own; under a cap on the requests in flight they wait because they are to.
    if load.shape != "offline" and load.max_in_flight is None and len(done):
        lag_s = max(0.0, float(done["first_response_s"].quantile(0.99) - done["ttft_s"].quantile(0.99)))
    for name, moved_s in (("TTFT", loop_s + lag_s), ("ITL", loop_s)):
        latency_s = summary[f"{name.lower()}_s.p99"].value
        if latency_s is not None and moved_s > MOVED * latency_s > 0:
            parts = {"event loop's p99 delay": loop_s, "late sending": lag_s if name == "TTFT" else 0.0}
            delays = ", ".join(f"{part} {part_s * 1e3:.3g} ms" for part, part_s in parts.items() if part_s > 0)
            share = moved_s / latency_s
            yield finding("client-limited", latency=name, p99_ms=latency_s * 1e3, share=share, delays=delays)
