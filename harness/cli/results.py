"""Stored runs: shown, held against limits, and compared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from harness import errors
from harness.analysis import precision
from harness.analysis.findings import findings
from harness.analysis.gates import Gate, of_figures, parse_gate, parse_share
from harness.analysis.index import runs as runs_of
from harness.analysis.summary import load, summary_of
from harness.analysis.times import requests_of
from harness.cli import verbs
from harness.cli.app import output
from harness.cli.misuse import named
from harness.cli.show import directories, draw, each_run, show, show_answer, stored_run
from harness.config import near
from harness.cost.pricing import price_run
from harness.model import Figure
from harness.report import changes, formats
from harness.report.format import words
from harness.report.table import Table
from harness.report.tables import findings_table
from harness.store.access import writing
from harness.store.run import Run, read_run


def report(asked: verbs.Report) -> None:
    """Print the answer of a run, or of several, on one screen; --full prints every table, as other formats do."""
    references = asked.references
    if asked.where is not None:
        chosen = runs_of(asked.root, asked.where)
        if not (references := [str(asked.root / name) for name in chosen["run"][chosen["state"] == "complete"]]):
            raise errors.HarnessError(f"--where {asked.where}: no complete run", "see `harness list runs`")
    if asked.trend is not None:
        runs = [run for each in references or [str(asked.root)] for run in _side(each, asked.root)]
        made = [changes.trend_table([(run, summary_of(run)) for run in runs], asked.trend)]
        draw(made, asked.charts, asked.chart_format)
        show(made)
        return
    with each_run(references or ["latest"], asked.root, load) as sweep:
        if asked.requests_csv is not None:
            each = [requests_of(run).drop(columns=["arrival_s", "arrival_tokens"]) for run, _ in sweep]
            table = pd.concat([rows.assign(run=run.id) for rows, (run, _) in zip(each, sweep, strict=True)])
            with writing(asked.requests_csv, "name another file"):
                asked.requests_csv.write_text(formats.csv(table), encoding="utf-8")
        names = asked.table or (["all"] if asked.full else ())
        show_answer(sweep, asked.scenario, names, asked.charts, asked.chart_format)


JOULES = ("joules_per_output_token", "joules_per_input_token", "joules_per_request")
"""Figures that a run without a meter lacks."""


def check(asked: verbs.Check) -> None:
    """Print the findings of a run, whether it keeps limits, and what a wanted precision needs."""
    stored = stored_run(asked.reference, asked.root)
    summary, targets = summary_of(stored), precision.parse(asked.precise or ())
    limits, accepted = [parse_gate(text, change=False) for text in asked.fail_on or ()], asked.accept or ()
    for code in {*accepted} - {*findings()}:
        raise errors.HarnessError(f"--accept {code} is no finding", f"{near(code, findings())}see docs/findings.md")
    figures = {each.name: each for each in summary.figures}
    of_money = any(each.figure not in figures for each in limits)
    if asked.scenario is not None and not of_money:
        fix = "add --fail-on 'usd_per_query>0.01', or omit it"
        raise errors.HarnessError("--scenario without a limit on a cost", fix)
    if of_money and stored.engine is not None:
        figures |= {each.name: each for each in price_run(stored, summary, asked.scenario).costs.figures}
    for name in {each.figure for each in limits} & {*JOULES} - {*figures}:
        reason = "; ".join(stored.file.meters_absent) or "no meter was read"
        figures[name] = Figure(name, None, "J", "measured", reason=reason)
    held: list[changes.Gate] = []
    for limit, figure, outcome in of_figures(limits, figures):
        without = {"n", "status", "reason"} if figure.value is not None else {"n", "status"}
        held.append((limit.text, words(figure, without), outcome))
    serious = [each for each in summary.findings if each.serious]
    gates = [*held, *((x.code, x.text, "undecided" if x.code in accepted else "failed") for x in serious)]
    allow = "a serious finding fails unless it is accepted: --accept CODE"
    made = [changes.gates_table(held, "figure")] if held else []
    made += [replace(findings_table(summary.findings), notes=(allow,) if serious else ())]
    made += [changes.precision_table(stored, summary, targets)] if targets else []
    show(made)
    _tell_ci(stored.id, made, changes.annotations(gates), gates, asked.xml)
    gate_failed = any(outcome == "failed" for *_, outcome in gates)
    if (incomplete := _incomplete([stored])) or gate_failed:
        raise typer.Exit(errors.GATE_FAILED if gate_failed else incomplete)


def _incomplete(runs: Iterable[Run]) -> int:
    """Prints a line for each run that did not complete; returns the exit code 3, or 0 if all did."""
    unfinished = [run for run in runs if run.state != "complete"]
    for run in unfinished:
        why = errors.plain(run.file.error or "no reason stored")
        typer.echo(f"incomplete: run {run.id} is {run.state}: {why}", err=True)
    return errors.INCOMPLETE if unfinished else 0


def diff(asked: verbs.Diff) -> None:
    """Compare runs with runs: gates, then what improved or regressed, as ratios with intervals; --full has the rest."""
    gates, effect = [parse_gate(text) for text in asked.fail_on or ()], parse_share("--least", asked.least)
    declared = None if asked.between is None else parse_share("--between", asked.between)
    base = _side(asked.base, asked.root)
    if asked.new is None and len({str(run.file.sweep and run.file.sweep.values) for run in base}) > 1:
        if void := named() & {"--fail-on", "--full", "--force"}:
            fix = "omit it, or name the runs of two points"
            raise errors.HarnessError(f"{min(void)} with the points of a sweep", fix)
        show([changes.points_table(base, effect, declared)])
        return
    new = _side(asked.new or "latest", asked.root)
    if both := {run.directory for run in base} & {run.directory for run in new}:
        what = f"{min(both).name} stands on both sides of the comparison"
        raise errors.HarnessError(what, "name two different runs; `harness list runs` prints them")
    judged(base, new, gates, asked.full, asked.xml, force=asked.force, least=effect, between=declared)


def judged(
    base: Sequence[Run], new: Sequence[Run], gates: Sequence[Gate], full: bool, xml: Path | None = None, **how: Any
) -> None:
    """Print what changed; exit with 1 if a gate failed, and with 3 if a run that a gate judges is incomplete.

    `xml`: also the gates as JUnit XML. `how`: arguments of `report.changes.difference`.
    """
    tables, found, annotations = changes.difference(base, new, gates, full=full or output().format != "text", **how)
    show(tables)
    _tell_ci("harness diff", tables, annotations, found, xml)
    incomplete = _incomplete([*base, *new])
    if any(outcome == "failed" for *_, outcome in found):
        raise typer.Exit(errors.GATE_FAILED)
    if gates and incomplete:
        raise typer.Exit(incomplete)


def _side(text: str, root: Path) -> list[Run]:
    return [read_run(directory) for each in text.split(",") for directory in directories(each, root)]


def _tell_ci(
    suite: str, made: Sequence[Table], annotations: Sequence[str], gates: Sequence[changes.Gate], xml: Path | None
) -> None:
    """Write JUnit XML; in a GitHub workflow print annotations, and add the tables to the summary of the job."""
    if xml is not None:
        with writing(xml, "name another file"):
            xml.write_text(changes.as_xml(suite, gates), encoding="utf-8")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotations:  # GitHub reads both streams; the tables are on stdout
            typer.echo(line, err=True)
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as summary:
            summary.write(formats.markdown(made))
