"""The options and arguments that several verbs take."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from harness.files import results_root

RESULTS = Path("results")
_HOLDS = "Directory of the runs."
_ROOT: Mapping[str, Any] = {"envvar": "HARNESS_RESULTS", "parser": results_root, "metavar": "DIR", "help": _HOLDS}
Root = Annotated[Path, typer.Option("--root", **_ROOT)]
Out = Annotated[Path, typer.Option("--root", "--out", **_ROOT)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change any key; repeatable.")]
Full = Annotated[bool, typer.Option("--full", help="Every table, not only the first screen.")]
Scenario = Annotated[str | None, typer.Option(help="Cost scenario: a shipped name or a file.")]
Zone = Annotated[str | None, typer.Option(metavar="ISO3", help="CO2 and water of electricity there: USA, DEU, WOR.")]
_HALF = "Wanted 95% half-width, or FIGURE=2%; repeatable."
Precision = Annotated[list[str] | None, typer.Option("--precision", metavar="2%", help=_HALF)]
METERS = "auto (all that are found), none, nvml, rapl, redfish:url=…, prometheus:url=…, replay:path=…; repeatable."
Meter = Annotated[list[str] | None, typer.Option(metavar="METER", help=METERS)]
Gpus = Annotated[str | None, typer.Option(metavar="LIST", help="The engine's GPUs, 0,1 or UUIDs, if unseen.")]
Run_ = Annotated[str, typer.Argument(metavar="RUN", help="A run's directory or name; latest: the last run.")]
Runs = Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Runs; default: the last run.")]
Where = Annotated[str | None, typer.Option(metavar="'A=x and B>=y'", help="Only runs that meet these conditions.")]
Charts = Annotated[Path | None, typer.Option("--charts", metavar="DIR", help="Write charts to this directory.")]
Force = Annotated[bool, typer.Option("--force", help="Compare despite what forbids it, and stamp the output.")]
JUnit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the gates as JUnit XML.")]
_LIMIT = "Exit with 1 beyond this limit, for instance 'ttft_s.p99>500ms'."
Limits = Annotated[list[str] | None, typer.Option("--fail-on", metavar="FIGURE>VALUE", help=_LIMIT)]
_STDIN = "Run this with the report as JSON on its standard input."
OnFinish = Annotated[str | None, typer.Option(metavar="CMD", help=_STDIN)]
ChartFormat = Annotated[Literal["svg", "png", "pdf", "html"], typer.Option("--chart-format")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
_GATE = "Exit with 1 if the runs show this change, for instance 'output_tps<-3%'."
FailOn = Annotated[list[str] | None, typer.Option(metavar="FIGURE<PERCENT%", help=_GATE)]
_SPREAD = "Known standard deviation between runs; else learned, or 3% assumed."
Between = Annotated[str | None, typer.Option(metavar="PERCENT%", help=_SPREAD)]
Least = Annotated[str, typer.Option(metavar="PERCENT%", help="A smaller change is no difference.")]
