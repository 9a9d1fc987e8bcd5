"""The driver of this harness: its command line measures a trap's stand, and its summary answers."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml
from builders import frame_of
from fake_nvml.library import simulate
from gauntlet.trap import Answer, Load, Stand, Trap
from places import ROOT

LIMIT_S = 120
VIRTUAL_S, WINDOW_S = 30.0, (10.0, 25.0)
"""How long scripted GPUs are read, and the window of which figures are made."""
WRONG_USE = 2
"""Exit code of a refusal."""
IDLE_S = 0.3
"""Metered spans without load, 3 s in a run of a user."""
FORKS = multiprocessing.get_context("forkserver")
"""Each command is a process forked from one that has imported the harness, which takes longer than most traps."""
FORKS.set_forkserver_preload(
    [
        *("harness.cli", "harness.measure.sweep", "harness.measure.stop", "harness.engines.openai.server"),
        *("harness.report.answer", "harness.report.changes", "harness.report.document", "harness.report.text"),
        *("scipy.special", "scipy.fft"),
    ]
)


def workload(load: Load) -> str:
    """The load as a workload file of the harness."""
    shape = {"shape": "closed", "users": load.users} if load.rate_per_s is None else {"shape": load.arrivals}
    return yaml.safe_dump(
        {
            "description": "a trap's load",
            "requests": {
                "count": load.requests,
                "input_tokens": load.input_tokens,
                "output_tokens": load.output_tokens,
                "ignore_eos": load.ignore_eos,
            },
            "load": shape | ({} if load.rate_per_s is None else {"rate_per_s": load.rate_per_s}),
            "warmup": {"requests": 1},
        }
    )


def command(words: Sequence[str], directory: Path, variables: Mapping[str, str], core: int | None) -> None:
    """The harness's command line in this process, which ends with it; what it prints is in the file `printed`."""
    os.chdir(directory)
    if core is not None:
        os.sched_setaffinity(0, {core})
    os.environ.update(variables)
    if "LD_LIBRARY_PATH" in variables:  # this process has started already: it finds a loaded library by its name
        ctypes.CDLL(f"{variables['LD_LIBRARY_PATH']}/libnvidia-ml.so.1")
    printed = os.open("printed", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for output in (1, 2):
        os.dup2(printed, output)
    from harness.cli import main
    from harness.measure import power

    power.IDLE_S = IDLE_S
    sys.argv = ["harness", *words]
    main()


def metered(stand: Stand) -> Answer:
    """What the NVML reader and the analysis make of scripted GPUs, on the library's virtual clock."""
    from harness.analysis.energy import measure_energy

    assert stand.script is not None
    seen = simulate(Path(stand.environment["LD_LIBRARY_PATH"]), stand.script, seconds=VIRTUAL_S)
    power = pd.DataFrame(seen["rows"])
    energy = measure_energy(power, (seen["info"],), frame_of([]), *WINDOW_S)
    figures = {figure.name: figure.value for figure in energy.figures}
    return Answer(figures, frozenset(finding.code for finding in energy.findings), power=power)


def answers(trap: Trap, stand: Stand, scratch: Path) -> Iterator[Answer]:
    """What the harness reports of the stand, once for each of the load's runs."""
    if stand.script is not None:
        yield metered(stand)
        return
    from harness.analysis.summary import load as load_run
    from harness.store.directory import list_runs

    (scratch / "trap.yaml").write_text(workload(trap.load))
    words = ["run", "trap.yaml", *trap.options, *stand.options]
    if stand.file is not None:
        words = ["import", str(stand.file), *trap.options]
    elif stand.url is None:
        words += ["--engine", "simulated"]
    else:
        options = {"engine.base_url": stand.url, "engine.endpoint": trap.load.endpoint}
        words += ["--engine", "openai", *(word for key, x in options.items() for word in ("--set", f"{key}={x}"))]
    words += ["--out" if stand.file is None else "--root", "results"]
    variables = {"PYTHONPATH": str(ROOT), **stand.environment}
    for _ in range(trap.load.runs):
        done = FORKS.Process(target=command, args=(words, scratch, variables, stand.core))
        done.start()
        done.join(LIMIT_S)
        if done.exitcode is None:
            done.kill()
        text = (scratch / "printed").read_text()
        if done.exitcode == WRONG_USE:
            yield Answer({}, refused=text.strip())
            continue
        runs = list(list_runs(scratch / "results"))
        assert runs, f"no run was stored: {text}"
        newest = runs[-1][0]
        summary = load_run(newest)[1]
        figures = {figure.name: figure.value for figure in summary.figures}
        yield Answer(figures, frozenset(finding.code for finding in summary.findings), run=newest)
