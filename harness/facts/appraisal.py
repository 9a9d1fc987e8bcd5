"""What runs cost, where that stands against published figures, and the verdict, as one value that is made once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from harness.cost.bill import measured
from harness.cost.draws import quantile
from harness.cost.pricing import Priced
from harness.cost.scenario import Scenario
from harness.errors import HarnessError
from harness.facts.book import Book, Shown, read_book
from harness.facts.claims import Quantity, about, exact
from harness.facts.formulas import Context, quantity
from harness.facts.gap import LARGE, Agreement, Measurement, agreement, layer_of, published_measurements, sentences
from harness.files import read_text
from harness.predict.predict import calibration
from harness.store.run import Run

TOY_PARAMETERS = 1_000_000_000
"""A model with fewer parameters is too small to stand for one that a provider serves."""
FAR = 4.0
SPEND = "A16"
"""The bill that `compare --spend` replaces."""
FLOOR = "least_price"
"""The row with the lowest GPU price at which the power that stood feeds what the bill buys."""


_read = lru_cache(maxsize=2)(read_book)


def shipped_book(added: Iterable[Path] = ()) -> Book:
    """The shipped facts and those of the user's files. HarnessError for a file that cannot be read or is not valid."""
    return _read(tuple((str(path), read_text(path)) for path in added))


def with_spend(book: Book, usd: float) -> Book:
    """The book with an exact inference bill of Jan-Sep 2025 in place of the leaked one. HarnessError if too large."""
    if not 1 <= usd <= 1e18:
        raise HarnessError(f"--spend is {usd:g}", "give US dollars from 1 to 1e18, for instance 8.65e9")
    own = replace(book[SPEND], value=usd, half_digit=0.0, layer="user", status="estimated", source="--spend", note="")
    given = replace(own, cited="", wording="", quote="", gloss="")
    return replace(book, facts={**book.facts, SPEND: given})


def contradictions(book: Book) -> tuple[str, ...]:
    """Assumptions against facts: a price that needs more power than available, a serving share above the margins."""
    c, price, share = Context(book), book.assumptions["gpu_price"], book.assumptions["serving_share"]
    floor, limit = (quantity(c, name).value or 0.0 for name in (FLOOR, "serving_limit"))
    low, high = price.low or price.value, share.high or share.value
    why = f"below {floor:.2f} ({FLOOR}) the bill needs more power than was available"
    found = [f"gpu_price {low:g}: {why}"] if low < floor else []
    if high > limit:
        found.append(f"serving_share {high:g}: the leaked cost of revenue allows {limit:.2f} (serving_limit)")
    return tuple(found)


def checked_book(book: Book, force: bool = False) -> Book:
    """The book, if its assumptions do not contradict its facts; with `force` in any case. HarnessError otherwise."""
    if not force and (found := contradictions(book)):
        raise HarnessError("; ".join(found), "choose another value, or --force it and say so")
    return book


def standing(run: Run) -> str:
    """Why a run shows how the method works, and is no evidence; empty for a GPU run of a large model."""
    engine, parameters = run.engine, run.model.parameters
    small = parameters is not None and parameters < TOY_PARAMETERS
    size = f"a {(parameters or 0) / 1e6:.0f}M model" if small else "this model"
    if engine is None:
        return "The engine never started: nothing was measured here."
    if engine.device == "none":
        return "The engine is simulated: its figures say nothing about any machine or about a provider's fleet."
    if engine.device == "cpu":
        return f"CPU figures of {size} say nothing about a provider's fleet."
    if engine.random_weights:
        return "The weights are random: the run shows how the method works, and nothing about a provider's fleet."
    if not run.on_gpu:
        return "The device is not known: name it when you import the file (--gpu)."
    return f"Figures of {size} say little about the models that a provider serves." if small else ""


def measurement_of(priced: Priced) -> Measurement:
    """The measured query of a run. HarnessError if the run never started its engine."""
    run, costs, model = priced.run, priced.costs, priced.run.model
    if run.engine is None:
        raise HarnessError(f"run {run.id} never started its engine", "compare another run")
    names = ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s")
    tokens, total, requests = (measured(priced.summary, name).value for name in names)
    per_query = median(priced.scenario, "query.requests")
    count, price = run.device_count, costs["usd_per_hour"].value
    hardware = (run.gpu or "GPU") if run.on_gpu else run.engine.device

    def a_query(rate: float | None) -> float | None:
        return rate / requests * per_query if rate is not None and rate >= 0 and requests else None

    usd = costs["usd_per_query"]
    free = f"It has no cost of a query: {usd.reason or 'no tokens or no price'}."
    return Measurement(
        run.id,
        str(model.asked or model.source),
        f"{run.file.created_utc:%Y-%m-%d}",
        f"{count} x {hardware}, {run.engine.engine}, scenario {costs.scenario}",
        usd,
        next((figure for figure in costs.figures if figure.name == "wh_per_query"), None),
        a_query(count),
        a_query(tokens),
        a_query(total - tokens) if total is not None and tokens is not None else None,
        price / count if price is not None and run.on_gpu else None,
        median(priced.scenario, "serving.utilisation"),
        parameters=model.parameters,
        calibration=_calibration(priced),
        doubt=standing(run) or ("" if usd.value else free),
    )


def _calibration(priced: Priced) -> float | None:
    """Measured / predicted device-seconds of a run; None if its model or GPU is not known to `predict`.

    None too if the prediction misses the run by more than a factor of `FAR`: then it does not describe this run.
    """
    try:
        found = calibration(priced.run, priced.summary).time
    except HarnessError:
        return None
    return found if 1 / FAR <= found <= FAR else None


def median(scenario: Scenario, key: str) -> float:
    """The median of an input of the scenario."""
    return float(quantile(scenario.inputs[key].distribution, np.array(0.5)))


def measured_cost(measurements: Sequence[Measurement]) -> Quantity | None:
    """The cost of a million output tokens in USD/Mtoken: the median of the measurements, between the ends of all.

    None if no measurement has a cost.
    """
    known = []
    for each in measurements:
        usd, tokens = each.usd_per_query, each.output_tokens
        if usd.value is not None and tokens:
            low, high = (usd.value if end is None else end for end in (usd.low, usd.high))
            known.append((1e6 * usd.value / tokens, 1e6 * low / tokens, 1e6 * high / tokens, each))
    if not known:
        return None
    values, lows, highs, found = zip(*sorted(known, key=lambda row: row[0]), strict=True)
    middle = len(found) // 2
    each, status = found[middle], found[middle].usd_per_query.status
    several = f"{len(found)} {'published large models' if status == 'published' else 'runs'}"
    which = several if found[1:] else f"{each.model}, {each.conditions}"
    assumption = f"the measured cost is that of {which} ({each.source})"
    number = about(exact(values[middle], "USD/Mtoken", each.source, status=status))
    layers = (layer_of(each.usd_per_query),)
    return replace(number, low=min(lows), high=max(highs), ids=(each.source,), layers=layers, assumptions=(assumption,))


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What runs cost, the gap to the reported bill, what must be true to close it, and the verdict."""

    priced: tuple[Priced, ...]
    context: Context
    """The facts and assumptions in force, and the measured cost of a million output tokens."""
    provider: str
    measurements: tuple[Measurement, ...]
    """Of the runs."""
    points: tuple[Measurement, ...]
    """Published, on H100."""
    starts: tuple[Measurement, ...]
    """The runs that are evidence; empty: the large published models stand in."""
    agreement: Agreement | None
    """None for a provider without a reported bill a prompt."""
    verdict: tuple[tuple[str, str], ...]
    """(topic, sentence)."""
    caveats: tuple[tuple[str, str], ...]
    """(kind, sentence): runs that are no evidence (`not used`), findings of runs that are (`a doubt`), and
    assumptions that contradict facts (`against facts`)."""

    @property
    def subject(self) -> Shown:
        """The fact that is appraised."""
        return next(row for row in self.shown("subject"))

    def shown(self, section: str) -> tuple[Shown, ...]:
        """The rows of the screen of this provider."""
        return tuple(row for row in self.context.book.screen if (row.provider, row.section) == (self.provider, section))


def appraise(
    priced: Sequence[Priced], book: Book | None = None, force: bool = False, provider: str = "openai"
) -> Appraisal:
    """Compare runs and their costs with the facts of a book (None: the shipped facts).

    `force` also compares figures of different period, basis or unit, and stamps those results. HarnessError for an
    unknown provider.
    """
    book = book or shipped_book()
    known = dict.fromkeys(row.provider for row in book.screen)
    if provider not in known:
        raise HarnessError(f"unknown provider '{provider}'", f"choose one of {', '.join(known)}")
    points = published_measurements(book.assumptions["gpu_price"].value)
    found = [measurement_of(each) for each in priced]
    starts = [each for each in found if not each.doubt]
    large = [point for point in points if (point.parameters or 0) >= LARGE]
    context = Context(book, measured_cost(starts or large), force)
    made: Agreement | None = None
    verdict: tuple[tuple[str, str], ...] = (("bill", "no bill a prompt is published for this provider: not judged"),)
    if provider == "openai":
        made = agreement(context, points, starts)
        bill, whole, floor = (quantity(context, name) for name in ("bill_press", "all_press", FLOOR))
        verdict = sentences(made, bill, whole, floor.value or 0.0)
    caveats = _caveats(book if made else None, priced, found)
    return Appraisal(tuple(priced), context, provider, tuple(found), points, tuple(starts), made, verdict, caveats)


def _caveats(book: Book | None, priced: Sequence[Priced], found: Sequence[Measurement]) -> tuple[tuple[str, str], ...]:
    runs: dict[tuple[str, str], list[str]] = {}
    for each, measurement in zip(priced, found, strict=True):
        serious = ", ".join(finding.code for finding in each.summary.findings if finding.serious)
        if measurement.doubt or serious:
            key = ("not used", measurement.doubt) if measurement.doubt else ("a doubt", f"serious findings: {serious}")
            runs.setdefault(key, []).append(measurement.source)
    some = {key: f"{names[0]} and {len(names) - 1} more" if names[1:] else names[0] for key, names in runs.items()}
    against = [("against facts", why) for why in (contradictions(book) if book else ())]
    return (*((kind, f"{some[kind, why]}: {why}") for kind, why in runs), *against)
