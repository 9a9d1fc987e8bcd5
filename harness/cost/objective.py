"""Throughput at a latency objective: the best point of a sweep that meets the objective, without extrapolation."""

from collections.abc import Mapping, Sequence

import numpy as np

from harness.cost.bill import measured
from harness.errors import HarnessError
from harness.files import data_rows
from harness.model import Figure, Summary

CARRIED = (
    "output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "joules_per_request", "joules_per_output_token"
)  # fmt: skip
"""Figures of an interpolated point, if the runs have them."""
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
