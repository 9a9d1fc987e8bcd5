"""The gap between the reported and the measured cost of a query, and the factors that could explain it."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from harness.cost.draws import Z95, Array, log_moments
from harness.errors import HarnessError
from harness.facts.book import Assumption, Book
from harness.facts.claims import Quantity, about, exact
from harness.facts.comparisons import VOLUMES, Context, as_queries, volume
from harness.model import Figure, Status

PUBLISHED_MODELS = (
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8",
    "meta-llama/Llama-3.1-405B-Instruct-FP8",
    "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
)
"""Models whose published measurements stand in for a GPU run; the first, a large mixture of experts, comes first."""
PUBLISHED_ENERGY = ("X08", "X09", "X10", "X11")
"""Published energies of a query, in Wh."""


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
    output_tokens: float | None
    """Per query."""
    active_parameters: float | None
    usd_per_gpu_hour: float | None
    utilisation: float = 1.0
    """Share of the time that the device is busy, as the cost assumes; 1 is steady load at the measured rate."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One factor of the gap: its multiplier, and the value needed for all factors together to explain the gap."""

    assumption: Assumption
    multiplier: Figure
    needed: Figure
    """In the assumption's unit."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The gap, its factors, their product (p5-p95), and the unexplained rest, gap / product."""

    gap: Quantity
    rungs: tuple[Rung, ...]
    product: Figure
    left: Figure


def published_measurements(text: str, usd_per_gpu_hour: float, *, p99_itl_s: float = 0.2) -> tuple[Measurement, ...]:
    """Of each of `PUBLISHED_MODELS` the chat row of ML.ENERGY's H100 table with the most tokens/s per GPU.

    Only rows whose p99 ITL is at most `p99_itl_s` count. USD/query = output tokens x GPUs x price / (3600 x tokens/s);
    Wh/query covers the GPUs alone. Each row is one run, so there is no interval.
    """
    rows = sorted(csv.DictReader(io.StringIO(text)), key=_tokens_per_gpu_s)
    fast = [row for row in rows if row["task"] == "lm-arena-chat" and float(row["p99_itl_ms"]) <= p99_itl_s * 1000]
    best = {row["model_id"]: row for row in fast}
    return tuple(_published(best[model], usd_per_gpu_hour) for model in PUBLISHED_MODELS if model in best)


def reported_per_query(c: Context) -> Quantity:
    """Inference spend per query over the latest period, at the mean over time of the reported volumes."""
    spend, reported = VOLUMES[-1]
    return c.fact(spend) / as_queries(volume(c, spend, reported))


def gap(c: Context, start: Measurement) -> Quantity:
    """Reported / measured cost of a query. HarnessError if the measurement has no cost."""
    return reported_per_query(c) / as_quantity(start.usd_per_query, start.source)


def as_quantity(figure: Figure, source: str) -> Quantity:
    """A measured figure as a quantity with the bound `~` and the id of its source. HarnessError if it has no value."""
    if figure.value is None:
        raise HarnessError(f"{figure.name} is {figure.text()}", "compare a run that has this figure")
    number = exact(figure.value, figure.unit, source, status=figure.status)
    return replace(about(number), ids=(source,), layers=(layer_of(figure),))


def layer_of(figure: Figure) -> str:
    """`outside` for a published measurement, `run` for a run of the user."""
    return "outside" if figure.status == "published" else "run"


def ladder(book: Book, wanted: Quantity, start: Measurement) -> Ladder:
    """The factors between a measured and a reported cost, and the values needed for their product to be the gap.

    Each factor is lognormal with the p5 and p95 of its assumption; `conditioned` gives the values needed. A factor is
    n/a and left out of the product if the measurement lacks the field that it refers to, such as active parameters.
    HarnessError if the gap has no value.
    """
    if wanted.value is None or wanted.value <= 0:
        raise HarnessError(f"the gap {wanted.terms} is {wanted.text()}", "choose a reported figure with a value")
    factors = [a for a in book.assumptions.values() if a.ladder]
    terms = {a.name: term for a in factors if (term := _term(a, start)) is not None}
    signs, known, mean, sd = np.array(list(terms.values())).T
    multipliers, gap_ln, spread = signs * (mean - known), math.log(wanted.value), math.sqrt(np.sum(sd**2))
    after, rest = conditioned(mean, sd, signs, gap_ln + signs @ known)
    found = iter(zip(multipliers, sd, after, rest, strict=True))
    rungs = []
    for a in factors:
        reason = f"{start.source} has no {a.ladder}"
        multiplier = needed = Figure(a.name, None, a.unit, a.status, reason=reason)
        if a.name in terms:
            before, before_sd, *given = next(found)
            multiplier = _interval(a.name, "ratio", a.status, before, before_sd)
            needed = _interval(a.name, a.unit, "derived", *given)
        rungs.append(Rung(a, multiplier, needed))
    product = _interval("product", "ratio", "derived", multipliers.sum(), spread)
    left = _interval("left", "ratio", "derived", gap_ln - multipliers.sum(), spread)
    return Ladder(wanted, tuple(rungs), product, left)


def conditioned(mean: Array, sd: Array, signs: Array, y: float) -> tuple[Array, Array]:
    """Means and standard deviations of independent normals x_i, given that sum s_i x_i is y.

    With S = sum sd^2: mean_i + s_i sd_i^2 (y - sum s mean) / S, and variance sd_i^2 (1 - sd_i^2 / S).
    """
    total = np.sum(sd**2) or 1.0  # if S is 0 nothing is uncertain, and every mean stays
    return mean + signs * sd**2 * (y - signs @ mean) / total, sd * np.sqrt(1 - sd**2 / total)


def _term(a: Assumption, start: Measurement) -> tuple[float, ...] | None:
    """For ln factor = sign * (ln value - ln known): sign, ln known, mean and standard deviation of ln value.

    None if the measurement lacks the field.
    """
    sign, name = (-1, a.ladder[2:]) if a.ladder.startswith("1/") else (1, a.ladder)
    known: float | None = getattr(start, name) if name else 1.0
    low, high = (a.value if end is None else end for end in (a.low, a.high))
    return None if known is None else (sign, math.log(known), *log_moments(low, high))


def _interval(name: str, unit: str, status: Status, mean: float, sd: float) -> Figure:
    low, value, high = (math.exp(mean + k * Z95 * sd) for k in (-1, 0, 1))
    return Figure(name, value, unit, status, low, high, interval="p5-p95")


def _tokens_per_gpu_s(row: Mapping[str, str]) -> float:
    return float(row["output_throughput_tokens_per_sec"]) / int(row["num_gpus"])


def _published(row: Mapping[str, str], price: float) -> Measurement:
    tokens, gpus = float(row["avg_output_len"]), f"{row['num_gpus']} x {row['gpu_model']}"
    return Measurement(
        row["source"],
        row["model_id"].split("/")[-1],
        "2025",
        f"{gpus}, batch {row['max_num_seqs']}, p99 ITL {float(row['p99_itl_ms']):.0f} ms",
        Figure("usd_per_query", tokens / _tokens_per_gpu_s(row) * price / 3600, "USD/query", "published", n=1),
        Figure("wh_per_query", float(row["energy_per_request_joules"]) / 3600, "Wh/query", "published", n=1),
        tokens,
        float(row["activated_params_billions"]) * 1e9,
        price,
    )
