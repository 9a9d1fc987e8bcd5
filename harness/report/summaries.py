"""The summary of a stored run: figures, energy and findings, made once and kept beside the rows."""

from __future__ import annotations

from dataclasses import replace

from harness import checks, energy, store
from harness.model import Summary
from harness.store import Run
from harness.summary import summarise


def summary_of(run: Run) -> Summary:
    """The run's stored summary, or else one made now and stored where the directory can be written."""
    stored = store.read_summary(run.directory)
    if stored is not None and stored.state == run.file.state:
        return stored
    workload = run.file.workload
    made = summarise(run.file.id, run.file.state, run.requests, workload.get("objectives", {}), run.simulated)
    asked = workload.get("requests", {})
    findings = checks.check(
        run.requests,
        made,
        asked=asked.get("count"),
        ignore_eos=asked.get("ignore_eos", True),
        warmup_requests=workload.get("warmup", {}).get("requests", 0),
    )
    made = replace(made, findings=findings)
    if run.file.meters:
        made = _with_energy(run, made)
    if run.file.state != "running":
        store.write_summary(run.directory, made)
    return made


def _with_energy(run: Run, summary: Summary) -> Summary:
    """The summary with the energy of the measured part, and what is doubtful about it."""
    infos = energy.meter_infos(run.file.meters)
    if run.requests.empty:
        return summary
    begun_s, ended_s = float(run.requests["scheduled_s"].min()), float(run.requests["end_s"].max())
    found = energy.measure(
        run.power,
        infos,
        run.requests,
        begun_s,
        ended_s,
        slots=run.file.workload.get("load", {}).get("users"),
        idle=run.file.idle,
        host_w=run.file.declared.get("host_w"),
        pue=run.file.declared.get("pue"),
    )
    return replace(summary, figures=summary.figures + found.figures, findings=summary.findings + found.findings)
