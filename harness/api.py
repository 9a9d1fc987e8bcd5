"""For notebooks and scripts: measure, load, price and compare, as pandas DataFrames, with the functions of the verbs.

>>> import tempfile
>>> from harness import api
>>> root = tempfile.mkdtemp()
>>> name = api.measure("smoke", root, {"engine.name": "simulated", "requests.count": 8})
>>> api.runs(root, "workload=smoke")[["state", "requests.completed"]].to_numpy().tolist()
[['complete', 8.0]]
>>> found = api.requests(name, root)  # with the first wave of 4 users, which is load only
>>> len(found), found.attrs["units"]["tpot_s"]
(12, 's')
>>> costs = api.costs([name], root)
>>> costs[costs["name"] == "usd_per_query"][["unit", "status"]].to_numpy().tolist()
[['USD/query', 'simulated']]

Tables have one long form, a row for each cell (`harness.report.formats.COLUMNS`), in SI units; a missing value is NA,
with its `reason`. `attrs["units"]` of every frame has the unit of each figure or column that has one. Mistakes raise
`harness.errors.HarnessError`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis import index
from harness.analysis.diff import LEAST
from harness.analysis.gates import parse_gate
from harness.analysis.summary import Sweep, load
from harness.analysis.times import requests_of
from harness.config import overrides as values
from harness.cost.pricing import price_run
from harness.facts.appraisal import appraise
from harness.files import results_root
from harness.measure import run as measuring
from harness.measure.sweep import carry_out, read_plan
from harness.measure.workers import start_workers
from harness.predict.predict import PLAN, Plan
from harness.predict.priced import priced
from harness.report import document, run_charts
from harness.report.changes import difference
from harness.report.cost import run_cost_tables
from harness.report.facts import compare_tables, full_tables
from harness.report.formats import long_form
from harness.report.predict import prediction_tables
from harness.report.table import Table
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
    return measuring.run(spec, results_root(root), lambda _: None, measuring.Setup(meters, gpus)).name


def sweep(study: str | Path, root: Root = RESULTS, meters: Sequence[str] = ()) -> pd.DataFrame:
    """Measure the points of a study that are not stored yet; returns all of them, as `runs` does."""
    plan = read_plan(Path(study), results_root(root))
    with start_workers(None, 0 if plan.simulated else plan.gpus, None) as found:
        ended = carry_out(plan, found, lambda _: None, measuring.Setup(meters))
    every = runs(root)
    return every[every["run"].isin([done.run for done in ended.values()])]


def runs(root: Root = RESULTS, where: str | None = None) -> pd.DataFrame:
    """A row for each run: its conditions, then the value of every figure (`harness.analysis.index.runs`)."""
    found = index.runs(results_root(root), where)
    units = figures(root, where).dropna(subset="unit")
    return _with_units(found, dict(zip(units["figure"], units["unit"], strict=True)))


def figures(root: Root = RESULTS, where: str | None = None) -> pd.DataFrame:
    """A row for each figure of each run, with unit, interval, status and count (`harness.analysis.index.figures`)."""
    return index.figures(results_root(root), where)


def requests(run: str, root: Root = RESULTS) -> pd.DataFrame:
    """A row for each request: the columns of `harness.model.Record`, and its latencies ttft_s, tpot_s and e2e_s.

    Times are seconds since the load began. `arrival_s` and `arrival_tokens` hold a list in each row.
    """
    return requests_of(_read(run, root))


def power(run: str, root: Root = RESULTS) -> pd.DataFrame:
    """A row for each reading: the columns of `harness.model.PowerSample`; empty if no meter was read."""
    return _with_units(_read(run, root).power, {"after_s": "s", "before_s": "s", "power_w": "W", "energy_j": "J"})


def costs(
    runs: Sequence[str], root: Root = RESULTS, scenario: str | None = None, overrides: Overrides = ()
) -> pd.DataFrame:
    """The cost of each run under a scenario (None: that of its workload), as `harness cost` prints it."""
    own = [price_run(*each, scenario, values(overrides)) for each in _sweep(runs, root)]
    return _long(run_cost_tables(own))


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
    own = [price_run(*each, scenario) for each in _sweep(runs, root)]
    appraisal = appraise(own, provider=provider)
    return _long(full_tables(appraisal) if full else compare_tables(appraisal))


def diff(
    base: Sequence[str], new: Sequence[str], root: Root = RESULTS, fail_on: Sequence[str] = (), force: bool = False
) -> pd.DataFrame:
    """What changed from the runs of one side to those of the other, as `harness diff --full` prints it."""
    sides = [[_read(name, root) for name in side] for side in (base, new)]
    return _long(difference(sides[0], sides[1], [parse_gate(text) for text in fail_on], force, LEAST)[0])


def predict(
    model: str,
    gpus: str | Sequence[str],
    plan: Plan = PLAN,
    scenario: str = "on-demand",
    overrides: Overrides = (),
    cached: float | None = None,
) -> pd.DataFrame:
    """The prediction for a model on GPUs, as `harness predict --full` prints it; column `gpu` names the GPU.

    With `cached`, the share of the input that an API reads from its cache, also the list prices of APIs (`--market`).
    """
    found = []
    for gpu in [gpus] if isinstance(gpus, str) else gpus:
        each = priced(model, gpu, plan, scenario, values(overrides))
        found.append(_long(prediction_tables(each, full=True, cached=cached)).assign(gpu=gpu))
    return _with_units(pd.concat(found, ignore_index=True), found[0].attrs["units"])


@dataclass(frozen=True, slots=True)
class Report:
    """The report of runs: tables in long form, charts by name as Altair objects; a notebook shows its page."""

    tables: pd.DataFrame
    charts: dict[str, Any]
    page: str
    """HTML."""

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.page)}" style="width: 100%; height: 48rem; border: 0"></iframe>'


def report(runs: str | Sequence[str], root: Root = RESULTS, scenario: str | None = None) -> Report:
    """The report of a run or of several, as `harness report` makes it."""
    import altair as alt

    found = _sweep([runs] if isinstance(runs, str) else runs, root)
    tables = document.report(found, scenario)
    drawn = {each.name: alt.Chart.from_dict(each.spec) for each in run_charts.of_report(tables, found)}
    return Report(_long(tables), drawn, document.page_of(tables, found, scenario))


def _sweep(runs: Sequence[str], root: Root) -> Sweep:
    return [load(find_run(name, results_root(root))) for name in runs]


def _read(run: str, root: Root) -> Run:
    return read_run(find_run(run, results_root(root)))


def _long(tables: Iterable[Table]) -> pd.DataFrame:
    frame = long_form(list(tables))
    known = frame.dropna(subset=["name", "unit"])
    return _with_units(frame, dict(zip(known["name"], known["unit"], strict=True)))


def _with_units(frame: pd.DataFrame, units: Mapping[str, str]) -> pd.DataFrame:
    frame.attrs["units"] = dict(units)
    return frame
