"""Counts of tokens and requests over time. Times are seconds since the load began."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.store.rows import flat

Array = NDArray[np.float64]


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

    `output_token`, each group spread over the gap before its arrival, the first from the sending; `input_token`, at
    the first token of the request; `context`, output tokens times the length of their context, spread like them;
    `request`, completed requests; `sent` and `ended`, requests. Tokens of failed requests count, because their energy
    was used.
    """
    (when, sizes), (group, _) = flat(requests["arrival_s"]), flat(requests["arrival_tokens"])
    inputs = requests["input_tokens"].fillna(requests["input_asked"]).to_numpy(float)
    request, first = np.repeat(np.arange(len(sizes)), sizes), (np.cumsum(sizes) - sizes)[sizes > 0]
    before = pd.Series(group).groupby(request).cumsum().to_numpy() - group / 2
    begin = spread_from(requests["sent_s"].to_numpy(float), when, sizes)
    ends_s = requests["end_s"]
    instants = {"request": ends_s[requests["error"].isna()], "sent": requests["sent_s"], "ended": ends_s}
    ones = {name: at.dropna().to_numpy(float) for name, at in instants.items()}
    return {
        "output_token": Events(begin, when, group.astype(float)),
        "context": Events(begin, when, group * (inputs[request] + before)),
        "input_token": Events(when[first], when[first], inputs[sizes > 0]),
        **{name: Events(at, at, np.ones(len(at))) for name, at in ones.items()},
    }


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
