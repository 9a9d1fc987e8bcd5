"""The tables of one run: what ran, how fast, how well, and what is doubtful."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.analysis.diff import HEADLINES
from harness.analysis.findings import mixed
from harness.analysis.latency import LATENCIES, STATISTICS
from harness.analysis.summary import Sweep
from harness.model import Figure, Finding, Summary
from harness.report.format import amount, number
from harness.report.table import PROPERTIES, Cell, Table
from harness.store.run_file import RunFile
from harness.workload.library import in_short

RATES: Mapping[str, str] = {
    "output_tokens_per_s": "output tokens",
    "total_tokens_per_s": "total tokens",
    "input_tokens_per_s": "input tokens",
    "requests_per_s": "requests",
    "goodput_per_s": "goodput",
    "duration_s": "duration",
    "window.share": "steady part",
}
OBJECTIVES: Mapping[str, str] = {
    "ttft_s": "first token within {} of the due time",
    "tpot_s": "TPOT up to {}",
    "itl_s": "no gap between tokens above {}",
    "e2e_s": "last token within {} of the due time",
}


def tables(file: RunFile, summary: Summary) -> list[Table]:
    """Every table of a run by itself, in reading order: `run` first, `environment` last."""
    limits = {name: limit for name, limit in (file.workload.get("objectives") or {}).items() if limit is not None}
    return [
        run_table(file),
        throughput_table(summary),
        latency_table(summary),
        *([goodput_table(summary, limits)] if limits else []),
        tokens_table(summary),
        *listed("client", "The load as sent, and what sent it", _named(summary, "load.", "client.")),
        *listed("server", "What the server says", _named(summary, "server.")),
        *([errors_table(summary)] if summary.errors else []),
        findings_table(summary.findings),
        environment_table(file),
    ]


def run_table(file: RunFile) -> Table:
    """What ran, on what, under which load; parts that are not known are left out."""
    engine, asked = file.engine or {}, file.workload
    took = (f"{name[:-2].replace('_', ' ')} {round(s, 3):g} s" for name, s in file.timings if s is not None)
    return _properties(
        "run",
        f"Run {file.id}",
        {
            "state": _joined([file.state, file.error], ": "),
            "started": f"{file.created_utc:%Y-%m-%d %H:%M:%S} UTC",
            "model": _model(file),
            "engine": _joined([file.engine_asked, engine.get("version")], " "),
            "device": _device(engine, file.environment),
            "workload": _joined([asked.get("name"), asked.get("description")], ": "),
            **{part: _short(asked.get(part)) for part in ("requests", "load", "warmup")},
            "took": _joined(took),
        },
    )


def load_of(file: RunFile) -> str:
    """The load that a run was under, in a few words."""
    return _short(file.workload.get("load"))


def runs_table(sweep: Sweep) -> Table:
    """A row a run: what ran, under which load, how fast, at what energy, and which findings are serious.

    A note names software that differs between the runs.
    """
    rows: list[tuple[Cell, ...]] = []
    for file, summary in sweep:
        figures = {figure.name: figure for figure in summary.figures}
        what = (file.id, file.state, _model(file), _device(file.engine or {}, file.environment), load_of(file))
        serious = _joined(finding.code for finding in summary.findings if finding.serious)
        rows.append((*what, *(figures.get(name) for name in HEADLINES), serious))
    columns = ("run", "state", "model", "device", "load", *HEADLINES, "serious findings")
    differs = mixed([file for file, _ in sweep])
    notes = (f"{differs.code}: {differs.text}",) if differs else ()
    return Table("runs", f"{len(rows)} runs", columns, tuple(rows), notes)


def environment_table(file: RunFile) -> Table:
    """Where the run took place, and every setting that changes an engine."""
    engine = file.engine or {}
    weights = {key: (engine.get("model") or {}).get(key) for key in ("source", "revision", "weights_sha256")}
    found = {**file.environment, "weights": weights, "engine options": engine.get("options")}
    if (memory := found.pop("memory_bytes", None)) is not None:
        found["memory"] = f"{memory / 1e9:.1f} GB"
    return _properties("environment", "Environment", {key.replace("_", " "): _short(found[key]) for key in found})


def throughput_table(summary: Summary) -> Table:
    """Rates over the measured part, and how many requests they rest on."""
    sent, done, failed, cut = (
        amount(summary[f"requests.{kind}"], unit=False) for kind in ("sent", "completed", "failed", "unfinished")
    )
    rows: list[tuple[Cell, ...]] = [(label, summary[name]) for name, label in RATES.items()]
    rows.append(("requests sent", f"{done} of {sent} completed, {failed} failed, {cut} cut off"))
    return Table("throughput", "Throughput", ("of", "value"), tuple(rows))


def latency_table(summary: Summary) -> Table:
    """Mean and percentiles of every latency; n counts gaps for ITL and requests for all else."""
    rows: list[tuple[Cell, ...]] = []
    for name in LATENCIES:
        label = name[:-2] if name in ("response_s", "lag_s") else name[:-2].upper()
        figures = [summary[f"{name}.{stat}"] for stat in STATISTICS]
        rows.append((label, *figures, number(figures[0].n or 0)))
    unseen = summary["unseen_gaps"]
    grouped = f"{amount(unseen)} of the gaps between tokens went unseen, as their tokens arrived together"
    notes = (grouped,) if unseen.value is not None and unseen.value > 0 else ()
    return Table("latency", "Latency", ("latency", *STATISTICS, "n"), tuple(rows), notes)


def goodput_table(summary: Summary, limits: Mapping[str, float]) -> Table:
    """The share of requests that met every objective, and each one alone. `limits` in seconds."""
    alone = tuple(
        (OBJECTIVES[name].format(f"{number(limit * 1e3)} ms"), summary[f"objectives_met.{name}"])
        for name, limit in limits.items()
    )
    rows = (("every one", summary["objectives_met"]), *alone)
    return Table("goodput", "Requests that met the objectives", ("objective", "met by"), rows)


def tokens_table(summary: Summary) -> Table:
    """Tokens asked for against tokens got, over the completed requests."""
    rows: tuple[tuple[Cell, ...], ...] = (
        ("input", summary["input_tokens.asked"], summary["input_tokens.got"], summary["cached_tokens"]),
        ("output", summary["output_tokens.asked"], summary["output_tokens.got"], None),
    )
    return Table("tokens", "Tokens of the completed requests", ("tokens", "asked", "got", "from cache"), rows)


LADDER: Mapping[str, str] = {
    "energy_j.gpu": "GPUs",
    "energy_j.cpu_package": "+ CPU packages",
    "energy_j.dram": "+ DRAM",
    "energy_j.rest_of_host": "+ rest of the host",
    "energy_j.facility": "x PUE: the facility",
}
ENERGY = ("joules_per_", "gpu_power_w", "split.", "gpu_idle_power_w.", "gpu_net_energy_j", "gpu_memory_power_w",
          "energy_uncertainty.", "energy_cross_check.", "meter_cpu_share.")  # fmt: skip
"""Beginnings of the names of energy figures, in reading order."""


def energy_tables(summary: Summary, absent: Iterable[str]) -> list[Table]:
    """Energy by boundary, then by token and request with its doubts; of a run without a meter, why there is none."""
    figures = {figure.name: figure for figure in summary.figures}
    ladder = tuple((label, figures[name]) for name, label in LADDER.items() if name in figures)
    if not ladder:
        why = tuple((each,) for each in absent)
        return [Table("energy", "Energy: n/a, no meter was read", ("looked for",), why)] if why else []
    return [
        Table("energy", "Energy of the measured part, by boundary", ("boundary", "energy"), ladder),
        *listed("joules", "Energy by token and request, and what it rests on", _named(summary, *ENERGY)),
    ]


def _named(summary: Summary, *beginnings: str) -> list[Figure]:
    """The figures whose names begin with one of these, in that order."""
    return [figure for start in beginnings for figure in summary.figures if figure.name.startswith(start)]


def listed(name: str, title: str, figures: Iterable[Figure]) -> list[Table]:
    """Figures by their names; no table where there are none."""
    rows = tuple((figure.name, figure) for figure in figures)
    return [Table(name, title, ("figure", "value"), rows)] if rows else []


def errors_table(summary: Summary) -> Table:
    """Failed requests by kind."""
    rows = tuple((kind, number(count)) for kind, count in summary.errors.items())
    return Table("errors", "Failed requests", ("kind", "requests"), rows)


def findings_table(findings: Iterable[Finding]) -> Table:
    """What makes figures doubtful, and what to do about it."""
    return Table("findings", "Findings", FINDING, tuple(map(finding_row, findings)))


FINDING = ("finding", "seen", "what to do")


def finding_row(finding: Finding) -> tuple[str, str, str]:
    """The cells of `FINDING`."""
    return f"{finding.code} (serious)" if finding.serious else finding.code, finding.text, finding.advice


def _properties(name: str, title: str, values: Mapping[str, str]) -> Table:
    return Table(name, title, PROPERTIES, tuple((key, text) for key, text in values.items() if text))


def _joined(parts: Iterable[object], between: str = ", ") -> str:
    return between.join(str(part) for part in parts if part not in (None, ""))


def _short(value: Any) -> str:
    """A part of run.json in a line, without what was left open."""
    if isinstance(value, dict):
        return in_short(_given(value))
    return _joined(map(_short, value), " ") if isinstance(value, list) else "" if value is None else str(value)


def _given(spec: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: _given(value) if isinstance(value, dict) else value for key, value in spec.items()}
    return {key: value for key, value in inner.items() if value is not None and value != {}}


def _model(file: RunFile) -> str:
    """For instance `smollm2-135m: LlamaForCausalLM, 134.5 M parameters, float32 (stored as Q4_1)`."""
    if file.engine_asked == "simulated":
        return "none: the engine is simulated"
    model = (file.engine or {}).get("model") or {"asked": file.workload.get("model")}
    total, active, stored = (model.get(key) for key in ("parameters", "active_parameters", "stored_precision"))
    known = [
        model.get("architecture"),
        f"{number(total)} parameters" if total is not None else None,
        f"{number(active)} active" if active not in (None, total) else None,
        model.get("precision"),
    ]
    text = _joined([model.get("asked"), _joined(known)], ": ")
    return text if stored in (None, model.get("precision")) else f"{text} (stored as {stored})"


def _device(engine: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    if engine.get("device") == "cuda":
        gpu = (environment.get("gpus") or [{}])[0].get("name") or "GPU"
        return f"{engine.get('device_count', 1)} × {gpu}"
    if engine.get("device") == "cpu":
        cpu = environment.get("cpu") or {}
        return f"{cpu.get('model') or 'CPU'}, {cpu.get('cores_usable')} cores usable"
    return ""
