"""The summary of a stored run: its figures and findings, computed once and stored in summary.json."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness.analysis.client_check import check_client, clock_bound_s
from harness.analysis.energy import Energy, charge, measure_energy
from harness.analysis.findings import FAILED_SHARE, check_conditions, check_requests, finding, of_step
from harness.analysis.latency import summarise, window_of
from harness.analysis.readings import watts_between
from harness.analysis.server import check_cache, check_server, server_figures
from harness.analysis.window import Window
from harness.model import Figure, Summary
from harness.store.access import reading
from harness.store.directory import read_summary, write_summary
from harness.store.run import Run, read_run
from harness.store.run_file import Imported
from harness.workload.arrivals import stages

OF_STEP = {"joules_per_output_token": "J", "gpu_power_w": "W"}
"""Energy figures of each step of a load, and their units."""
Sweep = Sequence[tuple[Run, Summary]]
"""Stored runs and their summaries."""


def load(directory: Path) -> tuple[Run, Summary]:
    """A run and its summary; reads the rows only if no valid summary is stored."""
    run = read_run(directory)
    return run, summary_of(run)


def summary_of(run: Run) -> Summary:
    """The stored summary if it is valid, otherwise a new one, which is stored if the directory can be written."""
    stored = read_summary(run.directory)
    if stored is not None and stored.state == run.state:
        return stored
    with reading(run.directory, "holds values from which no figures follow"):
        made = made_of(run)
    if run.state != "running":
        write_summary(run.directory, made)
    return made


def made_of(run: Run) -> Summary:
    """The run's summary, computed from its rows; findings that put a figure in doubt come first."""
    file = run.file
    apart_s = clock_bound_s(file.clients)
    infos = [replace(info, clock_offset_s=info.clock_offset_s + apart_s) for info in file.meters]
    infos, uncharged, doubts = charge(run, infos)
    window = window_of(
        run.requests, run.state, run.shape, run.users, lambda cuts: watts_between(run.readings, infos, cuts),
        stages(run.load) if run.load is not None else (),
    )  # fmt: skip
    made = summarise(run.id, run.state, run.requests, run.objectives, run.simulated, window)
    found = (*check_cache(run), *check_requests(run, made, window), *check_conditions(run, made), *doubts)
    made = replace(made, findings=found)
    made = check_client(run, made, window)
    if window is not None:
        figures, findings = made.figures, made.findings
        if infos:
            host_w, pue = file.declared.get("host_w"), file.declared.get("pue")
            measured = partial(measure_energy, run.readings, infos, run.requests, uncharged=uncharged)
            energy = measured(window.begin_s, window.end_s, idle=file.idle, host_w=host_w, pue=pue)
            figures, findings = figures + energy.figures, findings + energy.findings
            known = {each.code for each in findings}
            for i, step in enumerate(window.steps, 1):
                of_this = measured(step.begin_s, step.end_s) if step.whole is None else None
                figures += tuple(_of_step(i, step, of_this))
                new = (each for each in (of_this.findings if of_this else ()) if each.code not in known)
                findings += tuple(replace(of_step(i, step, each), serious=False) for each in new)
        figures += server_figures(run.server, window.begin_s, window.end_s)
        of_server = check_server(run, {each.name: each for each in figures}, window.begin_s, window.end_s)
        findings += tuple(of_server)
        made = replace(made, figures=figures, findings=findings)
    made = replace(made, findings=tuple(sorted(made.findings, key=lambda each: not each.serious)))
    return made if file.imported is None else _imported(file.imported, made, bool(len(run.requests)))


def _of_step(i: int, step: Window, energy: Energy | None) -> Iterator[Figure]:
    """The energy figures of a step."""
    for name, unit in OF_STEP.items():
        found = energy[name] if energy else Figure(name, None, unit, "measured", reason=step.whole)
        yield replace(found, name=f"step.{i}.{name}")


def _imported(origin: Imported, computed: Summary, rows: bool) -> Summary:
    """The figures that the other tool printed, then those computed from its rows, if the tool stored rows.

    Tools print figures of the whole run. Where the rows have a measured window, rates and latencies are those of the
    window, as for every other run, and the printed ones are the figures of the whole run.
    """
    named = {figure.name for figure in computed.figures}
    moved = "whole_run." if rows and computed["window.share"].reason is None else ""
    printed = {
        figure.name: figure
        for each in origin.figures
        for figure in [replace(each, name=f"{moved}{each.name}" if f"{moved}{each.name}" in named else each.name)]
    }
    done, failed = (
        figure.value if (figure := printed.get(f"requests.{how}")) else None for how in ("completed", "failed")
    )
    absent = "no request completed" if done == 0 else f"{origin.tool} does not give it"
    others = (
        replace(figure, status="derived") if rows else replace(figure, value=None, n=None, reason=absent)
        for figure in computed.figures
        if figure.name not in printed
    )
    notes = "; ".join(origin.notes) or "none that is known"
    found = [finding("imported", tool=origin.tool, file=origin.file, notes=notes)]
    if origin.doubts:
        found.append(finding("file-contradicts", file=origin.file, doubts="; ".join(origin.doubts)))
    seen = computed.findings if rows else ()
    if done is not None and failed and failed > FAILED_SHARE * (done + failed):
        of_all = f"{failed:g} of {done + failed:g}"
        found.append(finding("failed-requests", share=failed / (done + failed), kinds=of_all))
        seen = tuple(each for each in seen if each.code != "failed-requests")
    return replace(computed, figures=(*printed.values(), *others), findings=(*found, *seen))
