"""Several client processes send the load that one would send, and all end if one or the parent ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from known_server.server import known_server
from scipy import stats

from harness.config import overrides
from harness.errors import HarnessError
from harness.measure import run as measuring
from harness.store.run import Run, read_run
from harness.workload.schema import parse_workload

BASE = """
name: shared
engine: {name: simulated, simulated: {ttft_s: 0.03, itl_s: 0.002, jitter: 0.3}}
requests: {count: 24, input_tokens: {distribution: uniform, min: 5, max: 50}, output_tokens: 5}
load: {shape: closed, users: 4, start: burst}
warmup: {requests: 2}
"""
POISSON = "load={shape: poisson, rate_per_s: 400}"
ENDLESS = ("--set", "requests.count=null", "--set", "load.duration_s=600")


def measure(root: Path, clients: int, *words: str) -> Run:
    spec = parse_workload(BASE, "test", overrides(words))
    return read_run(measuring.run(spec, root, lambda _: None, measuring.Setup(clients=clients)))


@pytest.mark.parametrize(
    "load", ["load={shape: closed, users: 4}", "load={shape: closed, users: 4, start: burst}", POISSON]
)
def test_several_clients_send_the_requests_of_one(tmp_path: Path, load: str) -> None:
    rows = measure(tmp_path, 1, load).requests.sort_values("index", ignore_index=True)
    for n in (2, 3):
        several = measure(tmp_path, n, load)
        found = several.requests.sort_values("index", ignore_index=True)
        assert several.file.state == "complete"
        assert found["index"].tolist() == rows["index"].tolist()  # the first wave's too
        assert found["client"].value_counts().size == n
        columns = ["input_asked", "output_asked", "input_tokens", "output_tokens", "error"]
        assert found[columns].equals(rows[columns])
        if load == POISSON:
            assert found["scheduled_s"].equals(rows["scheduled_s"])
        assert [client.model_dump()["client"] for client in several.file.clients] == list(range(n))
        assert all(client.loop_delay_s is not None and client.loop_delay_s.n > 5 for client in several.file.clients)
        assert sorted(path.name for path in several.directory.iterdir()) == [
            "engine.log",
            "requests.parquet",
            "run.json",
        ]


@pytest.mark.alone
@pytest.mark.parametrize("late", ["client", "server"])
def test_stamps_of_tokens_read_together_are_late_if_the_loop_was_late_and_not_if_the_server_was(
    tmp_path: Path, late: str
) -> None:
    """Every 0.25 s one of both stands still for 0.1 s, while tokens are due every 10 ms."""
    with known_server(ttft_us=20_000, itl_us=10_000) as known:
        address = f"engine={{name: openai, options: {{base_url: {known.url}}}}}"
        spec = parse_workload(BASE, "test", overrides((address, "requests.output_tokens=48")))

        def stall(_: object) -> None:
            if late == "server":
                os.kill(known.pid, signal.SIGSTOP)
                threading.Timer(0.1, os.kill, (known.pid, signal.SIGCONT)).start()
            else:
                time.sleep(0.1)

        (client,) = read_run(measuring.run(spec, tmp_path, stall)).file.clients
        assert client.kernel_stamps
        assert client.late_stamp_s is not None
        assert (client.late_stamp_s.p99 > 0.05) is (late == "client")


@pytest.mark.alone
def test_users_split_unevenly_over_clients_all_send_until_the_end(tmp_path: Path) -> None:
    rows = measure(tmp_path, 2, "load.users=3", "requests.count=30").requests
    assert rows["client"].value_counts().to_dict() == {0: 20, 1: 10}
    for moment in rows["sent_s"]:
        assert ((rows["sent_s"] <= moment) & (rows["end_s"] > moment)).sum() <= 3
    ends = rows.groupby("client")["end_s"].max()
    assert abs(ends[0] - ends[1]) < 0.5 * ends.max()


@pytest.mark.alone
@pytest.mark.parametrize("shape", ["constant", "poisson"])
def test_arrivals_of_several_clients_have_the_shape_of_the_load(tmp_path: Path, shape: str) -> None:
    """Gaps between sent times: Kolmogorov-Smirnov and lag-1 correlation for poisson, median deviation for constant."""
    quick = ("engine.ttft_s=0.001", "engine.itl_s=0", "requests.output_tokens=1", "requests.count=500")
    rows = measure(tmp_path, 3, f"load={{shape: {shape}, rate_per_s: 200}}", *quick).requests
    gaps = np.diff(np.sort(rows["sent_s"]))
    if shape == "constant":
        # The median: on a busy machine some gaps are off through no fault of the sender.
        assert np.median(np.abs(gaps - 0.005)) < 0.0015  # 2.7 ms if they were exponential
    else:
        assert stats.kstest(gaps, "expon", args=(0, 1 / 200)).pvalue > 0.001
        assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 4 / np.sqrt(len(gaps))


def test_a_run_ends_when_enough_returns_true(tmp_path: Path) -> None:
    for clients in (1, 2):
        spec = parse_workload(BASE, "test", overrides(ENDLESS[1::2]))
        run = read_run(
            measuring.run(
                spec,
                tmp_path,
                lambda _: None,
                measuring.Setup(clients=clients),
                enough=lambda directory: len(read_run(directory).requests) > 20,
            )
        )
        assert run.file.state == "complete"
        assert run.requests["error"].isna().all()
        assert 20 < len(run.requests) < 2000


def test_an_engine_that_dies_in_one_client_ends_all(tmp_path: Path) -> None:
    run = measure(tmp_path, 2, "engine.dies_after=6", "warmup.requests=0", "requests.count=1000")
    assert run.file.state == "failed"
    assert run.file.error is not None
    assert "the engine died" in run.file.error
    assert run.requests["error"].isna().sum() >= 6


@pytest.mark.parametrize(
    ("words", "clients", "message"),
    [
        (("engine.name=transformers",), 2, "runs inside the harness's own process"),
        (("load.users=1",), 2, "cannot share load.users=1"),
        (("load={shape: constant, rate_per_s: 9, max_in_flight: 2}",), 3, "cannot share load.max_in_flight=2"),
    ],
)
def test_a_load_that_cannot_be_shared_is_rejected(
    tmp_path: Path, words: tuple[str, ...], clients: int, message: str
) -> None:
    with pytest.raises(HarnessError, match=message):
        measure(tmp_path, clients, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_clients_error_is_raised_in_the_parent(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="a warm-up request failed"):
        measure(tmp_path, 2, "engine.failure_share=1")
    assert read_run(tmp_path / "latest").state == "failed"


class Started:
    """`harness run --clients 2` in another process, started until both journals have some requests."""

    def __init__(self, tmp_path: Path) -> None:
        path, self.out = tmp_path / "shared.yaml", tmp_path / "runs"
        path.write_text(BASE)
        words = ["run", str(path), "--out", str(self.out), *ENDLESS, "--clients", "2"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            journals = list(self.out.glob("2*/requests-*.jsonl"))
            if len(journals) == 2 and all(path.stat().st_size > 10_000 for path in journals):
                break
            time.sleep(0.02)
        self.directory = journals[0].parent
        harness = psutil.Process(self.process.pid)
        self.clients = [child for child in harness.children() if "clients" in " ".join(child.cmdline())]
        assert len(self.clients) == 2


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    run = Started(tmp_path)
    yield run
    run.process.kill()
    run.process.communicate()
    assert psutil.wait_procs(run.clients, 10)[1] == []


def test_one_interrupt_ends_all_clients_and_stores_the_run(started: Started) -> None:
    started.process.send_signal(signal.SIGINT)
    _, errors = started.process.communicate(timeout=30)
    assert started.process.returncode == 3, errors
    run = read_run(started.directory)
    assert (run.file.state, run.file.error) == ("interrupted", "interrupted while measuring")
    assert set(run.requests["error"].dropna()) == {"aborted"}
    assert run.requests.groupby("client")["error"].apply(lambda kind: kind.isna().sum()).min() > 20
    assert len(run.file.clients) == 2


def test_a_killed_client_fails_the_run_and_its_records_are_kept(started: Started) -> None:
    started.clients[0].kill()
    _, errors = started.process.communicate(timeout=30)
    assert started.process.returncode == 3, errors
    run = read_run(started.directory)
    assert run.file.state == "failed"
    assert run.file.error is not None
    assert run.file.error.startswith("client process ")
    assert "signal 9" in run.file.error
    assert run.requests.groupby("client")["error"].apply(lambda kind: kind.isna().sum()).min() > 20


def test_clients_end_when_the_parent_is_killed(started: Started) -> None:
    before = len(read_run(started.directory).requests)  # a running run is read from all journals
    assert before > 40
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.wait()
    assert psutil.wait_procs(started.clients, 10)[1] == []
    run = read_run(started.directory)
    assert run.file.state == "interrupted"
    assert len(run.requests) >= before
    assert run.requests["sent_s"].is_monotonic_increasing
    assert json.loads((started.directory / "run.json").read_text())["state"] == "running"
