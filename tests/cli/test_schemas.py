"""The published schemas: what the models say today, and true of every file that ships and of what is stored."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from places import ROOT

from harness.cli.lists import SCHEMAS, schema_of
from harness.config import read_yaml
from harness.measure import run
from harness.store.run import read_run
from harness.store.run_file import SCHEMA_VERSION
from harness.workload.schema import parse_workload

PUBLISHED = ROOT / "docs/schemas"
FILES = [
    *(("workload", path) for path in sorted((ROOT / "workloads").glob("*.yaml"))),
    *(("scenario", path) for path in sorted((ROOT / "harness/data/scenarios").glob("*.yaml"))),
    ("sweep", ROOT / "tests/data/sweep.yaml"),
]


def check(name: str, content: Any) -> None:
    jsonschema.validate(content, schema_of(name), jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_that_of_the_models(name: str) -> None:
    """`harness schema NAME > docs/schemas/NAME.json` writes it."""
    jsonschema.Draft202012Validator.check_schema(schema_of(name))
    assert json.loads((PUBLISHED / f"{name}.json").read_text()) == schema_of(name)


@pytest.mark.parametrize(("name", "path"), FILES, ids=lambda value: value if isinstance(value, str) else value.name)
def test_every_shipped_file_is_valid_by_its_schema(name: str, path: Path) -> None:
    content, _ = read_yaml(path.read_text(), str(path))
    assert list(jsonschema.Draft202012Validator(schema_of(name)).iter_errors(content)) == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("workload", {"requests": {"count": 1, "input_tokens": 8, "output_tokens": 4}, "load": {"shape": "ofline"}}),
        ("workload", {"load": {"shape": "offline"}}),
        ("workload", {"requests": {"count": 0}, "load": {"shape": "offline"}}),
        ("sweep", {"workload": "smoke", "grid": {"load.users": []}}),
        ("scenario", {"name": "x", "description": "", "tier": "on-demand", "inputs": {"price": 3}}),
        ("run", {}),
    ],
)
def test_a_mistake_is_not_valid_by_the_schema(name: str, wrong: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(name, wrong)


def test_a_run_is_stored_as_its_schema_says(tmp_path: Path) -> None:
    text = "load: {shape: constant, rate_per_s: 6000 /min}\nrequests: {count: 2, input_tokens: 8, output_tokens: 2}\n"
    spec, _ = read_yaml(text, "x.yaml")
    check("workload", spec)
    directory = run.run(parse_workload(text + "engine: {name: simulated}", "x.yaml"), tmp_path, lambda _: None)
    check("run", json.loads((directory / "run.json").read_text()))
    assert read_run(directory).file.schema_version == SCHEMA_VERSION


def test_every_schema_version_has_its_migration_tested() -> None:
    """A stored run of each version before today's, as it was written then; see test_an_old_run_still_reads."""
    assert {int(path.name) for path in (ROOT / "tests/data/runs").iterdir()} == set(range(1, SCHEMA_VERSION))


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_an_old_run_still_reads(version: int) -> None:
    (directory,) = (ROOT / f"tests/data/runs/{version}").iterdir()
    stored = read_run(directory)
    assert stored.file.schema_version == version
    assert stored.file.created_utc.date() > date(2026, 1, 1)
    assert len(stored.requests) == 12
    assert stored.requests["error"].isna().all()
    assert stored.requests[["conversation", "turn", "connect_s"]].isna().all().all()
