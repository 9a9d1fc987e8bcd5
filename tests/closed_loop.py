"""Closed loops simulated without a clock, many runs at once: known answers for windows, intervals and stopping."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
TTFT_S, ITL_S, TOKENS, JITTER = 0.3, 0.01, 100, 0.5


@dataclass(frozen=True)
class Sent:
    """One run, an element a request in order of sending."""

    sent_s: Array
    first_s: Array
    end_s: Array
    tokens: Array

    def arrivals(self) -> Array:
        """Tokens come evenly from the first to the last."""
        counts = self.tokens.astype(int)
        start, step = self.first_s, (self.end_s - self.first_s) / np.maximum(counts - 1, 1)
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.asarray(np.repeat(start, counts) + place * np.repeat(step, counts))


def closed_loops(
    users: int,
    requests: int,
    runs: int,
    seed: int,
    cv: float = 0.5,
    slowness: Callable[[Array], Array] | None = None,
    tail: float | None = None,
) -> Iterator[Sent]:
    """Runs of `users` slots that take the next request when they are free.

    Output lengths are lognormal with mean 100 and that coefficient of variation, or Pareto with that `tail` index;
    the first token comes after 0.3 s, each other after 10 ms, with jitter; `slowness(sent_s)` stretches both, one
    element a run.
    """
    shape = (runs, requests)
    tokens, wait, decode = _drawn(shape, seed, cv, tail)
    free, sent, every = np.zeros((runs, users)), np.empty(shape), np.arange(runs)
    slow = np.ones(shape)
    for i in range(requests):
        slot = free.argmin(axis=1)
        sent[:, i] = free[every, slot]
        if slowness is not None:
            slow[:, i] = slowness(sent[:, i])
        free[every, slot] += (wait[:, i] + decode[:, i]) * slow[:, i]
    first = sent + wait * slow
    return map(Sent, sent, first, first + decode * slow, tokens)


def truth(users: int, cv: float = 0.5) -> tuple[float, float]:
    """Tokens per second that independent slots come to in the long run, and the mean time of a request."""
    tokens, wait, decode = _drawn((1, 1_000_000), 99, cv)
    stay = float((wait + decode).mean())
    return users * float(tokens.mean()) / stay, stay


def _drawn(shape: tuple[int, int], seed: int, cv: float, tail: float | None = None) -> tuple[Array, Array, Array]:
    """Tokens of each request, seconds to its first, and seconds from there to its last."""
    rng, sigma = np.random.default_rng(seed), np.sqrt(np.log1p(cv**2))
    lengths = TOKENS * np.exp(sigma * rng.standard_normal(shape) - sigma**2 / 2)
    if tail is not None:
        lengths = TOKENS * (tail - 1) * rng.pareto(tail, shape)
    tokens = np.maximum(2.0, np.round(lengths))
    wait = TTFT_S * rng.gamma(JITTER**-2, JITTER**2, shape)
    return tokens, wait, tokens * ITL_S * (1 + JITTER / np.sqrt(tokens) * rng.standard_normal(shape))
