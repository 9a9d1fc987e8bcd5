"""Figures of a run's requests: throughput, latency, goodput and tokens. docs/method.md has every formula."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness import stats
from harness.analysis.part import STAMP_S, Part
from harness.analysis.times import OBJECTIVES, Times, error_kinds, firsts, numbers, times
from harness.analysis.tokens import (
    blocks,
    by_conversation,
    in_flight,
    mean_position,
    ordinary,
    output_until,
    stalls,
    those,
    within,
)
from harness.analysis.window import Window, find_window, of_stage
from harness.errors import HarnessError
from harness.model import Figure, Summary
from harness.store.rows import flat
from harness.workload.arrivals import Stage

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
LATENCIES: Mapping[str, str] = {
    "ttft_s": "no request succeeded with a token",
    "itl_s": "no request succeeded with two arrivals",
    "tpot_s": "no request succeeded with two arrivals",
    "e2e_s": "no request succeeded with a token",
    "response_s": "no request succeeded with a token",
    "lag_s": "no request was sent",
}
"""Latency -> the reason if no request has one."""
PERCENTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
STATISTICS = ("mean", *PERCENTILES)
LATENCY_FIGURES = tuple(f"{latency}.{statistic}" for latency in LATENCIES for statistic in STATISTICS)
NO_SUCCESS = "no request succeeded"
HIDDEN = "the server counted tokens that it did not send"
BETWEEN_TOKENS = ("tpot_s", "itl_s")
"""Latencies, and objectives on them, that a request with hidden tokens does not have."""
WINDOW: Mapping[str, str] = {
    "window.begin_s": "s",
    "window.end_s": "s",
    "window.share": "share",
    "window.position_coverage": "ratio",
    "window.bias": "share",
}
"""Figures of the measured window, and their units."""
CONTEXT_SHARE = 0.4
"""Share of the time of a token that is in proportion to its context, of a large batch with long contexts."""
SHORT = 0.1
"""Share of the gaps that are taken for those of engine steps without a prompt."""


def window_of(
    requests: pd.DataFrame,
    state: str,
    shape: str,
    users: int | None = None,
    watts: Callable[[Array], Array] | None = None,
    stages: Sequence[Stage] = (),
) -> Window | None:
    """The measured window of a run (`harness.analysis.window.find_window`); None if no request was sent.

    Of a load of steps that of the highest step, the first of several, with those of all: what is compared must not
    depend on what was measured.
    """
    spans = those(requests, requests["sent_s"].notna().to_numpy())
    if spans.empty:
        return None
    completed = (requests["end_s"].notna() & requests["error"].isna()).to_numpy(bool)
    first_s = np.concatenate([firsts(*flat(part["arrival_s"])) for part in blocks(spans)])
    each = spans[["sent_s", "end_s", "age_tokens"]].copy()
    each["failed"] = spans["error"].notna()
    each["first_s"] = np.where(np.isnan(first_s), each["end_s"], first_s)
    each = by_conversation(each, spans)
    if not each["sent_s"].is_monotonic_increasing:
        each = each.sort_values("sent_s", kind="stable")
    stalls_s = stalls(requests, [stage.begin_s for stage in stages])

    def find(each: pd.DataFrame, **load: Any) -> Window:
        kept = completed & in_flight(requests, each["sent_s"].min(), load.get("until_s", np.inf))
        load |= {name: each[name].to_numpy(float) for name in ("sent_s", "first_s", "end_s")}
        load |= {"load_only": ~ordinary(each), "failed": each["failed"].to_numpy(bool)}
        return find_window(output=partial(output_until, requests, kept=kept), watts=watts, stalls_s=stalls_s, **load)

    whole = find(each, shape=shape, users=users, complete=state == "complete")
    if not stages or state != "complete":
        return whole
    steps = tuple(of_stage(stage, each, find) for stage in stages)
    top = steps[int(np.argmax([stage.level for stage in stages]))]
    return replace(top if top.whole is None else replace(whole, stage=top.stage, whole=top.whole), steps=steps)


def members(requests: pd.DataFrame, window: Window | None) -> Mask:
    """Which requests are measured and were sent within the window; all measured ones if it is None or the whole run."""
    kept = ordinary(requests)
    if window is not None and window.whole is None:
        kept &= requests["sent_s"].between(window.begin_s, window.end_s, inclusive="left").to_numpy(bool)
    return kept


def summarise(
    run: str,
    state: str,
    requests: pd.DataFrame,
    objectives: Mapping[str, float | None],
    simulated: bool,
    window: Window | None = None,
) -> Summary:
    """A run's figures, without findings (`harness.analysis.findings` has those).

    `objectives` are upper limits in seconds, None for no limit; `simulated` sets the status of all figures. Rates and
    latencies are those of the `window`, or of the whole run if it is None. A figure without a value has a reason.
    HarnessError for an unknown objective.
    """
    if not requests["sent_s"].is_monotonic_increasing:
        requests = requests.sort_values("sent_s", kind="stable")
    seen, duration = times(requests, state), _duration(requests)
    rows, inside = _inside(window, requests, seen, duration)
    measured = _measured(rows, inside)
    limits = {name: limit for name, limit in objectives.items() if limit is not None}
    figures = [
        duration,
        *_window(window, rows, inside, duration),
        *_counts(requests, seen),
        *measured,
        *_goodput(rows, inside, limits),
        *_tokens(requests, seen),
    ]
    if window is not None and window.whole is None:
        del rows, inside  # a part takes some 50 bytes a request
        measured = _measured(requests, Part.of_run(requests, seen, duration.value))
    figures += [replace(figure, name=f"whole_run.{figure.name}") for figure in measured]
    for i, step in enumerate(window.steps if window is not None else (), 1):
        figures += [replace(figure, name=f"step.{i}.{figure.name}") for figure in _of_step(step, requests, limits)]
    if simulated:
        figures = [replace(figure, status="simulated") for figure in figures]
    return Summary(run, state, tuple(figures), error_kinds(requests[seen.failed & ordinary(requests)]))


def _inside(window: Window | None, requests: pd.DataFrame, seen: Times, duration: Figure) -> tuple[pd.DataFrame, Part]:
    """The measured part and the requests that it counts; the whole run if there is no window."""
    if window is None or window.whole is not None:
        return requests, Part.of_run(requests, seen, duration.value)
    if window.stage is not None:
        requests = within(requests, window.since_s, window.stage.end_s)
        seen = times(requests, "complete")
    return requests, Part.of_window(requests, seen, window)


def _of_step(step: Window, requests: pd.DataFrame, limits: Mapping[str, float]) -> Iterator[Figure]:
    """What was asked in a step, and its figures; without a window they have no value, as those of a ramp would be."""
    stage = step.stage
    assert stage is not None
    yield Figure("load", stage.level, "users" if stage.rate_per_s is None else "requests/s", "derived")
    length = Figure("duration_s", stage.end_s - stage.begin_s, "s", "derived")
    few = requests if step.whole is None else requests.iloc[:0]
    rows, part = _inside(step, few, times(few.iloc[:0], "complete"), length)
    for figure in (*_window(step, rows, part, length), *_measured(rows, part), *_goodput(rows, part, limits)):
        lost = step.whole is not None
        yield replace(figure, value=None, low=None, high=None, reason=step.whole) if lost else figure


def _window(window: Window | None, requests: pd.DataFrame, part: Part, duration: Figure) -> list[Figure]:
    """Where the window lies, and how well its tokens represent those of whole answers."""
    if window is None or duration.value is None:
        reason = duration.reason or "the window was not searched"
        return [Figure(name, None, unit, "measured", reason=reason) for name, unit in WINDOW.items()]
    here, everywhere = mean_position(requests, window.begin_s, window.end_s, part.seen.completed)
    bias = None if window.whole is not None else _bias_of_mix(requests, part, window, here, everywhere)
    values = {
        "window.begin_s": (window.begin_s, None),
        "window.end_s": (window.end_s, None),
        "window.share": ((window.end_s - window.begin_s) / duration.value if duration.value else None, window.whole),
        "window.position_coverage": (here / everywhere if here and everywhere else None, NO_SUCCESS),
        "window.bias": (bias, window.whole or "no measured request began or ended in the window"),
    }
    n = round(part.counts["request"])
    return [
        Figure(name, x, WINDOW[name], "measured", n=n, reason=why if x is None or name == "window.share" else None)
        for name, (x, why) in values.items()
    ]


def _bias_of_mix(
    requests: pd.DataFrame, part: Part, window: Window, here: float | None, everywhere: float | None
) -> float | None:
    """How much rates may be off because the window's tokens are of another mix than those of whole answers.

    Tokens for each first token, against the mean answer: off by the share of a request's time before its first token,
    or, beyond the chance of lengths, by the share of the gaps that the shortest tenth does without: reading prompts.
    The mean context of the tokens: off by up to `CONTEXT_SHARE`. docs/method.md has the simulations.
    """
    seen, kept = part.seen, ordinary(requests) & part.seen.completed
    begun = int(((seen.first_s > window.begin_s) & (seen.first_s <= window.end_s))[kept].sum())
    waits, stays = (pd.Series(seen[name][part.sent]).mean() for name in ("ttft_s", "e2e_s"))
    if not here or not everywhere or not begun or not stays > 0:
        return None
    gaps_s, _ = part.ordered("itl_s")
    reads = 1 - stats.percentile(gaps_s, SHORT) / gaps_s.mean() if gaps_s.any() else 0.0
    del gaps_s
    answers = seen.arrived_tokens[kept]
    balance = abs(part.counts["output_token"] / (begun * float(answers.mean())) - 1)
    chance = float(answers.std(ddof=0) / answers.mean()) / begun**0.5
    context = (here - everywhere) / (float(requests["input_asked"][kept].mean()) + everywhere)
    off = float(max(balance * waits / stays, (balance - chance) * reads))
    return off + CONTEXT_SHARE * abs(context)


def _duration(requests: pd.DataFrame) -> Figure:
    """Time from the first due time to the last sending, arrival or end of any request, failed ones included."""
    if requests.empty:
        return Figure("duration_s", None, "s", "measured", n=0, reason="no request was sent")
    cut = requests[requests["end_s"].isna()]
    ends_s = flat(cut["arrival_s"])[0], numbers(requests["end_s"]), numbers(requests["sent_s"])
    last = max(float(np.nanmax(each, initial=-np.inf)) for each in ends_s)
    return Figure("duration_s", last - float(requests["scheduled_s"].min()), "s", "measured", n=len(requests))


def _counts(requests: pd.DataFrame, seen: Times) -> list[Figure]:
    """Numbers of measured requests."""
    kept = ordinary(requests)
    sent = int((requests["sent_s"].notna() & kept).sum())
    completed, failed = int((seen.completed & kept).sum()), int((seen.failed & kept).sum())
    counts = {"sent": sent, "completed": completed, "failed": failed, "unfinished": sent - completed - failed}
    return [Figure(f"requests.{name}", float(count), "requests", "measured", n=sent) for name, count in counts.items()]


def _measured(requests: pd.DataFrame, part: Part) -> list[Figure]:
    """Rates and latencies."""
    return [*_rates(requests, part), *(figure for name in LATENCIES for figure in _spread(name, part))]


def _rates(requests: pd.DataFrame, part: Part) -> list[Figure]:
    """Completed requests and their tokens per second."""
    done, n = part.seen.completed, round(part.counts["request"])
    _, unknown = _sum(requests["input_tokens"], done)
    outputs, inputs = (np.where(done, x, 0.0) for x in (part.seen.output_tokens, numbers(requests["input_tokens"])))
    rates = {
        "requests_per_s": ("requests/s", ["request"], done.astype(float), None),
        "output_tokens_per_s": ("tokens/s", ["output_token"], outputs, None),
        "input_tokens_per_s": ("tokens/s", ["input_token"], inputs, unknown),
        "total_tokens_per_s": ("tokens/s", ["input_token", "output_token"], inputs + outputs, unknown),
    }
    made = []
    for name, (unit, counts, each, why) in rates.items():
        total = None if why else sum(part.counts[count] for count in counts)
        slices = part.slices.reindex(columns=counts).sum(axis=1).to_numpy()
        made.append(part.basis.rate(_rate(name, total, unit, part.length_s, n, why), slices, each))
    return made


def _rate(
    name: str, total: float | None, unit: str, duration_s: float | None, completed: int, unknown: str | None = None
) -> Figure:
    """`total` per second; None if the total is unknown, if no request succeeded, or if the duration is 0."""
    if completed and total is not None and duration_s is not None and duration_s > 0:
        return Figure(name, total / duration_s, unit, "measured", n=completed)
    reason = unknown or "the measured part has no length"
    return Figure(name, None, unit, "measured", n=completed, reason=reason if completed else NO_SUCCESS)


def _sum(column: pd.Series, kept: Mask) -> tuple[float | None, str | None]:
    """The total over these requests; None and the reason if the engine did not report it for all of them."""
    values = numbers(column)[kept]
    known = int((~np.isnan(values)).sum())
    if known < len(values):
        return None, f"the engine counted them for {known} of {len(values)} requests"
    return (float(values.sum()), None) if known else (None, NO_SUCCESS)


def _spread(name: str, part: Part) -> list[Figure]:
    """Mean and percentiles of one of `LATENCIES`. ITL is pooled: the gaps of one request depend on each other."""
    ordered, weights = part.ordered(name)
    n = len(ordered)
    if n == 0:
        why = HIDDEN if part.seen.hidden_tokens.any() and name in BETWEEN_TOKENS else LATENCIES[name]
        return [Figure(f"{name}.{stat}", None, "s", "measured", n=0, reason=why) for stat in STATISTICS]
    quantiles = [stats.percentile(ordered, p, weights) for p in PERCENTILES.values()]
    rows, sizes, sums, *above = part.by_request(name, quantiles if name == "itl_s" else ())
    shown = part.shown(name)
    mean = Figure(f"{name}.mean", float(sums.sum() / sizes.sum()), "s", "measured", n=n)
    figures = [part.basis.mean(mean, rows, part.by_chance(name, rows, sums, sizes), sizes)]
    for (stat, p), value in zip(PERCENTILES.items(), quantiles, strict=True):
        passed = above.pop(0) if above else np.where(sums > (value + STAMP_S) * sizes, sizes, 0)
        passed = part.by_chance(name, rows, passed, sizes)
        low, high, reason = part.basis.between(p, ordered, weights, rows, passed, sizes)
        if p > shown:
            why = f"{1 - shown:.2g} of the requests take longer than the window can show"
            figures.append(Figure(f"{name}.{stat}", None, "s", "measured", n=n, reason=why))
            continue
        figures.append(Figure(f"{name}.{stat}", value, "s", "measured", low, high, n, reason))
    return figures


def _goodput(requests: pd.DataFrame, part: Part, limits: Mapping[str, float]) -> list[Figure]:
    """Requests that met all objectives, per second and as a share of completed and failed ones; then each objective.

    Latencies are those of whole requests, and count from the due time. An answer with one arrival has no gap between
    tokens and meets limits on gaps; of one with hidden tokens the gaps are unknown.
    """
    seen = part.seen
    answered = seen.completed & ~np.isnan(seen.first_s)
    met = {"objectives_met": answered}
    for name, limit in limits.items():
        if name not in OBJECTIVES:
            raise HarnessError(f"unknown objective '{name}'", f"choose from {', '.join(OBJECTIVES)}")
        met[f"objectives_met.{name}"] = answered & ~(seen[OBJECTIVES[name]] > limit)
    met["objectives_met"] = np.logical_and.reduce(list(met.values()))
    over = np.flatnonzero(part.whole & (seen.completed | seen.failed))
    judged, completed = len(over), part.counts["request"]
    absent = "the workload has no objectives" if not limits else NO_SUCCESS if not completed else None
    absent = absent or (None if judged else "no whole request ended in the window")
    unknown = set(limits) & set(BETWEEN_TOKENS) if seen.hidden_tokens.any() else set()
    why = {name: absent or (HIDDEN if name.partition(".")[2] in unknown else None) for name in met}
    why["objectives_met"] = absent or (HIDDEN if unknown else None)
    share = {name: None if why[name] else part.share(good, over) for name, good in met.items()}
    # The first wave ends requests too, but its shortened answers are not judged.
    good = None if share["objectives_met"] is None else share["objectives_met"] * (completed + part.counts["failed"])
    rate = _rate("goodput_per_s", good, "requests/s", part.length_s, round(completed), why["objectives_met"])
    ends_s = numbers(requests["end_s"])[met["objectives_met"] & part.ended]
    slices = np.histogram(ends_s, part.cuts)[0] if len(part.cuts) else part.cuts
    rate = part.basis.rate(rate, slices.astype(float), met["objectives_met"].astype(float))
    return [rate, *(Figure(name, x, "share", "measured", n=judged, reason=why[name]) for name, x in share.items())]


def _tokens(requests: pd.DataFrame, seen: Times) -> list[Figure]:
    """Tokens asked for and received by the completed requests, and the share of gaps between tokens not observed."""
    done = seen.completed & ordinary(requests)
    n, output = int(done.sum()), seen.output_tokens[done]
    totals = {
        "input_tokens.asked": _sum(requests["input_asked"], done),
        "input_tokens.got": _sum(requests["input_tokens"], done),
        "output_tokens.asked": _sum(requests["output_asked"], done),
        "output_tokens.got": (float(output.sum()), None) if n else (None, NO_SUCCESS),
        "cached_tokens": _sum(requests["cached_tokens"], done),
        "hidden_tokens": (float(seen.hidden_tokens[done].sum()), None) if n else (None, NO_SUCCESS),
    }
    shown = seen.completed & (seen.hidden_tokens == 0)  # as the gaps
    between = float(np.maximum(seen.arrived_tokens[shown] - 1, 0).sum())
    unseen = (1 - float(seen.gaps.sum()) / between, None) if between else (None, "no answer has two tokens")
    return [
        *(Figure(name, value, "tokens", "measured", n=n, reason=why) for name, (value, why) in totals.items()),
        Figure("unseen_gaps", unseen[0], "share", "measured", n=int(between), reason=unseen[1]),
    ]
