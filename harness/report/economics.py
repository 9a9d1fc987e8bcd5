"""Costs of a stored run from the shipped scenarios and prices, and the tables that show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness import shipped
from harness.economics.cost import Costs, cost_of_run, default_scenario, device_of
from harness.economics.draws import PARAMETERS, Distribution
from harness.economics.gpus import parse_gpus
from harness.economics.scenario import parse_prices, parse_scenario
from harness.errors import HarnessError
from harness.model import Summary
from harness.report.table import Table
from harness.store import RunFile


def costs(file: RunFile, summary: Summary, scenario: str | None = None, overrides: Sequence[str] = ()) -> Costs:
    """What the run's tokens cost under a scenario (a shipped name or a file; None: the device's default)."""
    if file.engine is None:
        raise HarnessError(
            f"run {file.id} never started its engine, so there is nothing to price", "choose another run"
        )
    device = device_of(file.engine, file.environment)
    text, origin = scenario_text(scenario or default_scenario(device.kind))
    return cost_of_run(
        summary,
        device,
        parse_scenario(text, origin, overrides),
        parse_gpus(shipped.read_text("gpus.csv")),
        parse_prices(shipped.read_text("prices/gpu_rental_ranges.csv"), shipped.read_text("prices/gpu_prices.csv")),
    )


def scenario_text(name_or_path: str) -> tuple[str, str]:
    """A scenario's text and where it came from: a file, or the name of a shipped scenario."""
    path = Path(name_or_path)
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as unreadable:
        raise HarnessError(f"{path}: {unreadable}", "give a readable YAML file") from None
    known = scenario_names()
    if name_or_path not in known:
        raise HarnessError(f"no scenario '{name_or_path}'", f"give a file, or one of {', '.join(known)}")
    return shipped.read_text(f"scenarios/{name_or_path}.yaml"), f"{name_or_path}.yaml"


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
    words = [f"{part.name} {part.status}{f' {part.share:.0%}' if part.share else ''}" for part in parts]
    return "; ".join(words)
