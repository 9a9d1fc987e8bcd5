"""Throughput, and so cost, at a latency objective: the best point of a sweep that meets it, never past the sweep."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.economics.cost import measured
from harness.errors import HarnessError
from harness.model import Figure, Summary

RATES = ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s")
CARRIED = (*RATES, "joules_per_request", "joules_per_output_token")
"""Figures that an interpolated point has, where the runs have them."""


@dataclass(frozen=True, slots=True)
class Objective:
    """Upper limits in seconds by the figure that they hold for, for instance {"ttft_s.p99": 0.45}."""

    name: str
    limits: tuple[tuple[str, float], ...]
    source: str


@dataclass(frozen=True, slots=True)
class Feasible:
    """The best operating point: rates as a summary that `cost_of_run` prices, or why there is none."""

    objective: Objective
    summary: Summary
    between: tuple[str, ...]
    """The runs that it lies between, or the one run that it is."""
    at_end: bool
    """The fastest run of the sweep meets the objective too: the best point is at least this fast."""


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """The rows of prices/mlperf_slo.csv: 99th percentiles of TTFT and TPOT."""
    return tuple(
        Objective(
            row["scenario"],
            (("ttft_s.p99", float(row["p99_ttft_ms"]) / 1e3), ("tpot_s.p99", float(row["p99_tpot_ms"]) / 1e3)),
            row["source"],
        )
        for row in csv.DictReader(io.StringIO(text))
    )


def best_feasible(sweep: Sequence[Summary], objective: Objective) -> Feasible:
    """The largest output rate at which every limit holds, interpolated between two runs of the Pareto front.

    From the fastest run that meets the objective towards the next faster one of the front, latencies and rates are
    linear in the share of the way: monotone, and on the safe side where latency rises ever faster with load. Nothing
    is extrapolated: where no run meets the objective there is no answer (HarnessError), and where the fastest one does
    it is the answer, `at_end`. HarnessError also for a run without one of the figures.
    """
    names = [name for name, _ in objective.limits]
    limits = np.array([limit for _, limit in objective.limits])
    front = pareto_front(sweep, names)
    latencies = np.array([[value(run, name) for name in names] for run in front])
    meets = np.flatnonzero(np.all(latencies <= limits, axis=1))
    if not len(meets):
        nearest = int(np.argmin(np.max(latencies / limits, axis=1)))
        worst = int(np.argmax(latencies[nearest] / limits))
        raise HarnessError(
            f"no run meets '{objective.name}': the nearest, {front[nearest].run}, has {names[worst]} "
            f"{latencies[nearest, worst]:.3g} s, the limit is {limits[worst]:g} s",
            "measure lower rates or fewer users, or choose another objective",
        )
    last = int(meets[-1])
    if last + 1 == len(front):
        return Feasible(objective, front[last], (front[last].run,), True)
    here, there = latencies[last], latencies[last + 1]
    weight = float(np.min(((limits - here) / np.where(there > limits, there - here, np.inf))[there > limits]))
    known = {figure.name for figure in front[last].figures}
    figures = tuple(_between(front[last], front[last + 1], name, weight) for name in CARRIED if name in known)
    between = (front[last].run, front[last + 1].run)
    return Feasible(objective, Summary(" to ".join(between), front[last].state, figures, {}), between, False)


def pareto_front(sweep: Sequence[Summary], latencies: Sequence[str]) -> list[Summary]:
    """The runs that no other equals or beats in output rate and every latency, by rising output rate."""
    if not sweep:
        raise HarnessError("no run to choose from", "name the runs of a sweep over users or rate")
    points = np.array([[-value(run, RATES[0]), *(value(run, name) for name in latencies)] for run in sweep])
    kept = []
    for i, point in enumerate(points):
        beaten = np.all(points <= point, axis=1) & (np.any(points < point, axis=1) | (np.arange(len(points)) < i))
        if not beaten.any():
            kept.append(i)
    return [sweep[i] for i in sorted(kept, key=lambda i: -points[i, 0])]


def _between(slower: Summary, faster: Summary, name: str, weight: float) -> Figure:
    a, b = measured(slower, name), measured(faster, name)
    if a.value is None or b.value is None:
        return a if a.value is None else b
    ends = [(a.value, b.value), (a.low, b.low), (a.high, b.high)]
    value, low, high = (None if x is None or y is None else x + weight * (y - x) for x, y in ends)
    return Figure(name, value, a.unit, "simulated" if a.status == "simulated" else "derived", low, high)


def value(run: Summary, name: str) -> float:
    """A figure's value; HarnessError naming run and reason where it has none."""
    figure = measured(run, name)
    if figure.value is None:
        raise HarnessError(f"run {run.run}: {figure.reason}", "leave the run out, or measure more requests")
    return figure.value
