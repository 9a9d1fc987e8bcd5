"""JSON Schemas of the files that users write and of run.json, made from their pydantic models."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from harness.cost.scenario import ScenarioFile
from harness.facts.book import Fact
from harness.measure.search import Sweep
from harness.store.run_file import RunFile
from harness.workload.schema import Workload

SCHEMAS: Mapping[str, type] = {
    "workload": Workload,
    "sweep": Sweep,
    "scenario": ScenarioFile,
    "fact": Fact,
    "run": RunFile,
}
"""Three kinds of YAML file, a row of a facts file, and run.json."""


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one of `SCHEMAS`.

    >>> schema("sweep")["required"]
    ['workload']
    """
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"inference-cost-harness {name}"}
    found = {**about, **TypeAdapter(SCHEMAS[name]).json_schema()}
    if name in ("workload", "sweep"):
        found["required"].remove("name")  # default: the name of the file
    return found
