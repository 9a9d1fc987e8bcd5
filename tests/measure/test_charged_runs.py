"""Runs on machines with several scripted GPUs: which of them a run is charged for, in energy and in price."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_nvml import library
from known_server.server import Known, build, known_server

from harness.analysis.summary import summary_of
from harness.config import overrides
from harness.errors import HarnessError
from harness.measure import power
from harness.measure import run as measuring
from harness.model import Summary
from harness.store.run import Run, read_run
from harness.workload.schema import parse_workload

TEXT = """
name: charged
engine: {name: openai}
requests: {count: 40, input_tokens: 7, output_tokens: 30}
load: {shape: closed, users: 4}
warmup: {requests: 1}
"""
WATTS = [f"gpu {i} wave constant {100 * (i + 1)}" for i in range(4)]
"""GPU 0 draws 100 W, GPU 3 400 W: the power says which were charged."""
Measure = Callable[..., tuple[Run, Summary]]


@pytest.fixture(scope="module")
def server() -> Iterator[Known]:
    with known_server(ttft_us=50_000, itl_us=5_000) as known:
        yield known


@pytest.fixture
def measure(fake_nvml: Path, tmp_path: Path, server: Known, monkeypatch: pytest.MonkeyPatch) -> Measure:
    monkeypatch.setattr(power, "IDLE_S", 0.6)

    def go(
        *script: str, gpus: list[str] | None = None, visible: str | None = None, engine: str = "openai", **words: object
    ) -> tuple[Run, Summary]:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in library.environment(fake_nvml, "\n".join(["gpus 4", *WATTS, *script])).items():
            monkeypatch.setenv(name, value)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        given = [f"engine.name={engine}", *(f"engine.openai.{key}={value}" for key, value in words.items())]
        where = [f"engine.openai.base_url={server.url}"] if engine == "openai" and "serve" not in words else []
        spec = parse_workload(TEXT, "test", overrides([*given, *where]))
        run = read_run(measuring.run(spec, tmp_path, lambda _: None, measuring.Setup(["nvml:probe_s=0.3"], gpus)))
        return run, summary_of(run)

    return go


def watts(summary: Summary) -> float | None:
    return summary["gpu_power_w"].value


def codes(summary: Summary) -> set[str]:
    return {finding.code for finding in summary.findings}


def test_a_server_started_elsewhere_is_charged_for_the_gpus_of_its_processes(measure: Measure) -> None:
    """The test's own process stands for the server's."""
    pid = os.getpid()
    run, summary = measure(f"gpu 1 fault tenant 0 {pid}", f"gpu 3 fault tenant 0 {pid}", "gpu 2 fault tenant 0 1")
    assert run.file.charged is not None
    assert run.file.charged.devices == ("1", "3")
    assert watts(summary) == pytest.approx(600, rel=0.05)
    assert (run.device.kind, run.device.name, run.device.count) == ("gpu", "Simulated GPU", 2)
    assert not codes(summary) & {"gpus-unknown", "gpus-differ", "foreign-process"}
    assert "bare" not in run.file.idle  # the server held its GPUs before the run


def test_without_evidence_a_run_has_no_joules_and_the_reason(measure: Measure) -> None:
    run, summary = measure(device="cuda", device_count=2)
    assert watts(summary) is None
    assert summary["joules_per_output_token"].reason is not None
    assert "was not started by the harness" in summary["joules_per_output_token"].reason
    (found,) = (finding for finding in summary.findings if finding.code == "gpus-unknown")
    assert found.serious
    assert "--gpus" in found.advice
    assert run.device.count == 2  # as the user declared


def test_the_user_names_the_gpus_of_a_server_elsewhere(measure: Measure) -> None:
    run, summary = measure("gpu 1 fault lost 0", gpus=["2", "GPU-00000051-0000-0000-0000-000000000000"])
    assert watts(summary) == pytest.approx(400, rel=0.05)
    assert run.device.count == 2
    assert "gpus-unknown" not in codes(summary)


def test_a_contradicted_name_is_a_finding_and_gives_no_joules(measure: Measure) -> None:
    run, summary = measure(f"gpu 1 fault tenant 0 {os.getpid()}", gpus=["0"])
    assert run.device.count == 1
    assert watts(summary) is None
    assert "gpus-differ" in codes(summary)


def test_where_processes_are_hidden_memory_that_rises_confirms_cudas_list(measure: Measure) -> None:
    """The server's start makes the memory of GPU 1 rise; CUDA shows it GPU 1 first, and it says that it uses one."""
    loads = "echo gpu 1 fault memory 0 60 >> $FAKE_NVML"
    serves = f"sleep 600 | {build()} --port {{port}} --ttft-us 50000 --itl-us 5000"
    command = json.dumps(f"sh -c '{loads}; {serves}'")
    run, summary = measure(serve=command, device="cuda", device_count=1, visible="1,2")
    assert run.file.charged is not None
    assert "memory in use rose" in run.file.charged.why
    assert watts(summary) == pytest.approx(200, rel=0.05)
    assert "bare" in run.file.idle
    run, summary = measure(serve=command, device="cuda", device_count=2, visible="1,2")
    assert watts(summary) is None  # the memory of GPU 2 did not rise
    assert "gpus-unknown" in codes(summary)


def test_a_simulated_engine_is_charged_for_the_first_visible_gpu(measure: Measure) -> None:
    run, summary = measure(engine="simulated", visible="2,0")
    assert watts(summary) == pytest.approx(300, rel=0.05)
    assert "bare" in run.file.idle


def test_one_lost_gpu_does_not_hide_the_others(measure: Measure) -> None:
    _, summary = measure("gpu 0 fault lost 0", engine="simulated", visible="2")
    assert watts(summary) == pytest.approx(300, rel=0.05)
    _, summary = measure("gpu 0 fault lost 0", engine="simulated")
    assert watts(summary) == pytest.approx(200, rel=0.05)  # the first that answers


def test_an_unknown_name_is_refused_before_anything_is_stored(measure: Measure, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no GPU '9'"):
        measure(gpus=["9"])
    assert [*tmp_path.glob("*/run.json")] == []
