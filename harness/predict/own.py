"""A run of the user's on a GPU: how close it is to the hardware's limit, and by how much predictions were off."""

from dataclasses import replace

import numpy as np

from harness.analysis.findings import finding
from harness.cost.bill import measured
from harness.errors import HarnessError
from harness.model import Figure, Finding, Summary
from harness.predict.predict import Calibration, engine_of, known_gpu, predict_many
from harness.predict.shapes import described, precision_of, shape_of
from harness.predict.work import Serving, peak_flops, seconds
from harness.store.run import Run

LIMITS = {"mfu": "1", "mbu": "1", "floor_s_per_output_token": "s", "floor_joules_per_output_token": "J"}
"""Figures that compare a run with the GPU's limit -> unit."""


def calibration(run: Run, summary: Summary) -> Calibration:
    """Measured / predicted device-seconds and joules per output token. HarnessError if its GPU or model is unknown."""
    if not run.on_gpu:
        where = "a CPU" if run.engine and run.engine.device == "cpu" else "no GPU"
        what = f"run {run.id} was measured on {where}: it says nothing about a GPU"
        raise HarnessError(what, "name a GPU run, or none to predict from the published measurements")
    serving, rate = serving_of(run, summary)
    middle, joules = np.array([0.5]), measured(summary, "joules_per_output_token").value
    plain = predict_many([serving], 1, middle)[0]
    found = Calibration(float(serving.gpus / rate / plain.device_s[0]), None, serving, run.id)
    if joules is None:
        return found
    return replace(found, joules=float(joules / predict_many([serving], 1, middle, found)[0].joules[0]))


def hardware_limits(run: Run, summary: Summary) -> tuple[tuple[Figure, ...], tuple[Finding, ...]]:
    """MFU, MBU and the roofline's lower limits of a run; n/a with the reason if its GPU or model is not known.

    A share above 1 is impossible: then all are n/a, and a finding says so.
    """
    doubts, found, why = tuple[Finding, ...](), dict[str, float](), None
    try:
        found = limits_of(*serving_of(run, summary))
    except HarnessError as unknown:
        why = unknown.what
    if found and max(found["mfu"], found["mbu"]) > 1:
        doubts = (finding("beyond-hardware", mfu=found["mfu"], mbu=found["mbu"]),)
        why, found = doubts[0].text, {}
    return tuple(Figure(name, found.get(name), unit, "derived", reason=why) for name, unit in LIMITS.items()), doubts


def limits_of(s: Serving, output_tokens_per_s: float) -> dict[str, float]:
    """How close a serving point is to the roofline (Williams et al. 2009).

    mfu and mbu: used shares of FLOP/s and bandwidth, from the FLOP and bytes that a step needs; then device-seconds per
    output token at the roofline, and joules per output token there at the power limit.
    """
    needed, measured_s = seconds(replace(s, task="all")), s.batch / output_tokens_per_s
    prompts = needed["prompt_compute"] + needed["prefill_attention"]
    memory_s = needed["dense"] + needed["expert"] + needed["kv"]
    compute_s = 2 * s.model.active_params * s.batch / s.gpus / peak_flops(s.gpu, s.precision) + prompts
    floor = max(memory_s, compute_s) * s.gpus / s.batch
    return {
        "mfu": compute_s / measured_s,
        "mbu": memory_s / measured_s,
        "floor_s_per_output_token": floor,
        "floor_joules_per_output_token": floor * s.gpu.tdp_w,
    }


def serving_of(run: Run, summary: Summary) -> tuple[Serving, float]:
    """The serving point of a run, and its output tokens/s. The batch is requests/s x mean E2E (Little's law).

    A file without E2E (the default of `vllm bench serve`) has TTFT + TPOT x (tokens - 1) in its place. HarnessError if
    GPU, model, precision or a rate is not known.
    """
    fix = "name another run, or none"
    if run.engine is None or not run.on_gpu:
        raise HarnessError("not a GPU run", fix)
    identity, devices = run.model, run.device_count
    name = identity.source or identity.asked or "unknown"
    model = described(identity.config, name, "its config.json") if identity.config else shape_of(name)
    gpu = known_gpu(run.gpu or "unknown")
    names = ["output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "e2e_s.mean"]
    if measured(summary, "e2e_s.mean").value is None:
        names[3:] = ["ttft_s.mean", "tpot_s.mean"]
    rates = [measured(summary, name) for name in names]
    if lacking := next((figure.reason for figure in rates if figure.value is None), None):
        raise HarnessError(lacking, fix)
    out, total, requests, *times = (figure.value or 0.0 for figure in rates)
    if not min(out, requests, times[0]) > 0:
        raise HarnessError(f"one of {', '.join(names)} is not above 0", fix)
    e2e = times[0] if len(times) == 1 else times[0] + times[1] * (out / requests - 1)
    precision = precision_of(run.engine.options.get("quantization") or identity.precision)
    _, version, released = engine_of("vllm")
    asked, answered = max(1.0, (total - out) / requests), out / requests
    serving = Serving(model, gpu, precision, requests * e2e, asked, answered, devices)
    return replace(serving, released=released, version=version), out
