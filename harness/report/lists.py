"""What there is to choose from, as tables: the verbs of `harness list`."""

from __future__ import annotations

import csv
import importlib.util
import io

from harness import engines, shipped
from harness.report.table import Table


def workloads() -> Table:
    """Shipped workloads, and those under ./workloads."""
    rows = tuple((each.name, each.requests, each.load, each.description) for each in shipped.list_workloads())
    return Table("workloads", "Workloads", ("name", "requests", "load", "description"), rows)


def engine_table() -> Table:
    """Engines, and whether what they need is installed here."""
    rows = []
    for name in sorted(engines.ENGINES):
        package, extra = engines.NEEDS.get(name, (None, None))
        installed = package is None or importlib.util.find_spec(package) is not None
        rows.append((name, "yes" if installed else f"no: pip install {extra}"))
    return Table("engines", "Engines", ("engine", "installed"), tuple(rows))


def models() -> Table:
    """Short names of models."""
    rows = tuple(csv.reader(io.StringIO(shipped.read_text("short_names.csv"))))
    notes = ("Any Hugging Face id, local directory or GGUF file works as well.",)
    return Table("models", "Models with a short name", tuple(rows[0]), tuple(map(tuple, rows[1:])), notes)


def scenarios() -> Table:
    """Shipped cost scenarios."""
    rows = tuple((name, description) for name, description in shipped.list_scenarios())
    return Table("scenarios", "Cost scenarios", ("name", "description"), rows)


TABLES = {"workloads": workloads, "engines": engine_table, "models": models, "scenarios": scenarios}
"""What `harness list` takes, runs apart -> the table's maker."""
