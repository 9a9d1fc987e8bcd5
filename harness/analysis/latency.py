"""From requests to figures: throughput, latency, goodput and tokens. docs/method.md has every formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness import stats
from harness.analysis.window import Window, find_window
from harness.errors import HarnessError
from harness.model import Figure, Summary
from harness.store.rows import flat

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
LATENCIES: Mapping[str, str] = {
    "ttft_s": "no request succeeded with a token",
    "itl_s": "no request succeeded with two arrivals",
    "tpot_s": "no request succeeded with two arrivals",
    "e2e_s": "no request succeeded with a token",
    "response_s": "no request succeeded with a token",
    "lag_s": "no request was sent",
}
"""Latency -> why there is none, where there is none."""
PERCENTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
STATISTICS = ("mean", *PERCENTILES)
ABORTED = "aborted"
"""The error of a request that the end of the run cut off."""
CANCELLED = "cancelled"
"""The error of a request whose user gave up, as the workload asked (`cancel_after_s`)."""
NO_SUCCESS = "no request succeeded"
WINDOW: Mapping[str, str] = {
    "window.begin_s": "s",
    "window.end_s": "s",
    "window.share": "share",
    "window.output_coverage": "share",
    "window.exchanged": "share",
}
"""Figures of the steady window, and their units."""
OBJECTIVES: Mapping[str, str] = {
    "ttft_s": "first_response_s",
    "tpot_s": "tpot_s",
    "itl_s": "longest_gap_s",
    "e2e_s": "response_s",
}
"""Objective -> the column of `Times.each` that it limits."""


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """What a run's stamps come to, one element a request in the order of the rows; NaN where there is nothing."""

    completed: Mask
    failed: Mask
    """The engine's doing. Neither this nor completed: the run ended first."""
    each: pd.DataFrame
    """Per request: ttft_s, tpot_s, e2e_s, response_s, lag_s, first_response_s, longest_gap_s; output_tokens, by the
    engine's count or else what arrived; arrived_tokens; gaps, how many of gaps_s are the request's."""
    gaps_s: Array
    """Between the arrivals of each completed request, one request after the other."""


def times(requests: pd.DataFrame, state: str) -> Times:
    """Every latency of every request. `requests` has the columns of `harness.model.Record`; it may have no rows.

    Only completed requests have latencies, except lag_s, which is the harness's own doing.
    """
    # A request whose end is missing was in flight when the harness was killed.
    ended = requests["end_s"].notna().to_numpy()
    error = requests["error"]
    cut_off = ((error == ABORTED) & (state != "complete") | (error == CANCELLED)).fillna(False).to_numpy(bool)
    faulty = error.notna().to_numpy()
    completed = ended & ~faulty
    arrival_s, sizes = _flat(requests["arrival_s"], completed)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    padded = np.append(arrival_s, np.nan)
    first = np.where(sizes > 0, padded[starts], np.nan)
    last = np.where(sizes > 0, padded[ends - 1], np.nan)
    inner = np.ones(len(arrival_s), bool)
    inner[starts[sizes > 0]] = False
    gaps_s = np.diff(arrival_s, prepend=0.0)[inner]
    gaps = np.maximum(sizes - 1, 0)
    longest = np.full(len(gaps), np.nan)
    if len(gaps_s):
        longest[gaps > 0] = np.maximum.reduceat(gaps_s, (np.cumsum(gaps) - gaps)[gaps > 0])
    tokens, arrived = _numbers(requests["output_tokens"]), _arrived(requests)
    tokens = np.where(np.isnan(tokens), arrived, tokens)
    scheduled, sent = _numbers(requests["scheduled_s"]), _numbers(requests["sent_s"])
    each = {
        "ttft_s": first - sent,
        # Fewer than two arrivals say nothing of the time between tokens, however many they carry.
        "tpot_s": np.where(gaps > 0, (last - first) / np.where(tokens > 1, tokens - 1, np.nan), np.nan),
        "e2e_s": last - sent,
        "response_s": last - scheduled,
        "lag_s": sent - scheduled,
        "first_response_s": first - scheduled,
        "longest_gap_s": longest,
        "output_tokens": tokens,
        "arrived_tokens": arrived,
        "gaps": gaps,
    }
    return Times(completed, faulty & ~cut_off, pd.DataFrame(each, index=requests.index), gaps_s)


def window_of(
    requests: pd.DataFrame,
    state: str,
    shape: str,
    users: int | None = None,
    watts: Callable[[Array], Array] | None = None,
) -> Window | None:
    """The steady window of a run (`harness.analysis.window.find_window`); None where nothing was sent."""
    sent_s, end_s = _numbers(requests["sent_s"]), _numbers(requests["end_s"])
    if np.isnan(sent_s).all():
        return None
    seen, complete = times(requests, state), state == "complete"
    tokens = np.where(seen.completed, seen.each["arrived_tokens"], 0.0)
    came = _came(requests, seen)
    return find_window(sent_s, end_s, tokens, *came, shape=shape, users=users, complete=complete, watts=watts)


def summarise(
    run: str,
    state: str,
    requests: pd.DataFrame,
    objectives: Mapping[str, float | None],
    simulated: bool,
    window: Window | None = None,
) -> Summary:
    """A run's figures, without findings (`harness.analysis.findings` has those).

    `state` is the run's; `objectives` are upper limits in seconds, None for no limit; `simulated` marks all figures;
    rates and latencies are those of the `window`, None: of the whole run. A figure that cannot be had is None with its
    reason. HarnessError for an objective that does not exist.
    """
    whole, duration = times(requests, state), _duration(requests)
    of_whole = _rates(requests, whole, duration.value)
    rows, seen, length_s, basis, rates = requests, whole, duration.value, Basis(), of_whole
    if window is not None and window.whole is None:
        members = requests["sent_s"].between(window.begin_s, window.end_s, inclusive="left")
        rows = requests[members].sort_values("sent_s", kind="stable")
        seen, length_s, basis = times(rows, state), window.end_s - window.begin_s, Basis.of(rows, window)
        arrival_s, tokens = _came(requests, whole)
        came = float(tokens[(arrival_s >= window.begin_s) & (arrival_s < window.end_s)].sum())
        rates = _rates(rows, seen, length_s, basis, came)
    limits = {name: limit for name, limit in objectives.items() if limit is not None}
    figures = [
        duration,
        *_window(window, seen, whole, rates[1], duration),
        *_counts(requests, whole),
        *rates,
        *(replace(rate, name=f"whole_run.{rate.name}") for rate in of_whole),
        *(figure for name in LATENCIES for figure in _spread(name, seen, basis)),
        *_goodput(seen, length_s, limits, basis),
        *_tokens(requests, whole),
    ]
    if simulated:
        figures = [replace(figure, status="simulated") for figure in figures]
    kinds = requests["error"][whole.failed].value_counts()
    return Summary(run, state, tuple(figures), {str(kind): int(count) for kind, count in kinds.items()})


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """What the intervals of rates and means rest on."""

    why: str | None = "no interval of a whole run"
    """Why there are none."""
    time_s: Array = field(default_factory=lambda: np.empty(0))
    """Of each member, in order of sending: how long it held its slot, or in an open loop until the next was sent."""
    together: float = 1.0
    """The least requests of a batch: a quarter of those in flight at a time, since they shared the engine."""

    @classmethod
    def of(cls, rows: pd.DataFrame, window: Window) -> Basis:
        sent_s = _numbers(rows["sent_s"])
        time_s = _numbers(rows["end_s"]) - sent_s if window.closed else np.diff(sent_s, append=window.end_s)
        return cls(None, time_s, max(1.0, window.in_flight / 4))

    def bound(self, figure: Figure, top: Array, bottom: Array | None = None) -> Figure:
        """The figure with the interval of sum(top) / sum(bottom), or with the reason why it has none."""
        if figure.value is None or self.why is not None:
            return replace(figure, reason=figure.reason or self.why)
        half = stats.ratio_half(top, bottom, self.together)
        if half is None:
            return replace(figure, reason="no interval: too few requests for how they depend on each other")
        return replace(figure, low=figure.value * (1 - half), high=figure.value * (1 + half))


def _came(requests: pd.DataFrame, seen: Times) -> tuple[Array, Array]:
    """When the tokens of completed requests arrived, and how many at a time."""
    return _flat(requests["arrival_s"], seen.completed)[0], _flat(requests["arrival_tokens"], seen.completed)[0]


def _window(window: Window | None, seen: Times, whole: Times, rate: Figure, duration: Figure) -> list[Figure]:
    """Where the window lies, and whether its members stand for all requests."""
    if window is None or duration.value is None:
        reason = duration.reason or "no window was looked for"
        return [Figure(name, None, unit, "measured", reason=reason) for name, unit in WINDOW.items()]
    length_s, n = window.end_s - window.begin_s, int(seen.completed.sum())
    got, every = (each.each["output_tokens"][each.completed] for each in (seen, whole))
    left = float(got.sum()) - (rate.value or 0.0) * length_s
    values = {
        "window.begin_s": (window.begin_s, None),
        "window.end_s": (window.end_s, None),
        "window.share": (length_s / duration.value if duration.value else None, window.whole),
        "window.output_coverage": (float(got.mean() / every.mean()) if n and every.sum() else None, NO_SUCCESS),
        "window.exchanged": (left / float(got.sum()) if got.sum() else None, NO_SUCCESS),
    }
    return [
        Figure(name, x, WINDOW[name], "measured", n=n, reason=why if x is None or name == "window.share" else None)
        for name, (x, why) in values.items()
    ]


def _arrived(requests: pd.DataFrame) -> Array:
    tokens, sizes = flat(requests["arrival_tokens"])
    total = np.concatenate(([0.0], np.cumsum(tokens)))
    ends = np.cumsum(sizes)
    return np.asarray(total[ends] - total[ends - sizes])


def _flat(column: pd.Series, keep: Mask) -> tuple[Array, NDArray[np.int64]]:
    """The values of a column of lists, and how many each row has; rows that are not kept count as empty."""
    values, sizes = flat(column)
    return values[np.repeat(keep, sizes)], np.where(keep, sizes, 0)


def _numbers(column: pd.Series) -> Array:
    return np.asarray(pd.to_numeric(column).to_numpy(float, na_value=np.nan))


def _duration(requests: pd.DataFrame) -> Figure:
    """From the first due time to the last thing that was sent or received, whatever became of its request."""
    if requests.empty:
        return Figure("duration_s", None, "s", "measured", n=0, reason="no request was sent")
    arrival_s, _ = _flat(requests["arrival_s"], requests["end_s"].isna().to_numpy())
    last = np.nanmax(np.concatenate((arrival_s, _numbers(requests["end_s"]), _numbers(requests["sent_s"]))))
    return Figure("duration_s", float(last - requests["scheduled_s"].min()), "s", "measured", n=len(requests))


def _counts(requests: pd.DataFrame, seen: Times) -> list[Figure]:
    sent = int(requests["sent_s"].notna().sum())
    completed, failed = int(seen.completed.sum()), int(seen.failed.sum())
    counts = {"sent": sent, "completed": completed, "failed": failed, "unfinished": sent - completed - failed}
    return [Figure(f"requests.{name}", count, "requests", "measured", n=sent) for name, count in counts.items()]


def _rates(
    requests: pd.DataFrame, seen: Times, duration_s: float | None, basis: Basis | None = None, came: float | None = None
) -> list[Figure]:
    """Completed requests and their tokens, over the duration. `came`: output tokens, in place of all that they got."""
    n, basis = int(seen.completed.sum()), basis or Basis()
    given, unknown = _sum(requests["input_tokens"], seen)
    got = float(seen.each["output_tokens"][seen.completed].sum()) if came is None else came
    outputs, inputs = (
        np.where(seen.completed, x, 0.0) for x in (seen.each["output_tokens"], _numbers(requests["input_tokens"]))
    )
    totals = {
        "requests_per_s": (float(n), "requests/s", seen.completed.astype(float), None),
        "output_tokens_per_s": (got, "tokens/s", outputs, None),
        "input_tokens_per_s": (given, "tokens/s", inputs, unknown),
        "total_tokens_per_s": (None if given is None else given + got, "tokens/s", inputs + outputs, unknown),
    }
    return [
        basis.bound(_rate(name, total, unit, duration_s, n, why), each, basis.time_s)
        for name, (total, unit, each, why) in totals.items()
    ]


def _rate(
    name: str, total: float | None, unit: str, duration_s: float | None, completed: int, unknown: str | None = None
) -> Figure:
    """`total` over the duration; None where it is unknown, where nothing succeeded, or over no time at all."""
    if completed and total is not None and duration_s is not None and duration_s > 0:
        return Figure(name, total / duration_s, unit, "measured", n=completed)
    reason = unknown or "the measured part has no length"
    return Figure(name, None, unit, "measured", n=completed, reason=reason if completed else NO_SUCCESS)


def _sum(column: pd.Series, seen: Times) -> tuple[float | None, str | None]:
    """The total over completed requests; None, and why, where the engine did not say it for each of them."""
    values = _numbers(column)[seen.completed]
    known = int((~np.isnan(values)).sum())
    if known < len(values):
        return None, f"the engine counted them for {known} of {len(values)} requests"
    return (float(values.sum()), None) if known else (None, NO_SUCCESS)


def _spread(name: str, seen: Times, basis: Basis) -> list[Figure]:
    """Mean and percentiles of one of `LATENCIES`. Gaps of one request are not independent of each other."""
    pooled = name == "itl_s"
    values = seen.gaps_s if pooled else seen.each[name].dropna().to_numpy()
    if len(values) == 0:
        return [Figure(f"{name}.{stat}", None, "s", "measured", n=0, reason=LATENCIES[name]) for stat in STATISTICS]
    ordered = np.sort(values)
    sizes = seen.each["gaps"][seen.each["gaps"] > 0].to_numpy()
    count = len(sizes) if pooled else len(values)
    mean = Figure(f"{name}.mean", float(values.mean()), "s", "measured", n=len(values))
    sums = np.add.reduceat(values, np.cumsum(sizes) - sizes) if pooled else values
    figures = [basis.bound(mean, sums, sizes.astype(float) if pooled else None)]
    for stat, p in PERCENTILES.items():
        reason = None
        if pooled:
            needs, interval = stats.least_clusters(p), stats.pooled_interval(ordered, values, sizes, p)
        else:
            needs, interval = stats.least_n(p), stats.percentile_interval(ordered, p)
        low, high = interval or (None, None)
        if interval is None:
            few = f"its interval needs {needs} requests, has {count}"
            reason = few if count < needs else "no interval: too much hangs on too few requests"
        value = stats.percentile(ordered, p)
        figures.append(Figure(f"{name}.{stat}", value, "s", "measured", low, high, len(values), reason))
    return figures


def _goodput(seen: Times, duration_s: float | None, limits: Mapping[str, float], basis: Basis) -> list[Figure]:
    """Requests that met every objective, per second and as a share of those that ended; then each objective alone.

    Waiting counts from the due time. An answer of one arrival has no time between tokens, and meets those objectives.
    """
    answered = seen.completed & seen.each["ttft_s"].notna().to_numpy()
    met = {"objectives_met": answered}
    for name, limit in limits.items():
        if name not in OBJECTIVES:
            raise HarnessError(f"unknown objective '{name}'", f"choose from {', '.join(OBJECTIVES)}")
        column = seen.each[OBJECTIVES[name]].to_numpy()
        met[f"objectives_met.{name}"] = answered & ~(column > limit)
    met["objectives_met"] = np.logical_and.reduce(list(met.values()))
    completed, judged = int(seen.completed.sum()), int((seen.completed | seen.failed).sum())
    rate = _rate("goodput_per_s", float(met["objectives_met"].sum()), "requests/s", duration_s, completed)
    rate = basis.bound(rate, met["objectives_met"].astype(float), basis.time_s)
    absent = None if completed else NO_SUCCESS
    if not limits:
        absent = "the workload has no objectives"
        rate = replace(rate, value=None, low=None, high=None, reason=absent)
    shares = {name: None if absent else float(good.sum() / judged) for name, good in met.items()}
    return [rate, *(Figure(name, x, "share", "measured", n=judged, reason=absent) for name, x in shares.items())]


def _tokens(requests: pd.DataFrame, seen: Times) -> list[Figure]:
    """Tokens of the completed requests: asked for, and got; and how much of the time between tokens went unseen."""
    n = int(seen.completed.sum())
    output = seen.each["output_tokens"][seen.completed]
    totals = {
        "input_tokens.asked": _sum(requests["input_asked"], seen),
        "input_tokens.got": _sum(requests["input_tokens"], seen),
        "output_tokens.asked": _sum(requests["output_asked"], seen),
        "output_tokens.got": (float(output.sum()), None) if n else (None, NO_SUCCESS),
        "cached_tokens": _sum(requests["cached_tokens"], seen),
    }
    between = float(np.maximum(seen.each["arrived_tokens"][seen.completed] - 1, 0).sum())
    unseen = (1 - len(seen.gaps_s) / between, None) if between else (None, "no answer has two tokens")
    return [
        *(Figure(name, value, "tokens", "measured", n=n, reason=why) for name, (value, why) in totals.items()),
        Figure("unseen_gaps", unseen[0], "share", "measured", n=int(between), reason=unseen[1]),
    ]
