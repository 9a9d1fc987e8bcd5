"""The first screen: its size at any width, on any device, and what it says of each figure."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from builders import GPU, WORKLOAD, a_run, changed, stored
from fake_nvml.library import environment
from places import ROOT
from rich.cells import cell_len

from harness.analysis.gates import parse_gate
from harness.analysis.summary import load, made_of
from harness.model import Figure, Finding, Summary
from harness.report import text
from harness.report.answer import answer, conditions
from harness.report.changes import difference
from harness.report.document import first_screen
from harness.report.format import carried
from harness.store.run import Run, read_run

MOST = {80: 30, 100: 24, 140: 24}
"""Columns -> lines, with the line of `run` that names the directory."""
OTHERS = sorted([*(ROOT / "tests/data/runs").glob("*/2*"), *(ROOT / "results/published").glob("2*")])


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("gpu"))


def read(directory: Path) -> tuple[Run, Summary]:
    """As `load`, which would store the summary beside the run."""
    run = read_run(directory)
    return run, made_of(run)


def fits(shown: str, width: int, more: int = 1) -> bool:
    lines = shown.splitlines()
    return len(lines) + more <= MOST[width] and max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("width", MOST)
def test_the_answer_of_a_run_is_one_screen_with_and_without_a_gpu(on_gpu: Path, width: int) -> None:
    assert len(OTHERS) == 3
    for directory in (on_gpu, *OTHERS):
        assert fits(first_screen([read(directory)], None, width), width), directory


@pytest.mark.parametrize("width", MOST)
def test_many_long_findings_and_names_leave_one_screen_that_counts_the_rest(on_gpu: Path, width: int) -> None:
    run, summary = load(on_gpu)
    doubts = tuple(Finding(f"doubt-{i}", "seen " * 60, "do " * 60, serious=i < 2) for i in range(9))
    for count in (1, 2, 9):
        long = changed(run, id="2026-" + "x" * 150, state="failed", error="word " * 50)
        shown = answer(long, replace(summary, findings=doubts[:count]), None, doubts[:count], width)
        assert fits(shown, width)
        assert "doubt-0" in shown
        assert count == 1 or "more: harness check" in shown


def several_runs(directory: Path, count: int) -> list[tuple[Run, Summary]]:
    """Runs of rising users that all met the objectives; the last is the fastest."""
    run, summary = load(directory)
    made = []
    for users in range(count, 0, -1):
        load_ = {"shape": "closed", "users": users}
        other = changed(run, id=f"{run.id}-{users}", workload=WORKLOAD | {"load": load_, "requests": {"count": 320}})
        figures = tuple(
            replace(each, value=100.0 * users) if each.name == "output_tokens_per_s" else each
            for each in summary.figures
        )
        made.append((other, replace(summary, run=other.id, figures=figures)))
    return made


POWER = "gpus 2\nwave square 600 100 0.5\nname NVIDIA H100 80GB HBM3\nlimit 700"


@pytest.fixture(scope="module", params=["with GPUs", "without"])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fake_nvml: Path) -> Path:
    """A run that the command measured, on a machine with two scripted GPUs or with none."""
    place = tmp_path_factory.mktemp("measured")
    meters = ("--meter", "nvml", "--gpus", "0,1") if request.param == "with GPUs" else ("--meter", "auto")
    seen = environment(fake_nvml if meters[1] == "nvml" else place, POWER) | {"COLUMNS": "100"}
    command = (sys.executable, "-m", "harness", "run", "smoke", "--engine", "simulated", "--duration", "1.5s", *meters)
    done = subprocess.run(command, cwd=place, env=seen, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= MOST[100]
    assert max(map(cell_len, lines)) <= 100
    assert ("limit 700 W each" in done.stdout) == (meters[1] == "nvml")
    return (place / "results/latest").resolve()


def test_what_was_measured_is_one_screen(measured: Path) -> None:
    for count in (1, 4, 40):  # in one test: each process that runs tests would measure anew
        sweep = several_runs(measured, count) if count > 1 else [load(measured)]
        for width in MOST:
            lines = first_screen(sweep, None, width).splitlines()
            assert max(map(cell_len, lines)) <= width
            assert len(lines) < MOST[width] if count == 1 else len(lines) <= min(count, 20) + 12
            assert any("J/token" in line or line.startswith("energy") for line in lines)


@pytest.mark.parametrize("width", MOST)
@pytest.mark.parametrize("count", [4, 40])
def test_several_runs_are_one_table_with_a_row_a_run(on_gpu: Path, count: int, width: int) -> None:
    shown = first_screen(several_runs(on_gpu, count), None, width)
    lines = shown.splitlines()
    assert max(map(cell_len, lines)) <= width
    head = next(i for i, line in enumerate(lines) if "users" in line and "tok/s" in line)
    rows = lines[head + 1 : head + 1 + min(count, 20)]
    users = [*range(1, 20), 40] if count > 20 else [1, 2, 3, 4]
    assert [int(line.lstrip("> ").split()[0]) for line in rows] == users
    assert [line[0] for line in rows] == [" "] * (len(rows) - 1) + [">"]
    assert len(lines) - len(rows) <= 12
    assert ("20 more runs" in shown) == (count == 40)
    assert "Qwen3-8B bfloat16 · 1 x H100 80GB HBM3" in shown


def test_runs_that_differ_in_much_name_what_has_no_room(on_gpu: Path) -> None:
    sweep = several_runs(on_gpu, 4)
    other = changed(sweep[0][0], engine=GPU | {"version": "0.12", "device_count": 2, "model": {"asked": "x" * 90}})
    for width in MOST:
        shown = first_screen([*sweep, (other, sweep[0][1])], None, width)
        assert max(map(cell_len, shown.splitlines())) <= width
        assert len(shown.splitlines()) <= 5 + 12
    assert "no room for" in first_screen([*sweep, (other, sweep[0][1])], None, 80)


def test_a_condition_that_tells_the_same_runs_apart_gives_its_column_to_a_figure(on_gpu: Path) -> None:
    (run, summary), *others = several_runs(on_gpu, 4)
    old = GPU | {"version": "0.12"}
    load_ = {"shape": "closed", "users": 4, "start": "burst", "duration_s": 9000.25}
    twin = changed(run, engine=old, workload=WORKLOAD | {"load": load_, "requests": {"count": 320}})
    shown = first_screen([(twin, summary), *others], None, 80).splitlines()
    head = next(line for line in shown if "tok/s" in line)
    assert head.split()[:2] == ["engine", "users"]
    assert "J/token" in head
    assert "USD/M" in head
    assert any("also different: start, duration_s" in line for line in shown)


def test_runs_that_read_alike_are_told_by_name_and_without_objectives_none_is_best() -> None:
    run, summary = read(next(path for path in OTHERS if path.parent.name == "2"))
    twin = changed(run, id="20261128T000000Z-twin")
    none = replace(summary, figures=tuple(each for each in summary.figures if each.name != "objectives_met"))
    shown = first_screen([(run, none), (twin, none)], None, 100)
    assert run.id in shown
    assert twin.id in shown
    assert ">" not in "".join(line[0] for line in shown.splitlines())
    assert "SIMULATED" in shown.splitlines()[0]
    assert "simulated" not in shown.splitlines()[0]  # said once
    assert "n/a in every run: J/token, USD/M" in shown


def test_of_mixed_runs_the_simulated_ones_are_counted_and_named(on_gpu: Path) -> None:
    simulated = read(next(path for path in OTHERS if path.parent.name == "2"))
    shown = first_screen([read(on_gpu), simulated, simulated], None, 140).splitlines()
    assert shown[0] == "3 runs · 2 SIMULATED"
    assert conditions([run for run, _ in (read(on_gpu), simulated)])[1]["model"][1] == "simulated"


def test_every_figure_has_an_interval_or_the_mark_of_a_reason(on_gpu: Path) -> None:
    shown = first_screen([load(on_gpu)], None, 100)
    assert "80.3 tokens/s ±1%" in shown
    assert "1 failed (rejected 1)" in shown
    assert re.search(r"^energy +6\.\d+ J ±[\d.]+% per output token", shown, re.MULTILINE)
    assert re.search(r"^price +\$[\d.]+ \([\d.]+-[\d.]+\) per million output tokens", shown, re.MULTILINE)
    assert re.search(r"on-demand, \d+-\d+% busy \(assumed\)", shown)
    (run,) = (path for path in OTHERS if "smollm2" in path.name)
    shown = first_screen([read(run)], None, 100)
    assert "TTFT         583 [1]     646 [1]     647 [1]" in shown
    assert "[1] no interval: needs 5 independent batches of 4 requests, has 2-3" in shown
    assert "energy       n/a [2]" in shown
    assert "[2] nvml: NVML does not answer" in shown


def test_a_simulated_run_is_marked_and_not_priced() -> None:
    run = next(path for path in OTHERS if path.parent.name == "2")
    lines = first_screen([read(run)], None, 100).splitlines()
    assert lines[0].startswith("SIMULATED · smoke · 4 users · 12 of 12 requests")
    assert any(line.endswith("a simulated run is not priced") for line in lines)
    assert any(line.startswith("simulated: throughput, latency") for line in lines)


@pytest.mark.parametrize("width", MOST)
def test_energy_of_a_gpu_that_does_not_exist_is_told_as_simulated(on_gpu: Path, width: int) -> None:
    run, summary = load(on_gpu)
    figures = tuple(
        replace(each, status="simulated") if each.name.startswith(("joules", "gpu_power", "energy")) else each
        for each in summary.figures
    )
    shown = answer(run, replace(summary, figures=figures), None, (), width)
    assert fits(shown, width)
    assert "measured: throughput, latency; simulated: energy" in shown.replace("\n", "; ")


def test_a_run_that_never_started_reads() -> None:
    run = a_run(state="failed", error="no such model", engine=None)
    shown = answer(run, made_of(run), None, (), 80)
    assert fits(shown, 80)
    assert shown.startswith("FAILED: no such model")
    assert "no request sent" in shown
    assert "of 0 requests" not in shown
    assert "n/a" in shown
    assert "the engine never started" in shown


def test_a_difference_prints_gates_first_then_what_moved_and_counts_the_rest(tmp_path: Path) -> None:
    run, other = (read_run(stored(tmp_path, users)) for users in (4, 8))
    gate = parse_gate("output_tps<-3%")
    made, *_ = difference([run], [other], [gate], force=True, least=0.1, full=False)
    assert [table.name for table in made] == ["gates", "verdict", "diff", "findings"]
    for width in MOST:
        lines = text.render(made, width, color=False).splitlines()
        assert max(map(cell_len, lines)) <= width
        assert any(line.split()[:5] == ["output_tokens_per_s", "39.9", "->", "80.3", "tok/s"] for line in lines)
    counted = r"[1-9]\d* figures: no difference seen of 10% or more"
    assert any(re.fullmatch(counted, note) for note in made[2].notes)
    (serious,) = made[3].rows
    assert serious == ("load-not-held", f"{run.id}, {other.id}")
    whole, *_ = difference([run], [other], [gate], force=True)
    assert len(whole[2].rows) > 30


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (15866.0, 15422.0, 16310.0, ("15,900", "±2.8%")),  # half-width 444: one digit
        (0.0434, 0.04222, 0.04457, ("0.0434", "±2.7%")),  # half-width 0.001175: two digits
        (0.1134, 0.05, 0.23, ("0.11", "0.05-0.23")),  # uneven
        (454.28, 445.9, 582.8, ("450", "450-580")),
        (1234567.0, 1134567.0, 1334567.0, ("1.23 M", "±8.1%")),
        (10.0, 10.0, 10.0, ("10", "±0%")),
        (5.0, 0.0, 2000.0, ("5", "0-2,000")),  # wider than the value: one digit of the value stays
        (12.3456, None, None, ("12.3", "")),
        (9.998, None, None, ("10.0", "")),  # rounding adds a digit before the point, so one after it goes
        (12.3456, 11.0, None, ("12.3", ">= 11.0")),
        (2.5e-7, None, None, ("2.5e-07", "")),
        (0.0, 0.0, 0.0, ("0", "0-0")),
        (1.13, 0.152, 8.81, ("1", "0.2-9")),  # an end above 0 keeps a digit
        (0.4, 0.0, 5.0, ("0.4", "0.0-5.0")),
        (8.65e9, 8.645e9, 8.655e9, ("8.650 bn", "±0.058%")),
        (1.2e6, 1.1e6, 1.6e6, ("1.20 M", "1.10-1.60 M")),
        (123456.0, None, None, ("123,456", "")),  # a count
        (None, None, None, ("n/a", "")),
    ],
)
def test_digits_follow_the_interval(
    value: float | None, low: float | None, high: float | None, said: tuple[str, str]
) -> None:
    assert carried(Figure("rate", value, "tokens/s", "measured", low, high)) == said
