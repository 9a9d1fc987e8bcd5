"""A day of a fleet: replicas by hour for a load that rises and falls, what they cost, and how requests fare on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.cost.draws import Array, Draws
from harness.cost.objective import pareto_front, value
from harness.errors import HarnessError
from harness.model import Summary


@dataclass(frozen=True, slots=True)
class Policy:
    """How many replicas to keep. `up` is the chance that a replica works, `availability` that enough of them do."""

    headroom: float = 0.2
    """Share of the capacity at the objective that is left free."""
    availability: float = 0.999
    up: float = 0.995
    hold_hours: int = 2
    """Replicas are given back only after the load has been lower for this many hours."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Requests per second that a replica completes with `in_flight` at once; both rise, as on a Pareto front."""

    in_flight: Array
    requests_per_s: Array

    def rate(self, n: Draws | float) -> Draws:
        """Linear between runs and down to 0 at 0; beyond the largest run it stays there, never extrapolated."""
        return np.asarray(np.interp(n, np.r_[0.0, self.in_flight], np.r_[0.0, self.requests_per_s]))


def curve_of(sweep: Sequence[Summary]) -> Curve:
    """The measured concurrency curve of a replica: in flight by Little's law, requests_per_s * e2e_s.mean.

    Runs that another beats in output rate and mean E2E are left out. HarnessError for a run without those figures.
    """
    front = pareto_front(sweep, ["e2e_s.mean"])
    rate, response = (np.array([value(run, name) for run in front]) for name in ("requests_per_s", "e2e_s.mean"))
    order = np.argsort(rate * response)
    return Curve((rate * response)[order], np.maximum.accumulate(rate[order]))


def diurnal(mean_per_s: float, peak_to_mean: float) -> Array:
    """Requests/s of 24 hours, a cosine around the mean that peaks at 15 h; `peak_to_mean` is from 1 (flat) to 2.

    >>> diurnal(10.0, 1.5)[[3, 15]]
    array([ 5., 15.])
    """
    if not (mean_per_s > 0 and 1 <= peak_to_mean <= 2):
        what = f"a load of {mean_per_s:g} requests/s with peak/mean {peak_to_mean:g}"
        raise HarnessError(what, "give a mean above 0 and peak/mean 1 to 2")
    return np.asarray(mean_per_s * (1 + (peak_to_mean - 1) * np.cos(2 * np.pi * (np.arange(24) - 15) / 24)))


def plan(load: Array, capacity_per_s: float, curve: Curve, policy: Policy) -> pd.DataFrame:
    """Replicas by hour that keep the objective, with spares for those that fail; docs/economics.md has the formulas.

    A row an hour: load in requests/s, replicas, utilisation of their capacity and mean requests in_flight on each.
    `capacity_per_s` is one replica's rate at the latency objective (objective.best_feasible).
    """
    if not (0 <= policy.headroom < 1 and 0 < policy.up <= 1 and 0 < policy.availability < 1 and capacity_per_s > 0):
        what = f"fleet policy {policy} with capacity {capacity_per_s:g}/s"
        raise HarnessError(what, "shares are in 0 to 1, rates above 0")
    needed = [max(1, math.ceil(rate / (capacity_per_s * (1 - policy.headroom)) - 1e-9)) for rate in load]
    spared = np.array([_with_spares(count, policy) for count in needed])
    # The day repeats, so the hours before midnight hold replicas for the hours after it.
    held = np.max([np.roll(spared, shift) for shift in range(policy.hold_hours + 1)], axis=0)
    flying = np.array([in_flight(rate / count, curve) for rate, count in zip(load, held, strict=True)])
    utilisation = load / (held * capacity_per_s)
    return pd.DataFrame({"load": load, "replicas": held, "utilisation": utilisation, "in_flight": flying})


def _with_spares(needed: int, policy: Policy) -> int:
    from scipy import stats

    count = needed
    while stats.binom.sf(needed - 1, count, policy.up) < policy.availability:
        count += 1
    return count


def in_flight(rate_per_s: float, curve: Curve) -> float:
    """Mean requests in flight on one replica under Poisson arrivals; infinite where they outrun the curve.

    A birth-death chain with births `rate_per_s` and deaths curve.rate(n), since a replica shares its speed among its
    requests; docs/economics.md says why that holds for any distribution of their sizes.
    """
    if rate_per_s >= curve.requests_per_s[-1]:
        return math.inf
    if rate_per_s <= 0:
        return 0.0
    n = np.arange(1.0, 4097)  # so many at most
    logs = np.cumsum(np.log(rate_per_s) - np.log(curve.rate(n)))
    weights = np.exp(np.r_[0.0, logs] - max(0.0, logs.max()))
    return float(np.sum(weights[1:] * n) / weights.sum())
