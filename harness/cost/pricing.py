"""Costs of stored runs: the scenario and price that fit a run's device, read from shipped and user files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.regression import Split, split_usage
from harness.analysis.summary import Sweep
from harness.cost.bill import (
    DEFAULT_SCENARIO,
    Costs,
    Device,
    cost_of_run,
    device_of,
    priced,
)
from harness.cost.by_token import cost_of_query
from harness.cost.gpus import Gpu, read_rows
from harness.cost.objective import Objective, best_feasible, parse_objectives
from harness.cost.phases import time_blocks
from harness.cost.scenario import Input, Scenario, parse_prices, parse_scenario
from harness.errors import HarnessError
from harness.files import data_path, read_data, read_text
from harness.model import Summary
from harness.store.run_file import RunFile


def list_scenarios() -> tuple[tuple[str, str], ...]:
    """(name, description) of each shipped scenario."""
    files = sorted(data_path("scenarios").glob("*.yaml"))
    return tuple((file.stem, parse_scenario(read_text(file), str(file)).description) for file in files)


LOAD = ("load.shape", "load.users")
"""What the runs of a sweep may differ in."""


def price_run(file: RunFile, summary: Summary, scenario: str | None = None, overrides: Sequence[str] = ()) -> Costs:
    """What the run's tokens cost under a scenario: a shipped name or a file; None: that of `scenario_for`."""
    device, ready = device_and_scenario([file], scenario, overrides)
    found, own = cost_of_run(summary, device, ready), file.workload.get("scenario")
    if scenario is None and own is not None and own != scenario_for(file, device):
        note = f"the workload's scenario {own} prices another kind of device: {ready.name} stands in"
        found = replace(found, notes=(note, *found.notes))
    return found


def query_costs(
    runs: Sequence[tuple[RunFile, pd.DataFrame]], scenario: str | None = None, overrides: Sequence[str] = ()
) -> Costs:
    """What a query and a million tokens of each kind cost, from several runs of mixed shape."""
    _, split, mix = phase_split(runs)
    return cost_of_query(split, mix, *device_and_scenario([file for file, _ in runs], scenario, overrides))


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
    ready = device_and_scenario([file for file, _ in sweep], scenario, overrides, LOAD)
    best = best_feasible([summary for _, summary in sweep], read_objective(objective))
    return cost_of_run(best, *ready), best


def read_objective(text: str) -> Objective:
    """A preset's name (`70B interactive`), or limits in seconds (`ttft_s.p99=0.5,tpot_s.p99=0.03`)."""
    presets = parse_objectives(read_data("prices/mlperf_slo.csv"))
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


def device_and_scenario(
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
    first = conditions_of(files[0])
    for file in files:
        for field, has in conditions_of(file).items():
            if field not in free and has != first[field]:
                raise HarnessError(
                    f"{field} differs: {files[0].id} has {first[field]}, {file.id} has {has}",
                    f"price runs together only if they differ in nothing but {'load' if free else 'lengths'}",
                )
    return device_of(files[0].engine or {}, files[0].environment)


def conditions_of(file: RunFile) -> dict[str, Any]:
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
    ranges, owned = (read_data(f"prices/{name}.csv") for name in ("gpu_rental_ranges", "gpu_prices"))
    return read_rows(read_data("gpus.csv"), Gpu), parse_prices(ranges, owned)


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
    known = [name for name, _ in list_scenarios()]
    if name_or_path not in known:
        raise HarnessError(f"no scenario '{name_or_path}'", f"give a file, or one of {', '.join(known)}")
    return parse_scenario(read_data(f"scenarios/{name_or_path}.yaml"), f"{name_or_path}.yaml", overrides)
