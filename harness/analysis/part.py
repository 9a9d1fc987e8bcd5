"""The part of a run that figures are of, and what their intervals rest on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness import stats
from harness.analysis.times import Array, Mask, Times, numbers
from harness.analysis.tokens import Gaps, between, blocks, gaps, ordinary, spread_from
from harness.analysis.window import Window
from harness.model import Figure
from harness.store.rows import flat, free

LEAST_SLICES, MOST_SLICES = 8, 2000
"""Least and most parts of the window, each about a request time, whose counts tell the variance of rates."""
SEVERAL = 5
"""Batches of requests in flight that give most figures an interval."""
STAMP_S = 1e-9
"""Latencies that differ by less are equal."""
MOST_WEIGHT = 4.0
"""Largest weight of a request that ended in the window: the longest could end in a quarter of it only."""
WIDEST = 0.5
"""Largest half-width of an interval, relative to the value: a wider one tells no more than that too few were seen."""
FURTHER = 2.0
"""Requests as far from the mean as the furthest that the interval of a mean leaves room for on that side: those of a
heavy tail come too seldom for a spread to tell."""
OF_THE_END = "e2e_s", "response_s"
"""Latencies of whole requests that end in the window, not of those sent in it."""
LEAST_GAPS = 20
"""Gaps within the window that give a request with others outside a TPOT; half of its gaps are enough too."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The part of a run that figures are of: the measured window, or the whole run.

    Rates count what came within it: tokens spread over the gap before their arrival, and requests spread over theirs.
    TTFT and lag are those of the requests sent within it; E2E, response and objectives of those that ended within it
    (`_whole`); ITL of the gaps that ended within it; TPOT of each request's gaps within it, if `LEAST_GAPS` or half of
    all.
    """

    seen: Times
    length_s: float | None
    counts: Mapping[str, float]
    """Completed requests and their tokens, by the names of `tokens.tokens`; `failed`, failed requests."""
    slices: pd.DataFrame
    """The same counts, but of failed ones, in equal parts of the window."""
    cuts: Array
    """Where the parts begin and end."""
    sent: Mask
    ended: Mask
    whole: Mask
    """The requests that E2E, response and objectives are of."""
    outlasts: Mask
    """Those of them that take longer than the window can show."""
    gaps: Callable[[], Iterator[Gaps]]
    """The gaps within the part, of all requests in order of the rows, some at a time."""
    tpot_s: Array
    """Per request; NaN where it has none."""
    basis: Basis
    over_s: Array
    """End of each request."""

    @classmethod
    def of_run(cls, requests: pd.DataFrame, seen: Times, length_s: float | None) -> Part:
        kept, done = ordinary(requests), seen.completed
        counts = {
            "request": float(done.sum()),
            "failed": float(seen.failed.sum()),
            "output_token": float(seen.output_tokens[done].sum()),
            "input_token": float(np.nansum(numbers(requests["input_tokens"])[done])),
        }
        shown = kept & done & (seen.hidden_tokens == 0)
        tpot_s = seen.tpot_s if kept.all() else np.where(kept, seen.tpot_s, np.nan)
        within, over_s = partial(gaps, requests, shown), numbers(requests["end_s"])
        masks = kept, kept, kept, np.zeros(len(kept), bool)
        return cls(seen, length_s, counts, pd.DataFrame(), np.empty(0), *masks, within, tpot_s, Basis(), over_s)

    @classmethod
    def of_window(cls, requests: pd.DataFrame, seen: Times, window: Window) -> Part:
        begin_s, end_s, kept = window.begin_s, window.end_s, ordinary(requests)
        over_s = numbers(requests["end_s"])
        ended = (over_s > begin_s) & (over_s <= end_s)
        sent = kept & (seen.sent_s >= begin_s) & (seen.sent_s < end_s)
        whole, outlasts, weight = _whole(requests, kept & ended, window)
        basis = Basis.of(requests, sent, window, weight)
        cuts = np.linspace(begin_s, end_s, round(np.clip(basis.batches, LEAST_SLICES, MOST_SLICES)) + 1)
        slices = between(requests, cuts, seen.completed)
        counts = {str(name): float(count) for name, count in slices.sum().items()}
        counts["failed"] = float((ended & seen.failed).sum())
        within = partial(gaps, requests, kept & seen.completed & (seen.hidden_tokens == 0), begin_s, end_s)
        sums = ((each.sums(), each.sums(each.tokens), each.sums(each.seconds)) for each in within())
        held, given, passed_s = map(np.concatenate, zip(*sums, strict=True))
        free()
        # Where the engine counts other tokens than arrived, its count is that of the answer.
        given *= np.divide(
            seen.output_tokens, seen.arrived_tokens, out=np.zeros(len(held)), where=seen.arrived_tokens > 0
        )
        enough = (held >= np.minimum(LEAST_GAPS, seen.gaps / 2)) & (given > 0)
        tpot_s = np.divide(passed_s, given, out=np.full(len(held), np.nan), where=enough)
        masks = sent, kept & ended, whole, outlasts
        return cls(seen, end_s - begin_s, counts, slices, cuts, *masks, within, tpot_s, basis, over_s)

    def values(self, name: str) -> Iterator[tuple[Array, NDArray[np.int64]]]:
        """The values of one of `LATENCIES`, some at a time, and the row of the request of each.

        They are in order of sending, or of end (of those that outlast the window, of sending: they end outside);
        those of one request stand together.
        """
        if name == "itl_s":
            first = 0
            for some in self.gaps():
                yield some.seconds, some.owner + first
                first += some.requests
            return
        whole = name in OF_THE_END
        kept = self.whole if whole else self.sent
        each = self.tpot_s if name == "tpot_s" else np.where(kept, self.seen[name], np.nan)
        at_s = np.where(self.outlasts, self.seen.sent_s, self.over_s)
        rows = np.argsort(at_s, kind="stable") if whole else np.arange(len(each))
        rows = rows[~np.isnan(each[rows])].astype(np.int32)
        yield each[rows], rows

    def ordered(self, name: str) -> tuple[Array, Array | None]:
        """The values in ascending order, and their weights; None: all are equal."""
        if name in OF_THE_END:
            ((values, rows),) = self.values(name)
            order, weights = np.argsort(values), self.weights(name, rows)
            return values[order], None if weights is None else weights[order]
        most = int(self.seen.gaps.sum()) if name == "itl_s" else len(self.sent)
        found, count = np.empty(most), 0
        for values, _ in self.values(name):
            found[count : count + len(values)] = values
            count += len(values)
        found = found[:count]
        found.sort()
        return found, None

    def weights(self, name: str, rows: NDArray[np.int64]) -> Array | None:
        """The weights of values of these requests; None: all are equal."""
        if name not in OF_THE_END or not len(self.basis.weight) or not len(rows):
            return None
        weights = self.basis.weight[rows]
        return weights if np.ptp(weights) > 0 else None

    def shown(self, name: str) -> float:
        """Share of the values of one of `LATENCIES` that are not of requests that outlast the window."""
        if name not in OF_THE_END or not self.outlasts.any():
            return 1.0
        ((_, rows),) = self.values(name)
        return 1.0 - self.share(self.outlasts, rows)

    def share(self, mask: Mask, rows: NDArray[np.int64]) -> float:
        """Share of these rows, of whole requests, for which the mask holds, by their weights."""
        return float(np.average(mask[rows], weights=self.weights(OF_THE_END[0], rows)))

    def by_request(self, name: str, limits: Sequence[float]) -> tuple[NDArray[Any], ...]:
        """Rows of requests with values; the total weight of each, then of the values, and of those above each limit."""
        most = np.min_scalar_type(int(self.seen.gaps.max(initial=1)))  # of the values of a request
        counts = np.dtype(float) if name in OF_THE_END and len(self.basis.weight) else most
        kinds = [np.dtype(np.int32), counts, np.dtype(float), *[counts] * len(limits)]
        found, count = [np.empty(len(self.sent), kind) for kind in kinds], 0
        for values, rows in self.values(name):
            firsts, weights = np.flatnonzero(np.diff(rows, prepend=-1)), self.weights(name, rows)
            place = slice(count, count + len(firsts))
            found[0][place] = rows[firsts]
            amounts = itertools.chain([np.ones(len(values), bool), values], (values > x + STAMP_S for x in limits))
            for column, each in zip(found[1:], amounts, strict=True):
                each = each if weights is None else each * weights
                np.add.reduceat(each, firsts, dtype=column.dtype, out=column[place])
            count = place.stop
        return tuple(column[:count] for column in found)

    def by_chance(self, name: str, rows: NDArray[np.int64], top: Array, sizes: Array) -> Array:
        """The totals less what the start of the run makes of them: of the requests that ended early all are short."""
        if self.weights(name, rows) is None:
            return top
        stay_s = self.seen["e2e_s"][rows]
        order = np.argsort(stay_s).astype(np.int32)
        at = np.searchsorted(stay_s[order], self.over_s[rows] - np.nanmin(self.seen.sent_s), side="right")
        at = np.where(self.outlasts[rows], len(rows), at).astype(np.int32)  # these could end at any time
        del stay_s
        errors = top - top.sum() / sizes.sum() * sizes
        expected = np.append(0.0, np.cumsum((sizes * errors)[order]))[at]
        expected /= np.maximum(np.append(0.0, np.cumsum(sizes[order])), 1e-300)[at]
        return np.asarray(top - (expected - expected.mean()))


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """Input of the intervals of rates, means and percentiles; the default gives no interval."""

    why: str | None = "no interval of a whole run"
    """The reason why figures have no interval; None: they have one."""
    together: float = 1.0
    """Requests in flight, which shared the engine."""
    group: NDArray[np.int64] | None = None
    """For each request a number of what may depend on itself for any time: its slot, or its conversation."""
    talk: NDArray[np.int64] | None = None
    """The number of each request's conversation, in a load of conversations: a tail can be a few whole ones."""
    sent: int = 0
    """Requests that were sent in the window."""
    time_s: Array = field(default_factory=lambda: np.empty(0))
    """Of each request, time in the window that it held its slot (closed loop), or `share` (open)."""
    share: Array = field(default_factory=lambda: np.empty(0))
    """Share of the tokens of each request that came in the window."""
    weight: Array = field(default_factory=lambda: np.empty(0))
    """Of each whole request, as in `_whole`. Empty: all are 1."""

    @property
    def batches(self) -> float:
        """Number of times that the requests in flight were replaced."""
        return self.sent / self.together

    @classmethod
    def of(cls, requests: pd.DataFrame, sent: Mask, window: Window, weight: Array) -> Basis:
        sent_s, over_s = numbers(requests["sent_s"]), numbers(requests["end_s"])
        talks = requests["conversation"].notna().any()
        talk, together = _talks(requests) if talks else None, max(1.0, window.in_flight)
        share = np.concatenate([_share_within(each, window.begin_s, window.end_s) for each in blocks(requests)])
        if not window.closed:
            return cls(None, together, talk, talk, int(sent.sum()), share, share, weight)
        slot = slots(requests, round(window.in_flight))
        if talks:  # a user may think between two turns
            following = pd.Series(sent_s).groupby(slot).shift(-1).to_numpy()
            over_s = np.where(np.isnan(following), over_s, following)
        group = slot if talk is None or window.in_flight >= stats.LEAST_GROUPS else talk
        time_s = np.clip(over_s, window.begin_s, window.end_s) - np.clip(sent_s, window.begin_s, window.end_s)
        return cls(None, together, group, talk, int(sent.sum()), np.nan_to_num(time_s), share, weight)

    def rate(self, figure: Figure, slices: Array, each: Array) -> Figure:
        """The figure, a rate, with its interval, or with the reason for none.

        `slices`: the counts in equal parts of the window; `each`: what each request of the run gave.
        """
        if figure.value is None or self.why is not None:
            return replace(figure, reason=figure.reason or self.why)
        given = np.nan_to_num(each) * self.share
        errors = given - given.sum() / max(self.time_s.sum(), 1e-300) * self.time_s
        here = self.time_s > 0
        group = None if self.group is None else self.group[here]
        half = (
            stats.rate_half(slices, self.batches, errors[here], group) if self.sent >= stats.least_values(1) else None
        )
        return self._bounded(figure, half, self.sent)

    def mean(self, figure: Figure, rows: NDArray[np.integer], top: Array, bottom: Array) -> Figure:
        """The figure with the interval of sum(top) / sum(bottom), or with the reason why there is no interval.

        `top` and `bottom` have an element for each of the `rows` of the requests.
        """
        if figure.value is None or self.why is not None:
            return replace(figure, reason=figure.reason or self.why)
        half = stats.ratio_half(top, bottom, self.together, None if self.group is None else self.group[rows])
        if half is None:
            return self._bounded(figure, None, len(top))
        errors = top / top.sum()
        errors -= bottom / bottom.sum()
        return self._bounded(figure, half, len(top), (-FURTHER * float(errors.min()), FURTHER * float(errors.max())))

    def between(
        self, p: float, ordered: Array, weights: Array | None, owners: NDArray[np.integer], passed: Array, sizes: Array
    ) -> tuple[float | None, float | None, str | None]:
        """The ends of the interval of quantile `p`, or the reason why there is none.

        `ordered` has the values in ascending order, with their weights; `passed` the weight of those of each owner that
        are above the quantile, `sizes` of all.
        """
        if self.why is not None:
            return None, None, self.why
        half = stats.share_half(passed, sizes, self.together, None if self.group is None else self.group[owners])
        if half is not None:
            beyond = None if self.talk is None else np.bincount(self.talk[owners], passed).max() / sizes.sum()
            interval = stats.percentile_interval(ordered, p, half, len(owners), weights, beyond)
            if interval is not None:
                return *interval, None
        if half is None or len(owners) < SEVERAL * self.together:
            return None, None, self._lacks(len(owners))
        n = int(min(stats.independent(p, half), len(owners)))
        return None, None, f"its interval needs {stats.least_n(p)} independent requests, has {n}"

    def _lacks(self, count: int) -> str:
        needs = f"needs {SEVERAL} independent batches of {self.together:.3g} requests, has {int(count / self.together)}"
        return f"no interval: {needs}"

    def _bounded(
        self, figure: Figure, half: float | None, count: int, beyond: tuple[float, float] = (0.0, 0.0)
    ) -> Figure:
        """The figure with the interval of this relative half-width, and so much further below and above."""
        if half is None or figure.value is None or half + beyond[0] > WIDEST:
            few, wide = count < SEVERAL * self.together, f"no interval: it would be wider than ±{WIDEST:.0%}"
            return replace(figure, reason=self._lacks(count) if few else wide)
        low, high = figure.value * (1 - half - beyond[0]), figure.value * (1 + half + beyond[1])
        return replace(figure, low=low, high=high)


def _whole(requests: pd.DataFrame, ended: Mask, window: Window) -> tuple[Mask, Mask, Array]:
    """The requests that E2E, response and objectives are of, those of them that outlast the window, and their weights.

    None was sent before the load began, so a long one can end in a part of the window only. One that ended in it counts
    for the window's length over that part. Where that would be more than `MOST_WEIGHT`, all count that were sent before
    the window's end, whenever they ended. After a burst, whose first requests are long ones too, all that ended in the
    window count alike: their weights are empty.
    """
    sent_s, over_s, kept = numbers(requests["sent_s"]), numbers(requests["end_s"]), ordinary(requests)
    if window.closed and kept.all():
        return ended, np.zeros(len(kept), bool), np.empty(0)
    length_s, since_s = window.end_s - window.begin_s, window.end_s - float(np.nanmin(sent_s))
    could_s = np.nan_to_num(since_s - (over_s - sent_s))
    outlasts = kept & (could_s < length_s / MOST_WEIGHT) & (sent_s < window.end_s)
    weight = length_s / np.where(outlasts, since_s, np.clip(could_s, length_s / MOST_WEIGHT, length_s))
    return outlasts | (ended & (could_s >= length_s / MOST_WEIGHT)), outlasts, weight


def _talks(requests: pd.DataFrame) -> NDArray[np.int64]:
    """A number for each request's conversation; a request without one is its own."""
    if requests["conversation"].isna().all():
        return np.arange(len(requests))
    key = requests["conversation"].astype(float).fillna(-1.0 - requests["index"])
    return np.asarray(pd.factorize(key)[0], np.int64)


def _share_within(requests: pd.DataFrame, begin_s: float, end_s: float) -> Array:
    """Share of each request's tokens in a time; each group of tokens is spread over the gap before it."""
    (when, sizes), (groups, _) = flat(requests["arrival_s"]), flat(requests["arrival_tokens"])
    since, owner = spread_from(numbers(requests["sent_s"]), when, sizes), np.repeat(np.arange(len(sizes)), sizes)
    gap_s = np.maximum(when - since, 1e-9)
    within = np.clip((np.minimum(when, end_s) - np.maximum(when - gap_s, begin_s)) / gap_s, 0.0, 1.0)
    total = np.bincount(owner, groups, len(sizes))
    return np.asarray(np.bincount(owner, groups * within, len(sizes)) / np.where(total > 0, total, 1.0))


def slots(requests: pd.DataFrame, users: int) -> NDArray[np.int64]:
    """The slot of each request of a closed loop, in order of sending: the k-th conversation (or single request) after
    the first `users` follows the k-th to end."""
    talk = _talks(requests)
    ends = np.full(int(talk.max(initial=-1)) + 1, -np.inf)
    np.fmax.at(ends, talk, numbers(requests["end_s"]))
    ends[np.isneginf(ends)] = np.inf
    ended, slot = np.argsort(ends, kind="stable"), np.arange(len(ends))
    for i in range(users, len(ends)):
        slot[i] = slot[ended[i - users]]
    return np.asarray(slot[talk], np.int64)
