"""Figures of small runs computed by hand, and of every kind of failed run."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builders import by_hand as record
from builders import frame_of
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from harness.analysis.latency import LATENCIES, STATISTICS, summarise, window_of
from harness.analysis.part import slots
from harness.analysis.times import SPANS, times
from harness.analysis.tokens import gaps
from harness.analysis.window import Window
from harness.errors import HarnessError
from harness.model import Figure, Record, Summary


def summary(
    *records: Record,
    state: str = "complete",
    objectives: Mapping[str, float | None] | None = None,
    simulated: bool = False,
) -> Summary:
    return summarise("r", state, frame_of(list(records)), objectives or {}, simulated)


def test_the_figures_of_one_request_are_those_computed_by_hand() -> None:
    found = summary(record())
    values = {figure.name: figure.value for figure in found.figures if "." not in figure.name or "mean" in figure.name}
    assert {name: x for name, x in values.items() if not name.startswith("whole_run.")} == {
        "duration_s": 2.25,  # 3.25 - 1
        "requests_per_s": pytest.approx(1 / 2.25),
        "output_tokens_per_s": pytest.approx(3 / 2.25),
        "input_tokens_per_s": pytest.approx(10 / 2.25),
        "total_tokens_per_s": pytest.approx(13 / 2.25),
        "ttft_s.mean": 0.5,
        "itl_s.mean": 0.5,  # (0.25 + 0.75) / 2
        "tpot_s.mean": 0.5,  # (3 - 2) / (3 - 1)
        "e2e_s.mean": 1.5,
        "response_s.mean": 2.0,
        "lag_s.mean": 0.5,
        "goodput_per_s": None,
        "objectives_met": None,
        "hidden_tokens": 0,
        "cached_tokens": 0.0,
        "unseen_gaps": 0.0,
    }
    assert found["itl_s.p90"] == Figure("itl_s.p90", 0.7, "s", "measured", n=2, reason="no interval of a whole run")
    assert found["requests.completed"] == Figure("requests.completed", 1, "requests", "measured", n=1)
    assert (found.run, found.state, found.errors) == ("r", "complete", {})


def test_an_arrival_of_many_tokens_is_one_gap_and_the_rest_are_unseen() -> None:
    found = summary(record(arrival_s=(2.0, 3.0), arrival_tokens=(1, 4), output_tokens=5))
    assert [found["itl_s.mean"].value, found["itl_s.mean"].n] == [1.0, 1]
    assert found["tpot_s.mean"].value == 0.25  # (3 - 2) / (5 - 1)
    assert found["unseen_gaps"].value == 0.75  # 3 of the 4 gaps between 5 tokens
    whole = summary(record(arrival_s=(3.0,), arrival_tokens=(5,), output_tokens=5))
    assert (whole["tpot_s.mean"].value, whole["unseen_gaps"].value) == (None, 1.0)
    assert whole["ttft_s.mean"].value == 1.5


@pytest.mark.parametrize(
    ("changes", "tpot_s", "tokens"),
    [
        # a second from the first arrival to the last
        ({"arrival_tokens": (4, 4, 4), "output_tokens": 12, "output_asked": 12}, 1 / 8, 12),
        ({"arrival_tokens": (1, 4, 4), "output_tokens": 9, "output_asked": 9}, 1 / 8, 9),
        ({"arrival_tokens": (2, 2, 2), "output_tokens": 3}, 1 / 2, 3),  # a letter each: counted apart from chunks
        ({"output_tokens": None}, 1 / 2, 3),
        ({"output_tokens": 1000}, 1 / 2, 3),  # more than was asked for and arrived
        ({"arrival_tokens": (10, 1, 1), "hidden_tokens": 9, "output_tokens": 12, "output_asked": 12}, None, 12),
    ],
)
def test_tpot_divides_by_tokens_after_the_first_arrival(
    changes: dict[str, Any], tpot_s: float | None, tokens: int
) -> None:
    found = summary(record(**changes))
    assert found["tpot_s.mean"].value == (None if tpot_s is None else pytest.approx(tpot_s))
    assert found["output_tokens.got"].value == tokens


def test_hidden_tokens_leave_no_time_between_tokens_and_no_objective_on_it() -> None:
    hidden = record(0, arrival_tokens=(10, 1, 1), hidden_tokens=9, output_tokens=12, output_asked=12)
    found = summary(hidden, record(1), objectives={"ttft_s": 9, "tpot_s": 9})
    assert (found["hidden_tokens"].value, found["ttft_s.mean"].n, found["tpot_s.mean"].n) == (9, 2, 1)
    assert found["itl_s.mean"].n == 2
    assert found["unseen_gaps"].value == 0  # hidden tokens did not come in groups
    names = ("goodput_per_s", "objectives_met", "objectives_met.tpot_s", "objectives_met.ttft_s")
    assert [found[name].value for name in names] == [None, None, None, 1.0]
    assert summary(hidden)["itl_s.p50"].reason == "the server counted tokens that it did not send"
    assert summary(hidden, objectives={"ttft_s": 9})["goodput_per_s"].value is not None


def test_single_token_answers_have_no_time_between_tokens() -> None:
    found = summary(*(record(i, arrival_s=(2.0,), arrival_tokens=(1,), output_tokens=1) for i in range(3)))
    for name in ("itl_s", "tpot_s"):
        assert found[f"{name}.p50"] == Figure(
            f"{name}.p50", None, "s", "measured", n=0, reason="no request succeeded with two arrivals"
        )
    assert found["unseen_gaps"].reason == "no answer has two tokens"
    assert found["e2e_s.p50"].value == 0.5


def test_failed_requests_are_counted_and_stay_out_of_latency_and_throughput() -> None:
    slow = record(1, arrival_s=(90.0,), arrival_tokens=(1,), end_s=101.0, output_tokens=None, error="timeout")
    found = summary(record(0), slow, record(2, error="rejected", end_s=1.5, arrival_s=(), arrival_tokens=()))
    assert found.errors == {"timeout": 1, "rejected": 1}
    assert [found[f"requests.{kind}"].value for kind in ("sent", "completed", "failed", "unfinished")] == [3, 1, 2, 0]
    assert (found["ttft_s.p99"].value, found["ttft_s.p99"].n) == (0.5, 1)
    assert found["lag_s.mean"].n == 3  # the harness's own doing, whatever the engine did
    assert found["output_tokens_per_s"].value == pytest.approx(3 / 100)  # the time was spent all the same
    assert found["output_tokens.asked"].value == 3


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ((), "no request was sent"),
        ((record(error="rejected", arrival_s=(), arrival_tokens=(), output_tokens=None),), None),
        ((record(end_s=math.nan, arrival_s=(), arrival_tokens=(), output_tokens=None),), None),
    ],
    ids=["no rows", "all failed", "all in flight when it was killed"],
)
def test_without_success_figures_have_reasons_and_no_values(records: tuple[Record, ...], reason: str | None) -> None:
    found = summary(*records, state="interrupted", objectives={"ttft_s": 1.0})
    assert found["duration_s"].reason == reason
    for figure in found.figures:
        if not figure.name.startswith(("requests.", "lag_s", "whole_run.lag_s", "duration_s")):
            assert figure.value is None, figure.name
            assert figure.reason, figure.name
    assert found["requests.completed"].value == 0


def test_a_request_that_the_end_of_the_run_cut_off_has_not_failed() -> None:
    cut = record(1, error="aborted", end_s=2.1, arrival_s=(2.0,), arrival_tokens=(1,), output_tokens=None)
    found = summary(record(0), cut, record(2, end_s=math.nan), state="interrupted", objectives={"ttft_s": 2.0})
    assert [found[f"requests.{kind}"].value for kind in ("completed", "failed", "unfinished")] == [1, 0, 2]
    assert found.errors == {}
    assert found["objectives_met"] == Figure("objectives_met", 1.0, "share", "measured", n=1)
    assert summary(record(0), cut)["requests.failed"].value == 1  # in a complete run the engine did it


def test_a_cancelled_request_is_neither_completed_nor_failed() -> None:
    found = summary(record(0), record(1, error="cancelled", output_tokens=None), objectives={"ttft_s": 2.0})
    assert [found[f"requests.{kind}"].value for kind in ("completed", "failed", "unfinished")] == [1, 0, 1]
    assert found["objectives_met"].value == 1.0


def steady(count: int, each: Callable[[int], tuple[float, ...]]) -> Summary:
    """Requests sent one after the other, 1 s apart, in a window that holds all of them; `each` gives the arrivals."""
    records = []
    for i in range(count):
        arrival_s = tuple(i + x for x in each(i))
        known = {"sent_s": float(i), "end_s": i + 0.99, "arrival_s": arrival_s, "arrival_tokens": (1,) * len(arrival_s)}
        records.append(record(i, scheduled_s=float(i), output_tokens=len(arrival_s), **known))
    window = Window(0.0, float(count), 1.0)
    return summarise("r", "complete", frame_of(records), {}, simulated=False, window=window)


def test_percentiles_of_independent_requests_have_about_the_order_statistic_interval() -> None:
    """400 TTFT of 0.001 to 0.4 s in random order: 0.1805 and 0.2205 are the ends for p50 of independent values."""
    order = np.random.default_rng(3).permutation(400)
    found = steady(400, lambda i: ((order[i] + 1) / 1000,))
    low, high = found["ttft_s.p50"].low or 0.0, found["ttft_s.p50"].high or 0.0
    assert 0.150 <= low <= 0.181
    assert 0.220 <= high <= 0.250
    assert found["ttft_s.p99"].low is None or found["ttft_s.p99"].low < 0.396
    few = steady(2, lambda i: (0.1 + i / 10,))
    assert few["ttft_s.p50"].reason == few["ttft_s.mean"].reason
    assert few["ttft_s.mean"].reason == ("no interval: needs 5 independent batches of 1 requests, has 2")


def test_each_request_of_a_closed_loop_has_the_slot_of_the_one_that_ended_before_it() -> None:
    """Two users: request 2 is sent when 1 ends, 3 when 0 ends, 4 when 3 ends."""
    spans = [(0.0, 3.0), (0.0, 2.0), (2.0, 9.0), (3.0, 4.0), (4.0, 5.0)]
    frame = frame_of([record(i, sent_s=begin, end_s=end) for i, (begin, end) in enumerate(spans)])
    assert list(slots(frame, 2)) == [0, 1, 1, 0, 0]


def test_rates_and_latencies_come_from_the_window() -> None:
    """Ten requests a second, a token at once and one 0.4 s later; the window is the middle two of four seconds."""
    records = [
        record(i, scheduled_s=i / 10, sent_s=i / 10, end_s=i / 10 + 0.4, arrival_s=(i / 10, i / 10 + 0.4),
               arrival_tokens=(1, 1 + i % 2), output_tokens=2 + i % 2)
        for i in range(40)
    ]  # fmt: skip
    records[35] = replace(records[35], arrival_s=(3.5, 9.5), end_s=9.5)  # the drain, and a TTFT of its own
    frame = frame_of(records[::-1])
    window = Window(1.05, 3.05, 4.0, closed=True)
    found = summarise("r", "complete", frame, {"ttft_s": 1.0}, simulated=False, window=window)
    assert found["duration_s"].value == 9.5
    assert found["window.share"].value == pytest.approx(2 / 9.5)
    assert found["requests_per_s"].value == pytest.approx(10)
    assert found["requests_per_s"].n == 20
    assert found["goodput_per_s"].value == pytest.approx(10)
    assert found["input_tokens_per_s"].value == pytest.approx(100)
    assert found["output_tokens_per_s"].value == pytest.approx(25)  # 20 first tokens and 10 + 20 later ones in 2 s
    # positions 1 and 2 (or 2 and 2.5): the same mix as in the whole run
    assert found["window.position_coverage"].value == pytest.approx(1)
    assert found["e2e_s.mean"].value == pytest.approx(0.4)
    assert found["whole_run.requests_per_s"].value == pytest.approx(40 / 9.5)
    low, high = (getattr(found["output_tokens_per_s"], end) for end in ("low", "high"))
    assert 20 < low < 25 < high < 30
    assert found["requests.completed"].value == 40


def test_of_requests_that_ended_in_the_window_those_that_could_not_end_early_count_for_more() -> None:
    """The window is from 2 to 12 s. A request of 5 s could end in 7 s of these 10, one of 1 s in all of them."""
    sent = [(0.0, 5.0), (4.0, 5.0), *((float(at), 1.0) for at in range(2, 8))]
    records = [
        record(i, scheduled_s=at, sent_s=at, end_s=at + x, arrival_s=(at + x / 2, at + x), arrival_tokens=(1, 2))
        for i, (at, x) in enumerate(sorted(sent))
    ]
    wave = record(99, scheduled_s=0.0, sent_s=0.0, end_s=1.0, arrival_s=(1.0,), arrival_tokens=(1,), age_tokens=3)
    found = summarise("", "complete", frame_of([*records, wave]), {}, False, Window(2.0, 12.0, 2.0, closed=True))
    assert found["e2e_s.mean"].value == pytest.approx((2 * 5 * 10 / 7 + 6) / (2 * 10 / 7 + 6))
    assert found["e2e_s.p50"].value == 1.0
    assert found["ttft_s.mean"].value == pytest.approx(np.mean([2.5, *[0.5] * 6]))


def in_equilibrium(users: int, stays_s: Sequence[float], seed: int) -> Summary:
    """Users who begin mid-answer and then take these requests, with an objective of 2 s, summarised in their window."""
    rng, drawn = np.random.default_rng(seed), np.array(stays_s)
    first_wave = rng.choice(drawn, users, p=drawn / drawn.sum()) * rng.random(users)
    free_s = sorted(first_wave)
    rows: list[tuple[float, float, int | None]] = [(0.0, x, 1) for x in first_wave]
    for x in stays_s:
        rows.append((free_s.pop(0), x, None))
        bisect.insort(free_s, rows[-1][0] + x)
    asked: dict[str, Any] = {"arrival_tokens": (1, 2)}
    made = (asked | {"sent_s": at, "arrival_s": (at + x / 2, at + x), "age_tokens": age} for at, x, age in rows)
    frame = frame_of([
        record(i, scheduled_s=each["sent_s"], end_s=each["arrival_s"][1], **each) for i, each in enumerate(made)
    ])  # fmt: skip
    return summarise("", "complete", frame, {"e2e_s": 2.0}, False, window_of(frame, "complete", "closed", users))


def test_requests_that_outlast_the_window_count_in_e2e_and_objectives() -> None:
    """One answer in five takes 9 s, the others 0.6 s, and windows end at some 8 s."""
    rng = np.random.default_rng(0)
    runs = [in_equilibrium(32, np.where(rng.random(96) < 0.2, 9.0, 0.6).tolist(), seed) for seed in range(8)]
    found = [each for each in runs if each["window.share"].reason is None]
    assert len(found) > 4
    means, met = ([each[name].value or 0.0 for each in found] for name in ("e2e_s.mean", "objectives_met"))
    assert np.mean(means) == pytest.approx(0.2 * 9 + 0.8 * 0.6, rel=0.1)
    assert np.mean(met) == pytest.approx(0.8, abs=0.03)
    for each in found:
        assert each["e2e_s.p50"].value == pytest.approx(0.6)
        assert each["e2e_s.p99"].value is None
        assert "of the requests take longer than the window can show" in (each["e2e_s.p99"].reason or "")


def test_a_window_of_the_whole_run_leaves_its_figures_and_has_a_reason() -> None:
    frame = frame_of([record(i) for i in range(3)])
    window = window_of(frame, "complete", "closed", users=1)
    found = summarise("r", "complete", frame, {}, simulated=False, window=window)
    assert found["window.share"].reason == "all users were busy for 1 mean request times, and a window needs 1.5"
    assert found["output_tokens_per_s"] == replace(found["whole_run.output_tokens_per_s"], name="output_tokens_per_s")
    assert window_of(frame_of([]), "complete", "closed", users=1) is None


def test_the_interval_of_itl_counts_requests_not_gaps() -> None:
    """7,350 independent gaps would give an interval of about 6% from end to end."""
    rng = np.random.default_rng(0)
    found = steady(150, lambda _: tuple(np.cumsum(rng.exponential(rng.gamma(2.0, 0.001), 50))))["itl_s.p50"]
    assert found.n == 150 * 49
    assert found.low is not None
    assert found.high is not None
    assert found.low < (found.value or 0) < found.high
    assert (found.high - found.low) / (found.value or 1) > 0.1


@pytest.mark.parametrize(
    ("objectives", "met"),
    [
        ({"ttft_s": 1.0}, 1.0),  # first token 1.0 after it was due, though 0.5 after it was sent
        ({"ttft_s": 0.9}, 0.0),
        ({"e2e_s": 2.0}, 1.0),
        ({"e2e_s": 1.9}, 0.0),
        ({"itl_s": 0.75}, 1.0),  # the longest gap
        ({"itl_s": 0.7}, 0.0),
        ({"tpot_s": 0.5}, 1.0),
        ({"tpot_s": 0.4}, 0.0),
        ({"ttft_s": 1.0, "tpot_s": 0.4}, 0.0),
        ({"ttft_s": 1.0, "tpot_s": None}, 1.0),
    ],
)
def test_objectives_are_judged_from_the_due_time(objectives: dict[str, float | None], met: float) -> None:
    found = summary(record(), objectives=objectives)
    assert found["objectives_met"].value == met
    assert found["goodput_per_s"].value == pytest.approx(met / 2.25)


def test_goodput_counts_failures_in_the_share_and_gives_each_objective_alone() -> None:
    late = record(1, scheduled_s=0.0)
    failed = record(2, error="rejected", arrival_s=(), arrival_tokens=())
    empty = record(3, arrival_s=(), arrival_tokens=(), output_tokens=0)
    short = record(4, arrival_s=(2.0,), arrival_tokens=(1,), output_tokens=1)
    found = summary(record(0), late, failed, empty, short, objectives={"ttft_s": 1.5, "tpot_s": 0.6})
    assert found["objectives_met.ttft_s"].value == 2 / 5
    assert found["objectives_met.tpot_s"].value == 3 / 5  # one token leaves nothing to wait between
    assert found["objectives_met"] == Figure("objectives_met", 2 / 5, "share", "measured", n=5)


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(HarnessError, match="unknown objective 'ttft'"):
        summary(record(), objectives={"ttft": 1.0})


def test_tokens_that_the_engine_does_not_count_give_no_sum() -> None:
    found = summary(record(0), record(1, input_tokens=None, output_tokens=None, cached_tokens=None))
    assert found["output_tokens.got"].value == 6  # what arrived was counted here
    assert found["input_tokens.asked"].value == 20
    for name in ("input_tokens.got", "input_tokens_per_s", "total_tokens_per_s", "cached_tokens"):
        assert found[name].reason == "the engine counted them for 1 of 2 requests"


def test_a_run_of_no_length_has_no_rates() -> None:
    found = summary(record(scheduled_s=2.0, sent_s=2.0, end_s=2.0, arrival_s=(2.0,), arrival_tokens=(3,)))
    assert found["duration_s"].value == 0.0
    assert found["output_tokens_per_s"].reason == "the measured part has no length"


def test_a_request_without_times_does_not_affect_the_others() -> None:
    frame = frame_of([record(0), record(1), record(2)])
    frame["arrival_s"] = pd.Series([None, [], [2.0, 2.25, 3.0]], dtype=frame["arrival_s"].dtype)
    frame["arrival_tokens"] = pd.Series([None, [], [1, 1, 1]], dtype=frame["arrival_tokens"].dtype)
    frame["sent_s"] = [math.nan, 1.5, 1.5]
    found = summarise("r", "complete", frame, {}, simulated=False)
    assert (found["ttft_s.mean"].value, found["ttft_s.mean"].n) == (0.5, 1)
    assert found["requests.sent"].value == 2


def test_every_figure_of_a_simulated_engine_has_the_status_simulated() -> None:
    assert {figure.status for figure in summary(record(), simulated=True, objectives={"ttft_s": 1.0}).figures} == {
        "simulated"
    }
    assert {figure.status for figure in summary(record(), objectives={"ttft_s": 1.0}).figures} == {"measured"}


ARRIVALS = st.lists(st.floats(0.0, 5.0), min_size=0, max_size=8)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1), ARRIVALS), min_size=1, max_size=12), st.booleans())
def test_latencies_agree_with_each_other(drawn: list[tuple[float, float, list[float]]], simulated: bool) -> None:
    records = []
    for index, (due, lag, drawn_s) in enumerate(drawn):
        arrival_s = tuple(due + lag + np.cumsum(drawn_s))
        end_s = max((due + lag, *arrival_s))
        records.append(
            Record(index, due, due + lag, end_s, arrival_s, (1,) * len(drawn_s), 4, len(drawn_s), 4, len(drawn_s), 0)
        )
    frame = frame_of(records)
    seen = times(frame, "complete")
    each = pd.DataFrame({name: seen[name] for name in (*SPANS, "tpot_s", "longest_gap_s", "gaps")})
    gaps_s = np.concatenate([part.seconds for part in gaps(frame, seen.completed)])
    both = each.dropna(subset=["ttft_s"])
    np.testing.assert_allclose(both["response_s"], both["e2e_s"] + both["lag_s"], atol=1e-9)
    np.testing.assert_allclose(both["first_response_s"], both["ttft_s"] + both["lag_s"], atol=1e-9)
    more = each.dropna(subset=["tpot_s"])
    np.testing.assert_allclose(more["e2e_s"] - more["ttft_s"], more["tpot_s"] * more["gaps"], atol=1e-9)
    assert math.isclose(gaps_s.sum(), (more["tpot_s"] * more["gaps"]).sum(), abs_tol=1e-9)
    assert (more["longest_gap_s"] >= more["tpot_s"] - 1e-9).all()
    found = summarise("r", "complete", frame, {}, simulated)
    for name in LATENCIES:
        shown = [found[f"{name}.{stat}"].value for stat in STATISTICS[1:]]
        assert shown == sorted(x for x in shown if x is not None) or shown == [None] * 4


def test_a_large_run_is_summarised_without_a_loop_over_its_tokens() -> None:
    rng = np.random.default_rng(0)
    frame = frame_of([record(i) for i in range(2000)])
    arrival_s = [2.0 + np.cumsum(rng.exponential(0.01, 500)) for _ in range(2000)]
    frame["arrival_s"] = pd.Series(arrival_s, dtype=frame["arrival_s"].dtype)
    frame["arrival_tokens"] = pd.Series([np.ones(500, np.int32)] * 2000, dtype=frame["arrival_tokens"].dtype)
    found = summarise("r", "complete", frame, {"itl_s": 0.1}, simulated=False)
    assert found["itl_s.p99"].value == pytest.approx(0.01 * math.log(100), rel=0.02)
    assert found["itl_s.mean"].n == 2000 * 499


def test_every_figure_is_documented() -> None:
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    terms = re.findall(r"`([\w.]+)`", page[page.index("### Of the run") : page.index("### Objectives")])
    for figure in summary(record(), objectives={"ttft_s": 1.0}).figures:
        name = figure.name.removeprefix("whole_run.")  # each has one for the whole run
        stem, _, leaf = name.partition(".")
        assert name in terms or (stem in terms and f".{leaf}" in terms), figure.name
