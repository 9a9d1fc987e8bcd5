"""Tables of predictions and of their errors."""

from __future__ import annotations

import numpy as np

from harness.cost.draws import Array
from harness.model import Figure
from harness.predict.extrapolate import published
from harness.predict.roofline import (
    Work,
    left_out_errors,
    spread_of,
    spreads,
)
from harness.report.table import Cell, Table


def validation_table() -> Table:
    """Leave-one-model-out errors on the published H100 points, and the same fit on another GPU and older software."""
    h100, a100 = published()
    errors = left_out_errors(h100, h100)
    half = spread_of(h100.model, errors)[:, None]
    rows = [
        *_rows("H100", h100, errors, spreads(h100, errors)),
        *_rows("A100-40GB", a100, left_out_errors(h100, a100), half),
    ]
    notes = (
        "error: median |ln(predicted / measured)| per output token, as a factor; a predicted model is never in the fit",
        "inside: share of points in the stated 90% interval",
        "H100: ML.ENERGY leaderboard v3 (2025). A100: leaderboard v2 (2024), where an older vLLM took far longer for "
        "each layer and sequence: the H100 fit does not carry over to other serving software",
    )
    columns = ("points", "time error", "energy error", "time inside", "energy inside")
    return Table("validation", "Extrapolation against measurements", columns, tuple(rows), notes)


def _rows(where: str, points: Work, errors: Array, half: Array) -> list[tuple[Cell, ...]]:
    """A row a kind of model with the median error, and one of all with the share inside the intervals' half widths."""
    rows: list[tuple[Cell, ...]] = []
    for kind in ("dense", "moe", "hybrid"):
        of = errors[:, points.kind == kind]
        if of.size:
            median = np.exp(np.median(np.abs(of), axis=1))
            rows.append((f"{where} {kind}", *_pair("error", "ratio", median, of.shape[1]), None, None))
    inside = np.mean(np.abs(errors) <= half, axis=1)
    return [*rows, (f"{where} all", None, None, *_pair("inside", "1", inside, len(points)))]


def _pair(name: str, unit: str, values: Array, n: int) -> list[Figure]:
    of = zip(("time", "energy"), values, strict=True)
    return [Figure(f"{name}.{what}", float(value), unit, "derived", n=n) for what, value in of]
