"""Device time of input tokens, output tokens, context and requests, from runs with different lengths."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from harness.cost.draws import Array, Draws
from harness.store.rows import flat

TERMS = ("input", "output", "context", "request")
"""Terms of device usage: uncached input tokens, output tokens, sum of the contexts of output tokens, requests.

`regression.split_usage` fits the coefficients to the `time_blocks` of runs. The runs must have the same model, device
and concurrency, because a larger batch needs less time per token."""


def time_blocks(requests: pd.DataFrame, device_count: int, number: int = 12) -> Array:
    """Counts and usage of a run in `number` equal time blocks, from the first send to the last end: one row per block.

    Columns are the counts of `TERMS`, then usage in device-seconds. Tokens of failed requests are left out, but not
    their time, which was paid for. Input tokens and the request count in the block of the first token, each output
    token in the block of its arrival, with the input and the output before it as its context. ValueError if no request
    succeeded.
    """
    done = requests[requests["error"].isna().to_numpy() & (flat(requests["arrival_s"])[1] > 0)]
    if done.empty:
        raise ValueError("no request succeeded")
    edges = np.linspace(float(requests["sent_s"].min()), float(requests["end_s"].max()), number + 1)

    def place(times: Array, weights: Array) -> Array:
        return np.histogram(times, edges, weights=weights)[0]

    inputs = done["input_tokens"].fillna(done["input_asked"]).to_numpy(float)
    uncached = inputs - done["cached_tokens"].fillna(0).to_numpy(float)
    (times, sizes), (tokens, _) = flat(done["arrival_s"]), flat(done["arrival_tokens"])
    starts = np.cumsum(sizes) - sizes
    arrived = np.cumsum(tokens)
    before = np.repeat(inputs - (arrived - tokens)[starts], sizes) + arrived - tokens
    # n tokens of one arrival have contexts c, c+1, …: their sum is n times the mean.
    context = (before + (tokens - 1) / 2) * tokens
    return np.column_stack([
        place(times[starts], uncached), place(times, tokens), place(times, context),
        place(times[starts], np.ones(len(done))), np.diff(edges) * device_count,
    ])  # fmt: skip


def usage_of(
    coefficients: Array, tokens_in: Draws | float, tokens_out: Draws | float, cached_share: Draws | float
) -> Draws:
    """Usage of one request: a(1-h) n_in + b n_out + d n_out (n_in + n_out/2) + r; a, b, d, r are on the last axis.

    >>> float(usage_of(np.array([1.0, 10.0, 0.0, 5.0]), 100.0, 2.0, 0.25))
    100.0
    """
    a, b, d, r = np.moveaxis(np.asarray(coefficients), -1, 0)
    return np.asarray(
        a * (1 - cached_share) * tokens_in + b * tokens_out + d * tokens_out * (tokens_in + tokens_out / 2) + r
    )


def allocate(coefficients: Array, counts: Array, usage: float) -> Mapping[str, float]:
    """`usage` divided between the terms in proportion to the fit, so that the terms add up to `usage` exactly.

    `counts` are the run's totals in the order of `TERMS`. ValueError if the fit explains nothing.

    >>> dict(allocate(np.array([1.0, 2.0, 0.0, 0.0]), np.array([10.0, 5.0, 7.0, 1.0]), 40.0))
    {'input': 20.0, 'output': 20.0, 'context': 0.0, 'request': 0.0}
    """
    fitted = coefficients * counts
    if not fitted.sum() > 0:
        raise ValueError("the phase split explains none of this run's usage")
    return dict(zip(TERMS, (float(x) for x in fitted / fitted.sum() * usage), strict=True))
