"""Cost of a query and of a million input or output tokens, from the phase split of measured runs and a scenario."""

from dataclasses import replace

import numpy as np

from harness.analysis.regression import Split
from harness.cost.bill import Costs, Row, bill_factors, costed, draw_inputs
from harness.cost.draws import DEFAULT_DRAWS, Draws
from harness.cost.phases import TERMS, allocate, usage_of
from harness.cost.scenario import MEASURED, Scenario
from harness.model import Device, Figure, Status

NOT_IDENTIFIED = "the runs do not identify it: measure mixes of input and output that differ more"


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
    if all(split.identified):
        of_bill = allocate(split.coefficients, split.totals, 1.0).items()
        notes.append("of the runs' bill: " + ", ".join(f"{term} {share:.0%}" for term, share in of_bill))
    found = costed(scenario, rows, notes)
    coefficients = (_coefficient(split, term, status) for term in range(len(TERMS)))
    return replace(found, figures=(*coefficients, *found.figures))


def _coefficient(split: Split, term: int, status: Status) -> Figure:
    name, unit = f"device_s_per_{TERMS[term]}", f"s/{TERMS[term]}"
    if not split.identified[term]:
        return Figure(name, None, unit, status, reason=NOT_IDENTIFIED)
    return Figure(name, float(split.coefficients[term]), unit, status, *split.interval(term), n=split.blocks)
