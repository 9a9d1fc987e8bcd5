"""Energy windows, figures and findings: against closed forms, scripted GPUs, and a real board with a real meter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import power_trace
import pytest
from builders import frame_of
from fake_nvml import library
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from harness.analysis import energy as figures
from harness.analysis import joules as windows
from harness.analysis import readings
from harness.analysis.energy import measure_energy
from harness.model import MeterInfo

Run = tuple[pd.DataFrame, tuple[MeterInfo, ...]]
"""power.parquet and what the meters said of themselves."""


def requests(count: int, *, each_s: float = 0.5, tokens: int = 10, input_tokens: int = 100) -> pd.DataFrame:
    """Requests one after the other, the first sent at 0: tokens at even steps, the last as the next is sent."""
    if count == 0:
        return frame_of([])
    steps = np.arange(1, tokens + 1) / tokens * each_s
    return pd.DataFrame(
        {
            "sent_s": np.arange(count) * each_s,
            "end_s": (np.arange(count) + 1) * each_s,
            "arrival_s": [i * each_s + steps for i in range(count)],
            "arrival_tokens": [np.ones(tokens, int)] * count,
            "input_asked": input_tokens,
            "input_tokens": pd.array([input_tokens] * count, dtype="Int64"),
            "error": None,
        }
    )


def seen(answer: dict[str, Any]) -> Run:
    return pd.DataFrame(answer["rows"]), (answer["info"],)


# ---- windows ----


@pytest.mark.parametrize("period_s", [0.1, 0.02])
@pytest.mark.parametrize("name", library.WAVES)
def test_the_bounds_of_a_window_hold_the_truth(fake_nvml: Path, name: str, period_s: float) -> None:
    """2,250 windows in all: 95% of the intervals hold the truth; windows moved to updates are close to it."""
    rng = np.random.default_rng(7)
    wave = library.WAVES[name]
    spans = library.sampled_windows(rng, name, (0.05, 0.2, 1.0, 10.0, 30.0), 45)
    seconds = max(end for *_, end in spans) + 1
    answer = library.simulate(fake_nvml, f"{wave.script}\ncounter {period_s} 0 0.007", seconds=seconds)
    power, infos = seen(answer)
    source = next(readings.sources(power, infos))
    held: list[bool] = []
    for nominal, start, end in spans:
        window = readings.source_window(source, start, end)
        assert window is not None
        assert window.low_j <= window.energy_j <= window.high_j
        held.append(window.low_j <= np.diff(wave.joules([start, end]))[0] <= window.high_j)
        moved = readings.settle(source.curve, start, end)
        if nominal >= 1 and moved != (start, end):
            there, truth = readings.source_window(source, *moved), np.diff(wave.joules(moved))[0]
            assert there is not None
            held.append(there.low_j <= truth <= there.high_j)
            assert abs(there.energy_j / truth - 1) <= {1.0: 0.01, 10.0: 0.001}.get(nominal, 0.0005)
    assert np.mean(held) >= 0.95


@given(
    watts=st.lists(st.floats(1, 700), min_size=3, max_size=30),
    update_s=st.floats(0.01, 0.3),
    jitter=st.floats(0, 0.9),
    gaps=st.lists(st.floats(0.0005, 0.2), min_size=30, max_size=80),
    ends=st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9)),
    within=st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=300, deadline=None)
def test_the_hard_interval_holds_the_truth_for_any_counter(
    watts: list[float],
    update_s: float,
    jitter: float,
    gaps: list[float],
    ends: tuple[float, float],
    within: tuple[float, float],
    seed: int,
) -> None:
    """Irregular updates, slow readings, windows that end while one is taken, and no period known."""
    rng = np.random.default_rng(seed)
    edge = np.linspace(0, 20, len(watts) + 1)
    joules = np.concatenate([[0.0], np.cumsum(np.diff(edge) * watts)])
    updates = np.sort(
        np.arange(-1, 20, update_s) + jitter * update_s * rng.uniform(-0.5, 0.5, len(np.arange(-1, 20, update_s)))
    )
    before = np.cumsum(gaps)
    after = before + rng.uniform(0, 0.99, len(gaps)) * np.append(np.diff(before), 0.001)
    shown = updates[np.searchsorted(updates, rng.uniform(before, after), side="right") - 1]
    reads = windows.Reads(before, after, np.floor(1000 * np.interp(shown, edge, joules)) / 1000)
    at = (np.array(ends) * len(before)).astype(int)
    start, end = np.sort(before[at] + (after - before)[at] * within)
    window = windows.counter_window(reads, start, end)
    if window is not None:
        truth = float(np.diff(np.interp([start, end], edge, joules))[0])
        assert window.low_j - 1e-9 <= truth <= window.high_j + 1e-9


@pytest.mark.parametrize("off", [-0.9, 0.0, 0.9])
def test_constant_power_is_inside_the_bound_whatever_the_period_is_within_its_doubt(off: float) -> None:
    """Bursts of readings before and after slow ones, as the meter reads: what fits is lopsided.

    No spread of power, no lag, no jitter: what is left is the doubt of the duration.
    """
    for seed in range(200):
        rng = np.random.default_rng(seed)
        period_s, phase, doubt = rng.uniform(0.0999, 0.1001), rng.uniform(0, 0.1), 10 ** rng.uniform(-5, -4.3)
        slow = np.arange(2.0, 70.0) + rng.uniform(0, 0.5, 68)
        slow += (rng.uniform(0.2, 0.9, 68) * period_s - (slow - phase) % period_s) % period_s
        before = np.sort(np.concatenate([slow, *(at + np.cumsum(rng.uniform(0.01, 0.06, 25)) for at in (0.0, 71.0))]))
        before = before[np.append(True, np.diff(before) > 0.0034)]
        after = before + 0.0033
        shown = phase + period_s * np.floor((rng.uniform(before, after) - phase) / period_s)
        known_s = period_s * (1 + off * doubt)
        reads = windows.Reads(before, after, 600 * (shown + 1), period_s=known_s, period_half_s=doubt * known_s)
        known = windows.curve(reads)
        start, end = known.nearest(np.array([rng.uniform(3, 30), rng.uniform(33, 65)]))
        window = windows.counter_window(reads, start, end, 0.0, known)
        assert window is not None
        assert window.low_j - 0.001 <= 600 * (end - start) <= window.high_j + 0.001


def test_an_update_during_a_slow_reading_gives_no_bound_before_it() -> None:
    """1 W, updates at 0.5, 1.2, 2.5 and 3.5; the reading asked for at 1.0 was answered at once but came at 1.9.

    The one of 2.0 says what was used at 1.2, which is less than at 1.5.
    """
    before, after = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([0.1, 1.9, 2.1, 3.1, 4.1])
    reads = windows.Reads(before, after, np.array([0.0, 0.5, 1.2, 2.5, 3.5]))
    window = windows.counter_window(reads, 0.2, 1.5)
    assert window is not None
    assert window.high_j == pytest.approx(2.5 - 0.0, abs=0.002)


def test_a_window_beyond_the_readings_is_none() -> None:
    reads = windows.Reads(np.arange(10.0), np.arange(10.0) + 0.01, 300 * np.arange(10.0))
    assert windows.counter_window(reads, -1, 5) is None
    assert windows.counter_window(reads, 5, 9.5) is None


AVERAGES = [
    ("square 1 s", "1.0 1.0"),
    ("prefill/decode", "0.1 0.1"),
    ("square 100 ms", "0.1 0.1"),
    ("prefill/decode", "0.02 1.0"),
]


@pytest.fixture(scope="module")
def averages(fake_nvml: Path) -> Run:
    """A GPU for each of `AVERAGES`: no counter, power only as means over so long, so often."""
    script = [f"gpus {len(AVERAGES)}", "fault unsupported 0 counter"]
    for i, (name, average) in enumerate(AVERAGES):
        script += [f"gpu {i} {library.WAVES[name].script}", f"gpu {i} average {average}"]
    return seen(library.simulate(fake_nvml, "\n".join(script), seconds=45.0))


@pytest.mark.parametrize("gpu", range(len(AVERAGES)))
def test_the_bound_of_the_power_integral_holds_the_truth(averages: Run, gpu: int) -> None:
    rng = np.random.default_rng(3)
    name, average = AVERAGES[gpu]
    source = list(readings.sources(*averages))[gpu]
    assert source.device.period_s is None
    device = replace(source.device, average_window_s=float(average.split()[1]))
    source = replace(source, device=device)
    for _, start, end in library.sampled_windows(rng, name, (1.0, 10.0, 30.0), 20):
        window = readings.source_window(source, start, end)
        assert window is not None
        assert window.source == "power_integral"
        assert window.low_j <= np.diff(library.WAVES[name].joules([start, end]))[0] <= window.high_j


def test_constant_power_is_integrated_without_error() -> None:
    t = np.arange(0, 20, 0.05)
    window = windows.power_window(t, np.full(len(t), 250.0), 3.0, 13.0, update_s=0.1, mean_s=None)
    assert window is not None
    assert (window.energy_j, window.low_j, window.high_j) == pytest.approx((2500, 2500, 2500))


def test_a_running_mean_is_moved_back_by_half_its_window_and_half_its_age() -> None:
    """100 W until 10 s, then 300 W, told ten times a second as the mean of the last second: 400 J from 9 to 11."""
    read_s = np.arange(5, 15, 0.02)
    updated_s = np.floor(read_s / 0.1) * 0.1
    watts = 100 + 200 * np.clip(updated_s - 10, 0, 1)
    window = windows.power_window(read_s, watts, 9.0, 11.0, update_s=0.1, mean_s=1.0)
    assert window is not None
    assert window.energy_j == pytest.approx(400, abs=4)


# ---- a real board ----


def test_the_bound_holds_an_external_meter_of_an_a100() -> None:
    """The sensor looks for 25 ms in every 100: the bound must hold what it does not see, with the sensor's gain."""
    source, seconds, joules = power_trace.a100()
    whole = readings.source_window(source, 0.0, float(seconds[-1]))
    assert whole is not None
    assert whole.energy_j == pytest.approx(joules[-1], rel=0.01)
    assert whole.low_j <= joules[-1] <= whole.high_j
    rng = np.random.default_rng(2)
    for length in (1.0, 2.0, 4.0, 8.0):
        for start in rng.uniform(0, 9.97 - length, 50):
            window = readings.source_window(source, start, start + length)
            assert window is not None
            truth = float(np.diff(np.interp([start, start + length], seconds, joules))[0])
            assert window.low_j * (1 - figures.GAIN) <= truth <= window.high_j * (1 + figures.GAIN)


# ---- figures ----


@pytest.fixture(scope="module")
def steady(fake_nvml: Path) -> Run:
    """Two GPUs at 300 W for 35 s."""
    script = "gpus 2\nwave constant 300\ncounter 0.1\naverage 0.1 1.0\ninstant 0.1 0.025"
    return seen(library.simulate(fake_nvml, script, seconds=38.0))


def test_figures_of_a_steady_run(steady: Run) -> None:
    """600 W and 20 tokens a second are 30 J a token; 2 requests a second, 300 J a request; 3 J per input token."""
    result = measure_energy(*steady, requests(76), 5.0, 30.0, host_w=100.0, pue=1.2)
    expected = {
        "energy_j.gpu": 600 * 25,
        "gpu_power_w": 600,
        "gpu_memory_power_w": 120,
        "joules_per_output_token": 30,
        "energy_j.rest_of_host": 100 * 25,
        "energy_j.facility": 1.2 * (600 + 100) * 25,
        "energy_uncertainty.tokens": 0.05 / 25,
        "gpu_at_power_limit": 0,
    }
    for name, value in expected.items():
        assert result[name].value == pytest.approx(value, rel=5e-3 if name != "energy_uncertainty.tokens" else 0.05), (
            name
        )
    for name in ("energy_j.gpu", "gpu_power_w", "joules_per_output_token"):
        figure = result[name]
        assert None not in (figure.low, figure.value, figure.high)
        assert figure.low < figure.value < figure.high  # type: ignore[operator]
    for name, value in {"joules_per_request": 300, "joules_per_input_token": 3}.items():  # whole requests: 2% steps
        assert result[name].low <= value <= result[name].high  # type: ignore[operator]
    assert result["joules_per_output_token"].high == pytest.approx(30, rel=0.03)
    assert result["energy_j.cpu_package"].text() == "n/a (no meter read it)"
    assert result["energy_cross_check.average"].value == pytest.approx(0, abs=0.002)
    assert {f.status for f in result.figures if f.name in ("gpu_power_w", "energy_j.gpu")} == {"simulated"}
    assert result.findings == ()


def test_without_tokens_there_is_no_energy_per_token(steady: Run) -> None:
    result = measure_energy(*steady, requests(0), 5.0, 30.0)
    assert result["joules_per_output_token"].text() == "n/a (no output_token in the window)"
    assert result["energy_j.gpu"].value == pytest.approx(15000, rel=5e-3)


def test_no_bound_of_power_or_energy_per_token_is_below_nothing(fake_nvml: Path) -> None:
    """Readings of newest power that meet one phase of the load leave all that the limit (400 W) allows."""
    script = "wave square 50 390 0.1\ninstant 0.1 0.025\nfault unsupported 0 counter\nfault unsupported 0 average"
    result = measure_energy(*seen(library.simulate(fake_nvml, script, seconds=38.0)), requests(76), 5.0, 30.0)
    power, joules = result["gpu_power_w"], result["joules_per_output_token"]
    assert [power.low, power.high, joules.low] == pytest.approx([0, 400, 0])


def test_idle_power_is_given_by_phase_and_net_energy_beside_gross(fake_nvml: Path) -> None:
    wave = "wave steps 10 50 5 80 20 300 100 60"
    power, infos = seen(library.simulate(fake_nvml, f"{wave}\ncounter 0.1", seconds=45.0))
    power[["before_s", "after_s"]] -= 15
    idle = {
        "bare": (-11.9, -5.2),
        "loaded": (-4.5, -0.5),
        "after": (21.0, 30.1),
    }  # one as the meter starts, one as it stops
    result = measure_energy(power, infos, requests(40), 1.0, 19.0, idle=idle)
    for phase, watts in {"bare": 50, "loaded": 80, "after": 60}.items():
        assert result[f"gpu_idle_power_w.{phase}"].value == pytest.approx(watts, rel=0.01)
    assert result["gpu_net_energy_j"].value == pytest.approx(220 * 18, rel=0.02)
    assert result["energy_j.gpu"].value == pytest.approx(300 * 18, rel=0.02)


def test_constant_power_is_static_power_if_request_shapes_differ_and_not_identified_if_they_do_not(steady: Run) -> None:
    alike = measure_energy(*steady, requests(76), 5.0, 30.0)
    assert all("the windows do not tell" in alike[f"split.{name}"].text() for name in figures.SPLIT)
    shapes = np.random.default_rng(0).integers(1, 400, (76, 2))
    kinds = [requests(76, tokens=n_out, input_tokens=n_in)[i : i + 1] for i, (n_in, n_out) in enumerate(shapes)]
    static = measure_energy(*steady, pd.concat(kinds), 5.0, 30.0)["split.static_w"]
    assert static.value == pytest.approx(600, rel=0.01)
    assert static.n == 46  # about half a second each


# ---- faults ----

FAULTS = {
    # script: (code, whether there is energy all the same)
    "fault lost 9": ("gpu-lost", False),
    "fault reset 9": ("counter-backwards", False),
    "fault jump 9 1000": ("counter-disagrees", False),
    "fault stuck 9": ("counter-stuck", False),
    "fault uuid 9": ("gpu-changed", False),
    "fault unsupported 0 counter": ("counter-absent", True),
    "fault no_permission 0 counter": ("meter-error", True),
    "fault no_permission 9 counter": ("window-not-bracketed", False),
    "fault unsupported 0 fields": ("counter-absent", True),
    "fault tenant 9": ("foreign-process", True),
    "fault tenant 0": ("unknown-process", True),
    "fault mig 0": ("mig", True),
    "fault module 0": ("module-scope", True),
    "fault throttle 9 64": ("throttled", True),
    "limit 250": ("power-limit", True),
    "celsius_per_s 1": ("temperature-drift", True),
}


@pytest.fixture(scope="module")
def faulty(fake_nvml: Path) -> Run:
    """A GPU for each of `FAULTS`, all read by one meter."""
    script = [f"gpus {len(FAULTS)}\nwave constant 200", *(f"gpu {i} {fault}" for i, fault in enumerate(FAULTS))]
    return seen(library.simulate(fake_nvml, "\n".join(script), seconds=17.0))


@pytest.mark.parametrize("script", FAULTS)
def test_each_fault_has_its_code_and_no_invented_energy(faulty: Run, script: str) -> None:
    code, there_is = FAULTS[script]
    power, (info,) = faulty
    own = tuple(d for d in info.devices if d.device == str(list(FAULTS).index(script)))
    result = measure_energy(power, (replace(info, devices=own),), requests(34), 5.0, 15.0)
    assert code in {finding.code for finding in result.findings}
    joules = result["energy_j.gpu"].value
    if there_is:
        assert joules == pytest.approx(2000, rel=0.02)
    else:
        assert joules is None
        assert (result["joules_per_output_token"].reason or "").startswith(f"{code}:")
        assert all(f.value is None for f in result.figures if f.name.startswith(("joules_per", "split", "gpu_power")))


@pytest.mark.parametrize(("fault", "code"), [("tenant 0", "unknown-process"), ("throttle 1 64", "throttled")])
@pytest.mark.parametrize("start_s", [8.0, 9.0, 10.0, 11.0])
def test_what_is_read_every_few_seconds_counts_for_a_short_window_between_two_readings(
    fake_nvml: Path, fault: str, code: str, start_s: float
) -> None:
    power, infos = seen(library.simulate(fake_nvml, f"wave constant 200\nfault {fault}", seconds=20.0))
    assert code in {
        finding.code for finding in measure_energy(power, infos, requests(60), start_s, start_s + 3).findings
    }


def test_one_faulty_gpu_voids_the_total(faulty: Run) -> None:
    """The sum of the GPUs that answered is no energy of the run."""
    result = measure_energy(*faulty, requests(34), 5.0, 15.0)
    assert result["energy_j.gpu"].text().startswith("n/a (gpu-lost: GPU 0 was lost 9.")


def test_a_counter_that_starts_anew_next_to_a_window_is_void(fake_nvml: Path) -> None:
    """Eight GPUs are read once a second: the reading after the window need not be within half a second of it."""
    power, infos = seen(library.simulate(fake_nvml, "wave constant 200\nfault reset 9", seconds=20.0))
    power = power[(power["after_s"] < 8.3) | (power["before_s"] > 9.2)]
    for start_s, end_s in ((3.0, 8.6), (8.9, 15.0)):
        result = measure_energy(power, infos, requests(60), start_s, end_s)
        assert result["energy_j.gpu"].value is None
        assert "counter-backwards" in {finding.code for finding in result.findings}


def test_a_gpu_that_is_lost_after_a_window_has_the_energy_of_it(fake_nvml: Path) -> None:
    """As in a later step of the load."""
    power, infos = seen(library.simulate(fake_nvml, "wave constant 200\nfault lost 12", seconds=20.0))
    assert measure_energy(power, infos, requests(40), 1.0, 8.0)["energy_j.gpu"].value == pytest.approx(1400, rel=0.01)
    for start_s in (9.0, 15.0):
        lost = measure_energy(power, infos, requests(40), start_s, start_s + 4)["energy_j.gpu"].text()
        assert lost.startswith("n/a (gpu-lost: GPU 0 was lost 12.")


@pytest.mark.parametrize("script", ["wave constant 200", "profile h100\nwave steps 0.12 690 0.61 430 0.07 230"])
def test_a_clean_run_has_no_finding(fake_nvml: Path, script: str) -> None:
    power, infos = seen(library.simulate(fake_nvml, script, seconds=17.0))
    assert measure_energy(power, infos, requests(34), 5.0, 15.0).findings == ()


@pytest.fixture
def plain(steady: Run) -> pd.DataFrame:
    return steady[0].copy()


def codes(power: pd.DataFrame, infos: tuple[MeterInfo, ...], **options: Any) -> dict[str, bool]:
    result = measure_energy(power, infos, requests(76), 5.0, 30.0, **options)
    return {finding.code: finding.serious for finding in result.findings}


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.02, {}), (1.06, {"counter-disagrees": True}), (0.85, {"counter-disagrees": True})]
)
def test_counter_and_average_power_must_agree(
    plain: pd.DataFrame, steady: Run, factor: float, expected: dict[str, bool]
) -> None:
    plain["average_w"] *= factor
    assert codes(plain, steady[1]) == expected
    voided = measure_energy(plain, steady[1], requests(76), 5.0, 30.0)["energy_j.gpu"].value is None
    assert voided == ("counter-disagrees" in expected)


def test_a_counter_that_moves_by_next_to_nothing_is_void(fake_nvml: Path) -> None:
    power, infos = seen(library.simulate(fake_nvml, "wave constant 0.001", seconds=20.0))
    result = measure_energy(power, infos, requests(0), 5.0, 15.0)
    assert result["energy_j.gpu"].value is None
    assert "counter-disagrees" in {finding.code for finding in result.findings}


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_counter_whose_gain_changes_under_load_is_void(fake_nvml: Path, gpus: int) -> None:
    """The window holds two readings of average power, and those before the change were right."""
    script = f"gpus {gpus}\nseed 11\nprofile h100\ncounter_gain 1.1\ngain_from 25\n{library.serving(1).script}"
    power, infos = seen(library.simulate(fake_nvml, script, seconds=60.0))
    for start_s, end_s in ((20.0, 33.0), (29.0, 40.0), (36.0, 42.0)):
        result = measure_energy(power, infos, requests(0), start_s, end_s)
        assert "counter-disagrees" in {finding.code for finding in result.findings}
        assert result["energy_j.gpu"].value is None


def test_newest_power_does_not_void_the_counter(plain: pd.DataFrame, steady: Run) -> None:
    plain["power_w"] *= 0.4
    assert codes(plain, steady[1]) == {}
    plain["average_w"] = np.nan
    assert codes(plain, steady[1]) == {"counter-unchecked": False}


def test_a_gap_in_the_readings_is_a_finding_and_the_counter_covers_it(plain: pd.DataFrame, steady: Run) -> None:
    holed = plain[(plain["before_s"] < 12) | (plain["before_s"] > 14)]
    assert codes(holed, steady[1]) == {"meter-gap": False}
    assert measure_energy(holed, steady[1], requests(76), 5.0, 30.0)["energy_j.gpu"].value == pytest.approx(
        15000, rel=5e-3
    )


def test_a_lost_meter_and_a_meter_without_readings_are_findings(steady: Run) -> None:
    power, (info,) = steady
    lost = MeterInfo(info.meter, info.status, info.devices, error="the reading process hung")
    assert codes(power[power["before_s"] < 9], (lost,)) == {"meter-lost": True, "window-not-bracketed": True}
    assert codes(power.iloc[:0], (info,)) == {"meter-absent": True}
    nothing = measure_energy(power.iloc[:0], (), requests(3), 0.0, 1.0)
    assert nothing["energy_j.gpu"].text() == "n/a (no meter read a GPU)"


def test_a_counter_without_increase_gives_no_energy(plain: pd.DataFrame, steady: Run) -> None:
    """Two updates and nothing between them: the window fits in the gap, and 0 J would be made up."""
    plain.loc[plain["before_s"] < 40, "energy_j"] = 5.0
    result = measure_energy(plain, steady[1], requests(76), 5.0, 30.0)
    assert result["energy_j.gpu"].value is None
    assert "counter-stuck" in {finding.code for finding in result.findings}


@pytest.mark.parametrize(("mhz", "told"), [((1400, 1980), True), ((1950, 1980), False)])
def test_clocks_with_a_wide_range_are_a_finding(
    plain: pd.DataFrame, steady: Run, mhz: tuple[int, int], told: bool
) -> None:
    plain["sm_clock_hz"] = np.where(np.random.default_rng(1).random(len(plain)) < 0.3, mhz[0] * 1e6, mhz[1] * 1e6)
    found = measure_energy(plain, steady[1], requests(76), 5.0, 30.0)
    assert [each.text for each in found.findings] == [
        f"The SM clock of GPU {i} moved between 1400 and 1980 MHz." for i in (0, 1) if told
    ]


def test_a_short_window_is_a_finding_and_has_no_repeats(steady: Run) -> None:
    result = measure_energy(*steady, requests(76), 5.0, 5.5)
    assert {f.code for f in result.findings} == {"window-short"}
    assert result["energy_uncertainty.repeats"].value is None


def test_every_figure_is_documented(steady: Run) -> None:
    text = (ROOT / "docs" / "energy.md").read_text()
    result = measure_energy(*steady, requests(76), 5.0, 30.0, idle={"loaded": (5.0, 10.0)})
    stems = {figure.name.partition(".")[0] for figure in result.figures}
    assert [stem for stem in stems if f"`{stem}" not in text] == []


SLOW_SQUARE, STAIRS = "wave square 130 690 0.6", "wave steps 7.3 150 11.1 620"
CHECKED = {
    # script: whether the counter is believed
    f"profile h100\ncounter_gain 1.1\n{SLOW_SQUARE}": False,
    f"profile h100\ncounter_gain 1.1\n{STAIRS}": False,
    "profile h100\ncounter_gain 0.9\nwave square 130 690 0.102": False,
    f"gpus 8\nprofile h100\ngpu 5 counter_gain 1.1\n{library.serving(5).script}": False,
    f"profile h100\n{SLOW_SQUARE}": True,
    f"profile h100\n{STAIRS}": True,
    # Boards whose average is of 25 ms, and have no GA100.
    f"profile h100\naverage 0.1 0.025\n{library.serving(5).script}": True,
    "profile h100\naverage 0.1 0.025\nwave square 130 690 0.102": True,
    "profile h100\naverage 0.1 0.025\nwave steps 0.12 690 0.61 430 0.07 230": True,
    # And of other times.
    f"profile h100\naverage 0.1 0.5\n{STAIRS}": True,
    f"profile h100\naverage 0.1 10\n{STAIRS}": True,
}


@pytest.mark.parametrize("script", CHECKED)
def test_a_wrong_counter_is_void_under_any_load_and_a_right_one_beside_any_average(
    fake_nvml: Path, script: str
) -> None:
    power, infos = seen(library.simulate(fake_nvml, f"seed 21\n{script}", seconds=75.0))
    for start_s, end_s in ((22.0, 23.0), (25.0, 35.0), (31.0, 62.0), (50.0, 60.0)):
        result = measure_energy(power, infos, requests(0), start_s, end_s)
        assert (result["energy_j.gpu"].value is not None) == CHECKED[script]
        assert ("counter-disagrees" in {finding.code for finding in result.findings}) != CHECKED[script]
