"""The measuring loop against the simulated engine, whose tokens come on a known schedule."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import ENDLESS, KNOWN

from harness.config import overrides
from harness.errors import HarnessError
from harness.measure import power
from harness.measure import run as measuring
from harness.measure.eventloop import event_loop
from harness.measure.sender import Progress
from harness.measure.session import output_to
from harness.store.run import Run, read_run
from harness.workload.schema import parse_workload

pytestmark = pytest.mark.alone


def measure(root: Path, *words: str) -> Run:
    phases: list[str] = []
    directory = measuring.run(
        parse_workload(KNOWN, "test", overrides(words)), root, lambda progress: phases.append(progress.phase)
    )
    assert phases[0] == "starting"
    assert phases[-1] == "stopping"
    return read_run(directory)


def test_every_request_is_recorded_once_with_its_tokens(tmp_path: Path) -> None:
    run = measure(tmp_path)
    rows = run.requests.sort_values("index")
    assert run.file.state == "complete"
    assert rows["index"].tolist() == list(range(12))
    assert rows["input_asked"].tolist() == [7] * 12
    assert rows["output_tokens"].tolist() == [5] * 12
    for row in rows.to_dict("records"):
        assert row["arrival_tokens"] == [1] * 5
        assert 0 <= row["scheduled_s"] <= row["sent_s"] < row["arrival_s"][0]
        assert row["end_s"] >= row["arrival_s"][-1]
        # each token on its schedule, within what a busy machine adds
        assert np.allclose(np.array(row["arrival_s"]) - row["sent_s"], 0.03 + 0.002 * np.arange(5), atol=0.02)


def test_the_run_file_holds_the_workload_and_the_environment(tmp_path: Path) -> None:
    run = measure(tmp_path, "seed=3")
    file = run.file
    assert file.workload.model_dump() == parse_workload(KNOWN, "test", {"seed": 3}).model_dump(mode="json")
    assert file.engine is not None
    assert file.engine.options["ttft_s"] == 0.03
    assert file.environment.python == sys.version.split()[0]
    assert (file.environment.cpu.cores_usable or 0) >= 1
    assert file.timings.measured_s is not None
    assert file.timings.measured_s >= 3 * (0.03 + 4 * 0.002)
    assert file.clock is not None
    assert (tmp_path / "latest").resolve() == run.directory


def test_a_closed_loop_never_exceeds_its_users(tmp_path: Path) -> None:
    rows = measure(tmp_path, "requests.count=20", "load.users=3").requests
    for moment in rows["sent_s"]:
        assert ((rows["sent_s"] <= moment) & (rows["end_s"] > moment)).sum() <= 3


def test_a_duration_ends_a_run_without_a_count(tmp_path: Path) -> None:
    overrides = ("requests.count=null", "load.duration_s=0.2")
    run = measure(tmp_path, *overrides)
    assert run.requests["scheduled_s"].max() < 0.2
    assert len(run.requests) >= 8
    assert run.requests["error"].isna().all()


def test_in_an_open_loop_the_response_time_contains_the_queue(tmp_path: Path) -> None:
    """One request at a time takes 38 ms and 100 come each second: the wait grows by 28 ms a request."""
    slow = ("engine.capacity=1", "requests.count=20", "warmup.requests=0")
    opened = measure(tmp_path, *slow, "load={shape: constant, rate_per_s: 100, max_in_flight: 1}").requests
    response_s = opened["arrival_s"].list[-1] - opened["scheduled_s"]
    e2e_s = opened["arrival_s"].list[-1] - opened["sent_s"]
    assert response_s.max() > 0.038 + 19 * 0.028 - 0.03
    assert e2e_s.median() < 0.1
    closed = measure(tmp_path, *slow, "load={shape: closed, users: 1}").requests
    response_s = closed["arrival_s"].list[-1] - closed["scheduled_s"]
    assert response_s.median() < 0.1


def test_offline_sends_everything_at_once(tmp_path: Path) -> None:
    rows = measure(tmp_path, "load={shape: offline}", "requests.count=50", "engine.ttft_s=0.3").requests
    assert rows["scheduled_s"].tolist() == [0.0] * 50
    assert rows["sent_s"].max() < rows["end_s"].min()


def test_requests_are_sent_while_others_are_built(tmp_path: Path) -> None:
    """At a rate that nothing can keep up with, the first request leaves at once and its tokens are stamped in time."""
    late = ("load={shape: constant, rate_per_s: 1e6}", "requests.count=2000", "requests.input_tokens=2000")
    rows = measure(tmp_path, *late).requests.sort_values("index")
    assert rows["sent_s"].iloc[0] < 0.2 * rows["sent_s"].iloc[-1]
    assert rows["arrival_s"].iloc[0][0] < rows["sent_s"].iloc[-1]


def test_failed_requests_are_records_and_the_run_goes_on(tmp_path: Path) -> None:
    rows = measure(tmp_path, "engine.failure_share=0.5", "requests.count=40", "warmup.requests=0").requests
    failed = rows[rows["error"].notna()]
    assert set(failed["error"]) == {"simulated"}
    assert 8 <= len(failed) <= 32
    assert failed["output_tokens"].isna().all()
    assert failed["arrival_s"].map(len).tolist() == [1] * len(failed)


def test_a_load_whose_requests_all_fail_backs_off_and_ends_as_failed(tmp_path: Path) -> None:
    dead = ("engine.failure_share=1", "engine.ttft_s=0", "engine.itl_s=0", "warmup.requests=0", "give_up_s=0.6")
    run = measure(tmp_path, *dead, *ENDLESS)
    assert run.file.state == "failed"
    assert run.file.error is not None
    assert "no request succeeded for" in run.file.error
    assert "requests failed: simulated" in run.file.error
    assert 4 * 3 < len(run.requests) < 4 * 20  # 4 users wait 20 ms, 40 ms, 80 ms…


def test_a_load_with_some_success_or_an_old_answer_is_not_given_up(tmp_path: Path) -> None:
    some = ("engine.failure_share=0.4", "warmup.requests=0", "give_up_s=0.2", "load.duration_s=1")
    assert measure(tmp_path, *some, "requests.count=null").file.state == "complete"


def test_a_run_in_which_most_requests_failed_is_not_complete(tmp_path: Path) -> None:
    run = measure(tmp_path, "engine.failure_share=0.8", "requests.count=40", "warmup.requests=0")
    assert run.file.state == "failed"
    assert run.file.error is not None
    assert re.fullmatch(r"\d\d of 40 requests failed: simulated \d\d", run.file.error)


def test_the_death_of_the_engine_keeps_the_requests_measured_so_far(tmp_path: Path) -> None:
    run = measure(tmp_path, "engine.dies_after=6", "warmup.requests=0")
    assert run.file.state == "failed"
    assert run.file.error is not None
    assert "the engine died" in run.file.error
    assert run.requests["error"].isna().sum() in range(2, 7)
    assert "engine_died" in set(run.requests["error"].dropna())


def test_an_engine_that_dies_in_its_warm_up_is_a_failed_run(tmp_path: Path) -> None:
    run = measure(tmp_path, "engine.dies_after=0")
    assert run.file.state == "failed"
    assert len(run.requests) == 0


def test_a_mistake_in_the_set_up_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="speed"):
        measure(tmp_path, "engine.speed=3")
    with pytest.raises(HarnessError, match="wattson"):
        measuring.run(parse_workload(KNOWN, "test"), tmp_path, lambda _: None, measuring.Setup(["wattson"]))
    assert list(tmp_path.iterdir()) == []


def test_meters_are_read_while_the_engine_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting takes minutes; an unread meter fills its pipe, and would miss the idle power of the loaded engine."""
    monkeypatch.setattr(power, "IDLE_S", 0.1)
    readings = tmp_path / "power.csv"
    readings.write_text("\n".join(f"{i / 50},100" for i in range(500)))
    sizes: list[int] = []

    def notify(progress: Progress) -> None:
        if progress.phase == "starting":
            sizes.append(sum(path.stat().st_size for path in (tmp_path / "runs").glob("*/power.jsonl")))

    spec = parse_workload(KNOWN, "test", {"engine.start_s": 1})
    measuring.run(spec, tmp_path / "runs", notify, measuring.Setup([f"replay:path={readings}"]))
    assert 0 < sizes[1] < sizes[2] < sizes[3]


def test_a_run_with_one_process_stores_its_client_statistics(tmp_path: Path) -> None:
    (client,) = measure(tmp_path).file.clients
    assert client.model_dump()["client"] == 0
    assert client.cpu_s is not None
    assert client.elapsed_s is not None
    assert client.loop_delay_s is not None
    assert 0 < client.cpu_s <= 2 * client.elapsed_s
    assert 0 < client.loop_delay_s.p50 <= client.loop_delay_s.p99 <= client.loop_delay_s.max


def test_a_failed_warm_up_names_the_option_that_skips_it(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"warmup\.requests=0"):
        measure(tmp_path, "engine.failure_share=1")
    (directory,) = tmp_path.glob("2*")
    assert read_run(directory).file.state == "failed"


def test_output_of_the_process_and_its_children_goes_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with output_to(tmp_path / "log"):
        os.write(1, b"from here\n")
        subprocess.run(["sh", "-c", "echo from a child; echo its error >&2"], check=True)
    os.write(1, b"after\n")
    assert (tmp_path / "log").read_text() == "from here\nfrom a child\nits error\n"
    assert capfd.readouterr().out == "after\n"


def test_timers_are_better_than_a_millisecond() -> None:
    async def lateness_s() -> list[float]:
        late = []
        for _ in range(60):
            due = asyncio.get_running_loop().time() + 0.0023
            await asyncio.sleep(0.0023)
            late.append(asyncio.get_running_loop().time() - due)
        return late

    with asyncio.Runner(loop_factory=event_loop) as runner:
        assert np.median(runner.run(lateness_s())) < 0.0004
