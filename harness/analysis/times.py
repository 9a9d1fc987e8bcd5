"""Latencies of each request of a run, from its rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.analysis.tokens import gaps_within
from harness.store.rows import flat

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
ABORTED = "aborted"
"""Error of a request that was still in flight when the run ended."""
CANCELLED = "cancelled"
"""Error of a request that its user cancelled (`cancel_after_s` in the workload)."""
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
    arrival_s, sizes = flat_of(requests["arrival_s"], completed)
    first = firsts(arrival_s, sizes)
    last = np.where(sizes > 0, np.append(arrival_s, np.nan)[np.cumsum(sizes) - 1], np.nan)
    hidden = np.where(completed, np.nan_to_num(numbers(requests["hidden_tokens"])), 0.0)
    shown = np.where(hidden > 0, 0, sizes)
    gaps_s = gaps_within(arrival_s[np.repeat(hidden == 0, sizes)], shown)
    gaps = np.maximum(shown - 1, 0)
    longest = np.full(len(gaps), np.nan)
    if len(gaps_s):
        longest[gaps > 0] = np.maximum.reduceat(gaps_s, (np.cumsum(gaps) - gaps)[gaps > 0])
    tokens, asked = numbers(requests["output_tokens"]), numbers(requests["output_asked"])
    groups, all_sizes = flat(requests["arrival_tokens"])
    arrived, first_group = sums(groups, all_sizes), firsts(groups, all_sizes)
    believed = tokens <= np.fmax(asked, arrived)
    tokens = np.where(believed, tokens, arrived)
    after_first = tokens * (1 - first_group / np.where(arrived > 0, arrived, np.nan))
    scheduled, sent = numbers(requests["scheduled_s"]), numbers(requests["sent_s"])
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


def sums(values: Array, sizes: NDArray[np.int64]) -> Array:
    """Sum of the values of each row; `sizes` counts a row's values."""
    total, ends = np.concatenate(([0.0], np.cumsum(values))), np.cumsum(sizes)
    return np.asarray(total[ends] - total[ends - sizes])


def firsts(values: Array, sizes: NDArray[np.int64]) -> Array:
    """First value of each row, NaN for a row without values."""
    return np.where(sizes > 0, np.append(values, np.nan)[np.cumsum(sizes) - sizes], np.nan)


def flat_of(column: pd.Series, keep: Mask) -> tuple[Array, NDArray[np.int64]]:
    """All values of a column of lists and the length of each row; rows that are not kept have length 0."""
    values, sizes = flat(column)
    return values[np.repeat(keep, sizes)], np.where(keep, sizes, 0)


def numbers(column: pd.Series) -> Array:
    return np.asarray(pd.to_numeric(column).to_numpy(float, na_value=np.nan))
