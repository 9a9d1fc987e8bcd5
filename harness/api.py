"""For notebooks and scripts: measure, load, price and compare, as pandas DataFrames, with the functions of the verbs.

>>> import tempfile
>>> from harness import api
>>> root = tempfile.mkdtemp()
>>> name = api.measure("smoke", root, {"engine.name": "simulated", "requests.count": 8})
>>> api.runs(root, "workload=smoke")[["state", "requests.completed"]].to_numpy().tolist()
[['complete', 8.0]]
>>> len(api.requests(name, root))  # with the first wave of 4 users, which is load only
12
>>> costs = api.cost([name], root)
>>> costs[costs["name"] == "usd_per_query"][["unit", "status"]].to_numpy().tolist()
[['USD/query', 'simulated']]

Tables have one long form, a row for each cell (`harness.report.formats.COLUMNS`), in SI units; a missing value is NA,
with its `reason`. Mistakes raise `harness.errors.HarnessError`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis import index
from harness.analysis.summary import load
from harness.config import overrides as values
from harness.cost.pricing import explained, price_run
from harness.facts.appraisal import appraise
from harness.files import results_root
from harness.measure import run as measuring
from harness.model import Summary
from harness.predict.predict import PLAN, Plan
from harness.predict.priced import priced
from harness.report.cost import run_cost_tables
from harness.report.facts import compare_tables, full_tables
from harness.report.formats import long_form
from harness.report.predict import prediction_tables
from harness.store.directory import find_run
from harness.store.run import Run, read_run
from harness.workload.library import read_workload

Root = str | Path
Overrides = Mapping[str, Any] | Sequence[str]
"""Values by dotted key, or `KEY=VALUE` words as `--set` takes them."""
RESULTS = "results"


def measure(
    workload: str,
    root: Root = RESULTS,
    overrides: Overrides = (),
    meters: Sequence[str] = (),
    gpus: Sequence[str] | None = None,
) -> str:
    """Measure a workload (a shipped name or a file) with these overrides; returns the name of its run under `root`.

    `gpus` names the engine's GPUs, by index or UUID, where they cannot be seen.
    """
    spec = read_workload(workload, values(overrides))
    return measuring.run(spec, results_root(root), lambda _: None, meters, gpus=gpus).name


def runs(root: Root = RESULTS, where: str | None = None) -> pd.DataFrame:
    """A row for each run: its conditions, then the value of every figure (`harness.analysis.index.runs`)."""
    return index.runs(results_root(root), where)


def figures(root: Root = RESULTS, where: str | None = None) -> pd.DataFrame:
    """A row for each figure of each run, with unit, interval, status and count (`harness.analysis.index.figures`)."""
    return index.figures(results_root(root), where)


def requests(run: str, root: Root = RESULTS) -> pd.DataFrame:
    """A row for each request: the columns of `harness.model.Record`, times in seconds since the load began.

    `arrival_s` and `arrival_tokens` hold a list in each row.
    """
    return _read(run, root).requests.astype({"arrival_s": object, "arrival_tokens": object})


def power(run: str, root: Root = RESULTS) -> pd.DataFrame:
    """A row for each reading: the columns of `harness.model.PowerSample`; empty if no meter was read."""
    return _read(run, root).power


def cost(
    runs: Sequence[str], root: Root = RESULTS, scenario: str | None = None, overrides: Overrides = ()
) -> pd.DataFrame:
    """The cost of each run under a scenario (None: that of its workload), as `harness cost` prints it."""
    own = [price_run(*_load(name, root), scenario, values(overrides)) for name in runs]
    return long_form(run_cost_tables([explained(own[0])] if len(own) == 1 else own))


def compare(
    runs: Sequence[str] = (),
    root: Root = RESULTS,
    scenario: str | None = None,
    provider: str = "openai",
    full: bool = False,
) -> pd.DataFrame:
    """The reported inference bill beside revenue, measurement and power, as `harness compare` prints them.

    Large published GPU models stand in if no run is evidence. `full`: every comparison too.
    """
    own = [price_run(*_load(name, root), scenario) for name in runs]
    appraisal = appraise(own, provider=provider)
    return long_form(full_tables(appraisal) if full else compare_tables(appraisal))


def predict(
    model: str, gpus: str | Sequence[str], plan: Plan = PLAN, scenario: str = "on-demand", overrides: Overrides = ()
) -> pd.DataFrame:
    """The prediction for a model on GPUs, as `harness predict --full` prints it; column `gpu` names the GPU."""
    found = []
    for gpu in [gpus] if isinstance(gpus, str) else gpus:
        each = priced(model, gpu, plan, scenario, values(overrides))
        found.append(long_form(prediction_tables(each, full=True)).assign(gpu=gpu))
    return pd.concat(found, ignore_index=True)


def _load(run: str, root: Root) -> tuple[Run, Summary]:
    return load(find_run(run, results_root(root)))


def _read(run: str, root: Root) -> Run:
    return read_run(find_run(run, results_root(root)))
