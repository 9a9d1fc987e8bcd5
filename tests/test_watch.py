"""Watching: what the directory of a run in progress says, however many journals it has, and how the verb ends."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from harness import errors, shipped
from harness import run as measuring
from harness.journal import Journal
from harness.model import PowerSample, Record
from harness.sender import Progress
from harness.store import RunFile, RunWriter
from harness.watch import Tail, Watched


def writer(root: Path) -> RunWriter:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    return RunWriter(
        root, RunFile(id="r", created_utc=now, pid=1, workload={}, engine_asked="simulated", environment={})
    )


def request(index: int, ttft_s: float, gap_s: float, error: str | None = None) -> Record:
    arrivals = tuple(index + ttft_s + gap_s * i for i in range(11))
    return Record(index, index, float(index), arrivals[-1], arrivals, (1,) * 11, 5, 11, error=error)


def test_a_tail_gives_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    tail = Tail(path)
    assert tail.rows() == []
    with path.open("w") as file:
        for part, found in (('{"a":1}\n{"a"', [{"a": 1}]), (":2", []), ("}\n", [{"a": 2}]), ("", [])):
            file.write(part)
            file.flush()
            assert tail.rows() == found


def test_a_look_gives_rates_and_latencies_of_the_window_and_of_all(tmp_path: Path) -> None:
    run = writer(tmp_path)
    watched = Watched(run.directory, 2)
    first = watched.look()
    assert (first.progress.phase, first.tokens_per_s, first.power_w) == ("starting", (None, None), {})
    assert first.latency_s == {"TTFT": ({}, {}), "ITL": ({}, {})}
    clients = [Journal(run.client_journal(k)) for k in range(2)]
    ttft_s = np.geomspace(0.02, 2, 60)
    for look in range(3):  # each client ends ten requests between two looks; one of them fails
        for k, client in enumerate(clients):
            at = [look * 20 + k * 10 + i for i in range(10)]
            client.add(*(request(i, ttft_s[i], 0.01 * (look + 1), "timeout" if i == 59 else None) for i in at))
        run.show(Progress("measuring", 10.0 * (look + 1), 20, 0, 7, 1000 * (look + 1) ** 2, None, 60.0))
        seen = watched.look()
    # 1000, 4000 and 9000 tokens at 10, 20 and 30 s: the window of two looks begins at the first.
    assert seen.tokens_per_s == (400.0, 300.0)
    assert (seen.finished, seen.failed, seen.progress.in_flight) == (60, 1, 7)
    recent, in_all = seen.latency_s["TTFT"]
    for found, known in ((recent, ttft_s[20:59]), (in_all, ttft_s[:59])):
        exact = np.quantile(known, [0.5, 0.9, 0.99], method="inverted_cdf")
        assert list(found.values()) == pytest.approx(exact, rel=0.012)
    recent, in_all = seen.latency_s["ITL"]  # 200 gaps of 20 ms and 190 of 30 ms, after 200 of 10 ms
    assert list(recent.values()) == pytest.approx([0.02, 0.03, 0.03], rel=0.012)
    assert list(in_all.values()) == pytest.approx([0.02, 0.03, 0.03], rel=0.012)
    assert seen.file.state == "running"
    run.finish("complete")
    assert watched.look().file.state == "complete"


def test_power_is_that_of_counters_or_else_of_the_last_readings(tmp_path: Path) -> None:
    run = writer(tmp_path)
    watched = Watched(run.directory, 10)
    for second in range(21):  # two GPUs at 300 and 100 W by their counters, of which one also has a reading
        run.add_power([
            PowerSample(second, second, "0", "gpu", energy_j=5e5 + 300.0 * second, power_w=555.0),
            PowerSample(second, second, "1", "gpu", energy_j=7e5 + 100.0 * second),
            PowerSample(second, second, "host", "host", power_w=50.0 + second),
            PowerSample(second, second, "0", "gpu memory"),
        ])  # fmt: skip
    assert watched.look().power_w == pytest.approx({"gpu": 400.0, "host": 70.0})


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "killed"])
def test_the_verb_follows_a_run_and_leaves_with_its_state(tmp_path: Path, killed: bool) -> None:
    run = writer(tmp_path)
    run.show(Progress("measuring", 3.0, 1, 0, 4, 900, None, 60.0))
    run.add(request(0, 0.1, 0.02))
    command = [sys.executable, "-m", "harness", "watch", "--root", str(tmp_path), "--seconds", "2"]
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, env=path, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == (
            "measuring, 3 of 60 s; n/a tokens/s (so far 300.0); 4 in flight, 1 done, 0 failed; "
            "TTFT p50 / p90 / p99 101 / 101 / 101 ms; ITL p50 / p90 / p99 20.2 / 20.2 / 20.2 ms; no meter\n"
        )
        if killed:
            del run  # and the lock with it
        else:
            run.finish("complete")
        rest = watch.stdout.read()
    assert rest.startswith("r: interrupted (" if killed else "r: complete\n")
    assert watch.returncode == (errors.INCOMPLETE if killed else errors.OK)


def test_a_run_says_how_far_it_is(tmp_path: Path) -> None:
    phases: list[str] = []

    def look(_: Progress) -> None:
        phases.extend(Watched(path.parent, 2).look().progress.phase for path in tmp_path.glob("*/run.json"))

    sets = ("requests.count=8", "engine.ttft_s=0.2", "warmup.requests=1")
    directory = measuring.run(shipped.read_workload("smoke", [*sets, "engine.name=simulated"]), tmp_path, look)
    assert list(dict.fromkeys(phases)) == ["starting", "warming up", "measuring"]
    assert not (directory / "progress.json").exists()
