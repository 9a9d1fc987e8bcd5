"""The top of a report's page, and its paragraph on methods: what was measured, serious findings, key figures."""

import json
from collections import Counter
from collections.abc import Sequence
from string import Template

from harness.analysis.summary import Sweep
from harness.cost.pricing import Priced, price_run, scenario_for
from harness.facts.appraisal import standing
from harness.model import Figure, Finding, Summary
from harness.report.answer import COSTS, engine_of, headline, legend, short_device, short_load, short_model, times_of
from harness.report.format import carried, scale
from harness.report.lines import Footnotes
from harness.report.page import asset, text
from harness.report.several import conditions
from harness.report.tables import findings_of, in_words
from harness.store.run import Run

TILES = {
    "output_tokens_per_s": "Output throughput",
    "requests_per_s": "Request rate",
    "ttft_s.p50": "TTFT, median",
    "ttft_s.p99": "TTFT, p99",
    "tpot_s.p50": "TPOT, median",
    "tpot_s.p99": "TPOT, p99",
    "objectives_met": "Met the objectives",
    "joules_per_output_token": "Energy per output token",
    "gpu_power_w": "Power of the GPUs",
}
"""Key figures in reading order -> their names; costs follow. A figure that the run does not have has no tile."""
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
    told = [[word.format(value) for word, value in zip(words, values, strict=True) if value]
            for values in zip(*(differs[name] for name in order), strict=True)]  # fmt: skip
    found = ["" for _ in runs]
    for count in range(1, MOST_SAID + 1):
        found = [" · ".join(parts[:count]) for parts in told] or found
        if len({*found} - {""}) == len(runs):
            return found
    alike = Counter(found)
    return [
        f"{label} · {run.id}".removeprefix(" · ") if alike[label] > 1 or not label else label
        for label, run in zip(found, runs, strict=True)
    ]


def title_of(runs: Sequence[Run]) -> str:
    """The model, or models, and where they ran."""
    models, devices = (list(dict.fromkeys(map(of, runs))) for of in (short_model, short_device))
    named = [
        each[0] if len(each) == 1 else f"{len(each)} {kind}"
        for kind, each in (("models", models), ("devices", devices))
    ]
    return " on ".join(each for each in named if each) or (
        "A simulated run" if len(runs) == 1 else f"{len(runs)} simulated runs"
    )


def above(sweep: Sweep, best: tuple[Run, Summary], met: bool, scenario: str | None) -> str:
    """What was measured, the serious findings, and the key figures of a run, of several runs of the best.

    `met`: whether that run meets its objectives. With several models, GPUs or engines selectors follow.
    """
    run, summary = best
    runs = [each for each, _ in sweep]
    about = headline(run, summary) if len(runs) == 1 else [f"{len(runs)} runs", *conditions(runs)[0]]
    dated = f"{run.file.created_utc:%d %B %Y}"
    about = [each for each in about if each not in title_of(runs)] + [dated] + [run.id] * (len(runs) == 1)
    made = f'<p class="about">{text(" · ".join(about))}</p>\n'
    made += _banner([(each, of) for of, its in sweep for each in findings_of(of, its) if each.serious], len(runs))
    if len(runs) > 1:
        why = "The most output tokens/s within the objectives" if met else "The most output tokens/s"
        made += f"<p><b>{why}</b>: {text(labels_of(runs)[runs.index(run)])}</p>\n"
    priced = None if run.engine is None or run.simulated else price_run(run, summary, scenario)
    made += _tiles(run, summary, priced)
    kinds, groups = groups_of(runs)
    if not kinds:
        return made
    distinct = list(dict.fromkeys(groups))
    data = {"kinds": kinds, "groups": distinct, "runs": {of.id: distinct.index(groups[i]) for i, of in enumerate(runs)}}
    return f'{made}<form class="choose" autocomplete="off" data-groups="{text(json.dumps(data))}"></form>\n'


def _banner(serious: Sequence[tuple[Finding, Run]], count: int) -> str:
    """Each kind of serious finding once, with what to do, and of several runs the number that have it."""
    lines = ""
    for code in dict.fromkeys(each.code for each, _ in serious):
        of = [each for each, _ in serious if each.code == code]
        many = f" in {len(of)} of {count} runs, for instance" if count > 1 else ""
        lines += f"<p><b>{text(code)}</b>{many}: {text(of[0].text)} → {text(of[0].advice)}</p>\n"
    return f'<div class="banner" role="alert">\n{lines}</div>\n' if lines else ""


def _tiles(run: Run, summary: Summary, priced: Priced | None) -> str:
    """The key figures, then the reasons why some have no interval or no value, and what the intervals are."""
    notes, known = Footnotes(), {figure.name: figure for figure in summary.figures}
    found = [(label, known[name], scale(known[name])[1]) for name, label in TILES.items() if name in known]
    if priced is not None:
        found += [
            (f"USD {per.replace('million', 'M')}", times_of(priced.costs[name], many), "")
            for name, (many, per) in COSTS.items()
        ]
    tiles = "".join(_tile(notes, *each) for each in found)
    said = "".join(f"<li>{text(note)}</li>\n" for note in [*notes.texts(), "; ".join(legend(run, summary, priced))])
    return f'<dl class="tiles">\n{tiles}</dl>\n<ul class="notes reasons">\n{said}</ul>\n'


def _tile(notes: Footnotes, label: str, figure: Figure, unit: str) -> str:
    value, between = carried(figure)
    unit = "" if figure.value is None else unit if unit == "%" else f" {unit}"
    if figure.value is not None and not between:
        between = "no interval" if figure.reason else f"n = {figure.n:,}" if figure.n else ""
    return (
        f'<div><dt>{text(label)}</dt><dd><span class="value">{text(value)}</span>{text(unit)}</dd>'
        f"<dd>{text(between + notes.mark(figure.reason))}</dd></div>\n"
    )


def methods(sweep: Sweep, scenario: str | None) -> str:
    """A paragraph on how the figures were made, and a citation in BibTeX."""
    runs = [run for run, _ in sweep]
    begin, end = (pick(run.file.created_utc for run in runs).date() for pick in (min, max))
    asked = dict.fromkeys(f"{run.file.workload.name}: {in_words(run.file.workload.requests)}" for run in runs)
    scenarios = dict.fromkeys(scenario or scenario_for(run) for run in runs if run.engine is not None)
    said = {
        "runs": f"{len(runs)} run{'s' * (len(runs) > 1)}",
        "title": title_of(runs),
        "engines": ", ".join(dict.fromkeys(map(engine_of, runs))),
        "when": f"on {begin}" if begin == end else f"from {begin} to {end}",
        "tools": " and ".join(sorted({run.environment.harness or "of unknown version" for run in runs})),
        "sent": f"{sum(int(summary['requests.sent'].value or 0) for _, summary in sweep):,}",
        "meters": ", ".join(sorted({info.meter for run in runs for info in run.file.meters})) or "none",
        "workloads": "; ".join([*asked][:MOST_SAID]) + "; and others" * (len(asked) > MOST_SAID),
        "loads": ", ".join(dict.fromkeys(map(short_load, runs))),
        "standing": " ".join(filter(None, dict.fromkeys(map(standing, runs)))),
        "scenario": " and ".join(scenarios) or "none",
        "date": str(end),
        "year": str(end.year),
        "ids": runs[0].id + " and others" * (len(runs) > 1),
    }
    return Template(asset("methods.html")).substitute({name: text(value) for name, value in said.items()})
