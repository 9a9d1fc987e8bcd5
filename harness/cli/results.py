"""Verbs that show and compare stored runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import errors
from harness.cli import options
from harness.cli.app import directories, draw, each_run, output, printing, show, show_answer, stored_run
from harness.cli.misuse import named

if TYPE_CHECKING:
    from harness.analysis.gates import Gate
    from harness.report import junit
    from harness.report.table import Table
    from harness.store.run import Run


@printing
def report(
    references: options.Runs = None,
    root: options.Root = options.RESULTS,
    scenario: options.Scenario = None,
    where: options.Where = None,
    full: options.Full = False,
    table: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this table; repeatable.")] = None,
    charts: options.Charts = None,
    chart_format: options.ChartFormat = "svg",
    requests_csv: Annotated[
        Path | None, typer.Option("--requests-csv", metavar="FILE", help="Write a row for each request.")
    ] = None,
    trend: Annotated[str | None, typer.Option(metavar="FIGURE", help="This figure over all runs, by commit.")] = None,
) -> None:
    """Print the answer of a run, or of several, on one screen; --full prints every table, as other formats do.

    A directory of runs, or a sweep, stands for its runs; --where chooses runs of the root. With several runs --table
    NAME prints a table of single runs for each run. HTML is one file with a what-if; it needs no network.
    """
    from harness.analysis.index import runs as runs_of
    from harness.analysis.summary import load, summary_of

    if where is not None:
        chosen = runs_of(root, where)
        if not (references := [str(root / name) for name in chosen["run"][chosen["state"] == "complete"]]):
            raise errors.HarnessError(f"--where {where}: no complete run", "see `harness list runs`")
    if trend is not None:
        from harness.report.trend import trend_table

        runs = [run for each in references or [str(root)] for run in _side(each, root)]
        made = [trend_table([(run, summary_of(run)) for run in runs], trend)]
        draw(made, charts, chart_format)
        show(made)
        return
    with each_run(references or ["latest"], root, load) as sweep:
        if requests_csv is not None:
            import pandas as pd

            from harness.analysis.times import requests_of
            from harness.report.formats import csv

            each = [
                requests_of(run).drop(columns=["arrival_s", "arrival_tokens"]).assign(run=run.id) for run, _ in sweep
            ]
            requests_csv.write_text(csv(pd.concat(each)), encoding="utf-8")
        show_answer(sweep, scenario, table or (["all"] if full else ()), charts, chart_format)


JOULES = ("joules_per_output_token", "joules_per_input_token", "joules_per_request")
"""Figures that a run without a meter lacks."""


@printing
def check(
    reference: options.Run_ = "latest",
    root: options.Root = options.RESULTS,
    precise: options.Precision = None,
    fail_on: options.Limits = None,
    accept: Annotated[list[str] | None, typer.Option(metavar="CODE", help="This finding may be; repeatable.")] = None,
    scenario: options.Scenario = None,
    xml: options.JUnit = None,
) -> None:
    """Print the findings of a run, whether it keeps limits, and what a wanted precision needs.

    Exits with 1 if a finding is serious or a limit is not kept, and with 3 if the run did not complete.
    """
    from harness.analysis import gates as gating
    from harness.analysis import precision
    from harness.analysis.findings import findings
    from harness.analysis.summary import summary_of
    from harness.config import near
    from harness.cost.pricing import price_run
    from harness.model import Figure
    from harness.report import tables
    from harness.report.changes import annotations, gates_table, precision_table
    from harness.report.format import words

    stored = stored_run(reference, root)
    summary, targets = summary_of(stored), precision.parse(precise or ())
    asked = [gating.parse_gate(text, change=False) for text in fail_on or ()]
    for code in {*(accept or ())} - {*findings()}:
        raise errors.HarnessError(f"--accept {code} is no finding", f"{near(code, findings())}see docs/findings.md")
    figures = {each.name: each for each in summary.figures}
    of_money = any(each.figure not in figures for each in asked)
    if scenario is not None and not of_money:
        raise errors.HarnessError(
            "--scenario without a limit on a cost", "add --fail-on 'usd_per_query>0.01', or omit it"
        )
    if of_money and stored.engine is not None:
        figures |= {each.name: each for each in price_run(stored, summary, scenario).costs.figures}
    for name in {each.figure for each in asked} & {*JOULES} - {*figures}:
        reason = "; ".join(stored.file.meters_absent) or "no meter was read"
        figures[name] = Figure(name, None, "J", "measured", reason=reason)
    gates = [
        (each.text, words(figure, {"n", "status"} | ({"reason"} if figure.value is not None else set())), outcome)
        for each, figure, outcome in gating.of_figures(asked, figures)
    ]
    serious = [
        (each.code, each.text, "undecided" if each.code in (accept or ()) else "failed")
        for each in summary.findings
        if each.serious
    ]
    made = [gates_table(gates, "figure")] if gates else []
    allow = "a serious finding fails unless it is accepted: --accept CODE"
    made += [replace(tables.findings_table(summary.findings), notes=(allow,) if serious else ())]
    made += [precision_table(stored, summary, targets)] if targets else []
    show(made)
    _tell_ci(stored.id, made, annotations([*gates, *serious]), [*gates, *serious], xml)
    gate_failed = any(outcome == "failed" for *_, outcome in [*gates, *serious])
    if (incomplete := _incomplete([stored])) or gate_failed:
        raise typer.Exit(errors.GATE_FAILED if gate_failed else incomplete)


def _incomplete(runs: Iterable[Run]) -> int:
    """Prints a line for each run that did not complete; returns the exit code 3, or 0 if all did."""
    unfinished = [run for run in runs if run.state != "complete"]
    for run in unfinished:
        typer.echo(f"incomplete: run {run.id} is {run.state}: {run.file.error or 'no reason stored'}", err=True)
    return errors.INCOMPLETE if unfinished else 0


@printing
def diff(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="A run, repeats of it (A,B,C), or their directory; or a sweep, alone.")
    ],
    new: Annotated[str | None, typer.Argument(metavar="NEW", help="The runs to judge against BASE, or latest.")] = None,
    root: options.Root = options.RESULTS,
    fail_on: options.FailOn = None,
    least: options.Least = "1%",
    between: options.Between = None,
    force: options.Force = False,
    full: options.Full = False,
    xml: options.JUnit = None,
) -> None:
    """Compare runs with runs: gates, then what improved or regressed, as ratios with intervals; --full has the rest.

    The points of a sweep are compared with its first point.
    """
    from harness.analysis.gates import parse_gate, parse_share
    from harness.report.changes import points_table

    gates, effect = [parse_gate(text) for text in fail_on or ()], parse_share("--least", least)
    declared = None if between is None else parse_share("--between", between)
    sides = _side(base, root), _side(new or "latest", root)
    if new is None and len({str(run.file.sweep and run.file.sweep.values) for run in sides[0]}) > 1:
        if void := named() & {"--fail-on", "--full", "--force"}:
            raise errors.HarnessError(
                f"{min(void)} with the points of a sweep", "omit it, or name the runs of two points"
            )
        show([points_table(sides[0], effect, declared)])
        return
    if both := {run.directory for run in sides[0]} & {run.directory for run in sides[1]}:
        what = f"{min(both).name} stands on both sides of the comparison"
        raise errors.HarnessError(what, "name two different runs; `harness list runs` prints them")
    judged(*sides, gates, full, xml, force=force, least=effect, between=declared)


def judged(
    base: Sequence[Run], new: Sequence[Run], gates: Sequence[Gate], full: bool, xml: Path | None = None, **how: Any
) -> None:
    """Print what changed; exit with 1 if a gate failed, and with 3 if a run that a gate judges is incomplete.

    `xml`: also the gates as JUnit XML. `how`: arguments of `report.changes.difference`.
    """
    from harness.report.changes import difference

    tables, found, told = difference(base, new, gates, full=full or output().format != "text", **how)
    show(tables)
    _tell_ci("harness diff", tables, told, found, xml)
    incomplete = _incomplete([*base, *new])
    if any(outcome == "failed" for *_, outcome in found):
        raise typer.Exit(errors.GATE_FAILED)
    if gates and incomplete:
        raise typer.Exit(incomplete)


def _side(text: str, root: Path) -> list[Run]:
    from harness.store.run import read_run

    return [read_run(directory) for each in text.split(",") for directory in directories(each, root)]


def _tell_ci(
    suite: str, made: Sequence[Table], annotations: Sequence[str], gates: Sequence[junit.Gate], xml: Path | None
) -> None:
    """Write JUnit XML; in a GitHub workflow print annotations, and add the tables to the summary of the job."""
    if xml is not None:
        from harness.report.junit import as_xml

        xml.write_text(as_xml(suite, gates), encoding="utf-8")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotations:  # GitHub reads both streams; the tables are on stdout
            typer.echo(line, err=True)
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        from harness.report.markup import markdown

        with Path(path).open("a", encoding="utf-8") as summary:
            summary.write(markdown(made))


@printing
def doctor(root: options.Root = options.RESULTS) -> None:
    """Examine this machine: what can be measured, what would make a run doubtful, and how to fix it.

    Exits with 1 only if no run can be stored.
    """
    from harness.measure import doctor as examining
    from harness.model import Finding
    from harness.report.table import PROPERTIES, Table
    from harness.report.tables import findings_table

    seen = list(examining.examine(root))
    findings = [each for each in seen if isinstance(each, Finding)]
    parts = tuple(each for each in seen if not isinstance(each, Finding))
    show([Table("machine", "This machine", PROPERTIES, parts), findings_table(findings)])
    if any(finding.serious for finding in findings):
        raise typer.Exit(errors.GATE_FAILED)
