"""Costs of stored runs, with the scenario and price for their device, read from shipped and user files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from harness.analysis.precision import FIGURES
from harness.analysis.regression import Split, split_usage
from harness.analysis.summary import Sweep
from harness.analysis.tokens import ordinary
from harness.config import AS_WRITTEN, Values, near
from harness.cost.bill import (
    DEFAULT_SCENARIO,
    Costs,
    Row,
    bill_factors,
    cost_of_run,
    costed,
    draw_inputs,
    mapped,
    measured,
    priced,
    tornado,
)  # fmt: skip
from harness.cost.draws import DEFAULT_DRAWS, Array, Draws, distribution
from harness.cost.gpus import Gpu, read_rows
from harness.cost.objective import Objective, best_feasible, day_of_fleet, pareto_front, presets
from harness.cost.scenario import MEASURED, Input, Prices, Scenario, parse_scenario, rental_prices
from harness.errors import HarnessError
from harness.files import data_path, read_text
from harness.model import Device, Figure, Status, Summary
from harness.store.rows import flat
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

    @property
    def tiers(self) -> Iterator[Costs]:
        """Costs under all other shipped scenarios for this kind of device."""
        for name in _shipped_scenarios():
            with suppress(HarnessError):  # it prices another kind of device
                found = price_run(self.run, self.summary, name).costs
                if name != self.costs.scenario and found.figures[0].value is not None:
                    yield found

    @property
    def shares(self) -> Mapping[str, tuple[Status, float]]:
        """Input -> status, and share of the variance of ln cost, largest first; empty if nothing is uncertain."""
        return tornado(self.scenario, measured(self.summary, "output_tokens_per_s"))


def price_run(run: Run, summary: Summary, scenario: str | None = None, overrides: Values = AS_WRITTEN) -> Priced:
    """Costs of a run under a scenario, given as a shipped name or a file; None: that of `scenario_for`."""
    device, ready = device_and_scenario([run], scenario, overrides)
    found, own = cost_of_run(summary, device, ready), run.file.workload.scenario
    if scenario is None and own is not None and own != scenario_for(run):
        note = f"the workload's scenario {own} prices another kind of device: {ready.file.name} is used instead"
        found = replace(found, notes=(note, *found.notes))
    return Priced(run, summary, ready, found)


def query_costs(runs: Sequence[Run], scenario: str | None = None, overrides: Values = AS_WRITTEN) -> Costs:
    """Costs of a query and of a million input or output tokens, from several runs with different lengths."""
    device, ready = device_and_scenario(runs, scenario, overrides)
    blocks = []
    for run in runs:
        try:
            blocks.append(time_blocks(run.requests, device.count))
        except ValueError as empty:
            raise HarnessError(f"run {run.id}: {empty}", "leave it out, or measure it again") from None
    done = pd.concat([run.requests[run.requests["error"].isna() & ordinary(run.requests)] for run in runs])
    mix = float(done["input_asked"].mean()), float(done["output_tokens"].fillna(done["output_asked"]).mean())
    return cost_of_query(split_usage(blocks), mix, device, ready)


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
    return wanted.file.per, rows


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
    model, rows = str(conditions_of(sweep[0][0])["model"]), []
    for name, limits in presets().items():
        words = f"{name}: " + ", ".join(f"{figure} <= {limit:g} s" for figure, limit in limits.items())
        try:
            costs, best = costs_at_objective(sweep, name, scenario)
            found, rate, cost = best.run, best["output_tokens_per_s"], costs["usd_per_million_output_tokens"]
        except HarnessError as none:
            found, rate = "", Figure("output_tokens_per_s", None, "tokens/s", "derived", reason=none.what)
            cost = replace(rate, name="usd_per_million_output_tokens", unit="USD/1e6 token")
        if found in {summary.run for _, summary in sweep}:
            rate, cost = replace(rate, reason=FASTEST), replace(cost, reason=FASTEST)
        rows.append((words, model, found, rate, cost))
    return rows


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
    """The device of runs, and the scenario with its price; HarnessError if they differ in a condition not in `free`."""
    if not runs:
        raise HarnessError("no run to price", "name at least one; `harness list runs` shows them")
    first = conditions_of(runs[0])
    for run in runs:
        for name, has in conditions_of(run).items():
            if name not in free and has != first[name]:
                what = f"{name} differs: {runs[0].id} has {first[name]}, {run.id} has {has}"
                alone = "load" if free else "lengths"
                raise HarnessError(what, f"price only runs together that differ in {alone} alone")
    return runs[0].device, priced_for(runs[0].device, scenario or scenario_for(runs[0]), overrides)


def scenario_for(run: Run) -> str:
    """Name of the scenario if the user gives none: the workload's, unless it is for another kind of device."""
    own, kind = run.file.workload.scenario, run.device.kind
    if own is not None and kind in ("none", {"gpu": "gpu", "vcpu": "cpu"}[read_scenario(own).file.per]):
        return own
    return DEFAULT_SCENARIO[kind]


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
def price_tables() -> tuple[tuple[Gpu, ...], Prices]:
    """The rows of gpus.csv and of the price tables, read once per process."""
    return read_rows("gpus.csv", Gpu), rental_prices()


def priced_for(device: Device, scenario: str, overrides: Values) -> Scenario:
    """The scenario of that name or file, with the shipped price of the device."""
    return priced(read_scenario(scenario, overrides), device, *price_tables())


def list_scenarios() -> tuple[tuple[str, str], ...]:
    """(name, description) of each shipped scenario."""
    return tuple((name, read_scenario(str(file)).file.description) for name, file in _shipped_scenarios().items())


def read_scenario(name_or_path: str, overrides: Values = AS_WRITTEN) -> Scenario:
    """The scenario in a file, or the shipped one of that name, with overrides as for `parse_scenario`."""
    shipped = _shipped_scenarios()
    path = Path(name_or_path) if Path(name_or_path).is_file() else shipped.get(name_or_path)
    if path is None:
        raise HarnessError(f"no scenario '{name_or_path}'", f"give a file, or one of {', '.join(shipped)}")
    return parse_scenario(read_text(path), str(path), overrides)


def _shipped_scenarios() -> dict[str, Path]:
    return {file.stem: file for file in sorted(data_path("scenarios").glob("*.yaml"))}


TERMS = ("input", "output", "context", "request")
"""Terms of device usage: uncached input tokens, output tokens, sum of the contexts of output tokens, requests.

`regression.split_usage` fits the coefficients to the `time_blocks` of runs. The runs must have the same model, device
and concurrency, because a larger batch needs less time per token."""

Amount = Draws | float
NOT_IDENTIFIED = "the runs do not identify it: measure mixes of input and output that differ more"


def time_blocks(requests: pd.DataFrame, device_count: int, number: int = 12) -> Array:
    """Counts and usage of a run in `number` equal time blocks, from the first send to the last end: one row per block.

    Columns are the counts of `TERMS`, then usage in device-seconds. Tokens of failed requests are left out, but not
    their time, which was paid for. Input tokens and the request count in the block of the first token, each output
    token in the block of its arrival, with the input and the output before it as its context. ValueError if no request
    succeeded.
    """
    done = requests[requests["error"].isna().to_numpy() & (flat(requests["arrival_s"])[1] > 0)]
    if done.empty:
        raise ValueError("no request succeeded")
    edges = np.linspace(float(requests["sent_s"].min()), float(requests["end_s"].max()), number + 1)

    def place(times: Array, weights: Array) -> Array:
        return np.histogram(times, edges, weights=weights)[0]

    inputs = done["input_tokens"].fillna(done["input_asked"]).to_numpy(float)
    uncached = inputs - done["cached_tokens"].fillna(0).to_numpy(float)
    (times, sizes), (tokens, _) = flat(done["arrival_s"]), flat(done["arrival_tokens"])
    starts = np.cumsum(sizes) - sizes
    arrived = np.cumsum(tokens)
    before = np.repeat(inputs - (arrived - tokens)[starts], sizes) + arrived - tokens
    # n tokens of one arrival have contexts c, c+1, …: their sum is n times the mean.
    context = (before + (tokens - 1) / 2) * tokens
    return np.column_stack([
        place(times[starts], uncached), place(times, tokens), place(times, context),
        place(times[starts], np.ones(len(done))), np.diff(edges) * device_count,
    ])  # fmt: skip


def usage_of(coefficients: Array, tokens_in: Amount, tokens_out: Amount, cached_share: Amount) -> Draws:
    """Usage of one request: a(1-h) n_in + b n_out + d n_out (n_in + n_out/2) + r; a, b, d, r are on the last axis.

    >>> float(usage_of(np.array([1.0, 10.0, 0.0, 5.0]), 100.0, 2.0, 0.25))
    100.0
    """
    a, b, d, r = np.moveaxis(np.asarray(coefficients), -1, 0)
    context = tokens_out * (tokens_in + tokens_out / 2)
    return np.asarray(a * (1 - cached_share) * tokens_in + b * tokens_out + d * context + r)


def cost_of_query(
    split: Split, mix: tuple[float, float], device: Device, scenario: Scenario, n: int = DEFAULT_DRAWS
) -> Costs:
    """Costs per query and per million tokens of each kind under a scenario from `priced`; `split` is in device-seconds.

    docs/economics.md has the formulas. The prices of input, output and request are parts of one bill: multiplied by
    uncached input tokens, output tokens and requests, they add up to the bill. `mix` (the runs' mean input and output
    tokens) replaces token counts missing in the scenario. If the runs do not identify a term, its price and that of a
    query are n/a; `cost_of_run` still gives the cost of the runs' own mix.
    """
    x = draw_inputs(scenario, n)

    def given(key: str, otherwise: float) -> Draws:
        return x.get(key, np.full_like(x[MEASURED], otherwise))

    tokens_in, cached = given("query.input_tokens", mix[0]), given("serving.cached_share", 0.0)
    tokens_out = given("query.visible_tokens", mix[1]) + given("query.reasoning_tokens", 0.0)
    typical = [float(np.median(values)) for values in (tokens_in, tokens_out, cached)]
    dearness = usage_of(split.replicates, *typical)
    rank = np.minimum((x[MEASURED] * len(dearness)).astype(int), len(dearness) - 1)
    beta = split.replicates[np.argsort(dearness)][rank]
    measured = np.maximum(usage_of(beta, *typical), 1e-300)  # avoids 0 / 0 for an empty split
    asked = usage_of(beta, tokens_in, tokens_out, cached)
    requests = (scenario.inputs["query.requests"].status, x["query.requests"])
    output = beta[:, 1] + beta[:, 2] * (tokens_in + tokens_out / 2)
    status: Status = "simulated" if device.kind == "none" else "derived"
    known, bill = dict(zip(TERMS, split.identified, strict=True)), bill_factors(scenario, x)
    rows: list[Row] = []
    for name, unit, factors, scale, needs in (
        ("usd_per_million_input_tokens", "USD/1e6 token", [("measured", beta[:, 0])], 1e6, ("input",)),
        ("usd_per_million_output_tokens_alone", "USD/1e6 token", [("measured", output)], 1e6, ("output", "context")),
        ("usd_per_request_alone", "USD/request", [("measured", beta[:, 3])], 1.0, ("request",)),
        ("usd_per_query", "USD/query", [("measured", measured), ("assumed", asked / measured), requests], 1.0, TERMS),
    ):
        missing = ", ".join(need for need in needs if not known[need])
        reason = scenario.no_price or (f"{missing}: {NOT_IDENTIFIED}" if missing else None)
        rows.append((name, unit, status, [*bill, *factors], scale / 3600, reason))
    notes = [
        f"phase split: {split.blocks} time blocks, rank {split.rank} of {len(TERMS)}, condition {split.condition:.3g}",
        "prices of input, output and request are parts of one bill: multiplied by their counts, they add up to it",
    ]
    parts = split.coefficients * split.totals
    if all(split.identified) and parts.sum() > 0:
        shares = zip(TERMS, parts / parts.sum(), strict=True)
        notes.append("of the runs' bill: " + ", ".join(f"{term} {share:.0%}" for term, share in shares))
    found = costed(scenario, rows, notes)
    coefficients = [_coefficient(split, term, status) for term in range(len(TERMS))]
    return replace(found, figures=(*coefficients, *found.figures))


def _coefficient(split: Split, term: int, status: Status) -> Figure:
    name, unit = f"device_s_per_{TERMS[term]}", f"s/{TERMS[term]}"
    if not split.identified[term]:
        return Figure(name, None, unit, status, reason=NOT_IDENTIFIED)
    return Figure(name, float(split.coefficients[term]), unit, status, *split.interval(term), n=split.blocks)
