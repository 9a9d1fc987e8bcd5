"""A day of a fleet: replicas by hour for a varying load, their utilisation and requests in flight."""

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
    """Rules for the number of replicas. `up`: probability that a replica works; `availability`: that enough work."""

    headroom: float = 0.2
    """Unused share of the capacity at the objective."""
    availability: float = 0.999
    up: float = 0.995
    hold_hours: int = 2
    """Hours of lower load before a replica is released."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Requests per second of a replica with `in_flight` concurrent requests; both arrays rise."""

    in_flight: Array
    requests_per_s: Array

    def rate(self, n: Draws | float) -> Draws:
        """Rate at `n` in flight: linear between runs and from 0 at 0; constant beyond the largest run."""
        return np.asarray(np.interp(n, np.r_[0.0, self.in_flight], np.r_[0.0, self.requests_per_s]))


def curve_of(sweep: Sequence[Summary]) -> Curve:
    """The measured curve of a replica: requests in flight by Little's law, requests_per_s * e2e_s.mean.

    Runs beaten by another run in output rate and mean E2E are left out. HarnessError if a run lacks these figures.
    """
    front = pareto_front(sweep, ["e2e_s.mean"])
    rate, response = (np.array([value(run, name) for run in front]) for name in ("requests_per_s", "e2e_s.mean"))
    order = np.argsort(rate * response)
    return Curve((rate * response)[order], np.maximum.accumulate(rate[order]))


def diurnal(mean_per_s: float, peak_to_mean: float) -> Array:
    """Requests/s of 24 hours: a cosine around the mean with its peak at 15 h; `peak_to_mean` from 1 (flat) to 2.

    >>> diurnal(10.0, 1.5)[[3, 15]]
    array([ 5., 15.])
    """
    if not (mean_per_s > 0 and 1 <= peak_to_mean <= 2):
        what = f"a load of {mean_per_s:g} requests/s with peak/mean {peak_to_mean:g}"
        raise HarnessError(what, "give a mean above 0 and peak/mean 1 to 2")
    return np.asarray(mean_per_s * (1 + (peak_to_mean - 1) * np.cos(2 * np.pi * (np.arange(24) - 15) / 24)))


def plan(load: Array, capacity_per_s: float, curve: Curve, policy: Policy) -> pd.DataFrame:
    """Replicas by hour that meet the objective, with spares for failed replicas; docs/economics.md has the formulas.

    One row per hour: load in requests/s, replicas, utilisation of their capacity, mean requests in flight per replica.
    `capacity_per_s` is the rate of one replica at the latency objective (objective.best_feasible).
    """
    if not (0 <= policy.headroom < 1 and 0 < policy.up <= 1 and 0 < policy.availability < 1 and capacity_per_s > 0):
        what = f"fleet policy {policy} with capacity {capacity_per_s:g}/s"
        raise HarnessError(what, "shares are in 0 to 1, rates above 0")
    needed = [max(1, math.ceil(rate / (capacity_per_s * (1 - policy.headroom)) - 1e-9)) for rate in load]
    spared = np.array([_with_spares(count, policy) for count in needed])
    # The day repeats: replicas of the last hours are still held in the first hours.
    held = np.max([np.roll(spared, shift) for shift in range(policy.hold_hours + 1)], axis=0)
    flying = np.array([in_flight(rate / count, curve) for rate, count in zip(load, held, strict=True)])
    utilisation = load / (held * capacity_per_s)
    return pd.DataFrame({"load": load, "replicas": held, "utilisation": utilisation, "in_flight": flying})


def _with_spares(needed: int, policy: Policy) -> int:
    from scipy import special

    count = needed
    while special.bdtrc(needed - 1, count, policy.up) < policy.availability:
        count += 1
    return count


def in_flight(rate_per_s: float, curve: Curve) -> float:
    """Mean requests in flight on one replica with Poisson arrivals; inf if the arrival rate exceeds the curve.

    A birth-death chain with birth rate `rate_per_s` and death rate curve.rate(n), since a replica shares its speed
    among its requests; docs/economics.md explains why it holds for any distribution of request sizes.
    """
    if rate_per_s >= curve.requests_per_s[-1]:
        return math.inf
    if rate_per_s <= 0:
        return 0.0
    n = np.arange(1.0, 4097)  # maximum considered
    logs = np.cumsum(np.log(rate_per_s) - np.log(curve.rate(n)))
    weights = np.exp(np.r_[0.0, logs] - max(0.0, logs.max()))
    return float(np.sum(weights[1:] * n) / weights.sum())
