"""The verbs and the types of their options; data/options.csv has what --help says of each option.

The function of a verb's name in the named module does it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from harness.cli.app import Verb
from harness.files import results_root

RESULTS = Path("results")
STORE: dict[str, Any] = {
    "envvar": "HARNESS_RESULTS", "parser": results_root, "metavar": "DIR", "help": "Directory of the runs."
}  # fmt: skip
Root = Annotated[Path, typer.Option("--root", **STORE)]
Out = Annotated[Path, typer.Option("--root", "--out", **STORE)]
ChartFormat = Literal["svg", "png", "pdf", "html"]


class Run(Verb, module="measure"):
    """Measure a workload, store the run and print its answer.

    --users 1,8,64 measures a run for each: of at least 5 requests a user and at most 60 s, unless --requests or
    --duration is given.

    With --precision the run ends as soon as the figures are that precise, or at the workload's count or duration.
    A server that runs already gets new prompts in every run, so that its prefix cache does not know them.
    """

    workload: str
    engine: str | None = None
    model: str | None = None
    serve: bool = False
    url: str | None = None
    users: str | None = None
    rate: float | None = None
    requests: int | None = None
    duration: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    set_: list[str] | None = None
    out: Out = RESULTS
    scenario: str | None = None
    meter: list[str] | None = None
    gpus: str | None = None
    assume_power: float | None = None
    host_power: float | None = None
    pue: float | None = None
    clients: int | None = None
    ray: str | None = None
    precise: list[str] | None = None
    repeat: int = 1
    seed: int | None = None
    reset_cache: bool = False
    give_up: str | None = None
    timeout: str | None = None
    dry_run: bool = False
    on_finish: str | None = None
    quiet: bool = False


class Sweep(Verb, module="measure"):
    """Measure every point of a grid, or search for the highest load; each point is a run."""

    file: Path
    root: Root = RESULTS
    resume: bool = False
    dry_run: bool = False
    budget: float | None = None
    jobs: int | None = None
    meter: list[str] | None = None
    gpus: str | None = None
    cooldown: float = 0.0
    ray: str | None = None
    quiet: bool = False


class Ab(Verb, module="measure"):
    """Measure two servers, engine versions or settings in turns, and judge B against A as `diff` does."""

    a: str
    b: str
    workload: str = "chat"
    repeat: int = 5
    set_: list[str] | None = None
    root: Root = RESULTS
    meter: list[str] | None = None
    fail_on: list[str] | None = None
    least: str = "1%"
    force: bool = False
    full: bool = False
    quiet: bool = False


class Rerun(Verb, module="measure"):
    """Measure a stored run again under the same conditions, and compare the two runs.

    Refuses a machine that differs from that of the run; other differences, such as versions, are printed first.
    """

    reference: str = "latest"
    root: Root = RESULTS
    force: bool = False


class Doctor(Verb, module="measure"):
    """Examine this machine: what can be measured, what would make a run doubtful, and how to fix it.

    Exits with 1 only if no run can be stored.
    """

    root: Root = RESULTS


class Report(Verb, module="results"):
    """Print the answer of a run, or of several, on one screen; --full prints every table, as other formats do.

    A directory of runs, or a sweep, stands for its runs; --where chooses runs of the root. With several runs --table
    NAME prints a table of single runs for each run. HTML is one file with a what-if; it needs no network.
    """

    references: list[str] | None = None
    root: Root = RESULTS
    scenario: str | None = None
    where: str | None = None
    full: bool = False
    table: list[str] | None = None
    charts: Path | None = None
    chart_format: ChartFormat = "svg"
    requests_csv: Path | None = None
    trend: str | None = None


class Check(Verb, module="results"):
    """Print the findings of a run, whether it keeps limits, and what a wanted precision needs.

    Exits with 1 if a finding is serious or a limit is not kept, and with 3 if the run did not complete.
    """

    reference: str = "latest"
    root: Root = RESULTS
    precise: list[str] | None = None
    fail_on: list[str] | None = None
    accept: list[str] | None = None
    scenario: str | None = None
    xml: Path | None = None


class Diff(Verb, module="results"):
    """Compare runs with runs: gates, then what improved or regressed, as ratios with intervals; --full has the rest.

    The points of a sweep are compared with its first point.
    """

    base: str
    new: str | None = None
    root: Root = RESULTS
    fail_on: list[str] | None = None
    least: str = "1%"
    between: str | None = None
    force: bool = False
    full: bool = False
    xml: Path | None = None


class List(Verb, module="lists"):
    """List workloads, runs, engines, models or scenarios."""

    what: Literal["workloads", "runs", "engines", "models", "scenarios"]
    root: Root = RESULTS
    where: str | None = None


class Export(Verb, module="lists", prints=False):
    """Write the figures of all runs, or of those that meet --where, to one file with a row for each figure."""

    out: Path
    root: Root = RESULTS
    where: str | None = None


class Import(Verb, module="lists", prints=False):
    """Store the results of other tools as runs: vLLM's and SGLang's benchmarks, guidellm, aiperf, LoadGen…"""

    files: list[Path]
    root: Root = RESULTS
    gpu: str | None = None
    gpus: int | None = None


class Schema(Verb, module="lists", prints=False):
    """Print the JSON Schema of a workload, sweep, scenario, fact, or of run.json."""

    name: Literal["workload", "sweep", "scenario", "fact", "run"]


class Cost(Verb, module="money"):
    """Price runs under a scenario: each run, input and output separately, at an objective, or a fleet over a day."""

    references: list[str] | None = None
    root: Root = RESULTS
    scenario: str | None = None
    set_: list[str] | None = None
    split: bool = False
    objective: str | None = None
    fleet: str | None = None
    zone: str | None = None


class Predict(Verb, module="money"):
    """Predict speed, energy and cost of a model on GPUs that were not measured, from published measurements."""

    model: str | None = None
    gpu: str = "H100"
    devices: int | None = None
    precision: str | None = None
    batch: float = 64
    tokens: str = "500:500"
    tp: int | None = None
    ep: int | None = None
    pp: int | None = None
    dp: int | None = None
    prefill_gpus: int = 0
    engine: str = "vllm"
    tpot: str = "0.05"
    ttft: str = "5"
    scenario: str = "on-demand"
    set_: list[str] | None = None
    reference: str | None = None
    root: Root = RESULTS
    market: float | None = None
    zone: str | None = None
    charts: Path | None = None
    chart_format: ChartFormat = "svg"
    validate: bool = False
    full: bool = False


class Compare(Verb, module="money"):
    """Is the reported inference bill plausible, and what would have to be true? Revenue, your measurement, power.

    Large published GPU models stand in if no run is evidence. --set changes an assumption of the comparison
    (chat_share=0.3:0.6) or an input of the scenario (serving.utilisation=0.5).
    """

    references: list[str] | None = None
    root: Root = RESULTS
    scenario: str | None = None
    provider: str = "openai"
    spend: float | None = None
    full: bool = False
    table: list[str] | None = None
    explain: str | None = None
    set_: list[str] | None = None
    file: list[Path] | None = None
    force: bool = False
    charts: Path | None = None
    chart_format: ChartFormat = "svg"


class Facts(Verb, module="money"):
    """List the published figures, or print one with its source and quote."""

    fact: str | None = None
    entity: str | None = None
    metric: str | None = None
    period: str | None = None
    status: str | None = None
    layer: str | None = None
    file: list[Path] | None = None
