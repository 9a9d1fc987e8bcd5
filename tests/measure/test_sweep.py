"""Sweeps on the simulated engine: killed, resumed, failing, with a search, with one worker and with Ray."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from places import ROOT

from harness.analysis.summary import summary_of
from harness.errors import HarnessError
from harness.measure import sweep as sweeping
from harness.measure.search import Sweep
from harness.measure.sender import Progress
from harness.measure.session import KEPT, output_to
from harness.measure.sweep import Status, carry_out, planned
from harness.measure.workers import Done, LocalWorker, Task, start_workers
from harness.store.directory import adopt, list_runs
from harness.store.run import read_run

ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed")

WORKLOAD = """
engine: {name: simulated, simulated: {ttft_s: 0.002, itl_s: 0.001, jitter: 0.2}}
requests: {count: 4, input_tokens: 8, output_tokens: 4}
load: {shape: closed, users: 1}
warmup: {requests: 0}
"""


@pytest.fixture
def workload(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(WORKLOAD)
    return str(path)


def complete(root: Path) -> dict[str, str]:
    """Point's key -> run, of every complete run; fails where a point is there twice."""
    found: dict[str, str] = {}
    for path, run in list_runs(root):
        assert not isinstance(run, HarnessError)
        if run.state == "complete":
            assert run.file.sweep is not None
            assert run.file.sweep.key not in found
            found[run.file.sweep.key] = path.name
    return found


def figures(root: Path) -> dict[str, dict[str, float | None]]:
    """Point's key -> what of its figures does not depend on the machine."""
    return {
        key: {
            figure.name: figure.value
            for figure in summary_of(read_run(root / run)).figures
            if figure.unit in ("tokens", "requests")
        }
        for key, run in complete(root).items()
    }


def test_every_point_is_a_run_and_a_second_time_there_is_nothing_to_do(workload: str, tmp_path: Path) -> None:
    sweep = Sweep(name="s", workload=workload, grid={"load.users": [1, 2, 4]}, repeat=2)
    root, seen = tmp_path / "runs", list[Status]()
    done = carry_out(planned(sweep, root), [LocalWorker()], seen.append)
    assert [each.state for each in done.values()] == ["complete"] * 6
    assert len(complete(root)) == 6
    assert (seen[-1].finished, seen[-1].failed, seen[-1].known) == (6, 0, 6)
    begun: list[Status] = []
    again = carry_out(planned(sweep, root), [LocalWorker()], begun.append)
    assert {point.key: each.run for point, each in again.items()} == {p.key: each.run for p, each in done.items()}
    assert begun == []


def test_a_worker_tells_the_progress_of_its_point_while_it_is_measured(workload: str, tmp_path: Path) -> None:
    told: list[Progress] = []
    plan = planned(Sweep(name="s", workload=workload), tmp_path / "runs")
    carry_out(plan, [LocalWorker(told.append)], lambda _: None)
    assert {each.phase for each in told} >= {"starting", "measuring"}


def test_an_engine_stays_loaded_for_the_points_that_share_it(workload: str, tmp_path: Path) -> None:
    sweep = Sweep(name="s", workload=workload, grid={"load.users": [1, 2], "engine.simulated.start_s": [0.4, 0.5]})
    done = carry_out(planned(sweep, tmp_path), [LocalWorker()], lambda _: None)
    took_s = [read_run(tmp_path / str(each.run)).file.timings.engine_start_s or 0.0 for each in done.values()]
    assert [each > 0.3 for each in took_s] == [True, False, True, False]


def test_a_failing_point_is_recorded_and_the_others_go_on(workload: str, tmp_path: Path) -> None:
    sweep = Sweep(name="s", workload=workload, grid={"engine.simulated.dies_after": [None, 2, None]}, set={"seed": 1})
    sweep = sweep.model_copy(update={"grid": {"engine.simulated.dies_after": [2, None]}})
    done = carry_out(planned(sweep, tmp_path / "runs"), [LocalWorker()], lambda _: None)
    assert [each.state for each in done.values()] == ["failed", "complete"]
    failed = next(iter(done.values()))
    assert failed.run is not None
    assert "died" in (failed.error or "")
    log = (tmp_path / "runs/sweep-s.jsonl").read_text()
    assert log.count('"state": "failed"') == 1


def test_a_killed_worker_process_costs_one_point(workload: str, tmp_path: Path) -> None:
    sweep = Sweep(name="s", workload=workload, grid={"engine.simulated.start_s": [30, 0]})
    worker = LocalWorker()

    def kill_the_first(status: Status) -> None:
        if status.done is None and status.finished == 0:
            deadline = time.monotonic() + 20

            def kill() -> None:
                while not list((tmp_path / "runs").glob("*/run.json")) and time.monotonic() < deadline:
                    time.sleep(0.02)
                assert worker._child is not None
                worker._child.process.kill()

            threading.Thread(target=kill).start()

    done = carry_out(planned(sweep, tmp_path / "runs"), [worker], kill_the_first)
    assert [each.state for each in done.values()] == ["failed", "complete"]
    assert "signal 9" in (next(iter(done.values())).error or "")


class Fickle(LocalWorker):
    """A worker whose machine is lost now and then."""

    def __init__(self, losses: int) -> None:
        super().__init__()
        self.losses = losses

    def begin(self, task: Task) -> None:
        if self.losses == 0:
            super().begin(task)

    def ended(self, wait_s: float | None = 0) -> Done | None:
        if self.losses == 0:
            return super().ended(wait_s)
        self.losses -= 1
        return Done("lost", error="the node is gone")


@pytest.mark.parametrize(("losses", "state"), [(2, "complete"), (3, "failed")])
def test_a_point_whose_worker_is_lost_is_tried_again(losses: int, state: str, workload: str, tmp_path: Path) -> None:
    done = carry_out(planned(Sweep(name="s", workload=workload), tmp_path / "runs"), [Fickle(losses)], lambda _: None)
    assert [each.state for each in done.values()] == [state]
    assert len(complete(tmp_path / "runs")) == (state == "complete")


def test_a_sweep_ends_if_the_cluster_never_has_room(
    workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(LocalWorker):
        def ready(self) -> bool:
            return False

    monkeypatch.setattr(sweeping, "PLACED_S", 0.2)
    with pytest.raises(HarnessError, match="no room for a worker"):
        carry_out(planned(Sweep(name="s", workload=workload), tmp_path / "runs"), [Full()], lambda _: None)


def test_an_interrupt_stores_the_point_as_interrupted(workload: str, tmp_path: Path) -> None:
    root = tmp_path / "runs"

    def interrupt(status: Status) -> None:
        if status.done is None:
            while not any(path.stat().st_size for path in root.glob("*/requests.jsonl")):
                time.sleep(0.02)
            raise KeyboardInterrupt

    sweep = Sweep(name="s", workload=workload, set={"requests.count": 100_000, "load.duration_s": 60})
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        carry_out(planned(sweep, root), [LocalWorker()], interrupt)
    assert time.monotonic() - begun < 20
    ((path, file),) = list_runs(root)
    assert not isinstance(file, HarnessError)
    assert file.state == "interrupted"
    (line,) = map(json.loads, (root / "sweep-s.jsonl").read_text().splitlines())
    assert list(line) == ["name", "key", "values", "repeat", "state", "run", "error", "seconds", "start_s"]
    assert (line["state"], line["run"]) == ("interrupted", path.name)


def test_no_point_starts_after_the_budget_is_spent(workload: str, tmp_path: Path) -> None:
    sweep = Sweep(name="s", workload=workload, grid={"load.users": [1, 2, 4]})
    done = carry_out(planned(sweep, tmp_path / "runs"), [LocalWorker()], lambda _: None, budget_gpu_hours=1e-9)
    assert len(done) == 1
    assert len(carry_out(planned(sweep, tmp_path / "runs"), [LocalWorker()], lambda _: None)) == 3


def test_a_changed_sweep_is_not_resumed_and_says_what_changed(workload: str, tmp_path: Path) -> None:
    sweep, root = Sweep(name="s", workload=workload, grid={"load.users": [1, 2]}), tmp_path / "runs"
    carry_out(planned(sweep, root), [LocalWorker()], lambda _: None)
    assert len(planned(sweep, root).stored) == 2
    with pytest.raises(HarnessError, match=r"requests\.count: 4 -> 6"):
        planned(sweep.model_copy(update={"set": {"requests.count": 6}}), root)
    Path(workload).write_text(WORKLOAD.replace("output_tokens: 4", "output_tokens: 5"))
    with pytest.raises(HarnessError, match=r"requests\.output_tokens\.tokens: 4 -> 5"):
        planned(sweep, root)


def test_a_sweep_whose_prompts_file_has_another_text_is_not_resumed(tmp_path: Path) -> None:
    """Neither by its name nor by its size can another text of the file be told."""
    prompts, root = tmp_path / "p.jsonl", tmp_path / "runs"
    prompts.write_text('{"prompt": "one", "output_tokens": 4}\n')
    (tmp_path / "w.yaml").write_text(
        "engine: {name: simulated, simulated: {ttft_s: 0.002, itl_s: 0.001}}\nwarmup: {requests: 0}\n"
        "requests: {count: 4, prompts: p.jsonl}\nload: {shape: closed, users: 1}\n"
    )
    sweep = Sweep(name="s", workload=str(tmp_path / "w.yaml"), grid={"load.users": [1, 2]})
    carry_out(planned(sweep, root), [LocalWorker()], lambda _: None)
    (run, *_) = complete(root).values()
    kept = read_run(root / run).file.prompts
    assert kept is not None
    assert kept.files == {str(prompts): hashlib.sha256(prompts.read_bytes()).hexdigest()}
    assert len(planned(sweep, root).stored) == 2
    prompts.write_text('{"prompt": "two", "output_tokens": 4}\n')
    with pytest.raises(HarnessError, match=r"changed since .*: the text of .*p\.jsonl \(SHA-256 \w{12} -> \w{12}\)"):
        planned(sweep, root)


def test_a_point_without_a_successful_request_has_failed(workload: str, tmp_path: Path) -> None:
    sweep, root = Sweep(name="s", workload=workload, set={"engine.failure_share": 1}), tmp_path / "runs"
    done = carry_out(planned(sweep, root), [LocalWorker()], lambda _: None)
    (each,) = done.values()
    assert (each.state, (each.error or "").partition(":")[2][:10]) == ("failed", " simulated")
    assert planned(sweep, root).stored == {}


def test_a_search_ends_at_the_capacity_and_is_resumed_from_the_stored_runs(workload: str, tmp_path: Path) -> None:
    auto = {"axis": "load.users", "limit": 16, "objective": {"response_s.p50": 0.03}, "most": 0}
    options = {"engine.simulated.capacity": 4, "engine.simulated.jitter": 0.0, "requests.count": 32}
    options |= {"engine.simulated.ttft_s": 0.01, "engine.simulated.itl_s": 0.0}
    sweep = Sweep.model_validate({"name": "s", "workload": workload, "set": options, "auto": auto})
    done = carry_out(planned(sweep, tmp_path / "runs"), [LocalWorker()], lambda _: None)
    loads = [point.values["load.users"] for point in done]
    assert list(dict.fromkeys(loads))[:4] == [1, 2, 4, 8]  # some are measured again
    begun: list[Status] = []
    assert carry_out(planned(sweep, tmp_path / "runs"), [LocalWorker()], begun.append).keys() == done.keys()
    assert begun == []


def test_a_point_with_an_invalid_workload_is_refused_before_anything_is_measured(workload: str, tmp_path: Path) -> None:
    sweep = Sweep(name="s", workload=workload, grid={"load.users": [1, 0]})
    with pytest.raises(HarnessError, match=r"load\.users"):
        planned(sweep, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


KILLED = """
import sys
from harness.measure.search import Sweep
from harness.measure.sender import Progress
from harness.measure.sweep import carry_out, planned
from harness.measure.workers import LocalWorker
from pathlib import Path
sweep = Sweep(name="s", workload=sys.argv[1], grid={"load.users": [1, 2], "requests.output_tokens": list(range(1, 13))})
carry_out(planned(sweep, Path(sys.argv[2])), [LocalWorker()], lambda _: None)
"""


def test_a_sweep_killed_twice_and_resumed_has_every_point_once(workload: str, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    command = [sys.executable, "-c", KILLED, workload, str(root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for least in (6, 14):
        process = subprocess.Popen(command, env=environment)
        while len(list(root.glob("*/requests.parquet"))) < least:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.wait()
    time.sleep(0.5)
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert len(complete(root)) == 24
    assert sum(not isinstance(file, HarnessError) for _, file in list_runs(root)) <= 26


def test_a_run_from_another_machine_gets_a_new_name_if_its_name_is_taken(workload: str, tmp_path: Path) -> None:
    carry_out(planned(Sweep(name="s", workload=workload), tmp_path / "there"), [LocalWorker()], lambda _: None)
    (name,) = complete(tmp_path / "there").values()
    files = {path.name: path.read_bytes() for path in (tmp_path / "there" / name).iterdir()}
    assert [adopt(tmp_path / "here", files) for _ in range(2)] == [name, f"{name}-2"]
    second = read_run(tmp_path / "here" / f"{name}-2")
    assert (second.file.id, len(second.requests)) == (f"{name}-2", 5)  # four and the first wave
    assert [path.name for path in (tmp_path / "here").iterdir() if path.name.startswith(".")] == []


@ray
def test_ray_on_this_machine_measures_several_points_at_a_time(workload: str, tmp_path: Path) -> None:
    sweep = Sweep(name="s", workload=workload, grid={"load.users": [1, 2], "requests.output_tokens": [3, 5, 7]})
    slow = sweep.model_copy(update={"set": {"engine.simulated.ttft_s": 0.2}})
    carry_out(planned(slow, tmp_path / "one"), [LocalWorker()], lambda _: None)
    with start_workers("local", 0, 2) as both:
        done = carry_out(planned(slow, tmp_path / "two"), both, lambda _: None)
    assert [each.state for each in done.values()] == ["complete"] * 6
    assert figures(tmp_path / "one") == figures(tmp_path / "two")
    alone = read_run(tmp_path / "one" / "latest").environment.settings
    spans = []
    for run in complete(tmp_path / "two").values():
        file = read_run(tmp_path / "two" / run).file
        assert file.environment.settings == alone  # Ray would set OMP_NUM_THREADS
        assert file.clock is not None
        spans.append((file.clock.monotonic_s, file.clock.monotonic_s + (file.timings.measured_s or 0)))
    assert any(begun < ended for (_, ended), (begun, _) in itertools.pairwise(sorted(spans)))


@ray
def test_the_loss_of_a_ray_node_neither_loses_nor_doubles_a_point(workload: str, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    sweep = Sweep(name="s", workload=workload, grid={"load.users": [1, 2], "requests.output_tokens": [3, 4, 5, 6]})
    slow = sweep.model_copy(update={"set": {"engine.simulated.ttft_s": 0.05, "requests.count": 12}})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=1)
    plan, lost = planned(slow, tmp_path / "runs"), threading.Event()

    def lose_a_node(status: Status) -> None:
        if status.finished == 3 and not lost.is_set():
            lost.set()
            cluster.remove_node(other, allow_graceful=False)

    try:
        with start_workers(cluster.address, 0, 2) as remote:
            done = carry_out(plan, remote, lose_a_node)
    finally:
        cluster.shutdown()
    assert lost.is_set()
    assert [each.state for each in done.values()] == ["complete"] * 8
    assert len(complete(tmp_path / "runs")) == 8
    carry_out(planned(slow, tmp_path / "local"), [LocalWorker()], lambda _: None)
    assert figures(tmp_path / "runs") == figures(tmp_path / "local")


def test_a_kept_engines_later_output_is_in_the_log_of_the_later_point(tmp_path: Path) -> None:
    """The engine's processes go on writing to the file that was open when they started, also if it was deleted."""
    first, second = tmp_path / "1.log", tmp_path / "2.log"
    with first.open("ab", buffering=0) as engine, output_to(first):
        engine.write(b"loaded\n")
    with first.open("ab", buffering=0) as engine, first.open("rb") as log:
        engine.write(b"between\n")
        first.unlink()
        with output_to(second, log):
            os.write(1, b"the harness\n")
            engine.write(b"second point\n")
    assert second.read_bytes() == b"the harness\n" + KEPT + b"second point\n"


def test_a_worker_rests_between_two_points_and_not_after_the_last(workload: str, tmp_path: Path) -> None:
    sweep, seen = Sweep(name="s", workload=workload, grid={"load.users": [1, 2]}), list[tuple[float, bool]]()
    plan = planned(sweep, tmp_path / "runs")
    done = carry_out(plan, [LocalWorker()], lambda s: seen.append((time.monotonic(), s.done is None)), cooldown_s=2.0)
    ended_s = time.monotonic()
    assert {each.state for each in done.values()} == {"complete"}
    (_, _), (first_end_s, _), (second_start_s, starts), (second_end_s, _) = seen
    assert starts
    assert second_start_s - first_end_s > 1.9
    assert ended_s - second_end_s < 1.9
