"""The tables of one run: conditions, speed, latency, energy and findings."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import BaseModel

from harness.analysis.diff import HEADLINES
from harness.analysis.findings import mixed
from harness.analysis.latency import LATENCIES, STATISTICS
from harness.analysis.summary import Sweep
from harness.model import Figure, Finding, Summary
from harness.predict.predict import hardware_limits
from harness.report.format import amount, labels, number
from harness.report.table import Cell, Table, properties
from harness.store.run import Run
from harness.workload.library import in_short

LONGEST = 60
"""Characters printed of a setting of the environment; run.json has it whole."""
RATES = labels("rate")
OBJECTIVES = labels("objective")


def measured_tables(run: Run, summary: Summary) -> list[Table]:
    """Every table of a run's measurement, in reading order."""
    limits, _ = hardware_limits(run, summary) if run.on_gpu else ((), ())
    return [
        run_table(run),
        throughput_table(summary),
        *steps_tables(summary),
        latency_table(summary),
        *([goodput_table(summary, run.objectives)] if run.objectives else []),
        tokens_table(summary),
        latency_table(summary, "whole_run."),
        *listed("client", "Offered load and client", _named(summary, "load.", "client.")),
        *listed("server", "Server metrics", _named(summary, "server.")),
        *([errors_table(summary)] if summary.errors else []),
        *energy_tables(summary, run.file.meters_absent),
        *listed("limits", "Distance from the hardware's limit", limits),
        findings_table(findings_of(run, summary)),
    ]


def findings_of(run: Run, summary: Summary) -> tuple[Finding, ...]:
    """The findings of the run, after those about the distance from the hardware's limit."""
    _, doubts = hardware_limits(run, summary) if run.on_gpu else ((), ())
    return *doubts, *summary.findings


def run_table(run: Run) -> Table:
    """Model, engine, device, workload and load of a run; unknown properties are left out."""
    file, asked = run.file, run.file.workload
    took = (f"{name[:-2].replace('_', ' ')} {round(s, 3):g} s" for name, s in file.timings if s is not None)
    known = {
        "state": _joined([file.state, file.error], ": "),
        "started": f"{file.created_utc:%Y-%m-%d %H:%M:%S} UTC",
        "model": _model(run),
        "engine": _joined([file.engine_asked, run.engine and run.engine.version], " "),
        "device": _device(run),
        "workload": _joined([asked.name, asked.description], ": "),
        "requests": in_words(asked.requests),
        "load": in_words(asked.load),
        "warmup": in_words(asked.warmup),
        "took": _joined(took),
    }
    return properties("run", f"Run {file.id}", known)


def in_words(part: BaseModel) -> str:
    """A part of a workload in a line, without values that are not set."""
    return _short(part.model_dump())


def runs_table(sweep: Sweep) -> Table:
    """A row for each run: its conditions, the headline figures and the serious findings.

    A note names software that differs between the runs.
    """
    rows: list[tuple[Cell, ...]] = []
    for run, summary in sweep:
        figures = [summary.get(name) for name in HEADLINES]
        serious = _joined(finding.code for finding in summary.findings if finding.serious)
        if "no-window" in serious:  # rates of a whole run are not to be compared with those of a window
            lacking = partial(replace, value=None, low=None, high=None, reason="the run has no measured window")
            figures = [each and lacking(each) for each in figures]
        load = in_words(run.file.workload.load)
        rows.append((run.id, run.state, _model(run), _device(run), load, *figures, serious))
    columns = ("run", "state", "model", "device", "load", *HEADLINES, "serious findings")
    differs = mixed([run for run, _ in sweep])
    notes = (f"{differs.code}: {differs.text}",) if differs else ()
    return Table("runs", f"{len(rows)} runs", columns, tuple(rows), notes)


def environment_table(run: Run) -> Table:
    """The machine, the software, and every setting of the engine."""
    model, options = run.model, run.engine.options if run.engine else None
    weights = {"source": model.source, "revision": model.revision, "weights_sha256": model.weights_sha256}
    found = {**run.environment.model_dump(), "weights": weights, "engine options": options}
    settings = run.environment.settings.items()
    found["settings"] = {name: text if len(text) <= LONGEST else f"{text[:LONGEST]}…" for name, text in settings}
    if (memory := found.pop("memory_bytes", None)) is not None:
        found["memory"] = f"{memory / 1e9:.1f} GB"
    return properties("environment", "Environment", {key.replace("_", " "): _short(found[key]) for key in found})


def throughput_table(summary: Summary) -> Table:
    """Rates in the measured window, and the number of requests."""
    kinds = ("completed", "sent", "failed", "unfinished")
    counts = [amount(summary[f"requests.{kind}"], unit=False) for kind in kinds]
    rows: list[tuple[Cell, ...]] = [(label, summary[name]) for name, label in RATES.items()]
    rows.append(("requests sent", "{} of {} completed, {} failed, {} cut off".format(*counts)))
    return Table("throughput", "Throughput", ("figure", "value"), tuple(rows))


def latency_table(summary: Summary, of: str = "") -> Table:
    """Mean and percentiles of every latency; n counts gaps for ITL, and requests for the others.

    `of`: empty, or `whole_run.` for the latencies of the whole run, with its rates in notes.
    """
    rows: list[tuple[Cell, ...]] = []
    for name in LATENCIES:
        label = name[:-2] if name in ("response_s", "lag_s") else name[:-2].upper()
        if name == "ttft_s" and (hidden := summary.get("hidden_tokens")) and hidden.value:
            label = "TTFT (first token shown)"
        figures = [summary[f"{of}{name}.{stat}"] for stat in STATISTICS]
        rows.append((label, *figures, number(figures[0].n or 0)))
    unseen = summary["unseen_gaps"]
    grouped = f"{amount(unseen)} of the gaps between tokens went unseen, as their tokens arrived together"
    notes = (grouped,) if unseen.value is not None and unseen.value > 0 else ()
    columns = ("latency", *STATISTICS, "n")
    if not of:
        return Table("latency", "Latency", columns, tuple(rows), notes)
    rates = [f"{label}: {amount(summary[of + name])}" for name, label in list(RATES.items())[:4]]
    title = "Latency of the whole run, ramp and drain included"
    return Table("whole-run", title, columns, tuple(rows), (*rates, *notes))


STEP = labels("step")
"""Figures of a step of a load, and their columns."""


def steps_asked(summary: Summary) -> list[Figure]:
    """The users, or the rate, of each step of the load; empty for another load."""
    return [each for each in summary.figures if each.name.startswith("step.") and each.name.endswith(".load")]


def level(asked: Figure) -> str:
    """The users, or the rate, of a step of a load."""
    return amount(replace(asked, unit="user") if (asked.value, asked.unit) == (1, "users") else asked)


def steps_tables(summary: Summary) -> list[Table]:
    """A row for each step of the load, with the figures of its window; no table of another load."""
    figures, rows = {each.name: each for each in summary.figures}, list[tuple[Cell, ...]]()
    of = [name for name in STEP if f"step.1.{name}" in figures]
    for i, asked in enumerate(steps_asked(summary), 1):
        begin, end = (figures[f"step.{i}.{name}"] for name in ("window.begin_s", "window.end_s"))
        window = "none" if end.value is None else f"{amount(begin, unit=False)} to {amount(end)}"
        rows.append((f"{i}: {level(asked)}", window, *(figures[f"step.{i}.{name}"] for name in of)))
    columns = ("step", "window", *(STEP[name] for name in of))
    note = "The figures of the run are those of the step with the most users, or the highest rate."
    return [Table("steps", "Steps of the load", columns, tuple(rows), (note,))] if rows else []


def goodput_table(summary: Summary, limits: Mapping[str, float]) -> Table:
    """The share of requests that met all objectives, and each objective alone. `limits` in seconds."""
    alone = tuple(
        (OBJECTIVES[name].format(f"{number(limit * 1e3)} ms"), summary[f"objectives_met.{name}"])
        for name, limit in limits.items()
    )
    rows = (("all objectives met", summary["objectives_met"]), *alone)
    return Table("goodput", "Requests that met the objectives", ("objective", "met by"), rows)


def tokens_table(summary: Summary) -> Table:
    """Tokens asked for and tokens received, over the completed requests."""
    rows: tuple[tuple[Cell, ...], ...] = (
        ("input", summary["input_tokens.asked"], summary["input_tokens.got"], summary["cached_tokens"]),
        ("output", summary["output_tokens.asked"], summary["output_tokens.got"], None),
    )
    return Table("tokens", "Tokens of the completed requests", ("tokens", "asked", "received", "from cache"), rows)


LADDER = labels("boundary")
ENERGY = ("joules_per_", "gpu_power_w", "split.", "gpu_idle_power_w.", "gpu_net_energy_j", "gpu_memory_power_w",
          "energy_uncertainty.", "energy_cross_check.", "meter_cpu_share.")  # fmt: skip
"""Prefixes of the names of energy figures, in reading order."""


def energy_tables(summary: Summary, absent: Iterable[str]) -> list[Table]:
    """Energy by boundary, then per token and request; for a run without a meter, why no meter was read."""
    ladder = tuple((label, figure) for name, label in LADDER.items() if (figure := summary.get(name)) is not None)
    if not ladder:
        why = tuple((each,) for each in absent)
        return [Table("energy", "Energy: n/a, no meter was read", ("meter looked for",), why)] if why else []
    return [
        Table("energy", "Energy of the measured window, by boundary", ("boundary", "energy"), ladder),
        *listed("joules", "Energy per token and request, and its uncertainty", _named(summary, *ENERGY)),
    ]


def _named(summary: Summary, *beginnings: str) -> list[Figure]:
    """The figures whose names begin with one of these prefixes, in the order of the prefixes."""
    return [figure for start in beginnings for figure in summary.figures if figure.name.startswith(start)]


def listed(name: str, title: str, figures: Iterable[Figure]) -> list[Table]:
    """A table of figures under their names, or no table if there are none."""
    rows = tuple((figure.name, figure) for figure in figures)
    return [Table(name, title, ("figure", "value"), rows)] if rows else []


def errors_table(summary: Summary) -> Table:
    """Failed requests by kind."""
    rows = tuple((kind, number(count)) for kind, count in summary.errors.items())
    return Table("errors", "Failed requests", ("kind", "requests"), rows)


def findings_table(findings: Iterable[Finding]) -> Table:
    """Findings, with what to do about each."""
    return Table("findings", "Findings", FINDING, tuple(map(finding_row, findings)))


FINDING = ("finding", "seen", "what to do")


def finding_row(finding: Finding) -> tuple[str, str, str]:
    """The cells of the columns `FINDING`."""
    return f"{finding.code} (serious)" if finding.serious else finding.code, finding.text, finding.advice


def _joined(parts: Iterable[object], between: str = ", ") -> str:
    return between.join(str(part) for part in parts if part not in (None, ""))


def _short(value: Any) -> str:
    """A part of run.json in a line, without values that are not set."""
    if isinstance(value, dict):
        return in_short(_given(value))
    return _joined(map(_short, value), " ") if isinstance(value, list | tuple) else "" if value is None else str(value)


def _given(spec: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: _given(value) if isinstance(value, dict) else value for key, value in spec.items()}
    return {key: value for key, value in inner.items() if value is not None and value != {}}


def _model(run: Run) -> str:
    """For instance `smollm2-135m: LlamaForCausalLM, 134.5 M parameters, float32 (stored as Q4_1)`."""
    if run.simulated:
        return "none: the engine is simulated"
    model = run.model
    total, active = model.parameters, model.active_parameters
    known = [
        model.architecture,
        f"{number(total)} parameters" if total is not None else None,
        f"{number(active)} active" if active not in (None, total) else None,
        model.precision,
    ]
    text = _joined([model.asked, _joined(known)], ": ")
    stored = model.stored_precision
    return text if stored in (None, model.precision) else f"{text} (stored as {stored})"


def _device(run: Run) -> str:
    if run.engine is None:
        return ""
    if run.on_gpu:
        return f"{run.device_count} × {run.gpu or 'GPU'}"
    if run.engine.device == "cpu":
        cpu = run.environment.cpu
        return f"{cpu.model or 'CPU'}, {cpu.cores_usable} cores usable"
    return ""
