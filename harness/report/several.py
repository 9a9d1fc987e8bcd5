"""The first screen of several runs or of a sweep: a row a run, what differs between them, and the headline figures."""

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
from harness.cost.objective import fastest_within
from harness.cost.pricing import Priced
from harness.model import Figure, Summary
from harness.report.answer import engine_of, short_device, short_model
from harness.report.format import plain
from harness.report.lines import GAP, Footnotes, columns, cut, flowed, folded
from harness.store.run import Run

MOST_ROWS = 20
MOST_CONDITIONS = 4
"""Columns of what differs; the names of others are a note. Where figures have no room, only the first stays of columns
that tell the same runs apart."""
AROUND = 12
"""The most lines around the rows."""
WIDEST = 24
"""Characters of a condition."""
FIGURES = {
    "output_tokens_per_s": "tok/s",
    "ttft_s.p99": "TTFT p99",
    "tpot_s.p50": "TPOT p50",
    "joules_per_output_token": "J/token",
    "usd_per_million_output_tokens": "USD/M",
    "ttft_s.p50": "TTFT p50",
    "tpot_s.p99": "TPOT p99",
}
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
    rows = [
        Row(
            best is not None and run.id == best.run,
            run.id,
            {head: values[i] for head, values in differs.items()},
            _figures(run, summary, priced[i]),
        )
        for i, (run, summary) in enumerate(sweep)
    ]
    rows.sort(key=lambda row: [_rank(row.conditions[head]) for head in distinct])
    chosen = _chosen(rows)
    for heads in (list(differs)[:MOST_CONDITIONS], distinct):
        notes, table, left = _fitted(chosen, heads, width)
        if not left:
            break
    others = [head for head in differs if head not in heads]
    absent = [head for name, head in FIGURES.items() if not any(name in row.figures for row in rows)]
    said = [
        "> the most output tokens/s of the runs in which 99% of the requests met the objectives" if best else "",
        f"{len(rows) - MOST_ROWS} more runs" if len(rows) > MOST_ROWS else "",
        f"also different: {', '.join(others)}" if others else "",
        f"no room for {', '.join(left)}" if left else "",
        f"n/a in every run: {', '.join(absent)}" if absent else "",
        "latencies in ms; digits end where 95% intervals (p5-p95 of prices) make them doubtful",
    ]
    head = cut(flowed([f"{len(runs)} runs", *shared], width, " · "), 2, width)
    below = [*_doubts(sweep, width), *cut(flowed([each for each in said if each], width, GAP), 4, width)]
    sweeps = {run.file.sweep.name if run.file.sweep else "RUN…" for run in runs}
    last = f"more: harness report {sweeps.pop() if len(sweeps) == 1 else 'RUN…'} --full{GAP}-o report.html"
    reasons = cut(notes.lines(width), AROUND - len(head) - len(below) - 2, width)
    return "".join(f"{line}\n" for line in [*head, *table, *below, *reasons, last])


def _doubts(sweep: Sweep, width: int) -> list[str]:
    """Serious findings with the number of runs that have them, and software that differs."""
    seen = Counter(code for _, summary in sweep for code in {x.code: x for x in summary.findings if x.serious})
    told = ", ".join(f"{code} ({count} runs)" if count > 1 else code for code, count in seen.most_common())
    differs = mixed([run for run, _ in sweep])
    texts = [f"! serious: {told} -> harness check RUN" if told else "", f"! {differs.text}" if differs else ""]
    return [line for text in texts if text for line in cut(folded(text, width, "  "), 2, width)]


def conditions(runs: Sequence[Run]) -> tuple[list[str], dict[str, list[str]]]:
    """What all runs share, and each condition that differs, under its shortest clear name -> its value in each run."""
    found: dict[str, list[str]] = {
        "state": [run.state for run in runs],
        "workload": [run.file.workload.name or "" for run in runs],
        "model": [short_model(run) for run in runs],
        "device": [short_device(run) for run in runs],
        "engine": [engine_of(run) for run in runs],
    }
    shared = [each[0] for each in found.values() if len(set(each)) == 1 and each[0] not in ("", "complete")]
    shared += ["SIMULATED"] if any(run.simulated for run in runs) else []
    asked = [_asked(run) for run in runs]
    keys = dict.fromkeys(key for each in asked for key in each)
    found |= {key: [_text(each.get(key)) for each in asked] for key in keys}
    found["repeat"] = [f"{run.file.sweep.repeat}" if run.file.sweep else "" for run in runs]
    differ = {key: values for key, values in found.items() if len(set(values)) > 1}
    ends = Counter(key.rpartition(".")[2] for key in differ)
    named = {key if ends[end := key.rpartition(".")[2]] > 1 else end: values for key, values in differ.items()}
    return list(map(plain, shared)), named


def _asked(run: Run) -> Mapping[str, Any]:
    """Keys of the workload and of the sweep's point -> value."""
    every = flat(run.file.workload.model_dump(mode="json")) | (flat(run.file.sweep.values) if run.file.sweep else {})
    return {key: value for key, value in every.items() if not {key, key.partition(".")[0]} & SAME}


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else plain(str(value))


def _rank(text: str) -> tuple[float, str]:
    """Numbers in their order, before texts."""
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def _short(text: str) -> str:
    return text if cell_len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """The first MOST_ROWS rows, the last of them the best one if it comes later."""
    later = rows[MOST_ROWS - 1 :]
    return [*rows[: MOST_ROWS - 1], *([each for each in later if each.best] or later)[:1]]


def _figures(run: Run, summary: Summary, priced: Priced | None) -> dict[str, Figure]:
    costs = () if priced is None or run.simulated else priced.costs.figures
    return {figure.name: figure for figure in (*summary.figures, *costs) if figure.name in FIGURES}


def _fitted(rows: Sequence[Row], heads: Sequence[str], width: int) -> tuple[Footnotes, list[str], list[str]]:
    """Footnotes, the lines of the table, and the heads of figures left out.

    Figures go before intervals, and intervals before the names of runs, which are needed only if rows read alike.
    """
    told = [name for name in FIGURES if any(name in row.figures for row in rows)]
    alike = len({tuple(row.conditions[head] for head in heads) for row in rows}) < len(rows)
    for count in range(len(told), -1, -1):
        for intervals, names in ((True, True), (True, False), (False, True), (False, False)):
            if alike and not names:
                continue
            notes = Footnotes()
            used = [name for name in ORDER if name in told[:count]]
            table = [(" ", *heads, *(FIGURES[name] for name in used), *(["run"] * names))]
            for row in rows:
                cells = (notes.cell(row.figures.get(name), unit=False, interval=intervals) for name in used)
                told_apart = (_short(row.conditions[head]) for head in heads)
                table.append((">" if row.best else " ", *told_apart, *cells, *([row.run] * names)))
            lines = columns(table, gap="  ")
            if max(map(cell_len, lines)) <= width or count == 0:
                shown = [set_cell_size(line, width).rstrip() for line in lines]
                return notes, shown, [FIGURES[name] for name in told[count:]]
    raise AssertionError("the last table of the loop is returned")
