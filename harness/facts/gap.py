"""The gap between the reported and the measured cost of a prompt, and what must be true of the provider to close it.

The bill for a prompt = GPU-seconds a token x (output + weight x input tokens) x price / 3600 x overhead x efficiency x
latency x supplier's share / (utilisation x chat's share x text's share x serving share). docs/reported.md explains it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from harness.cost.draws import Array, Draws, distribution, draw, log_moments, quantile
from harness.facts.book import Assumption
from harness.facts.claims import Quantity
from harness.facts.formulas import Context, quantity
from harness.files import data_rows
from harness.model import Figure
from harness.predict.predict import Plan, predict

READINGS = tuple(f"spend_query_{name}" for name in ("x01", "x03", "x162", "x163", "linear", "log"))
"""Rows of comparisons.csv: the bill of Jan-Sep 2025 a prompt, for each reading of the volume."""
PUBLISHED_INPUT = 200.0
"""Mean prompt of the published chat points in tokens, assumed: the files do not say."""
LARGE = 60e9
"""Fewest parameters of a published model that may stand for one that a provider serves."""
FEWEST = 100
"""With fewer effective draws no value is given for what must be true."""
MODEL = "model"
MODEL_FACTOR = Assumption(
    name=MODEL, label="GPU-s a million tokens", low=None, value=1.0, high=None, unit="GPU-second/Mtoken",
    status="published", source="predicted for large open models on H100: dense, mixture of experts, hybrid", ladder="*",
)  # fmt: skip
Model = Callable[[Mapping[str, Draws], float], Draws]
EVEN = distribution("uniform", 0, 1)
CANDIDATES = data_rows("provider_models.csv")
"""Models that may stand for the provider's: kind (dense, moe; hybrid: most layers have no KV cache that grows), model,
precision of the weights."""
GPU, PLAN = "H100", Plan(128, 1150, 500)
"""Candidates for the provider's model are predicted on this GPU, with these sequences in flight in a group of GPUs and
these tokens of a prompt: 25 to 55 ms between tokens."""
GRID = (np.arange(256) + 0.5) / 256


@lru_cache(maxsize=1)
def predicted() -> Mapping[str, tuple[Array, ...]]:
    """Kind -> for each of its candidates ln device-seconds of an output token, at the quantiles GRID."""
    found: dict[str, list[Array]] = {}
    for each in CANDIDATES:
        seconds = predict(each["model"], GPU, replace(PLAN, precision=each["precision"]), GRID).device_s
        found.setdefault(each["kind"], []).append(np.log(np.sort(seconds)))
    return {kind: tuple(found[kind]) for kind in sorted(found)}


def provider_seconds(x: Mapping[str, Draws], weight: float) -> Draws:
    """ln device-seconds of a token, an input token counted as `weight` output tokens.

    Each kind is as likely as any other, and so is each candidate of a kind; the error of the prediction is included.
    `x` has uniform draws: `kind`, `place` (the candidate) and `error`.
    """
    kinds = [[np.interp(x["error"], GRID, each) for each in each_kind] for each_kind in predicted().values()]
    levels = [pick(models, x["place"]) for models in kinds]
    return pick(levels, x["kind"]) - math.log(1 + weight * PLAN.input / PLAN.output)


def pick(levels: list[Draws], u: Draws) -> Draws:
    """In each draw one of the levels, each with the same probability."""
    return np.array(np.choose(np.minimum((u * len(levels)).astype(int), len(levels) - 1), levels))


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measured cost and energy of a query, from a run or from published data. None: unknown."""

    source: str
    """The run's id, or the name of the data set."""
    model: str
    period: str
    """The date of the run, or the year of the data."""
    conditions: str
    """Devices, and engine and scenario or batch and latency."""
    usd_per_query: Figure
    wh_per_query: Figure | None
    gpu_s: float | None
    """Device-seconds of a query at the measured rate."""
    output_tokens: float | None
    """Per query."""
    input_tokens: float | None
    usd_per_gpu_hour: float | None
    utilisation: float = 1.0
    """Share of the time that the device is busy, as the cost assumes; 1 is steady load at the measured rate."""
    kind: str = ""
    """Of a published model: dense, moe or hybrid."""
    parameters: float | None = None
    calibration: float | None = None
    """Measured / predicted device-seconds of an output token of the run."""
    doubt: str = ""
    """Why the run shows how the method works, and is no evidence; empty for evidence."""


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor of the bill: your value, what is believed, and what it must be if all factors make up the bill."""

    name: str
    label: str
    start: Figure
    believed: Figure
    needed: Figure
    share: float | None
    """Share of the belief below the median of what must be, 0.5 for an exact belief; None: unknown."""

    @property
    def width(self) -> float:
        """p95 / p5 of the belief."""
        low, high = self.believed.low, self.believed.high
        return high / low if low and high else 1.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """The reported bill for a prompt beside the measured cost, and the provider's factors. Figures have p5 and p95."""

    reported: Figure
    measured: Figure
    gap: Figure
    """Reported / measured."""
    left: Figure
    """Reported / what the believed factors make."""
    reach: float
    """Probability that the believed factors reach the reported bill."""
    factors: tuple[Factor, ...]


def published_measurements(usd_per_gpu_hour: float, *, p99_itl_s: float = 0.2) -> tuple[Measurement, ...]:
    """Of each model the chat row of ML.ENERGY's H100 table with the most tokens/s per GPU, in order of the names.

    Only rows whose p99 ITL is at most `p99_itl_s` count. USD/query = output tokens x GPUs x price / (3600 x tokens/s);
    Wh/query covers the GPUs alone. Each row is one run, so there is no interval.
    """
    chat = [row for row in data_rows("published/mlenergy_v3_h100.csv") if row["task"] == "lm-arena-chat"]
    fast = [row for row in chat if float(row["p99_itl_ms"]) <= p99_itl_s * 1000]
    best = {row["model_id"]: row for row in sorted(fast, key=_gpu_s_per_token, reverse=True)}
    return tuple(_published(best[model], usd_per_gpu_hour) for model in sorted(best))


def agreement(
    c: Context, points: Sequence[Measurement], starts: Sequence[Measurement], model: Model = provider_seconds
) -> Agreement:
    """The gap as a distribution over cost, readings of the volume and models, and what must be true to close it.

    `points` are published measurements; without `starts` the large ones of them are the measured cost, each kind and
    each model as likely as any other. `model` is the belief about the provider's model (`provider_seconds`),
    scaled by measured / predicted of the runs. HarnessError if there is no reported bill a prompt.
    """
    large = [point for point in points if (point.parameters or 0) >= LARGE]
    factors = [a for a in c.book.assumptions.values() if a.ladder]
    even = dict.fromkeys(("reading", "kind", "place", "error", "measured"), EVEN)
    x = draw({a.name: a.distribution for a in factors} | even)
    reported = _readings(c, x["reading"])
    weight = c.book.assumptions["input_weight"].value
    ratios = [each.calibration for each in starts if each.calibration is not None]
    seconds = model(x, weight) + (np.mean(np.log(ratios)) if ratios else 0.0)
    measured = _costs(starts or large, x) + _doubt(starts, x["measured"])
    bill = seconds + np.log(x["tokens_per_query"] + weight * x["input_tokens"]) - math.log(3600)
    for a in factors:
        bill = bill + _sign(a) * np.log(x[a.name])
    believed = {MODEL: np.exp(seconds) * 1e6, **{a.name: x[a.name] for a in factors}}
    possible = _possible(believed, factors)
    needed, weights = conditioned(believed, factors, reported - bill)
    believed = {name: draws[possible] for name, draws in believed.items()}
    own: dict[str, float | None] = {MODEL: _own(starts or large, weight)}
    for name, field in FIELDS.items():
        values = [value for each in starts if (value := getattr(each, field)) is not None]
        own[name] = float(np.median(values)) if values else None
    return Agreement(
        figure("reported_usd_per_query", "USD/prompt", np.exp(reported)),
        figure("measured_usd_per_query", "USD/query", np.exp(measured)),
        figure("gap", "ratio", np.exp(reported - measured)),
        figure("left", "ratio", np.exp(reported - bill)[possible]),
        float(np.mean((bill >= reported)[possible])),
        tuple(_factor(a, believed[a.name], needed[a.name], weights, own.get(a.name)) for a in (MODEL_FACTOR, *factors)),
    )


def bill_a_prompt(c: Context) -> Figure:
    """The reported bill a prompt, over all readings of the volume."""
    return figure("reported_usd_per_query", "USD/prompt", np.exp(_readings(c, draw({"reading": EVEN})["reading"])))


def _readings(c: Context, u: Draws) -> Draws:
    """ln of the reported bill a prompt, between the readings of the volume."""
    return np.asarray(np.quantile(np.log([quantity(c, name).value or math.nan for name in READINGS]), u))


def conditioned(
    believed: Mapping[str, Draws], factors: Sequence[Assumption], missing: Draws
) -> tuple[dict[str, Draws], Array]:
    """Draws and weights of the factors, given that they make up the bill; `missing` is ln (reported / believed bill).

    In each draw the widest lognormal factor takes the value that closes the gap, weighted by its density: exact
    for any distributions of the others. A fraction above 1 has weight 0, and so has everything if no factor is
    lognormal.
    """
    wide = {a.name: a for a in factors if a.given is None and _width(a) > 1 and _sign(a)}
    if not wide:
        return dict(believed), np.zeros(len(missing))
    pivot = max(wide.values(), key=_width)
    mean, sd = log_moments(pivot.low or 1, pivot.high or 1)
    value = np.log(believed[pivot.name]) + _sign(pivot) * missing
    moved = {**believed, pivot.name: np.exp(value)}
    return moved, np.exp(-0.5 * ((value - mean) / sd) ** 2) * _possible(moved, factors)


def figure(name: str, unit: str, values: Draws, weights: Array | None = None, n: int | None = None) -> Figure:
    """p5, median and p95 of draws; `n` is the number of effective draws, if they are weighted."""
    how: dict[str, Any] = {} if weights is None else {"weights": weights, "method": "inverted_cdf"}
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95), **how).tolist()
    return Figure(name, middle, unit, "derived", low, high, n, interval="p5-p95")


def layer_of(figure: Figure) -> str:
    """`outside` for a published measurement, `run` for a run of the user."""
    return "outside" if figure.status == "published" else "run"


def _factor(a: Assumption, believed: Draws, needed: Draws, weights: Array, own: float | None) -> Factor:
    effective = float(weights.sum() ** 2 / np.sum(weights**2)) if weights.any() else 0.0
    start = Figure(a.name, own, a.unit, "measured", reason=None if own else "not a property of the measurement")
    before = figure(a.name, a.unit, believed)
    if effective < FEWEST:
        reason = f"{effective:.0f} effective draws close the gap, {FEWEST} are needed: widen a factor (LOW:HIGH)"
        return Factor(a.name, a.label, start, before, Figure(a.name, None, a.unit, "derived", reason=reason), None)
    after = figure(a.name, a.unit, needed, weights, int(effective))
    share = float(np.mean((np.sign((after.value or 0.0) - believed) + 1) / 2))
    return Factor(a.name, a.label, start, before, after, share)


def _possible(x: Mapping[str, Draws], factors: Sequence[Assumption]) -> Draws:
    """True where no fraction is above 1."""
    return np.asarray(np.all([x[a.name] <= 1 for a in factors if a.unit == "fraction"], axis=0))


def _sign(a: Assumption) -> int:
    """The power of a factor in the bill; 0 for tokens, which are a sum."""
    return {"*": 1, "/": -1}.get(a.ladder, 0)


def _width(a: Assumption) -> float:
    return (a.high or 1.0) / (a.low or 1.0)


def _costs(found: Sequence[Measurement], x: Mapping[str, Draws]) -> Draws:
    """Draws of ln cost: each kind as likely as any other, between the costs of its measurements."""
    kinds: dict[str, list[float]] = {}
    for each in found:
        kinds.setdefault(each.kind, []).append(math.log(each.usd_per_query.value or math.nan))
    levels = [np.quantile(values, x["place"]) for _, values in sorted(kinds.items())]
    return pick(levels, x["kind"])


def _doubt(starts: Sequence[Measurement], u: Draws) -> Draws:
    """ln of the mean doubt about the cost of the runs; 0 without intervals."""
    costs = [each.usd_per_query for each in starts]
    halves = [math.log(cost.high / cost.low) / 2 for cost in costs if cost.low and cost.high]
    half = sum(halves) / len(costs) if halves else 0.0
    return np.log(quantile(distribution("lognormal", math.exp(-half), math.exp(half)), u))


def _own(found: Sequence[Measurement], weight: float) -> float | None:
    """Median device-seconds of a million output tokens; an input token counts as `weight` of them. None if unknown."""
    values = []
    for each in found:
        if not each.gpu_s or not each.output_tokens:
            return None
        values.append(1e6 * each.gpu_s / (each.output_tokens + weight * (each.input_tokens or 0.0)))
    return float(np.median(values)) if values else None


FIELDS = {"tokens_per_query": "output_tokens", "input_tokens": "input_tokens", "utilisation": "utilisation",
          "gpu_price": "usd_per_gpu_hour"}  # fmt: skip
"""Factor -> the field of a measurement that holds your value of it."""


def _gpu_s_per_token(row: Mapping[str, str]) -> float:
    return int(row["num_gpus"]) / float(row["output_throughput_tokens_per_sec"])


def _published(row: Mapping[str, str], price: float) -> Measurement:
    tokens, gpus = float(row["avg_output_len"]), f"{row['num_gpus']} x {row['gpu_model']}"
    seconds, kind = tokens * _gpu_s_per_token(row), row["architecture"].lower()
    return Measurement(
        row["source"],
        row["model_id"].split("/")[-1],
        "2025",
        f"{gpus}, batch {row['max_num_seqs']}, p99 ITL {float(row['p99_itl_ms']):.0f} ms",
        Figure("usd_per_query", seconds * price / 3600, "USD/query", "published", n=1),
        Figure("wh_per_query", float(row["energy_per_request_joules"]) / 3600, "Wh/query", "published", n=1),
        seconds,
        tokens,
        PUBLISHED_INPUT,
        price,
        kind=next(name for name in ("moe", "hybrid", "dense") if name in kind),
        parameters=float(row["total_params_billions"]) * 1e9,
    )


UNLIKELY = 0.05
"""A belief that reaches the bill with a smaller probability does not reach it."""
END = 0.25
"""A value with less than this share of the belief on its far side lies at an end of the belief."""
MOST = 3
"""The most factors that a sentence names."""
CLEAR = 2.0
"""A belief whose p95 / p5 is at least this is an unknown that decides."""


def place(share: float | None) -> str:
    """Where the median of what must be lies in the belief, by the share of the belief below it.

    >>> [place(share) for share in (0.04, 0.05, 0.25, 0.75, 0.76, 0.96, None)]
    ['below belief', 'low end', 'as believed', 'as believed', 'high end', 'above belief', 'n/a']
    """
    if share is None:
        return "n/a"
    if share < UNLIKELY:
        return "below belief"
    if share > 1 - UNLIKELY:
        return "above belief"
    return "low end" if share < END else "high end" if share > 1 - END else "as believed"


def plausible(reach: float) -> str:
    """Whether the believed factors make up the bill, from the probability that they reach it.

    >>> [plausible(p) for p in (0.04, 0.05, 0.25, 0.95, 0.96)]
    ['not plausible', 'plausible only with', 'plausible', 'plausible', 'lower than believed']
    """
    if reach < UNLIKELY:
        return "not plausible"
    if reach > 1 - UNLIKELY:
        return "lower than believed"
    return "plausible only with" if reach < END else "plausible"


def chance(reach: float) -> str:
    """A probability, with a decimal near its ends, where the rules of the verdict lie.

    >>> [chance(p) for p in (0.0479, 0.4369, 0.951)]
    ['4.8%', '44%', '95.1%']
    """
    return f"{reach:.1%}" if min(reach, 1 - reach) < 0.1 else f"{reach:.0%}"


def claim(times: float, bill: Quantity, whole: Quantity) -> str:
    """Whether "inference is `times` its revenue" is shown or excluded, from its ratio of one bill and of all suppliers.

    The bill is a part of the whole: `shown` if the whole's lower bound reaches it, `excluded` if both upper bounds
    lie below.
    """
    if max(_low(whole), _low(bill)) >= times:
        return "shown"
    return "excluded" if max(_high(whole), _high(bill)) < times else "neither shown nor excluded"


def power(price: tuple[float, float], floor: float) -> str:
    """Whether a belief about the price (p5, p95) fits the power that was available, whose lowest price is `floor`.

    >>> power((2.0, 3.0), 2.0), power((1.9, 3.0), 2.0), power((1.0, 1.9), 2.0)
    ('fits', 'fits in part', 'does not fit')
    """
    low, high = price
    return "fits" if low >= floor else "fits in part" if high >= floor else "does not fit"


def sentences(found: Agreement, bill: Quantity, whole: Quantity, floor: float) -> tuple[tuple[str, str], ...]:
    """The verdict as (topic, sentence): the bill, the two claims, power, and the unknowns that decide."""
    price = next(f.believed for f in found.factors if f.name == "gpu_price")
    judgement, fit = plausible(found.reach), power((price.low or 0.0, price.high or 0.0), floor)
    only = f" {', '.join(moved(found.factors))}" if judgement == "plausible only with" else ""
    words = {
        "fits": "the believed price needs no more power than was available",
        "fits in part": f"below {floor:.2g} USD a GPU-hour the bill buys more GPUs than the power could feed",
        "does not fit": f"every believed price buys more GPUs than the power feeds, up to {floor:.2g} USD a GPU-hour",
    }
    more, twice = claim(1, bill, whole), claim(2, bill, whole)
    claims = f"'more than it earns': {more}; 'twice what it earns': {twice}"
    return (
        ("bill", f"{judgement}{only}: the beliefs reach the bill with a probability of {chance(found.reach)}"),
        ("claims", claims if more != twice else f"'more than it earns' and 'twice what it earns': {more}"),
        ("power", words[fit]),
        ("unknowns", ", ".join(f"{f.label} ({f.width:.2g}x)" for f in deciding(found.factors)) or "none"),
    )


def moved(factors: Sequence[Factor]) -> list[str]:
    """The factors whose medians must move furthest in their beliefs, with the direction, such as `high utilisation`."""
    known = [(f.share, f.label) for f in factors if f.share is not None]
    far = sorted(known, key=lambda pair: -abs(pair[0] - 0.5))[:MOST]
    return [f"{'high' if share > 0.5 else 'low'} {label}" for share, label in far]


def deciding(factors: Sequence[Factor]) -> list[Factor]:
    """The factors with the widest beliefs, widest first."""
    wide = [f for f in factors if f.width >= CLEAR]
    return sorted(wide, key=lambda f: -f.width)[:MOST]


def _low(q: Quantity) -> float:
    return q.low if q.bound in ("=", ">=", "range") else 0.0


def _high(q: Quantity) -> float:
    return q.high if q.bound in ("=", "<=", "range") else float("inf")
