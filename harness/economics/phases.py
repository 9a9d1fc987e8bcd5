"""What input, output, context and requests each take of a device's time (or energy), from runs of mixed shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.economics.draws import Array, Draws

TERMS = ("input", "output", "context", "request")
"""What explains usage: uncached input tokens, output tokens, the sum of every output token's context, requests."""

CONDITION_LIMIT = 30.0
SHARE_LIMIT = 0.5
"""A coefficient is not identified when near dependencies (condition index above 30) make more than half of its variance
(Belsley, Kuh and Welsch, Regression Diagnostics, 1980, section 3.2)."""


@dataclass(frozen=True, slots=True)
class PhaseSplit:
    """Usage per input token, output token, output token x context token, and request.

    `coefficients` and `replicates` (one row a bootstrap sample) are columns in the order of `TERMS`; `identified` says
    which of them the runs pin down. `condition` is the largest condition index of the scaled counts, `rank` their rank.
    """

    coefficients: Array
    replicates: Array
    identified: tuple[bool, ...]
    rank: int
    condition: float
    blocks: int
    totals: Array
    """Counts of all runs, in the order of `TERMS`."""


def time_blocks(requests: pd.DataFrame, device_count: int, number: int = 12) -> Array:
    """A run cut into `number` equal stretches of time, from the first send to the last end: a row each.

    Columns are the counts of `TERMS`, then usage in device-seconds. Failed requests are left out, their time is not: it
    was paid for. Input tokens and the request itself count where the first token arrived, each output token where it
    arrived, with the input and the output before it as its context. ValueError where no request succeeded.
    """
    done = requests[requests["error"].isna() & requests["arrival_s"].map(len).gt(0)]
    if done.empty:
        raise ValueError("no request succeeded")
    edges = np.linspace(float(requests["sent_s"].min()), float(requests["end_s"].max()), number + 1)

    def place(times: Array, weights: Array) -> Array:
        return np.histogram(times, edges, weights=weights)[0]

    inputs = done["input_tokens"].fillna(done["input_asked"]).to_numpy(float)
    uncached = inputs - done["cached_tokens"].fillna(0).to_numpy(float)
    first = np.array([times[0] for times in done["arrival_s"]], float)
    tokens = [np.asarray(n, float) for n in done["arrival_tokens"]]
    # Tokens of one arrival have contexts c, c+1, …: their sum is n times the middle one.
    context = [(start + np.cumsum(n) - (n + 1) / 2) * n for start, n in zip(inputs, tokens, strict=True)]
    times = np.concatenate([np.asarray(t, float) for t in done["arrival_s"]])
    return np.column_stack([
        place(first, uncached), place(times, np.concatenate(tokens)), place(times, np.concatenate(context)),
        place(first, np.ones(len(done))), np.diff(edges) * device_count,
    ])  # fmt: skip


def fit_phases(runs: Sequence[Array], replicates: int = 200) -> PhaseSplit:
    """usage = input*N_in_uncached + output*N_out + context*sum(context) + request*requests, no term below 0.

    `runs` have the columns of `time_blocks`; usage may be in joules too. Non-negative least squares over the blocks of
    all runs (scipy.optimize.nnls), then scaled so that over all blocks the terms add up to the whole usage: tokens are
    seen a little after the work for them was done, and such errors in the counts would otherwise shrink every
    coefficient. The bootstrap draws whole blocks within each run. The runs must be of one model, device and
    concurrency: a larger batch takes less per token.
    """
    from scipy import optimize

    def solve(sample: Array) -> Array:
        counts, usage = sample[:, :-1], sample[:, -1]
        scale = np.maximum(np.linalg.norm(counts, axis=0), 1e-300)
        found = optimize.nnls(counts / scale, usage)[0] / scale
        return np.asarray(found * usage.sum() / max((counts @ found).sum(), 1e-300))

    blocks, rng = np.concatenate(runs), np.random.default_rng(0)
    drawn = [solve(np.concatenate([rng.choice(run, len(run)) for run in runs])) for _ in range(replicates)]
    counts = blocks[:, :-1]
    return PhaseSplit(solve(blocks), np.array(drawn), *identify(counts), len(blocks), counts.sum(axis=0))


def identify(counts: Array) -> tuple[tuple[bool, ...], int, float]:
    """Which columns the rows tell apart, their rank, and the largest condition index (columns scaled to length 1)."""
    norms = np.linalg.norm(counts, axis=0)
    scaled = counts / np.maximum(norms, 1e-300)
    _, singular, right = np.linalg.svd(scaled, full_matrices=False)
    rank = int(np.sum(singular > singular[0] * 1e-10))
    index = singular[0] / np.maximum(singular, singular[0] * 1e-12)
    variance = (right * np.minimum(index, 1e12)[:, None]) ** 2
    share = variance[index > CONDITION_LIMIT].sum(axis=0) / np.maximum(variance.sum(axis=0), 1e-300)
    return tuple(bool(n > 0 and s <= SHARE_LIMIT) for n, s in zip(norms, share, strict=True)), rank, float(index.max())


def usage_of(
    coefficients: Array, tokens_in: Draws | float, tokens_out: Draws | float, cached_share: Draws | float
) -> Draws:
    """Usage of one request: a(1-h) n_in + b n_out + d n_out (n_in + n_out/2) + r, with a, b, d, r the last axis.

    >>> float(usage_of(np.array([1.0, 10.0, 0.0, 5.0]), 100.0, 2.0, 0.25))
    100.0
    """
    a, b, d, r = np.moveaxis(np.asarray(coefficients), -1, 0)
    return np.asarray(
        a * (1 - cached_share) * tokens_in + b * tokens_out + d * tokens_out * (tokens_in + tokens_out / 2) + r
    )


def allocate(coefficients: Array, counts: Array, usage: float) -> Mapping[str, float]:
    """A run's whole usage shared out by term in proportion to the fit, so that the terms add up to `usage` exactly.

    `counts` are the run's totals in the order of `TERMS`. ValueError where the fit explains nothing.

    >>> dict(allocate(np.array([1.0, 2.0, 0.0, 0.0]), np.array([10.0, 5.0, 7.0, 1.0]), 40.0))
    {'input': 20.0, 'output': 20.0, 'context': 0.0, 'request': 0.0}
    """
    fitted = coefficients * counts
    if not fitted.sum() > 0:
        raise ValueError("the phase split explains none of this run's usage")
    return dict(zip(TERMS, (float(x) for x in fitted / fitted.sum() * usage), strict=True))
