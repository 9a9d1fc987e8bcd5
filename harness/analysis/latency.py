"""Figures of a run's requests: throughput, latency, goodput and tokens. docs/method.md has every formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness import stats
from harness.analysis.tokens import between, gaps_within, mean_position, ordinary, stalls, tokens
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
"""Latency -> the reason if no request has one."""
PERCENTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
STATISTICS = ("mean", *PERCENTILES)
ABORTED = "aborted"
"""Error of a request that was still in flight when the run ended."""
CANCELLED = "cancelled"
"""Error of a request that its user cancelled (`cancel_after_s` in the workload)."""
NO_SUCCESS = "no request succeeded"
HIDDEN = "the server counted tokens that it did not send"
BETWEEN_TOKENS = ("tpot_s", "itl_s")
"""Latencies, and objectives on them, that a request with hidden tokens does not have."""
WINDOW: Mapping[str, str] = {
    "window.begin_s": "s",
    "window.end_s": "s",
    "window.share": "share",
    "window.position_coverage": "ratio",
    "window.bias": "share",
}
"""Figures of the measured window, and their units."""
LEAST_GAPS = 20
"""Gaps within the window that give a request with others outside a TPOT; half of its gaps are enough too."""
CONTEXT_SHARE = 0.4
"""Share of the time of a token that is in proportion to its context, of a large batch with long contexts."""
SHORT = 0.1
"""Share of the gaps that are taken for those of engine steps without a prompt."""
OBJECTIVES: Mapping[str, str] = {
    "ttft_s": "first_response_s",
    "tpot_s": "tpot_s",
    "itl_s": "longest_gap_s",
    "e2e_s": "response_s",
}
"""Objective -> the column of `Times.each` that the objective limits."""


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """Latencies of each request, in the order of the rows; NaN where a request has none."""

    completed: Mask
    failed: Mask
    """Failed in the engine. A request that is neither failed nor completed was cut off or cancelled."""
    each: pd.DataFrame
    """Per request: ttft_s, tpot_s, e2e_s, response_s, lag_s, first_response_s, longest_gap_s; output_tokens, by the
    engine's count, or as arrived if it states none or more than was asked for and arrived; arrived_tokens;
    hidden_tokens; gaps, the request's number of elements in gaps_s."""
    gaps_s: Array
    """Gaps between arrivals within each completed request without hidden tokens, request by request."""


def times(requests: pd.DataFrame, state: str) -> Times:
    """Latencies of each request. `requests` has the columns of `harness.model.Record`, and may have no rows.

    Only completed requests have latencies; lag_s, which the client causes, exists for every request that was sent.
    """
    # A request without an end was in flight when the harness was killed.
    ended = requests["end_s"].notna().to_numpy()
    error = requests["error"]
    cut_off = ((error == ABORTED) & (state != "complete") | (error == CANCELLED)).fillna(False).to_numpy(bool)
    faulty = error.notna().to_numpy()
    completed = ended & ~faulty
    arrival_s, sizes = _flat(requests["arrival_s"], completed)
    first = _firsts(arrival_s, sizes)
    last = np.where(sizes > 0, np.append(arrival_s, np.nan)[np.cumsum(sizes) - 1], np.nan)
    hidden = np.where(completed, np.nan_to_num(_numbers(requests["hidden_tokens"])), 0.0)
    shown = np.where(hidden > 0, 0, sizes)
    gaps_s = gaps_within(arrival_s[np.repeat(hidden == 0, sizes)], shown)
    gaps = np.maximum(shown - 1, 0)
    longest = np.full(len(gaps), np.nan)
    if len(gaps_s):
        longest[gaps > 0] = np.maximum.reduceat(gaps_s, (np.cumsum(gaps) - gaps)[gaps > 0])
    tokens, asked = _numbers(requests["output_tokens"]), _numbers(requests["output_asked"])
    groups, all_sizes = flat(requests["arrival_tokens"])
    arrived, first_group = _sums(groups, all_sizes), _firsts(groups, all_sizes)
    believed = tokens <= np.fmax(asked, arrived)
    tokens = np.where(believed, tokens, arrived)
    after_first = tokens * (1 - first_group / np.where(arrived > 0, arrived, np.nan))
    scheduled, sent = _numbers(requests["scheduled_s"]), _numbers(requests["sent_s"])
    each = {
        "ttft_s": first - sent,
        # One arrival, of any number of tokens, has no time between tokens.
        "tpot_s": np.where(gaps > 0, (last - first) / np.where(after_first > 0, after_first, np.nan), np.nan),
        "e2e_s": last - sent,
        "response_s": last - scheduled,
        "lag_s": sent - scheduled,
        "first_response_s": first - scheduled,
        "longest_gap_s": longest,
        "output_tokens": tokens,
        "arrived_tokens": arrived,
        "gaps": gaps,
        "hidden_tokens": hidden,
    }
    return Times(completed, faulty & ~cut_off, pd.DataFrame(each, index=requests.index), gaps_s)


def window_of(
    requests: pd.DataFrame,
    state: str,
    shape: str,
    users: int | None = None,
    watts: Callable[[Array], Array] | None = None,
) -> Window | None:
    """The measured window of a run (`harness.analysis.window.find_window`); None if no request was sent."""
    spans = requests[requests["sent_s"].notna()]
    if spans.empty:
        return None
    output = tokens(requests[times(requests, state).completed])["output_token"]
    arrival_s, sizes = flat(spans["arrival_s"])
    first_s = np.append(arrival_s, np.nan)[np.cumsum(sizes) - sizes]
    each = pd.DataFrame({"sent_s": spans["sent_s"], "end_s": spans["end_s"], "load_only": ~ordinary(spans)})
    each["failed"] = spans["error"].notna()
    each["first_s"] = np.where(sizes > 0, first_s, each["end_s"])
    if shape == "closed" and (talk := spans["conversation"]).notna().any():
        # A user is busy from the first request of a conversation to its last answer.
        by = each.groupby(talk.astype(float).fillna(-1.0 - spans["index"]))
        each = by.agg({"sent_s": "min", "end_s": "max", "load_only": "any", "failed": "any", "first_s": "min"})
    each = each.sort_values("sent_s", kind="stable")
    sent_s, first_s, end_s = (each[name].to_numpy(float) for name in ("sent_s", "first_s", "end_s"))
    return find_window(
        sent_s,
        first_s,
        end_s,
        output,
        shape=shape,
        users=users,
        load_only=each["load_only"].to_numpy(bool),
        failed=each["failed"].to_numpy(bool),
        complete=state == "complete",
        watts=watts,
        stalls_s=stalls(requests),
    )


def members(requests: pd.DataFrame, window: Window | None) -> pd.DataFrame:
    """The measured requests sent within the window; all of them if the window is None or the whole run."""
    kept = ordinary(requests)
    if window is not None and window.whole is None:
        kept &= requests["sent_s"].between(window.begin_s, window.end_s, inclusive="left").to_numpy(bool)
    return requests[kept]


def summarise(
    run: str,
    state: str,
    requests: pd.DataFrame,
    objectives: Mapping[str, float | None],
    simulated: bool,
    window: Window | None = None,
) -> Summary:
    """A run's figures, without findings (`harness.analysis.findings` has those).

    `objectives` are upper limits in seconds, None for no limit; `simulated` sets the status of all figures. Rates and
    latencies are those of the `window`, or of the whole run if it is None. A figure without a value has a reason.
    HarnessError for an unknown objective.
    """
    requests = requests.sort_values("sent_s", kind="stable")
    seen, duration = times(requests, state), _duration(requests)
    whole = Part.of_run(requests, seen, duration.value)
    inside = whole if window is None or window.whole is not None else Part.of_window(requests, seen, window)
    limits = {name: limit for name, limit in objectives.items() if limit is not None}
    figures = [
        duration,
        *_window(window, requests, inside, duration),
        *_counts(requests, seen),
        *_rates(requests, inside),
        *(figure for name in LATENCIES for figure in _spread(name, inside)),
        *_goodput(inside, limits),
        *_tokens(requests, seen),
        *(replace(figure, name=f"whole_run.{figure.name}") for figure in _beside(requests, whole)),
    ]
    if simulated:
        figures = [replace(figure, status="simulated") for figure in figures]
    kinds = requests["error"][seen.failed].value_counts()
    return Summary(run, state, tuple(figures), {str(kind): int(count) for kind, count in kinds.items()})


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The part of a run that figures are of: the measured window, or the whole run.

    Rates count what came within it: tokens spread over the gap before their arrival, and requests spread over theirs.
    TTFT and lag are those of the requests sent within it; E2E, response and objectives of those that ended within it;
    ITL of the gaps that ended within it; TPOT of each request's gaps within it, if `LEAST_GAPS` or half of all.
    """

    seen: Times
    length_s: float | None
    counts: Mapping[str, float]
    """Completed requests and their tokens, by the names of `tokens.tokens`; `failed`, failed requests."""
    sent: Mask
    ended: Mask
    gaps: Mask
    """Of `seen.gaps_s`."""
    tpot_s: Array
    """Per request; NaN where it has none."""
    basis: Basis
    by_end: NDArray[np.integer]
    """Rows in order of their end. In order of sending, those that ended in a window begin with the longest."""

    @classmethod
    def of_run(cls, requests: pd.DataFrame, seen: Times, length_s: float | None) -> Part:
        kept, done = ordinary(requests), seen.completed
        counts = {
            "request": float(done.sum()),
            "failed": float(seen.failed.sum()),
            "output_token": float(seen.each["output_tokens"][done].sum()),
            "input_token": float(np.nansum(_numbers(requests["input_tokens"])[done])),
        }
        gaps, tpot_s = np.repeat(kept, seen.each["gaps"]), np.where(kept, seen.each["tpot_s"], np.nan)
        return cls(seen, length_s, counts, kept, kept, gaps, tpot_s, Basis(), np.arange(len(kept)))

    @classmethod
    def of_window(cls, requests: pd.DataFrame, seen: Times, window: Window) -> Part:
        begin_s, end_s, kept = window.begin_s, window.end_s, ordinary(requests)
        sent_s, over_s = _numbers(requests["sent_s"]), _numbers(requests["end_s"])
        ended = (over_s > begin_s) & (over_s <= end_s)
        came = between(tokens(requests[seen.completed]), np.array([begin_s, end_s])).iloc[0]
        counts = {str(name): float(count) for name, count in came.items()}
        counts["failed"] = float((ended & seen.failed).sum())
        sent = kept & (sent_s >= begin_s) & (sent_s < end_s)
        shown = seen.completed & (seen.each["hidden_tokens"] == 0).to_numpy()
        arrival_s, sizes = _flat(requests["arrival_s"], shown)
        groups = _flat(requests["arrival_tokens"], shown)[0]
        later = np.ones(len(arrival_s), bool)
        later[(np.cumsum(sizes) - sizes)[sizes > 0]] = False
        owner, gap_end_s = np.repeat(np.arange(len(sizes)), np.maximum(sizes - 1, 0)), arrival_s[later]
        gaps = kept[owner] & (gap_end_s > begin_s) & (gap_end_s <= end_s)
        held, given, passed_s = (
            np.bincount(owner[gaps], weights, len(sizes)) for weights in (None, groups[later][gaps], seen.gaps_s[gaps])
        )
        enough = (held > 0) & (held >= np.minimum(LEAST_GAPS, seen.each["gaps"].to_numpy() / 2))
        # Where the engine counts other tokens than arrived, its count is that of the answer.
        counted = (seen.each["output_tokens"] / seen.each["arrived_tokens"]).to_numpy()
        tpot_s = np.full(len(enough), np.nan)
        tpot_s[enough] = passed_s[enough] / (given * counted)[enough]
        basis = Basis.of(requests, sent, window)
        return cls(
            seen, end_s - begin_s, counts, sent, kept & ended, gaps, tpot_s, basis, np.argsort(over_s, kind="stable")
        )

    def values(self, name: str) -> tuple[Array, NDArray[np.integer]]:
        """The values of one of `LATENCIES`, and the row of the request of each, in order of sending, or of end."""
        if name == "itl_s":
            owner = np.repeat(np.arange(len(self.sent)), self.seen.each["gaps"])
            return self.seen.gaps_s[self.gaps], owner[self.gaps]
        whole = name in ("e2e_s", "response_s")
        kept = self.ended if whole else self.sent
        each = self.tpot_s if name == "tpot_s" else np.where(kept, self.seen.each[name], np.nan)
        rows = self.by_end if whole else np.arange(len(each))
        rows = rows[~np.isnan(each[rows])]
        return each[rows], rows


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """Input of the intervals of rates, means and percentiles; the default gives no interval."""

    why: str | None = "no interval of a whole run"
    """The reason why figures have no interval; None: they have one."""
    time_s: Array = field(default_factory=lambda: np.empty(0))
    """For each request in order of sending: time that it held its slot (closed loop), or until the next one (open)."""
    together: float = 1.0
    """Requests in flight, which shared the engine."""
    group: NDArray[np.int64] | None = None
    """For each request a number of what may depend on itself for any time: its slot, or its conversation."""

    @classmethod
    def of(cls, requests: pd.DataFrame, sent: Mask, window: Window) -> Basis:
        sent_s, over_s = _numbers(requests["sent_s"]), _numbers(requests["end_s"])
        talks = requests["conversation"].notna().any()
        group = _talks(requests) if talks else None
        if not window.closed:
            time_s = np.full(len(sent_s), np.nan)
            time_s[sent] = np.diff(sent_s[sent], append=window.end_s)
            return cls(None, time_s, max(1.0, window.in_flight), group)
        slot = slots(requests, round(window.in_flight))
        if talks:  # a user may think between two turns
            following = pd.Series(sent_s).groupby(slot).shift(-1).to_numpy()
            over_s = np.where(np.isnan(following), over_s, following)
        group = slot if group is None or window.in_flight >= stats.LEAST_GROUPS else group
        return cls(None, over_s - sent_s, max(1.0, window.in_flight), group)

    def bound(
        self, figure: Figure, rows: Mask | NDArray[np.integer], top: Array, bottom: Array | None = None
    ) -> Figure:
        """The figure with the interval of sum(top) / sum(bottom), or with the reason why there is no interval.

        `top` and `bottom` have an element for each of the `rows` of the requests.
        """
        if figure.value is None or self.why is not None:
            return replace(figure, reason=figure.reason or self.why)
        half = stats.ratio_half(top, bottom, self.together, None if self.group is None else self.group[rows])
        if half is None:
            return replace(figure, reason=self.few(len(top)) or "no interval: it would include 0")
        return replace(figure, low=figure.value * (1 - half), high=figure.value * (1 + half))

    def few(self, count: int) -> str | None:
        """The reason why `count` requests have no interval; None if they can have one."""
        if count >= stats.LEAST_BATCHES * self.together:
            return None
        needs = f"needs {stats.LEAST_BATCHES} of {self.together:.3g} requests, has {int(count / self.together)}"
        return f"no interval: too few independent batches: {needs}"

    def between(
        self, p: float, at: float, ordered: Array, values: Array, rows: NDArray[np.integer]
    ) -> tuple[float | None, float | None, str | None]:
        """The ends of the interval of quantile `p`, which is `at`, or the reason why there is none.

        `rows` has the row of the request of each of the values, and `ordered` the values in ascending order.
        """
        if self.why is not None:
            return None, None, self.why
        owners = pd.unique(rows)
        sizes, passed = (np.bincount(rows, each)[owners].astype(float) for each in (None, values > at))
        group = None if self.group is None else self.group[owners]
        n = stats.worth(passed, sizes, self.together, group)
        if n is None:
            return None, None, self.few(len(owners))
        interval = stats.percentile_interval(ordered, p, n)
        few = f"its interval needs {stats.least_n(p)} independent requests, has {n}"
        return (*interval, None) if interval is not None else (None, None, few)


def _talks(requests: pd.DataFrame) -> NDArray[np.int64]:
    """A number for each request's conversation; a request without one is its own."""
    key = requests["conversation"].astype(float).fillna(-1.0 - requests["index"])
    return np.asarray(pd.factorize(key)[0], np.int64)


def slots(requests: pd.DataFrame, users: int) -> NDArray[np.int64]:
    """The slot of each request of a closed loop, in order of sending: the k-th conversation (or single request) after
    the first `users` follows the k-th to end."""
    talk = _talks(requests)
    ends = pd.Series(_numbers(requests["end_s"])).groupby(talk).max().fillna(np.inf).to_numpy()
    ended, slot = np.argsort(ends, kind="stable"), np.arange(len(ends))
    for i in range(users, len(ends)):
        slot[i] = slot[ended[i - users]]
    return np.asarray(slot[talk], np.int64)


def _window(window: Window | None, requests: pd.DataFrame, part: Part, duration: Figure) -> list[Figure]:
    """Where the window lies, and how well its tokens represent those of whole answers."""
    if window is None or duration.value is None:
        reason = duration.reason or "the window was not searched"
        return [Figure(name, None, unit, "measured", reason=reason) for name, unit in WINDOW.items()]
    here, everywhere = mean_position(requests[part.seen.completed], window.begin_s, window.end_s)
    bias = None if window.whole is not None else _bias_of_mix(requests, part, window, here, everywhere)
    values = {
        "window.begin_s": (window.begin_s, None),
        "window.end_s": (window.end_s, None),
        "window.share": ((window.end_s - window.begin_s) / duration.value if duration.value else None, window.whole),
        "window.position_coverage": (here / everywhere if here and everywhere else None, NO_SUCCESS),
        "window.bias": (bias, window.whole or "no measured request began or ended in the window"),
    }
    n = round(part.counts["request"])
    return [
        Figure(name, x, WINDOW[name], "measured", n=n, reason=why if x is None or name == "window.share" else None)
        for name, (x, why) in values.items()
    ]


def _bias_of_mix(
    requests: pd.DataFrame, part: Part, window: Window, here: float | None, everywhere: float | None
) -> float | None:
    """How much rates may be off because the window's tokens are of another mix than those of whole answers.

    Tokens for each first token, against the mean answer: off by the share of a request's time before its first token,
    or, beyond the chance of lengths, by the share of the gaps that the shortest tenth does without: reading prompts.
    The mean context of the tokens: off by up to `CONTEXT_SHARE`. docs/method.md has the simulations.
    """
    each, kept = part.seen.each, ordinary(requests) & part.seen.completed
    begun_s = (requests["sent_s"] + each["ttft_s"])[kept]
    begun = int(begun_s.between(window.begin_s, window.end_s, inclusive="right").sum())
    waits, stays = each["ttft_s"][part.sent].mean(), each["e2e_s"][part.sent].mean()
    if not here or not everywhere or not begun or not stays > 0:
        return None
    answers = each["arrived_tokens"][kept]
    balance = abs(part.counts["output_token"] / (begun * float(answers.mean())) - 1)
    chance = float(answers.std(ddof=0) / answers.mean()) / begun**0.5
    context = (here - everywhere) / (float(requests["input_asked"][kept].mean()) + everywhere)
    gaps_s = part.seen.gaps_s[part.gaps]
    reads = 1 - np.quantile(gaps_s, SHORT) / gaps_s.mean() if len(gaps_s) and gaps_s.any() else 0.0
    off = float(max(balance * waits / stays, (balance - chance) * reads))
    return off + CONTEXT_SHARE * abs(context)


def _sums(values: Array, sizes: NDArray[np.int64]) -> Array:
    """Sum of the values of each row; `sizes` counts a row's values."""
    total, ends = np.concatenate(([0.0], np.cumsum(values))), np.cumsum(sizes)
    return np.asarray(total[ends] - total[ends - sizes])


def _firsts(values: Array, sizes: NDArray[np.int64]) -> Array:
    """First value of each row, NaN for a row without values."""
    return np.where(sizes > 0, np.append(values, np.nan)[np.cumsum(sizes) - sizes], np.nan)


def _flat(column: pd.Series, keep: Mask) -> tuple[Array, NDArray[np.int64]]:
    """All values of a column of lists and the length of each row; rows that are not kept have length 0."""
    values, sizes = flat(column)
    return values[np.repeat(keep, sizes)], np.where(keep, sizes, 0)


def _numbers(column: pd.Series) -> Array:
    return np.asarray(pd.to_numeric(column).to_numpy(float, na_value=np.nan))


def _duration(requests: pd.DataFrame) -> Figure:
    """Time from the first due time to the last sending, arrival or end of any request, failed ones included."""
    if requests.empty:
        return Figure("duration_s", None, "s", "measured", n=0, reason="no request was sent")
    arrival_s, _ = _flat(requests["arrival_s"], requests["end_s"].isna().to_numpy())
    last = np.nanmax(np.concatenate((arrival_s, _numbers(requests["end_s"]), _numbers(requests["sent_s"]))))
    return Figure("duration_s", float(last - requests["scheduled_s"].min()), "s", "measured", n=len(requests))


def _counts(requests: pd.DataFrame, seen: Times) -> list[Figure]:
    """Numbers of measured requests."""
    kept = ordinary(requests)
    sent = int((requests["sent_s"].notna() & kept).sum())
    completed, failed = int((seen.completed & kept).sum()), int((seen.failed & kept).sum())
    counts = {"sent": sent, "completed": completed, "failed": failed, "unfinished": sent - completed - failed}
    return [Figure(f"requests.{name}", count, "requests", "measured", n=sent) for name, count in counts.items()]


def _rates(requests: pd.DataFrame, part: Part) -> list[Figure]:
    """Completed requests and their tokens per second."""
    seen, got = part.seen, part.counts["output_token"]
    _, unknown = _sum(requests["input_tokens"], seen.completed)
    given = None if unknown else part.counts["input_token"]
    outputs, inputs = (
        np.where(seen.completed, x, 0.0)[part.sent]
        for x in (seen.each["output_tokens"], _numbers(requests["input_tokens"]))
    )
    totals = {
        "requests_per_s": (part.counts["request"], "requests/s", seen.completed[part.sent].astype(float), None),
        "output_tokens_per_s": (got, "tokens/s", outputs, None),
        "input_tokens_per_s": (given, "tokens/s", inputs, unknown),
        "total_tokens_per_s": (None if given is None else given + got, "tokens/s", inputs + outputs, unknown),
    }
    n = round(part.counts["request"])
    time_s = part.basis.time_s[part.sent] if len(part.basis.time_s) else None
    return [
        part.basis.bound(_rate(name, total, unit, part.length_s, n, why), part.sent, each, time_s)
        for name, (total, unit, each, why) in totals.items()
    ]


def _beside(requests: pd.DataFrame, whole: Part) -> list[Figure]:
    """Rates and latencies of the whole run, ramp and drain included, without intervals."""
    figures = _rates(requests, whole)
    for name, none in LATENCIES.items():
        ordered = np.sort(whole.values(name)[0])
        n, why = len(ordered), "no interval of a whole run"
        for stat in STATISTICS:
            value = None if n == 0 else float(ordered.mean())
            if n and stat in PERCENTILES:
                value = stats.percentile(ordered, PERCENTILES[stat])
            figures.append(Figure(f"{name}.{stat}", value, "s", "measured", n=n, reason=why if n else none))
    return figures


def _rate(
    name: str, total: float | None, unit: str, duration_s: float | None, completed: int, unknown: str | None = None
) -> Figure:
    """`total` per second; None if the total is unknown, if no request succeeded, or if the duration is 0."""
    if completed and total is not None and duration_s is not None and duration_s > 0:
        return Figure(name, total / duration_s, unit, "measured", n=completed)
    reason = unknown or "the measured part has no length"
    return Figure(name, None, unit, "measured", n=completed, reason=reason if completed else NO_SUCCESS)


def _sum(column: pd.Series, kept: Mask) -> tuple[float | None, str | None]:
    """The total over these requests; None and the reason if the engine did not report it for all of them."""
    values = _numbers(column)[kept]
    known = int((~np.isnan(values)).sum())
    if known < len(values):
        return None, f"the engine counted them for {known} of {len(values)} requests"
    return (float(values.sum()), None) if known else (None, NO_SUCCESS)


def _spread(name: str, part: Part) -> list[Figure]:
    """Mean and percentiles of one of `LATENCIES`. ITL is pooled: the gaps of one request depend on each other."""
    values, rows = part.values(name)
    if len(values) == 0:
        why = HIDDEN if part.seen.each["hidden_tokens"].any() and name in BETWEEN_TOKENS else LATENCIES[name]
        return [Figure(f"{name}.{stat}", None, "s", "measured", n=0, reason=why) for stat in STATISTICS]
    ordered, n = np.sort(values), len(values)
    owners = pd.unique(rows)
    sums, sizes = (np.bincount(rows, each)[owners].astype(float) for each in (values, None))
    mean = Figure(f"{name}.mean", float(values.mean()), "s", "measured", n=n)
    figures = [part.basis.bound(mean, owners, sums, sizes)]
    for stat, p in PERCENTILES.items():
        value = stats.percentile(ordered, p)
        low, high, reason = part.basis.between(p, value, ordered, values, rows)
        figures.append(Figure(f"{name}.{stat}", value, "s", "measured", low, high, n, reason))
    return figures


def _goodput(part: Part, limits: Mapping[str, float]) -> list[Figure]:
    """Requests that met all objectives, per second and as a share of completed and failed ones; then each objective.

    Latencies are those of whole requests, and count from the due time. An answer with one arrival has no gap between
    tokens and meets limits on gaps; of one with hidden tokens the gaps are unknown.
    """
    seen = part.seen
    answered = seen.completed & seen.each["ttft_s"].notna().to_numpy()
    met = {"objectives_met": answered}
    for name, limit in limits.items():
        if name not in OBJECTIVES:
            raise HarnessError(f"unknown objective '{name}'", f"choose from {', '.join(OBJECTIVES)}")
        column = seen.each[OBJECTIVES[name]].to_numpy()
        met[f"objectives_met.{name}"] = answered & ~(column > limit)
    met["objectives_met"] = np.logical_and.reduce(list(met.values()))
    over = part.ended & (seen.completed | seen.failed)
    judged, completed = int(over.sum()), part.counts["request"]
    absent = NO_SUCCESS if not completed else None if judged else "no whole request ended in the window"
    share = {name: None if absent else float(good[over].mean()) for name, good in met.items()}
    # The first wave ends requests too, but its shortened answers are not judged.
    good = (share["objectives_met"] or 0.0) * (completed + part.counts["failed"])
    rate = _rate("goodput_per_s", good, "requests/s", part.length_s, round(completed), absent)
    time_s = part.basis.time_s[part.sent] if len(part.basis.time_s) else None
    rate = part.basis.bound(rate, part.sent, met["objectives_met"][part.sent].astype(float), time_s)
    if not limits:
        absent = "the workload has no objectives"
        rate = replace(rate, value=None, low=None, high=None, reason=absent)
    why: dict[str, str | None] = dict.fromkeys(met, absent)
    if seen.each["hidden_tokens"].any() and (unknown := set(limits) & set(BETWEEN_TOKENS)) and not absent:
        why |= dict.fromkeys(["objectives_met", *(f"objectives_met.{name}" for name in unknown)], HIDDEN)
        rate = replace(rate, value=None, low=None, high=None, reason=HIDDEN)
    shares = {name: None if why[name] else x for name, x in share.items()}
    return [rate, *(Figure(name, x, "share", "measured", n=judged, reason=why[name]) for name, x in shares.items())]


def _tokens(requests: pd.DataFrame, seen: Times) -> list[Figure]:
    """Tokens asked for and received by the completed requests, and the share of gaps between tokens not observed."""
    done = seen.completed & ordinary(requests)
    n, output = int(done.sum()), seen.each["output_tokens"][done]
    totals = {
        "input_tokens.asked": _sum(requests["input_asked"], done),
        "input_tokens.got": _sum(requests["input_tokens"], done),
        "output_tokens.asked": _sum(requests["output_asked"], done),
        "output_tokens.got": (float(output.sum()), None) if n else (None, NO_SUCCESS),
        "cached_tokens": _sum(requests["cached_tokens"], done),
        "hidden_tokens": (float(seen.each["hidden_tokens"][done].sum()), None) if n else (None, NO_SUCCESS),
    }
    between = float(np.maximum(seen.each["arrived_tokens"][seen.completed] - 1, 0).sum())
    unseen = (1 - len(seen.gaps_s) / between, None) if between else (None, "no answer has two tokens")
    return [
        *(Figure(name, value, "tokens", "measured", n=n, reason=why) for name, (value, why) in totals.items()),
        Figure("unseen_gaps", unseen[0], "share", "measured", n=int(between), reason=unseen[1]),
    ]
