"""The driver of this harness: its command line measures a trap's stand, and its summary answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from gauntlet.trap import Answer, Load, Stand, Trap
from places import ROOT

from harness.analysis.summary import load as load_run
from harness.store.directory import list_runs

LIMIT_S = 120
WRONG_USE = 2
"""Exit code of a refusal."""


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


def answers(trap: Trap, stand: Stand, scratch: Path) -> Iterator[Answer]:
    """What the harness reports of the stand, once for each of the load's runs."""
    (scratch / "trap.yaml").write_text(workload(trap.load))
    words = ["run", "trap.yaml", *trap.options, *stand.options]
    if stand.file is not None:
        words = ["import", str(stand.file), *trap.options]
    elif stand.url is None:
        words += ["--engine", "simulated"]
    else:
        options = {"engine.base_url": stand.url, "engine.endpoint": trap.load.endpoint}
        words += ["--engine", "openai", *(word for key, x in options.items() for word in ("--set", f"{key}={x}"))]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **stand.environment}
    for _ in range(trap.load.runs):
        command = [sys.executable, "-m", "harness", *words, "--out" if stand.file is None else "--root", "results"]
        done = subprocess.run(
            command, cwd=scratch, env=variables, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        if done.returncode == WRONG_USE:
            yield Answer({}, refused=done.stderr.strip())
            continue
        newest = list(list_runs(scratch / "results"))[-1][0]
        summary = load_run(newest)[1]
        figures = {figure.name: figure.value for figure in summary.figures}
        yield Answer(figures, frozenset(finding.code for finding in summary.findings))
