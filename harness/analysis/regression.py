"""Usage (device-seconds or joules) per unit of each kind of work, by regression over blocks of time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats import Array

CONDITION_LIMIT = 30.0
SHARE_LIMIT = 0.5
"""A coefficient is not identified when near dependencies (condition index above 30) make more than half of its variance
(Belsley, Kuh and Welsch, Regression Diagnostics, 1980, section 3.2)."""


@dataclass(frozen=True, slots=True)
class Split:
    """Usage per unit of each kind of work; all arrays are in the order of the blocks' columns.

    `replicates` has one row per bootstrap sample; `identified` says which coefficients the blocks determine.
    `condition` is the largest condition index of the scaled counts, `rank` their rank.
    """

    coefficients: Array
    replicates: Array
    identified: tuple[bool, ...]
    rank: int
    condition: float
    blocks: int
    totals: Array
    """Counts of all blocks."""

    def interval(self, term: int) -> tuple[float, float]:
        """The 95% bootstrap interval of one coefficient."""
        low, high = np.quantile(self.replicates[:, term], (0.025, 0.975))
        return float(low), float(high)


def split_usage(groups: Sequence[Array], replicates: int = 200) -> Split:
    """usage = sum of coefficient * count, no coefficient below 0.

    A row of a group is a block of time: the counts of each kind of work, then the usage. Non-negative least squares
    over the blocks of all groups (scipy.optimize.nnls), then scaled so that the terms add up to the whole usage:
    tokens are observed a little after the work, and such errors in the counts would otherwise shrink every coefficient.
    The bootstrap draws whole blocks within each group.

    >>> counts = np.random.default_rng(0).uniform(0, 2, (40, 3))
    >>> split_usage([np.column_stack([counts, counts @ [50, 3, 2]])]).coefficients.round(6)
    array([50.,  3.,  2.])
    """
    from scipy import optimize

    def solve(sample: Array) -> Array:
        counts, usage = sample[:, :-1], sample[:, -1]
        scale = np.maximum(np.linalg.norm(counts, axis=0), 1e-300)
        found = optimize.nnls(counts / scale, usage)[0] / scale
        return np.asarray(found * usage.sum() / max((counts @ found).sum(), 1e-300))

    blocks, rng = np.concatenate(groups), np.random.default_rng(0)
    drawn = [solve(np.concatenate([rng.choice(group, len(group)) for group in groups])) for _ in range(replicates)]
    counts = blocks[:, :-1]
    return Split(solve(blocks), np.array(drawn), *identify(counts), len(blocks), counts.sum(axis=0))


def identify(counts: Array) -> tuple[tuple[bool, ...], int, float]:
    """Which coefficients the rows determine, the rank, and the largest condition index (columns scaled to length 1)."""
    norms = np.linalg.norm(counts, axis=0)
    scaled = counts / np.maximum(norms, 1e-300)
    _, singular, right = np.linalg.svd(scaled, full_matrices=False)
    rank = int(np.sum(singular > singular[0] * 1e-10))
    index = singular[0] / np.maximum(singular, singular[0] * 1e-12)
    variance = (right * np.minimum(index, 1e12)[:, None]) ** 2
    share = variance[index > CONDITION_LIMIT].sum(axis=0) / np.maximum(variance.sum(axis=0), 1e-300)
    return tuple(bool(n > 0 and s <= SHARE_LIMIT) for n, s in zip(norms, share, strict=True)), rank, float(index.max())
