"""Costs and published figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial

from harness import errors
from harness.analysis.summary import load
from harness.cli import verbs
from harness.cli.app import output
from harness.cli.misuse import named
from harness.cli.show import draw, each_run, show
from harness.config import overrides
from harness.cost import pricing
from harness.cost.bill import in_zone
from harness.cost.pricing import price_run
from harness.cost.scenario import KEYS
from harness.facts.appraisal import appraise, checked_book, shipped_book, with_spend
from harness.facts.book import assume
from harness.predict.predict import Plan, calibration
from harness.predict.priced import Priced, priced
from harness.report import facts as comparing
from harness.report.cost import cost_tables, fleet_table, interactivity_table, run_cost_tables
from harness.report.predict import prediction_tables, side_by_side, validation_table
from harness.report.table import Table
from harness.store.directory import find_run
from harness.workload.schema import read_limit

MACHINE = ("json", "csv", "parquet")
"""Formats that also get the screen's numbers as figures."""


def facts(asked: verbs.Facts) -> None:
    """List the published figures, or print one with its source and quote."""
    book = shipped_book(asked.file or ())
    if asked.fact is None:
        names = ("entity", "metric", "period", "status", "layer")
        show([comparing.facts_table(book.select(**{name: getattr(asked, name) for name in names}))])
    else:
        row = [] if output().format == "text" else [comparing.facts_table([book[asked.fact]])]
        show([*row, comparing.fact_table(book, asked.fact)])


def compare(asked: verbs.Compare) -> None:
    """Is the reported inference bill plausible, and what would have to be true? Revenue, your measurement, power."""

    given = overrides(asked.set_ or ())
    inputs = {key: value for key, value in given.items() if key in KEYS}
    if inputs and not asked.references:
        fix = "name a run, or set an assumption of the comparison, for instance utilisation=0.5"
        raise errors.HarnessError(f"--set {next(iter(inputs))}: no run is priced", fix)
    how = output().format
    price = partial(price_run, scenario=asked.scenario, overrides=inputs)
    with each_run(asked.references or (), asked.root, lambda path: price(*load(path))) as own:
        book = assume(shipped_book(asked.file or ()), {key: value for key, value in given.items() if key not in KEYS})
        book = book if asked.spend is None else with_spend(book, asked.spend)
        book = checked_book(book, asked.force or asked.spend is not None)
        appraisal = appraise(own, book, asked.force, asked.provider)
        if asked.explain is not None:
            show(comparing.explained(appraisal, asked.explain))
            return
        shown = comparing.compare_tables(appraisal)
        made = comparing.full_tables(appraisal) if asked.full else []
        if not asked.full and not asked.table:
            made = shown if how in (*MACHINE, "html") else comparing.screen_tables(appraisal, how != "text")
        for name in [*book.tables, comparing.CONTRADICTIONS] if asked.table == ["all"] else asked.table or ():
            if name == "must-be" and appraisal.agreement is not None:
                made.append(comparing.must_be_table(appraisal.agreement))
            else:
                made.append(comparing.comparison_table(appraisal.context, name))
        draw([*shown, *made], asked.charts, asked.chart_format)
        show(made)


def cost(asked: verbs.Cost) -> None:
    """Price runs under a scenario: each run, input and output separately, at an objective, or a fleet over a day."""
    with each_run(asked.references or ["latest"], asked.root, load) as sweep:
        how = (asked.scenario, overrides(asked.set_ or ()))
        made: Sequence[Table]
        if asked.split:
            made = cost_tables(in_zone(pricing.query_costs([run for run, _ in sweep], *how), asked.zone))
        elif asked.objective is None:
            priced = [price_run(run, summary, *how) for run, summary in sweep]
            priced = [replace(each, costs=in_zone(each.costs, asked.zone)) for each in priced]
            made = run_cost_tables(priced)
        elif asked.fleet is None:
            found, _ = pricing.costs_at_objective(sweep, asked.objective, *how)
            front = interactivity_table(pricing.interactivity(sweep, *how))
            made = [*cost_tables(in_zone(found, asked.zone)), front]
        else:
            found, day, note = pricing.fleet_costs(sweep, asked.objective, _pair("--fleet", asked.fleet), *how)
            made = [*cost_tables(in_zone(found, asked.zone)), fleet_table(day, note)]
        show(made)


def predict(asked: verbs.Predict) -> None:
    """Predict speed, energy and cost of a model on GPUs that were not measured, from published measurements."""
    model = asked.model
    if asked.validate:
        if void := named() - {"--validate", "--format", "--json", "--out"}:
            raise errors.HarnessError(f"{min(void)} with --validate", "omit one of the two")
        show([validation_table()])
        return
    if model is None:
        fix = "name one, such as Qwen3-32B; --validate prints how far predictions were off"
        raise errors.HarnessError("harness predict lacks MODEL", fix)
    objective = read_limit("--tpot", "tpot_s", asked.tpot), read_limit("--ttft", "ttft_s", asked.ttft)
    own = None if asked.reference is None else calibration(*load(find_run(asked.reference, asked.root)))
    same = {each.name: getattr(asked, each.name) for each in fields(Plan) if hasattr(asked, each.name)}
    plan = Plan(**same | dict(zip(("input", "output"), _pair("--tokens", asked.tokens), strict=True)))
    names = [name.strip() for name in asked.gpu.split(",") if name.strip()]
    if not names:
        raise errors.HarnessError(f"no GPU in '{asked.gpu}'", "name some, such as H100 or H100,B200")
    if len(names) > 1 and (void := named() & {"--market", "--charts", "--full"}):
        raise errors.HarnessError(f"{min(void)} with {len(names)} GPUs", "name one GPU, or omit it")

    def of(name: str) -> Priced:
        each = priced(model, name, plan, asked.scenario, overrides(asked.set_ or ()), own, objective)
        return replace(each, costs=in_zone(each.costs, asked.zone))

    made = (
        [side_by_side(_beside(names, of))]
        if len(names) > 1
        else prediction_tables(of(names[0]), asked.full, asked.market)
    )
    draw(made, asked.charts, asked.chart_format)
    show(made)


def _beside(gpus: Sequence[str], of: Callable[[str], Priced]) -> list[tuple[str, Priced | str]]:
    """The prediction on each GPU, or why there is none; HarnessError if no GPU has one."""
    found: list[tuple[str, Priced | str]] = []
    for gpu in gpus:
        try:
            found.append((gpu, of(gpu)))
        except errors.HarnessError as refused:
            found.append((gpu, refused.what))
    if all(isinstance(each, str) for _, each in found):
        raise errors.HarnessError(str(found[0][1]), "name GPUs of harness/data/gpus.csv that hold the model")
    return found


def _pair(option: str, text: str) -> tuple[float, float]:
    """Two numbers from the `A:B` of an option."""
    first, _, second = text.partition(":")
    try:
        return float(first), float(second)
    except ValueError:
        fix = f"give two numbers, for instance {option} {'5:1.5' if option == '--fleet' else '500:200'}"
        raise errors.HarnessError(f"{option} {text} is not of the form A:B", fix) from None
