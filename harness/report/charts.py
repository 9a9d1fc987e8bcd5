"""Charts of tables, in Vega-Lite, and their files: what makes a cost uncertain, reported figures, a predicted front.

The hues are those of Okabe and Ito, and each has its own shape or dash, so that charts stay readable in grey and for
colour-blind readers.
"""

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from harness.errors import HarnessError, plain
from harness.files import install
from harness.model import Figure, Status
from harness.report.format import scale
from harness.report.page import Drawing, asset
from harness.report.table import Cell, Table
from harness.store.access import writing

WIDTH, PAGE = 560, 440
"""Pixels: of a file, and of a drawing that a page scales to half a screen and to a phone."""
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [1, 4])
Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing."""

    name: str
    """Of its file."""
    title: str
    note: str
    spec: Spec
    """In Vega-Lite, with title and note."""


def finish(name: str, title: str, note: str, width: int, spec: Spec) -> Chart:
    """Adds title, note and style; texts are wrapped to the width."""
    lines, notes = (textwrap.wrap(text, max(20, int(width / per))) for text, per in ((title, 8.8), (note, 6.4)))
    style = json.loads(asset("chart.json"))
    style["title"] |= {"text": lines, "subtitle": notes, "limit": width}
    style["config"]["axis"]["labelLimit"] = width // 3
    style["config"]["legend"]["labelLimit"] = width // style["config"]["legend"]["columns"] - 70
    return Chart(name, title, note, _drawable({**style, **spec}))


def _drawable(value: Any) -> Any:
    """A specification whose texts have no control characters but line ends: vl-convert would end the process."""
    if isinstance(value, dict):
        return {key: _drawable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_drawable, value))
    return "\n".join(map(plain, value.split("\n"))) if isinstance(value, str) else value


def layered(width: int, left: int, height: int | Spec, rows: Sequence[Mapping[str, Any]], *layers: Spec) -> Spec:
    """Layers of `rows` in one plot, in a drawing of that width whose labels take `left` pixels."""
    return {"data": {"values": rows}, "layer": [*layers], "width": max(120, width - left - 36), "height": height}


def mark(kind: str, encoding: Spec, rows: Sequence[Mapping[str, Any]] | None = None, **look: Any) -> Spec:
    """A layer with this mark. `rows`: the data of the layer; None: those of the plot."""
    own = {} if rows is None else {"data": {"values": rows}}
    return {**own, "mark": {"type": kind, **look}, "encoding": encoding}


def number(field: str, **how: Any) -> Spec:
    """A channel of numbers. `title`: None for none; without it the title is that of the other layers."""
    return {"field": field, "type": "quantitative", **how}


def at(channel: str, field: str, title: str, scale: str = "linear", pad: int | None = 0, **axis: Any) -> Spec:
    """The channel `x` or `y`. A scale that is not linear ends `pad` pixels beyond the data; None: at round numbers."""
    ends = {} if pad is None else {"nice": False, "padding": pad}
    kinds = {} if scale == "linear" else {"type": scale, **ends}
    if scale == "log" and "values" not in axis:  # of each decade these five have room for a label
        leading = "round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))"
        crowded = f"domain('{channel}')[1] / domain('{channel}')[0] > 5"
        axis["labelExpr"] = f"{crowded} && indexof([1, 2, 3, 5, 7], {leading}) < 0 ? '' : datum.label"
    return number(field, title=title, scale=kinds, axis=axis)


def coded(names: Sequence[str], field: str = "series", **ranges: Sequence[Any]) -> Spec:
    """Channels of a field of names, each with its range."""
    scales = {of: {"domain": list(names), "range": list(values)[: len(names)]} for of, values in ranges.items()}
    return {of: {"field": field, "type": "nominal", "title": None, "scale": scale} for of, scale in scales.items()}


def ends(cell: Cell, factor: float = 1.0) -> dict[str, float | None]:
    found = {of: getattr(cell, of, None) for of in ("value", "low", "high")}
    return {of: None if end is None else end * factor for of, end in found.items()}


FILLS = ("#0072B2", "#D55E00", "#56B4E9", "#F0E442")
"""From dark to light, so that they differ in grey print."""


def _labels() -> Spec:
    """An axis of labels whose lines `_wrapped` broke."""
    axis = {"labelExpr": "split(datum.label, '\\n')", "labelLimit": 260, "labelLineHeight": 13}
    return {"field": "label", "type": "nominal", "title": None, "sort": None, "axis": axis}


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, 20 if width < 450 else 34))


def _at_one() -> Spec:
    """A dashed line across the plot where x is 1."""
    return mark("rule", {"x": number("x")}, [{"x": 1.0}], strokeDash=[4, 3])


def _about(table: Table) -> str:
    """The status of the figures, and their run."""
    found = {cell.status for row in table.rows for cell in row if isinstance(cell, Figure)}
    return ", ".join([*sorted(found), *([f"run {table.source}"] if table.source else [])]) + "."


def _tornado(table: Table, width: int) -> Chart | None:
    """The inputs that make the cost uncertain."""
    rows = [{"label": row[0], "series": row[1], "share": ends(row[2])["value"]} for row in table.rows]
    known = [status for status in get_args(Status) if status in {row["series"] for row in rows}]
    x = at("x", "share", "share of the variance of ln cost", format="%", tickCount=5)
    encoding = {"x": x, "y": _labels(), **coded(known, color=FILLS)}
    spec = layered(width, 170, {"step": 26}, rows, mark("bar", encoding, stroke="black", strokeWidth=0.7))
    return finish("tornado", "What makes the cost uncertain", _about(table), width, spec)


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
        label = _wrapped(f"{re.sub('^inference [a-z]+ / ', '', str(row[0]))} ({row[4]})", width)
        span = {"<=": (0.0, value), ">=": (value, top), "range": (cell.low, cell.high)}.get(str(row[1]), (value, value))
        # Every value of a range is equally likely, so none is marked.
        rows.append({"label": label, "series": BOUNDS[str(row[1])][0], "from": span[0], "to": span[1],
                     "value": None if row[1] == "range" else value})  # fmt: skip
    kinds = [kind for kind in BOUNDS.values() if kind[0] in {row["series"] for row in rows}]
    code = coded([name for name, _ in kinds], color=HUES, shape=[shape for _, shape in kinds])
    x = number("from", title="spend / revenue", scale={"domain": [0, top], "nice": False})
    base = {"y": _labels(), "color": code["color"]}
    spec = layered(
        width, 150 if width < 450 else 235, {"step": 30 + 14 * max(str(row["label"]).count("\n") for row in rows)},
        rows,
        mark("bar", {**base, "x": x, "x2": {"field": "to"}}, height=9, opacity=0.45),
        mark("point", {**base, "x": number("value"), "shape": code["shape"]}, size=110),
        _at_one(),
    )  # fmt: skip
    note = "Bars: possible values; 'at most' reaches to 0, 'about' has no bound. Dashed: spend = revenue."
    return finish("spend-revenue", "Reported inference spend over revenue of the same period", note, width, spec)


def _must_be(table: Table, width: int) -> Chart | None:
    """Each factor's belief and what it must be, over the median of the belief."""
    rows = []
    for row in table.rows:
        middle = ends(row[2])["value"]
        if middle is None or not row[4]:
            continue
        for series, cell in (("believed", row[2]), ("must be", row[3])):
            scaled = {of: None if end is None else end / middle for of, end in ends(cell).items()}
            rows.append({"label": _wrapped(str(row[0]), width), "series": series, **scaled})
    if not rows:
        return None
    code = coded(("believed", "must be"), color=HUES, shape=("circle", "diamond"))
    offset = {"field": "series", "type": "nominal"}
    base = {"y": _labels(), "yOffset": offset, "color": code["color"]}
    x = at("x", "low", "value / median of what is believed", "log", None, format="~g", tickCount=5)
    spec = layered(
        width, 150 if width < 450 else 235, {"step": 14}, rows,
        mark("rule", {**base, "x": x, "x2": {"field": "high"}}, strokeWidth=3),
        mark("point", {**base, "x": number("value"), "shape": code["shape"]}, size=80),
        _at_one(),
    )  # fmt: skip
    note = "p5 to p95. Circles: believed; diamonds: must be, if all factors make up the bill. " + table.notes[0]
    return finish("must-be", "What must be true to close the gap", note, width, spec)


def _trend(table: Table, width: int) -> Chart | None:
    """A figure over runs in the order of their time, with its intervals; None for one run and for published years."""
    figures = [row[2] for row in table.rows if isinstance(row[2], Figure) and row[2].value is not None]
    if len(figures) < 2 or table.columns[0] != "run":
        return None
    factor, unit = scale(figures[0])
    rows = [
        {"at": i, "about": f"{row[0]}, {row[1]}: {row[4]}", **ends(row[2], factor)} for i, row in enumerate(table.rows)
    ]
    names = json.dumps([row[1] or str(row[0]).partition("-")[0] for row in table.rows])
    axis = {"labelAngle": -40, "labelExpr": f"{names}[datum.value]"}
    said = f"{table.columns[2]} in {unit}"
    base = {"x": {"field": "at", "type": "ordinal", "title": None, "axis": axis}, "description": {"field": "about"}}
    y = number("value", title=said, scale={"zero": False})
    spec = layered(
        width, 80, 220, rows,
        mark("line", {**base, "y": y}, color=HUES[0]),
        mark("rule", {**base, "y": number("low", title=said), "y2": {"field": "high"}}, color=HUES[0], opacity=0.6),
        mark("point", {**base, "y": y}, color=HUES[0]),
    )  # fmt: skip
    return finish("trend", table.title, "95% intervals, from within a run.", width, spec)


def _front(table: Table, width: int) -> Chart | None:
    """Throughput of a GPU against the speed of one user, as predicted for each batch."""
    rows = [
        {"batch": str(row[0]).removesuffix(" *"), "best": str(row[0]).endswith("*"), **ends(row[2]),
         **{f"x_{of}": end for of, end in ends(row[1]).items()}}
        for row in table.rows
    ]  # fmt: skip
    if len(rows) < 2:
        return None
    across, up = "token/s of one user", "output token/s of a GPU"
    batch = {"field": "batch", "type": "nominal"}
    base = {"x": at("x", "x_value", across, "log", 20, format=",.4~r"), "description": batch}
    both = {**base, "y": at("y", "value", up, "log", 20, format=",.4~r")}
    fill = {"condition": {"test": "datum.best", "value": HUES[1]}, "value": HUES[0]}
    spec = layered(
        width, 70, 260, rows,
        mark("line", both, color=HUES[0]),
        mark("rule", {**base, "y": number("low", title=up), "y2": {"field": "high"}}, opacity=0.4),
        mark("rule", {**both, "x": number("x_low", title=across), "x2": {"field": "x_high"}}, opacity=0.4),
        mark("point", {**both, "color": fill}),
        mark("text", {**both, "text": batch}, dx=8, dy=-8, align="left"),
    )  # fmt: skip
    note = f"Sequences in flight at each point, with 90% intervals; {table.notes[0].replace('<', 'orange:')}."
    return finish("front", table.title, note, width, spec)


CHARTS: Mapping[str, Callable[[Table, int], Chart | None]] = {
    "tornado": _tornado,
    "reported": _claims,
    "spend-revenue": _claims,
    "must-be": _must_be,
    "trend": _trend,
    "front": _front,
}
"""Table -> its drawing, or None if the table has too few values."""


ChartFormat = Literal["svg", "png", "pdf", "html"]


def of_tables(tables: Iterable[Table], width: int = WIDTH) -> list[Chart]:
    """A chart of each table that has one; of several tables with the same name the first is drawn."""
    ready()
    first = {table.name: table for table in reversed(list(tables))}
    made = (draw(first[name], width) for name, draw in CHARTS.items() if name in first)
    return [chart for chart in made if chart is not None]


def write(charts: Iterable[Chart], folder: Path, format_: ChartFormat = "svg") -> list[Path]:
    """Writes a file for each chart under `folder`."""
    import vl_convert  # takes 10 MB, and most reports draw nothing

    folder.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, Callable[[dict[str, Any]], str | bytes]] = {
        "svg": vl_convert.vegalite_to_svg,
        "png": lambda spec: vl_convert.vegalite_to_png(spec, scale=2),
        "pdf": vl_convert.vegalite_to_pdf,
        "html": lambda spec: vl_convert.vegalite_to_html(spec, bundle=True),
    }
    paths = []
    for chart in charts:
        paths.append(folder / f"{chart.name}.{format_}")
        made = kinds[format_](chart.spec)
        with writing(paths[-1], "name another file"):
            paths[-1].write_bytes(made.encode() if isinstance(made, str) else made)
    return paths


def svg(chart: Chart, title: bool = True) -> str:
    """The drawing as SVG; without its title for a page, which prints title and note itself."""
    spec = {key: value for key, value in chart.spec.items() if title or key != "title"}
    import vl_convert

    return str(vl_convert.vegalite_to_svg(spec))


def for_page(charts: Iterable[Chart]) -> list[Drawing]:
    """Drawings as a page takes them."""
    return [(each.name, each.title, each.note, svg(each, title=False)) for each in charts]


def ready() -> None:
    if find_spec("vl_convert") is None:
        raise HarnessError("charts need vl-convert", install("charts"))
