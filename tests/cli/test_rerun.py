"""A stored run measured once more: as it was asked, and set against what it was."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import QUICK, Command

from harness.measure import power


def stored() -> list[tuple[Path, dict[str, Any]]]:
    """Every run's directory and run.json, oldest first."""
    files = [path for path in Path("results").glob("*/run.json") if not path.parent.is_symlink()]
    runs = [(path.parent, json.loads(path.read_text())) for path in files]
    return sorted(runs, key=lambda each: str(each[1]["created_utc"]))


def test_rerun_measures_the_same_workload_and_compares_the_two_runs(
    harness: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "IDLE_S", 0.1)
    asked = ("--set", "seed=7", "--set", "requests.count=24", "--meter", "constant:watts=90", "--pue", "1.2")
    assert harness(*QUICK, *asked).code == 0
    again = harness("rerun", "latest")
    assert again.code == 0, again.err
    assert "NEW against BASE" in again.out
    (_, before), (_, after) = stored()
    for same in ("workload", "engine_asked", "meters_asked", "declared"):
        assert after[same] == before[same]
    assert after["meters_asked"] == ["constant:watts=90"]
    assert after["declared"] == {"pue": 1.2}
    lengths = [raw["engine"]["options"] for raw in (before, after)]
    assert lengths[0] == lengths[1]


def test_a_run_that_its_precision_ended_is_measured_again_with_as_many_requests(harness: Command) -> None:
    """Conversations of two turns count as one each."""
    asked = ("--set", "requests.count=5000", "--set", "requests.turns=2", "--precision", "requests_per_s=30%")
    first = harness(*QUICK, *asked)
    assert first.code == 0, first.err
    again = harness("rerun")
    assert again.code == 0, again.err
    (directory, before), (_, after) = stored()
    ended = pd.read_parquet(directory / "requests.parquet")
    first_turns = int((ended["turn"].fillna(0).eq(0) & ended["age_tokens"].isna()).sum())
    assert first_turns == after["workload"]["requests"]["count"] < before["workload"]["requests"]["count"] == 5000


def test_another_machine_is_refused_and_another_version_is_named(harness: Command) -> None:
    harness(*QUICK, "--set", "requests.count=8")
    ((directory, raw),) = stored()
    raw["environment"]["packages"]["numpy"] = "0.9"
    raw["engine"]["device"] = "cpu"  # a real engine's run
    (directory / "run.json").write_text(json.dumps(raw))
    same = harness("rerun")
    assert "packages.numpy differs: 0.9 vs" in same.err
    assert same.code == 0
    raw["environment"]["cpu"]["model"] = "Another CPU"
    (directory / "run.json").write_text(json.dumps(raw))
    refused = harness("rerun", directory.name)
    assert refused.code == 2
    assert f"differs from that of {directory.name}: cpu differs: Another CPU vs" in refused.err
    forced = harness("rerun", directory.name, "--force")
    assert forced.code == 0, forced.err
    assert "FORCED" in forced.out


def test_a_stored_workload_of_another_version_is_an_error_that_names_the_file(harness: Command) -> None:
    harness(*QUICK, "--set", "requests.count=8")
    ((directory, raw),) = stored()
    raw["workload"]["requests"]["colour"] = "blue"
    (directory / "run.json").write_text(json.dumps(raw))
    refused = harness("rerun")
    assert refused.code == 2
    assert "run.json" in refused.err
    assert "requests.colour" in refused.err


def test_after_a_crash_no_older_run_passes_for_the_newest(harness: Command, tmp_path: Path) -> None:
    assert harness(*QUICK).code == 0
    first = (tmp_path / "results/latest").resolve()
    slow = ("--set", "load.users=1", "--set", "requests.count=500", "--set", "engine.ttft_s=1")
    command = [sys.executable, "-m", "harness", *QUICK, *slow]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as dying:
        while (tmp_path / "results/latest").resolve() == first:
            time.sleep(0.05)
        dying.kill()
    checked = harness("check")
    assert checked.code in (1, 3)
    assert "interrupted" in checked.out + checked.err
    older = harness("report", first.name)
    assert older.code == 0
    assert "is interrupted; what follows is of older runs" in older.err
    gated = harness("diff", first.name, "--fail-on", "output_tps<-3%")
    assert gated.code in (1, 2, 3)


def test_a_run_is_not_compared_with_itself(harness: Command) -> None:
    assert harness(*QUICK).code == 0
    refused = harness("diff", "latest", "--fail-on", "output_tps<-3%")
    assert refused.code == 2
    assert "both sides" in refused.err
