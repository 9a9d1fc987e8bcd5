"""JSON Schemas of the files that people write and of those that the harness stores, made from their models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter

from harness.cost.scenario import KEYS, InputFile, ScenarioFile
from harness.facts.book import Fact
from harness.measure.search import Sweep
from harness.store.run_file import RunFile
from harness.workload.schema import Workload

Schema = dict[str, Any]


def _unnamed(model: Any) -> Schema:
    """Of a file whose own name stands in where it has no `name`."""
    schema: Schema = TypeAdapter(model).json_schema()
    schema["required"].remove("name")
    return schema


def _scenario() -> Schema:
    """Its inputs are checked one by one, so that a mistake can be named; here they stand in one piece."""
    schema, each = TypeAdapter(ScenarioFile).json_schema(), TypeAdapter(InputFile).json_schema()
    for loose in ("unit", "date"):  # YAML reads 1 and 2026 as numbers
        each["properties"][loose] = {"type": ["string", "number"]}
    schema["properties"]["inputs"] = {
        "type": "object", "propertyNames": {"enum": list(KEYS)}, "additionalProperties": each,
    }  # fmt: skip
    return schema


SCHEMAS: Mapping[str, Callable[[], Schema]] = {
    "workload": lambda: _unnamed(Workload),
    "sweep": lambda: _unnamed(Sweep),
    "scenario": _scenario,
    "fact": lambda: TypeAdapter(Fact).json_schema(),
    "run": lambda: TypeAdapter(RunFile).json_schema(),
}
"""What has a schema: three kinds of YAML file, a row of a facts file, and run.json."""


def schema(name: str) -> Schema:
    """The JSON Schema (draft 2020-12) of one of `SCHEMAS`.

    >>> schema("sweep")["required"]
    ['workload']
    """
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"inference-cost-harness {name}"}
    return {**about, **SCHEMAS[name]()}
