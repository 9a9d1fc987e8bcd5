"""Verbs over everything that is stored, shipped or installed."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from harness import errors
from harness.cli import options
from harness.cli.app import app, emit, existing, output, printing, show
from harness.cli.misuse import named


@printing
def list_(
    what: Annotated[Literal["workloads", "runs", "engines", "models", "scenarios"], typer.Argument(metavar="WHAT")],
    root: options.Root = options.RESULTS,
    where: options.Where = None,
) -> None:
    """List workloads, runs, engines, models or scenarios."""
    from harness.cli.tables import runs_lines, runs_tables, shipped
    from harness.report.text import columns_of_terminal

    if what == "runs":
        made = runs_tables(root, where)
        existing(root)
        if output().format == "text":
            emit(runs_lines(made, columns_of_terminal()))
        else:
            show(made)
    elif void := named() & {"--where", "--root"}:
        raise errors.HarnessError(f"{min(void)} with {what}", f"omit {min(void)}: it is of runs")
    else:
        show([shipped(what)])


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="A file that ends in .parquet or .csv.")],
    root: options.Root = options.RESULTS,
    where: options.Where = None,
) -> None:
    """Write the figures of all runs, or of those that meet --where, to one file with a row for each figure."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from harness.analysis.index import parts
    from harness.report.formats import csv

    if out.suffix not in (".parquet", ".csv"):
        raise errors.HarnessError(f"'{out}' is neither .parquet nor .csv", "end the file's name in one of them")
    tables = parts(existing(root), where)
    first = next(tables)
    numeric = pd.api.types.is_numeric_dtype
    kinds = [(name, pa.float64() if numeric(kind) else pa.string()) for name, kind in first.dtypes.items()]
    schema, written, names = pa.schema(kinds), 0, set[str]()
    opened: Any = out.open("w", encoding="utf-8") if out.suffix == ".csv" else pq.ParquetWriter(out, schema)
    with opened as file:
        for table in itertools.chain([first], tables):
            if out.suffix == ".csv":
                file.write(csv(table, header=table is first))
            else:
                file.write_table(pa.Table.from_pandas(table, schema, preserve_index=False))
            written, names = written + len(table), names | set(table["run"])
    typer.echo(f"{out}: {written} figures of {len(names)} runs")


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Result files of other tools.")],
    root: options.Root = options.RESULTS,
    gpu: Annotated[str | None, typer.Option(help="The GPU of the measurement, if the file does not name it.")] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of GPUs that served the model.")] = None,
) -> None:
    """Store the results of other tools as runs: vLLM's and SGLang's benchmarks, guidellm, aiperf, LoadGen…"""
    from harness.store.imports import store_points

    for file in files:
        for directory in store_points(file, root, gpu, gpus):
            typer.echo(f"run: {directory}")


@app.command()
def schema(
    name: Annotated[Literal["workload", "sweep", "scenario", "fact", "run"], typer.Argument(metavar="NAME")],
) -> None:
    """Print the JSON Schema of a workload, sweep, scenario, fact, or of run.json."""
    import json

    from harness.cli import schemas

    typer.echo(json.dumps(schemas.schema(name), indent=1))
