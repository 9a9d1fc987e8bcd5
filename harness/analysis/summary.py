"""The summary of a stored run: figures, energy and findings, made once and kept beside the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.analysis.client_check import check_client, clock_bound_s
from harness.analysis.energy import measure_energy
from harness.analysis.findings import check_conditions, check_requests
from harness.analysis.findings_table import finding
from harness.analysis.latency import summarise, window_of
from harness.analysis.readings import watts_between
from harness.analysis.server import server_figures
from harness.analysis.window import Window
from harness.model import MeterInfo, Summary
from harness.store.directory import read_summary, write_summary
from harness.store.run import Run, read_run
from harness.store.run_file import Imported

Sweep = Sequence[tuple[Run, Summary]]
"""Stored runs and their summaries."""


def load(directory: Path) -> tuple[Run, Summary]:
    """A run and its summary; the rows are read only if the summary has to be made from them."""
    run = read_run(directory)
    return run, summary_of(run)


def summary_of(run: Run) -> Summary:
    """The run's stored summary, or else one made now and stored where the directory can be written."""
    stored = read_summary(run.directory)
    if stored is not None and stored.state == run.state:
        return stored
    made = made_of(run)
    if run.state != "running":
        write_summary(run.directory, made)
    return made


def made_of(run: Run) -> Summary:
    """The run's summary, made from its rows."""
    file, asked = run.file, run.file.workload.requests
    apart_s = clock_bound_s(file.clients)
    infos = [replace(info, clock_offset_s=info.clock_offset_s + apart_s) for info in file.meters]
    window = window_of(
        run.requests, run.state, run.shape, run.users, lambda cuts: watts_between(run.power, infos, cuts)
    )
    made = summarise(run.id, run.state, run.requests, run.objectives, run.simulated, window)
    in_turns = any(kind.turns for kind in asked.kinds)  # count is of conversations
    findings = check_requests(
        run.requests,
        made,
        window,
        asked=None if in_turns else asked.count,
        ignore_eos=asked.ignore_eos,
        warmup_requests=file.workload.warmup.requests,
    )
    findings += tuple(check_conditions(run.environment, asked, run.engine.options if run.engine else {}, made))
    made = check_client(
        replace(made, findings=findings),
        run.requests,
        file.workload.load.model_dump(),
        count=asked.count,
        clients=file.clients,
        served=run.served,
        window=window,
    )
    if infos and window is not None:
        made = _with_energy(run, infos, made, window)
    if window is not None:
        made = replace(made, figures=made.figures + server_figures(run.server, window.begin_s, window.end_s))
    if file.imported is not None:
        made = _imported(file.imported, made, bool(len(run.requests)))
    return made


def _with_energy(run: Run, infos: Sequence[MeterInfo], summary: Summary, window: Window) -> Summary:
    """The summary with the energy of the window, and what is doubtful about it."""
    found = measure_energy(
        run.power,
        infos,
        run.requests,
        window.begin_s,
        window.end_s,
        slots=run.users,
        idle=run.file.idle,
        host_w=run.file.declared.get("host_w"),
        pue=run.file.declared.get("pue"),
    )
    return replace(summary, figures=summary.figures + found.figures, findings=summary.findings + found.findings)


def _imported(origin: Imported, computed: Summary, rows: bool) -> Summary:
    """The figures that another tool printed, before those computed here from its rows, where it stored any."""
    printed = {figure.name: figure for figure in origin.figures}
    absent = f"{origin.tool} does not give it"
    others = (
        replace(figure, status="derived") if rows else replace(figure, value=None, n=None, reason=absent)
        for figure in computed.figures
        if figure.name not in printed
    )
    notes = "; ".join(origin.notes) or "none that is known"
    found = finding("imported", tool=origin.tool, file=origin.file, notes=notes)
    return replace(
        computed,
        figures=(*printed.values(), *others),
        findings=(found, *(computed.findings if rows else ())),
    )
