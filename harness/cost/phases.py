"""Device time and cost of input tokens, output tokens, context and requests, from runs with different lengths."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from harness.analysis.regression import Split
from harness.cost.bill import Costs, Row, bill_factors, costed, draw_inputs
from harness.cost.draws import DEFAULT_DRAWS, Array, Draws
from harness.cost.scenario import MEASURED, Scenario
from harness.model import Device, Figure, Status
from harness.store.rows import flat

TERMS = ("input", "output", "context", "request")
"""Terms of device usage: uncached input tokens, output tokens, sum of the contexts of output tokens, requests.

`regression.split_usage` fits the coefficients to the `time_blocks` of runs. The runs must have the same model, device
and concurrency, because a larger batch needs less time per token."""

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


def usage_of(
    coefficients: Array, tokens_in: Draws | float, tokens_out: Draws | float, cached_share: Draws | float
) -> Draws:
    """Usage of one request: a(1-h) n_in + b n_out + d n_out (n_in + n_out/2) + r; a, b, d, r are on the last axis.

    >>> float(usage_of(np.array([1.0, 10.0, 0.0, 5.0]), 100.0, 2.0, 0.25))
    100.0
    """
    a, b, d, r = np.moveaxis(np.asarray(coefficients), -1, 0)
    context = tokens_out * (tokens_in + tokens_out / 2)
    return np.asarray(a * (1 - cached_share) * tokens_in + b * tokens_out + d * context + r)


def allocate(coefficients: Array, counts: Array, usage: float) -> Mapping[str, float]:
    """`usage` divided between the terms in proportion to the fit, so that the terms add up to `usage` exactly.

    `counts` are the run's totals in the order of `TERMS`. ValueError if the fit explains nothing.

    >>> dict(allocate(np.array([1.0, 2.0, 0.0, 0.0]), np.array([10.0, 5.0, 7.0, 1.0]), 40.0))
    {'input': 20.0, 'output': 20.0, 'context': 0.0, 'request': 0.0}
    """
    fitted = coefficients * counts
    if not fitted.sum() > 0:
        raise ValueError("the phase split explains none of this run's usage")
    return dict(zip(TERMS, (float(x) for x in fitted / fitted.sum() * usage), strict=True))


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
