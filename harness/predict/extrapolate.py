"""The cost of a model that was not measured, from published GPU measurements; how close a run is to the GPU's limit."""

from functools import lru_cache

import numpy as np

from harness.analysis.findings import finding
from harness.config import AS_WRITTEN, Values
from harness.cost.bill import Costs, Row, bill_factors, costed, draw_inputs, measured
from harness.cost.gpus import Gpu, find_gpu, read_rows
from harness.cost.pricing import price_tables, priced_for
from harness.cost.scenario import MEASURED
from harness.errors import HarnessError
from harness.files import read_data
from harness.model import Device, Figure, Finding, Summary
from harness.predict.roofline import (
    WEIGHT_BYTES,
    ServedModel,
    Work,
    find_model,
    from_config,
    limits_of,
    parse_points,
    predict,
    work,
)
from harness.store.run import Run

MEMORY_SHARE = 0.9
"""Share of a GPU's memory for weights and cache; engines keep the rest free (vLLM's default)."""
LIMITS = {"mfu": "1", "mbu": "1", "floor_s_per_output_token": "s", "floor_joules_per_output_token": "J"}
"""Figures that compare a run with the GPU's limit -> unit."""


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
    """Device-seconds, joules and USD per output token of a model of models.csv on a GPU of gpus.csv.

    `tokens` are (input, output) of a request, `batch` the sequences in flight. `run` is a GPU run whose measured /
    predicted time scales the predicted time and energy. HarnessError for an unknown model or GPU, for weights that do
    not fit, and for a run on a CPU.
    """
    served, device = _known(model, gpu)
    todo = work(served, device, precision, devices, batch, *tokens)
    weights_gb, memory_gb = served.total_params * WEIGHT_BYTES[precision] / 1e9, devices * device.memory_bytes / 1e9
    if weights_gb > MEMORY_SHARE * memory_gb:
        what = (
            f"{served.name} in {precision} takes {weights_gb:.0f} GB, {devices} x {device.name} have {memory_gb:.0f} GB"
        )
        raise HarnessError(what, "use more GPUs or a smaller precision")
    used = priced_for(Device("gpu", device.name, devices), scenario, overrides)
    x = draw_inputs(used)
    points = published()[0]
    seconds, joules = predict(points, todo, devices, x[MEASURED])
    notes = [
        f"from {len(points)} published points on H100, {len(set(points.model))} models (ML.ENERGY v3)",
        "the interval is valid for the serving software of those points; see `harness extrapolate --validate`",
    ]
    if run is not None:
        ratio = calibration(*run)
        seconds, joules = seconds * ratio, joules * ratio
        notes.append(f"scaled by measured / predicted of run {run[0].id}: {ratio:.3g}")
    elif device.name != "H100":
        notes.append(
            f"no published point is on {device.name}: the interval does not include the error of scaling to it"
        )
    time, paid = ("published", seconds), "usd_per_million_output_tokens"
    rows: list[Row] = [
        ("device_s_per_output_token", "s", "derived", [time], 1.0, None),
        ("joules_per_output_token", "J", "derived", [("published", joules)], 1.0, None),
        (paid, "USD/1e6 token", "derived", [*bill_factors(used, x), time], 1e6 / 3600, used.no_price),
    ]
    return costed(used, rows, notes)


def calibration(run: Run, summary: Summary) -> float:
    """Measured / predicted device-seconds per output token of a run. HarnessError if its GPU or model is not known."""
    if not run.on_gpu:
        where = "a CPU" if run.engine and run.engine.device == "cpu" else "no GPU"
        what = f"run {run.id} was measured on {where}: it says nothing about a GPU"
        raise HarnessError(what, "name a GPU run, or none to extrapolate from the published measurements")
    todo, rate, devices = _serving_point(run, summary)
    seconds, _ = predict(published()[0], todo, devices, np.array([0.5]))
    return float(devices / rate / seconds[0])


def hardware_limits(run: Run, summary: Summary) -> tuple[tuple[Figure, ...], tuple[Finding, ...]]:
    """MFU, MBU and the roofline's lower limits of a run; n/a with the reason if its GPU or model is not known.

    A share above 1 is impossible: then all are n/a, and a finding says so.
    """
    try:
        todo, rate, devices = _serving_point(run, summary)
    except HarnessError as unknown:
        return tuple(Figure(name, None, unit, "derived", reason=unknown.what) for name, unit in LIMITS.items()), ()
    found = {**limits_of(todo, rate)}
    found["floor_s_per_output_token"] *= devices
    if max(found["mfu"], found["mbu"]) > 1:
        doubt = finding("beyond-hardware", mfu=found["mfu"], mbu=found["mbu"])
        return tuple(Figure(name, None, unit, "derived", reason=doubt.text) for name, unit in LIMITS.items()), (doubt,)
    return tuple(Figure(name, found[name], unit, "derived") for name, unit in LIMITS.items()), ()


def _known(model: str, gpu: str, described: ServedModel | None = None) -> tuple[ServedModel, Gpu]:
    """The rows of models.csv and gpus.csv with these names; `described` replaces that of the model.

    HarnessError for a name without a row.
    """
    gpus = price_tables()[0]
    served, device = described or find_model(model, models()), find_gpu(gpu, gpus)
    if served is None:
        choices = ", ".join(each.name for each in models())
        raise HarnessError(f"model '{model}' is not in models.csv", f"choose one of {choices}")
    if device is None:
        raise HarnessError(f"GPU '{gpu}' is not in gpus.csv", f"choose one of {', '.join(g.name for g in gpus)}")
    return served, device


def _serving_point(run: Run, summary: Summary) -> tuple[Work, float, int]:
    """The work of one decode step of a run, its output tokens/s, and its devices. The batch is requests/s x mean E2E.

    HarnessError if GPU, model, precision or a rate is not known.
    """
    fix = "name another run, or none"
    if run.engine is None or not run.on_gpu:
        raise HarnessError("not a GPU run", fix)
    identity, devices = run.model, run.device_count
    name = identity.source or identity.asked or ""
    described = from_config(name, identity.config) if identity.config else None
    model, gpu = _known(name, run.gpu or "unknown", described)
    names = ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "e2e_s.mean")
    rates = [measured(summary, name) for name in names]
    if lacking := next((figure.reason for figure in rates if figure.value is None), None):
        raise HarnessError(lacking, fix)
    out, total, requests, e2e = (figure.value or 0.0 for figure in rates)
    precision = run.engine.options.get("quantization") or identity.precision or "bfloat16"
    return work(model, gpu, precision, devices, requests * e2e, (total - out) / requests, out / requests), out, devices


@lru_cache(maxsize=1)
def models() -> tuple[ServedModel, ...]:
    """The rows of models.csv."""
    return read_rows(read_data("models.csv"), ServedModel)


@lru_cache(maxsize=1)
def published() -> tuple[Work, Work]:
    """The published chat points on H100, and those on A100."""
    texts = (read_data(f"published/mlenergy_{name}.csv") for name in ("v3_h100", "v2_a100"))
    h100, a100 = (parse_points(text, models(), price_tables()[0]) for text in texts)
    return h100, a100
