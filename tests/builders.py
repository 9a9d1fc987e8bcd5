"""Requests and stored runs that several test modules build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from harness.model import MeterDevice, MeterInfo, PowerSample, Record
from harness.store import rows
from harness.store.directory import RunWriter
from harness.store.run import Run
from harness.store.run_file import Anchor, RunFile, Timings

KNOWN = """
name: known
engine: {name: simulated, simulated: {ttft_s: 0.03, itl_s: 0.002}}
requests: {count: 12, input_tokens: 7, output_tokens: 5}
load: {shape: closed, users: 4, start: burst}
warmup: {requests: 1}
"""
"""A workload of a fraction of a second on the simulated engine."""
ENDLESS = ("requests.count=null", "load.duration_s=600")
"""What makes it last until it is ended."""


def frame_of(records: Sequence[Record]) -> pd.DataFrame:
    """Records in the form of `Run.requests`."""
    return rows.frame([pa.Table.from_pylist(list(map(asdict, records)), schema=rows.REQUESTS)])


def by_hand(index: int = 0, **changes: object) -> Record:
    """Due at 1, sent at 1.5, tokens at 2, 2.25 and 3, over at 3.25."""
    plain = Record(index, 1.0, 1.5, 3.25, (2.0, 2.25, 3.0), (1, 1, 1), 10, 3, 10, 3, 0, "length")
    return replace(plain, **changes)  # type: ignore[arg-type]


def record(index: int, **changes: object) -> Record:
    due = index * 0.01
    arrival_s = tuple(due + 0.1 + 0.001 * (index % 7) + 0.01 * k for k in range(4))
    plain = Record(index, due, due, arrival_s[-1], arrival_s, (1,) * 4, 10, 4, 10, 4, 0, "length")
    return replace(plain, **changes)  # type: ignore[arg-type]


WORKLOAD: dict[str, Any] = {
    "name": "demo",
    "description": "a demonstration",
    "model": "m",
    "requests": {"count": 40, "input_tokens": {"distribution": "fixed", "tokens": 10}, "trace": None},
    "load": {"shape": "poisson", "rate_per_s": 100.0, "users": None},
    "warmup": {"requests": 1},
    "objectives": {"ttft_s": 0.2, "e2e_s": None},
}
CPU = {
    "engine": "vllm", "version": "0.11", "device": "cpu", "device_count": 1, "options": {"dtype": "float32"},
    "model": {
        "asked": "m", "architecture": "LlamaForCausalLM", "parameters": 134515008, "active_parameters": 134515008,
        "precision": "float32", "stored_precision": "Q4_1",
    },
}  # fmt: skip
GPU = {
    "engine": "vllm", "version": "0.11", "device": "cuda", "device_count": 1, "options": {"dtype": "bfloat16"},
    "model": {
        "asked": "Qwen/Qwen3-8B", "source": "Qwen/Qwen3-8B", "architecture": "Qwen3ForCausalLM", "parameters": 8.19e9,
        "active_parameters": 8.19e9, "precision": "bfloat16", "stored_precision": "bfloat16", "weights_sha256": None,
    },
}  # fmt: skip


def run_file(**changes: Any) -> RunFile:
    """run.json of a run on a CPU, with these fields changed."""
    plain: dict[str, Any] = {
        "id": "20261121T120000Z-m-demo",
        "state": "complete",
        "created_utc": datetime(2026, 11, 21, 12, tzinfo=UTC),
        "pid": 1,
        "workload": WORKLOAD,
        "engine_asked": "vllm",
        "environment": {
            "cpu": {"model": "Epyc", "cores_usable": 2},
            "gpus": [],
            "packages": {"vllm": "0.11"},
            "git": None,
        },
        "engine": CPU,
        "timings": Timings(engine_start_s=12.3456, measured_s=1.0),
    }
    return RunFile.model_validate(plain | changes)


def a_run(*records: Record, **changes: Any) -> Run:
    """A run of `run_file` that has these requests, stored nowhere."""
    return Run(Path(), run_file(**changes), frame_of(list(records)))


def changed(run: Run, **changes: Any) -> Run:
    """A stored run with these fields of run.json changed."""
    directory = run.directory.with_name(changes["id"]) if "id" in changes and run.directory.name else run.directory
    return Run(directory, RunFile.model_validate(dict(run.file) | changes), run.requests)


def stored(root: Path, users: int = 8) -> Path:
    """A run of 320 requests, `users` at a time, on an H100 that draws 500 W, its counter read ten times a second."""
    gpu = MeterDevice("0", "gpu", "NVIDIA H100", period_s=0.1, quantum_j=0.001)
    meter = MeterInfo("nvml", "measured", (gpu,), "580")
    file = run_file(
        id=f"20261121T120000Z-qwen3-8b-{users}",
        state="running",
        engine=GPU,
        environment={"gpus": [{"name": "NVIDIA H100 80GB HBM3"}], "packages": {"vllm": "0.11"}},
        meters=[meter],
        declared={"host_w": 200.0, "pue": 1.2},
        clock=Anchor(utc=datetime(2026, 11, 21, 12, tzinfo=UTC), monotonic_s=100.0),
        workload=WORKLOAD | {"load": {"shape": "closed", "users": users}, "requests": {"count": 320}},
    )
    writer = RunWriter(root, file)
    rng = np.random.default_rng(0)
    for index in range(320):
        due = 5.0 * (index // users)
        wait = 0.1 + 0.001 * users * rng.uniform(1, 2)
        arrivals = due + wait + np.cumsum(rng.uniform(0.009, 0.011, 50)) * (1 + users / 40)
        times = tuple(arrivals.round(6).tolist())
        failed = {"error": "rejected", "error_text": "a|b_c"} if index == 319 else {}
        tokens = {"input_asked": 300, "input_tokens": 300, "output_asked": 50, "output_tokens": 50}
        came = {"end_s": times[-1], "arrival_s": times, "arrival_tokens": (1,) * 50}
        writer.add(record(index, scheduled_s=due, sent_s=due, **tokens, **came, **failed))
    seconds = np.arange(-1, 5 * 320 / users + 6, 0.1)
    for t in map(float, seconds.round(3)):
        writer.add(PowerSample(100 + t - 1e-4, 100 + t, "0", "gpu", 1e4 + 500 * t, power_w=505.0, average_w=495.0))
    writer.finish("complete")
    return writer.directory


TRUE = np.array([1e-4, 5e-3, 2e-6, 0.02])


MIXES = [(2000, 20), (100, 400), (800, 150)]
"""Prefill-heavy, decode-heavy and mixed: (input, output) tokens of a request."""


def run_of(
    tokens_in: int, tokens_out: int, noise: float = 0.01, blocks: int = 12, seed: int = 0
) -> NDArray[np.float64]:
    rng = np.random.default_rng([seed, tokens_in, tokens_out])
    requests = rng.integers(8, 16, blocks).astype(float)
    per_request = np.array([tokens_in, tokens_out, tokens_out * (tokens_in + tokens_out / 2), 1.0])
    # Block edges cut requests, so the terms do not move quite together.
    counts = requests[:, None] * per_request * rng.normal(1, 0.1, (blocks, 4))
    return np.column_stack([counts, counts @ TRUE * rng.normal(1, noise, blocks)])
