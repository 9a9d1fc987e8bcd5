"""Costs of stored runs, with the scenario and price for their device, read from shipped and user files."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from harness.analysis.precision import FIGURES
from harness.analysis.regression import Split, split_usage
from harness.analysis.summary import Sweep
from harness.analysis.tokens import ordinary
from harness.config import AS_WRITTEN, Values, near
from harness.cost.bill import DEFAULT_SCENARIO, Costs, cost_of_run, mapped, measured, priced, tornado
from harness.cost.draws import distribution
from harness.cost.gpus import Gpu, read_rows
from harness.cost.objective import Objective, best_feasible, day_of_fleet, pareto_front, presets
from harness.cost.phases import cost_of_query, time_blocks
from harness.cost.scenario import Input, Scenario, parse_scenario, rental_prices
from harness.errors import HarnessError
from harness.files import data_path, read_text
from harness.model import Device, Figure, Status, Summary
from harness.store.run import Run
from harness.workload.schema import read_limit

LOAD = ("load.shape", "load.users")
"""The only differences allowed between the runs of a sweep."""


@dataclass(frozen=True, slots=True)
class Priced:
    """A run with its costs."""

    run: Run
    summary: Summary
    scenario: Scenario
    """Includes the device's price."""
    costs: Costs
    tiers: tuple[Costs, ...] = ()
    """Costs under all other shipped scenarios for this kind of device."""
    shares: Mapping[str, tuple[Status, float]] = field(default_factory=dict)
    """Input -> status, and share of the variance of ln cost, largest first; empty if nothing is uncertain."""


def price_run(run: Run, summary: Summary, scenario: str | None = None, overrides: Values = AS_WRITTEN) -> Priced:
    """Costs of a run under a scenario, given as a shipped name or a file; None: that of `scenario_for`."""
    device, ready = device_and_scenario([run], scenario, overrides)
    found, own = cost_of_run(summary, device, ready), run.file.workload.scenario
    if scenario is None and own is not None and own != scenario_for(run):
        note = f"the workload's scenario {own} prices another kind of device: {ready.name} is used instead"
        found = replace(found, notes=(note, *found.notes))
    return Priced(run, summary, ready, found)


def explained(priced: Priced) -> Priced:
    """`priced` with the shares of its inputs in the uncertainty of the cost."""
    return replace(priced, shares=tornado(priced.scenario, measured(priced.summary, "output_tokens_per_s")))


def tiered(priced: Priced) -> Priced:
    """`priced` with the costs under all other shipped scenarios for its kind of device."""
    tiers = []
    for name in _shipped_scenarios():
        with suppress(HarnessError):  # it prices another kind of device
            found = price_run(priced.run, priced.summary, name).costs
            if name != priced.costs.scenario and found.figures[0].value is not None:
                tiers.append(found)
    return replace(priced, tiers=tuple(tiers))


def query_costs(runs: Sequence[Run], scenario: str | None = None, overrides: Values = AS_WRITTEN) -> Costs:
    """Costs of a query and of a million input or output tokens, from several runs with different lengths."""
    _, split, mix = phase_split(runs)
    return cost_of_query(split, mix, *device_and_scenario(runs, scenario, overrides))


def phase_split(runs: Sequence[Run]) -> tuple[Device, Split, tuple[float, float]]:
    """The device of runs with different lengths, the split of its time, and the runs' mean input and output tokens."""
    device = _common_device(runs)
    blocks = []
    for run in runs:
        try:
            blocks.append(time_blocks(run.requests, device.count))
        except ValueError as empty:
            raise HarnessError(f"run {run.id}: {empty}", "leave it out, or measure it again") from None
    done = pd.concat([run.requests[run.requests["error"].isna() & ordinary(run.requests)] for run in runs])
    tokens_out = done["output_tokens"].fillna(done["output_asked"])
    return device, split_usage(blocks), (float(done["input_asked"].mean()), float(tokens_out.mean()))


def costs_at_objective(
    sweep: Sweep, objective: str, scenario: str | None = None, overrides: Values = AS_WRITTEN
) -> tuple[Costs, Summary]:
    """Costs of the best point of a sweep at a latency objective (see `read_objective`), and that point."""
    ready = device_and_scenario([run for run, _ in sweep], scenario, overrides, LOAD)
    best = best_feasible([summary for _, summary in sweep], read_objective(objective))
    return cost_of_run(best, *ready), best


def fleet_costs(
    sweep: Sweep, objective: str, load: tuple[float, float], scenario: str | None = None, overrides: Values = AS_WRITTEN
) -> tuple[Costs, pd.DataFrame, str]:
    """Costs over a day at a latency objective, the fleet by hour (`fleet.plan`), and a note.

    `load` is (mean requests/s, peak / mean) of a `diurnal` curve; a replica has the devices of the sweep's runs. The
    costs are `cost_of_run` at the best feasible point, with the utilisation of the day, sum of load / (sum of
    replicas * capacity), instead of the scenario's: all cost over all queries.
    """
    device, wanted = device_and_scenario([run for run, _ in sweep], scenario, overrides, LOAD)
    summaries = [summary for _, summary in sweep]
    best = best_feasible(summaries, read_objective(objective))
    day, utilisation, note = day_of_fleet(summaries, best, load)
    used = distribution("value", utilisation)
    of_day = Input("serving.utilisation", used, "1", "computed: the day's load on the planned replicas", "", "assumed")
    found = cost_of_run(best, device, replace(wanted, inputs={**wanted.inputs, of_day.name: of_day}))
    hours = f"{day.replicas.sum() * device.count} device-hours a day at '{objective}'"
    return found, day, f"{hours}; {note}"


Interactive = tuple[str, Figure, Figure, Figure]
"""A run that no other run beats in both output rate and median TPOT: its id, output tokens/s of one user (1 / median
TPOT) and of one device, USD per million output tokens."""


def interactivity(
    sweep: Sweep, scenario: str | None = None, overrides: Values = AS_WRITTEN
) -> tuple[str, list[Interactive]]:
    """The kind of device, and cost against interactivity: the Pareto front of runs that differ only in load."""
    device, wanted = device_and_scenario([run for run, _ in sweep], scenario, overrides, LOAD)
    rows = []
    for summary in pareto_front([summary for _, summary in sweep], ["tpot_s.p50"]):
        cost = cost_of_run(summary, device, wanted)["usd_per_million_output_tokens"]
        pace, rate = summary["tpot_s.p50"], summary["output_tokens_per_s"]
        status: Status = "simulated" if rate.status == "simulated" else "derived"
        user = mapped(pace, lambda tpot_s: 1 / tpot_s, name="tokens_per_s_of_a_user", unit="tokens/s", status=status)
        each = mapped(rate, lambda all_of: all_of / device.count, name="tokens_per_s_per_device", status=status)
        rows.append((summary.run, user, each, cost))
    return wanted.per, rows


FASTEST = "the fastest run meets the objective, so a higher throughput may be possible"
NEEDED = ("output_tokens_per_s", "tpot_s.p50", "ttft_s.p99", "tpot_s.p99")
"""Figures that a run needs to be compared at an objective."""


AtObjective = tuple[str, str, str, Figure, Figure]
"""The best throughput at a preset objective, of runs that differ only in load: the objective in words, the model, the
run or the two runs between which the point lies (empty: no run meets it), the rate and its cost."""


def alike(sweep: Sweep) -> list[Sweep]:
    """Groups of two or more runs that differ only in load; runs without the figures `NEEDED` are left out."""
    groups: dict[str, list[tuple[Run, Summary]]] = {}
    for run, summary in sweep:
        if run.engine is not None and all(measured(summary, name).value is not None for name in NEEDED):
            same = {name: has for name, has in conditions_of(run).items() if name not in LOAD}
            groups.setdefault(repr(same), []).append((run, summary))
    return [group for group in groups.values() if len(group) > 1]


def at_objectives(sweep: Sweep, scenario: str | None = None) -> list[AtObjective]:
    """The best point of runs that are `alike`, at each preset objective."""
    return [_at(sweep, name, limits, scenario) for name, limits in presets().items()]


def _at(sweep: Sweep, name: str, limits: Objective, scenario: str | None) -> AtObjective:
    model = str(conditions_of(sweep[0][0])["model"])
    words = f"{name}: " + ", ".join(f"{figure} <= {limit:g} s" for figure, limit in limits.items())
    of_rate, of_cost = "output_tokens_per_s", "usd_per_million_output_tokens"
    try:
        found, best = costs_at_objective(sweep, name, scenario)
    except HarnessError as none:
        rate = Figure(of_rate, None, "tokens/s", "derived", reason=none.what)
        return words, model, "", rate, replace(rate, name=of_cost, unit="USD/1e6 token")
    rate, cost = best[of_rate], found[of_cost]
    if best.run in {summary.run for _, summary in sweep}:
        rate, cost = replace(rate, reason=FASTEST), replace(cost, reason=FASTEST)
    return words, model, best.run, rate, cost


def read_objective(text: str) -> Objective:
    """Limits in seconds from a preset's name (`70B interactive`), or by figure (`ttft_s.p99=500ms,tpot_s.p99=0.03`)."""
    if text in (known := presets()):
        return known[text]
    try:
        limits = {name.strip(): limit for name, limit in (part.split("=") for part in text.split(","))}
    except ValueError:
        names = ", ".join(f"'{name}'" for name in known)
        fix = f"give ttft_s.p99=0.5,tpot_s.p99=0.03 or one of {names}"
        raise HarnessError(f"'{text}' is not an objective", fix) from None
    for name in limits:
        if name not in FIGURES:
            fix = f"{near(name, FIGURES)}name a latency and its statistic, such as ttft_s.p99"
            raise HarnessError(f"--objective: no figure '{name}'", fix)
    return {name: read_limit(f"--objective {name}", name.partition(".")[0], limit) for name, limit in limits.items()}


def device_and_scenario(
    runs: Sequence[Run], scenario: str | None, overrides: Values, free: Sequence[str] = ()
) -> tuple[Device, Scenario]:
    """The device of runs that differ only in the conditions `free`, and the scenario with its price."""
    device = _common_device(runs, free)
    return device, priced_for(device, scenario or scenario_for(runs[0]), overrides)


def scenario_for(run: Run) -> str:
    """Name of the scenario if the user gives none: the workload's, unless it is for another kind of device."""
    own, kind = run.file.workload.scenario, run.device.kind
    if own is not None and kind in ("none", {"gpu": "gpu", "vcpu": "cpu"}[read_scenario(own).per]):
        return own
    return DEFAULT_SCENARIO[kind]


def _common_device(runs: Sequence[Run], free: Sequence[str] = ()) -> Device:
    """The device of runs; HarnessError if they differ in a condition that is not in `free`."""
    if not runs:
        raise HarnessError("no run to price", "name at least one; `harness list runs` shows them")
    first = conditions_of(runs[0])
    for run in runs:
        for name, has in conditions_of(run).items():
            if name not in free and has != first[name]:
                what = f"{name} differs: {runs[0].id} has {first[name]}, {run.id} has {has}"
                alone = "load" if free else "lengths"
                raise HarnessError(what, f"price only runs together that differ in {alone} alone")
    return runs[0].device


def conditions_of(run: Run) -> dict[str, object]:
    """Name -> value of each condition that runs priced together must share."""
    model, device = run.model, run.device
    return {
        "model": model.weights_sha256 or model.source or model.asked,
        "precision": model.precision,
        "engine": run.engine.engine if run.engine else None,
        "device": (device.kind, run.gpu, device.count),
        "load.shape": run.shape,
        "load.users": run.users,
    }


@lru_cache(maxsize=1)
def price_tables() -> tuple[tuple[Gpu, ...], dict[tuple[str, str], Input]]:
    """The rows of gpus.csv and of the price tables, read once per process."""
    return read_rows("gpus.csv", Gpu), rental_prices()


def priced_for(device: Device, scenario: str, overrides: Values) -> Scenario:
    """The scenario of that name or file, with the shipped price of the device."""
    return priced(read_scenario(scenario, overrides), device, *price_tables())


def list_scenarios() -> tuple[tuple[str, str], ...]:
    """(name, description) of each shipped scenario."""
    return tuple((name, read_scenario(str(file)).description) for name, file in _shipped_scenarios().items())


def read_scenario(name_or_path: str, overrides: Values = AS_WRITTEN) -> Scenario:
    """The scenario in a file, or the shipped one of that name, with overrides as for `parse_scenario`."""
    shipped = _shipped_scenarios()
    path = Path(name_or_path) if Path(name_or_path).is_file() else shipped.get(name_or_path)
    if path is None:
        raise HarnessError(f"no scenario '{name_or_path}'", f"give a file, or one of {', '.join(shipped)}")
    return parse_scenario(read_text(path), str(path), overrides)


def _shipped_scenarios() -> dict[str, Path]:
    return {file.stem: file for file in sorted(data_path("scenarios").glob("*.yaml"))}
