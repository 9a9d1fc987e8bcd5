"""Time, energy and memory of a model on GPUs that were not measured, with predictive intervals."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from harness.analysis.findings import finding
from harness.config import checked, near, read_map
from harness.cost.bill import measured
from harness.cost.draws import Draws
from harness.cost.gpus import Gpu, find_gpu
from harness.cost.pricing import price_tables
from harness.errors import HarnessError
from harness.files import data_rows, read_text
from harness.model import Figure, Finding, Summary
from harness.predict import pooled
from harness.predict.shapes import ModelShape, described, precision_of, shape_of
from harness.predict.work import Serving, check_fits, columns, largest_batch, peak_flops, seconds, sizes_that_hold
from harness.store.run import Run

MOST_GPUS = 10_000
GUESSES = data_rows("predict/guesses.csv")
"""Block of the fit -> what a prediction without that level guesses."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The load, and how it is to be served."""

    batch: float = 64
    """Sequences in flight over all GPUs."""
    input: float = 500
    """Tokens of a request."""
    output: float = 500
    devices: int | None = None
    """GPUs in all; None: one group."""
    precision: str | None = None
    """Of the weights; None: as published, in bf16 where the GPU lacks that."""
    tp: int | None = None
    """Tensor parallelism of one group; None, as `ep`: the smallest group that holds the model."""
    ep: int | None = None
    pp: int | None = None
    dp: int | None = None
    """Copies of the attention (with expert parallelism) or, for a dense model, copies of the model."""
    prefill_gpus: int = 0
    """GPUs of a group that compute prompts alone."""
    engine: str = "vllm"
    """vllm, sglang or trtllm, with a version after '@' if it is not the newest."""


PLAN = Plan()


@dataclass(frozen=True, slots=True)
class Prediction:
    """Draws of what one serving point does; `replicas` groups share the load."""

    serving: Serving
    replicas: int
    tpot_s: Draws
    """Seconds between tokens of one user."""
    ttft_s: Draws
    device_s: Draws
    """Device-seconds per output token, TTFT and the prompts' computation included."""
    joules: Draws
    """Joules of the accelerators per output token."""

    @property
    def devices(self) -> int:
        return self.replicas * self.serving.devices

    @property
    def guesses(self) -> tuple[str, ...]:
        """What of the serving point no measured point covers, in words."""
        s, level = self.serving, pooled.levels_of(self.serving)
        known, words = pooled.fitted("time").places, level | {"model": s.model.name}
        unmeasured = ("gpu rest", s.gpu.name) not in pooled.fitted("power").places
        more = {
            f"{s.model.name} is taken as {level['model']}, which differs in weights alone": level["model"]
            != s.model.name,
            "no point has pipeline stages": s.pp > 1,
            "no point has more than 10,000 tokens a request": s.input + s.output > 10_000,
            f"no energy was measured on {s.gpu.name}": unmeasured,
        }
        notes = [r["guess"].format(**words) for r in GUESSES if (r["block"], level[r["key"]]) not in known]
        return (*notes, *(note for note, holds in more.items() if holds))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured / predicted of a run. `joules` None: the run has no energy. `serving`: what it measured."""

    time: float
    joules: float | None
    serving: Serving
    run: str


def predict(
    model: str | ModelShape, gpu: str | Gpu, plan: Plan = PLAN, u: Draws | None = None, own: Calibration | None = None
) -> Prediction:
    """The prediction for one serving point; HarnessError for what is unknown, not positive or does not fit.

    `u` are the uniform draws to use (1,024 quantiles if None). `own` is measured / predicted of a run of the user's.
    """
    serving, replicas = deployed(model, gpu, plan)
    check_fits(serving)
    return predict_many([serving], replicas, u, own)[0]


def deployed(model: str | ModelShape, gpu: str | Gpu, plan: Plan) -> tuple[Serving, int]:
    """The serving of one group with its share of the load, and the number of groups."""
    for name, value in (("--batch", plan.batch), ("input tokens", plan.input), ("output tokens", plan.output)):
        if not (math.isfinite(value) and value >= 1 and value == int(value)):
            raise HarnessError(f"{name} is {value:g}", "give a whole number above 0")
    for name in ("devices", "tp", "ep", "pp", "dp", "prefill_gpus"):
        least, count = int(name != "prefill_gpus"), getattr(plan, name)
        if count is not None and not least <= count <= MOST_GPUS:
            what = f"--{name.replace('_', '-')} is {count}"
            raise HarnessError(what, f"give a whole number from {least} to {MOST_GPUS:,}")
    shape = shape_of(model) if isinstance(model, str) else model
    device = known_gpu(gpu) if isinstance(gpu, str) else gpu
    weights = precision_of(plan.precision or shape.precision)
    if weights == "fp8" and device.flops_fp8 is None and plan.precision is None:
        weights = "bf16"
    engine, version, year = engine_of(plan.engine)
    tp, pp, dp, ep = plan.tp or 1, plan.pp or 1, plan.dp or 1, plan.ep or 1
    one = Serving(
        shape, device, weights, plan.batch, plan.input, plan.output,
        ep=ep, engine=engine, released=year, version=version, pp=pp,
    )  # fmt: skip
    if shape.experts and dp > 1:  # ranks of attention that share the experts
        group = replace(one, gpus=max(tp * dp, ep), dp=dp)
    else:
        group = replace(one, gpus=max(tp, ep) if plan.tp or plan.ep else smallest(one, plan.devices))
    name, most = shape.name, device.domain
    for wrong, what, fix in (
        (ep > 1 and not shape.experts, f"--ep {ep}: {name} has no experts", "leave --ep out"),
        (pp > shape.layers, f"--pp {pp}: {name} has {shape.layers:.0f} layers", "give at most as many stages"),
        (shape.heads % tp, f"--tp {tp}: {name} has {shape.heads:.0f} attention heads, which it does not divide",
         "give a divisor of them"),
        (shape.experts % ep, f"--ep {ep}: {name} has {shape.experts:.0f} experts", "give a divisor of it"),
        (group.gpus > most, f"a group of {group.gpus} GPUs, but fast links join {most} {device.name}",
         f"use at most {most} a group; --pp adds stages, more --devices add copies"),
    ):  # fmt: skip
        if wrong:
            raise HarnessError(what, fix)
    size = group.gpus * pp
    copies, left = divmod(plan.devices or size, size)
    if not copies or left:
        fits, what = size * max(1, copies), f"{plan.devices} GPUs are not whole groups of {size}"
        raise HarnessError(what, f"use --devices {fits} or {fits + size}")
    copies = dp if not shape.experts and plan.devices is None else copies
    return replace(group, batch=max(1.0, plan.batch / copies), prefill_gpus=plan.prefill_gpus), copies


def smallest(one: Serving, devices: int | None) -> int:
    """GPUs of the smallest group that holds the model and one sequence, and divides the devices."""
    whole = [n for n in sizes_that_hold(one) if devices is None or devices % (n * one.pp) == 0]
    if not whole:
        most = min(devices or one.gpu.domain, one.gpu.domain)
        check_fits(replace(one, gpus=most))
        return most
    roomy = [n for n in whole if largest_batch(replace(one, gpus=n)) >= one.batch / ((devices or n) / (n * one.pp))]
    return min(roomy or whole)


def predict_many(
    servings: Sequence[Serving], replicas: int, u: Draws | None = None, own: Calibration | None = None
) -> list[Prediction]:
    """Predictions of several points; `servings` were checked to fit.

    Power is limited by the GPU's limit. Its part for bytes and operations falls where the step takes longer: joules are
    rest x time + work, never scaled by time.
    """
    from scipy.special import ndtri

    u = (np.arange(1024) + 0.5) / 1024 if u is None else u
    z, other = np.asarray(ndtri(u)), np.asarray(ndtri(np.random.default_rng(1).permutation(u)))
    time, power, there, watts_there = pooled.fitted("time"), pooled.fitted("power"), None, None
    if own is not None:
        there = pooled.rows([own.serving], columns([own.serving]))
        step_s = own.time * np.exp(pooled.predicted(time, there)[0])
        if own.joules is not None:
            watts_there = pooled.rows([own.serving], pooled.power_columns([own.serving], step_s))
    ln_t, variance = pooled.predicted(time, pooled.rows(servings, columns(servings)), there)
    ideal = pooled.latency_columns(servings, time)
    ln_first, first_variance = pooled.predicted(pooled.fitted("ttft"), pooled.rows(servings, ideal))
    asked = pooled.rows(servings, pooled.power_columns(servings, np.exp(ln_t)))
    parts = pooled.parts(power, asked)
    watts_variance = pooled.predicted(power, asked, watts_there)[1]
    found = []
    for i, s in enumerate(servings):
        doubts = ("time", variance), ("ttft", first_variance), ("power", watts_variance)
        sds = [pooled.scale(name, s) * np.sqrt(each[i]) for name, each in doubts]
        tpot = (own.time if own else 1.0) * np.exp(ln_t[i] + sds[0] * z)
        ttft = np.exp(ln_first[i] + sds[1] * other)
        each = tpot + ttft / s.output
        watts = (parts[i, 0] + parts[i, 1:].sum() * np.exp(ln_t[i]) / tpot) * np.exp(sds[2] * other)
        watts = np.minimum(watts, s.gpu.tdp_w) * (1.0 if own is None or own.joules is None else own.joules)
        device_s = each * s.devices / s.batch
        found.append(Prediction(s, replicas, tpot, ttft, device_s, watts * device_s))
    return found


def known_gpu(name: str) -> Gpu:
    """The row of gpus.csv, or the GPU in a YAML file. HarnessError with the known names."""
    gpus = price_tables()[0]
    if name.endswith((".yaml", ".yml")):
        return own_gpu(name)
    if (found := find_gpu(name, gpus)) is None:
        names = [gpu.name for gpu in gpus]
        fix = f"{near(name, names)}choose one of {', '.join(names)}, or give a YAML file with the columns of gpus.csv"
        raise HarnessError(f"GPU '{name}' is not in gpus.csv", fix)
    return found


def own_gpu(path: str) -> Gpu:
    """A GPU of the user's: a YAML map with the columns of gpus.csv, of which a GPU may lack some."""
    content, places = read_map(read_text(Path(path)), path, "a GPU, with the columns of harness/data/gpus.csv")
    absent = dict.fromkeys(("price_gpu", "flops_fp8", "flops_fp4")) | {"domain": 8, "source": path}
    fix = "give gpu, flops_bf16, bandwidth_bytes_per_s, memory_bytes, tdp_w and link_bytes_per_s, all above 0"
    form: Any = TypeAdapter(Gpu)
    found: Gpu = checked(form, {"match": str(content.get("gpu", "")), **absent, **content}, path, places, fix)
    return found


@lru_cache(maxsize=1)
def releases() -> Mapping[str, Mapping[str, tuple[float, int]]]:
    """Engine -> version -> year of its release and measured points; oldest first."""
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for r in data_rows("predict/releases.csv"):
        if r["version"]:
            found.setdefault(r["engine"], {})[r["version"]] = float(r["released"]), int(r["points"])
    return found


def engine_of(text: str) -> tuple[str, str, float]:
    """Engine, version and year of release, from 'vllm' (the newest with `MANY` points) or 'vllm@0.11'.

    A version without points is put between its neighbours, one beyond them a week after the nearest: no level of a fit.
    """
    name, _, version = text.lower().partition("@")
    known = releases().get(name)
    if known is None:
        fix = f"use one of {', '.join(sorted(releases()))}, with a version as in vllm@0.11"
        raise HarnessError(f"no measured points of engine '{name}'", fix)
    if not version:
        version = [each for each, (_, points) in known.items() if points >= MANY][-1]
    if version in known:
        return name, version, known[version][0]
    asked, numbered = _numbers(version), sorted((_numbers(v), at) for v, (at, _) in known.items() if _numbers(v))
    if not asked:
        raise HarnessError(f"'{version}' is not a version of {name}", f"give numbers, as in {', '.join(known)}")
    before, after = [at for v, at in numbered if v <= asked], [at for v, at in numbered if v > asked]
    beside = [*before[-1:], *after[:1]]
    return name, version, float(np.mean(beside)) + (0.02 if len(beside) == 1 else 0.0)


MANY = 80


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3])) if re.match(r"v?\d", version) else ()


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
    s = replace(s, batch=max(1.0, s.batch))  # below 1 the GPUs wait for requests
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
