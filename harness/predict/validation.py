"""The errors of predictions for models that were left out of the fit."""

from collections.abc import Iterator

import numpy as np

from harness.cost.draws import Array
from harness.model import Figure
from harness.predict.extrapolate import published
from harness.predict.roofline import Work, left_out_errors, spread_of, spreads

Row = tuple[str, Figure | None, Figure | None, Figure | None, Figure | None]
"""Points, median error of time and of energy (a factor), share of points within the stated 90% interval of each."""


def validation() -> list[Row]:
    """On H100 each model is predicted from the other models; on A100 from the H100 points of the other models."""
    h100, a100 = published()
    errors = left_out_errors(h100, h100)
    half = spread_of(h100.model, errors)[:, None]
    return [
        *_rows("H100", h100, errors, spreads(h100, errors)),
        *_rows("A100-40GB", a100, left_out_errors(h100, a100), half),
    ]


def _rows(gpu: str, points: Work, errors: Array, half: Array) -> Iterator[Row]:
    """A row of errors for each kind of model, and a row of shares for all of them."""
    for kind in ("dense", "moe", "hybrid"):
        chosen = errors[:, points.kind == kind]
        if chosen.size:
            time, energy = np.exp(np.median(np.abs(chosen), axis=1))
            n = chosen.shape[1]
            of_time, of_energy = _figure("error.time", time, n, "ratio"), _figure("error.energy", energy, n, "ratio")
            yield f"{gpu} {kind}", of_time, of_energy, None, None
    time, energy = np.mean(np.abs(errors) <= half, axis=1)
    n = len(points)
    yield f"{gpu} all", None, None, _figure("inside.time", time, n, "1"), _figure("inside.energy", energy, n, "1")


def _figure(name: str, value: float, n: int, unit: str) -> Figure:
    return Figure(name, float(value), unit, "derived", n=n)
