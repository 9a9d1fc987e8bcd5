"""Charts of runs: latency, throughput and cost against load, distributions, power over time, a map of a sweep."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.part import Part
from harness.analysis.summary import Sweep
from harness.analysis.times import times
from harness.cost.bill import measured
from harness.files import data_rows
from harness.report import charts
from harness.report.answer import Group, groups_of, labels_of
from harness.report.charts import DASHES, HUES, WIDTH, Chart, at, coded, ends, finish, layered, mark, number
from harness.report.table import Table
from harness.store.rows import flat
from harness.store.run import Run

MOST_LINES = len(HUES)
QUANTILES, BINS = 200, 240


def of_report(tables: Sequence[Table], runs: Sweep, width: int = WIDTH) -> list[Chart]:
    """Every chart of a report: of the runs' rows and figures, and of its tables.

    Of several runs latency and cost against their load, and a map of the output rate; distributions of the first
    `MOST_LINES` runs, and power of the first.
    """
    charts.ready()
    points = _points(runs, tables)
    found = [_against(points, name, width) for name in AGAINST]
    found += [_over_time(runs[0][0], width), _heat_map(runs, width)]
    groups = groups_of([run for run, _ in runs])[1]
    found += [_distribution(runs[:MOST_LINES], groups, name, title, width) for name, title in DISTRIBUTIONS.items()]
    return [*(chart for chart in found if chart is not None), *charts.of_tables(tables, width)]


AGAINST = {row["name"]: row for row in data_rows("run_charts.csv")}
"""Charts of a figure against another; seconds are drawn in ms if the title of their axis says so."""


def _points(sweep: Sweep, tables: Iterable[Table]) -> list[dict[str, Any]]:
    """A point for each run: its group and label, its load, its figures, and the limits of its objectives."""
    runs = [run for run, _ in sweep]
    costs = {row[0]: ends(row[3]) for table in tables if table.name == "tiers" and "load" in table.columns
             for row in reversed(table.rows)}  # fmt: skip
    found = []
    for run, (_, summary), group, label in zip(runs, sweep, groups_of(runs)[1], labels_of(runs), strict=True):
        figures = {figure.name: ends(figure) for figure in summary.figures}
        tpot = figures.get("tpot_s.p50", {}).get("value")
        figures |= {"speed": {"value": 1 / tpot if tpot else None}, "load": {"value": load_of(run)}}
        figures["usd"] = costs.get(run.id, {})
        limits = run.objectives | ({"speed": 1 / run.objectives["tpot_s"]} if "tpot_s" in run.objectives else {})
        about = {"group": " · ".join(group), "label": label, "open": run.users is None}
        found.append({**about, "ends": figures, "limits": limits})
    return found


def load_of(run: Run) -> float | None:
    """Users in flight, or requests a second; None offline."""
    return run.users or run.file.workload.load.rate_per_s


def _against(points: Sequence[Mapping[str, Any]], name: str, width: int) -> Chart | None:
    """A figure of each run against another, a line for each group of runs and percentile; None below two points."""
    title, across, said_x, fields, said_y, limit = [*AGAINST[name].values()][1:]
    by_x, by_y = (1e3 if said.endswith("in ms") else 1.0 for said in (said_x, said_y))
    rows = [
        {"x": x * by_x, "group": point["group"], "series": field.rpartition(".")[2],
         "load": point["ends"]["load"]["value"],
         "about": f"{point['group'] or point['label']}, {point['label']}: {said_y} {found['value'] * by_y:.4g}",
         **{of: None if end is None else end * by_y for of, end in found.items()}}
        for field in fields.split() for point in points
        if (x := point["ends"].get(across, {}).get("value")) and (found := point["ends"].get(field, {})).get("value")
    ]  # fmt: skip
    if len({row["x"] for row in rows}) < 2:
        return None
    by = 1.0 if limit == "speed" else 1e3
    limits = sorted({point["limits"][limit] * by for point in points if limit in point["limits"]})
    groups, kinds = (list(dict.fromkeys(row[of] for row in rows)) for of in ("group", "series"))
    open_loop = across == "load" and any(point["open"] for point in points)
    said_x = "requests/s offered (or users)" if open_loop else said_x
    code = coded(groups, "group", color=HUES) | coded(kinds, strokeDash=DASHES)
    for of, names in (("color", groups), ("strokeDash", kinds)):
        code[of]["legend"] = None if len(names) < 2 else {"symbolSize": 400} if of == "strokeDash" else {}
    ticks = {"values": sorted({row["x"] for row in rows})} if across == "load" else {}
    base = {"x": at("x", "x", said_x, "log", 20, format=",.4~r", **ticks), "color": code["color"]}
    y, low = at("y", "value", said_y, "log", 20, format=",.4~r"), number("low", title=said_y)
    tooltip = {"description": {"field": "about"}}
    rule = {"x" if limit == across.partition(".")[0] else "y": number("limit")}
    spec = layered(
        width, 70, 260, rows,
        *([mark("rule", rule, [{"limit": each} for each in limits], strokeDash=[4, 4], color="#888")] * bool(limits)),
        mark("line", {**base, "y": y, "order": number("load"), "strokeDash": code["strokeDash"],
                      "description": {"field": "group"}}),
        mark("rule", {**base, **tooltip, "y": low, "y2": {"field": "high"}}, strokeOpacity=0.6),
        mark("point", {**base, **tooltip, "y": y}),
    )  # fmt: skip
    note = "A point a run, joined in order of load." + (" Grey and dashed: limit of an objective." if limits else "")
    return finish(name, title, note, width, spec)


DISTRIBUTIONS = {"ttft_s": "Time to first token", "itl_s": "Time between tokens"}


def _distribution(runs: Sweep, groups: Sequence[Group], name: str, title: str, width: int) -> Chart | None:
    """Cumulative distribution over requests, or over gaps between tokens, with a line for each run.

    `groups`: those of the runs, by which a page narrows its charts.
    """
    rows, share = [], np.linspace(0, 1, QUANTILES + 1)
    of = [run for run, _ in runs]
    by_load = sorted(zip(of, groups, labels_of(of), strict=False), key=lambda each: load_of(each[0]) or 0.0)
    for run, group, label in by_load:
        values = Part.of_run(run.requests, times(run.requests, run.state), None).ordered(name)[0]
        if len(values):
            about = ", ".join(filter(None, (" · ".join(group), label)))
            found = zip((np.quantile(values, share) * 1e3).tolist(), share.tolist(), strict=True)
            rows += [{"x": x, "y": y, "series": label, "about": about} for x, y in found]
    seen_ms = np.array([row["x"] for row in rows if row["x"] > 0])
    if not len(seen_ms):
        return None
    wide = seen_ms.max() > 20 * np.median(seen_ms)
    x = at("x", "x", f"{name[:-2].upper()} in ms", "log" if wide else "linear", None, format=",.4~r")
    x["scale"] |= {"zero": False, "nice": False} | ({"domainMin": float(seen_ms.min()), "clamp": True} if wide else {})
    names = list(dict.fromkeys(row["series"] for row in rows))
    long = {"columns": 1, "labelLimit": width - 100} if max(map(len, names)) > 20 else {}
    code = coded(names, color=HUES, strokeDash=DASHES)
    for channel in code.values():
        channel["legend"] = {"symbolSize": 1000, **long} if len(runs) > 1 else None
    y = at("y", "y", f"share of {'gaps' if name == 'itl_s' else 'requests'}", format="%")
    encoding = {"x": x, "y": y, "description": {"field": "about"}, **code}
    spec = layered(width, 70, 280, rows, mark("line", encoding, interpolate="step-after"))
    note = "Of completed requests of the whole run, drain included."
    return finish(name[:-2], f"{title}: cumulative distribution", note, width, spec)


def _over_time(run: Run, width: int) -> Chart | None:
    """Power and output tokens over time, with the phases of the run."""
    (arrival_s, _), (arrived, _) = flat(run.requests["arrival_s"]), flat(run.requests["arrival_tokens"])
    if not len(arrival_s):
        return None
    spans = {f"idle: {name}": span for name, span in run.file.idle.items()} | {"load": (0.0, float(arrival_s.max()))}
    phases = [{"from": begin, "to": end, "phase": name} for name, (begin, end) in spans.items()]
    low, high = min(map(min, spans.values())), max(map(max, spans.values()))
    step_s = next(step for step in (m * 10.0**e for e in range(-3, 9) for m in (1, 2, 5)) if step * BINS >= high - low)
    edges = np.arange(low, high + step_s, step_s)
    tokens, _ = np.histogram(arrival_s, edges, weights=arrived)
    panels = [("output token/s", edges[:-1], tokens / step_s)]
    watts = pd.Series(dtype=float)
    read = ((x.device, x.domain) for info in run.file.meters for x in info.devices)
    boards = dict(sorted((each for each in read if each[1] in ("gpu", "gpu module")), reverse=True))  # gpu if both
    for board in boards.items():  # one at a time: those of a day take gigabytes
        seen = run.readings(*board)
        seen_w = seen["power_w"].fillna(seen["average_w"])
        mean_w = seen_w.groupby(np.digitize(seen["after_s"], edges) - 1).mean().dropna()
        watts = watts.add(mean_w[(mean_w.index >= 0) & (mean_w.index <= len(edges) - 2)], fill_value=0.0)
    if len(watts):
        panels.insert(0, ("power of GPUs in W", edges[watts.index.to_numpy(int)], watts.to_numpy()))
    span = {"domain": [low, high], "nice": False}
    shades = [f"rgba(128,128,128,{share})" for share in [*(0.5, 0.3, 0.2)[: len(phases) - 1], 0.0]]
    shade = coded(list(spans), "phase", color=shades)
    band = {"x": {"field": "from", "type": "quantitative", "scale": span}, "x2": {"field": "to"}, **shade}
    drawn = []
    for i, (title_y, when, values) in enumerate(panels):
        bottom = i + 1 == len(panels)
        title = "seconds since the load began" if bottom else None
        x, y = number("t", title=title, scale=span, axis={"labels": bottom}), number("v", title=title_y)
        rows = [{"t": t, "v": v} for t, v in zip(when.tolist(), values.tolist(), strict=True)]
        line = mark("line", {"x": x, "y": y}, color=HUES[i], interpolate="step-after")
        drawn.append(layered(width, 80, 150, rows, mark("rect", band, phases, stroke="#999", strokeWidth=0.5), line))
    note = f"Means over {step_s:g} s; run {run.id}."
    title = "Power and tokens over time" if len(watts) else "Tokens over time"
    return finish("over-time", title, note, width, {"vconcat": drawn, "spacing": 8})


def _heat_map(sweep: Sweep, width: int) -> Chart | None:
    """The output rate over the two settings with the most values among the runs; None if fewer than two differ."""
    asked = [{**run.file.workload.model_dump(), "model": run.model.asked} for run, _ in sweep]
    settings = pd.json_normalize(asked).map(lambda x: str(x) if isinstance(x, list) else x)
    settings = settings.drop(columns=["seed", "name", "description"], errors="ignore")
    varied = [name for name in settings if 1 < settings[name].nunique() <= 24 and settings[name].notna().all()]
    if len(varied) < 2:
        return None
    across, down = sorted(varied, key=lambda name: -settings[name].nunique())[:2]
    cells = settings[[across, down]].set_axis(["x", "y"], axis=1)
    cells["v"] = [measured(summary, "output_tokens_per_s").value for _, summary in sweep]
    cells = cells.dropna().groupby(["x", "y"])["v"].median().reset_index()
    axes = {"labelAngle": 0}, {"titleAngle": 0, "titleAlign": "left", "titleX": -44, "titleY": -10}
    base = {
        "x": {"field": "x", "type": "ordinal", "title": across, "axis": axes[0]},
        "y": {"field": "y", "type": "ordinal", "title": down, "sort": "descending", "axis": axes[1]},
    }
    legend = {"gradientLength": min(300, width - 80), "tickCount": 4, "format": ".2~s"}
    colour = number("v", title="output token/s", scale={"scheme": "cividis"}, legend=legend)
    bright = f"datum.v > {float(cells['v'].min() + cells['v'].max()) / 2}"
    legible = {"condition": {"test": bright, "value": "black"}, "value": "white"}
    text = number("v", format=".3~s")
    spec = layered(
        width, 70, {"step": 36}, [dict(zip("xyv", cell, strict=True)) for cell in cells.to_numpy().tolist()],
        mark("rect", {**base, "color": colour}),
        mark("text", {**base, "text": text, "color": legible}, fontSize=11),
    )  # fmt: skip
    return finish("sweep", "Output tokens per second over a sweep", "Median of the runs in each cell.", width, spec)
