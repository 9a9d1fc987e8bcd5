"""What a query and a million tokens of each kind cost, from the phase split of measured runs and a scenario."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from harness.economics.cost import (
    Costs,
    Device,
    Factor,
    bill_factors,
    costed,
    draw_inputs,
    priced,
)
from harness.economics.draws import DEFAULT_DRAWS, Draws
from harness.economics.gpus import Gpu
from harness.economics.phases import TERMS, PhaseSplit, allocate, usage_of
from harness.economics.scenario import MEASURED, Price, Scenario
from harness.model import Figure, Status

NOT_IDENTIFIED = "the runs do not tell it apart: measure mixes of input and output that differ more"


def cost_of_query(
    split: PhaseSplit,
    mix: tuple[float, float],
    device: Device,
    scenario: Scenario,
    gpus: tuple[Gpu, ...],
    prices: tuple[Price, ...],
    n: int = DEFAULT_DRAWS,
    seed: int = 0,
) -> Costs:
    """Costs per query and per million tokens of each kind; `split` is in device-seconds.

    With a, b, d, r the split, ctx the mean context of an output token and p kappa / U the bill for a device-second:
    n_out = query.visible_tokens + query.reasoning_tokens; GPU_s_q = query.requests * usage_of(...);
    usd_per_query = p kappa / U * GPU_s_q; usd_per_million_input_tokens = p kappa / U * a * 1e6;
    usd_per_million_output_tokens_alone = p kappa / U * (b + d ctx) * 1e6; usd_per_request_alone = p kappa / U * r.
    The last three are parts of one bill: times uncached input, output and requests they add up to it. Token counts that
    the scenario does not give are `mix`, the runs' mean input and output. A term that the runs do not identify makes
    its price n/a, and the query's; `cost_of_run` still gives the blended cost of the runs' own mix.
    """
    ready = priced(scenario, device, gpus, prices)
    used = ready if isinstance(ready, Scenario) else scenario
    x = draw_inputs(used, n, seed)
    tokens = _tokens(x, mix)
    typical = {key: float(np.median(values)) for key, values in tokens.items()}
    dearness = usage_of(split.replicates, typical["in"], typical["out"], typical["cached"])
    rank = np.minimum((x[MEASURED] * len(dearness)).astype(int), len(dearness) - 1)
    beta = split.replicates[np.argsort(dearness)][rank]
    context = tokens["in"] + tokens["out"] / 2
    status: Status = "simulated" if device.kind == "none" else "derived"
    figures = [replace(_coefficient(split, term), status=status) for term in range(len(TERMS))]
    parts = {}
    known = dict(zip(TERMS, split.identified, strict=True))
    for name, unit, term, needs in (
        ("usd_per_million_input_tokens", "USD/1e6 token", 0, ("input",)),
        ("usd_per_million_output_tokens_alone", "USD/1e6 token", 1, ("output", "context")),
        ("usd_per_request_alone", "USD/request", 3, ("request",)),
        ("usd_per_query", "USD/query", None, TERMS),
    ):
        missing = [need for need in needs if not known[need]]
        reason = ready if isinstance(ready, str) else f"{', '.join(missing)}: {NOT_IDENTIFIED}" if missing else None
        if reason is not None:
            figures.append(Figure(name, None, unit, status, reason=reason))
            continue
        scale = 1.0
        if term is None:
            measured = usage_of(beta, typical["in"], typical["out"], typical["cached"])
            factors = [
                Factor("phase split", "measured", measured),
                Factor("tokens", "assumed", usage_of(beta, tokens["in"], tokens["out"], tokens["cached"]) / measured),
                Factor("query.requests", used.inputs["query.requests"].status, x["query.requests"]),
            ]
        else:
            values = beta[:, term] + (beta[:, 2] * context if term == 1 else 0.0)
            factors = [Factor("phase split", "measured", values)]
            scale = 1e6 if term < 2 else 1.0
        made, parts[name] = costed(name, unit, status, [*bill_factors(used, x), *factors], scale / 3600)
        figures += made
    notes = [
        f"phase split: {split.blocks} time blocks, rank {split.rank} of {len(TERMS)}, condition {split.condition:.3g}",
        "prices of input, output and request are parts of one bill: times their counts they add up to it",
    ]
    if all(split.identified):
        shares = allocate(split.coefficients, split.totals, 1.0).items()
        notes.append("of the runs' bill: " + ", ".join(f"{term} {share:.0%}" for term, share in shares))
    return Costs(scenario.name, tuple(figures), parts, tuple(used.inputs.values()), tuple(notes))


def _tokens(x: dict[str, Draws], mix: tuple[float, float]) -> dict[str, Draws]:
    """Input, output (visible and reasoning) and cached share of a request, each an array of draws."""
    like = x[MEASURED]

    def given(key: str, otherwise: float) -> Draws:
        return x[key] if key in x else np.full_like(like, otherwise)

    visible = given("query.visible_tokens", mix[1])
    out = visible + given("query.reasoning_tokens", 0.0)
    return {"in": given("query.input_tokens", mix[0]), "out": out, "cached": given("serving.cached_share", 0.0)}


def _coefficient(split: PhaseSplit, term: int) -> Figure:
    name, unit = f"device_s_per_{TERMS[term]}", f"s/{TERMS[term]}"
    if not split.identified[term]:
        return Figure(name, None, unit, "derived", reason=NOT_IDENTIFIED)
    low, high = np.quantile(split.replicates[:, term], (0.025, 0.975))
    return Figure(name, float(split.coefficients[term]), unit, "derived", float(low), float(high), n=split.blocks)
