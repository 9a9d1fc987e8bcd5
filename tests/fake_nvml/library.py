"""Builds the library, writes its scripts, and knows the truth in closed form, apart from the C code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import TypeAdapter

from harness.model import MeterInfo

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def build(directory: Path, *macros: str) -> Path:
    """Compile the library into a directory, which is then what LD_LIBRARY_PATH has to name.

    With the macro NO_FIELDS it has no nvmlDeviceGetFieldValues, like an old driver's.
    """
    target = directory / "libnvidia-ml.so.1"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    command += [f"-D{macro}" for macro in macros] + ["-Wno-unused-function"] * bool(macros)
    subprocess.run([*command, "-o", str(target), str(HERE / "fake_nvml.c"), "-lm"], check=True)
    return directory


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that holds the compiled library."""
    return build(tmp_path_factory.mktemp("nvml"))


def environment(library: Path, script: str, *, origin_s: float | None = None) -> dict[str, str]:
    """Variables under which a process sees the scripted GPUs; t = 0 is now, or `origin_s` on CLOCK_MONOTONIC."""
    origin_s = time.monotonic() if origin_s is None else origin_s
    path = library / f"script-{time.monotonic_ns()}"
    path.write_text(f"origin {origin_s}\n{script}\n")
    return {
        **{name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"},
        "LD_LIBRARY_PATH": str(library),
        "FAKE_NVML": str(path),
        "XDG_CACHE_HOME": str(path.parent / f"{path.name}.cache"),
        "PYTHONPATH": str(ROOT),
    }


def simulate(
    library: Path, script: str, *, seconds: float, variables: Mapping[str, str] | None = None, **options: Any
) -> dict[str, Any]:
    """What the NVML reader sees of scripted GPUs in seconds of a virtual clock: `info`, `rows`, `differences`."""
    done = subprocess.run(
        [sys.executable, str(HERE / "simulate.py")],
        input=json.dumps({"seconds": seconds, **options}),
        env={**environment(library, f"clock virtual\n{script}"), **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer | {"info": TypeAdapter(MeterInfo).validate_python(answer["info"])}


@dataclass(frozen=True)
class Wave:
    """Stepwise power that repeats (or, with `length_s` None, holds its last value), and its integral."""

    script: str
    steps: tuple[tuple[float, float], ...]
    """(seconds, watts), one after the other."""
    repeats: bool = True

    def joules(self, t: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Energy used since t = 0.

        >>> Wave("", ((0.5, 100.0), (0.5, 300.0))).joules([0.25, 1.0, 10.75]).tolist()
        [25.0, 200.0, 2125.0]
        """
        t = np.asarray(t, float)
        seconds, watts = np.array(self.steps).T
        edge = np.concatenate([[0.0], np.cumsum(seconds)])
        energy = np.concatenate([[0.0], np.cumsum(seconds * watts)])
        if not self.repeats:
            beyond = np.maximum(t - edge[-1], 0) * watts[-1]
            return np.asarray(np.interp(t, edge, energy) + beyond)
        turns, rest = np.divmod(t, edge[-1])
        return np.asarray(turns * energy[-1] + np.interp(rest, edge, energy))


def steps(*pieces: tuple[float, float]) -> Wave:
    """A wave of (seconds, watts) pieces, again and again."""
    return Wave("wave steps " + " ".join(f"{s} {w}" for s, w in pieces), pieces)


def burst(idle_w: float, peak_w: float, start_s: float, length_s: float) -> Wave:
    pieces = ((start_s, idle_w), (length_s, peak_w), (1.0, idle_w))
    return Wave(f"wave burst {idle_w} {peak_w} {start_s} {length_s}", pieces, repeats=False)


WAVES: Mapping[str, Wave] = {
    "constant": steps((1.0, 300.0)),
    "square 100 ms": steps((0.05, 400.0), (0.05, 100.0)),
    "square 1 s": steps((0.5, 400.0), (0.5, 100.0)),
    "prefill/decode": steps((0.12, 390.0), (0.61, 240.0), (0.07, 130.0)),
    "single burst": burst(60.0, 400.0, 40.0, 0.7),
}


def serving(seed: int, length_s: float = 20.0) -> Wave:
    """Continuous batching: steps of decoding at about 560 W with a dip before each, and prefills at 690 W between."""
    rng = np.random.default_rng(seed)
    pieces: list[tuple[float, float]] = []
    until_s = 0.0
    while until_s < length_s:
        prefill = rng.random() < 0.15
        step = (rng.uniform(0.02, 0.06), 690.0) if prefill else (rng.uniform(0.012, 0.02), rng.normal(560, 25))
        pieces += [(0.002, 350.0), (round(step[0], 6), round(step[1], 3))]
        until_s += 0.002 + step[0]
    return steps(*pieces)


H100_LOADS: Mapping[str, Wave] = {
    "constant": steps((1.0, 600.0)),
    "serving": serving(1),
    "prefill/decode": steps((0.12, 690.0), (0.61, 430.0), (0.07, 230.0)),
    "square 100 ms": steps((0.05, 690.0), (0.05, 130.0)),
    "square 102 ms": steps((0.051, 690.0), (0.051, 130.0)),
}
"""Loads of the profile h100."""


def sampled_windows(
    rng: np.random.Generator, name: str, lengths_s: Sequence[float], each: int
) -> list[tuple[float, float, float]]:
    """Windows as (nominal length, start, end) of random phase, and random length within 20% of nominal.

    Those of the burst hold some of it, or there would be nothing to tell.
    """
    windows = []
    for nominal in lengths_s:
        for _ in range(each):
            length = nominal * rng.uniform(0.8, 1.2)
            start = rng.uniform(40.1 - length, 40.6) if name == "single burst" else rng.uniform(3.5, 5.5)
            windows.append((nominal, max(3.5, start), max(3.5, start) + length))
    return windows
