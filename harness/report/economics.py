"""Costs of a stored run from the shipped scenarios and prices, and the tables that show them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from harness import shipped
from harness.economics.cost import Costs, cost_of_run, default_scenario, device_of
from harness.economics.draws import PARAMETERS, Distribution
from harness.economics.gpus import Gpu, parse_gpus
from harness.economics.phases import fit_phases, time_blocks
from harness.economics.query import cost_of_query
from harness.economics.scenario import Price, Scenario, parse_prices, parse_scenario
from harness.errors import HarnessError
from harness.model import Summary
from harness.report.table import Table
from harness.store import Run, RunFile


def costs(file: RunFile, summary: Summary, scenario: str | None = None, overrides: Sequence[str] = ()) -> Costs:
    """What the run's tokens cost under a scenario (a shipped name or a file; None: the device's default)."""
    if file.engine is None:
        raise HarnessError(
            f"run {file.id} never started its engine, so there is nothing to price", "choose another run"
        )
    device = device_of(file.engine, file.environment)
    wanted = read_scenario(scenario or default_scenario(device.kind), tuple(overrides))
    return cost_of_run(summary, device, wanted, *_tables())


def query_costs(runs: Sequence[Run], scenario: str | None = None, overrides: Sequence[str] = ()) -> Costs:
    """What a query and a million tokens of each kind cost, from the phase split of several runs of mixed shape.

    Raises HarnessError for runs that differ in model, device, engine or users in flight, and for one without a success.
    """
    if not runs:
        raise HarnessError("no run to price", "name at least one; `harness list runs` shows them")
    conditions = [_conditions(run) for run in runs]
    for run, condition in zip(runs, conditions, strict=True):
        for field, value in condition.items():
            if value != conditions[0][field]:
                raise HarnessError(
                    f"{field} differs: {runs[0].file.id} has {conditions[0][field]}, {run.file.id} has {value}",
                    "price runs together only if they differ in nothing but input and output lengths",
                )
    device = device_of(runs[0].file.engine or {}, runs[0].file.environment)
    blocks, done = [], []
    for run in runs:
        try:
            blocks.append(time_blocks(run.requests, device.count))
        except ValueError as empty:
            raise HarnessError(f"run {run.file.id}: {empty}", "leave it out, or measure it again") from None
        done.append(run.requests[run.requests["error"].isna()])
    requests = pd.concat(done)
    mix = (
        float(requests["input_asked"].mean()),
        float(requests["output_tokens"].fillna(requests["output_asked"]).mean()),
    )
    wanted = read_scenario(scenario or default_scenario(device.kind), tuple(overrides))
    return cost_of_query(fit_phases(blocks), mix, device, wanted, *_tables())


def _conditions(run: Run) -> dict[str, Any]:
    if run.file.engine is None:
        raise HarnessError(f"run {run.file.id} never started its engine", "leave it out, or measure it again")
    model = run.file.engine["model"]
    gpus = run.file.environment.get("gpus") or [{}]
    return {
        "model": model["weights_sha256"] or model["source"] or model["asked"],
        "precision": model["precision"],
        "engine": run.file.engine["engine"],
        "device": (run.file.engine["device"], gpus[0].get("name"), run.file.engine["device_count"]),
        "load.shape": run.file.workload["load"]["shape"],
        "load.users": run.file.workload["load"].get("users"),
    }


@lru_cache(maxsize=1)
def _tables() -> tuple[tuple[Gpu, ...], tuple[Price, ...]]:
    ranges, owned = (shipped.read_text(f"prices/{name}.csv") for name in ("gpu_rental_ranges", "gpu_prices"))
    return parse_gpus(shipped.read_text("gpus.csv")), parse_prices(ranges, owned)


@lru_cache(maxsize=32)
def read_scenario(name_or_path: str, overrides: tuple[str, ...] = ()) -> Scenario:
    """The scenario in a file, or the shipped one of that name, with `--set` overrides; read once a process."""
    path = Path(name_or_path)
    try:
        if path.is_file():
            return parse_scenario(path.read_text(encoding="utf-8"), str(path), overrides)
    except (OSError, UnicodeDecodeError) as unreadable:
        raise HarnessError(f"{path}: {unreadable}", "give a readable YAML file") from None
    known = scenario_names()
    if name_or_path not in known:
        raise HarnessError(f"no scenario '{name_or_path}'", f"give a file, or one of {', '.join(known)}")
    return parse_scenario(shipped.read_text(f"scenarios/{name_or_path}.yaml"), f"{name_or_path}.yaml", overrides)


def scenario_names() -> list[str]:
    """The shipped scenarios."""
    return sorted(path.stem for path in shipped.data_path("scenarios").glob("*.yaml"))


def cost_tables(found: Costs) -> tuple[Table, Table]:
    """The cost figures with what their interval rests on, and the assumptions behind them."""
    rows = tuple((figure.name, figure, _basis(found, figure.name)) for figure in found.figures)
    used = tuple(
        (given.name, describe(given.distribution), given.unit, given.status, given.date, given.source)
        for given in found.assumptions
    )
    return (
        Table("cost", "What it costs", ("figure", "value", "interval rests on"), rows, found.notes),
        Table(
            "assumptions",
            f"Assumptions of scenario {found.scenario}",
            ("input", "value", "unit", "status", "date", "source"),
            used,
        ),
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
    parts = found.parts.get(name.removesuffix(".mean"), ())
    words = [
        f"{part.name} {part.status}{f' {part.share:.0%}' if part.share and part.share >= 0.005 else ''}"
        for part in parts
    ]
    return "; ".join(words)
