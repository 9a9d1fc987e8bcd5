"""Latencies of each request of a run, from its rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.analysis.tokens import blocks, gaps_of
from harness.store.rows import flat, free
from harness.store.run import Run

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
"""Objective -> the latency of a request that the objective limits."""
SPANS: Mapping[str, tuple[str, str]] = {
    "ttft_s": ("first_s", "sent_s"),
    "e2e_s": ("last_s", "sent_s"),
    "response_s": ("last_s", "scheduled_s"),
    "lag_s": ("sent_s", "scheduled_s"),
    "first_response_s": ("first_s", "scheduled_s"),
}
"""Latency -> the instants at its end and at its begin."""


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """Latencies of each request, in the order of the rows; NaN where a request has none.

    Those of `SPANS` are made when they are asked for: a run can have millions of requests.
    """

    scheduled_s: Array
    sent_s: Array
    completed: Mask
    failed: Mask
    """Failed in the engine. A request that is neither failed nor completed was cut off or cancelled."""
    first_s: Array
    """Arrival of the first token of a completed request."""
    last_s: Array
    tpot_s: Array
    longest_gap_s: Array
    output_tokens: Array
    """By the engine's count, or as arrived if the engine states none or more than was asked for and arrived."""
    arrived_tokens: Array
    hidden_tokens: Array
    gaps: NDArray[np.int32]
    """Number of the gaps between arrivals within a completed request without hidden tokens."""

    def __getitem__(self, name: str) -> Array:
        """One of `SPANS` or of the fields."""
        if name in SPANS:
            end, begin = SPANS[name]
            return np.asarray(getattr(self, end) - getattr(self, begin))
        return np.asarray(getattr(self, name))


def times(requests: pd.DataFrame, state: str) -> Times:
    """Latencies of each request. `requests` has the columns of `harness.model.Record`, and may have no rows.

    Only completed requests have latencies; lag_s, which the client causes, exists for every request that was sent.
    """
    columns = list(map(list, zip(*(_fields(each, state) for each in blocks(requests)), strict=True)))
    made = [_joined(columns.pop(0)) for _ in range(len(columns))]
    free()
    return Times(numbers(requests["scheduled_s"]), numbers(requests["sent_s"]), *made)


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """The parts as one array; one value that all have is kept once."""
    value = parts[0][:1]
    same = len(value) and all((part == value).all() for part in parts)
    return np.broadcast_to(value, sum(map(len, parts))) if same else np.concatenate(parts)


def _fields(requests: pd.DataFrame, state: str) -> tuple[NDArray[Any], ...]:
    """The fields of `Times` of some requests, without the first two."""
    # A request without an end was in flight when the harness was killed.
    ended = requests["end_s"].notna().to_numpy()
    error = requests["error"]
    cut_off = ((error == ABORTED) & (state != "complete") | (error == CANCELLED)).fillna(False).to_numpy(bool)
    faulty = error.notna().to_numpy()
    completed = ended & ~faulty
    arrival_s, sizes = flat(requests["arrival_s"])
    arrival_s, sizes = arrival_s[np.repeat(completed, sizes)], np.where(completed, sizes, 0)
    first = firsts(arrival_s, sizes)
    last = np.where(sizes > 0, np.append(arrival_s, np.nan)[np.cumsum(sizes) - 1], np.nan)
    hidden = np.where(completed, np.nan_to_num(numbers(requests["hidden_tokens"])), 0.0)
    found = gaps_of(requests, completed & (hidden == 0), -np.inf, np.inf)
    longest, number = np.full(len(sizes), np.nan), found.sums().astype(np.int32)
    if len(found.seconds):
        longest[number > 0] = np.maximum.reduceat(found.seconds, (np.cumsum(number) - number)[number > 0])
    tokens, asked = numbers(requests["output_tokens"]), numbers(requests["output_asked"])
    groups, all_sizes = flat(requests["arrival_tokens"])
    owner = np.repeat(np.arange(len(all_sizes)), all_sizes)
    arrived, first_group = np.bincount(owner, groups, len(all_sizes)), firsts(groups, all_sizes)
    believed = tokens <= np.fmax(asked, arrived)
    tokens = np.where(believed, tokens, arrived)
    after_first = tokens * (1 - first_group / np.where(arrived > 0, arrived, np.nan))
    # One arrival, of any number of tokens, has no time between tokens.
    tpot = np.where(number > 0, (last - first) / np.where(after_first > 0, after_first, np.nan), np.nan)
    return completed, faulty & ~cut_off, first, last, tpot, longest, tokens, arrived, hidden, number


def firsts(values: Array, sizes: NDArray[np.int64]) -> Array:
    """First value of each row, NaN for a row without values."""
    return np.where(sizes > 0, np.append(values, np.nan)[np.cumsum(sizes) - sizes], np.nan)


def numbers(column: pd.Series) -> Array:
    """The values, NaN for a missing one; a column of floats is not copied."""
    if column.dtype == float:
        return np.asarray(column)
    return np.asarray(pd.to_numeric(column).to_numpy(float, na_value=np.nan))


def error_kinds(failed: pd.DataFrame) -> dict[str, int]:
    """Kind of error -> how many of these failed requests have it, the most first."""
    return {str(kind): int(count) for kind, count in failed["error"].astype(str).value_counts().items()}


def requests_of(run: Run) -> pd.DataFrame:
    """A row for each request: the columns of `harness.model.Record`, then ttft_s, tpot_s, e2e_s.

    `arrival_s` and `arrival_tokens` hold a list in each row. `attrs["units"]`: column -> unit.
    """
    seen, texts = times(run.requests, run.state), run.requests.select_dtypes("category")
    found = run.requests.astype({"arrival_s": object, "arrival_tokens": object, **dict.fromkeys(texts, "str")}).copy()
    found = found.assign(**{name: seen[name] for name in ("ttft_s", "tpot_s", "e2e_s")})
    kinds = {"s": "s", "tokens": "tokens", "asked": "tokens"}
    found.attrs["units"] = {name: kinds[end] for name in found if (end := str(name).rpartition("_")[2]) in kinds}
    return found
