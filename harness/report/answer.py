"""The first screen of `run` and `report`: the answer in few lines, as text. All tables are behind it (`--full`)."""

from __future__ import annotations

from collections.abc import Sequence

from harness.cost.draws import Distribution
from harness.cost.pricing import Priced
from harness.model import Figure, Finding, Summary
from harness.report.format import amount, number, plain
from harness.report.lines import GAP, Footnotes, columns, cut, flowed, folded
from harness.report.tables import OBJECTIVES
from harness.store.run import Run

WIDE, MOST, MOST_NARROW = 100, 23, 29
"""From WIDE columns on the screen has at most MOST lines, else MOST_NARROW; a line of `run` names the directory."""
LATENCIES = {"ttft_s": "TTFT", "itl_s": "ITL", "tpot_s": "TPOT", "e2e_s": "E2E"}
LABEL = 13
"""Width of the labels at the left."""
INDENT = " " * LABEL
NO_SPREAD = "neither the run's rate nor the scenario has a spread"


def answer(run: Run, summary: Summary, priced: Priced | None, findings: Sequence[Finding], width: int) -> str:
    """The screen of one run. `priced`: None if nothing can be priced; `findings`: the serious ones first."""
    notes = Footnotes()
    body = [
        *cut(flowed(headline(run, summary), width, " · "), 3, width),
        *flowed(_throughput(notes, summary), width, GAP, INDENT),
        *_latencies(notes, summary, width),
        *flowed(_goodput(run, notes, summary), width, GAP, INDENT),
        *flowed(_energy(run, notes, summary), width, GAP, INDENT),
        *flowed(_price(run, notes, priced), width, GAP, INDENT),
    ]  # fmt: skip
    last = [*flowed(_window(summary), width, GAP), *flowed(legend(run, summary, priced), width, "; ")]
    more = cut(flowed([f"more: harness report {run.id} --full", "-o report.html"], width, GAP), 2, width)
    room = (MOST if width >= WIDE else MOST_NARROW) - len(body) - len(last) - len(more)
    kept = min(2 * len(findings), 4 if findings and findings[0].serious else 2)
    reasons = cut(notes.lines(width), max(2, room - kept), width)
    doubts = _findings(run, findings, max(1, room - len(reasons)), width)
    return "".join(f"{line}\n" for line in [*body, *doubts, *last, *reasons, *more])


def headline(run: Run, summary: Summary) -> list[str]:
    """What was measured: state if not complete, workload, model, device, engine, load, requests and time."""
    sent, done, took = (summary[name].value for name in ("requests.sent", "requests.completed", "duration_s"))
    found = [
        "" if run.state == "complete" else run.state.upper() + (f": {run.file.error}" if run.file.error else ""),
        "SIMULATED" if run.simulated else "",
        run.file.workload.name,
        short_model(run),
        short_device(run),
        "" if run.simulated else engine_of(run),
        short_load(run),
        "" if done is None or sent is None else f"{number(done)} of {number(sent)} requests",
        "" if took is None else f"{took:.3g} s",
    ]
    return [plain(each) for each in found if each]


def engine_of(run: Run) -> str:
    """Engine and version; of `openai` the version is that of the server."""
    server = " server" * (run.file.engine_asked == "openai")
    return f"{run.file.engine_asked}{server} {(run.engine and run.engine.version) or ''}".strip()


def short_model(run: Run) -> str:
    """The model without the owner of its repository, and its precision; empty for a simulated engine."""
    name = (run.model.asked or run.model.source or "").rstrip("/").rpartition("/")[2]
    return " ".join(part for part in (name, run.model.precision) if part and name)


def short_device(run: Run) -> str:
    """Such as `1 x H100 80GB HBM3` or `AMD EPYC, 2 cores`; empty if unknown."""
    if run.on_gpu:
        return f"{run.device_count} x {(run.gpu or 'GPU').removeprefix('NVIDIA ')}"
    cpu = run.environment.cpu
    known = run.engine is not None and run.engine.device == "cpu" and not run.simulated
    return f"{cpu.model or 'CPU'}, {cpu.cores_usable} cores" if known else ""


def short_load(run: Run) -> str:
    """Such as `8 users`, `poisson 4/s` or `offline`."""
    load = run.file.workload.load
    if load.users is not None:
        return f"{load.users} user{'s' * (load.users != 1)}"
    return f"{run.shape} {load.rate_per_s:g}/s" if load.rate_per_s is not None else run.shape


def _throughput(notes: Footnotes, summary: Summary) -> list[str]:
    rates = [notes.cell(summary[name]) for name in ("output_tokens_per_s", "requests_per_s")]
    failed = summary["requests.failed"].value
    kinds = ", ".join(f"{kind} {count}" for kind, count in summary.errors.items())
    told = [f"{number(failed)} failed ({plain(kinds)})"] if failed else []
    return ["throughput".ljust(LABEL) + rates[0], rates[1], *told]


def _latencies(notes: Footnotes, summary: Summary, width: int) -> list[str]:
    statistics = ("p50", "p95", "p99")
    rows = [
        (label, *(notes.cell(summary[f"{name}.{stat}"], unit=False) for stat in statistics))
        for name, label in LATENCIES.items()
    ]
    lines = columns([("latency ms", *statistics), *rows], LABEL)
    return [line for each in lines for line in folded(each, width, INDENT)]


def _goodput(run: Run, notes: Footnotes, summary: Summary) -> list[str]:
    if not run.objectives:
        return []
    met = summary["objectives_met"]
    of = f" of {number(met.n)} requests" if met.value is not None and met.n is not None and met.low is None else ""
    limits = [OBJECTIVES[name].format(f"{number(limit * 1e3)} ms") for name, limit in run.objectives.items()]
    return ["goodput".ljust(LABEL) + notes.cell(met) + of, *limits]


def _energy(run: Run, notes: Footnotes, summary: Summary) -> list[str]:
    figures = {figure.name: figure for figure in summary.figures}
    label = "energy".ljust(LABEL)
    if "joules_per_output_token" not in figures:
        absent = "; ".join(run.file.meters_absent) or "no meter was read"
        return [f"{label}n/a{notes.mark(absent)}"]
    found = [f"{label}{notes.cell(figures['joules_per_output_token'])} per output token"]
    limits = {each.power_limit_w for info in run.file.meters for each in info.devices if each.power_limit_w is not None}
    of = f", limit {limits.pop():g} W each" if len(limits) == 1 else ""
    found += [notes.cell(figures["gpu_power_w"]) + of] if "gpu_power_w" in figures else []
    gain = figures.get("energy_uncertainty.gain")
    return [*found, f"the sensor's gain, {amount(gain)}, is apart"] if gain is not None else found


COSTS = {
    "usd_per_million_output_tokens": (1.0, "per million output tokens"),
    "usd_per_query": (1e6, "per million queries"),
}
"""Cost -> how many of it, and their name."""


def _price(run: Run, notes: Footnotes, priced: Priced | None) -> list[str]:
    label = "price".ljust(LABEL)
    if run.simulated or priced is None:
        why = "a simulated run is not priced" if run.simulated else "the engine never started"
        return [f"{label}n/a{notes.mark(why)}"]
    found = []
    for name, (many, per) in COSTS.items():
        cost = times_of(priced.costs[name], many)
        found.append(f"{'' if cost.value is None else '$'}{notes.cell(cost, unit=False)} {per}")
    unknown = {priced.costs[name].reason for name in COSTS if priced.costs[name].value is None}
    if len(unknown) == 1 == len({priced.costs[name].value for name in COSTS}):
        return [f"{label}n/a{notes.mark(unknown.pop())}"]
    found[0] = label + found[0]
    used = {each.name: each for each in priced.costs.assumptions}
    busy = used.get("serving.utilisation")
    at = f", {_reach(busy.distribution)} busy ({busy.status})" if busy else ""
    return [*found, f"{priced.costs.scenario}{at}"]


def times_of(figure: Figure, many: float) -> Figure:
    """A cost of many: its unit is changed as those of `scale` are."""
    value, low, high = (None if x is None else x * many for x in (figure.value, figure.low, figure.high))
    reason = figure.reason or (NO_SPREAD if low is None and value is not None else None)
    return Figure(figure.name, value, "", figure.status, low, high, figure.n, reason, figure.interval)


def _reach(d: Distribution) -> str:
    first, last = min(d.parameters[:3]), max(d.parameters[:3])
    return f"{first:.0%}" if first == last or d.kind == "beta" else f"{100 * first:.0f}-{last:.0%}"


def _window(summary: Summary) -> list[str]:
    begin, end, took = (summary[name].value for name in ("window.begin_s", "window.end_s", "duration_s"))
    if begin is None or end is None or took is None:
        return []
    if (summary["window.share"].value or 0.0) >= 1:
        return [f"window: whole run, {took:.3g} s"]
    held = f"{end - begin:.3g} of {took:.3g} s"
    if any(each.name == "step.1.load" for each in summary.figures):
        return [f"window: {held}, of the highest step", "all steps: --table steps"]
    return [f"window: {held}, without ramp and drain"]


def legend(run: Run, summary: Summary, priced: Priced | None) -> list[str]:
    """The status of the figures, and what the intervals are."""
    figures = {figure.name: figure for figure in summary.figures}
    by: dict[str, list[str]] = {summary["output_tokens_per_s"].status: ["throughput", "latency"]}
    intervals = ["intervals: 95%"]
    if (energy := figures.get("joules_per_output_token")) is not None:
        by.setdefault(energy.status, []).append("energy")
        intervals += ["of power hard bounds"] if "gpu_power_w" in figures else []
    if priced is not None and not run.simulated:
        cost = priced.costs["usd_per_query"]
        by.setdefault(cost.status, []).append("price")
        intervals += [f"of prices {cost.interval}"] if cost.low is not None else []
    return [*(f"{status}: {', '.join(what)}" for status, what in by.items()), ", ".join(intervals)]


def _findings(run: Run, findings: Sequence[Finding], room: int, width: int) -> list[str]:
    """As many findings as there is room for, the first ones at least in part; the rest is counted."""
    lines: list[str] = []
    for i, each in enumerate(findings):
        left = len(findings) - i
        whole = folded(f"! {each.code}{' (serious)' * each.serious}: {each.text} -> {each.advice}", width, "  ")
        rest = _counted(left - 1, run, width)
        if len(lines) + len(whole) + len(rest) > room:
            if i:
                return [*lines, *_counted(left, run, width)]
            whole = cut(whole, max(1, room - len(rest)), width)
            return [*whole, *rest][:room]
        lines += whole
    return lines


def _counted(left: int, run: Run, width: int) -> list[str]:
    return cut(folded(f"! {left} more: harness check {run.id}", width, ""), 1, width) if left else []
