"""What a model that was not measured would cost, from published GPU measurements; how near a run came to the limit."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from harness.config import AS_WRITTEN, Values
from harness.cost.bill import Costs, Row, bill_factors, costed, draw_inputs, measured
from harness.cost.gpus import find_gpu, read_rows
from harness.cost.pricing import price_tables, priced_for
from harness.cost.scenario import MEASURED
from harness.errors import HarnessError
from harness.files import read_data
from harness.model import Device, Figure, Summary
from harness.predict.roofline import (
    WEIGHT_BYTES,
    ServedModel,
    Work,
    find_model,
    limits_of,
    parse_points,
    predict,
    stacked,
    work,
)
from harness.store.run import Run

MEMORY_SHARE = 0.9
"""Share of a GPU's memory that weights and cache may take; engines keep the rest (vLLM's default)."""
LIMITS = {"mfu": "1", "mbu": "1", "floor_s_per_output_token": "s", "floor_joules_per_output_token": "J"}
"""What says how near a run came to the limit, and the unit of each."""


def extrapolate(
    model: str,
    gpu: str,
    devices: int = 1,
    precision: str = "bfloat16",
    batch: float = 64,
    tokens: tuple[float, float] = (500, 500),
    scenario: str = "on-demand",
    overrides: Values = AS_WRITTEN,
    run: tuple[Run, Summary] | None = None,
) -> Costs:
    """Device-seconds, joules and USD per output token of a model of models.csv on a GPU of gpus.csv, measured or not.

    `tokens` are (input, output) of a request, `batch` the sequences in flight. With `run`, a GPU run of one's own, time
    and energy are scaled by measured / predicted time of that run. Raises HarnessError for names without a row, weights
    that do not fit, or a run on a CPU.
    """
    gpus = price_tables()[0]
    served, device = find_model(model, models()), find_gpu(gpu, gpus)
    if served is None:
        known = ", ".join(each.name for each in models())
        raise HarnessError(f"model '{model}' is not in models.csv", f"choose one of {known}")
    if device is None:
        raise HarnessError(f"GPU '{gpu}' is not in gpus.csv", f"choose one of {', '.join(g.name for g in gpus)}")
    row = work(served, device, precision, devices, batch, *tokens)
    needed, there = (served.total_params * WEIGHT_BYTES[precision]) / 1e9, devices * device.memory_bytes / 1e9
    if needed > MEMORY_SHARE * there:
        what = f"{served.name} in {precision} takes {needed:.0f} GB, {devices} x {device.name} have {there:.0f} GB"
        raise HarnessError(what, "use more GPUs or a smaller precision")
    used = priced_for(Device("gpu", device.name, devices), scenario, overrides)
    x = draw_inputs(used)
    points = published()[0]
    seconds, joules = predict(points, row, devices, x[MEASURED])
    notes = [
        f"from {len(points)} published points on H100, {len(set(points.model))} models (ML.ENERGY v3)",
        "the interval holds for that serving software; see `harness extrapolate --validate`",
    ]
    if run is not None:
        ratio = calibration(*run)
        seconds, joules = seconds * ratio, joules * ratio
        notes.append(f"scaled by measured / predicted of run {run[0].id}: {ratio:.3g}")
    elif device.name != "H100":
        notes.append(
            f"no point on {device.name} is in the fit: bandwidth and FLOP/s are scaled, and no error is stated for that"
        )
    time, paid = ("published", seconds), "usd_per_million_output_tokens"
    rows: list[Row] = [
        ("device_s_per_output_token", "s", "derived", [time], 1.0, None),
        ("joules_per_output_token", "J", "derived", [("published", joules)], 1.0, None),
        (paid, "USD/1e6 token", "derived", [*bill_factors(used, x), time], 1e6 / 3600, used.no_price),
    ]
    return costed(used, rows, notes)


def calibration(run: Run, summary: Summary) -> float:
    """Measured / predicted device-seconds per output token of a run on a known GPU. HarnessError for any other run."""
    if not run.on_gpu:
        where = "a CPU" if run.engine and run.engine.device == "cpu" else "no GPU"
        what = f"run {run.id} was measured on {where}: it says nothing about a GPU"
        raise HarnessError(what, "name a GPU run, or none to extrapolate from the published measurements")
    place = _place(run, summary)
    if isinstance(place, str):
        raise HarnessError(f"run {run.id}: {place}", "name another run, or none")
    row, rate, devices = place
    seconds, _ = predict(published()[0], row, devices, np.array([0.5]))
    return float(devices / rate / seconds[0])


def hardware_limits(run: Run, summary: Summary) -> tuple[Figure, ...]:
    """MFU, MBU and the roofline's floor of a run; n/a with the reason where GPU or model has no row."""
    place = _place(run, summary)
    if isinstance(place, str):
        return tuple(Figure(name, None, unit, "derived", reason=place) for name, unit in LIMITS.items())
    row, rate, devices = place
    found = {**limits_of(stacked(row), rate)}
    found["floor_s_per_output_token"] *= devices
    return tuple(Figure(name, found[name], unit, "derived") for name, unit in LIMITS.items())


def _place(run: Run, summary: Summary) -> tuple[tuple[float, ...], float, int] | str:
    """A run's work for one step, its output rate and devices; or why they are not known. Batch by Little's law."""
    if run.engine is None or not run.on_gpu:
        return "not a GPU run"
    identity, named = run.model, run.gpu or "unknown"
    gpu, model = find_gpu(named, price_tables()[0]), find_model(identity.source or identity.asked or "", models())
    if gpu is None:
        return f"GPU '{named}' is not in gpus.csv"
    if model is None:
        return f"model '{identity.asked}' is not in models.csv"
    names = ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "e2e_s.mean")
    rates = [measured(summary, name) for name in names]
    for figure in rates:
        if figure.value is None:
            return figure.reason or "not recorded"
    out, total, requests, e2e = (figure.value or 0.0 for figure in rates)
    devices = run.engine.device_count
    precision = run.engine.options.get("quantization") or identity.precision or "bfloat16"
    try:
        row = work(model, gpu, precision, devices, requests * e2e, (total - out) / requests, out / requests)
    except HarnessError as unknown:
        return unknown.what
    return row, out, devices


@lru_cache(maxsize=1)
def models() -> tuple[ServedModel, ...]:
    """The table of models."""
    return read_rows(read_data("models.csv"), ServedModel)


@lru_cache(maxsize=1)
def published() -> tuple[Work, Work]:
    """The published chat points on H100 and on A100."""
    texts = (read_data(f"published/mlenergy_{name}.csv") for name in ("v3_h100", "v2_a100"))
    h100, a100 = (parse_points(text, models(), price_tables()[0]) for text in texts)
    return h100, a100
