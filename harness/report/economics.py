"""Costs of a stored run from the shipped scenarios and prices, and the tables that show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from harness import shipped
from harness.economics.cost import (
    DEFAULT_SCENARIO,
    TWO_DENOMINATORS,
    Costs,
    Device,
    cost_of_run,
    device_of,
    measured,
    priced,
    tornado,
)
from harness.economics.draws import PARAMETERS, Distribution, distribution
from harness.economics.fleet import Policy, curve_of, diurnal, plan
from harness.economics.gpus import Gpu, read_rows
from harness.economics.objective import Objective, best_feasible, pareto_front, parse_objectives, value
from harness.economics.phases import time_blocks
from harness.economics.query import cost_of_query
from harness.economics.scenario import Input, Scenario, parse_prices, parse_scenario
from harness.errors import HarnessError
from harness.model import Figure, Status, Summary
from harness.regression import Split, split_usage
from harness.report.summaries import Sweep
from harness.report.table import Cell, Table
from harness.report.tables import load_of
from harness.store import RunFile

LOAD = ("load.shape", "load.users")
"""What the runs of a sweep may differ in."""


def costs(file: RunFile, summary: Summary, scenario: str | None = None, overrides: Sequence[str] = ()) -> Costs:
    """What the run's tokens cost under a scenario: a shipped name or a file; None: that of `scenario_for`."""
    device, ready = _ready([file], scenario, overrides)
    found, own = cost_of_run(summary, device, ready), file.workload.get("scenario")
    if scenario is None and own is not None and own != scenario_for(file, device):
        note = f"the workload's scenario {own} prices another kind of device: {ready.name} stands in"
        found = replace(found, notes=(note, *found.notes))
    return found


def tornado_tables(
    file: RunFile, summary: Summary, scenario: str | None = None, overrides: Sequence[str] = ()
) -> list[Table]:
    """Which input makes the cost of an output token uncertain: shares of the variance of ln cost, largest first.

    None where there is no cost, or nothing that is uncertain in it.
    """
    _, ready = _ready([file], scenario, overrides)
    rate = measured(summary, "output_tokens_per_s")
    shares = {} if ready.no_price or rate.value is None else tornado(ready, rate)
    if not any(shares.values()):
        return []
    rows: list[tuple[Cell, ...]] = []
    for name, share in shares.items():
        status = ready.inputs[name].status if name in ready.inputs else rate.status
        rows.append((name, status, Figure(f"share.{name}", share, "1", "derived")))
    columns, notes = ("input", "status", "share"), ("squared correlation of ln input with ln cost",)
    return [Table("tornado", "What makes the cost uncertain", columns, tuple(rows), notes, file.id)]


def query_costs(
    runs: Sequence[tuple[RunFile, pd.DataFrame]], scenario: str | None = None, overrides: Sequence[str] = ()
) -> Costs:
    """What a query and a million tokens of each kind cost, from several runs of mixed shape."""
    _, split, mix = phase_split(runs)
    return cost_of_query(split, mix, *_ready([file for file, _ in runs], scenario, overrides))


def phase_split(runs: Sequence[tuple[RunFile, pd.DataFrame]]) -> tuple[Device, Split, tuple[float, float]]:
    """The device of runs of mixed shape, the split of its time, and their mean input and output tokens."""
    device = _one_condition([file for file, _ in runs])
    blocks = []
    for file, requests in runs:
        try:
            blocks.append(time_blocks(requests, device.count))
        except ValueError as empty:
            raise HarnessError(f"run {file.id}: {empty}", "leave it out, or measure it again") from None
    done = pd.concat([requests[requests["error"].isna()] for _, requests in runs])
    tokens_out = done["output_tokens"].fillna(done["output_asked"])
    return device, split_usage(blocks), (float(done["input_asked"].mean()), float(tokens_out.mean()))


def costs_at_objective(
    sweep: Sweep, objective: str, scenario: str | None = None, overrides: Sequence[str] = ()
) -> tuple[Costs, Summary]:
    """What the best point of a sweep at a latency objective (`read_objective`) costs, and which point that is."""
    ready = _ready([file for file, _ in sweep], scenario, overrides, LOAD)
    best = best_feasible([summary for _, summary in sweep], read_objective(objective))
    return cost_of_run(best, *ready), best


def fleet_costs(
    sweep: Sweep,
    objective: str,
    load: tuple[float, float],
    policy: Policy,
    scenario: str | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Costs, Table]:
    """What a query costs over a whole day at a latency objective, and the fleet by hour.

    `load` is (mean requests/s, peak / mean) of a `diurnal` curve; a replica is what the sweep's runs used. The costs
    are `cost_of_run` at the best feasible point with the day's own utilisation, sum of load / (sum of replicas *
    capacity), in place of the scenario's: all cost over all queries.
    """
    device, wanted = _ready([file for file, _ in sweep], scenario, overrides, LOAD)
    summaries = [summary for _, summary in sweep]
    best = best_feasible(summaries, read_objective(objective))
    capacity = value(best, "requests_per_s")
    day = plan(diurnal(*load), capacity, curve_of(summaries), policy)
    used = distribution("value", float(day.load.sum() / (day.replicas.sum() * capacity)))
    of_day = Input("serving.utilisation", used, "1", "computed: the day's load on the planned replicas", "", "assumed")
    found = cost_of_run(best, device, replace(wanted, inputs={**wanted.inputs, of_day.name: of_day}))
    note = (
        f"{day.replicas.sum() * device.count} device-hours a day; a replica serves {capacity:.3g} requests/s at "
        f"'{objective}'; headroom {policy.headroom:.0%}, availability {policy.availability:.3%} with replicas up "
        f"{policy.up:.1%}, given back after {policy.hold_hours} h"
    )
    rows = tuple(
        (f"{hour}", f"{rate:.3g}", f"{count:.0f}", f"{use:.0%}", f"{flying * count / rate:.3g}" if rate > 0 else "")
        for hour, (rate, count, use, flying) in enumerate(day.to_numpy())
    )
    columns = ("hour", "requests/s", "replicas", "utilisation", "mean response, s")
    return found, Table("fleet", "A day of the fleet", columns, rows, (note,))


def interactivity_table(sweep: Sweep, scenario: str | None = None, overrides: Sequence[str] = ()) -> Table:
    """Cost against interactivity: runs that no other beats in output rate and median TPOT, by rising rate."""
    device, wanted = _ready([file for file, _ in sweep], scenario, overrides, LOAD)
    rows = []
    for summary in pareto_front([summary for _, summary in sweep], ["tpot_s.p50"]):
        found = cost_of_run(summary, device, wanted)
        cost = next(figure for figure in found.figures if figure.name == "usd_per_million_output_tokens")
        tpot, rate = summary["tpot_s.p50"], summary["output_tokens_per_s"]
        user = _turned("tokens_per_s_of_a_user", "tokens/s", tpot, lambda x: 1 / x)
        each = _turned("tokens_per_s_per_device", "tokens/s", rate, lambda x: x / device.count)
        rows.append((summary.run, user, each, cost))
    columns = ("run", ONE_USER, f"per {wanted.per}", "per million output tokens")
    return Table("interactivity", "Cost against interactivity", columns, tuple(rows))


ONE_USER = "of one user (1 / median TPOT)"


def _turned(name: str, unit: str, figure: Figure, by: Callable[[float], float]) -> Figure:
    """A figure and its interval under a monotone function."""
    value, *ends = (None if x is None else by(x) for x in (figure.value, figure.low, figure.high))
    low, high = ends if None in ends else sorted(x for x in ends if x is not None)
    status: Status = "simulated" if figure.status == "simulated" else "derived"
    return Figure(name, value, unit, status, low, high, figure.n, figure.reason, figure.interval)


def read_objective(text: str) -> Objective:
    """A preset's name (`70B interactive`), or limits in seconds (`ttft_s.p99=0.5,tpot_s.p99=0.03`)."""
    presets = parse_objectives(shipped.read_text("prices/mlperf_slo.csv"))
    if text in presets:
        return presets[text]
    try:
        limits = {name.strip(): float(limit) for name, limit in (part.split("=") for part in text.split(","))}
    except ValueError:
        limits = {}
    if not limits or not all(limit > 0 for limit in limits.values()):
        known = ", ".join(f"'{name}'" for name in presets)
        raise HarnessError(f"'{text}' is no objective", f"give ttft_s.p99=0.5,tpot_s.p99=0.03 or one of {known}")
    return limits


def _ready(
    files: Sequence[RunFile], scenario: str | None, overrides: Sequence[str], free: Sequence[str] = ()
) -> tuple[Device, Scenario]:
    """The device of runs that differ in nothing but `free`, and the scenario for it."""
    device = _one_condition(files, free)
    return device, priced_for(device, scenario or scenario_for(files[0], device), overrides)


def scenario_for(file: RunFile, device: Device) -> str:
    """What prices a run where no scenario is named: its workload's own, unless that is for another kind of device."""
    own: str | None = file.workload.get("scenario")
    if own is not None and device.kind in ("none", {"gpu": "gpu", "vcpu": "cpu"}[read_scenario(own).per]):
        return own
    return DEFAULT_SCENARIO[device.kind]


def _one_condition(files: Sequence[RunFile], free: Sequence[str] = ()) -> Device:
    """The device of runs that differ in no condition but those in `free`."""
    if not files:
        raise HarnessError("no run to price", "name at least one; `harness list runs` shows them")
    first = _conditions(files[0])
    for file in files:
        for field, has in _conditions(file).items():
            if field not in free and has != first[field]:
                raise HarnessError(
                    f"{field} differs: {files[0].id} has {first[field]}, {file.id} has {has}",
                    f"price runs together only if they differ in nothing but {'load' if free else 'lengths'}",
                )
    return device_of(files[0].engine or {}, files[0].environment)


def _conditions(file: RunFile) -> dict[str, Any]:
    if file.engine is None:
        raise HarnessError(f"run {file.id} never started its engine, so there is nothing to price", "choose another")
    model = file.engine["model"]
    gpus = file.environment.get("gpus") or [{}]
    return {
        "model": model["weights_sha256"] or model["source"] or model["asked"],
        "precision": model["precision"],
        "engine": file.engine["engine"],
        "device": (file.engine["device"], gpus[0].get("name"), file.engine["device_count"]),
        "load.shape": file.workload.get("load", {}).get("shape"),
        "load.users": file.workload.get("load", {}).get("users"),
    }


@lru_cache(maxsize=1)
def price_tables() -> tuple[tuple[Gpu, ...], dict[tuple[str, str], Input]]:
    """The rows of gpus.csv and of the price tables; read once a process."""
    ranges, owned = (shipped.read_text(f"prices/{name}.csv") for name in ("gpu_rental_ranges", "gpu_prices"))
    return read_rows(shipped.read_text("gpus.csv"), Gpu), parse_prices(ranges, owned)


def priced_for(device: Device, scenario: str, overrides: Sequence[str]) -> Scenario:
    """The scenario of that name or file with the shipped price of the device in it."""
    return priced(read_scenario(scenario, tuple(overrides)), device, *price_tables())


@lru_cache(maxsize=32)
def read_scenario(name_or_path: str, overrides: tuple[str, ...] = ()) -> Scenario:
    """The scenario in a file, or the shipped one of that name, with `--set` overrides; read once a process."""
    path = Path(name_or_path)
    try:
        if path.is_file():
            return parse_scenario(path.read_text(encoding="utf-8"), str(path), overrides)
    except (OSError, UnicodeDecodeError) as unreadable:
        raise HarnessError(f"{path}: {unreadable}", "give a readable YAML file") from None
    known = [name for name, _ in shipped.list_scenarios()]
    if name_or_path not in known:
        raise HarnessError(f"no scenario '{name_or_path}'", f"give a file, or one of {', '.join(known)}")
    return parse_scenario(shipped.read_text(f"scenarios/{name_or_path}.yaml"), f"{name_or_path}.yaml", overrides)


def cost_tables(found: Costs) -> tuple[Table, Table]:
    """The cost figures with what their interval rests on, and the assumptions behind them."""
    rows = tuple((figure.name, figure, _basis(found, figure.name)) for figure in found.figures)
    used = tuple(
        (given.name, describe(given.distribution), given.unit, given.status, given.date, given.source)
        for given in found.assumptions
    )
    title, columns = f"Assumptions of scenario {found.scenario}", ("input", "value", "unit", "status", "date", "source")
    return (
        Table("cost", "What it costs", ("figure", "value", "interval rests on"), rows, found.notes),
        Table("assumptions", title, columns, used),
    )


def describe(d: Distribution) -> str:
    """A distribution in words.

    >>> describe(Distribution("lognormal", (1.75, 6.16)))
    'lognormal, p5 1.75, p95 6.16'
    """
    if d.certain:
        return f"{d.parameters[0]:g}"
    names = PARAMETERS[d.kind] or ("",) * len(d.parameters)
    numbers = ", ".join(f"{name} {x:g}".strip() for name, x in zip(names, d.parameters, strict=True))
    return f"{d.kind}, {numbers}"


def _basis(found: Costs, name: str) -> str:
    """How much of a figure's interval is measured, and how much reported or assumed."""
    shares = found.shares.get(name.removesuffix(".mean"))
    if shares is None:
        return ""
    return ", ".join(f"{status} {share:.0%}" for status, share in shares.items() if share >= 0.005) or "no spread given"


def run_cost_tables(sweep: Sweep, scenario: str | None = None, overrides: Sequence[str] = ()) -> list[Table]:
    """One run's costs, assumptions and what makes them uncertain; of several, the costs alone, a row a run."""
    found = [costs(file, summary, scenario, overrides) for file, summary in sweep]
    if len(found) == 1:
        return [*cost_tables(found[0]), *tornado_tables(*sweep[0], scenario, overrides)]
    return [_costs_table("costs", "What each run costs", [(sweep[i][0], each) for i, each in enumerate(found)])]


MOST_TIERED = 50
"""With more runs than this, each is priced once."""


def tiers_table(priced: Sequence[tuple[RunFile, Summary, Costs]]) -> Table:
    """What each run costs by the `Costs` given, and by every shipped scenario that prices its device."""
    names = [name for name, _ in shipped.list_scenarios()] if len(priced) <= MOST_TIERED else []
    rows: list[tuple[RunFile, Costs]] = []
    for file, summary, given in priced:
        rows.append((file, given))
        for name in names:
            with suppress(HarnessError):  # it prices another kind of device
                found = costs(file, summary, name)
                if name != given.scenario and found.figures[0].value is not None:
                    rows.append((file, found))
    return _costs_table("tiers", "Cost by price tier", rows)


def _costs_table(name: str, title: str, found: Sequence[tuple[RunFile, Costs]]) -> Table:
    """A row a run and scenario; where all is of one run, that is the table's source."""
    rows: list[tuple[Cell, ...]] = []
    for file, each in found:
        figures = {figure.name: figure for figure in each.figures}
        rows.append((file.id, load_of(file), each.scenario, *(figures[name] for name in COST_COLUMNS)))
    columns = ("run", "load", "scenario", *COST_COLUMNS.values())
    runs = {file.id for file, _ in found}
    if len(runs) == 1:
        return Table(name, title, columns[2:], tuple(row[2:] for row in rows), (TWO_DENOMINATORS,), runs.pop())
    return Table(name, title, columns, tuple(rows), (TWO_DENOMINATORS,))


COST_COLUMNS = {
    "usd_per_million_output_tokens": "USD per million output tokens",
    "usd_per_million_total_tokens": "USD per million tokens",
    "usd_per_query": "USD per query",
}


def sweep_tables(sweep: Sweep, scenario: str | None = None) -> list[Table]:
    """Of runs that differ in nothing but load: the best point at each objective, and cost against interactivity."""
    groups: dict[str, list[tuple[RunFile, Summary]]] = {}
    for file, summary in sweep:
        if file.engine is not None and all(measured(summary, name).value is not None for name in NEEDED):
            same = {field: has for field, has in _conditions(file).items() if field not in LOAD}
            groups.setdefault(repr(same), []).append((file, summary))
    alike = [group for group in groups.values() if len(group) > 1]
    presets = parse_objectives(shipped.read_text("prices/mlperf_slo.csv"))
    rows = [_feasible(group, name, presets[name], scenario) for group in alike for name in presets]
    columns = ("objective", "model", "run", "output tokens/s", "USD per million output tokens")
    title = "The most throughput that meets an objective, between measured runs"
    best = [Table("slo", title, columns, tuple(rows), ("objectives of MLPerf Inference: p99 of TTFT and of TPOT",))]
    return [*(best if rows else ()), *(interactivity_table(group, scenario) for group in alike)]


FASTEST = "the fastest run meets the objective, so more throughput may be had"
NEEDED = ("output_tokens_per_s", "tpot_s.p50", "ttft_s.p99", "tpot_s.p99")


def _feasible(sweep: Sweep, name: str, objective: Objective, scenario: str | None) -> tuple[Cell, ...]:
    limits = ", ".join(f"{figure} <= {limit:g} s" for figure, limit in objective.items())
    head = (f"{name}: {limits}", str(_conditions(sweep[0][0])["model"]))
    try:
        found, best = costs_at_objective(sweep, name, scenario)
    except HarnessError as none:
        units = {"output_tokens_per_s": "tokens/s", "usd_per_million_output_tokens": "USD/1e6 token"}
        return (*head, "", *(Figure(of, None, unit, "derived", reason=none.what) for of, unit in units.items()))
    figures = [best["output_tokens_per_s"], next(x for x in found.figures if x.name == "usd_per_million_output_tokens")]
    if best.run in {summary.run for _, summary in sweep}:
        figures = [replace(figure, reason=FASTEST) for figure in figures]
    return (*head, best.run, *figures)
