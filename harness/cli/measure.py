"""Verbs that measure."""

import contextlib
from datetime import UTC, datetime
from typing import Annotated

import typer

from harness import errors
from harness.cli.app import SUFFIXES, Output, output, printing, show_answer
from harness.cli.display import Display
from harness.cli.options import RESULTS, Gpus, Meter, Out, Precision, Scenario, Set


@printing
def run(
    workload: Annotated[str, typer.Argument(help="A workload file, or the name of a shipped workload.")],
    engine: Annotated[str | None, typer.Option(help="auto, openai, vllm, transformers or simulated.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, directory, GGUF file, or short name.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Start the server: vllm, or that of engine.serve.")] = False,
    url: Annotated[str | None, typer.Option(help="A running server with OpenAI's interface: engine openai.")] = None,
    users: Annotated[int | None, typer.Option(min=1, help="This many users at a time: a closed loop.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Requests/s, at Poisson arrivals.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Number of requests.")] = None,
    duration: Annotated[str | None, typer.Option(help="Seconds, or 2 min; without --requests the only end.")] = None,
    input_tokens: Annotated[int | None, typer.Option(min=1, help="Of each request.")] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="Of each request.")] = None,
    set_: Set = None,
    out: Out = RESULTS,
    scenario: Scenario = None,
    meter: Meter = None,
    gpus: Gpus = None,
    assume_power: Annotated[float | None, typer.Option(metavar="WATTS", help="Assume this constant power.")] = None,
    host_power: Annotated[
        float | None, typer.Option(min=0, metavar="WATTS", help="Power of the rest of the host.")
    ] = None,
    pue: Annotated[float | None, typer.Option(min=1, help="Power usage effectiveness of the site.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, show_default="1", help="Client processes for a server.")] = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster for the clients, or auto.")] = None,
    precise: Precision = None,
    repeat: Annotated[int, typer.Option(min=1, help="Number of runs; an engine is started for each.")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Send the prompts of this seed, which a running server may know.")
    ] = None,
    reset_cache: Annotated[
        bool, typer.Option("--reset-cache", help="Empty the prefix cache of a running server before each run.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure a workload, store the run and print its answer.

    With --precision the run ends as soon as the figures are that precise, or at the workload's count or duration.
    A server that runs already gets new prompts in every run, so that its prefix cache does not know them.
    """
    from harness.analysis import precision
    from harness.analysis.summary import summary_of
    from harness.config import overrides
    from harness.cost.pricing import read_scenario
    from harness.measure import run as measuring
    from harness.measure.stop import Stop
    from harness.meters.base import found_meters
    from harness.report.changes import precision_table, repeats_table
    from harness.store.directory import new_id
    from harness.store.run import read_run
    from harness.workload.library import read_workload

    if out.suffix in SUFFIXES:
        raise errors.HarnessError(f"--out {out} names the directory of the runs", f"write -o {out}, or --root {out}/")
    named: dict[str, object] = {"engine.name": engine, "model": model, "scenario": scenario, "seed": seed}
    if serve and engine not in (None, "openai"):
        fix = "leave out --serve, or measure the server with --engine openai"
        raise errors.HarnessError(f"--serve starts a server, and engine '{engine}' needs none", fix)
    if serve:
        named |= {"engine.name": engine or "openai", "engine.openai.serve": "vllm"}
    if url is not None and serve:
        raise errors.HarnessError("--url with --serve", "name one: --url is a server that runs, --serve starts one")
    if url is not None and engine not in (None, "openai"):
        raise errors.HarnessError(f"--url names a server, and engine '{engine}' is none", "leave out --engine")
    if users is not None and rate is not None:
        raise errors.HarnessError("--users with --rate", "name one: users wait for their answers, a rate does not wait")
    short = _keys(url, users, rate, requests, duration, input_tokens, output_tokens)
    given = short | overrides(set_ or ()) | {key: x for key, x in named.items() if x is not None}
    spec = read_workload(workload, given)
    if seed is not None and repeat > 1 and not serve and spec.engine.name == "openai" and not reset_cache:
        what = "--seed with --repeat sends a running server the prompts that it has just answered"
        raise errors.HarnessError(what, "omit --seed, or add --reset-cache")
    if spec.scenario is not None:
        read_scenario(spec.scenario)  # reports a mistake in the file before measuring
    # A simulated engine draws no power: only meters that are named are read.
    power = meter or ([] if spec.engine.name == "simulated" else ["auto"])
    power += [] if assume_power is None else [f"constant:watts={assume_power}"]
    chosen = gpus.split(",") if gpus else None
    if targets := precision.parse(precise or ()):
        limits = any(limit is not None for _, limit in spec.objectives)
        precision.check(targets, spec.load.shape, limits, lambda: found_meters(power, chosen))
    with Display(quiet) as display:
        declared = {name: x for name, x in (("host_w", host_power), ("pue", pue)) if x is not None}
        group, runs = new_id(datetime.now(UTC), "repeat", spec.name), []
        for k in range(repeat):
            sweep = {"name": group, "key": f"{k}", "values": {}, "repeat": k} if repeat > 1 else None
            with Stop(targets) if targets else contextlib.nullcontext() as stop:
                directory = measuring.run(
                    *(spec, out, display.show, power, declared, clients, ray), enough=stop, sweep=sweep,
                    same_prompts=seed is not None, reset_cache=reset_cache, gpus=chosen,
                )  # fmt: skip
            runs.append(read_run(directory))
            if runs[-1].state != "complete":
                break
    stored = runs[-1]
    summary = summary_of(stored)
    beside = [repeats_table([(each, summary_of(each)) for each in runs])] if repeat > 1 else []
    beside += [precision_table(stored, summary, targets)] if targets else []
    show_answer([(stored, summary)], beside=beside)
    typer.echo(f"run: {stored.directory}", err=output() != Output())
    if stored.state != "complete" or not stored.requests["error"].isna().any():
        typer.echo(f"incomplete: {stored.file.error or 'no request succeeded'}", err=True)
        raise typer.Exit(errors.INCOMPLETE)


def _keys(
    url: str | None,
    users: int | None,
    rate: float | None,
    requests: int | None,
    duration: str | None,
    input_tokens: int | None,
    output_tokens: int | None,
) -> dict[str, object]:
    """The keys of a workload that the short options stand for; None takes back what the workload's file says."""
    keys: dict[str, object] = {}
    if url is not None:
        keys |= {"engine.name": "openai", "engine.openai.base_url": url}
    if users is not None:
        keys["load.users"] = users
    if rate is not None:
        keys |= {"load.shape": "poisson", "load.rate_per_s": rate, "load.users": None}
    if duration is not None:
        keys |= {"load.duration_s": duration, "requests.count": None}
    if requests is not None:
        keys["requests.count"] = requests
    for name, tokens in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
        if tokens is not None:
            keys |= {f"requests.{name}": tokens, "requests.trace": None, "requests.max_total_tokens": None}
    return keys
