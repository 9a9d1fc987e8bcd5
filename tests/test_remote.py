"""Roots behind a URL, on fsspec's file system for local files: what is stored is there, and comes back elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fsspec")
ROOT = Path(__file__).parent.parent
RUN = ["run", "smoke", "--engine", "simulated", "--set", "requests.count=4"]


def harness(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command on a machine whose mirrors are in `cache`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HARNESS_CACHE": str(cache)}
    command = [sys.executable, "-m", "harness", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_run_is_sent_and_read_on_another_machine(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket/results"
    assert harness(tmp_path / "here", *RUN, "--out", url).returncode == 0
    (stored,) = (tmp_path / "bucket/results").iterdir()
    assert {path.name for path in stored.iterdir()} >= {"run.json", "requests.parquet", "summary.json"}
    elsewhere = harness(tmp_path / "there", "list", "runs", "--root", url, "--where", "requests.completed=4")
    assert stored.name in elsewhere.stdout
    assert harness(tmp_path / "there", "report", stored.name, "--root", url, "--table", "latency").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in stored.iterdir()}
    assert harness(tmp_path / "there", *RUN, "--out", url).returncode == 0
    assert len(list((tmp_path / "bucket/results").iterdir())) == 2
    assert {path: path.stat().st_mtime_ns for path in stored.iterdir()} == before


@pytest.mark.parametrize("words", [["list", "runs", "--root", "nowhere://bucket/x"], [*RUN, "--out", "file:///proc/x"]])
def test_a_store_that_cannot_be_used_is_refused(words: list[str], tmp_path: Path) -> None:
    refused = harness(tmp_path, *words)
    assert refused.returncode == 2
    assert "error: " in refused.stderr
    assert "Traceback" not in refused.stderr
