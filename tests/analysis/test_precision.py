"""Wanted precision: when a run may stop, how well the interval holds then, and the process that says so."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import by_hand as record
from builders import changed, frame_of
from closed_loop import closed_loops, truth

from harness import stats
from harness.analysis.precision import LEAST, Looks, Reach, Target, check, parse, reaches, whole_prefix
from harness.analysis.summary import summary_of
from harness.errors import HarnessError
from harness.measure import run as measuring
from harness.measure.stop import Stop
from harness.model import Figure, Summary
from harness.report.changes import precision_table, repeats_table
from harness.store.run import read_run
from harness.workload.library import read_workload


def stopped(top: stats.Array, bottom: stats.Array, together: float, share: float) -> tuple[int, float]:
    """At how many requests the rule stops, and the half-width there; requests come in one by one."""
    looks, half, n = Looks(), math.inf, 0

    def precise() -> bool:
        nonlocal half
        half = stats.ratio_half(top[:n], bottom[:n], together) or math.inf
        return half <= share

    for n in range(1, len(top) + 1):
        if looks.enough(n, precise):
            break
    return n, half


@pytest.mark.parametrize(("cv", "share"), [(0.8, 0.05), (0.3, 0.02)])
def test_the_mean_of_noise_stops_near_the_least_and_still_holds_the_truth(cv: float, share: float) -> None:
    """(1.96 cv / share)^2 requests are the least that the known variance needs."""
    rng, least, held, took = np.random.default_rng(1), (1.96 * cv / share) ** 2, [], []
    for _ in range(400):
        values = rng.gamma(cv**-2, cv**2, int(3 * least))
        n, half = stopped(values, np.ones(len(values)), 1, share)
        held.append(abs(values[:n].mean() - 1) <= half * values[:n].mean())
        took.append(n / least)
    assert 0.92 <= np.mean(held) <= 0.98
    assert 0.95 <= np.mean(took) <= 1.3


def test_the_rate_of_a_closed_loop_stops_near_the_least_and_still_holds_the_truth() -> None:
    """Tokens per time in flight; the variance is that of tokens - R stay over the mean of tokens."""
    users, share = 8, 0.02
    rate, stay_s = truth(users, 1.0)
    ratio, held, took, spread = rate / users, [], [], []
    for run in closed_loops(users, 2000, 300, seed=2, cv=1.0):
        stays = run.end_s - run.sent_s
        n, half = stopped(run.tokens, stays, users, share)
        seen = run.tokens[:n].sum() / stays[:n].sum()
        held.append(abs(seen - ratio) <= half * seen)
        took.append(n)
        spread.append(np.var(run.tokens - ratio * stays))
    least = float(np.mean(spread)) * (1.96 / share / (ratio * stay_s)) ** 2
    assert 0.92 <= np.mean(held) <= 0.98
    assert 1.0 <= np.mean(took) / least <= 1.5


def test_dependent_values_stop_later() -> None:
    rng = np.random.default_rng(3)
    took: dict[float, list[int]] = {0.0: [], 0.5: []}
    for phi, counts in took.items():
        for _ in range(60):
            x = rng.normal(0, 0.3 * math.sqrt(1 - phi**2), 4000)
            for i in range(1, len(x)):
                x[i] += phi * x[i - 1]
            counts.append(stopped(1 + x, np.ones(len(x)), 1, 0.03)[0])
    assert np.mean(took[0.5]) > 2 * np.mean(took[0.0])  # (1 + phi) / (1 - phi) = 3 times


def test_looks_come_after_growth_and_four_in_a_row_must_be_precise() -> None:
    looks, asked = Looks(), []
    answers = iter([True, False, True, True, True, True])

    def precise() -> bool:
        asked.append(n)
        return next(answers)

    for n in range(1000):
        if looks.enough(n, precise):
            break
    assert asked == [LEAST, 105, 111, 117, 123, 130]


def of(**figures: tuple[float | None, float | None, float | None]) -> Summary:
    made = [Figure(name, *ends[:1], "s", "measured", *ends[1:], reason=None) for name, ends in figures.items()]
    return Summary("r", "complete", (Figure("requests_per_s", 2.0, "1/s", "measured", n=400), *made), {})


def test_the_number_of_further_requests_follows_from_the_half_width() -> None:
    summary = of(output_tokens_per_s=(100.0, 96.0, 103.0))
    (reach,) = reaches(summary, parse(["2%"]))
    assert reach == Reach(Target("output_tokens_per_s", 0.02), 0.04, "it has no interval", 400)
    assert reach.factor == pytest.approx(4)
    assert (reach.met, reach.more) == (False, 1200)
    (reach,) = reaches(summary, parse(["output_tokens_per_s=5%"]))
    assert (reach.met, reach.more) == (True, 0)
    (reach,) = reaches(of(output_tokens_per_s=(100.0, None, None)), parse(["2%"]))
    assert (reach.half, reach.more, reach.met) == (None, None, False)
    both = reaches(of(output_tokens_per_s=(100.0, 99, 101), joules_per_output_token=(1.0, 0.9, 1.1)), parse(["2%"]))
    assert [each.met for each in both] == [True, False]
    (reach,) = reaches(summary, parse(["ttft_s.p99=2%"]))
    assert (reach.half, reach.reason) == (None, "not recorded")


@pytest.mark.parametrize("word", ["2", "0%", "100%", "x%", "ttft_s.mean=", "-1%"])
def test_a_malformed_precision_is_refused(word: str) -> None:
    with pytest.raises(HarnessError, match="is not a percentage"):
        parse([word])


@pytest.mark.parametrize(
    ("word", "shape", "said"),
    [
        ("2%", "offline", r"load\.shape=offline"),
        ("goodput_per_s=2%", "closed", "no objectives"),
        ("joules_per_request=2%", "closed", "no meter"),
    ],
)
def test_a_precision_that_the_run_cannot_reach_is_refused_before_it(word: str, shape: str, said: str) -> None:
    steady = read_workload("smoke")
    check(parse(["2%"]), steady, lambda: False)
    check(parse([word]), steady, lambda: True)
    asked = read_workload("smoke", {"objectives": {}} | ({"load": {"shape": "offline"}} if shape == "offline" else {}))
    with pytest.raises(HarnessError, match=said):
        check(parse([word]), asked, lambda: False)


def test_requests_sent_after_one_in_flight_are_left_out() -> None:
    """A journal has what ended: of 0, 1, 2, 4 the last was sent beside 3, which still goes on."""
    frame = frame_of([record(i) for i in (4, 0, 2, 1)])
    assert sorted(whole_prefix(frame)["index"]) == [0, 1, 2]
    assert whole_prefix(frame_of([])).empty
    turns = [record(1000 * i, conversation=i, turn=0, sent_s=float(i), end_s=i + 2.5) for i in range(6)]
    assert whole_prefix(frame_of(turns))["sent_s"].max() == 4.0


QUICK = {
    "engine": {"name": "simulated", "simulated": {"ttft_s": 0.1, "jitter": 0.5}},
    **{"load.users": 64, "load.start": "burst", "requests.output_tokens": 4, "requests.input_tokens": 4},
}


@pytest.mark.alone
def test_a_run_ends_when_it_is_precise_and_states_the_time_saved(tmp_path: Path) -> None:
    """TTFT with a coefficient of variation of 0.5 needs 96 requests for 10%, and 16 users 320 for 20 each."""
    workload = read_workload("smoke", {**QUICK, "load.users": 16, "requests.count": 6000})
    targets = parse(["ttft_s.mean=10%"])
    with Stop(targets) as stop:
        directory = measuring.run(workload, tmp_path, lambda _: None, enough=stop)
    run = read_run(directory)
    assert run.file.state == "complete"
    assert 320 < len(run.requests) < 5000
    assert run.requests["error"].isna().all()  # the load ended in good order
    table = precision_table(run, summary_of(run), targets)
    assert table.rows[0][4:] == ("0", "0", "0")
    assert table.notes[0].startswith(f"reached after {len(run.requests):,} of 6,000 requests: about ")


def test_a_stop_process_that_died_never_stops_the_run(tmp_path: Path) -> None:
    with Stop(parse(["2%"])) as stop:
        assert not stop(tmp_path)
        stop._child.process.kill()
        stop._child.process.wait()
        assert not stop(tmp_path)


def test_repeats_have_an_interval_between_runs_and_name_different_software(tmp_path: Path) -> None:
    workload = read_workload("smoke", {**QUICK, "requests.count": 64})
    (run,) = [read_run(measuring.run(workload, tmp_path, lambda _: None))]
    summary = summary_of(run)
    rate = summary["output_tokens_per_s"]
    others = [replace(summary, figures=(replace(rate, value=value),)) for value in (10.0, 12.0)]
    table = repeats_table([(run, each) for each in others])
    assert table.columns == ("figure", "mean", run.file.id, run.file.id)
    name, mean, *each = table.rows[0]
    assert isinstance(mean, Figure)
    assert (name, mean.value, mean.n) == ("output_tokens_per_s", 11.0, 2)
    assert mean.low == pytest.approx(11 - 12.706, rel=1e-3)
    assert [figure.value for figure in each if isinstance(figure, Figure)] == [10.0, 12.0]
    assert len(table.notes) == 1
    newer = changed(run, environment=run.environment.model_copy(update={"python": "3.99"}))
    assert "different software: python" in repeats_table([(run, others[0]), (newer, others[1])]).notes[1]
