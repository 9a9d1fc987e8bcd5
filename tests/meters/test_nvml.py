"""The NVML meter with the real pynvml and a scripted NVML library, on a real or virtual clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import frame_of
from fake_nvml import library

from harness.analysis.energy import measure_energy
from harness.analysis.readings import LAG_HALF_S, settle, source_window, sources
from harness.errors import HarnessError
from harness.measure import power, run
from harness.meters import sampler
from harness.meters.base import create_meter
from harness.meters.tracker import smallest_step, update_period_s
from harness.model import MeterInfo, PowerSample
from harness.store.run import read_run
from harness.workload.schema import parse_workload

Script = Callable[[str], None]


@pytest.fixture
def script(fake_nvml: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Sets the environment in which the meter's process sees GPUs that follow the script from now on."""

    def use(text: str) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in library.environment(fake_nvml, text).items():
            monkeypatch.setenv(name, value)

    return use


def gather(seconds: float, **options: object) -> tuple[MeterInfo, list[PowerSample], MeterInfo]:
    meter = create_meter("nvml", {"probe_s": 0.7, **options})
    opened = meter.start()
    samples = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.2)
        samples += meter.drain()
    closed = meter.stop()
    return opened, samples + meter.drain(), closed


def test_two_gpus_are_probed_sampled_and_integrated(script: Script) -> None:
    """Probe, samples, the meter's own cost, and energy over real seconds: 300 W and 200 W."""
    script("gpus 2\ngpu 0 wave constant 300\ngpu 1 wave constant 200\ncounter 0.1\nmemory_share 0.25")
    began = time.monotonic()
    opened, samples, closed = gather(2.0)
    assert opened.status == "simulated"
    assert [(d.device, d.domain) for d in opened.devices] == [
        ("0", "gpu"),
        ("1", "gpu"),
        ("0", "gpu memory"),
        ("1", "gpu memory"),
    ]
    assert opened.devices[0].period_s == pytest.approx(0.1, rel=0.1)
    assert opened.devices[0].power_limit_default_w == 400
    assert all(began < s.before_s <= s.after_s < time.monotonic() for s in samples)
    gpu = [s for s in samples if s.device == "0" and s.domain == "gpu"]
    read_s = gpu[-1].before_s - gpu[0].before_s
    assert 2.0 <= (closed.elapsed_s or 0) <= time.monotonic() - began
    assert {s.power_w for s in gpu} == {300.0}
    slow = [s for s in gpu if s.temperature_c is not None]
    assert 1 <= len(slow) <= 1 + read_s / 4
    first = slow[0]
    assert (first.temperature_c, first.sm_clock_hz, first.foreign_processes) == (55, 1.41e9, 0)
    assert {s.average_w for s in samples if s.domain == "gpu memory" and s.device == "1"} == {50.0}
    assert closed.error is None
    assert 0 < (closed.cpu_s or 0) < 0.25 * read_s
    power = pd.DataFrame(samples)
    power[["before_s", "after_s"]] -= gpu[-1].before_s
    figure = measure_energy(power, (closed,), frame_of([]), -2.0, -0.8)["gpu_power_w"]
    assert figure.reason is None
    assert figure.value == pytest.approx(500, rel=0.05)
    assert figure.low <= 500 <= figure.high  # type: ignore[operator]
    assert figure.status == "simulated"


def test_probed_periods_are_cached_per_gpu_and_driver(script: Script) -> None:
    script("counter 0.05")
    gather(0.0)
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "inference-cost-harness" / "nvml-sensors.json"
    ((key, seen),) = json.loads(cache.read_text()).items()
    assert key == "GPU-00000051-0000-0000-0000-000000000000 570.00-simulated"
    assert seen["period_s"] == pytest.approx(0.05, rel=0.1)
    began = time.monotonic()
    opened, _, _ = gather(0.0, probe_s=60.0)
    assert time.monotonic() - began < 60
    assert opened.devices[0].period_s == pytest.approx(seen["period_s"], rel=0.01)


def test_a_driver_call_that_never_returns_does_not_hang_the_run(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "STOP_S", 1.0)
    script("wave constant 200\nfault hang 4")  # time to start on a busy machine
    began = time.monotonic()
    _, samples, closed = gather(4.0, probe_s=0.3)
    assert time.monotonic() - began < 30
    assert samples
    assert closed.error == "the reading process hung"


def test_a_killed_reader_is_reported_and_its_samples_are_kept(script: Script) -> None:
    script("wave constant 200")
    meter = create_meter("nvml", {"probe_s": 0.3})
    meter.start()
    assert meter._child.pipe.poll(10.0)  # type: ignore[attr-defined]
    meter._child.process.kill()  # type: ignore[attr-defined]
    closed = meter.stop()
    assert meter.drain()
    assert closed.error == "the reading process was ended by signal 9"


def test_the_reading_process_ends_with_its_parent(script: Script) -> None:
    script("wave constant 200")
    code = (
        "import os, sys, time; from harness.meters.base import create_meter;"
        "m = create_meter('nvml', {'probe_s': 0.2}); m.start();"
        "print(m._child.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    reader = Path(f"/proc/{int(started.stdout)}/stat")
    deadline = time.monotonic() + 20
    while reader.exists() and reader.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline


def test_a_missing_gpu_or_driver_is_named(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script("gpus 0")
    with pytest.raises(HarnessError, match="finds no GPU"):
        create_meter("nvml").start()
    script("gpus 2\nfault lost 0")
    with pytest.raises(HarnessError, match="none of the 2 GPUs answers"):
        create_meter("nvml").start()
    script("gpus 2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(HarnessError, match="'' shows none of the 2 GPUs"):
        create_meter("nvml").start()
    with pytest.raises(HarnessError, match="no GPU '7'"):
        create_meter("nvml", {"devices": [7]}).start()
    with pytest.raises(HarnessError, match="unexpected keyword argument"):
        create_meter("nvml", {"rate": 7}).start()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(HarnessError, match="NVML does not answer"):
        create_meter("nvml").start()


def test_a_gpu_lost_during_a_run_removes_only_energy_figures(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run of the simulated engine; the GPU stops answering after 2.5 s."""
    monkeypatch.setattr(power, "IDLE_S", 0.2)
    script("wave constant 200\nfault lost 2.5")
    text = """
        name: lost
        engine: {name: simulated, simulated: {ttft_s: 0.1, itl_s: 0.01}}
        requests: {count: 40, input_tokens: 16, output_tokens: 32}
        load: {shape: closed, users: 8}
    """
    stored = read_run(run.run(parse_workload(text, "lost"), tmp_path, lambda _: None, run.Setup(["nvml:probe_s=0.3"])))
    assert stored.file.state == "complete"
    assert len(stored.requests) == 40 + 8  # those of the first wave are load only
    assert stored.requests["error"].isna().all()
    end_s = float(stored.requests["end_s"].max())
    result = measure_energy(stored.power, stored.file.meters, stored.requests, 0.0, end_s)
    assert result["joules_per_output_token"].text().startswith("n/a (gpu-lost: GPU 0 was lost")
    assert "gpu-lost" in {finding.code for finding in result.findings}


def test_cuda_visible_devices_is_respected(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    script("gpus 4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-00000051-0000-0000-0000-000000000003")
    opened, samples, _ = gather(0.3, probe_s=0.1)
    assert {d.device for d in opened.devices} == {"2", "3"}
    assert {s.device for s in samples} == {"2", "3"}


# ---- the schedule of readings ----


@pytest.fixture(scope="module")
def known_board(fake_nvml: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., pd.DataFrame]:
    """Readings of H100s whose counters' periods are in the cache, 4 ms of processor time a call."""
    cache = {"HARNESS_CACHE": str(tmp_path_factory.mktemp("cache"))}

    def read(gpus: int) -> pd.DataFrame:
        script = f"gpus {gpus}\nseed 3\nprofile h100\nlatency 0.004\nwave square 130 690 0.102"
        for seconds in (60.0, 60.0, 45.0):
            answer = library.simulate(fake_nvml, script, seconds=seconds, variables=cache)
        rows = pd.DataFrame(answer["rows"])
        rows.attrs["info"] = answer["info"]
        return rows[rows["domain"] == "gpu"]

    return read


@pytest.mark.parametrize(("gpus", "share"), [(1, 0.0095), (8, 0.0345)])
def test_the_meter_costs_little_and_reads_each_gpu_once_a_second(
    known_board: Callable[..., pd.DataFrame], gpus: int, share: float
) -> None:
    rows = known_board(gpus)
    load = rows[(rows["before_s"] > 12) & (rows["before_s"] < 42)]
    taken_s = load["after_s"] - load["before_s"]
    assert taken_s.sum() / 30 < share
    assert load.groupby("device").size().min() >= 29
    assert (taken_s > 0.010).mean() < 0.02  # next to no call meets the quiet time after an update


def test_slower_readings_are_within_the_meters_share_of_a_core(fake_nvml: Path, tmp_path: Path) -> None:
    """Five calls of 4 ms every few seconds, half as costly as all other readings."""
    script = "profile h100\nlatency 0.004\nask_latency 0.004\nwave constant 500"
    for _ in range(3):  # the board gets known
        answer = library.simulate(fake_nvml, script, seconds=45.0, variables={"HARNESS_CACHE": str(tmp_path)})
    rows = pd.DataFrame(answer["rows"])
    load = rows[(rows["domain"] == "gpu") & (rows["before_s"] > 12) & (rows["before_s"] < 42)]
    slower = int(load["temperature_c"].notna().sum())
    assert slower >= 4
    assert (load["after_s"] - load["before_s"]).sum() + slower * 5 * 0.004 < 0.0095 * 30
    assert load["before_s"].diff().max() < 1.5


def test_eight_gpus_whose_every_call_is_slow_are_within_the_meters_share_of_a_core(
    fake_nvml: Path, tmp_path: Path
) -> None:
    """Every call takes 4.2 ms: readings alone take 3.4% of a core. The rest is asked rarely, in turn."""
    script = "gpus 8\nprofile h100\nlatency 0.0042\nask_latency 0.0042\nwave constant 500\nfault tenant 20"
    for seconds in (60.0, 60.0, 130.0):  # the boards get known
        answer = library.simulate(fake_nvml, script, seconds=seconds, variables={"HARNESS_CACHE": str(tmp_path)})
    rows = pd.DataFrame(answer["rows"])
    load = rows[(rows["domain"] == "gpu") & (rows["before_s"] > 12) & (rows["before_s"] < 122)]
    asked = load[["temperature_c", "sm_clock_hz", "throttle", "foreign_processes"]].notna().sum(axis=1)
    calls_s = (load["after_s"] - load["before_s"]).sum() + 5 / 4 * asked.sum() * 0.0042  # the fifth is of the UUID
    assert calls_s + 0.0001 * len(load) < 0.035 * 110
    assert asked.sum() >= 4
    result = measure_energy(rows, (answer["info"],), frame_of([]), 60.0, 120.0)
    assert len(result.findings) == 8
    assert {finding.code for finding in result.findings} <= {"foreign-process", "unknown-process"}


def test_updates_are_located_to_the_time_of_a_call(known_board: Callable[..., pd.DataFrame]) -> None:
    rows = known_board(1)
    (source,) = (s for s in sources(rows, [rows.attrs["info"]]) if s.device.domain == "gpu")
    assert source.curve is not None
    assert source.curve.line is not None
    assert source.curve.half_s.max() - LAG_HALF_S < 0.0035
    low, high = source.curve.line.period
    assert low < 0.1000016 < high
    assert high - low < 2 * 100e-6 * 0.1


def test_only_counter_and_newest_power_are_read_often(known_board: Callable[..., pd.DataFrame]) -> None:
    rows = known_board(1)
    load = rows[(rows["before_s"] > 12) & (rows["before_s"] < 42)]
    assert load[["energy_j", "power_w"]].notna().all(axis=None)
    for column in ("average_w", "temperature_c", "power_capped_s"):
        gaps_s = np.diff(load["before_s"][load[column].notna()])
        assert ((gaps_s > 5) & (gaps_s < 10)).all()


def test_a_counter_that_moves_once_a_second_is_slow_not_stuck(fake_nvml: Path) -> None:
    answer = library.simulate(fake_nvml, "wave constant 300\ncounter 1.0 0 0.4", seconds=60.0)
    assert answer["info"].devices[0].period_s == pytest.approx(1.0, rel=1e-3)
    result = measure_energy(pd.DataFrame(answer["rows"]), (answer["info"],), frame_of([]), 20.0, 50.0)
    assert result["gpu_power_w"].value == pytest.approx(300, rel=1e-3)
    assert {finding.code for finding in result.findings} <= {"window-short"}


H100 = "name NVIDIA H100 80GB HBM3\n"
EIGHT = "gpus 8\nseed 9\nprofile h100\nlatency 0.004\nwave constant 400\n"


@pytest.mark.parametrize(("script", "within"), [("gpu 5 counter 0.3", 0.01), ("counter 1.0\ngpu 5 counter 0.1", 0.1)])
def test_a_board_whose_counter_is_another_than_that_of_its_name_is_not_read_as_the_others(
    fake_nvml: Path, script: str, within: float
) -> None:
    """Eight slow boards are probed as one: the period of the first one need not be that of all."""
    answer = library.simulate(fake_nvml, EIGHT + script, seconds=30.0)
    result = measure_energy(pd.DataFrame(answer["rows"]), (answer["info"],), frame_of([]), 10.0, 25.0)
    watts = result["gpu_power_w"]
    assert watts.low <= 8 * 400 <= watts.high  # type: ignore[operator]
    assert watts.high - watts.low < 2 * within * 8 * 400  # type: ignore[operator]


@pytest.mark.parametrize("script", ["counter 1.0", "latency 0.02", "latency 0.06", "counter 0.1 - 0 0.02"])
def test_eight_gpus_are_opened_in_time_however_slow_counters_and_calls_are(fake_nvml: Path, script: str) -> None:
    answer = library.simulate(fake_nvml, EIGHT + script, seconds=25.0)  # opened at -45 s
    first_s = min(row["before_s"] for row in answer["rows"] if row["temperature_c"] is not None)
    assert first_s + 45 < 0.6 * sampler.START_S


@pytest.mark.parametrize("seed", range(20))
def test_a_probe_with_late_readings_and_unseen_updates_finds_the_period(seed: int) -> None:
    """On a busy machine a reading comes up to 60 ms late; 2 of 29 updates repeat the value."""
    rng = np.random.default_rng(seed)
    seen_s = 5 + 0.1 * np.arange(29) + rng.uniform(0, 0.004, 29)
    seen_s[rng.choice(29, 3, replace=False)] += rng.uniform(0.03, 0.06, 3)
    changes = [(4.97, 0), *((float(t), i) for i, t in enumerate(np.delete(seen_s, rng.choice(27, 2, False) + 1), 1))]
    assert update_period_s(changes) == pytest.approx(0.1, rel=0.007)  # a line is sought within 1%


def test_a_counter_with_irregular_updates_falls_back_to_hard_bounds(fake_nvml: Path) -> None:
    """Updates up to 10 ms early or late fit no line."""
    answer = library.simulate(fake_nvml, "wave constant 300\ncounter 0.1 0 0.03 0.02", seconds=40.0)
    result = measure_energy(pd.DataFrame(answer["rows"]), (answer["info"],), frame_of([]), 20.0, 30.0)
    energy = result["energy_j.gpu"]
    assert energy.interval.startswith("hard bound")
    assert energy.low < 3000 < energy.high  # type: ignore[operator]
    assert energy.value == pytest.approx(3000, rel=0.03)
    moved = result["gpu_power_w"]
    assert moved.low < 300 < moved.high  # type: ignore[operator]
    assert moved.high - moved.low < 0.1 * 300  # type: ignore[operator]


def test_a_driver_without_field_values_still_gives_energy(tmp_path: Path) -> None:
    """The driver's library has no nvmlDeviceGetFieldValues."""
    answer = library.simulate(library.build(tmp_path, "NO_FIELDS"), "wave constant 300", seconds=40.0)
    result = measure_energy(pd.DataFrame(answer["rows"]), (answer["info"],), frame_of([]), 20.0, 30.0)
    assert result["gpu_power_w"].value == pytest.approx(300, rel=0.01)


def test_a_counter_that_stops_is_read_at_the_usual_rate(fake_nvml: Path) -> None:
    answer = library.simulate(fake_nvml, "wave constant 300\nfault stuck 16", seconds=26.0)
    late = [r["before_s"] for r in answer["rows"] if r["domain"] == "gpu" and 17 < r["before_s"] < 26]
    assert 9 <= len(late) < 9 * 8
    assert max(np.diff(late)) < 1.1


@pytest.mark.parametrize(("period_s", "call_s"), [(0.02, 0.003), (0.02, 0.0045), (0.01, 0.0016), (0.1, 0.031)])
def test_a_probe_whose_calls_are_long_beside_the_period_finds_the_period(period_s: float, call_s: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        read_s = np.cumsum(rng.uniform(0.9, 1.1, round(3 / call_s)) * call_s)
        number = ((read_s - rng.uniform(0, period_s)) // period_s).astype(int)
        seen = np.flatnonzero(np.diff(number, prepend=-99))
        changes = [(float(read_s[i]), int(number[i])) for i in seen]
        assert update_period_s(changes) == pytest.approx(period_s, rel=0.007)


def test_equal_changes_do_not_pass_for_the_counters_step() -> None:
    """At constant power all changes are 35 J, or 70 J where one was not seen."""
    assert smallest_step([(0.0, 0), (0.1, 35_000), (0.2, 70_000), (0.4, 140_000)]) is None
    assert smallest_step([(0.0, 0), (0.1, 35_000), (0.2, 71_000), (0.4, 140_000)]) == 1000


@pytest.mark.parametrize(("period_s", "calls"), [(0.02, 0.003), (0.05, 0.003), (0.25, 0.003), (1.0, 0.003)])
def test_counters_of_other_periods_are_as_precise(fake_nvml: Path, period_s: float, calls: float) -> None:
    """10 s of a load between 350 and 690 W; few readings are spent on it. The interval has the doubt of their lag."""
    wave = library.serving(5)
    script = f"{H100}limit 700\ndefault_limit 700\ncounter {period_s} 0 0.003\nlatency {calls}\n{wave.script}"
    answer = library.simulate(fake_nvml, script, seconds=60.0)
    rows = pd.DataFrame(answer["rows"])
    (source,) = (s for s in sources(rows, [answer["info"]]) if s.device.domain == "gpu")
    ends = settle(source.curve, 30.0, 40.0)
    window = source_window(source, *ends)
    assert window is not None
    truth_j = float(np.diff(wave.joules(ends))[0])
    assert window.low_j <= truth_j <= window.high_j
    assert window.energy_j == pytest.approx(truth_j, rel=0.001)
    assert window.boundary_j < 0.012 * window.energy_j
    assert ((source.rows["before_s"] > 20) & (source.rows["before_s"] < 50)).sum() < 30 * 6


def test_slow_calls_are_not_spent_on_trials_and_do_not_contradict_the_average(fake_nvml: Path) -> None:
    """Calls of 30 ms cannot show an update of 0.1 s well: they would take half of a core, and mislead."""
    script = f"profile h100\nlatency 0.03\nslow_latency 0.06\n{library.serving(5).script}"
    answer = library.simulate(fake_nvml, script, seconds=60.0)
    rows = pd.DataFrame(answer["rows"])
    rows = rows[rows["domain"] == "gpu"]
    load = rows[(rows["before_s"] > 12) & (rows["before_s"] < 52)]
    assert (load["after_s"] - load["before_s"]).sum() < 0.2 * 40
    result = measure_energy(rows, (answer["info"],), frame_of([]), 15.0, 45.0)
    assert {finding.code for finding in result.findings} <= {"meter-gap"}
    assert result["energy_cross_check.average"].value == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("lag_s", [0.0, 0.02, 0.06])
@pytest.mark.parametrize("other", ["name Another board", "counter 0.05 0 0.01"])
def test_a_board_whose_lag_was_not_measured_has_intervals_that_hold_other_lags(
    fake_nvml: Path, other: str, lag_s: float
) -> None:
    """The lag was measured with H100s and a counter of 0.1 s."""
    wave = library.H100_LOADS["prefill/decode"]
    script = f"seed 4\nprofile h100\n{other}\nlag {lag_s}\n{wave.script}"
    answer = library.simulate(fake_nvml, script, seconds=60.0)
    (source,) = (s for s in sources(pd.DataFrame(answer["rows"]), [answer["info"]]) if s.device.domain == "gpu")
    held = []
    for start_s in np.random.default_rng(2).uniform(15.0, 50.0, 60):
        ends = settle(source.curve, start_s, start_s + 5.0)
        window = source_window(source, *ends)
        assert window is not None
        held.append(window.low_j <= np.diff(wave.joules(ends))[0] <= window.high_j)
        assert window.boundary_j < 0.025 * window.energy_j
    assert np.mean(held) >= 0.95


def test_eight_new_boards_are_all_locked(fake_nvml: Path) -> None:
    """They share the time before the load, so that each update is located roughly only."""
    for seed in (1, 2, 3):
        answer = library.simulate(fake_nvml, EIGHT.replace("seed 9", f"seed {seed}"), seconds=30.0)
        rows = pd.DataFrame(answer["rows"])
        curves = [s.curve for s in sources(rows, [answer["info"]]) if s.device.domain == "gpu"]
        assert all(curve is not None and curve.line is not None for curve in curves)
