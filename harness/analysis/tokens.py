"""Counts of tokens and requests over time. Times are seconds since the load began."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.stats import Array
from harness.store.rows import flat, free

MOST_TOGETHER = 1 << 15
"""Arrivals that are counted together."""
LEAST_STALL_S = 1.0
"""Shortest time without a token that is a stall."""
OUTLIER, RANK = 3.0, 4
"""A stall is this many times as long as the time of this rank: reading long prompts leaves gaps too, of one kind."""


class Events(NamedTuple):
    """Amounts that accrue evenly from `begin_s` to `end_s` (equal: at once), an element an event."""

    begin_s: Array
    end_s: Array
    amount: Array

    def until(self, instants: Array) -> Array:
        """The amount that had accrued at each of the ascending instants, events that end there included.

        >>> Events(np.array([0.0, 1.0]), np.array([4.0, 1.0]), np.array([8.0, 1.0])).until(np.array([0.0, 1.0, 9.0]))
        array([0., 3., 9.])
        """
        order = np.argsort(self.end_s, kind="stable")
        ended = np.concatenate(([0.0], np.cumsum(self.amount[order])))
        whole = ended[np.searchsorted(self.end_s[order], instants, side="right")]
        # Events that have begun but not ended at an instant: few, since an instant meets one gap of each request.
        first = np.searchsorted(instants, self.begin_s, side="right")
        met = np.maximum(np.searchsorted(instants, self.end_s, side="left") - first, 0)
        event = np.repeat(np.arange(len(met)), met)
        at = np.arange(len(event)) - np.repeat(np.cumsum(met) - met, met) + first[event]
        passed = (instants[at] - self.begin_s[event]) / (self.end_s - self.begin_s)[event]
        return np.asarray(whole + np.bincount(at, self.amount[event] * passed, len(instants)))


def tokens(requests: pd.DataFrame) -> Mapping[str, Events]:
    """What a run counts, by name. `requests` has the columns of model.Record.

    `output_token`, each group spread over the gap before its arrival, the first from the sending; `context`, output
    tokens times the length of their context, spread like them; `input_token`, at the first token of the request;
    `request`, completed requests, each spread over its tokens; `sent` and `ended`, requests. Tokens of failed requests
    count, because their energy was used.
    """
    output, sizes = output_tokens(requests), flat(requests["arrival_s"])[1]
    begin, when, group = output
    inputs = requests["input_tokens"].fillna(requests["input_asked"]).to_numpy(float)
    request, first = np.repeat(np.arange(len(sizes)), sizes), (np.cumsum(sizes) - sizes)[sizes > 0]
    before = pd.Series(group).groupby(request).cumsum().to_numpy() - group / 2
    ends_s = requests["end_s"]
    ones = {name: at.dropna().to_numpy(float) for name, at in (("sent", requests["sent_s"]), ("ended", ends_s))}
    completed = (requests["error"].isna() & ends_s.notna()).to_numpy(bool)
    answers, bare_s = np.bincount(request, group, len(sizes)), ends_s[completed & (sizes == 0)].to_numpy(float)
    part = np.where(completed, 1.0, 0.0)[request] * group / np.maximum(answers, 1)[request]
    return {
        "output_token": output,
        "context": Events(begin, when, group * (inputs[request] + before)),
        "request": Events(
            *(np.append(a, b) for a, b in ((begin, bare_s), (when, bare_s), (part, np.ones(len(bare_s)))))
        ),
        "input_token": Events(when[first], when[first], inputs[sizes > 0]),
        **{name: Events(at, at, np.ones(len(at))) for name, at in ones.items()},
    }


def ordinary(requests: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether each request is measured. The first wave of an equilibrium start, which has an age, is load only."""
    return np.array(requests["age_tokens"].isna())


def output_tokens(requests: pd.DataFrame) -> Events:
    """The output tokens alone."""
    (when, sizes), (group, _) = flat(requests["arrival_s"]), flat(requests["arrival_tokens"])
    return Events(spread_from(requests["sent_s"].to_numpy(float), when, sizes), when, group)


def in_flight(requests: pd.DataFrame, begin_s: float, end_s: float) -> NDArray[np.bool_]:
    """Whether each request was in flight between two instants."""
    return np.array((requests["sent_s"] < end_s) & ~(requests["end_s"] <= begin_s))


def within(requests: pd.DataFrame, begin_s: float, end_s: float) -> pd.DataFrame:
    """The requests in flight between two instants. Those sent before are load only, as a first wave."""
    found = requests[in_flight(requests, begin_s, end_s)]
    ages = found["age_tokens"].fillna(0).where(found["sent_s"] < begin_s, found["age_tokens"])
    return found.assign(sent_s=found["sent_s"].clip(lower=begin_s), age_tokens=ages)


def by_conversation(each: pd.DataFrame, requests: pd.DataFrame) -> pd.DataFrame:
    """A row a conversation, or single request, of columns with a row a request: busy from first sending to last end."""
    talk = requests["conversation"]
    if talk.isna().all():
        return each
    how = {"sent_s": "min", "end_s": "max", "age_tokens": "max", "failed": "any", "first_s": "min"}
    by = each.groupby(talk.astype(float).fillna(-1.0 - requests["index"]))
    return by.agg({name: do for name, do in how.items() if name in each})


def blocks(requests: pd.DataFrame, kept: NDArray[np.bool_] | None = None) -> Iterator[pd.DataFrame]:
    """The requests, or those that are kept, in parts whose tokens together take little memory; at least one part."""
    size = max(1, MOST_TOGETHER // max(1, int(flat(requests["arrival_s"].iloc[:1000])[1].sum() / 1000)))
    for first in range(0, max(1, len(requests)), size):
        part = slice(first, first + size)
        yield requests.iloc[part] if kept is None else those(requests.iloc[part], kept[part])
    free()


def those(requests: pd.DataFrame, kept: NDArray[np.bool_]) -> pd.DataFrame:
    """Some of the requests; without a copy if they are all."""
    return requests if kept.all() else requests[kept]


def mean_position(
    requests: pd.DataFrame, begin_s: float, end_s: float, kept: NDArray[np.bool_] | None = None
) -> tuple[float | None, float | None]:
    """Mean position in their answers of the tokens that arrived within the time, and of all tokens of all answers.

    Positions count from 1, in the first wave from the answer's begin before the run. An answer of the first wave was
    drawn in proportion to its length, and counts as much as a mean one. None where there is no token.
    """
    total, count, lengths, before, measured = 0.0, 0.0, list[Array](), list[Array](), list[NDArray[np.bool_]]()
    for each in blocks(requests, kept):
        (when, sizes), (group, _) = flat(each["arrival_s"]), flat(each["arrival_tokens"])
        request, ages = np.repeat(np.arange(len(sizes)), sizes), each["age_tokens"].fillna(0).to_numpy(float)
        position = pd.Series(group).groupby(request).cumsum().to_numpy(float) - (group - 1) / 2 + ages[request]
        inside = (when > begin_s) & (when <= end_s)
        total, count = total + float((position * group)[inside].sum()), count + float(group[inside].sum())
        lengths.append(np.asarray(np.bincount(request, group, len(sizes)), float))
        before.append(ages)
        measured.append(ordinary(each))
    answers, own = np.concatenate(lengths), np.concatenate(measured)
    weights = np.where(own, answers, answers[own].mean() if own.any() else 0.0)
    everywhere = (weights * (answers + np.concatenate(before) + 1) / 2).sum()
    return total / count if count else None, float(everywhere / weights.sum()) if weights.sum() else None


def spread_from(sent_s: Array, arrival_s: Array, sizes: NDArray[np.int64]) -> Array:
    """The instant before each arrival from which its tokens accrue: the request's previous arrival, or its sending.

    `sizes` counts the arrivals of each request; `arrival_s` holds them request by request.
    """
    begin = np.roll(arrival_s, 1)
    begin[(np.cumsum(sizes) - sizes)[sizes > 0]] = sent_s[sizes > 0]
    return np.asarray(np.minimum(begin, arrival_s))


def counted(requests: pd.DataFrame, instants: Array, kept: NDArray[np.bool_] | None = None) -> pd.DataFrame:
    """Every count at each of the ascending instants, a column a count; the events at that instant are included."""
    parts = (
        pd.DataFrame({name: events.until(instants) for name, events in tokens(each).items()})
        for each in blocks(requests, kept)
    )
    return sum(parts, next(parts))


def between(requests: pd.DataFrame, cuts: Array, kept: NDArray[np.bool_] | None = None) -> pd.DataFrame:
    """The increase of each count between successive instants."""
    return counted(requests, cuts, kept).diff().iloc[1:]


def output_until(requests: pd.DataFrame, instants: Array, kept: NDArray[np.bool_] | None = None) -> Array:
    """The output tokens at each of the ascending instants, as `counted`."""
    return np.asarray(sum(output_tokens(each).until(instants) for each in blocks(requests, kept)))


class Gaps(NamedTuple):
    """Gaps between successive arrivals of each of some requests, request by request."""

    seconds: Array
    tokens: Array
    """Tokens that arrived at the end of each gap."""
    owner: NDArray[np.int64]
    """The place of its request among these."""
    requests: int

    def sums(self, weights: Array | NDArray[np.bool_] | None = None) -> Array:
        """Sum of the weights of each request's gaps, or their number."""
        return np.asarray(np.bincount(self.owner, weights, self.requests), float)


def gaps(
    requests: pd.DataFrame, kept: NDArray[np.bool_], begin_s: float = -np.inf, end_s: float = np.inf
) -> Iterator[Gaps]:
    """Gaps that end within a time, of all requests in order of the rows, some at a time; none of those not kept."""
    first = 0
    for each in blocks(requests):
        yield gaps_of(each, kept[first : first + len(each)], begin_s, end_s)
        first += len(each)


def gaps_of(requests: pd.DataFrame, kept: NDArray[np.bool_], begin_s: float, end_s: float) -> Gaps:
    (when, sizes), (group, _) = flat(requests["arrival_s"]), flat(requests["arrival_tokens"])
    inside = (when > begin_s) & (when <= end_s) & np.repeat(kept, sizes)
    inside[(np.cumsum(sizes) - sizes)[sizes > 0]] = False  # the first arrival of a request ends no gap
    owner = np.repeat(np.arange(len(sizes)), sizes)[inside]
    return Gaps(np.diff(when, prepend=0.0)[inside], group[inside], owner, len(sizes))


def step_s(requests: pd.DataFrame) -> float:
    """Median gap between a request's tokens, the uncertainty of a window's edge in tokens; 0 without gaps."""
    seconds = np.concatenate([each.seconds for each in gaps(requests, np.ones(len(requests), bool))])
    return float(np.median(seconds, overwrite_input=True)) if len(seconds) else 0.0


def stalls(requests: pd.DataFrame, borders_s: Sequence[float] = ()) -> Array:
    """(begin, end) rows of the times in which requests were in flight and no token of any request arrived.

    Only those that stand out from the other times between tokens, of the same step of a load where `borders_s` has the
    steps' begins. A request that is sent or ends is no token.
    """
    sent, ends = (np.sort(requests[name].dropna().to_numpy(float)) for name in ("sent_s", "end_s"))
    if not len(sent):
        return np.empty((0, 2))
    # A time begins with a token, or with the first request after the engine had none.
    idle = np.searchsorted(sent, sent, side="left") == np.searchsorted(ends, sent, side="right")
    arrivals = [flat(each["arrival_s"])[0] for each in blocks(requests)]
    times_s = np.concatenate((*arrivals, sent[idle], [np.inf]))
    del arrivals
    times_s.sort()
    times_s[-1] = max(ends[-1] if len(ends) else sent[-1], sent[-1])
    parts = range(0, len(times_s), MOST_TOGETHER)
    at = np.concatenate([
        first + np.flatnonzero(np.diff(times_s[first : first + MOST_TOGETHER + 1]) > LEAST_STALL_S / OUTLIER)
        for first in parts
    ])  # fmt: skip
    begins, until = times_s[at], times_s[at + 1]
    # It ends with the next token, or when no request is in flight any more.
    over = np.append(ends, np.inf)[np.searchsorted(ends, begins)]
    busy = np.searchsorted(sent, begins, side="right") > np.searchsorted(ends, begins, side="right")
    free = np.searchsorted(sent, until, side="left") == np.searchsorted(ends, until, side="left")
    until = np.where(free, np.minimum(until, over), until)
    length_s = np.where(busy, until - begins, 0.0)
    usual_s = np.full(len(length_s), _usual(length_s))
    step_of, sent_in = (np.searchsorted(borders_s, each, side="right") for each in (begins, sent))
    for step in np.unique(step_of) if len(borders_s) else ():
        if (sent_in == step).sum() >= RANK:  # fewer do not tell what is usual
            usual_s[step_of == step] = _usual(length_s[step_of == step])
    long = length_s > np.maximum(LEAST_STALL_S, OUTLIER * usual_s)
    return np.column_stack((begins[long], until[long]))


def _usual(length_s: Array) -> float:
    return float(np.sort(length_s)[-RANK]) if len(length_s) >= RANK else 0.0
