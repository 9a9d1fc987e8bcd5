"""Runs that overlap on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from harness.measure.beside import FORGET_S, Beside


def test_runs_that_overlap_see_each_other_once(tmp_path: Path) -> None:
    with Beside(tmp_path) as first:
        assert first.count() == 0
        with Beside(tmp_path) as second:
            assert (first.count(), second.count()) == (1, 1)
        assert first.count() == 1  # it has ended, and did overlap
    with Beside(tmp_path) as later:
        assert later.count() == 0


def test_a_run_that_began_and_ended_within_another_is_seen(tmp_path: Path) -> None:
    with Beside(tmp_path) as long:
        time.sleep(0.02)
        with Beside(tmp_path):
            pass
        assert long.count() == 1


def test_a_crashed_run_is_not_seen_and_is_forgotten(tmp_path: Path) -> None:
    code = "import os, sys; from harness.measure.beside import *; Beside(Path(sys.argv[1])).__enter__(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    time.sleep(0.02)
    with Beside(tmp_path) as run:
        assert run.count() == 0
        os.utime(left, (0, time.time() - FORGET_S - 1))
        run.count()
        assert not left.exists()


def test_a_place_that_cannot_be_written_hides_other_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Beside(tmp_path / "file" / "x") as run:
        assert run.count() == 0
