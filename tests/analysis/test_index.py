"""The index of runs: its columns, its updates after changes on disk, and conditions on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.analysis import index
from harness.errors import HarnessError
from harness.measure import run
from harness.workload.schema import parse_workload

WORKLOAD = """
name: tiny
engine: {name: simulated, simulated: {ttft_s: 0.001, itl_s: 0.0}}
requests: {count: 2, input_tokens: 8, output_tokens: 4}
load: {shape: closed, users: 1}
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with two runs, of one user and of two."""
    root = tmp_path_factory.mktemp("runs")
    for users in (1, 2):
        run.run(parse_workload(WORKLOAD, "tiny", {"load.users": users}), root, lambda _: None)
    return root


@pytest.fixture
def root(two: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "runs", symlinks=True))


def test_a_run_is_a_row_with_its_figures(root: Path) -> None:
    table = index.runs(root)
    assert table["users"].tolist() == [1, 2]
    assert table["state"].tolist() == ["complete", "complete"]
    assert table["requests.completed"].tolist() == [2, 2]
    assert set(index.FIELDS) <= set(table.columns)


def test_the_stored_index_equals_a_new_one(root: Path) -> None:
    new = index.runs(root)
    assert (root / index.FILE).is_file()
    pd.testing.assert_frame_equal(index.runs(root), new)


def test_removed_added_and_damaged_runs_update_the_index(root: Path) -> None:
    first, second = index.runs(root)["run"]
    shutil.rmtree(root / first)
    assert index.runs(root)["run"].tolist() == [second]
    shutil.copytree(root / second, root / "another")
    assert index.runs(root)["state"].tolist() == ["complete"] * 2
    (root / "another/run.json").write_text("{")
    damaged = index.runs(root, "state=damaged")
    assert damaged["run"].tolist() == ["another"]
    assert "run.json" in damaged["error"].item()
    shutil.copy(root / second / "run.json", root / "another/run.json")
    assert index.runs(root, "state=damaged").empty


@pytest.mark.parametrize("content", ["", "PAR1", "PAR1 garbage PAR1"])
def test_a_damaged_index_is_rebuilt(root: Path, content: str) -> None:
    (root / index.FILE).write_text(content)
    assert len(index.runs(root)) == 2


def test_a_root_without_runs_gives_empty_tables(tmp_path: Path) -> None:
    assert index.runs(tmp_path).empty
    assert index.runs(tmp_path / "absent").empty
    assert index.figures(tmp_path).empty


@pytest.mark.parametrize(
    ("where", "users"),
    [
        ("users=1", [1]),
        ("users!=1", [2]),
        ("users<=2 and users>1", [2]),
        ("workload=TINY", [1, 2]),
        ("workload='ti*' and users=2", [2]),
        ("workload!=ti*", []),
        ("rate_per_s=n/a", [1, 2]),
        ("rate_per_s!=n/a", []),
        ("rate_per_s<5", []),  # a missing value is not small
        ("ttft_s.p50>0.0009 and ttft_s.p50<1", [1, 2]),
        ("created_utc>=2020", [1, 2]),
    ],
)
def test_a_condition_selects_the_runs_that_meet_it(root: Path, where: str, users: list[int]) -> None:
    assert index.runs(root, where)["users"].tolist() == users


@pytest.mark.parametrize(
    ("where", "word"), [("users", "not a condition"), ("colour=red", "colour"), ("users<many", "many"), ("", "''")]
)
def test_a_condition_that_cannot_be_read_is_refused(root: Path, where: str, word: str) -> None:
    with pytest.raises(HarnessError, match=word):
        index.runs(root, where)


def test_every_figure_is_exported_with_its_run(root: Path) -> None:
    table = index.figures(root, "users=2")
    wide = index.runs(root, "users=2")
    assert table["users"].unique().tolist() == [2]
    values = table.set_index("figure")["value"]
    assert values["requests.completed"] == wide["requests.completed"].item() == 2
    assert table.set_index("figure")["unit"]["ttft_s.p50"] == "s"


def test_figures_are_made_in_parts_and_a_run_damaged_since_is_left_out(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = index.figures(root)
    monkeypatch.setattr(index, "PART", 1)
    pd.testing.assert_frame_equal(index.figures(root), whole)
    damaged = min(path.name for path in root.glob("2*"))
    (root / damaged / "summary.json").unlink()
    (root / damaged / "requests.parquet").write_bytes(b"")
    assert set(whole["run"]) - set(index.figures(root)["run"]) == {damaged}
