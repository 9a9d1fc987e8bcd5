"""Verbs that measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness import errors
from harness.cli.app import RESULTS, Format, Scenario, Set, app, show, show_run
from harness.cli.display import Display


@app.command()
def run(
    workload: Annotated[str, typer.Argument(help="A workload file, or the name of a shipped one.")],
    engine: Annotated[str | None, typer.Option(help="auto, openai (any server), vllm, transformers or simulated.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, directory, GGUF file, or short name.")] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Start a server for the engine openai: vllm, or what engine.serve names.")
    ] = False,
    set_: Set = None,
    out: Annotated[
        Path, typer.Option(envvar="HARNESS_RESULTS", help="Directory that gets the run's directory.")
    ] = RESULTS,
    scenario: Scenario = None,
    meter: Annotated[
        list[str] | None,
        typer.Option(help="auto (what is found), none, nvml, rapl, prometheus:url=…, replay:path=…; repeatable."),
    ] = None,
    assume_power: Annotated[
        float | None, typer.Option(metavar="WATTS", help="A power to take for granted where no meter reads it.")
    ] = None,
    host_power: Annotated[
        float | None, typer.Option(min=0, metavar="WATTS", help="Declared power of the rest of the host.")
    ] = None,
    pue: Annotated[float | None, typer.Option(min=1, help="Declared power usage effectiveness of the site.")] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="Client processes that share the load on a server.", show_default="1")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster on whose nodes they run; auto finds a local one.")
    ] = None,
) -> None:
    """Measure a workload once; store the run, then print its report."""
    from harness import run as measuring
    from harness import shipped
    from harness.report import economics

    named = {"engine.name": engine, "model": model, "scenario": scenario}
    words = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in named.items() if value is not None]
    if serve:
        words = ["engine.name=openai", "engine.openai.serve=vllm", *words]
    spec = shipped.read_workload(workload, [*(set_ or ()), *words])
    if spec.scenario is not None:
        economics.read_scenario(spec.scenario)  # a mistake in it should not show after the measuring
    with Display() as display:
        # A simulated engine draws no power, so none is looked for unless a meter is named.
        power = meter or ([] if spec.engine.name == "simulated" else ["auto"])
        if assume_power is not None:
            power = [*power, f"constant:watts={assume_power}"]
        declared = {name: x for name, x in (("host_w", host_power), ("pue", pue)) if x is not None}
        directory = measuring.run(spec, out, display.show, power, declared, clients, ray)
    stored = show_run(directory)
    typer.echo(f"run: {directory}")
    succeeded = stored.requests["error"].isna().any()
    if stored.file.state != "complete" or not succeeded:
        reason = stored.file.error or "no request succeeded"
        typer.echo(f"incomplete: {reason}", err=True)
        raise typer.Exit(errors.INCOMPLETE)


@app.command()
def calibrate(
    show_: Annotated[bool, typer.Option("--show", help="Print what is stored, and measure nothing.")] = False,
    format_: Format = "text",
) -> None:
    """Find the load up to which percentiles are true for one client on this machine; later runs carry the result."""
    from harness import calibrate as calibrating
    from harness import environment
    from harness.report.table import PROPERTIES, Table

    if not show_:
        environment.keep_client_capacity(calibrating.calibrate(lambda told: typer.echo(told, err=True)))
    found = environment.client_capacity() or {"not calibrated": "`harness calibrate` takes about a minute"}
    rows = tuple((name.replace("_per_s", "/s").replace("_", " "), f"{value}") for name, value in found.items())
    show([Table("client", "One client on this machine", PROPERTIES, rows)], format_)
