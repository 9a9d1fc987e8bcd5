"""Everything that is stored, shipped or installed."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from pydantic import TypeAdapter

from harness import errors
from harness.analysis.index import parts
from harness.cli import verbs
from harness.cli.app import output
from harness.cli.misuse import named
from harness.cli.show import emit, existing, show
from harness.report.formats import csv
from harness.report.text import columns_of_terminal
from harness.store.access import writing

SCHEMAS: Mapping[str, str] = {
    "workload": "harness.workload.schema:Workload",
    "sweep": "harness.measure.search:Sweep",
    "scenario": "harness.cost.scenario:ScenarioFile",
    "fact": "harness.facts.book:Fact",
    "run": "harness.store.run_file:RunFile",
}
"""Three kinds of YAML file, a row of a facts file, and run.json."""


def list_(asked: verbs.List) -> None:
    """List workloads, runs, engines, models or scenarios."""
    from harness.cli.tables import runs_lines, runs_tables, shipped

    if asked.what == "runs":
        made = runs_tables(asked.root, asked.where)
        existing(asked.root)
        if output().format == "text":
            emit(runs_lines(made, columns_of_terminal()))
        else:
            show(made)
    elif void := named() & {"--where", "--root"}:
        raise errors.HarnessError(f"{min(void)} with {asked.what}", f"omit {min(void)}: it is of runs")
    else:
        show([shipped(asked.what)])


def export(asked: verbs.Export) -> None:
    """Write the figures of all runs, or of those that meet --where, to one file with a row for each figure."""

    out = asked.out
    if out.suffix not in (".parquet", ".csv"):
        raise errors.HarnessError(f"'{out}' is neither .parquet nor .csv", "end the file's name in one of them")
    tables = parts(existing(asked.root), asked.where)
    first = next(tables)
    numeric = pd.api.types.is_numeric_dtype
    kinds = [(name, pa.float64() if numeric(kind) else pa.string()) for name, kind in first.dtypes.items()]
    schema, written, names = pa.schema(kinds), 0, set[str]()
    as_csv = out.suffix == ".csv"
    opened: Any = out.open("w", encoding="utf-8") if as_csv else pq.ParquetWriter(out, schema)
    with writing(out, "name another file"), opened as file:
        for table in itertools.chain([first], tables):
            if as_csv:
                file.write(csv(table, header=table is first))
            else:
                file.write_table(pa.Table.from_pandas(table, schema, preserve_index=False))
            written, names = written + len(table), names | set(table["run"])
    typer.echo(f"{out}: {written} figures of {len(names)} runs")


def import_(asked: verbs.Import) -> None:
    """Store the results of other tools as runs: vLLM's and SGLang's benchmarks, guidellm, aiperf, LoadGen…"""
    from harness.store.imports import store_points

    for file in asked.files:
        for directory in store_points(file, asked.root, asked.gpu, asked.gpus):
            typer.echo(f"run: {directory}")


def schema(asked: verbs.Schema) -> None:
    """Print the JSON Schema of a workload, sweep, scenario, fact, or of run.json."""

    typer.echo(json.dumps(schema_of(asked.name), indent=1))


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one of `SCHEMAS`.

    >>> schema_of("sweep")["required"]
    ['workload']
    """
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": ""}  # the order of the two
    module, _, kind = SCHEMAS[name].partition(":")
    found = {**about, **TypeAdapter(getattr(importlib.import_module(module), kind)).json_schema()}
    if name in ("workload", "sweep"):
        found["required"].remove("name")  # default: the name of the file
    return found
