"""Charts of a report's tables and of runs' rows: one Altair specification each, drawn as SVG, PNG or PDF, or as HTML.

Hues are Okabe and Ito's, and every hue has a shape or a dash of its own, so that grey print and colour-blind readers
lose nothing. What a chart shows stands in the tables; only distributions and time series come from the rows.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from harness import shipped
from harness.economics.objective import parse_objectives
from harness.errors import HarnessError
from harness.model import Figure, Summary
from harness.report.table import Cell, Table
from harness.store import Run, RunFile
from harness.summary import times

if TYPE_CHECKING:
    import altair as alt

ChartFormat = Literal["svg", "png", "pdf", "html"]
WIDTH, NARROW = 560, 340
"""Pixels in all: of a page, and of a phone's."""
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
FILLS = ("#0072B2", "#D55E00", "#56B4E9", "#F0E442")
"""From dark to light, so that grey print keeps them apart."""
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [1, 4])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
MOST_LINES = len(HUES)
QUANTILES, BINS = 200, 240
BOUNDS = {"<=": "at most", ">=": "at least", "=": "exactly", "~": "about", "range": "between"}


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing: its name is a file's."""

    name: str
    title: str
    spec: alt.TopLevelMixin


def of_tables(tables: Iterable[Table], width: int = WIDTH) -> list[Chart]:
    """Every chart that the tables allow; of several tables of one name the first is drawn."""
    _altair()
    first = {table.name: table for table in reversed(list(tables))}
    made = (draw(first[name], width) for name, draw in CHARTS.items() if name in first)
    return [chart for chart in made if chart is not None]


def of_runs(runs: Sequence[tuple[Run, Summary]], width: int = WIDTH) -> list[Chart]:
    """Distributions of the first runs, and power over time of the first."""
    _altair()
    found = [_distribution(runs[:MOST_LINES], name, said, width) for name, said in DISTRIBUTIONS.items()]
    return [chart for chart in (*found, _over_time(runs[0][0], width)) if chart is not None]


def of_sweep(sweep: Sequence[tuple[RunFile, Summary]], width: int = WIDTH) -> list[Chart]:
    """A map of the output rate over the two settings in which the runs differ most; none where not two differ."""
    _altair()
    chart = _heat_map(sweep, width)
    return [] if chart is None else [chart]


def write(charts: Iterable[Chart], folder: Path, format_: ChartFormat = "svg") -> list[Path]:
    """A file a chart under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in charts:
        paths.append(folder / f"{chart.name}.{format_}")
        how: dict[str, Any] = {"inline": True} if format_ == "html" else {"scale_factor": 2} if format_ == "png" else {}
        chart.spec.save(str(paths[-1]), **how)
    return paths


def svg(chart: Chart) -> str:
    """The drawing as SVG, which needs nothing else."""
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(chart.spec.to_dict())
    return drawn


def _altair() -> None:
    try:
        import altair
        import vl_convert  # noqa: F401
    except ImportError:
        raise HarnessError(
            "charts need altair and vl-convert", "pip install 'inference-cost-harness[charts]'"
        ) from None
    altair.data_transformers.disable_max_rows()


def _finish(spec: Any, name: str, title: str, width: int, note: str = "") -> Chart:
    """With title, note, type and grid for print; wrapped to the width."""
    lines, notes = (textwrap.wrap(text, max(20, int(width / per))) for text, per in ((title, 8.8), (note, 6.4)))
    titled = spec.properties(
        title={"text": lines, "limit": width, "subtitle": notes, "anchor": "start", "frame": "bounds", "fontSize": 14,
               "subtitleFontSize": 11, "subtitleColor": "#444", "offset": 12},
        padding=8,
    )  # fmt: skip
    styled = (
        titled.configure(font="DejaVu Sans, Verdana, sans-serif", background="white")
        .configure_axis(labelFontSize=12, titleFontSize=12, gridColor="#ddd", labelSeparation=6,
                        labelLimit=width // 3, titlePadding=8)
        .configure_legend(orient="bottom", labelFontSize=12, titleFontSize=12, labelLimit=width - 60, symbolSize=90,
                          symbolStrokeWidth=2, columns=1 if width < 450 else 2)
        .configure_view(stroke="#999")
    )  # fmt: skip
    return Chart(name, title, styled)


def _inner(width: int, left: int) -> int:
    """Of the plot, where labels take `left`."""
    return max(120, width - left - 36)


def _wrapped(text: str, width: int) -> str:
    """In lines of at most so many characters, for a label."""
    return "\n".join(textwrap.wrap(text, width))


def _labels() -> alt.Y:
    """Rows by their label, whose lines are split again where `_wrapped` broke them."""
    import altair as alt

    axis = alt.Axis(labelExpr="split(datum.label, '\\n')", labelLimit=260, labelLineHeight=13)
    return alt.Y("label:N", title=None, sort=None, axis=axis)


def _figure(cell: Cell) -> dict[str, float | None]:
    known = isinstance(cell, Figure) and cell.value is not None
    return {of: getattr(cell, of) if known else None for of in ("value", "low", "high")}


def _about(table: Table) -> str:
    """Status of the figures, and the run they come from."""
    found = {cell.status for row in table.rows for cell in row if isinstance(cell, Figure)}
    return ", ".join([*sorted(found), *([f"run {table.source}"] if table.source else [])])


def _scales(names: Sequence[str]) -> dict[str, Any]:
    import altair as alt

    domain = list(names)
    return {
        "color": alt.Color("series:N", title=None, scale=alt.Scale(domain=domain, range=list(HUES[: len(domain)]))),
        "strokeDash": alt.StrokeDash("series:N", title=None, scale=alt.Scale(domain=domain, range=list(DASHES))),
        "shape": alt.Shape("series:N", title=None, scale=alt.Scale(domain=domain, range=list(SHAPES))),
    }


def _interactivity(table: Table, width: int) -> Chart | None:
    """Throughput against what one user gets: the Pareto front, and the limits of objectives."""
    import altair as alt

    rows = pd.DataFrame([{"x": _figure(row[1])["value"], "y": _figure(row[2])["value"]} for row in table.rows]).dropna()
    if rows.empty:
        return None
    presets = parse_objectives(shipped.read_text("prices/mlperf_slo.csv"))
    limits = pd.DataFrame(
        [{"x": 1 / limit["tpot_s.p99"], "label": name} for name, limit in presets.items() if "interactive" in name]
    )
    x = alt.X("x:Q", title="token/s of one user (1 / median TPOT)", scale=alt.Scale(type="log", nice=False, padding=24))
    y = alt.Y("y:Q", title=f"output token/s {table.columns[2]}", scale=alt.Scale(type="log", nice=False, padding=24))
    points = alt.Chart(rows).encode(x=x, y=y)
    rules = alt.Chart(limits).encode(x=x)
    spec = alt.layer(
        rules.mark_rule(strokeDash=[4, 4], color="#666"),
        rules.mark_text(angle=270, align="left", baseline="bottom", dx=4, dy=-3, fontSize=11, color="#444").encode(
            text="label:N", y=alt.value(300)
        ),
        points.mark_line(color=HUES[0], interpolate="linear"),
        points.mark_point(color=HUES[0], filled=True, size=70, opacity=1),
    ).properties(width=_inner(width, 70), height=300)
    note = (
        f"Pareto front: no other run has more of both. Dashed: an objective's TPOT limit, of its p99. {_about(table)}."
    )
    return _finish(spec, "throughput-interactivity", "Throughput against interactivity", width, note)


def _tiers(table: Table, width: int) -> Chart | None:
    """Cost of a query against concurrency, a line a price tier."""
    import altair as alt

    if "load" not in table.columns:
        return None
    rows = [
        {"x": float(load[1]), "series": row[2], **_figure(row[5])}
        for row in table.rows
        if (load := re.search(r"(?:users|rate_per_s) ([\d.]+)", str(row[1])))
    ]
    frame = pd.DataFrame(rows).dropna(subset=["value"]) if rows else pd.DataFrame()
    if frame.empty or frame["x"].nunique() < 2:
        return None
    unit = "requests in flight" if "users" in str(table.rows[0][1]) else "requests/s offered"
    many = _scales(list(dict.fromkeys(frame["series"])))
    x = alt.X("x:Q", title=unit, scale=alt.Scale(type="log", nice=False, padding=16))
    y = alt.Y("value:Q", title="USD per query", scale=alt.Scale(type="log"), axis=alt.Axis(format="~g"))
    base = alt.Chart(frame).encode(x=x, color=many["color"])
    spec = alt.layer(
        base.mark_line().encode(y=y, strokeDash=many["strokeDash"]),
        base.mark_rule(opacity=0.6).encode(y=alt.Y("low:Q", title="USD per query"), y2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=many["shape"]),
    ).properties(width=_inner(width, 80), height=300)
    note = f"Upright lines: p5 to p95 of the assumptions. {_about(table)}."
    return _finish(spec, "cost-concurrency", "Cost of a query against concurrency, by price tier", width, note)


RUNGS = {"accelerator": "accelerators", "host": "rest of the host", "idle": "idle time", "overhead": "facility (PUE)"}


def _energy(table: Table, width: int) -> Chart | None:
    """Energy of a query by boundary: a stack that adds up."""
    import altair as alt

    found = {str(row[0]): _figure(row[1])["value"] for row in table.rows}
    rows = [
        {"part": said, "value": found[f"wh_per_query.{rung}"], "order": i}
        for i, (rung, said) in enumerate(RUNGS.items())
        if found.get(f"wh_per_query.{rung}") is not None
    ]
    if not rows:
        return None
    part = alt.Color(
        "part:N", title=None, sort=list(RUNGS.values()), scale=alt.Scale(domain=list(RUNGS.values()), range=list(FILLS))
    )
    spec = (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar(stroke="black", strokeWidth=0.7, size=54)
        .encode(x=alt.X("value:Q", title="Wh per query", axis=alt.Axis(tickCount=5)), color=part, order="order:O")
        .properties(width=_inner(width, 10), height=90)
    )
    note = f"Means; boundaries from left to right, each with those before it. {_about(table)}."
    return _finish(spec, "energy-boundary", "Energy of a query, by boundary", width, note)


def _tornado(table: Table, width: int) -> Chart | None:
    """Which inputs make the cost uncertain."""
    import altair as alt

    rows = [
        {"label": str(row[0]), "first": _figure(row[2])["value"], "total": _figure(row[3])["value"], "series": row[1]}
        for row in table.rows
    ]
    names = [status for status in ("measured", "reported", "assumed") if status in {row["series"] for row in rows}]
    y = alt.Y("label:N", title=None, sort=[str(row["label"]) for row in rows], axis=alt.Axis(labelLimit=200))
    bars = alt.Chart(pd.DataFrame(rows)).encode(y=y)
    spec = alt.layer(
        bars.mark_bar(stroke="black", strokeWidth=0.7).encode(
            x=alt.X("total:Q", title="share of the variance of ln cost", axis=alt.Axis(format="%", tickCount=5)),
            color=alt.Color(
                "series:N",
                title=None,
                scale=alt.Scale(domain=names, range=[FILLS[0], FILLS[2], FILLS[3]][: len(names)]),
            ),
        ),
        bars.mark_tick(color="black", thickness=2, size=16).encode(x="first:Q"),
    ).properties(width=_inner(width, 170), height=alt.Step(26))
    note = f"Bars: with interactions (total); ticks: alone (first order). {_about(table)}."
    return _finish(spec, "tornado", "What makes the cost uncertain", width, note)


def _claims(table: Table, width: int) -> Chart | None:
    """Spend over revenue by basis: a bound is open on the side that it says nothing about."""
    import altair as alt

    label = 22 if width < 450 else 34
    rows = []
    for row in table.rows:
        bound, cell = str(row[1]), row[2]
        if isinstance(cell, Figure) and cell.value is not None and cell.unit == "ratio" and bound in BOUNDS:
            text = f"{str(row[0]).removeprefix('inference spend / ')} ({row[4]})"
            low, high = (cell.low, cell.high) if bound == "range" else (cell.value, cell.value)
            rows.append(
                {"label": _wrapped(text, label), "series": BOUNDS[bound], "value": cell.value, "low": low, "high": high}
            )
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    top = float(frame["high"].max()) * 1.12
    frame["from"] = np.where(frame["series"] == "at most", 0.0, frame["low"])
    frame["to"] = np.where(frame["series"] == "at least", top, frame["high"])
    frame.loc[frame["series"] == "between", "value"] = np.nan
    kinds = [kind for kind in BOUNDS.values() if kind in set(frame["series"])]
    shapes = {
        "at most": "triangle-left",
        "at least": "triangle-right",
        "exactly": "circle",
        "about": "circle",
        "between": "square",
    }
    y = _labels()
    x = alt.X("from:Q", title="spend / revenue", scale=alt.Scale(domain=[0, top], nice=False))
    base = alt.Chart(frame).encode(y=y)
    kind = alt.Color("series:N", title=None, scale=alt.Scale(domain=kinds, range=list(HUES[: len(kinds)])))
    bars = base.mark_bar(height=9, opacity=0.45).encode(x=x, x2="to:Q", color=kind)
    ends = base.mark_point(size=110, filled=True, opacity=1).encode(
        x="value:Q",
        color=kind,
        shape=alt.Shape("series:N", title=None, scale=alt.Scale(domain=kinds, range=[shapes[each] for each in kinds])),
    )
    step = 16 + 14 * int(frame["label"].str.count("\n").max() + 1)
    one = alt.Chart(pd.DataFrame([{"x": 1.0}])).mark_rule(strokeDash=[4, 3]).encode(x="x:Q")
    spec = alt.layer(bars, ends, one).properties(
        width=_inner(width, 160 if width < 450 else 235), height=alt.Step(step)
    )
    note = "A bar is where the ratio can be: 'at most' reaches to 0, 'about' has no hard end. Dashed: spend = revenue."
    return _finish(spec, "spend-revenue", "Reported inference spend over revenue of the same period", width, note)


def _ladder(table: Table, width: int) -> Chart | None:
    """The gap between the reported and the measured cost, factor by factor."""
    import altair as alt

    label = 20 if width < 450 else 34
    whole = (0, len(table.rows) - 2, len(table.rows) - 1)
    rows = [
        {"label": _wrapped(str(row[0]), label), "whole": i in whole, **_figure(row[1])}
        for i, row in enumerate(table.rows)
    ]
    frame = pd.DataFrame(rows).dropna(subset=["value"])
    if frame.empty:
        return None
    frame["low"], frame["high"] = frame["low"].fillna(frame["value"]), frame["high"].fillna(frame["value"])
    kind = {"condition": {"test": "datum.whole", "value": HUES[1]}, "value": HUES[0]}
    shape = {"condition": {"test": "datum.whole", "value": "diamond"}, "value": "circle"}
    y = _labels()
    x = alt.X(
        "low:Q", title="cost of a query times", scale=alt.Scale(type="log"), axis=alt.Axis(format="~g", tickCount=5)
    )
    base = alt.Chart(frame).encode(y=y)
    spec = alt.layer(
        base.mark_rule(strokeWidth=3).encode(x=x, x2="high:Q", color=kind),
        base.mark_point(size=90, filled=True, opacity=1).encode(x="value:Q", color=kind, shape=shape),
        alt.Chart(pd.DataFrame([{"x": 1.0}])).mark_rule(strokeDash=[4, 3]).encode(x="x:Q"),
    ).properties(width=_inner(width, 150 if width < 450 else 235), height=alt.Step(34))
    note = "p5 to p95 of each factor; diamonds: the gap, the product of the factors, and what they leave over; "
    note += next(iter(table.notes), "")
    return _finish(spec, "gap-ladder", "The gap, factor by factor", width, note)


def _isolines(table: Table, width: int) -> Chart | None:
    """What each factor alone must be for the spend, along tokens per request."""
    import altair as alt

    along, *solved = table.columns
    panels = []
    for i, name in enumerate(solved):
        rows = pd.DataFrame([{"x": _figure(row[0])["value"], "y": _figure(row[i + 1])["value"]} for row in table.rows])
        cell = table.rows[0][i + 1]
        unit = cell.unit if isinstance(cell, Figure) else ""
        bottom = i + 1 == len(solved)
        x = alt.X(
            "x:Q",
            title=along if bottom else None,
            scale=alt.Scale(type="log", nice=False),
            axis=alt.Axis(labels=bottom, tickCount=5, format="~g"),
        )
        title = [name.removesuffix(" needed"), f"({'share' if unit == '1' else unit})"]
        y = alt.Y("y:Q", title=title, scale=alt.Scale(type="log"), axis=alt.Axis(format="~g", tickCount=4))
        layers = [
            alt.Chart(rows)
            .mark_line(
                color=HUES[i], strokeDash=DASHES[i], point=alt.OverlayMarkDef(shape=SHAPES[i], size=50, color=HUES[i])
            )
            .encode(x=x, y=y)
        ]
        if unit == "1":
            layers.append(alt.Chart(pd.DataFrame([{"y": 1.0}])).mark_rule(strokeDash=[4, 3]).encode(y="y:Q"))
        panels.append(alt.layer(*layers).properties(width=_inner(width, 90), height=125))
    spec = alt.vconcat(*panels, spacing=10)
    note = "Each line pays for the spend by that factor alone, all else at its assumed median; no share can exceed 1."
    return _finish(spec, "isolines", "What must be true", width, note)


CHARTS: Mapping[str, Callable[[Table, int], Chart | None]] = {
    "interactivity": _interactivity,
    "tiers": _tiers,
    "cost": _energy,
    "tornado": _tornado,
    "reported": _claims,
    "spend-revenue": _claims,
    "ladder": _ladder,
    "isolines": _isolines,
}
"""Table -> what is drawn of it; None where it holds too little."""

DISTRIBUTIONS = {"ttft_s": "Time to first token", "itl_s": "Time between tokens"}


def _distribution(runs: Sequence[tuple[Run, Summary]], name: str, title: str, width: int) -> Chart | None:
    """The share of requests, or of gaps, that took at most so long; a line a run."""
    import altair as alt

    frames, share = [], np.linspace(0, 1, QUANTILES + 1)
    for run, summary in runs:
        seen = times(run.requests, run.file.state)
        values = seen.gaps_s if name == "itl_s" else seen.each[name].to_numpy()
        values = values[~np.isnan(values)]
        if len(values) > 1:
            frames.append(pd.DataFrame({"x": np.quantile(values, share) * 1e3, "y": share, "series": summary.run}))
    if not frames:
        return None
    rows = pd.concat(frames)
    many = _scales(list(dict.fromkeys(rows["series"])))
    spread = float(rows["x"].max()) > 20 * max(float(rows["x"].median()), 1e-9)
    x = alt.X(
        "x:Q",
        title=f"{name[:-2].upper()} in ms",
        scale=alt.Scale(type="symlog" if spread else "linear", zero=False, nice=False),
    )
    y = alt.Y("y:Q", title=f"share of {'gaps' if name == 'itl_s' else 'requests'}", axis=alt.Axis(format="%"))
    lines = (
        alt.Chart(rows)
        .mark_line(interpolate="step-after")
        .encode(x=x, y=y, **{of: many[of].legend(symbolSize=1000) for of in ("color", "strokeDash")})
    )
    note = "Of completed requests, warm-up and drain included."
    return _finish(
        lines.properties(width=_inner(width, 70), height=280),
        name[:-2],
        f"{title}: cumulative distribution",
        width,
        note,
    )


def _over_time(run: Run, width: int) -> Chart | None:
    """Power and output tokens by time, with the phases of the run."""
    import altair as alt

    arrived = run.requests["arrival_s"].map(len) > 0
    if not arrived.any():
        return None
    at = np.concatenate([np.asarray(each, float) for each in run.requests.loc[arrived, "arrival_s"]])
    tokens = np.concatenate([np.asarray(each, float) for each in run.requests.loc[arrived, "arrival_tokens"]])
    power = run.power[run.power["domain"].isin(["gpu", "gpu module"])] if len(run.power) else run.power
    power = power.assign(watts=power["power_w"].fillna(power["average_w"])).dropna(subset=["watts"])
    ends = [*(end for span in run.file.idle.values() for end in span), 0.0, float(at.max())]
    low, high = min(ends), max(ends)
    width_s = _round_up((high - low) / BINS)
    phases = [{"from": start, "to": end, "phase": f"idle: {name}"} for name, (start, end) in run.file.idle.items()]
    phases.append({"from": 0.0, "to": float(at.max()), "phase": "load"})
    edges = np.arange(low, high + width_s, width_s)
    rates = np.histogram(at, edges, weights=tokens)[0] / width_s
    panels = [("output token/s", edges[:-1], rates)]
    if len(power):
        binned = power.assign(bin=np.digitize(power["after_s"], edges) - 1)
        binned = binned[binned["bin"].between(0, len(edges) - 2)]
        watts = binned.groupby(["bin", "device"])["watts"].mean().groupby("bin").sum()
        panels.insert(0, ("power of GPUs in W", edges[watts.index.to_numpy(int)], watts.to_numpy()))
    known = list(dict.fromkeys(str(phase["phase"]) for phase in phases))
    greys = ["#bbb", "#ddd", "#eee", "#fff"]
    colour = alt.Color("phase:N", title=None, scale=alt.Scale(domain=known, range=[*greys[: len(known) - 1], "#fff"]))
    bands = alt.Chart(pd.DataFrame(phases)).mark_rect(stroke="#999", strokeWidth=0.5)
    drawn = []
    for i, (said, when, values) in enumerate(panels):
        bottom = i + 1 == len(panels)
        x = alt.X(
            "t:Q",
            title="seconds since the load began" if bottom else None,
            scale=alt.Scale(domain=[low, high], nice=False),
            axis=alt.Axis(labels=bottom),
        )
        line = alt.Chart(pd.DataFrame({"t": when, "v": values})).mark_line(color=HUES[i], interpolate="step-after")
        drawn.append(alt.layer(
            bands.encode(x=alt.X("from:Q", scale=alt.Scale(domain=[low, high], nice=False)), x2="to:Q", color=colour),
            line.encode(x=x, y=alt.Y("v:Q", title=said)),
        ).properties(width=_inner(width, 80), height=150))  # fmt: skip
    note = f"Means over {width_s:g} s; run {run.file.id}."
    return _finish(alt.vconcat(*drawn, spacing=8), "over-time", "Power and tokens over time", width, note)


def _round_up(seconds: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(seconds, 1e-3)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= seconds)


def _heat_map(
    sweep: Sequence[tuple[RunFile, Summary]], width: int, figure: str = "output_tokens_per_s"
) -> Chart | None:
    """A figure over the two settings in which the runs of a sweep differ most."""
    import altair as alt

    settings = pd.DataFrame([_settings(file.workload) for file, _ in sweep])
    varied = [name for name in settings.columns if 1 < settings[name].nunique() <= 24 and settings[name].notna().all()]
    varied.sort(key=lambda name: -settings[name].nunique())
    if len(varied) < 2:
        return None
    across, down = varied[:2]
    rows = settings[[across, down]].set_axis(["x", "y"], axis=1)
    rows["v"] = [next((f.value for f in summary.figures if f.name == figure), None) for _, summary in sweep]
    rows = rows.dropna().groupby(["x", "y"])["v"].median().reset_index()
    middle = float(rows["v"].min() + rows["v"].max()) / 2
    base = alt.Chart(rows).encode(
        x=alt.X("x:O", title=across, axis=alt.Axis(labelAngle=0)),
        y=alt.Y(
            "y:O", title=down, sort="descending", axis=alt.Axis(titleAngle=0, titleAlign="left", titleX=-44, titleY=-10)
        ),
    )
    spec = alt.layer(
        base.mark_rect().encode(
            color=alt.Color(
                "v:Q",
                title="output token/s",
                scale=alt.Scale(scheme="cividis"),
                legend=alt.Legend(gradientLength=min(300, width - 80)),
            )
        ),
        base.mark_text(fontSize=11).encode(
            text=alt.Text("v:Q", format=".3~s"),
            color=alt.condition(alt.datum.v > middle, alt.value("black"), alt.value("white")),
        ),
    ).properties(width=_inner(width, 70), height=alt.Step(36))
    return _finish(spec, "sweep", "Output tokens per second over a sweep", width, "Median of the runs in each cell.")


def _settings(part: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Every setting of a workload by its dotted name."""
    flat: dict[str, Any] = {}
    for name, value in part.items():
        flat |= (
            _settings(value, f"{before}{name}.")
            if isinstance(value, dict)
            else {f"{before}{name}": value if not isinstance(value, list) else str(value)}
        )
    return flat
