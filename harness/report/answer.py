"""The first screens of `run` and `report`, as text: the answer in few lines; of several runs a row for each, with what
differs between them. All tables are behind them (`--full`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size

from harness.analysis.diff import flat
from harness.analysis.findings import mixed
from harness.analysis.summary import Sweep
from harness.cost.draws import Distribution
from harness.cost.objective import fastest_within
from harness.cost.pricing import Priced
from harness.model import Figure, Finding, Summary
from harness.report.format import Footnotes, amount, labels, number
from harness.report.tables import OBJECTIVES, level, steps_asked
from harness.report.text import GAP, columns, cut, flowed, folded, note_lines
from harness.store.run import Run
from harness.workload.arrivals import in_words

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
    reasons = cut(note_lines(notes, width), max(2, room - kept), width)
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
        "no request sent" if sent == 0 else "",
        "" if done is None or not sent else f"{number(done)} of {number(sent)} requests",
        "" if took is None else f"{took:.3g} s",
    ]
    return [each for each in found if each]


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
    failures = [f"{number(failed)} failed ({kinds})"] if failed else []
    return ["throughput".ljust(LABEL) + rates[0], rates[1], *failures]


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
    label = "energy".ljust(LABEL)
    if (a_token := summary.get("joules_per_output_token")) is None:
        return [f"{label}n/a{notes.mark('; '.join(run.file.meters_absent) or 'no meter was read')}"]
    found = [f"{label}{notes.cell(a_token)} per output token"]
    limits = {each.power_limit_w for info in run.file.meters for each in info.devices if each.power_limit_w is not None}
    of = f", limit {limits.pop():g} W each" if len(limits) == 1 else ""
    if (power := summary.get("gpu_power_w")) is not None:
        found.append(notes.cell(power) + of)
    gain = summary.get("energy_uncertainty.gain")
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
    if summary["window.share"].reason is not None:
        return [f"window: whole run, {took:.3g} s"]
    held = f"{end - begin:.3g} of {took:.3g} s"
    if asked := steps_asked(summary):
        highest = max(asked, key=lambda each: each.value or 0.0)
        return [f"window: {held}, of step {asked.index(highest) + 1}, {level(highest)}", "all steps: --table steps"]
    return [f"window: {held}, without ramp and drain"]


def legend(run: Run, summary: Summary, priced: Priced | None) -> list[str]:
    """The status of the figures, and what the intervals are."""
    by: dict[str, list[str]] = {summary["output_tokens_per_s"].status: ["throughput", "latency"]}
    intervals = ["intervals: 95%"]
    if (energy := summary.get("joules_per_output_token")) is not None:
        by.setdefault(energy.status, []).append("energy")
        intervals += ["of power hard bounds"] if summary.get("gpu_power_w") else []
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


MOST_ROWS = 20
MOST_CONDITIONS = 4
"""Columns of what differs; the names of others are a note. Where figures have no room, only the first stays of columns
that tell the same runs apart."""
AROUND = 12
"""The most lines around the rows."""
WIDEST = 24
"""Characters of a condition."""
FIGURES = labels("head")
"""Figures, the most wanted first -> head of the column; latencies in ms. Those that do not fit are left out."""
ORDER = ("output_tokens_per_s", "ttft_s.p50", "ttft_s.p99", "tpot_s.p50", "tpot_s.p99", "joules_per_output_token",
         "usd_per_million_output_tokens")  # fmt: skip
"""From left to right."""
WITHIN = 0.99
"""Share of the requests that must meet the objectives at the best point."""
SAME = {"name", "description", "seed", "model", "scenario", "engine.name"}
"""Keys of a workload, or first parts of them, that are no condition, or that other columns tell."""


@dataclass(frozen=True, slots=True)
class Row:
    """One run: whether it is the best point, its name, what differs, and its figures by name."""

    best: bool
    run: str
    conditions: Mapping[str, str]
    figures: Mapping[str, Figure]


def several(sweep: Sweep, priced: Sequence[Priced | None], width: int) -> str:
    """The screen of several runs; `priced` as `sweep`. At most MOST_ROWS rows and AROUND lines around them."""
    runs = [run for run, _ in sweep]
    shared, differs = conditions(runs)
    first = {tuple(map(values.index, values)): head for head, values in reversed(differs.items())}
    distinct = [head for head in differs if head in first.values()][:MOST_CONDITIONS]
    best = fastest_within([summary for _, summary in sweep], WITHIN)
    rows = []
    for i, (run, summary) in enumerate(sweep):
        costs = () if (each := priced[i]) is None or run.simulated else each.costs.figures
        figures = {figure.name: figure for figure in (*summary.figures, *costs) if figure.name in FIGURES}
        values = {head: column[i] for head, column in differs.items()}
        rows.append(Row(best is not None and run.id == best.run, run.id, values, figures))
    rows.sort(key=lambda row: [_rank(row.conditions[head]) for head in distinct])
    later = rows[MOST_ROWS - 1 :]  # of more rows the best one is the last if it comes later
    chosen = [*rows[: MOST_ROWS - 1], *([each for each in later if each.best] or later)[:1]]
    for heads in (list(differs)[:MOST_CONDITIONS], distinct):
        notes, table, left = _fitted(chosen, heads, width)
        if not left:
            break
    others = [head for head in differs if head not in heads]
    absent = [head for name, head in FIGURES.items() if not any(name in row.figures for row in rows)]
    lines = [
        "> the most output tokens/s of the runs in which 99% of the requests met the objectives" if best else "",
        f"{len(rows) - MOST_ROWS} more runs" if len(rows) > MOST_ROWS else "",
        f"also different: {', '.join(others)}" if others else "",
        f"no room for {', '.join(left)}" if left else "",
        f"n/a in every run: {', '.join(absent)}" if absent else "",
        "latencies in ms; digits end where 95% intervals (p5-p95 of prices) make them doubtful",
    ]
    head = cut(flowed([f"{len(runs)} runs", *shared], width, " · "), 2, width)
    below = [*_doubts(sweep, width), *cut(flowed([each for each in lines if each], width, GAP), 4, width)]
    sweeps = {run.file.sweep.name if run.file.sweep else "RUN…" for run in runs}
    last = f"more: harness report {sweeps.pop() if len(sweeps) == 1 else 'RUN…'} --full{GAP}-o report.html"
    reasons = cut(note_lines(notes, width), AROUND - len(head) - len(below) - 2, width)
    return "".join(f"{line}\n" for line in [*head, *table, *below, *reasons, last])


def _doubts(sweep: Sweep, width: int) -> list[str]:
    """Serious findings with the number of runs that have them, and software that differs."""
    seen = Counter(code for _, summary in sweep for code in {x.code: x for x in summary.findings if x.serious})
    codes = ", ".join(f"{code} ({count} runs)" if count > 1 else code for code, count in seen.most_common())
    differs = mixed([run for run, _ in sweep])
    texts = [f"! serious: {codes} -> harness check RUN" if codes else "", f"! {differs.text}" if differs else ""]
    return [line for text in texts if text for line in cut(folded(text, width, "  "), 2, width)]


def conditions(runs: Sequence[Run]) -> tuple[list[str], dict[str, list[str]]]:
    """What all runs share, and each condition that differs, under its shortest clear name -> its value in each run."""
    found: dict[str, list[str]] = {
        "state": [run.state for run in runs],
        "workload": [run.file.workload.name or "" for run in runs],
        "model": ["simulated" if run.simulated else short_model(run) for run in runs],
        "device": [short_device(run) for run in runs],
        "engine": [engine_of(run) for run in runs],
    }
    shared = [
        each[0] for each in found.values() if len(set(each)) == 1 and each[0] not in ("", "complete", "simulated")
    ]
    simulated = sum(run.simulated for run in runs)
    shared += ["SIMULATED" if simulated == len(runs) else f"{simulated} SIMULATED"] if simulated else []
    asked = [_asked(run) for run in runs]
    keys = dict.fromkeys(key for each in asked for key in each)
    found |= {key: [_text(each.get(key)) for each in asked] for key in keys}
    found["repeat"] = [f"{run.file.sweep.repeat}" if run.file.sweep else "" for run in runs]
    differ = {key: values for key, values in found.items() if len(set(values)) > 1}
    ends = Counter(key.rpartition(".")[2] for key in differ)
    named = {key if ends[end := key.rpartition(".")[2]] > 1 else end: values for key, values in differ.items()}
    return shared, named


def _asked(run: Run) -> Mapping[str, Any]:
    """Keys of the workload and of the sweep's point -> value."""
    every = flat(run.file.workload.model_dump(mode="json")) | (flat(run.file.sweep.values) if run.file.sweep else {})
    return {key: value for key, value in every.items() if not {key, key.partition(".")[0]} & SAME}


def _text(value: Any) -> str:
    return "" if value is None else in_words(value)


def _rank(text: str) -> tuple[float, str]:
    """Numbers in their order, before texts."""
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def _short(text: str) -> str:
    return text if cell_len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def _fitted(rows: Sequence[Row], heads: Sequence[str], width: int) -> tuple[Footnotes, list[str], list[str]]:
    """Footnotes, the lines of the table, and the heads of figures left out.

    Figures go before intervals, and intervals before the names of runs, which are needed only if rows read alike.
    """
    known = [name for name in FIGURES if any(name in row.figures for row in rows)]
    alike = len({tuple(row.conditions[head] for head in heads) for row in rows}) < len(rows)
    for count in range(len(known), -1, -1):
        for intervals, names in ((True, True), (True, False), (False, True), (False, False)):
            if alike and not names:
                continue
            notes = Footnotes()
            used = [name for name in ORDER if name in known[:count]]
            table = [(" ", *heads, *(FIGURES[name] for name in used), *(["run"] * names))]
            for row in rows:
                cells = (notes.cell(row.figures.get(name), unit=False, interval=intervals) for name in used)
                told_apart = (_short(row.conditions[head]) for head in heads)
                table.append((">" if row.best else " ", *told_apart, *cells, *([row.run] * names)))
            lines = columns(table, gap="  ")
            if max(map(cell_len, lines)) <= width or count == 0:
                shown = [set_cell_size(line, width).rstrip() for line in lines]
                return notes, shown, [FIGURES[name] for name in known[count:]]
    raise AssertionError("the last table of the loop is returned")


SAID = {"users": "{} users", "rate_per_s": "{} requests/s", **dict.fromkeys(("model", "device", "engine"), "{}"),
        "repeat": "repeat {}"}  # fmt: skip
"""Condition, the first wanted in the label of a run first -> its words there."""
MOST_SAID = 4
"""The most conditions in a label."""
Group = tuple[str, ...]


def groups_of(runs: Sequence[Run]) -> tuple[list[str], list[Group]]:
    """Of model, GPU and engine those in which the runs differ, and each run's values of them."""
    found = {"model": short_model, "GPU": short_device, "engine": engine_of}
    differ = {kind: values for kind, of in found.items() if len(set(values := list(map(of, runs)))) > 1}
    return list(differ), list(zip(*differ.values(), strict=True)) or [() for _ in runs]


def labels_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run by what tells it from the others, such as `8 users`; with its id where names are alike."""
    _, differs = conditions(runs)
    order = [*(name for name in SAID if name in differs), *(name for name in differs if name not in SAID)]
    words = [SAID.get(name, f"{name} {{}}") for name in order]
    parts_of_run = [[word.format(value) for word, value in zip(words, values, strict=True) if value]
            for values in zip(*(differs[name] for name in order), strict=True)]  # fmt: skip
    found = ["" for _ in runs]
    for count in range(1, MOST_SAID + 1):
        found = [" · ".join(parts[:count]) for parts in parts_of_run] or found
        if len({*found} - {""}) == len(runs):
            return found
    alike = Counter(found)
    return [
        f"{label} · {run.id}".removeprefix(" · ") if alike[label] > 1 or not label else label
        for label, run in zip(found, runs, strict=True)
    ]
