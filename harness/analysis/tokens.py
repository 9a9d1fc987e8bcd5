"""Counts of tokens and requests over time. Times are seconds since the load began."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.stats import Array
from harness.store.rows import flat

MOST_TOGETHER = 1_000_000
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


Counts = Mapping[str, Events]


def tokens(requests: pd.DataFrame) -> Counts:
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
    part = np.where(completed, 1.0, 0.0)[request] * group / answers[request]
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


def blocks(requests: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The requests in parts whose tokens together take little memory."""
    size = max(1, MOST_TOGETHER // max(1, int(flat(requests["arrival_s"].iloc[:1000])[1].sum() / 1000)))
    for first in range(0, max(1, len(requests)), size):
        yield requests.iloc[first : first + size]


def those(requests: pd.DataFrame, kept: NDArray[np.bool_]) -> pd.DataFrame:
    """Some of the requests; without a copy if they are all."""
    return requests if kept.all() else requests[kept]


def mean_position(requests: pd.DataFrame, begin_s: float, end_s: float) -> tuple[float | None, float | None]:
    """Mean position in their answers of the tokens that arrived within the time, and of all tokens of all answers.

    Positions count from 1, in the first wave from the answer's begin before the run. An answer of the first wave was
    drawn in proportion to its length, and counts as much as a mean one. None where there is no token.
    """
    (when, sizes), (group, _) = flat(requests["arrival_s"]), flat(requests["arrival_tokens"])
    request, ages = np.repeat(np.arange(len(sizes)), sizes), requests["age_tokens"].fillna(0).to_numpy(float)
    position = pd.Series(group).groupby(request).cumsum().to_numpy(float) - (group - 1) / 2 + ages[request]
    inside = (when > begin_s) & (when <= end_s)
    here = float((position * group)[inside].sum() / group[inside].sum()) if inside.any() else None
    answers = np.bincount(request, group, len(sizes))
    measured = ordinary(requests)
    weights = np.where(measured, answers, answers[measured].mean() if measured.any() else 0.0)
    everywhere = float((weights * (answers + ages + 1) / 2).sum() / weights.sum()) if weights.sum() else None
    return here, everywhere


def spread_from(sent_s: Array, arrival_s: Array, sizes: NDArray[np.int64]) -> Array:
    """The instant before each arrival from which its tokens accrue: the request's previous arrival, or its sending.

    `sizes` counts the arrivals of each request; `arrival_s` holds them request by request.
    """
    begin = np.roll(arrival_s, 1)
    begin[(np.cumsum(sizes) - sizes)[sizes > 0]] = sent_s[sizes > 0]
    return np.asarray(np.minimum(begin, arrival_s))


def counted(counts: Counts, instants: Array) -> pd.DataFrame:
    """Every count at each of the ascending instants, a column a count; the events at that instant are included."""
    return pd.DataFrame({name: events.until(instants) for name, events in counts.items()})


def between(counts: Counts, cuts: Array) -> pd.DataFrame:
    """The increase of each count between successive instants."""
    return counted(counts, cuts).diff().iloc[1:]


def step_s(requests: pd.DataFrame) -> float:
    """Median gap between a request's tokens, the uncertainty of a window's edge in tokens; 0 without gaps."""
    gaps = gaps_within(*flat(requests["arrival_s"]))
    return float(np.median(gaps)) if len(gaps) else 0.0


def gaps_within(arrival_s: Array, sizes: NDArray[np.int64]) -> Array:
    """Gaps between the successive arrivals of each request, request by request; `sizes` counts a request's arrivals."""
    inner = np.ones(len(arrival_s), bool)
    inner[(np.cumsum(sizes) - sizes)[sizes > 0]] = False  # the first arrival of a request ends no gap
    return np.diff(arrival_s, prepend=0.0)[inner]


def stalls(requests: pd.DataFrame) -> Array:
    """(begin, end) rows of the times in which requests were in flight and no token of any request arrived.

    Only those that stand out from the other times between tokens. A request that is sent or ends is no token.
    """
    sent, ends = (np.sort(requests[name].dropna().to_numpy(float)) for name in ("sent_s", "end_s"))
    if not len(sent):
        return np.empty((0, 2))
    arrival_s = np.sort(flat(requests["arrival_s"])[0])
    # A time begins with a token, or with the first request after the engine had none.
    idle = np.searchsorted(sent, sent, side="left") == np.searchsorted(ends, sent, side="right")
    begins = np.sort(np.concatenate((arrival_s, sent[idle])))
    last = float(max(ends[-1] if len(ends) else sent[-1], sent[-1]))
    until = np.append(begins[1:], last)
    # It ends with the next token, or when no request is in flight any more.
    over = np.append(ends, np.inf)[np.searchsorted(ends, begins)]
    busy = np.searchsorted(sent, begins, side="right") > np.searchsorted(ends, begins, side="right")
    free = np.searchsorted(sent, until, side="left") == np.searchsorted(ends, until, side="left")
    until = np.where(free, np.minimum(until, over), until)
    length_s = np.where(busy, until - begins, 0.0)
    usual_s = np.sort(length_s)[-RANK] if len(length_s) >= RANK else 0.0
    long = length_s > max(LEAST_STALL_S, OUTLIER * float(usual_s))
    return np.column_stack((begins[long], until[long]))
