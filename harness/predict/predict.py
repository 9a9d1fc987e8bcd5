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

from harness.config import checked, near, read_map
from harness.cost.draws import Draws
from harness.cost.gpus import Gpu, find_gpu
from harness.cost.pricing import price_tables
from harness.errors import HarnessError
from harness.files import data_rows, read_text
from harness.predict import pooled
from harness.predict.shapes import ModelShape, precision_of, shape_of
from harness.predict.work import Serving, check_fits, columns, largest_batch, memory_bytes, sizes_that_hold

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
    memory_bytes: float
    """Used on one GPU."""
    most: float
    """Sequences of full length that fit, over all replicas."""
    guesses: tuple[str, ...]
    """What no measured point covers."""

    @property
    def devices(self) -> int:
        return self.replicas * (self.serving.gpus * self.serving.pp + self.serving.prefill_gpus)


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
    devices = plan.devices
    shape = shape_of(model) if isinstance(model, str) else model
    device = known_gpu(gpu) if isinstance(gpu, str) else gpu
    weights = precision_of(plan.precision or shape.precision)
    if weights == "fp8" and device.flops_fp8 is None and plan.precision is None:
        weights = "bf16"
    engine, version, year = engine_of(plan.engine)
    tp, pp, dp, ep = plan.tp or 1, plan.pp or 1, plan.dp or 1, plan.ep or 1
    one = Serving(shape, device, weights, plan.batch, plan.input, plan.output, pp=pp)
    one = replace(one, engine=engine, released=year, version=version)
    if shape.experts and dp > 1:  # ranks of attention that share the experts
        group = replace(one, gpus=max(tp * dp, ep), dp=dp, ep=ep)
    else:
        if ep > 1 and not shape.experts:
            raise HarnessError(f"--ep {ep}: {shape.name} has no experts", "leave --ep out")
        chosen = max(tp, ep) if plan.tp or plan.ep else smallest(one, devices)
        group = replace(one, gpus=chosen, ep=ep)
    if pp > shape.layers:
        raise HarnessError(f"--pp {pp}: {shape.name} has {shape.layers:.0f} layers", "give at most as many stages")
    if shape.heads % tp:
        what = f"--tp {tp}: {shape.name} has {shape.heads:.0f} attention heads, which it does not divide"
        raise HarnessError(what, "give a divisor of them")
    if shape.experts and shape.experts % group.ep:
        raise HarnessError(f"--ep {group.ep}: {shape.name} has {shape.experts:.0f} experts", "give a divisor of it")
    if group.gpus > device.domain:
        what = f"a group of {group.gpus} GPUs, but fast links join {device.domain} {device.name}"
        raise HarnessError(what, f"use at most {device.domain} a group; --pp adds stages, more --devices add copies")
    size = group.gpus * pp
    copies = dp if not shape.experts and devices is None else (devices or size) // size
    if copies < 1 or (devices or size) % size:
        fits = size * max(1, (devices or size) // size)
        raise HarnessError(f"{devices} GPUs are not whole groups of {size}", f"use --devices {fits} or {fits + size}")
    return replace(group, batch=max(1.0, plan.batch / copies), prefill_gpus=plan.prefill_gpus), copies


def smallest(one: Serving, devices: int | None) -> int:
    """GPUs of the smallest group that holds the model and one sequence, and divides the devices."""
    sizes = sizes_that_hold(one)
    if not sizes:
        check_fits(replace(one, gpus=min(one.gpu.domain, devices or one.gpu.domain)))
    whole = [n for n in sizes if devices is None or devices % (n * one.pp) == 0]
    if not whole:
        check_fits(replace(one, gpus=min(devices or 1, one.gpu.domain)))
        return min(devices or 1, one.gpu.domain)
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
        count = s.gpus * s.pp + s.prefill_gpus
        found.append(Prediction(
            s, replicas, tpot, ttft, each * count / s.batch, watts * each * count / s.batch,
            memory_bytes(s), largest_batch(s) * replicas, guesses_of(s),
        ))  # fmt: skip
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


def guesses_of(s: Serving) -> tuple[str, ...]:
    """What of a serving point no measured point covers, in words."""
    fit = pooled.fitted("time")
    level = pooled.levels_of(s)
    words = level | {"model": s.model.name}
    notes = [r["guess"].format(**words) for r in GUESSES if (r["block"], level[r["key"]]) not in fit.places]
    if level["model"] != s.model.name:
        notes.append(f"{s.model.name} is taken as {level['model']}, which differs in weights alone")
    if s.pp > 1:
        notes.append("no point has pipeline stages")
    if s.input + s.output > 10_000:
        notes.append("no point has more than 10,000 tokens a request")
    if ("gpu rest", s.gpu.name) not in pooled.fitted("power").places:
        notes.append(f"no energy was measured on {s.gpu.name}")
    return tuple(notes)
