"""The run directory: written once, read many times, and readable however the run ended."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from builders import frame_of

from harness.errors import HarnessError
from harness.model import Figure, Finding, Record, Summary
from harness.store.directory import RunWriter, find_run, list_runs, new_id, point_latest, read_summary, write_summary
from harness.store.run import Run, read_run
from harness.store.run_file import RunFile

DONE = Record(0, 0.0, 0.001, 0.13, (0.1, 0.12), (1, 2), 5, 3, 5, 3, 0, "length")
FAILED = Record(1, 0.5, 0.5, 0.6, (), (), 5, 3, error="timeout", error_text="after 0.1 s")


def run_file(**changes: object) -> RunFile:
    fields: dict[str, object] = {
        "id": "a-run",
        "created_utc": datetime.now(UTC),
        "pid": os.getpid(),
        "workload": {"name": "w"},
        "engine_asked": "simulated",
        "environment": {},
    }
    return RunFile.model_validate(fields | changes)


def test_a_finished_run_reads_as_it_was_written(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_file())
    writer.add(DONE)
    writer.add(FAILED)
    writer.finish("complete")
    run = read_run(writer.directory)
    assert run.file.state == "complete"
    pd.testing.assert_frame_equal(run.requests, frame_of([DONE, FAILED]))
    assert sorted(path.name for path in writer.directory.iterdir()) == ["requests.parquet", "run.json"]


def test_unknown_keys_of_the_environment_are_kept(tmp_path: Path) -> None:
    environment = {"client_capacity": {"tokens_per_s": 16000.0, "requests_per_s": 2000.0, "limited_by": "server"}}
    writer = RunWriter(tmp_path, run_file(environment=environment))
    writer.finish("complete")
    assert read_run(writer.directory).environment.model_dump() == environment


def test_rows_of_a_long_run_keep_their_order(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_file())
    for i in range(1234):
        writer.add(dataclasses.replace(DONE, index=i))
    writer.finish("complete")
    assert read_run(writer.directory).requests["index"].tolist() == list(range(1234))


def test_missing_integers_stay_missing() -> None:
    frame = frame_of([DONE, FAILED])
    assert frame["output_tokens"].dtype == "Int32"
    assert frame_of([dataclasses.replace(DONE, output_tokens=2**40), FAILED])["output_tokens"].dtype == "Int64"
    assert frame["output_tokens"].tolist() == [3, pd.NA]
    assert frame["error"].isna().tolist() == [True, False]


def test_a_run_without_requests_reads(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_file())
    writer.finish("failed", "no engine")
    assert len(read_run(writer.directory).requests) == 0


def test_a_journal_cut_in_the_middle_of_a_line_keeps_the_whole_lines(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_file())
    writer.add(DONE)
    writer.add(FAILED)
    journal = writer.directory / "requests.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    assert read_run(writer.directory).requests["index"].tolist() == [0]


def test_a_run_whose_process_has_ended_is_interrupted(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_file())
    directory = writer.directory
    assert read_run(directory).file.state == "running"
    shutil.copytree(directory, tmp_path / "copy")  # to another machine, say, where the process number is another's
    assert read_run(tmp_path / "copy").file.state == "interrupted"
    del writer
    assert read_run(directory).file.state == "interrupted"


def damage_json(directory: Path) -> str:
    (directory / "run.json").write_text('{"schema_version": 1,')
    return "run.json"


def damage_field(directory: Path) -> str:
    raw = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps(raw | {"pid": "x"}))
    return "run.json"


def future_schema(directory: Path) -> str:
    raw = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps(raw | {"schema_version": 99}))
    return "schema version 99"


def not_an_object(directory: Path) -> str:
    (directory / "run.json").write_text("[]")
    return "run.json"


def truncated_parquet(directory: Path) -> str:
    path = directory / "requests.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    return "requests.parquet"


def no_rows(directory: Path) -> str:
    (directory / "requests.parquet").unlink()
    return "no requests.parquet"


def damaged_journal(directory: Path) -> str:
    (directory / "requests.parquet").unlink()
    (directory / "requests.jsonl").write_text("{\n{}\n")
    return "none of its 2 rows"


@pytest.mark.parametrize(
    "damage", [damage_json, damage_field, future_schema, not_an_object, truncated_parquet, no_rows, damaged_journal]
)
def test_damage_is_an_error_that_names_the_file(tmp_path: Path, damage: object) -> None:
    writer = RunWriter(tmp_path, run_file())
    writer.add(DONE)
    writer.finish("complete")
    assert callable(damage)
    named = damage(writer.directory)
    with pytest.raises(HarnessError) as caught:
        len(read_run(writer.directory).requests)
    assert named in str(caught.value)


def test_one_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        RunWriter(tmp_path, run_file(id=name)).finish("complete")
    (tmp_path / "a" / "run.json").write_text("{")
    point_latest(tmp_path, "b")
    listed = list(list_runs(tmp_path))
    assert [path.name for path, _ in listed] == ["a", "b"]
    assert isinstance(listed[0][1], HarnessError)
    assert isinstance(listed[1][1], Run)


def test_runs_are_found_by_path_name_beginning_and_latest(tmp_path: Path) -> None:
    for name in ("20260101-a", "20260102-b", "20260102-c"):
        RunWriter(tmp_path, run_file(id=name)).finish("complete")
    point_latest(tmp_path, "20260102-b")
    for reference in (str(tmp_path / "20260102-b"), "20260102-b", "latest"):
        assert find_run(reference, tmp_path).name == "20260102-b"
    assert find_run("20260101", tmp_path).name == "20260101-a"
    with pytest.raises(HarnessError, match="any of 2 runs"):
        find_run("20260102", tmp_path)
    for unknown in ("2027", "/", "/nope", "*", "x" * 5000, "a\0b"):
        with pytest.raises(HarnessError, match="no run"):
            find_run(unknown, tmp_path)


def test_runs_of_one_second_do_not_collide(tmp_path: Path) -> None:
    writers = [RunWriter(tmp_path, run_file()) for _ in range(3)]
    assert [writer.directory.name for writer in writers] == ["a-run", "a-run-2", "a-run-3"]
    assert read_run(tmp_path / "a-run-2").file.id == "a-run-2"


@pytest.mark.parametrize(
    ("name", "slug"), [("../../x/é y", "-y"), ("漢字", ""), ("x" * 500, "-" + "x" * 40), ("\0", ""), ("/", "")]
)
def test_run_ids_are_valid_directory_names(name: str, slug: str) -> None:
    assert new_id(datetime(2026, 1, 2, tzinfo=UTC), None, name) == f"20260102T000000Z{slug}"


def test_an_unwritable_directory_is_an_error_and_its_rows_still_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to("nowhere/at/all")
    for name in ("file", "file/in", "broken", "x" * 500):
        with pytest.raises(HarnessError, match=r"^cannot write to "):
            RunWriter(tmp_path / name, run_file())
    writer = RunWriter(tmp_path, run_file())
    writer.add(DONE)
    (writer.directory / ".requests.parquet.part").mkdir()
    with pytest.raises(HarnessError, match=r"^cannot write to .*a-run: "):
        writer.finish("complete")
    assert read_run(writer.directory).requests["index"].tolist() == [0]


def test_a_directory_named_latest_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    point_latest(tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]
    (tmp_path / "latest").rmdir()
    (tmp_path / "latest").symlink_to("gone")
    point_latest(tmp_path, "a")
    assert (tmp_path / "latest").readlink() == Path("a")


def test_a_summary_is_read_back_or_rebuilt(tmp_path: Path) -> None:
    summary = Summary(
        tmp_path.name,
        "complete",
        (Figure("ttft_s.p50", 0.1, "s", "measured", n=3),),
        {"timeout": 1},
        (Finding("x", "y", "z"),),
    )
    assert read_summary(tmp_path) is None
    (tmp_path / "run.json").write_text("{}")
    write_summary(tmp_path, summary)
    assert read_summary(tmp_path) == summary
    path = tmp_path / "summary.json"
    path.write_text(path.read_text().replace('"harness": "', '"harness": "0.0.1+'))  # by other code: its figures differ
    assert read_summary(tmp_path) is None
    (tmp_path / "summary.json").write_text("{")
    assert read_summary(tmp_path) is None
