"""GPUs and drivers that mislead, played by the scripted NVML library, on its virtual clock or by a whole run."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fake_nvml import library
from gauntlet.trap import Load, Stand, Trap, Truth, Wrong

FAULT_S = 16
"""Of the virtual clock, in the middle of the window from 10 to 25 s."""


@functools.cache
def built() -> Path:
    return library.build(Path(tempfile.mkdtemp(prefix="gauntlet-nvml-")))


@contextlib.contextmanager
def virtual(script: str) -> Iterator[Stand]:
    yield Stand(script=script, environment={"LD_LIBRARY_PATH": str(built())})


@contextlib.contextmanager
def real(script: str, **variables: str) -> Iterator[Stand]:
    seen = library.environment(built(), script)
    names = ("LD_LIBRARY_PATH", "FAKE_NVML", "XDG_CACHE_HOME")
    yield Stand(
        environment={**{name: seen[name] for name in names}, **variables}, options=("--meter", "nvml:probe_s=0.3")
    )


def trap(
    name: str, behaviour: str, why: str, script: str, value: float | None, *falls: str | Wrong, **more: Any
) -> Trap:
    truths = (Truth(str(more.pop("figure", "gpu_power_w")), value, within=0.03),)
    return Trap(
        name=name, kind="meter", behaviour=behaviour, why=why, source=str(more.pop("source", "docs/energy.md")),
        stand=lambda: virtual(script), truths=truths, falls=falls, **more,
    )  # fmt: skip


GPUS = "gpus 8\nlimit 700\ndefault_limit 700\ngpu 0 wave constant 600\n" + "".join(
    f"gpu {i} wave constant 70\n" for i in range(1, 8)
)
RUN = Load(requests=40, users=4)
TRAPS = (
    trap(
        "gpu-constant",
        "a GPU of 300 W whose counter moves each 0.1 s",
        "All other GPUs are compared with this one.",
        "wave constant 300",
        300,
        Wrong("the limit for the power", {"gpu_power_w": 400}),
    ),
    trap(
        "gpu-h100",
        "an H100: 130 and 690 W in turn, each 51 ms; its newest power is the mean of 25 ms each 100.46 ms",
        "A mean of power readings is off by their beat with the load.",
        "seed 3\nprofile h100\nlatency 0.004\nwave square 130 690 0.102",
        410,
        "mean-of-readings",
        source="NVML on an H100, driver 580 (docs/energy.md)",
    ),
    trap(
        "gpu-slow-calls",
        "each call of the driver takes 60 ms",
        "Readings that are stamped at the end of a call are late.",
        "latency 0.06\nwave steps 12 100 20 500",
        2 * 100 + 13 * 500,
        Wrong("the last reading for the whole", {"energy_j.gpu": 15 * 500}),
        figure="energy_j.gpu",
    ),
    trap(
        "gpu-counter-reset",
        "the energy counter starts anew in the middle of the window",
        "The difference of two readings is negative, or that of half of the time.",
        f"wave constant 300\nfault reset {FAULT_S}",
        None,
        "counter-ends",
        must_say=("counter-backwards",),
        source="a driver that was loaded again",
    ),
    trap(
        "gpu-counter-wrapped",
        "the counter has 32 bits of millijoules, and begins again in the middle of the window",
        "The difference of two readings is minus 4 MJ.",
        f"base 4295000\nwave constant 300\nfault wrap {FAULT_S}",
        None,
        "counter-ends",
        must_say=("counter-backwards",),
        source="counters of 32 bits",
    ),
    trap(
        "gpu-counter-stuck",
        "the counter stands still from the middle of the window on",
        "Half of the energy is missing.",
        f"wave constant 300\nfault stuck {FAULT_S}",
        None,
        "counter-ends",
        must_say=("counter-stuck",),
        source="https://github.com/NVIDIA/dcgm-exporter/issues",
    ),
    trap(
        "gpu-lost",
        "the GPU falls off the bus in the middle of the window",
        "The energy until then passes for the whole.",
        f"wave constant 300\nfault lost {FAULT_S}",
        None,
        "counter-ends",
        must_say=("gpu-lost",),
        source="Xid 79",
    ),
    trap(
        "gpu-counter-contradicts",
        "the counter counts half as much again as the power says",
        "One of the two is wrong, and nobody can say which.",
        "wave constant 300\ncounter_gain 1.5",
        None,
        "counter-ends",
        must_say=("counter-disagrees",),
    ),
    trap(
        "gpu-counter-contradicts-under-load",
        "under load alone, 130 and 690 W in turn, each 1.5 s, the counter counts a fifth more than the power says",
        "Idle, the two agree; under load their difference hides in the swings of power.",
        "wave square 130 690 3\ncounter_gain 1.2\ngain_from 0",
        None,
        "counter-ends",
        must_say=("counter-disagrees",),
    ),
    trap(
        "gpu-units",
        "counter and power are a thousand times too small, as if in other units",
        "Two readings that agree are both wrong.",
        "wave constant 300\ngain 0.001",
        None,
        "counter-ends",
        must_say=("counter-disagrees",),
        source="drivers of other units",
    ),
    trap(
        "gpu-throttled",
        "heat holds the GPU back in the middle of the window",
        "The speed is that of a hot GPU, and no other run will have it.",
        f"wave constant 300\nfault throttle {FAULT_S} 96",
        300,
        "silent",
        must_say=("throttled",),
        source="NVML's clock event reasons",
    ),
    Trap(
        name="gpu-others-idle",
        kind="meter",
        behaviour="one of eight GPUs serves, at 600 W; the others idle at 70 W",
        why="Idle GPUs would cost 490 W more.",
        source="a server of eight GPUs with an engine on one",
        stand=lambda: real(GPUS),
        load=RUN,
        truths=(Truth("gpu_power_w", 600, within=0.05),),
        falls=(Wrong("all GPUs of the machine", {"gpu_power_w": 1090}),),
    ),
    Trap(
        name="gpu-named-twice",
        kind="meter",
        behaviour="CUDA_VISIBLE_DEVICES names a GPU twice, so that CUDA has none",
        why="A tool that reads the list in its own way charges a GPU that the engine cannot use.",
        source="CUDA C++ Programming Guide, CUDA_VISIBLE_DEVICES",
        stand=lambda: real(GPUS, CUDA_VISIBLE_DEVICES="1,1"),
        load=RUN,
        truths=(Truth("gpu_power_w", None),),
        says=("refused",),
        falls=(Wrong("the GPU of the list", {"gpu_power_w": 70}),),
    ),
)
