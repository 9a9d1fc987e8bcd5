"""Measured against reported: the gap between what a query cost here and what the press makes of it, as a ladder."""

from __future__ import annotations

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
"""What stands in for a GPU run; the ladder starts at the first, a large mixture of experts."""
PUBLISHED_ENERGY = ("X08", "X09", "X10", "X11")
"""Published energies of a query, in Wh."""


@dataclass(frozen=True, slots=True)
class Point:
    """A measured place to start from: a run, or a published measurement.

    `usd_per_query` and `wh_per_query` are figures of the measurement at one price, in USD/query and Wh/query;
    `output_tokens` are those of a query; None where unknown, as with `active_parameters` and `usd_per_gpu_hour`.
    """

    source: str
    """The run's name, or the data set."""
    model: str
    conditions: str
    """Devices, batch, latency: what the figures are true of."""
    usd_per_query: Figure
    wh_per_query: Figure | None
    output_tokens: float | None
    active_parameters: float | None
    usd_per_gpu_hour: float | None
    utilisation: float = 1.0
    """What the cost assumes; 1 is steady load at the measured rate."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One factor of the gap: its multiplier before the gap is seen, and the value that the gap then asks of it."""

    assumption: Assumption
    multiplier: Figure
    needed: Figure
    """In the assumption's own unit."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The gap, its factors, what they multiply to (p5-p95), and what they leave unexplained (gap / product)."""

    gap: Quantity
    rungs: tuple[Rung, ...]
    product: Figure
    left: Figure


def published_points(text: str, usd_per_gpu_hour: float, *, p99_itl_s: float = 0.2) -> tuple[Point, ...]:
    """Points from ML.ENERGY's table of H100 measurements: for each model the most tokens/s a GPU within the latency.

    `text` has the data set's own columns; chat requests only. USD a query = output length x GPUs x price / (3600 x
    tokens/s); Wh a query is that of the GPUs alone. One run each: no interval.
    """
    chat = (row for row in csv.DictReader(io.StringIO(text)) if row["task"] == "lm-arena-chat")
    fast = (row for row in chat if float(row["p99_itl_ms"]) <= p99_itl_s * 1000)
    best = {row["model_id"]: row for row in sorted(fast, key=_per_gpu)}
    return tuple(_published(best[model], usd_per_gpu_hour) for model in PUBLISHED_MODELS if model in best)


def reported_per_query(c: Context) -> Quantity:
    """Inference spend a query over the latest period, at the time mean of the reported volumes."""
    spend, reported = VOLUMES[-1]
    return c.fact(spend) / as_queries(volume(c, spend, reported))


def gap(c: Context, point: Point) -> Quantity:
    """Reported over measured cost of a query. Raises HarnessError for a point without a cost."""
    return reported_per_query(c) / measured(point.usd_per_query, point)


def measured(figure: Figure, point: Point) -> Quantity:
    """A figure of a point as a quantity that names it; `~`, as every measurement is."""
    if figure.value is None:
        raise HarnessError(f"{figure.name} is {figure.text()}", "compare a run that has it")
    number = exact(figure.value, figure.unit, point.source, status=figure.status)
    return replace(about(number), ids=(point.source,), layers=(layer_of(figure),))


def layer_of(figure: Figure) -> str:
    """`outside` for a published measurement, `run` for one's own."""
    return "outside" if figure.status == "published" else "run"


def ladder(book: Book, wanted: Quantity, point: Point) -> Ladder:
    """The factors between a measured and a reported cost, and what each must be for them to multiply to the gap.

    Each factor is lognormal with the p5 and p95 of its assumption; `conditioned` says what their product asks of them.
    A factor that the point cannot tell (no active parameters) is n/a and left out. Raises HarnessError where the gap
    has no value.
    """
    if wanted.value is None or wanted.value <= 0:
        raise HarnessError(f"the gap {wanted.terms} is {wanted.text()}", "choose a reported figure with a value")
    factors = [a for a in book.assumptions.values() if a.ladder]
    terms = {a.name: term for a in factors if (term := _term(a, point)) is not None}
    signs, known, mean, sd = np.array(list(terms.values())).T
    multipliers, gap_ln, spread = signs * (mean - known), math.log(wanted.value), math.sqrt(np.sum(sd**2))
    after, rest = conditioned(mean, sd, signs, gap_ln + signs @ known)
    found = iter(zip(multipliers, sd, after, rest, strict=True))
    rungs = []
    for a in factors:
        reason = f"{point.source} does not tell its {a.ladder}"
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
    total = np.sum(sd**2) or 1.0  # 0: nothing is uncertain, and nothing moves
    return mean + signs * sd**2 * (y - signs @ mean) / total, sd * np.sqrt(1 - sd**2 / total)


def _term(a: Assumption, point: Point) -> tuple[float, ...] | None:
    """Of ln factor = sign * (ln value - ln known): the sign, ln known, and mean and standard deviation of ln value."""
    sign, name = (-1, a.ladder[2:]) if a.ladder.startswith("1/") else (1, a.ladder)
    known: float | None = getattr(point, name) if name else 1.0
    low, high = (a.value if end is None else end for end in (a.low, a.high))
    return None if known is None else (sign, math.log(known), *log_moments(low, high))


def _interval(name: str, unit: str, status: Status, mean: float, sd: float) -> Figure:
    low, value, high = (math.exp(mean + k * Z95 * sd) for k in (-1, 0, 1))
    return Figure(name, value, unit, status, low, high, interval="p5-p95")


def _per_gpu(row: Mapping[str, str]) -> float:
    return float(row["output_throughput_tokens_per_sec"]) / int(row["num_gpus"])


def _published(row: Mapping[str, str], price: float) -> Point:
    tokens = float(row["avg_output_len"])
    gpus = f"{row['num_gpus']} x {row['gpu_model']}"
    return Point(
        row["source"],
        row["model_id"].split("/")[-1],
        f"{gpus}, batch {row['max_num_seqs']}, p99 ITL {float(row['p99_itl_ms']):.0f} ms",
        Figure("usd_per_query", tokens / _per_gpu(row) * price / 3600, "USD/query", "published", n=1),
        Figure("wh_per_query", float(row["energy_per_request_joules"]) / 3600, "Wh/query", "published", n=1),
        tokens,
        float(row["activated_params_billions"]) * 1e9,
        price,
    )
