"""Verbs of costs and of published figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import errors
from harness.cli import options
from harness.cli.app import draw, each_run, output, printing, show
from harness.cli.misuse import named

if TYPE_CHECKING:
    from harness.predict.priced import Priced
    from harness.report.table import Table


MACHINE = ("json", "csv", "parquet")
"""Formats that also get the screen's numbers as figures."""
Facts = Annotated[list[Path] | None, typer.Option("--facts", metavar="FILE", help="Facts to add; repeatable.")]


@printing
def facts(
    fact: Annotated[str | None, typer.Argument(metavar="ID", help="One fact, with its source and quote.")] = None,
    entity: Annotated[str | None, typer.Option(help="Part of the entity's name.")] = None,
    metric: Annotated[str | None, typer.Option(help="Part of the metric.")] = None,
    period: Annotated[str | None, typer.Option(help="Part of the date or period.")] = None,
    status: Annotated[str | None, typer.Option(help="leaked, reported, stated, estimated, projection…")] = None,
    layer: Annotated[str | None, typer.Option(help="articles, outside or user.")] = None,
    file: Facts = None,
) -> None:
    """List the published figures, or print one with its source and quote."""
    from harness.facts.appraisal import shipped_book
    from harness.report.facts import fact_table, facts_table

    book = shipped_book(file or ())
    if fact is None:
        found = book.select(entity=entity, metric=metric, period=period, status=status, layer=layer)
        show([facts_table(found)])
    else:
        row = [] if output().format == "text" else [facts_table([book[fact]])]
        show([*row, fact_table(book, fact)])


@printing
def compare(
    references: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Runs to compare.")] = None,
    root: options.Root = options.RESULTS,
    scenario: options.Scenario = None,
    provider: Annotated[str, typer.Option(help="openai, anthropic or deepseek.")] = "openai",
    spend: Annotated[float | None, typer.Option(metavar="USD", help="An exact bill of Jan-Sep 2025.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Every comparison, as figures with formulas.")] = False,
    table: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A comparison, or all; repeatable.")] = None,
    explain: Annotated[str | None, typer.Option(metavar="NAME", help="A number's formula, inputs, quotes.")] = None,
    set_: options.Set = None,
    file: Facts = None,
    force: options.Force = False,
    charts: options.Charts = None,
    chart_format: options.ChartFormat = "svg",
) -> None:
    """Is the reported inference bill plausible, and what would have to be true? Revenue, your measurement, power.

    Large published GPU models stand in if no run is evidence. --set changes an assumption of the comparison
    (chat_share=0.3:0.6) or an input of the scenario (serving.utilisation=0.5).
    """
    from harness.analysis.summary import load
    from harness.config import overrides
    from harness.cost.pricing import price_run
    from harness.cost.scenario import KEYS
    from harness.facts.appraisal import appraise, checked_book, shipped_book, with_spend
    from harness.facts.book import assume
    from harness.report.facts import CONTRADICTIONS, compare_tables, comparison_table, explained, full_tables
    from harness.report.screen import must_be_table, screen_tables

    given = overrides(set_ or ())
    inputs = {key: value for key, value in given.items() if key in KEYS}
    if inputs and not references:
        fix = "name a run, or set an assumption of the comparison, for instance utilisation=0.5"
        raise errors.HarnessError(f"--set {next(iter(inputs))}: no run is priced", fix)
    with each_run(references or (), root, lambda path: price_run(*load(path), scenario, inputs)) as priced:
        book = assume(shipped_book(file or ()), {key: value for key, value in given.items() if key not in KEYS})
        book = checked_book(book if spend is None else with_spend(book, spend), force or spend is not None)
        appraisal = appraise(priced, book, force, provider)
        if explain is not None:
            show(explained(appraisal, explain))
            return
        made: list[Table] = full_tables(appraisal) if full else []
        if not full and not table:
            how = output().format
            made = compare_tables(appraisal) if how in (*MACHINE, "html") else screen_tables(appraisal, how != "text")
        for name in [*book.tables, CONTRADICTIONS] if table == ["all"] else table or ():
            must_be = name == "must-be" and appraisal.agreement
            made += [must_be_table(must_be) if must_be else comparison_table(appraisal.context, name)]
        draw([*compare_tables(appraisal), *made], charts, chart_format)
        show(made)


@printing
def cost(
    references: options.Runs = None,
    root: options.Root = options.RESULTS,
    scenario: options.Scenario = None,
    set_: options.Set = None,
    split: Annotated[bool, typer.Option("--split", help="Price input and output tokens separately.")] = False,
    objective: Annotated[str | None, typer.Option(help="'70B interactive', or ttft_s.p99=0.5,tpot_s.p99=0.03.")] = None,
    fleet: Annotated[str | None, typer.Option(metavar="A:B", help="Of a day: mean requests/s, peak / mean.")] = None,
    zone: options.Zone = None,
) -> None:
    """Price runs under a scenario: each run, input and output separately, at an objective, or a fleet over a day."""
    from harness.analysis.summary import load
    from harness.config import overrides
    from harness.cost.bill import in_zone
    from harness.cost.pricing import costs_at_objective, fleet_costs, interactivity, price_run, query_costs
    from harness.report.cost import cost_tables, fleet_table, interactivity_table, run_cost_tables

    with each_run(references or ["latest"], root, load) as sweep:
        how = (scenario, overrides(set_ or ()))
        made: Sequence[Table]
        if split:
            made = cost_tables(in_zone(query_costs([run for run, _ in sweep], *how), zone))
        elif objective is None:
            priced = [price_run(run, summary, *how) for run, summary in sweep]
            priced = [replace(each, costs=in_zone(each.costs, zone)) for each in priced]
            made = run_cost_tables(priced)
        elif fleet is None:
            found, _ = costs_at_objective(sweep, objective, *how)
            made = [*cost_tables(in_zone(found, zone)), interactivity_table(interactivity(sweep, *how))]
        else:
            found, day, note = fleet_costs(sweep, objective, _pair("--fleet", fleet), *how)
            made = [*cost_tables(in_zone(found, zone)), fleet_table(day, note)]
        show(made)


@printing
def predict(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Of models.csv, a config.json, or a cached hub id.")
    ] = None,
    gpu: Annotated[
        str, typer.Argument(metavar="GPU", help="GPUs of gpus.csv (H100,B200), or a YAML file with its columns.")
    ] = "H100",
    devices: Annotated[int | None, typer.Option(metavar="N", help="GPUs: copies of the least group that fits.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the weights: bf16, fp8, nvfp4, mxfp4, int4.")] = None,
    batch: Annotated[float, typer.Option(metavar="X", help="Sequences in flight over all GPUs.")] = 64,
    tokens: Annotated[str, typer.Option(metavar="IN:OUT", help="Tokens of a request.")] = "500:500",
    tp: Annotated[int | None, typer.Option(metavar="N", help="Tensor-parallel GPUs of a copy.")] = None,
    ep: Annotated[int | None, typer.Option(metavar="N", help="Expert-parallel ranks of a copy.")] = None,
    pp: Annotated[int | None, typer.Option(metavar="N", help="Pipeline stages of a copy.")] = None,
    dp: Annotated[
        int | None, typer.Option(metavar="N", help="Data-parallel ranks: attention in MoE, else copies.")
    ] = None,
    prefill_gpus: Annotated[int, typer.Option(metavar="N", help="GPUs a copy for prompts alone (disaggregated).")] = 0,
    engine: Annotated[str, typer.Option(help="vllm, sglang or trtllm; a version after @, as vllm@0.11.")] = "vllm",
    tpot: Annotated[str, typer.Option(metavar="SECONDS", help="Objective between tokens, or 50ms.")] = "0.05",
    ttft: Annotated[str, typer.Option(metavar="SECONDS", help="Objective for the first token, or 500ms.")] = "5",
    scenario: Annotated[str, typer.Option(help="Cost scenario: a shipped name or a file.")] = "on-demand",
    set_: options.Set = None,
    reference: Annotated[str | None, typer.Option("--run", help="A GPU run that calibrates the prediction.")] = None,
    root: options.Root = options.RESULTS,
    market: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="CACHED", help="Beside list prices of APIs; share of input in their cache."),
    ] = None,
    zone: options.Zone = None,
    charts: options.Charts = None,
    chart_format: options.ChartFormat = "svg",
    validate: Annotated[bool, typer.Option("--validate", help="Print errors on what was left out of the fit.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Also every cost and assumption.")] = False,
) -> None:
    """Predict speed, energy and cost of a model on GPUs that were not measured, from published measurements."""
    from harness.analysis.summary import load
    from harness.config import overrides
    from harness.cost.bill import in_zone
    from harness.predict.predict import Plan, calibration
    from harness.predict.priced import priced
    from harness.report.predict import prediction_tables, side_by_side, validation_table
    from harness.store.directory import find_run
    from harness.workload.schema import read_limit

    if validate or model is None:
        if void := named() - {"--validate", "--format", "--json", "--out"}:
            fix = "omit one of the two" if validate else "name a model before it"
            raise errors.HarnessError(f"{min(void)} {'with --validate' if validate else 'without MODEL'}", fix)
        show([validation_table()])
        return
    objective = read_limit("--tpot", "tpot_s", tpot), read_limit("--ttft", "ttft_s", ttft)
    own = None if reference is None else calibration(*load(find_run(reference, root)))
    plan = Plan(batch, *_pair("--tokens", tokens), devices, precision, tp, ep, pp, dp, prefill_gpus, engine)
    names = [name.strip() for name in gpu.split(",") if name.strip()]
    if not names:
        raise errors.HarnessError(f"no GPU in '{gpu}'", "name some, such as H100 or H100,B200")
    if len(names) > 1 and (void := named() & {"--market", "--charts", "--full"}):
        raise errors.HarnessError(f"{min(void)} with {len(names)} GPUs", "name one GPU, or omit it")

    def of(name: str) -> Priced:
        each = priced(model, name, plan, scenario, overrides(set_ or ()), own, objective)
        return replace(each, costs=in_zone(each.costs, zone))

    made = [side_by_side(_beside(names, of))] if len(names) > 1 else prediction_tables(of(names[0]), full, market)
    draw(made, charts, chart_format)
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
