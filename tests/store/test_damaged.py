"""Damaged runs: every verb says which file is wrong, none prints a traceback, and the other runs still work."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import record, run_file
from commands import Command
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis import index
from harness.analysis.summary import summary_of
from harness.errors import HarnessError
from harness.measure import power, run
from harness.report import changes, document
from harness.store.access import reading
from harness.store.directory import RunWriter, find_run, list_runs
from harness.store.run import read_run
from harness.workload.schema import parse_workload

FILES = ("run.json", "requests.parquet", "power.parquet", "summary.json")
TINY = """
name: tiny
engine: {name: simulated, simulated: {ttft_s: 0.01, itl_s: 0.002}}
requests: {count: 40, input_tokens: 16, output_tokens: 8}
load: {shape: closed, users: 8}
objectives: {ttft_s: 0.5}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with every file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(power, "IDLE_S", 0.1)
        root = tmp_path_factory.mktemp("runs")
        directory = run.run(parse_workload(TINY, "tiny"), root, lambda _: None, run.Setup(["constant:watts=100"]))
    summary_of(read_run(directory))
    assert set(FILES) < {path.name for path in directory.iterdir()}
    return directory


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        raw = json.loads((directory / "run.json").read_text())
        change(raw)
        (directory / "run.json").write_text(json.dumps(raw))

    return damage


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: int(share * len(content))])

    return damage


def journal(line: bytes) -> Callable[[Path], None]:
    """As a killed run has it, with such a line."""

    def damage(directory: Path) -> None:
        (directory / "requests.parquet").unlink()
        (directory / "requests.jsonl").write_bytes(line + b"\n")

    return damage


def replaced_by_directory(name: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    # what is wrong: (how it is made so, what the error names)
    "empty run.json": (cut("run.json", 0), "run.json"),
    "half a run.json": (cut("run.json", 0.5), "run.json"),
    "no UTF-8": (lambda d: (d / "run.json").write_bytes(b"\xff\xfe{}"), "run.json"),
    "run.json is a directory": (replaced_by_directory("run.json"), "run.json"),
    "future schema": (edited(lambda raw: raw.update(schema_version=99, new_field=1)), "schema version 99"),
    "a field of another kind": (edited(lambda raw: raw.update(engine=[])), "run.json"),
    "a sweep without a name": (edited(lambda raw: raw.update(sweep={})), "run.json"),
    "an inner field of another kind": (edited(lambda raw: raw["workload"]["load"].update(users="x")), "load.users"),
    "a limit that is no number": (edited(lambda raw: raw["workload"]["objectives"].update(ttft_s="nan")), "ttft_s"),
    "an absurd number": (
        edited(lambda raw: raw.update(declared={"host_w": 1e300})),
        "1e+300 is larger than any number",
    ),
    "an absurd whole number": (
        edited(lambda raw: raw["environment"].update(memory_bytes=10**18)),
        "1000000000000000000 is larger than any number",
    ),
    "half of the rows": (cut("requests.parquet", 0.5), "requests.parquet"),
    "no rows": (lambda d: (d / "requests.parquet").unlink(), "requests.parquet"),
    "rows are a directory": (replaced_by_directory("requests.parquet"), "requests.parquet"),
    "no readings": (lambda d: (d / "power.parquet").unlink(), "power.parquet"),
    "half of the readings": (cut("power.parquet", 0.5), "power.parquet"),
    "a journal's row is no object": (journal(b"5"), "requests.jsonl"),
    "a journal's row is of another kind": (journal(b'{"index": "x", "arrival_s": 3}'), "requests.jsonl"),
}

VERBS = (
    "report damaged", "report good damaged --format json", "check damaged", "cost damaged", "cost good damaged",
    "compare damaged", "compare good damaged", "diff good damaged", "diff damaged good", "rerun damaged",
    "list runs", "export figures.csv", "predict Qwen3-32B H100 --run damaged",
)  # fmt: skip
WITH_OTHERS = ("report good", "cost good", "compare good", "list runs", "export")
EACH_VERB = ("future schema", "an inner field of another kind", "half of the rows")
"""What all verbs are tried on; the rest is a matter of reading, which two of them show."""


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_verb_names_the_damaged_file_and_reads_the_other_runs(
    kind: str, whole: Path, harness: Command, tmp_path: Path
) -> None:
    damage, named = DAMAGE[kind]
    for name in ("good", "damaged"):
        shutil.copytree(whole, tmp_path / "results" / name)
    (tmp_path / "results/damaged/summary.json").unlink()
    damage(tmp_path / "results/damaged")
    for verb in VERBS if kind in EACH_VERB else ("check damaged", "list runs"):
        left = harness(*verb.split())
        of_all = verb.startswith(("list runs", "export"))
        assert left.code == (0 if of_all else 2), (verb, left.err)
        assert "Traceback" not in left.err, verb
        assert of_all or named in left.err, verb
        assert not verb.startswith(WITH_OTHERS) or left.out, verb
    assert "damaged" in harness("list", "runs").out


def refused(directory: Path) -> bool:
    """Whether the verbs refuse the run; anything but a HarnessError comes through."""
    try:
        stored = read_run(directory)
        document.report([(stored, summary_of(stored))])
        changes.difference([stored], [stored], force=True)
    except HarnessError:
        return True
    return False


@pytest.fixture(scope="module")
def victim(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to be damaged again and again."""
    return shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / "run")


@settings(max_examples=40, derandomize=True)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), byte=st.none() | st.integers(0, 255))
def test_a_truncated_or_altered_file_is_read_or_refused(
    whole: Path, victim: Path, name: str, place: float, byte: int | None
) -> None:
    """Rows that are read are those that were written: run.json has the digest of their file."""
    shutil.copytree(whole, victim, dirs_exist_ok=True)
    content = bytearray((whole / name).read_bytes())
    at = int(place * len(content))
    content[at:] = b"" if byte is None else bytes([byte]) + content[at + 1 :]
    (victim / name).write_bytes(content)
    if name != "summary.json":
        (victim / "summary.json").unlink()
    if not refused(victim) and name != "run.json":
        before, after = read_run(whole), read_run(victim)
        pd.testing.assert_frame_equal(before.requests, after.requests)
        pd.testing.assert_frame_equal(before.power, after.power)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside, maps and lists too."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from leaves(value[key], (*path, key))


@settings(max_examples=40, derandomize=True)
@given(data=st.data(), value=st.sampled_from([None, "x", 5, [], {}, [1], {"a": 1}, 1e300]))
def test_a_value_of_another_type_in_run_json_is_read_or_refused(
    whole: Path, victim: Path, data: st.DataObject, value: object
) -> None:
    raw = json.loads((whole / "run.json").read_text())
    *parents, last = data.draw(st.sampled_from(list(leaves(raw))))
    at = raw
    for key in parents:
        at = at[key]
    at[last] = value
    shutil.copytree(whole, victim, dirs_exist_ok=True)
    (victim / "run.json").write_text(json.dumps(raw))
    (victim / "summary.json").unlink()
    if not refused(victim):
        pd.testing.assert_frame_equal(read_run(victim).requests, read_run(whole).requests)


def test_a_time_without_a_zone_is_utc(whole: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(whole, tmp_path / "run")
    edited(lambda raw: raw.update(created_utc="2026-01-02T03:04:05"))(directory)
    assert read_run(directory).file.created_utc.isoformat() == "2026-01-02T03:04:05+00:00"
    assert changes.difference([read_run(directory)], [read_run(whole)], force=True)


def test_a_run_without_read_permission_is_named_and_the_others_are_listed(whole: Path, tmp_path: Path) -> None:
    for name in ("good", "closed"):
        shutil.copytree(whole, tmp_path / name)
    (tmp_path / "closed").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # root may enter everywhere, so this is tried as nobody
            for above in tmp_path.parents:
                if above.name.startswith(("pytest-", "popen-")):
                    above.chmod(0o755)
            tmp_path.chmod(0o755)
            os.seteuid(65534)
        with pytest.raises(HarnessError, match=r"run\.json.*Permission denied"):
            read_run(find_run("closed", tmp_path))
        states = index.runs(tmp_path)["state"].tolist()
        listed = [isinstance(file, HarnessError) for _, file in list_runs(tmp_path)]
    finally:
        os.seteuid(user)
        (tmp_path / "closed").chmod(0o700)
    assert sorted(states) == ["complete", "damaged"]
    assert listed == [True, False]


BAD_ROWS = (
    *("5", "{", "[]", '{"index": "x"}'),
    *('{"arrival_s": [3, 2], "arrival_tokens": [1, 1]}', '{"arrival_s": [3], "arrival_tokens": [1, 1]}'),
    *('{"output_tokens": 1e20}', '{"output_tokens": -1}', '{"input_tokens": 2000000000}'),
    *('{"sent_s": null}', '{"end_s": 1e300}', '{"index": 1e99}'),
)
"""Lines of a journal, or what is wrong in a good row."""


def test_a_journal_with_a_bad_row_gives_the_rest_and_a_finding(whole: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(whole, tmp_path / "run")
    table = pq.read_table(directory / "requests.parquet")
    (directory / "requests.parquet").unlink()
    good = table.to_pylist()
    bad = [x if x[0] != "{" or x == "{" else json.dumps(good[0] | json.loads(x)) for x in BAD_ROWS]
    lines = [json.dumps(row) for row in good]
    (directory / "requests.jsonl").write_text("\n".join([*lines[:20], *bad, *lines[20:]]) + "\n")
    stored = read_run(directory)
    pd.testing.assert_frame_equal(stored.requests, read_run(whole).requests)
    (directory / "summary.json").unlink()
    found = {each.code: each.text for each in summary_of(stored).findings}
    assert f"{len(BAD_ROWS)} of requests" in found["damaged-rows"]


def test_a_summary_of_another_run_json_is_made_anew(whole: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(whole, tmp_path / "run")
    content = (directory / "run.json").read_bytes()
    edited(lambda raw: raw["workload"]["objectives"].update(ttft_s=1e-6))(directory)
    assert summary_of(read_run(directory))["objectives_met"].value == 0
    (directory / "run.json").write_bytes(content)
    assert summary_of(read_run(directory))["objectives_met"].value == 1


def test_groups_without_a_token_are_no_reason_for_a_warning(whole: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(whole, tmp_path / "run")
    edited(lambda raw: raw.update(sha256={}))(directory)
    rows = pq.read_table(directory / "requests.parquet")
    none = pa.array([[0] * len(each) for each in rows["arrival_tokens"].to_pylist()], pa.list_(pa.int32()))
    at = rows.column_names.index("arrival_tokens")
    pq.write_table(rows.set_column(at, "arrival_tokens", none), directory / "requests.parquet")
    (directory / "summary.json").unlink()
    with warnings.catch_warnings(action="error"):
        assert summary_of(read_run(directory))["requests.completed"].value == 40


def test_a_row_that_cannot_be_stored_loses_no_other(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_file())
    for number, tokens in enumerate((4, 10**20, 4)):
        writer.add(record(number, output_tokens=tokens))
    writer.finish("complete")
    stored = read_run(writer.directory)
    assert stored.requests["index"].tolist() == [0, 2]
    assert stored.skipped == {"requests": 1}


def test_what_is_no_regular_file_is_skipped_or_named_and_never_waited_for(whole: Path, tmp_path: Path) -> None:
    for name in ("good", "fifo.json", "fifo.rows", "device"):
        shutil.copytree(whole, tmp_path / name)
    for place in ("in-place", "fifo.json/run.json", "fifo.rows/requests.parquet", "fifo.rows/summary.json"):
        (tmp_path / place).unlink(missing_ok=True)
        os.mkfifo(tmp_path / place)
    (tmp_path / "device/run.json").unlink()
    (tmp_path / "device/run.json").symlink_to("/dev/zero")
    table = index.runs(tmp_path).set_index("run")
    assert table["state"].to_dict() == {"good": "complete"} | dict.fromkeys(
        ("fifo.json", "fifo.rows", "device"), "damaged"
    )
    assert "not a regular file" in table["error"]["device"]


def test_a_latest_that_links_to_itself_is_passed_over(whole: Path, tmp_path: Path, harness: Command) -> None:
    shutil.copytree(whole, tmp_path / "runs/good")
    (tmp_path / "runs/latest").symlink_to("latest")
    assert harness("report", "good", "--root", "runs").code == 0
    assert harness("report", "latest", "--root", "runs").code == 2


def test_a_file_that_has_no_room_is_named(whole: Path, harness: Command) -> None:
    Path("full.csv").symlink_to("/dev/full")
    for words in ("-o", "--requests-csv"):
        left = harness("report", str(whole), words, "full.csv")
        assert left.code == 2
        assert left.err.startswith("error: cannot write to full.csv: No space left on device (ENOSPC)")


def test_a_directory_whose_name_is_not_utf8_is_named_and_the_others_are_listed(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "good")
    shutil.copytree(whole, os.fsdecode(os.fsencode(tmp_path) + b"/n\xff"))
    for _ in range(2):  # the second time from the index
        assert index.runs(tmp_path).set_index("run")["state"].to_dict() == {"good": "complete", r"n\xff": "damaged"}
    assert set(index.figures(tmp_path)["run"]) == {"good"}
    with pytest.raises(HarnessError, match=r"n\\xff: the name is not UTF-8"):
        read_run(Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xff")))


@pytest.mark.parametrize("column", ["run", "error", "engine_version"])
def test_an_index_with_columns_of_another_kind_is_made_anew(column: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "good")
    before = index.runs(tmp_path)
    table = pq.read_table(tmp_path / index.FILE)
    lists = pa.array([[1.5]] * len(table))
    pq.write_table(table.set_column(table.column_names.index(column), column, lists), tmp_path / index.FILE)
    pd.testing.assert_frame_equal(index.runs(tmp_path), before)


def test_a_copied_run_is_listed_by_its_directory(whole: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(whole, tmp_path / name)
    assert index.runs(tmp_path)["run"].tolist() == ["a", "b"]
    assert summary_of(read_run(tmp_path / "b")).run == "b"


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (MemoryError(), "ENOMEM.*not damaged"),
        (OSError(errno.EMFILE, ""), "EMFILE.*ulimit -n"),
        (OSError(errno.EACCES, ""), "EACCES.*access"),
        (ZeroDivisionError("x"), "ZeroDivisionError.*restore"),
    ],
)
def test_only_damage_is_the_fault_of_the_run(refused: Exception, words: str) -> None:
    with pytest.raises(HarnessError, match=f"(?s){words}"), reading(Path("a")):
        raise refused
