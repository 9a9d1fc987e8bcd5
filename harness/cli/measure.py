"""Runs, sweeps and repeats are measured; a machine is examined."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from harness import errors
from harness.analysis import precision
from harness.analysis.diff import differences, flat, unequal
from harness.analysis.gates import parse_gate, parse_share
from harness.analysis.summary import load, summary_of
from harness.analysis.tokens import by_conversation, ordinary
from harness.cli import verbs
from harness.cli.app import OPTIONS, SUFFIXES, Output, output
from harness.cli.display import Display, about
from harness.cli.misuse import named
from harness.cli.results import judged
from harness.cli.show import show, show_answer, stored_run
from harness.cli.tables import ended_tables, in_words, plan_table, planned_table, state_of
from harness.config import overrides
from harness.cost.pricing import read_scenario
from harness.engines.base import create_engine
from harness.measure import doctor as examining
from harness.measure import environment
from harness.measure import run as measuring
from harness.measure.run import Setup
from harness.measure.search import Point as Swept
from harness.measure.session import Kept
from harness.measure.stop import Stop
from harness.measure.sweep import Status, carry_out, read_plan, time_left_s
from harness.measure.workers import start_workers
from harness.meters.base import found_meters
from harness.model import ENGINES, Finding
from harness.report import document, formats
from harness.report.changes import precision_table, repeats_table
from harness.report.table import PROPERTIES, Table
from harness.report.tables import findings_table
from harness.store.directory import new_id
from harness.store.run import Run, read_run
from harness.store.run_file import Environment
from harness.workload.library import read_workload
from harness.workload.schema import Workload, workload_of

KEYS = {row["key"]: "--" + field.replace("_", "-") for (_, field), row in OPTIONS.items() if row["key"]}
"""Key of a workload -> the option of `run` that stands for it, which messages name."""
PER_USER, MOST_S = 5, 60
"""Of a run of several numbers of users: requests for each user of the most, and its longest duration."""


def run(asked: verbs.Run) -> None:
    """Measure a workload, store the run and print its answer."""
    given = overrides(asked.set_ or ())
    if asked.out.suffix in SUFFIXES:
        fix = f"write -o {asked.out}, or --root {asked.out}/"
        raise errors.HarnessError(f"--out {asked.out} names the directory of the runs", fix)
    if asked.on_finish is not None and not asked.on_finish.strip():
        fix = "give one, such as 'python to_mlflow.py', or omit --on-finish"
        raise errors.HarnessError("--on-finish has no command", fix)
    points = _points(asked, given)
    spec, several = points[0][0], len(points) > asked.repeat
    _check_engine(spec, asked, given, again=len(points) > 1)
    power = powered(spec, asked.meter)
    power += [] if asked.assume_power is None else [f"constant:watts={asked.assume_power}"]
    gpus = asked.gpus.split(",") if asked.gpus else None
    if targets := precision.parse(asked.precise or ()):
        precision.check(targets, spec, lambda: found_meters(power, gpus))
    if asked.dry_run:
        show([planned_table([each for each, *_ in points], asked.out)])
        return
    declared = {name: x for name, x in (("host_w", asked.host_power), ("pue", asked.pue)) if x is not None}
    setup = Setup(power, gpus, declared, asked.clients, asked.ray, asked.seed is not None, asked.reset_cache)
    runs = measure_all(points, asked.out, "users" if several else "repeat", asked.quiet, setup, targets)
    _answered(runs, several, targets, asked.on_finish)


def _points(asked: verbs.Run, given: dict[str, Any]) -> list[Point]:
    """The workload of each run; `given` are the values of --set, from which those of options may not differ."""
    served = "--serve" if asked.serve else "--url" * bool(asked.url)
    engine = given.get("engine.name", asked.engine)
    if served and engine not in (None, "openai"):
        raise errors.HarnessError(f"{served} with engine '{engine}'", f"omit {served}, or add --engine openai")
    typed = {key: getattr(asked, option[2:].replace("-", "_")) for key, option in KEYS.items()}
    typed |= {"engine.name": "openai"} if served else {}
    typed |= {"engine.openai.serve": "vllm"} if asked.serve else {}
    typed = {key: value for key, value in typed.items() if value is not None}
    for key in typed.keys() & given.keys():
        if str(typed[key]) != str(given[key]):
            raise errors.HarnessError(f"{KEYS.get(key, '--serve')} with another --set {key}", "name one of the two")
    loads = _loads(asked.users)
    if asked.requests is None and asked.duration is not None:
        typed["requests.count"] = None  # the duration is the only end
    elif asked.requests is None and len(loads) > 1:
        typed |= {"requests.count": PER_USER * max(each["load.users"] for each in loads), "load.duration_s": MOST_S}
    if asked.input_tokens or asked.output_tokens:
        typed |= {"requests.trace": None, "requests.max_total_tokens": None}
    by = {key: option for key, option in KEYS.items() if key not in given}
    return [(read_workload(asked.workload, typed | at | given, by), at, k) for k in range(asked.repeat) for at in loads]


def _check_engine(spec: Workload, asked: verbs.Run, given: Mapping[str, Any], again: bool) -> None:
    """HarnessError for what this engine makes void, and for a mistake in the scenario: both are known before measuring.

    `again`: there are several runs.
    """
    name = spec.engine.name
    for key in given:
        if (of := key.split(".")[1:2]) and key.startswith("engine.") and of[0] in ENGINES and of[0] != name != "auto":
            raise errors.HarnessError(f"--set {key} with engine '{name}'", f"omit it, or add --engine {of[0]}")
    if asked.timeout is not None and name != "openai":
        raise errors.HarnessError(f"--timeout with engine '{name}'", "omit it: it is a limit for servers")
    if again and asked.seed is not None and name == "openai" and not (asked.serve or asked.reset_cache):
        what = "--seed with several runs sends a running server the prompts that it has just answered"
        raise errors.HarnessError(what, "omit --seed, or add --reset-cache")
    if spec.scenario is not None:
        read_scenario(spec.scenario)


def _answered(runs: Sequence[Run], several: bool, targets: Sequence[precision.Target], on_finish: str | None) -> None:
    """Print the answer of the runs, of different loads if `several`, else repeats; then hand them to `on_finish`."""
    stored = [(each, summary_of(each)) for each in runs]
    beside = [repeats_table(stored)] if len(runs) > 1 and not several else []
    beside += [precision_table(*each, targets) for each in stored] if targets else []
    show_answer(stored if several else stored[-1:], beside=beside)
    if on_finish is not None:
        content = formats.render(document.report(stored), "json", [summary for _, summary in stored])
        done = subprocess.run(on_finish, shell=True, input=content, text=True, stdout=sys.stderr, check=False)
        if done.returncode:
            typer.echo(f"--on-finish: the command ended with {done.returncode}: {on_finish}", err=True)
    told_ends(runs if several else runs[-1:])


def ab(asked: verbs.Ab) -> None:
    """Measure two servers, engine versions or settings in turns, and judge B against A as `diff` does."""
    if "--workload" in named() and not any("=" in text or "://" in text for text in (asked.a, asked.b)):
        raise errors.HarnessError("--workload with two workloads", "omit it, or name two servers or settings")
    gates, effect = [parse_gate(text) for text in asked.fail_on or ()], parse_share("--least", asked.least)
    sides = [_side(text, asked.workload, overrides(asked.set_ or ())) for text in (asked.a, asked.b)]
    a, b = (flat(each.model_dump(mode="json", include=SAME)) for each in sides)
    differs = sorted(key for key, *_ in unequal(a, b))
    if sides[0] == sides[1] and not asked.force:
        fix = "name two servers, or settings that differ; --force measures one twice, which shows the noise"
        raise errors.HarnessError("A and B are the same", fix)
    if differs and not asked.force:
        fix = "compare sides that agree in this, or --force, which stamps what it prints"
        raise errors.HarnessError(f"A and B differ in {', '.join(differs)}", fix)
    for each in sides:
        _answers(each)
    points: list[Point] = [
        (spec, {"side": x}, k) for k in range(asked.repeat) for x, spec in zip("AB", sides, strict=True)
    ]
    runs = measure_all(points, asked.root, "ab", asked.quiet, Setup(powered(sides[0], asked.meter)))
    told_ends(runs)
    judged(runs[::2], runs[1::2], gates, asked.full, force=asked.force, least=effect)


def rerun(asked: verbs.Rerun) -> None:
    """Measure a stored run again under the same conditions, and compare the two runs."""
    before = stored_run(asked.reference, asked.root)
    file = before.file
    place = Environment.model_validate(environment.capture())
    then, now = _machine(file.environment), _machine(place)
    other = [f"{key} differs: {x} vs {now[key]}" for key, x in then.items() if x is not None and x != now[key]]
    must, noted = differences(before, Run(before.directory, file.model_copy(update={"environment": place})))
    must = list(dict.fromkeys(other + must))
    if must and not asked.force:
        raise errors.HarnessError(f"this machine differs from that of {file.id}: {'; '.join(must)}", "add --force")
    for each in must + noted:
        typer.echo(each, err=True)
    stored = file.workload.model_dump(mode="json")
    users = [stored["load"].get("users"), *(step.get("users") for step in stored["load"].get("steps") or ())]
    changes: dict[str, object] = {"engine.name": file.engine_asked}
    if file.schema_version < 3 and any(users):  # closed loops began with a burst
        changes["load.start"] = "burst"
    if before.state == "complete" and before.load is not None and math.isinf(before.load.end_s):
        sent = before.requests[ordinary(before.requests)]
        if (count := len(by_conversation(sent[["sent_s"]], sent))) < (file.workload.requests.count or 0):
            changes["requests.count"] = count  # --precision ended the run
    spec = workload_of(stored, f"{before.directory}/run.json", changes)
    setup = Setup(file.meters_asked, declared=file.declared, clients=max(1, len(file.clients)))
    runs = measure_all([(spec, {}, 0)], asked.root, "rerun", False, setup)
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
    if "://" in text:
        if (asked := shared.get("engine.name", "openai")) != "openai":
            raise errors.HarnessError(f"{text} with engine '{asked}'", "name engine.name for the other side alone")
        return read_workload(workload, {"engine.name": "openai", "engine.openai.base_url": text, **shared})
    if "=" in text:
        return read_workload(workload, {**shared, **overrides(re.split(r",(?=[\w.]+=)", text))})
    return read_workload(text, shared)


def _answers(spec: Workload) -> None:
    """HarnessError if the running server of a side does not answer: the other side is not measured in vain."""
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


Point = tuple[Workload, Mapping[str, Any], int]
"""A workload, the values that vary, and the number of the repeat."""


def measure_all(
    points: Sequence[Point], root: Path, kind: str, quiet: bool, setup: Setup, targets: Sequence[precision.Target] = ()
) -> list[Run]:
    """Measure the points one after another until one does not complete.

    Several points are a sweep, named by the time and `kind`. If they are of several `users` the engine stays loaded.
    """
    keep = kind == "users"
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


def sweep(asked: verbs.Sweep) -> None:
    """Measure every point of a grid, or search for the highest load; each point is a run."""
    plan, root = read_plan(asked.file, asked.root), asked.root
    if asked.dry_run:
        show([plan_table(plan)])
        return
    if plan.stored and not asked.resume:
        raise errors.HarnessError(
            f"{len(plan.stored)} points of sweep {plan.sweep.name} are stored in {root}",
            "add --resume to measure the others, or give the sweep another name",
        )
    power = asked.meter or ([] if plan.simulated else ["auto"])
    needed = 0 if plan.simulated else plan.gpus
    setup = Setup(power, asked.gpus.split(",") if asked.gpus else None)
    workers = functools.partial(start_workers, asked.ray, needed, asked.jobs)
    with Display(asked.quiet, phases=False) as display, workers(display.show) as at:
        ended = carry_out(plan, at, functools.partial(_say, display), setup, asked.budget, asked.cooldown)
    runs = [load(root / done.run) for done in ended.values() if done.state == "complete" and done.run]
    show_answer(runs, beside=ended_tables(plan, ended))
    if any(done.state != "complete" for done in ended.values()):
        raise typer.Exit(errors.INCOMPLETE)
    if len(ended) < len(plan.points) and plan.sweep.auto is None:
        typer.echo(f"incomplete: the budget of {asked.budget:g} GPU-hours is spent; --resume goes on", err=True)
        raise typer.Exit(errors.INCOMPLETE)


def _say(display: Display, status: Status) -> None:
    """Print a line for each point that ends, and name the one whose progress follows."""
    left = about(status.left_s)
    failed = f", {status.failed} failed" if status.failed else ""
    if status.done is None:
        display.series = f"{status.finished + 1} of {status.known}{failed}{left}: {in_words(status.point)}: "
    else:
        where = f"{in_words(status.point)}: {state_of(status.done)}"
        display.line(f"{status.finished} of {status.known}{failed}{left}: {where}")


def doctor(asked: verbs.Doctor) -> None:
    """Examine this machine: what can be measured, what would make a run doubtful, and how to fix it."""
    seen = list(examining.examine(asked.root))
    findings = [each for each in seen if isinstance(each, Finding)]
    parts = tuple(each for each in seen if not isinstance(each, Finding))
    show([Table("machine", "This machine", PROPERTIES, parts), findings_table(findings)])
    if any(finding.serious for finding in findings):
        raise typer.Exit(errors.GATE_FAILED)
