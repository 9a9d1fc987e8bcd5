"""Loads of steps: the window, figures and findings of each, on loads whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import batching
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import a_run, by_hand, stored

from harness.analysis.diff import check_comparable
from harness.analysis.summary import made_of
from harness.errors import HarnessError
from harness.model import Figure, Record, Summary
from harness.report import answer as screen
from harness.report.format import amount
from harness.report.tables import steps_tables
from harness.store.run import Run, read_run

Steps = Sequence[tuple[int, float]]
"""Users, or requests per second, and seconds of each step."""


FROZEN_S = 2.5


def answer(index: int, sent_s: float, stay_s: float, age: int | None = None, frozen_s: float = np.inf) -> Record:
    """A request with a token after every tenth of its stay; the engine stands still for FROZEN_S from `frozen_s`."""
    begin_s = frozen_s + FROZEN_S if frozen_s <= sent_s < frozen_s + FROZEN_S else sent_s
    came = (begin_s + stay_s * k / 10 for k in range(1, 11))
    arrival_s = tuple(at + FROZEN_S * bool(begin_s < frozen_s <= at) for at in came)
    times: dict[str, Any] = {"scheduled_s": sent_s, "sent_s": sent_s, "end_s": arrival_s[-1], "arrival_s": arrival_s}
    counts = {"arrival_tokens": (1,) * 10, "output_tokens": 10, "output_asked": 10}
    return by_hand(index, **times, **counts, age_tokens=age)


def by_users(steps: Steps, stay_s: Callable[[float], float] = lambda _: 2.0, frozen_s: float = np.inf) -> list[Record]:
    """Users whose answers take `stay_s` of their sending; the first of each, a quarter to all of that."""
    begin, made, free_s = 0.0, list[Record](), dict[int, float]()
    for users, length_s in steps:
        for user in range(users):
            while (at := free_s.get(user, begin)) < begin + length_s:
                part, age = (1.0, None) if user in free_s else ((user % 4 + 1) / 4, 5)
                made.append(answer(0, at, stay_s(at) * part, age, frozen_s))
                free_s[user] = made[-1].arrival_s[-1]
        begin, free_s = begin + length_s, {user: at for user, at in free_s.items() if user < users}
    made.sort(key=lambda each: each.sent_s or 0.0)
    return [replace(each, index=i) for i, each in enumerate(made)]


def of_steps(records: Sequence[Record], steps: Steps, level: str = "users", **changes: Any) -> Run:
    asked = [{level: amount, "duration_s": length_s} for amount, length_s in steps]
    workload = {"load": {"shape": "steps", "steps": asked}, "requests": {}, "warmup": {"requests": 1}}
    return a_run(*records, workload=workload, **changes)


def of_step(found: Summary, i: int) -> Mapping[str, float | None]:
    begin = f"step.{i}."
    return {each.name.removeprefix(begin): each.value for each in found.figures if each.name.startswith(begin)}


def codes(found: Summary) -> list[tuple[str, str, bool]]:
    """Code, step and seriousness of the findings about windows."""
    about = ("no-window", "queue-grows", "not-steady", "level-shift", "stall", "slow-end", "start-left-out")
    return [(each.code, each.text.partition(" (")[0], each.serious) for each in found.findings if each.code in about]


# ---- steps of users ----


@pytest.mark.parametrize("lengths", [batching.fixed(200, 100), batching.lognormal(200, 100, 1.0)], ids=["fixed", "cv1"])
def test_each_step_of_users_has_the_rate_and_joules_of_a_long_run_at_its_users(lengths: batching.Lengths) -> None:
    """Steps of three request times on a batching engine: `scripts/window-bias --steps` has the table."""
    for found in batching.bias_of_steps([8, 32, 128], 3, lengths, seeds=16):
        assert found.without <= 1
        assert abs(found.rate) < 0.01 + 2 * found.rate_error
        assert abs(found.joules) < 0.01 + 2 * found.joules_error


def test_a_step_down_begins_when_those_who_left_have_their_answers() -> None:
    """16 users after 64: with those who end their answers in the window the rate would be 20% too high."""
    _, found = batching.bias_of_steps([64, 16], 6, batching.lognormal(200, 100, 0.5), seeds=16)
    assert found.without <= 1
    assert abs(found.rate) < 0.01 + 2 * found.rate_error


def test_the_figures_of_each_step_are_those_computed_by_hand() -> None:
    """Answers of 2 s and 10 tokens: 5 tokens a second and user, from 2 users over 6 to 3."""
    steps = [(2, 20.0), (6, 20.0), (3, 20.0)]
    found = made_of(of_steps(by_users(steps), steps))
    for i, (users, _) in enumerate(steps, 1):
        step = of_step(found, i)
        assert step["load"] == users
        assert 20 * (i - 1) <= (step["window.begin_s"] or 0) < (step["window.end_s"] or 0) <= 20 * i
        assert step["output_tokens_per_s"] == pytest.approx(5 * users)
        assert step["requests_per_s"] == pytest.approx(users / 2)
        assert step["ttft_s.p99"] == pytest.approx(0.2)
        assert step["tpot_s.p50"] == pytest.approx(0.2)
        assert step["e2e_s.mean"] == pytest.approx(2.0)
    assert codes(found) == []


def test_the_figures_of_a_run_are_those_of_its_highest_step() -> None:
    steps = [(2, 20.0), (6, 20.0), (6, 30.0), (3, 20.0)]
    found = made_of(of_steps(by_users(steps), steps))
    for name in ("output_tokens_per_s", "ttft_s.p99", "e2e_s.mean", "window.begin_s", "window.end_s"):
        assert found[name].value == of_step(found, 2)[name]
    assert found["output_tokens_per_s"].low is not None
    assert (found["whole_run.output_tokens_per_s"].value or 0) < 25 < (found["output_tokens_per_s"].value or 0)
    assert len(steps_tables(found)[0].rows) == len(steps)


def test_screen_and_table_name_a_step_by_what_was_asked_and_print_its_latencies_in_milliseconds() -> None:
    run = of_steps(by_users(steps := [(1, 20.0), (6, 20.0)]), steps)
    found = made_of(run)
    (table,) = steps_tables(found)
    assert [row[0] for row in table.rows] == ["1: 1 user", "2: 6 users"]
    latencies = [amount(each) for each in table.rows[1] if isinstance(each, Figure) and "ttft" in each.name]
    assert latencies == ["200 ms", "200 ms"]
    assert "of step 2, 6 users" in screen.answer(run, found, None, (), 100)


def test_latencies_of_a_step_are_of_requests_that_it_began() -> None:
    """Answers take 2 s, from the second step on 4 s: none of the second step's took 2 s."""
    steps = [(2, 20.0), (6, 40.0)]
    found = made_of(of_steps(by_users(steps, lambda at: 2.0 if at < 20 else 4.0), steps))
    assert of_step(found, 1)["e2e_s.p50"] == pytest.approx(2.0)
    assert (of_step(found, 2)["e2e_s.mean"], of_step(found, 2)["e2e_s.p50"]) == pytest.approx((4.0, 4.0))
    assert of_step(found, 2)["output_tokens_per_s"] == pytest.approx(15.0)


def test_a_step_without_a_window_has_no_figures_and_is_serious_only_if_it_is_the_highest() -> None:
    short_below, short_above = [(2, 2.0), (6, 20.0)], [(2, 20.0), (6, 2.0)]
    below, above = (made_of(of_steps(by_users(steps), steps)) for steps in (short_below, short_above))
    assert codes(below) == [("no-window", "Step 1", False)]
    assert {value for name, value in of_step(below, 1).items() if name != "load"} == {None}
    assert below["output_tokens_per_s"].value == pytest.approx(30.0)
    assert codes(above) == [("no-window", "Step 2", True)]
    assert above["window.share"].value == 1
    assert above["output_tokens_per_s"].value == above["whole_run.output_tokens_per_s"].value


def test_users_whose_answers_outlast_the_step_after_them_leave_it_no_window() -> None:
    steps = [(6, 20.0), (2, 20.0)]
    records = by_users(steps)
    held = next(i for i, each in enumerate(records) if each.sent_s > 18)
    records[held] = answer(held, records[held].sent_s or 0.0, 25.0)
    found = made_of(of_steps(records, steps))
    assert ("no-window", "Step 2", False) in codes(found)
    records[held] = answer(held, records[held].sent_s or 0.0, 12.0)
    found = made_of(of_steps(records, steps))
    assert of_step(found, 2)["output_tokens_per_s"] == pytest.approx(10.0, rel=0.1)
    assert any("of step 2 (2 users)" in each.text for each in found.findings if each.code == "start-left-out")


def test_an_interrupted_load_of_steps_is_whole() -> None:
    steps = [(2, 20.0), (6, 20.0)]
    found = made_of(of_steps(by_users(steps), steps, state="interrupted"))
    assert (found["window.share"].reason, of_step(found, 1)) == ("the run is incomplete", {})


# ---- steps of the rate ----


def by_rate(steps: Steps, servers: int = 1000, frozen_s: float = np.inf) -> list[Record]:
    """Poisson requests of a second each; no more than `servers` at a time, the others wait."""
    rng, begin, sent = np.random.default_rng(3), 0.0, list[float]()
    for rate, length_s in steps:
        sent += np.sort(rng.uniform(begin, begin + length_s, round(rate * length_s))).tolist()
        begin += length_s
    free_s, records = [0.0] * servers, []
    for i, at in enumerate(sent):
        slot = int(np.argmin(free_s))
        served = answer(i, max(at, free_s[slot]), 1.0, None, frozen_s)
        free_s[slot] = served.arrival_s[-1]
        records.append(replace(served, sent_s=at, scheduled_s=at))
    return records


def test_each_step_of_the_rate_is_measured_once_its_occupancy_has_settled() -> None:
    steps = [(4, 40.0), (0, 10.0), (12, 40.0), (2, 40.0)]
    found = made_of(of_steps(by_rate(steps), steps, "rate_per_s"))
    for i, (begin, rate) in enumerate([(0.0, 4), (40.0, 0), (50.0, 12), (90.0, 2)], 1):
        step = of_step(found, i)
        if not rate:
            assert {value for name, value in step.items() if name != "load"} == {None}
            continue
        assert step["window.begin_s"] == pytest.approx(begin + 1.0, abs=0.6)
        assert step["requests_per_s"] == pytest.approx(rate, rel=0.1)
        assert step["e2e_s.p99"] == pytest.approx(1.0)
    assert found["requests_per_s"].value == of_step(found, 3)["requests_per_s"]
    assert codes(found) == []


def test_a_step_above_capacity_has_a_queue_that_grows_and_the_next_waits_for_it_to_empty() -> None:
    """Ten requests a second are served: of 14 the queue grows to 80, which takes 10 s of the next step."""
    steps = [(5, 20.0), (14, 20.0), (2, 40.0)]
    found = made_of(of_steps(by_rate(steps, servers=10), steps, "rate_per_s"))
    assert ("queue-grows", "Step 2", True) in codes(found)
    assert {each[1] for each in codes(found) if each[0] != "start-left-out"} == {"Step 2"}
    assert 48 < (of_step(found, 3)["window.begin_s"] or 0) < 54
    assert of_step(found, 3)["ttft_s.p50"] == pytest.approx(0.1)


def test_a_highest_step_that_never_settles_leaves_the_figures_of_the_whole_run_and_says_both() -> None:
    steps = [(5, 20.0), (60, 5.0)]
    found = made_of(of_steps(by_rate(steps, servers=10), steps, "rate_per_s"))
    assert {("no-window", "Step 2", True), ("queue-grows", "Step 2", True)} <= set(codes(found))
    assert found["requests_per_s"].value == found["whole_run.requests_per_s"].value


# ---- outages ----


@pytest.mark.parametrize("from_s", [8.0, 30.0, 39.0])
@pytest.mark.parametrize("level", ["users", "rate_per_s"])
def test_a_freeze_in_any_step_is_a_finding_serious_by_the_length_of_its_step(level: str, from_s: float) -> None:
    """2.5 s without a token, of 20 s steps of a run of 400 s. 39: over the border of the second step and the third."""
    steps = [(3, 20.0), (6, 20.0), (3, 360.0)]
    load = by_users if level == "users" else by_rate
    calm, found = (made_of(of_steps(load(steps, frozen_s=at), steps, level)) for at in (np.inf, from_s))
    assert "stall" not in {each.code for each in calm.findings}
    (stall,) = (each for each in found.findings if each.code == "stall")
    assert stall.serious
    assert "within the measured window" in stall.text
    if from_s < 38:
        assert (of_step(found, 1 if from_s < 20 else 2)["e2e_s.p99"] or 0) > 3


def test_an_answer_long_after_the_last_step_is_a_slow_end_and_the_steps_before_it_are_none() -> None:
    steps = [(6, 60.0), (2, 20.0), (2, 20.0)]
    records = by_users(steps)
    assert codes(made_of(of_steps(records, steps))) == []
    records[-1] = answer(len(records) - 1, records[-1].sent_s or 0.0, 30.0)
    assert ("slow-end", True) in {(code, serious) for code, _, serious in codes(made_of(of_steps(records, steps)))}


def test_steps_that_the_requests_did_not_last_for_have_no_window() -> None:
    steps = [(2, 20.0), (4, 20.0), (6, 20.0)]
    records = [each for each in by_users(steps) if (each.sent_s or 0.0) < 20]
    found = made_of(of_steps(records, steps))
    assert [each for each in codes(found) if each[0] == "no-window"] == [
        ("no-window", "Step 3", True),
        ("no-window", "Step 2", False),
    ]
    assert of_step(found, 1)["output_tokens_per_s"] == pytest.approx(10.0)


def test_failures_in_one_short_step_are_a_finding_though_the_run_has_few() -> None:
    """A quarter of the requests of the highest step, 1% of the run's: its rate is that of the slots that were left."""
    steps = [(3, 600.0), (6, 20.0), (3, 600.0)]
    records = by_users(steps)
    failed: dict[str, Any] = {"error": "server", "arrival_s": (), "arrival_tokens": (), "output_tokens": None}
    records = [replace(x, **failed) if 604 <= (x.sent_s or 0) < 616 and x.index % 3 == 0 else x for x in records]
    found = made_of(of_steps(records, steps))
    assert [each.text[:18] for each in found.findings if each.code == "failed-requests"] == ["Step 2 (6 users): "]
    assert (found["output_tokens_per_s"].value or 0) < 25


def test_a_stall_is_found_where_another_step_has_such_times_in_each_request() -> None:
    """The first step's only user waits 1.6 s for each first token."""
    steps = [(1, 60.0), (6, 40.0)]
    records = by_users(steps, frozen_s=80.0)
    for i, each in enumerate(records):
        if (at := each.sent_s or 0.0) < 58 and each.age_tokens is None:
            records[i] = replace(each, arrival_s=tuple(at + 1.6 + 0.04 * k for k in range(1, 11)))
    (stall,) = (each for each in made_of(of_steps(records, steps)).findings if each.code == "stall")
    assert "2.6 s from 79.9 s" in stall.text


@pytest.mark.parametrize("most", [10, None])
def test_a_rate_that_one_step_did_not_hold_is_a_finding_though_the_run_made_it_up(most: int | None) -> None:
    """20 requests/s are due and 10 are sent, and the long step after it sends the rest."""
    steps = [(2, 60.0), (20, 20.0), (2, 120.0)]
    records = [replace(x, sent_s=x.arrival_s[0] - 0.1) for x in by_rate(steps, servers=10)]
    asked = [{"rate_per_s": rate, "duration_s": length_s} for rate, length_s in steps]
    workload = {"load": {"shape": "steps", "steps": asked, "max_in_flight": most}, "requests": {}}
    found = made_of(a_run(*records, workload=workload))
    (held,) = (each for each in found.findings if each.code == "load-not-held")
    assert held.text.startswith("Step 2 (20 requests/s): ")
    assert held.serious == (most is None)


def test_users_of_a_step_who_do_not_send_are_a_finding() -> None:
    """Two of the second step's six users stop half-way, and one that ends with the step starts again."""
    steps = [(2, 300.0), (6, 40.0)]
    records = by_users(steps)
    kept = [x for i, x in enumerate(records) if not (315 < (x.sent_s or 0) < 335 and i % 3 == 0)]
    found = made_of(of_steps([replace(x, index=i) for i, x in enumerate(kept)], steps))
    assert [x.text[:18] for x in found.findings if x.code == "load-not-held"] == ["Step 2 (6 users): "]


def test_runs_of_other_steps_are_not_compared_and_the_difference_can_be_read() -> None:
    base, new = (of_steps(by_users(steps), steps) for steps in ([(2, 20.0), (n, 20.0)] for n in (6, 9)))
    with pytest.raises(HarnessError, match=r"load.steps differs: 2 for 20 s, 6 for 20 s vs 2 for 20 s, 9 for 20 s"):
        check_comparable([base], [new], force=False)


# ---- conversations ----


def talks(steps: Steps, turns: int = 10) -> list[Record]:
    """Conversations at a rate: answers of a second, with a second of thinking between them."""
    rng, begin, made = np.random.default_rng(1), 0.0, list[Record]()
    for rate, length_s in steps:
        for start in rng.uniform(begin, begin + length_s, round(rate * length_s)).tolist():
            talk = len(made)
            made += [replace(answer(0, start + 2.0 * k, 1.0), conversation=talk, turn=k) for k in range(turns)]
        begin += length_s
    made.sort(key=lambda each: each.sent_s or 0.0)
    return [replace(each, index=i) for i, each in enumerate(made)]


def test_an_open_loop_of_conversations_has_settled_when_they_have() -> None:
    """4 conversations a second of 10 turns in 19 s: with ramp and drain the rate would be 31 requests a second."""
    load = {"shape": "poisson", "rate_per_s": 4.0, "duration_s": 60.0}
    plain = made_of(a_run(*talks([(4, 60.0)]), workload={"load": load, "requests": {}, "warmup": {"requests": 1}}))
    steps = made_of(of_steps(talks([(1, 60.0), (4, 60.0)]), [(1, 60.0), (4, 60.0)], "rate_per_s"))
    for found, begin_s in ((plain, 0.0), (steps, 60.0)):
        assert found["requests_per_s"].value == pytest.approx(40, rel=0.03)
        assert begin_s + 19 <= (found["window.begin_s"].value or 0) < (found["window.end_s"].value or 0) <= begin_s + 60
        assert {each[0] for each in codes(found)} == {"start-left-out"}
    short = made_of(of_steps(talks([(4, 30.0)]), [(4, 30.0)], "rate_per_s"))
    assert ("no-window", True) in {(code, serious) for code, _, serious in codes(short)}


# ---- energy ----


def test_each_step_has_the_joules_of_its_window(tmp_path: Path) -> None:
    """A GPU that draws 500 W: joules a token are 500 over tokens a second. The last step is too short for a window."""
    directory = stored(tmp_path)
    file = orjson.loads((directory / "run.json").read_bytes())
    steps = [{"users": 8, "duration_s": 150.0}, {"users": 8, "duration_s": 49.0}, {"users": 4, "duration_s": 1.0}]
    file["workload"]["load"] = {"shape": "steps", "steps": steps}
    (directory / "run.json").write_bytes(orjson.dumps(file))
    found = made_of(read_run(directory))
    for i in (1, 2):
        step = of_step(found, i)
        assert (step["joules_per_output_token"] or 0) * (step["output_tokens_per_s"] or 0) == pytest.approx(
            500, rel=0.02
        )
        assert step["gpu_power_w"] == pytest.approx(500, rel=0.001)
    assert found["joules_per_output_token"].value == of_step(found, 1)["joules_per_output_token"]
    assert of_step(found, 3)["joules_per_output_token"] is None


def test_doubts_about_the_energy_of_one_step_are_findings(tmp_path: Path) -> None:
    """Heat holds the clocks down in the second of two highest steps; the run's figures are of the first."""
    directory = stored(tmp_path)
    file = orjson.loads((directory / "run.json").read_bytes())
    steps = [{"users": 8, "duration_s": 100.0}, {"users": 8, "duration_s": 100.0}]
    file["workload"]["load"], file["sha256"] = {"shape": "steps", "steps": steps}, {}
    (directory / "run.json").write_bytes(orjson.dumps(file))
    power = pq.read_table(directory / "power.parquet")
    hot = pa.array([0x40 if 130 < at < 190 else 0 for at in power["before_s"].to_pylist()], power["throttle"].type)
    pq.write_table(power.set_column(power.column_names.index("throttle"), "throttle", hot), directory / "power.parquet")
    (found,) = (each for each in made_of(read_run(directory)).findings if each.code == "throttled")
    assert (found.text[:18], found.serious) == ("Step 2 (8 users): ", False)
