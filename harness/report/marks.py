"""The parts of a chart's Vega-Lite specification, as plain dictionaries: marks, layers, axes, legends and the style.

The hues are those of Okabe and Ito, and each has its own shape or dash, so that charts stay readable in grey and for
colour-blind readers.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.report.table import Cell

WIDTH, PAGE = 560, 440
"""Pixels: of a file, and of a drawing that a page scales to half a screen and to a phone."""
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [1, 4])
SMALL = {"labelFontSize": 12, "titleFontSize": 12}
COLUMNS = 2
"""Of a legend."""
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
    heads = {"text": lines, "subtitle": notes, "limit": width, "anchor": "start", "frame": "bounds", "offset": 12}
    config = {
        "axis": {**SMALL, "gridColor": "#ddd", "titleFontWeight": "normal", "labelSeparation": 6,
                 "labelLimit": width // 3, "titlePadding": 8},
        "background": "white",
        "font": "DejaVu Sans, Verdana, sans-serif",
        "legend": {**SMALL, "orient": "bottom", "labelLimit": width // COLUMNS - 70, "columns": COLUMNS},
        "point": {"filled": True, "size": 70, "opacity": 1},
        "view": {"stroke": "#999"},
    }  # fmt: skip
    style = {"title": {**heads, "fontSize": 14, "subtitleFontSize": 11, "subtitleColor": "#444"}, "padding": 8}
    schema = "https://vega.github.io/schema/vega-lite/v6.json"
    return Chart(name, title, note, {"$schema": schema, **spec, **style, "config": config})


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


def ends(cell: Cell) -> dict[str, float | None]:
    return {of: getattr(cell, of, None) for of in ("value", "low", "high")}
