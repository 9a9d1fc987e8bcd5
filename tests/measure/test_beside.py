"""Runs that overlap on one machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness.measure.environment import Beside


def test_runs_that_overlap_see_each_other(tmp_path: Path) -> None:
    first = Beside(tmp_path / "lock")
    assert not first.seen()
    second = Beside(tmp_path / "lock")
    assert first.seen()
    assert second.seen()
    first.close()
    third = Beside(tmp_path / "lock")  # the second still runs
    assert third.seen()
    second.close()
    third.close()
    assert not Beside(tmp_path / "lock").seen()


def test_a_run_that_began_and_ended_within_another_is_seen(tmp_path: Path) -> None:
    long = Beside(tmp_path / "lock")
    Beside(tmp_path / "lock").close()
    assert long.seen()


def test_a_crashed_run_is_not_seen(tmp_path: Path) -> None:
    code = "import os, sys; from harness.measure.environment import *; b = Beside(Path(sys.argv[1])); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], check=False)
    run = Beside(tmp_path / "lock")
    assert (tmp_path / "lock").stat().st_size == 2
    assert not run.seen()


def test_a_place_that_cannot_be_written_hides_other_runs(tmp_path: Path) -> None:
    run = Beside(tmp_path / "missing" / "lock")
    assert not run.seen()
    run.close()
