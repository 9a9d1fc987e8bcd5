"""The spread between runs that earlier runs show."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from builders import stored

from harness.analysis.diff import Between
from harness.analysis.repeats import learned
from harness.analysis.summary import summary_of
from harness.store.directory import write_summary
from harness.store.run import Run, read_run

RATE = "output_tokens_per_s"


def copies(root: Path, first: Path, hours: list[float], values: list[float]) -> list[Run]:
    """Copies of a stored run that began so many hours after midnight, with these tokens per second."""
    made = []
    for i, (hour, value) in enumerate(zip(hours, values, strict=True)):
        path = shutil.copytree(first, root / f"copy-{i}")
        file, summary = json.loads((path / "run.json").read_text()), summary_of(read_run(path))
        began = f"2026-11-{20 + int(hour // 24):02}T{int(hour % 24):02}:{round(hour % 1 * 60):02}:00Z"
        (path / "run.json").write_text(json.dumps({**file, "id": path.name, "created_utc": began}))
        figures = tuple(replace(each, value=value) if each.name == RATE else each for each in summary.figures)
        write_summary(path, replace(summary, figures=figures))
        made.append(read_run(path))
    return made


def test_earlier_runs_of_the_session_teach_the_spread_within_it(tmp_path: Path) -> None:
    """Six earlier runs within the hour, 100 and 102 in turn: the deviations from the mean logarithm are known."""
    first = stored(tmp_path / "first")
    summary_of(read_run(first))
    (tmp_path / "root").mkdir()
    runs = copies(tmp_path / "root", first, [0.1 * i for i in range(8)], [100.0, 102.0] * 4)
    found = learned([runs[6]], [runs[7]])(RATE)
    assert found.sd == pytest.approx(math.log(1.02) / 2 * math.sqrt(6 / 5))
    assert (found.df, found.known) == (5, "learned from 6 earlier runs")
    assert learned(runs[3:6], runs[6:])(RATE) == Between()  # three earlier runs are too few


def test_sides_of_two_sessions_need_earlier_sessions(tmp_path: Path) -> None:
    first = stored(tmp_path / "first")
    summary_of(read_run(first))
    (tmp_path / "root").mkdir()
    runs = copies(tmp_path / "root", first, [0.0, 0.1, 0.2, 0.3, 0.4, 5.0, 9.0], [100.0] * 7)
    assert learned([runs[5]], [runs[6]])(RATE) == Between()  # five runs of one session
    for path in (tmp_path / "root").iterdir():
        shutil.rmtree(path)
    runs = copies(tmp_path / "root", first, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0], [100, 102, 100, 102, 100, 100, 100])
    found = learned([runs[5]], [runs[6]])(RATE)
    assert (found.df, found.known) == (4, "learned from 5 earlier sessions")
    assert found.sd == pytest.approx(0.0108, abs=2e-4)
