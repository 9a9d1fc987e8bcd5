"""Verbs that measure."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import errors
from harness.cli import options
from harness.cli.app import SUFFIXES, Output, output, printing, show, show_answer, stored_run
from harness.cli.display import Display, about
from harness.cli.misuse import named
from harness.cli.results import judged
from harness.model import ENGINES

if TYPE_CHECKING:
    from harness.analysis.precision import Target
    from harness.analysis.summary import Sweep
    from harness.measure.run import Setup
    from harness.store.run import Run
    from harness.store.run_file import Environment
    from harness.workload.schema import Workload

OPTIONS = {
    "engine.name": "--engine", "engine.openai.base_url": "--url", "model": "--model", "scenario": "--scenario",
    "seed": "--seed", "give_up_s": "--give-up", "engine.openai.read_timeout_s": "--timeout",
    "load.rate_per_s": "--rate", "load.duration_s": "--duration",
    "load.users": "--users", "requests.count": "--requests", "requests.input_tokens": "--input-tokens",
    "requests.output_tokens": "--output-tokens",
}  # fmt: skip
"""Key of a workload -> the option of `run` that stands for it, which messages name."""
PER_USER, MOST_S = 5, 60
"""Of a run of several numbers of users: requests for each user of the most, and its longest duration."""


@printing
def run(
    workload: Annotated[
        str, typer.Argument(metavar="WORKLOAD", help="A workload file, or the name of a shipped workload.")
    ],
    engine: Annotated[str | None, typer.Option(help="auto, openai, vllm, transformers or simulated.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, directory, GGUF file, or short name.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Start the server: vllm, or that of engine.serve.")] = False,
    url: Annotated[str | None, typer.Option(help="A running server with OpenAI's interface: engine openai.")] = None,
    users: Annotated[str | None, typer.Option(metavar="N[,N]...", help="Users at a time; a run for each.")] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="Requests/s; Poisson instead of users.")
    ] = None,
    requests: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of requests.")] = None,
    duration: Annotated[str | None, typer.Option(help="Seconds, or 2 min; without --requests the only end.")] = None,
    input_tokens: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of each request.")] = None,
    output_tokens: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of each request.")] = None,
    set_: options.Set = None,
    out: options.Out = options.RESULTS,
    scenario: options.Scenario = None,
    meter: options.Meter = None,
    gpus: options.Gpus = None,
    assume_power: Annotated[float | None, typer.Option(metavar="WATTS", help="Assume this constant power.")] = None,
    host_power: Annotated[float | None, typer.Option(min=0, metavar="WATTS", help="Of the rest of the host.")] = None,
    pue: Annotated[float | None, typer.Option(metavar="X", min=1, help="Power usage effectiveness, site.")] = None,
    clients: Annotated[int | None, typer.Option(metavar="N", min=1, help="Client processes for a server.")] = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster for the clients, or auto.")] = None,
    precise: options.Precision = None,
    repeat: Annotated[int, typer.Option(metavar="N", min=1, help="Number of runs; an engine is started for each.")] = 1,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Its prompts, which a server may know.")] = None,
    reset_cache: Annotated[bool, typer.Option("--reset-cache", help="Empty a server's prefix cache first.")] = False,
    give_up: Annotated[
        str | None, typer.Option(metavar="30s", help="End a load that has no success for this time.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="10min", help="Fail a server's request without a token for this time.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be measured; store nothing.")] = False,
    on_finish: options.OnFinish = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure a workload, store the run and print its answer.

    --users 1,8,64 measures a run for each: of at least 5 requests a user and at most 60 s, unless --requests or
    --duration is given.

    With --precision the run ends as soon as the figures are that precise, or at the workload's count or duration.
    A server that runs already gets new prompts in every run, so that its prefix cache does not know them.
    """
    from harness.analysis import precision
    from harness.config import overrides
    from harness.measure.run import Setup
    from harness.meters.base import found_meters

    given = overrides(set_ or ())
    if out.suffix in SUFFIXES:
        raise errors.HarnessError(f"--out {out} names the directory of the runs", f"write -o {out}, or --root {out}/")
    if on_finish is not None and not on_finish.strip():
        fix = "give one, such as 'python to_mlflow.py', or omit --on-finish"
        raise errors.HarnessError("--on-finish has no command", fix)
    asked, served = given.get("engine.name", engine), "--serve" if serve else "--url" * bool(url)
    if served and asked not in (None, "openai"):
        raise errors.HarnessError(f"{served} with engine '{asked}'", f"omit {served}, or add --engine openai")
    typed = {
        "engine.name": "openai" if served else engine, "engine.openai.base_url": url, "model": model,
        "engine.openai.serve": "vllm" if serve else None, "scenario": scenario, "seed": seed, "give_up_s": give_up,
        "engine.openai.read_timeout_s": timeout,
        "load.rate_per_s": rate, "load.users": users, "load.duration_s": duration, "requests.count": requests,
        "requests.input_tokens": input_tokens, "requests.output_tokens": output_tokens,
    }  # fmt: skip
    points = _points(workload, {key: value for key, value in typed.items() if value is not None}, given, repeat)
    again = len(points) > 1 and not serve and not reset_cache
    _check_engine(points[0][0], given, timeout is not None, seed is not None and again)
    power = powered(points[0][0], meter) + ([] if assume_power is None else [f"constant:watts={assume_power}"])
    chosen = gpus.split(",") if gpus else None
    if targets := precision.parse(precise or ()):
        precision.check(targets, points[0][0], lambda: found_meters(power, chosen))
    if dry_run:
        from harness.cli.tables import planned_table

        show([planned_table([each for each, _, _ in points], out)])
        return
    declared = {name: x for name, x in (("host_w", host_power), ("pue", pue)) if x is not None}
    setup = Setup(power, chosen, declared, clients, ray, same_prompts=seed is not None, reset_cache=reset_cache)
    several = len(points) > repeat
    runs = measure_all(points, out, "users" if several else "repeat", quiet, setup, targets, several)
    _answered(runs, several, targets, on_finish)


def _points(workload: str, typed: Mapping[str, Any], given: dict[str, Any], repeat: int) -> list[Point]:
    """The workload of each run; `typed` are the values of options and `given` those of --set, which may not differ."""
    from harness.workload.library import read_workload

    for key in typed.keys() & given.keys():
        if str(typed[key]) != str(given[key]):
            raise errors.HarnessError(f"{OPTIONS[key]} with another --set {key}", "name one of the two")
    short, loads = {**typed}, _loads(typed.get("load.users"))
    if "requests.count" not in typed and "load.duration_s" in typed:
        short["requests.count"] = None  # the duration is the only end
    elif "requests.count" not in typed and len(loads) > 1:
        short |= {"requests.count": PER_USER * max(each["load.users"] for each in loads), "load.duration_s": MOST_S}
    if {"requests.input_tokens", "requests.output_tokens"} & typed.keys():
        short |= {"requests.trace": None, "requests.max_total_tokens": None}
    by = {key: option for key, option in OPTIONS.items() if key not in given}
    return [(read_workload(workload, short | at | given, by), at, k) for k in range(repeat) for at in loads]


def _check_engine(spec: Workload, given: Mapping[str, Any], timeout: bool, seed_again: bool) -> None:
    """HarnessError for what this engine makes void, and for a mistake in the scenario: both are known before measuring.

    `seed_again`: a running server would get the prompts of a seed in several runs.
    """
    from harness.cost.pricing import read_scenario

    name = spec.engine.name
    for key in given:
        if (of := key.split(".")[1:2]) and key.startswith("engine.") and of[0] in ENGINES and of[0] != name != "auto":
            raise errors.HarnessError(f"--set {key} with engine '{name}'", f"omit it, or add --engine {of[0]}")
    if timeout and name != "openai":
        raise errors.HarnessError(f"--timeout with engine '{name}'", "omit it: it is a limit for servers")
    if seed_again and name == "openai":
        what = "--seed with several runs sends a running server the prompts that it has just answered"
        raise errors.HarnessError(what, "omit --seed, or add --reset-cache")
    if spec.scenario is not None:
        read_scenario(spec.scenario)


def _answered(runs: Sequence[Run], several: bool, targets: Sequence[Target], on_finish: str | None) -> None:
    """Print the answer of the runs, of different loads if `several`, else repeats; then hand them to `on_finish`."""
    from harness.analysis.summary import summary_of
    from harness.report.changes import precision_table, repeats_table

    stored = [(each, summary_of(each)) for each in runs]
    beside = [repeats_table(stored)] if len(runs) > 1 and not several else []
    beside += [precision_table(*each, targets) for each in stored] if targets else []
    show_answer(stored if several else stored[-1:], beside=beside)
    if on_finish is not None:
        _tell(on_finish, stored)
    told_ends(runs if several else runs[-1:])


@printing
def ab(
    a: Annotated[str, typer.Argument(metavar="A", help="A server's URL, settings KEY=VALUE,KEY=VALUE, or a workload.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, to judge against A.")],
    workload: Annotated[str, typer.Option(help="The workload of both, unless A and B are workloads.")] = "chat",
    repeat: Annotated[int, typer.Option(metavar="N", min=1, help="Number of runs of each, in turns: A B A B.")] = 5,
    set_: options.Set = None,
    root: options.Root = options.RESULTS,
    meter: options.Meter = None,
    fail_on: options.FailOn = None,
    least: options.Least = "1%",
    force: options.Force = False,
    full: options.Full = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure two servers, engine versions or settings in turns, and judge B against A as `diff` does."""
    from harness.analysis.diff import flat, unequal
    from harness.analysis.gates import parse_gate, parse_share
    from harness.config import overrides
    from harness.measure.run import Setup

    if "--workload" in named() and not any("=" in text or "://" in text for text in (a, b)):
        raise errors.HarnessError("--workload with two workloads", "omit it, or name two servers or settings")
    gates, effect = [parse_gate(text) for text in fail_on or ()], parse_share("--least", least)
    sides = [_side(text, workload, overrides(set_ or ())) for text in (a, b)]
    asked = [flat(each.model_dump(mode="json", include=SAME)) for each in sides]
    differs = sorted(key for key, *_ in unequal(*asked))
    if sides[0] == sides[1] and not force:
        fix = "name two servers, or settings that differ; --force measures one twice, which shows the noise"
        raise errors.HarnessError("A and B are the same", fix)
    if differs and not force:
        fix = "compare sides that agree in this, or --force, which stamps what it prints"
        raise errors.HarnessError(f"A and B differ in {', '.join(differs)}", fix)
    for each in sides:
        _answers(each)
    points: list[Point] = [(spec, {"side": x}, k) for k in range(repeat) for x, spec in zip("AB", sides, strict=True)]
    runs = measure_all(points, root, "ab", quiet, Setup(powered(sides[0], meter)))
    told_ends(runs)
    judged(runs[::2], runs[1::2], gates, full, force=force, least=effect)


@printing
def rerun(
    reference: options.Run_ = "latest", root: options.Root = options.RESULTS, force: options.Force = False
) -> None:
    """Measure a stored run again under the same conditions, and compare the two runs.

    Refuses a machine that differs from that of the run; other differences, such as versions, are printed first.
    """
    from harness.analysis.diff import differences
    from harness.measure import environment
    from harness.measure.run import Setup
    from harness.store.run import Run
    from harness.store.run_file import Environment
    from harness.workload.schema import workload_of

    before = stored_run(reference, root)
    file = before.file
    place = Environment.model_validate(environment.capture())
    then, now = _machine(file.environment), _machine(place)
    other = [f"{key} differs: {x} vs {now[key]}" for key, x in then.items() if x is not None and x != now[key]]
    must, noted = differences(before, Run(before.directory, file.model_copy(update={"environment": place})))
    must = list(dict.fromkeys(other + must))
    if must and not force:
        raise errors.HarnessError(f"this machine differs from that of {file.id}: {'; '.join(must)}", "add --force")
    for each in must + noted:
        typer.echo(each, err=True)
    asked = file.workload.model_dump(mode="json")
    users = [asked["load"].get("users"), *(step.get("users") for step in asked["load"].get("steps") or ())]
    changes: dict[str, object] = {"engine.name": file.engine_asked}
    if file.schema_version < 3 and any(users):  # closed loops began with a burst
        changes["load.start"] = "burst"
    spec = workload_of(asked, f"{before.directory}/run.json", changes)
    setup = Setup(file.meters_asked, declared=file.declared, clients=max(1, len(file.clients)))
    runs = measure_all([(spec, {}, 0)], root, "rerun", False, setup)
    judged([before], runs, (), False, force=True)
    told_ends(runs)


def _machine(place: Environment) -> dict[str, Any]:
    """What `rerun` tells machines apart by."""
    gpus = ", ".join(gpu.name or "GPU" for gpu in place.gpus) or "none"
    return {"cpu": place.cpu.model, "cores_usable": place.cpu.cores_usable, "gpus": gpus}


SAME = {"requests", "load", "objectives", "model"}
"""Parts of a workload in which A and B of `ab` must agree."""


def _side(text: str, workload: str, shared: Mapping[str, Any]) -> Workload:
    """The workload of one side of `ab`."""
    from harness.config import overrides
    from harness.workload.library import read_workload

    if "://" in text:
        if (asked := shared.get("engine.name", "openai")) != "openai":
            raise errors.HarnessError(f"{text} with engine '{asked}'", "name engine.name for the other side alone")
        return read_workload(workload, {"engine.name": "openai", "engine.openai.base_url": text, **shared})
    if "=" in text:
        return read_workload(workload, {**shared, **overrides(re.split(r",(?=[\w.]+=)", text))})
    return read_workload(text, shared)


def _answers(spec: Workload) -> None:
    """HarnessError if the running server of a side does not answer: the other side is not measured in vain."""
    from harness.engines.base import create_engine

    name, options = spec.engine.name, spec.engine_options(spec.engine.name)

    async def ask() -> None:
        engine = create_engine(name, spec.engine_model(name), options)
        try:
            await engine.start()
        finally:
            await engine.stop()

    if name == "openai" and not options.get("serve"):
        asyncio.run(ask())


def powered(spec: Workload, meter: Sequence[str] | None) -> list[str]:
    """The meters to read; a simulated engine draws no power, so that only those that are named are read."""
    if meter and "none" in meter and len(meter) > 1:
        raise errors.HarnessError(f"--meter none beside --meter {meter[meter[0] == 'none']}", "name one of the two")
    return [*meter] if meter else [] if spec.engine.name == "simulated" else ["auto"]


Point = tuple["Workload", Mapping[str, Any], int]
"""A workload, the values that vary, and the number of the repeat."""


def measure_all(
    points: Sequence[Point],
    root: Path,
    kind: str,
    quiet: bool,
    setup: Setup,
    targets: Sequence[Target] = (),
    keep: bool = False,
) -> list[Run]:
    """Measure the points one after another until one does not complete.

    Several points are a sweep, named by the time and `kind`. `keep`: the engine stays loaded between them.
    """
    from harness.measure import run as measuring
    from harness.measure.search import Point as Swept
    from harness.measure.session import Kept
    from harness.measure.stop import Stop
    from harness.measure.sweep import time_left_s
    from harness.store.directory import new_id
    from harness.store.run import read_run

    group = new_id(datetime.now(UTC), kind, points[0][0].name)
    runs: list[Run] = []
    took: list[tuple[float, float]] = []
    with contextlib.closing(Kept()) if keep else contextlib.nullcontext() as kept, Display(quiet) as display:
        for i, (spec, values, k) in enumerate(points):
            sweep = {"name": group, "key": Swept(values, k).key, "values": values, "repeat": k}
            more, began_s = len(points) - i, time.monotonic()
            left = about(time_left_s(took, more, 0 if keep else more) if took else None)
            display.series = f"{i + 1} of {len(points)}{left}: " if len(points) > 1 else ""
            with Stop(targets) if targets else contextlib.nullcontext() as stop:
                swept = sweep if len(points) > 1 else None
                directory = measuring.run(spec, root, display.show, setup, enough=stop, sweep=swept, kept=kept)
            runs.append(read_run(directory))
            took.append((time.monotonic() - began_s, runs[-1].file.timings.engine_start_s or 0.0))
            if runs[-1].state != "complete":
                break
    return runs


def told_ends(runs: Sequence[Run]) -> None:
    """Print the directories; exit with 3 if a run did not complete, or had no success."""
    for run in runs:
        typer.echo(f"run: {run.directory}", err=output() != Output())
    for run in runs:
        if run.state != "complete" or not run.requests["error"].isna().any():
            typer.echo(f"incomplete: {run.file.error or 'no request succeeded'}", err=True)
            raise typer.Exit(errors.INCOMPLETE)


def _loads(users: str | None) -> list[dict[str, int]]:
    """The numbers of users, as keys of a workload; none of it if no number is given."""
    if users is None:
        return [{}]
    words = users.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise errors.HarnessError(f"--users {users}", "give whole numbers from 1: 8, or 1,8,64")
    if len(set(map(int, words))) < len(words):
        raise errors.HarnessError(f"--users {users} names a number twice", "omit it; --repeat 2 measures each twice")
    return [{"load.users": int(word)} for word in words]


def _tell(command: str, runs: Sweep) -> None:
    """Run a shell command with the JSON report of the runs on standard input; a failure is printed only."""
    from harness.report import document, formats

    content = formats.render(document.report(runs), "json", [summary for _, summary in runs])
    done = subprocess.run(command, shell=True, input=content, text=True, stdout=sys.stderr, check=False)
    if done.returncode:
        typer.echo(f"--on-finish: the command ended with {done.returncode}: {command}", err=True)
