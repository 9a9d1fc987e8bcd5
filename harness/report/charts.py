"""Charts of a report's tables and of runs' rows: Altair specifications, drawn as SVG, PNG, PDF or HTML.

The hues are those of Okabe and Ito, and each has its own shape or dash, so that charts stay readable in grey and for
colour-blind readers. Charts draw the figures of the tables; only distributions and time series come from the rows.
"""

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from harness.analysis.summary import Sweep
from harness.analysis.times import times
from harness.analysis.tokens import ordinary
from harness.cost.bill import measured
from harness.errors import HarnessError
from harness.files import install
from harness.model import Figure, Status
from harness.report.format import scale
from harness.report.page import Drawing
from harness.report.page_head import groups_of, labels_of
from harness.report.table import Cell, Table
from harness.store.rows import flat
from harness.store.run import Run

try:
    import altair as alt
    import vl_convert
except ImportError:  # `_ready` names the extra `charts`
    alt = vl_convert = None  # type: ignore[assignment]
ChartFormat = Literal["svg", "png", "pdf", "html"]
WIDTH, PAGE = 560, 440
"""Pixels: of a file, and of a drawing that a page scales to half a screen and to a phone."""
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
FILLS = ("#0072B2", "#D55E00", "#56B4E9", "#F0E442")
"""From dark to light, so that they differ in grey print."""
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [1, 4])
MOST_LINES = len(HUES)
QUANTILES, BINS = 200, 240


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing."""

    name: str
    """Of its file."""
    title: str
    note: str
    spec: Any
    """An Altair chart, with title and note."""


def of_tables(tables: Iterable[Table], width: int = WIDTH) -> list[Chart]:
    """A chart of each table that has one; of several tables with the same name the first is drawn."""
    _ready()
    first = {table.name: table for table in reversed(list(tables))}
    made = (draw(first[name], width) for name, draw in CHARTS.items() if name in first)
    return [chart for chart in made if chart is not None]


def of_runs(runs: Sweep, tables: Iterable[Table] = (), width: int = WIDTH) -> list[Chart]:
    """Latency and cost against the load of several runs, and distributions, power and a map of the output rate.

    `tables`: of the report, for the costs. Distributions are of the first `MOST_LINES` runs, power of the first.
    """
    _ready()
    points = _points(runs, tables)
    found = [_against(points, name, width) for name in AGAINST]
    found += [_over_time(runs[0][0], width), _heat_map(runs, width)]
    found += [_distribution(runs[:MOST_LINES], name, said, width) for name, said in DISTRIBUTIONS.items()]
    return [chart for chart in found if chart is not None]


def of_report(tables: Sequence[Table], runs: Sweep, width: int) -> list[Chart]:
    """Every chart of a report."""
    return [*of_runs(runs, tables, width), *of_tables(tables, width)]


def write(charts: Iterable[Chart], folder: Path, format_: ChartFormat = "svg") -> list[Path]:
    """Writes a file for each chart under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    how: dict[str, dict[str, Any]] = {"html": {"inline": True}, "png": {"scale_factor": 2}}
    paths = []
    for chart in charts:
        paths.append(folder / f"{chart.name}.{format_}")
        chart.spec.save(str(paths[-1]), **how.get(format_, {}))
    return paths


def svg(chart: Chart, title: bool = True) -> str:
    """The drawing as SVG; without its title for a page, which prints title and note itself."""
    return str(
        vl_convert.vegalite_to_svg(
            {k: v for k, v in chart.spec.to_dict(validate=False).items() if title or k != "title"}
        )
    )


def for_page(charts: Iterable[Chart]) -> list[Drawing]:
    """Drawings as a page takes them."""
    return [(each.name, each.title, each.note, svg(each, title=False)) for each in charts]


def _ready() -> None:
    if alt is None:
        raise HarnessError("charts need altair and vl-convert", install("charts"))


def _finish(name: str, title: str, note: str, width: int, spec: Any) -> Chart:
    """Adds title, note and style; texts are wrapped to the width."""
    lines, notes = (textwrap.wrap(text, max(20, int(width / per))) for text, per in ((title, 8.8), (note, 6.4)))
    heads = {"text": lines, "subtitle": notes, "limit": width, "anchor": "start", "frame": "bounds", "offset": 12}
    small, columns = {"labelFontSize": 12, "titleFontSize": 12}, 2
    styled = (
        spec.properties(title={**heads, "fontSize": 14, "subtitleFontSize": 11, "subtitleColor": "#444"}, padding=8)
        .configure(font="DejaVu Sans, Verdana, sans-serif", background="white")
        .configure_axis(
            **small,
            gridColor="#ddd",
            titleFontWeight="normal",
            labelSeparation=6,
            labelLimit=width // 3,
            titlePadding=8,
        )
        .configure_legend(**small, orient="bottom", labelLimit=width // columns - 70, columns=columns)
        .configure_view(stroke="#999")
        .configure_point(filled=True, size=70, opacity=1)
    )
    return Chart(name, title, note, styled)


def _layered(width: int, left: int, height: Any, *layers: Any) -> Any:
    """Layers in one plot, in a drawing of that width whose labels take `left` pixels."""
    return alt.layer(*layers).properties(width=max(120, width - left - 36), height=height)


def _rows(rows: Sequence[Mapping[str, Any]]) -> Any:
    return alt.Chart(pd.DataFrame(list(rows)))


def _at(channel: str, field: str, title: Any, scale: str = "linear", pad: int | None = 0, **axis: Any) -> Any:
    """An axis. A scale that is not linear ends `pad` pixels beyond the data; None: at round numbers."""
    kind = {"x": alt.X, "y": alt.Y}[channel]
    ends = {} if pad is None else {"nice": False, "padding": pad}
    kinds = {} if scale == "linear" else {"type": scale, **ends}
    if scale == "log":  # of each decade these five have room for a label
        leading = "round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))"
        crowded = f"domain('{channel}')[1] / domain('{channel}')[0] > 5"
        axis["labelExpr"] = f"{crowded} && indexof([1, 2, 3, 5, 7], {leading}) < 0 ? '' : datum.label"
    return kind(f"{field}:Q", title=title, scale=alt.Scale(**kinds), axis=alt.Axis(**axis))


def _coded(names: Sequence[str], **ranges: Sequence[Any]) -> dict[str, Any]:
    """Channels of the field `series`, each with its range."""
    kinds = {"color": alt.Color, "strokeDash": alt.StrokeDash, "shape": alt.Shape}
    scale = {of: alt.Scale(domain=list(names), range=list(values)[: len(names)]) for of, values in ranges.items()}
    return {of: kinds[of]("series:N", title=None, scale=scale[of]) for of in ranges}


def _labels() -> Any:
    """An axis of labels whose lines `_wrapped` broke."""
    axis = alt.Axis(labelExpr="split(datum.label, '\\n')", labelLimit=260, labelLineHeight=13)
    return alt.Y("label:N", title=None, sort=None, axis=axis)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, 20 if width < 450 else 34))


def _at_one() -> Any:
    """A dashed line across the plot where x is 1."""
    return _rows([{"x": 1.0}]).mark_rule(strokeDash=[4, 3]).encode(x="x:Q")


def _ends(cell: Cell) -> dict[str, float | None]:
    return {of: getattr(cell, of, None) for of in ("value", "low", "high")}


def _about(table: Table) -> str:
    """The status of the figures, and their run."""
    found = {cell.status for row in table.rows for cell in row if isinstance(cell, Figure)}
    return ", ".join([*sorted(found), *([f"run {table.source}"] if table.source else [])]) + "."


Axis = tuple[str, str, float]
"""Field of a point, the axis' title, and the factor to its unit."""
RATE: Axis = ("output_tokens_per_s", "output token/s", 1.0)
USERS: Axis = ("load", "users", 1.0)
DOLLARS: Axis = ("usd", "USD per million output tokens", 1.0)
AGAINST: Mapping[str, tuple[str, Axis, Sequence[Axis], str]] = {
    "ttft-load": ("TTFT against load", USERS,
                  [("ttft_s.p50", "TTFT in ms", 1e3), ("ttft_s.p99", "TTFT in ms", 1e3)], "ttft_s"),
    "tpot-load": ("TPOT against load", USERS,
                  [("tpot_s.p50", "TPOT in ms", 1e3), ("tpot_s.p99", "TPOT in ms", 1e3)], "tpot_s"),
    "throughput-interactivity": ("Throughput against interactivity",
                                 ("speed", "token/s of one user (1 / median TPOT)", 1.0), [RATE], "speed"),
    "cost-load": ("Cost against load", USERS, [DOLLARS], ""),
    "cost-latency": ("Cost against latency", ("tpot_s.p50", "median TPOT in ms", 1e3), [DOLLARS], "tpot_s"),
}  # fmt: skip
"""Name -> title, axis across, axes upwards, and the objective whose limit is drawn."""


def _points(sweep: Sweep, tables: Iterable[Table]) -> list[dict[str, Any]]:
    """A point for each run: its group and label, its load, its figures, and the limits of its objectives."""
    runs = [run for run, _ in sweep]
    costs = {row[0]: _ends(row[3]) for table in tables if table.name == "tiers" and "load" in table.columns
             for row in reversed(table.rows)}  # fmt: skip
    found = []
    for run, (_, summary), group, label in zip(runs, sweep, groups_of(runs)[1], labels_of(runs), strict=True):
        ends = {figure.name: _ends(figure) for figure in summary.figures}
        tpot = ends.get("tpot_s.p50", {}).get("value")
        ends |= {"speed": {"value": 1 / tpot if tpot else None}, "load": {"value": load_of(run)}}
        ends["usd"] = costs.get(run.id, {})
        limits = run.objectives | ({"speed": 1 / run.objectives["tpot_s"]} if "tpot_s" in run.objectives else {})
        found.append(
            {"group": " · ".join(group), "label": label, "open": run.users is None, "ends": ends, "limits": limits}
        )
    return found


def load_of(run: Run) -> float | None:
    """Users in flight, or requests a second; None offline."""
    return run.users or run.file.workload.load.rate_per_s


def _against(points: Sequence[Mapping[str, Any]], name: str, width: int) -> Chart | None:
    """A figure of each run against another, a line for each group of runs and percentile; None below two points."""
    title, (across, said_x, by_x), axes, limit = AGAINST[name]
    rows = [
        {"x": at * by_x, "group": point["group"], "series": field.rpartition(".")[2],
         "load": point["ends"]["load"]["value"],
         "about": f"{point['group'] or point['label']}, {point['label']}: {said_y} {ends['value'] * by:.4g}",
         **{of: None if end is None else end * by for of, end in ends.items()}}
        for field, said_y, by in axes for point in points
        if (at := point["ends"].get(across, {}).get("value")) and (ends := point["ends"].get(field, {})).get("value")
    ]  # fmt: skip
    if len({row["x"] for row in rows}) < 2:
        return None
    by_x = 1.0 if limit == "speed" else 1e3
    limits = sorted({point["limits"][limit] * by_x for point in points if limit in point["limits"]})
    groups, kinds = (list(dict.fromkeys(row[of] for row in rows)) for of in ("group", "series"))
    open_loop = across == "load" and any(point["open"] for point in points)
    x = _at("x", "x", "requests/s offered (or users)" if open_loop else said_x, "log", 20, format=",.4~r")
    y = _at("y", "value", axes[0][1], "log", 20, format=",.4~r")
    legends = [alt.Legend() if len(of) > 1 else None for of in (groups, kinds)]
    colour = alt.Color("group:N", title=None, legend=legends[0], scale=alt.Scale(domain=groups, range=HUES))
    dash = alt.StrokeDash("series:N", title=None, legend=legends[1], scale=alt.Scale(domain=kinds, range=DASHES))
    base = _rows(rows).encode(x=x, color=colour, description="about:N")
    rule = _rows([{"limit": each} for each in limits]).mark_rule(strokeDash=[4, 4], color="#888")
    spec = _layered(
        width, 70, 260,
        *([rule.encode(**{"x" if limit == across.partition(".")[0] else "y": "limit:Q"})] if limits else []),
        base.mark_line().encode(y=y, order="load:Q", strokeDash=dash, description="group:N"),
        base.mark_rule(opacity=0.6).encode(y=alt.Y("low:Q", title=axes[0][1]), y2="high:Q"),
        base.mark_point().encode(y=y),
    )  # fmt: skip
    note = "A point a run, joined in order of load." + (" Grey and dashed: limit of an objective." if limits else "")
    return _finish(name, title, note, width, spec)


def _tornado(table: Table, width: int) -> Chart | None:
    """The inputs that make the cost uncertain."""
    rows = [{"label": row[0], "series": row[1], "share": _ends(row[2])["value"]} for row in table.rows]
    known = [status for status in get_args(Status) if status in {row["series"] for row in rows}]
    x = _at("x", "share", "share of the variance of ln cost", format="%", tickCount=5)
    bars = _rows(rows).encode(x=x, y=_labels(), **_coded(known, color=FILLS)).mark_bar(stroke="black", strokeWidth=0.7)
    spec = _layered(width, 170, alt.Step(26), bars)
    return _finish("tornado", "What makes the cost uncertain", _about(table), width, spec)


BOUNDS = {"<=": ("at most", "triangle-left"), ">=": ("at least", "triangle-right"), "=": ("exactly", "diamond"),
          "~": ("about", "circle"), "range": ("between", "square")}  # fmt: skip


def _claims(table: Table, width: int) -> Chart | None:
    """Spend / revenue by basis; a one-sided bound is drawn to the end of the plot."""
    found = [(row, cell) for row in table.rows if isinstance(cell := row[2], Figure) and cell.unit == "ratio"]
    known = [(row, cell, cell.value) for row, cell in found if cell.value is not None and row[1] in BOUNDS]
    if not known:
        return None
    top = 1.12 * max(cell.high if row[1] == "range" and cell.high else value for row, cell, value in known)
    rows = []
    for row, cell, value in known:
        label = _wrapped(f"{str(row[0]).removeprefix('inference spend / ')} ({row[4]})", width)
        span = {"<=": (0.0, value), ">=": (value, top), "range": (cell.low, cell.high)}.get(str(row[1]), (value, value))
        # Every value of a range is equally likely, so none is marked.
        rows.append({"label": label, "series": BOUNDS[str(row[1])][0], "from": span[0], "to": span[1],
                     "value": None if row[1] == "range" else value})  # fmt: skip
    kinds = [kind for kind in BOUNDS.values() if kind[0] in {row["series"] for row in rows}]
    code = _coded([name for name, _ in kinds], color=HUES, shape=[shape for _, shape in kinds])
    x = alt.X("from:Q", title="spend / revenue", scale=alt.Scale(domain=[0, top], nice=False))
    base = _rows(rows).encode(y=_labels(), color=code["color"])
    spec = _layered(
        width, 150 if width < 450 else 235, alt.Step(30 + 14 * max(str(row["label"]).count("\n") for row in rows)),
        base.mark_bar(height=9, opacity=0.45).encode(x=x, x2="to:Q"),
        base.mark_point(size=110).encode(x="value:Q", shape=code["shape"]),
        _at_one(),
    )  # fmt: skip
    note = "Bars: possible values; 'at most' reaches to 0, 'about' has no bound. Dashed: spend = revenue."
    return _finish("spend-revenue", "Reported inference spend over revenue of the same period", note, width, spec)


def _must_be(table: Table, width: int) -> Chart | None:
    """Each factor's belief and what it must be, over the median of the belief."""
    rows = []
    for row in table.rows:
        middle = _ends(row[2])["value"]
        if middle is None or not row[4]:
            continue
        for series, cell in (("believed", row[2]), ("must be", row[3])):
            ends = {of: None if end is None else end / middle for of, end in _ends(cell).items()}
            rows.append({"label": _wrapped(str(row[0]), width), "series": series, **ends})
    if not rows:
        return None
    code = _coded(("believed", "must be"), color=HUES, shape=("circle", "diamond"))
    code["y"], offset = _labels(), alt.YOffset("series:N")
    base = _rows(rows).encode(y=code["y"], yOffset=offset, color=code["color"])
    x = _at("x", "low", "value / median of what is believed", "log", None, format="~g", tickCount=5)
    spec = _layered(
        width, 150 if width < 450 else 235, alt.Step(14),
        base.mark_rule(strokeWidth=3).encode(x=x, x2="high:Q"),
        base.mark_point(size=80).encode(x="value:Q", shape=code["shape"]),
        _at_one(),
    )  # fmt: skip
    note = "p5 to p95. Circles: believed; diamonds: must be, if all factors make up the bill. " + next(
        iter(table.notes), ""
    )
    return _finish("must-be", "What must be true to close the gap", note, width, spec)


def _trend(table: Table, width: int) -> Chart | None:
    """A figure over runs in the order of their time, with its intervals; of one run no chart."""
    figures = [row[2] for row in table.rows if isinstance(row[2], Figure) and row[2].value is not None]
    if len(figures) < 2:
        return None
    factor, unit = scale(figures[0])
    rows = [
        {"at": i, "about": f"{row[0]}, {row[1]}: {row[4]}",
         **{of: None if end is None else end * factor for of, end in _ends(row[2]).items()}}
        for i, row in enumerate(table.rows)
    ]  # fmt: skip
    labels = json.dumps([row[1] or str(row[0]).partition("-")[0] for row in table.rows])
    x = alt.X("at:O", title=None, axis=alt.Axis(labelAngle=-40, labelExpr=f"{labels}[datum.value]"))
    said = f"{table.columns[2]} in {unit}"
    y = _at("y", "value", said).scale(zero=False)
    base = _rows(rows).encode(x=x, description="about:N")
    spec = _layered(
        width, 80, 220,
        base.mark_line(color=HUES[0]).encode(y=y),
        base.mark_rule(color=HUES[0], opacity=0.6).encode(y=alt.Y("low:Q", title=said), y2="high:Q"),
        base.mark_point(color=HUES[0]).encode(y=y),
    )  # fmt: skip
    return _finish("trend", table.title, "95% intervals, from within a run.", width, spec)


def _front(table: Table, width: int) -> Chart | None:
    """Throughput of a GPU against the speed of one user, as predicted for each batch."""
    rows = [
        {"batch": str(row[0]).removesuffix(" <"), "best": str(row[0]).endswith("<"), **_ends(row[2]),
         **{f"x_{of}": end for of, end in _ends(row[1]).items()}}
        for row in table.rows
    ]  # fmt: skip
    if len(rows) < 2:
        return None
    x = _at("x", "x_value", "token/s of one user", "log", 20, format=",.4~r")
    y = _at("y", "value", "output token/s of a GPU", "log", 20, format=",.4~r")
    base = _rows(rows).encode(x=x, description="batch:N")
    fill = alt.condition("datum.best", alt.value(HUES[1]), alt.value(HUES[0]))
    spec = _layered(
        width, 70, 260,
        base.mark_line(color=HUES[0]).encode(y=y),
        base.mark_rule(opacity=0.4).encode(y=alt.Y("low:Q", title="output token/s of a GPU"), y2="high:Q"),
        base.mark_rule(opacity=0.4).encode(x=alt.X("x_low:Q", title="token/s of one user"), x2="x_high:Q", y=y),
        base.mark_point().encode(y=y, color=fill),
        base.mark_text(dx=8, dy=-8, align="left").encode(y=y, text="batch:N"),
    )  # fmt: skip
    note = f"Sequences in flight at each point, with 90% intervals; {table.notes[0].replace('<', 'orange:')}."
    return _finish("front", table.title, note, width, spec)


CHARTS: Mapping[str, Callable[[Table, int], Chart | None]] = {
    "tornado": _tornado,
    "reported": _claims,
    "spend-revenue": _claims,
    "must-be": _must_be,
    "trend": _trend,
    "front": _front,
}
"""Table -> its drawing, or None if the table has too few values."""
DISTRIBUTIONS = {"ttft_s": "Time to first token", "itl_s": "Time between tokens"}


def _distribution(runs: Sweep, name: str, title: str, width: int) -> Chart | None:
    """Cumulative distribution over requests, or over gaps between tokens, with a line for each run."""
    frames, share = [], np.linspace(0, 1, QUANTILES + 1)
    labels = labels_of([run for run, _ in runs])
    for (run, _), label in sorted(zip(runs, labels, strict=True), key=lambda each: load_of(each[0][0]) or 0.0):
        seen = times(run.requests[ordinary(run.requests)], run.state)
        values = seen.gaps_s if name == "itl_s" else seen.each[name].dropna().to_numpy()
        if len(values):
            frames.append(pd.DataFrame({"x": np.quantile(values, share) * 1e3, "y": share, "series": label}))
    if not frames:
        return None
    rows = pd.concat(frames)
    wide = float(rows["x"].max()) > 20 * float(rows["x"].median())
    x = _at("x", "x", f"{name[:-2].upper()} in ms", "symlog" if wide else "linear")
    if not wide:
        x = x.scale(zero=False, nice=False)
    code = _coded(list(dict.fromkeys(rows["series"])), color=HUES, strokeDash=DASHES)
    legend = alt.Legend(symbolSize=1000) if len(runs) > 1 else None
    lines = alt.Chart(rows).mark_line(interpolate="step-after").encode(
        x=x, y=_at("y", "y", f"share of {'gaps' if name == 'itl_s' else 'requests'}", format="%"),
        description="series:N", **{of: channel.legend(legend) for of, channel in code.items()},
    )  # fmt: skip
    note = "Of completed requests of the whole run, drain included."
    return _finish(name[:-2], f"{title}: cumulative distribution", note, width, _layered(width, 70, 280, lines))


def _over_time(run: Run, width: int) -> Chart | None:
    """Power and output tokens over time, with the phases of the run."""
    (arrival_s, _), (arrived, _) = flat(run.requests["arrival_s"]), flat(run.requests["arrival_tokens"])
    if not len(arrival_s):
        return None
    last = float(arrival_s.max())
    phases: list[dict[str, Any]] = [
        {"from": a, "to": b, "phase": f"idle: {name}"} for name, (a, b) in run.file.idle.items()
    ]
    phases.append({"from": 0.0, "to": last, "phase": "load"})
    low, high = (pick([end for each in phases for end in (each["from"], each["to"])]) for pick in (min, max))
    step_s = next(step for step in (m * 10.0**e for e in range(-3, 9) for m in (1, 2, 5)) if step * BINS >= high - low)
    edges = np.arange(low, high + step_s, step_s)
    tokens, _ = np.histogram(arrival_s, edges, weights=arrived)
    panels = [("output token/s", edges[:-1], tokens / step_s)]
    power = run.power[run.power["domain"].isin(["gpu", "gpu module"])]
    seen_w, place = power["power_w"].fillna(power["average_w"]), np.digitize(power["after_s"], edges) - 1
    power = power.assign(watts=seen_w, bin=place)
    power = power[power["watts"].notna() & power["bin"].between(0, len(edges) - 2)]
    if len(power):
        watts = power.groupby(["bin", "device"])["watts"].mean().groupby("bin").sum()
        panels.insert(0, ("power of GPUs in W", edges[watts.index.to_numpy(int)], watts.to_numpy()))
    span = alt.Scale(domain=[low, high], nice=False)
    shades = [f"rgba(128,128,128,{share})" for share in [*(0.5, 0.3, 0.2)[: len(phases) - 1], 0.0]]
    greys = alt.Scale(domain=[each["phase"] for each in phases], range=shades)
    bands = _rows(phases).mark_rect(stroke="#999", strokeWidth=0.5)
    bands = bands.encode(x=alt.X("from:Q", scale=span), x2="to:Q", color=alt.Color("phase:N", title=None, scale=greys))
    drawn = []
    for i, (said, when, values) in enumerate(panels):
        bottom = i + 1 == len(panels)
        title = "seconds since the load began" if bottom else None
        x, y = alt.X("t:Q", title=title, scale=span, axis=alt.Axis(labels=bottom)), alt.Y("v:Q", title=said)
        line = alt.Chart(pd.DataFrame({"t": when, "v": values})).mark_line(color=HUES[i], interpolate="step-after")
        drawn.append(_layered(width, 80, 150, bands, line.encode(x=x, y=y)))
    note = f"Means over {step_s:g} s; run {run.id}."
    title = "Power and tokens over time" if len(power) else "Tokens over time"
    return _finish("over-time", title, note, width, alt.vconcat(*drawn, spacing=8))


def _heat_map(sweep: Sweep, width: int) -> Chart | None:
    """The output rate over the two settings with the most values among the runs; None if fewer than two differ."""
    asked = [{**run.file.workload.model_dump(), "model": run.model.asked} for run, _ in sweep]
    settings = pd.json_normalize(asked).map(lambda x: str(x) if isinstance(x, list) else x)
    settings = settings.drop(columns=["seed", "name", "description"], errors="ignore")
    varied = [name for name in settings if 1 < settings[name].nunique() <= 24 and settings[name].notna().all()]
    if len(varied) < 2:
        return None
    across, down = sorted(varied, key=lambda name: -settings[name].nunique())[:2]
    rows = settings[[across, down]].set_axis(["x", "y"], axis=1)
    rows["v"] = [measured(summary, "output_tokens_per_s").value for _, summary in sweep]
    rows = rows.dropna().groupby(["x", "y"])["v"].median().reset_index()
    above = alt.Axis(titleAngle=0, titleAlign="left", titleX=-44, titleY=-10)
    y = alt.Y("y:O", title=down, sort="descending", axis=above)
    base = alt.Chart(rows).encode(x=alt.X("x:O", title=across, axis=alt.Axis(labelAngle=0)), y=y)
    legend = alt.Legend(gradientLength=min(300, width - 80))
    colour = alt.Color("v:Q", title="output token/s", scale=alt.Scale(scheme="cividis"), legend=legend)
    bright = alt.datum.v > float(rows["v"].min() + rows["v"].max()) / 2
    legible = alt.condition(bright, alt.value("black"), alt.value("white"))
    spec = _layered(
        width, 70, alt.Step(36),
        base.mark_rect().encode(color=colour),
        base.mark_text(fontSize=11).encode(text=alt.Text("v:Q", format=".3~s"), color=legible),
    )  # fmt: skip
    return _finish("sweep", "Output tokens per second over a sweep", "Median of the runs in each cell.", width, spec)
