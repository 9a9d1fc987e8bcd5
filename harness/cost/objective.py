"""The best point of a sweep at a latency objective, without extrapolation, and a day of a fleet that keeps it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.cost.bill import measured
from harness.cost.draws import Array, Draws
from harness.errors import HarnessError
from harness.files import data_rows
from harness.model import Figure, Summary

CARRIED = (
    "output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "joules_per_request", "joules_per_output_token"
)  # fmt: skip
"""Figures of an interpolated point, if the runs have them."""
HEADROOM, AVAILABILITY, UP, HOLD_HOURS = 0.2, 0.999, 0.995, 2
"""Of a fleet: unused share of the capacity at the objective; probability that enough replicas work, and that one works;
hours of lower load before a replica is released."""
Objective = Mapping[str, float]
"""Figure -> upper limit in seconds: {"ttft_s.p99": 0.45}."""


def presets() -> dict[str, Objective]:
    """Name -> objective, from prices/mlperf_slo.csv: 99th percentiles of TTFT and TPOT."""
    return {
        row["scenario"]: {"ttft_s.p99": float(row["p99_ttft_ms"]) / 1e3, "tpot_s.p99": float(row["p99_tpot_ms"]) / 1e3}
        for row in data_rows("prices/mlperf_slo.csv")
    }


def best_feasible(sweep: Sequence[Summary], objective: Objective) -> Summary:
    """The point with the largest output rate that meets all limits, between two runs of the Pareto front.

    `run` of the point names both runs. If the fastest run meets the objective, that run is returned, as a lower bound.
    HarnessError if no run meets the objective, or if a run lacks a figure. docs/economics.md explains why latencies and
    rates are interpolated linearly.
    """
    names, limits = list(objective), np.array(list(objective.values()))
    front = pareto_front(sweep, names)
    latencies = np.array([[value(run, name) for name in names] for run in front])
    meets = np.flatnonzero(np.all(latencies <= limits, axis=1))
    if not len(meets):
        nearest = int(np.argmin(np.max(latencies / limits, axis=1)))
        worst = int(np.argmax(latencies[nearest] / limits))
        has = f"{names[worst]} {latencies[nearest, worst]:.3g} s, the limit is {limits[worst]:g} s"
        what = f"no run meets the objective: the nearest, {front[nearest].run}, has {has}"
        raise HarnessError(what, "measure lower rates or fewer users, or choose another objective")
    last = int(meets[-1])
    if last + 1 == len(front):
        return front[last]
    slower, faster = front[last : last + 2]
    here, there = latencies[last], latencies[last + 1]
    weight = float(np.min(((limits - here) / np.where(there > limits, there - here, np.inf))[there > limits]))
    known = {figure.name for figure in slower.figures}
    figures = tuple(_between(slower, faster, name, weight) for name in CARRIED if name in known)
    return Summary(f"{slower.run} to {faster.run}", slower.state, figures, {})


def fastest_within(sweep: Sequence[Summary], share: float) -> Summary | None:
    """The run with the largest output rate of those in which at least `share` of the requests met the objectives."""
    found = []
    for run in sweep:
        met, rate = measured(run, "objectives_met").value, measured(run, CARRIED[0]).value
        if met is not None and met >= share and rate is not None:
            found.append((rate, run))
    return max(found, key=lambda each: each[0])[1] if found else None


def pareto_front(sweep: Sequence[Summary], latencies: Sequence[str]) -> list[Summary]:
    """The runs that no other run equals or beats in output rate and all latencies, by rising output rate."""
    if not sweep:
        raise HarnessError("no run to choose from", "name the runs of a sweep over users or rate")
    points = [(-value(run, CARRIED[0]), *(value(run, name) for name in latencies)) for run in sweep]
    front: list[int] = []
    for i in sorted(range(len(points)), key=points.__getitem__):  # fastest first: no later run beats an earlier one
        if not any(np.all(np.array(points[j]) <= points[i]) for j in front):
            front.insert(0, i)
    return [sweep[i] for i in front]


def _between(slower: Summary, faster: Summary, name: str, weight: float) -> Figure:
    a, b = measured(slower, name), measured(faster, name)
    if a.value is None or b.value is None:
        return a if a.value is None else b
    ends = [(a.value, b.value), (a.low, b.low), (a.high, b.high)]
    value, low, high = (None if x is None or y is None else x + weight * (y - x) for x, y in ends)
    return Figure(name, value, a.unit, "simulated" if a.status == "simulated" else "derived", low, high)


def value(run: Summary, name: str) -> float:
    """A figure's value; HarnessError with run and reason if there is none."""
    figure = measured(run, name)
    if figure.value is None:
        raise HarnessError(f"run {run.run}: {figure.reason}", "leave the run out, or measure more requests")
    return figure.value


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


def plan(
    load: Array, capacity_per_s: float, curve: Curve, headroom: float = HEADROOM, availability: float = AVAILABILITY,
    up: float = UP, hold_hours: int = HOLD_HOURS,
) -> pd.DataFrame:  # fmt: skip
    """Replicas by hour that meet the objective, with spares for failed replicas; docs/economics.md has the formulas.

    One row per hour: load in requests/s, replicas, utilisation of their capacity, mean requests in flight per replica.
    `capacity_per_s` is the rate of one replica at the latency objective (`best_feasible`).
    """
    needed = [max(1, math.ceil(rate / (capacity_per_s * (1 - headroom)) - 1e-9)) for rate in load]
    spared = np.array([_with_spares(count, availability, up) for count in needed])
    # The day repeats: replicas of the last hours are still held in the first hours.
    held = np.max([np.roll(spared, shift) for shift in range(hold_hours + 1)], axis=0)
    flying = np.array([in_flight(rate / count, curve) for rate, count in zip(load, held, strict=True)])
    utilisation = load / (held * capacity_per_s)
    return pd.DataFrame({"load": load, "replicas": held, "utilisation": utilisation, "in_flight": flying})


def day_of_fleet(sweep: Sequence[Summary], best: Summary, load: tuple[float, float]) -> tuple[pd.DataFrame, float, str]:
    """The `plan` of a day of replicas that each serve at most at the point `best`, the day's utilisation, and a note.

    `load` is (mean requests/s, peak / mean) of a `diurnal` curve.
    """
    capacity = value(best, "requests_per_s")
    day = plan(diurnal(*load), capacity, curve_of(sweep))
    note = (
        f"a replica serves {capacity:.3g} requests/s there; headroom {HEADROOM:.0%}, availability {AVAILABILITY:.3%} "
        f"with replicas up {UP:.1%}, released after {HOLD_HOURS} h"
    )
    return day, float(day.load.sum() / (day.replicas.sum() * capacity)), note


def _with_spares(needed: int, availability: float, up: float) -> int:
    from scipy import special

    count = needed
    while special.bdtrc(needed - 1, count, up) < availability:
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
