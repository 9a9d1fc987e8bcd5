"""The check of the client: each finding provoked and not provoked, and figures of loads known by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import a_run
from numpy.typing import NDArray

from harness.analysis.client_check import check_client
from harness.analysis.latency import summarise, window_of
from harness.measure.eventloop import LoopMonitor, event_loop
from harness.model import Record, Summary
from harness.store.run_file import ClientSeen, Delay

OPEN = {"shape": "constant", "rate_per_s": 10.0}
CLOSED = {"shape": "closed", "users": 2}


def record(index: int, due_s: float, late_s: float = 0.0, ttft_s: float = 0.1, last_s: float | None = None) -> Record:
    """Sent `late_s` after its due time; first token after `ttft_s`, 8 tokens 10 ms apart, ended at `last_s`."""
    sent_s = due_s + late_s
    arrival_s = tuple(sent_s + ttft_s + 0.01 * k for k in range(8))
    return Record(index, due_s, sent_s, last_s or arrival_s[-1], arrival_s, (1,) * 8, 16, 8, 16, 8)


def opened(late_s: Sequence[float] | NDArray[np.float64] | float = 0.0001, n: int = 400) -> list[Record]:
    """Ten requests a second, each with its own lateness."""
    return [record(i, i / 10, late) for i, late in enumerate(np.broadcast_to(late_s, n).tolist())]


def closed(idle_s: float = 0.0, users: int = 2, each: int = 50) -> list[Record]:
    """Users who send again `idle_s` after each answer, which takes 170 ms."""
    rounds = [(user, k) for k in range(each) for user in range(users)]
    return [record(i, k * (0.17 + idle_s), last_s=k * (0.17 + idle_s) + 0.17) for i, (_, k) in enumerate(rounds)]


def client(p99_s: float, n: int = 1000, cpu_s: float = 10.0, clock_bound_s: float = 0.0) -> ClientSeen:
    delay = Delay(n=n, p50=1e-4, p99=p99_s, max=0.1)
    return ClientSeen(elapsed_s=40.0, cpu_s=cpu_s, loop_delay_s=delay, clock_bound_s=clock_bound_s)


def checked(
    records: Sequence[Record],
    load: Mapping[str, Any],
    clients: Sequence[ClientSeen] = (),
    served: bool = True,
    count: int | None = None,
    windowed: bool = False,
) -> Summary:
    """The checked summary, of the whole run or of its measured window."""
    workload = {"load": load, "requests": {"count": count}}
    run = a_run(*records, workload=workload, clients=clients, engine_asked="openai" if served else "vllm")
    window = window_of(run.requests, "complete", "constant") if windowed else None
    return check_client(run, summarise("r", "complete", run.requests, {}, simulated=False, window=window))


GROWING = np.linspace(0, 4, 400)  # 400 requests due in 40 s take 44 s to leave
BURST = np.r_[np.linspace(0.2, 0, 20), np.full(380, 0.0001)]  # 5% of all leave late, and reach the p99
SHORT_BURST = np.r_[np.linspace(0.2, 0, 3), np.full(397, 0.0001)]  # 1% do not
IRREGULAR = np.random.default_rng(0).uniform(0, 0.09, 400)

PROVOKED: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    # code, part of the text, a run with the finding, a similar run without it
    (
        "client-limited",
        "the ITL p99 of 10 ms by 6%: late reading 0.6 ms",
        {"records": opened(), "load": OPEN, "clients": [client(1e-4), client(6e-4)]},
        {"records": opened(), "load": OPEN, "clients": [client(1e-4), client(4e-4)]},
    ),
    (
        "client-limited",
        "the ITL p99 of 10 ms by 6%",
        {"records": opened(), "load": OPEN, "clients": [client(6e-4)]},
        {"records": opened(), "load": OPEN, "clients": [client(6e-4)], "served": False},  # the engine's own work
    ),
    (
        "client-limited",
        "the ITL p99 of 10 ms by 6%",
        {"records": opened(), "load": OPEN, "clients": [client(6e-4, n=299)]},
        {"records": opened(), "load": OPEN, "clients": [client(6e-4, n=298)]},  # too few looks for a p99
    ),
    (
        "client-limited",
        "the TTFT p99 of 100 ms by 6%: late sending 6 ms",
        {"records": opened(0.006), "load": OPEN},
        {"records": opened(0.004), "load": OPEN},
    ),
    (
        "client-limited",
        "the TTFT p99 of 100 ms by",
        {"records": opened(BURST), "load": OPEN},
        {"records": opened(SHORT_BURST), "load": OPEN},
    ),
    (
        "client-limited",
        "the TTFT p99 of 100 ms by",
        {"records": opened(BURST), "load": OPEN},
        {"records": opened(BURST), "load": {"shape": "offline"}},
    ),
    (
        "load-not-held",
        "1.889 of 2 streams (-5.6%), which lowers throughput",
        {"records": closed(0.01), "load": CLOSED},
        {"records": closed(0.008), "load": CLOSED},
    ),
]


@pytest.mark.parametrize(("code", "text", "with_it", "without"), PROVOKED)
def test_each_finding_appears_beyond_its_limit_only(
    code: str, text: str, with_it: dict[str, Any], without: dict[str, Any]
) -> None:
    (finding,) = checked(**with_it).findings
    assert (finding.code, finding.serious) == (code, True)
    assert text in finding.text
    assert checked(**without).findings == ()


def test_a_falling_rate_is_a_finding_and_one_late_request_is_not() -> None:
    found = {finding.code: finding.text for finding in checked(opened(GROWING), OPEN).findings}
    assert found.keys() == {"client-limited", "load-not-held"}
    assert "9.171 of 10 requests/s (-8.3%), which lowers every rate and queue" in found["load-not-held"]
    assert checked(opened([*[0.0] * 399, 0.3]), OPEN).findings == ()


def test_a_rate_limited_by_max_in_flight_is_not_serious() -> None:
    (finding,) = checked(opened(GROWING), {**OPEN, "max_in_flight": 3}).findings
    assert (finding.code, finding.serious) == ("load-not-held", False)
    assert finding.text.endswith("load.max_in_flight=3 limited it.")


def test_gaps_that_vary_more_than_the_load_shape_are_a_finding() -> None:
    found = [finding.text for finding in checked(opened(IRREGULAR), OPEN).findings if "CV" in finding.text]
    assert len(found) == 1
    assert "where 0.00 was due, which moves a queue's mean wait by +" in found[0]


def test_the_offered_load_and_the_state_of_the_clients_are_figures() -> None:
    summary = checked(opened(), OPEN, [client(1e-4, cpu_s=30.0), client(3e-4)])
    assert summary["load.rate_per_s"].value == pytest.approx(10.0)
    assert summary["load.gap_cv.asked"].value == pytest.approx(0.0, abs=1e-9)
    assert summary["client.loop_delay_s.p99"].value == 3e-4
    assert summary["client.cpu_share"].value == 0.75
    assert summary["client.connected"].value == 0.0


def test_a_user_holds_a_stream_while_thinking_between_turns() -> None:
    talk = [
        replace(record(turn, turn * 1.0), conversation=0, turn=turn)  # 170 ms of answer, 830 of thought
        for turn in range(20)
    ]
    assert checked(talk, {"shape": "closed", "users": 1}).findings == ()
    assert checked(
        [replace(each, conversation=None, turn=None) for each in talk], {"shape": "closed", "users": 1}
    ).findings


def test_a_clock_bound_widens_latencies_from_the_due_time() -> None:
    near = checked(opened(), OPEN, [client(1e-4)], windowed=True)
    far = checked(opened(), OPEN, [client(1e-4), client(1e-4, clock_bound_s=0.002)], windowed=True)
    for name in ("response_s.p50", "lag_s.p50"):
        assert (far[name].low, far[name].high) == pytest.approx((near[name].low - 0.002, near[name].high + 0.002))  # type: ignore[operator]
    assert far["ttft_s.p50"] == near["ttft_s.p50"]


@pytest.mark.parametrize("records", [[], opened(n=1), closed(each=1)])
def test_runs_of_at_most_two_requests_have_no_finding(records: list[Record]) -> None:
    for load in (OPEN, CLOSED, {"shape": "offline"}, {"shape": "of another version"}):
        assert checked(records, load).findings == ()


def test_a_stalled_event_loop_is_measured_for_its_whole_stall() -> None:
    """100 ms of work in 400: a quarter of all instants fall into it, and half of those wait 50 ms or more."""

    async def busy() -> Mapping[str, Any]:
        with LoopMonitor() as monitor:
            monitor.begin()
            await asyncio.sleep(0.15)
            end_s = time.monotonic() + 0.1
            while time.monotonic() < end_s:
                pass
            await asyncio.sleep(0.15)
            return monitor.result()

    with asyncio.Runner(loop_factory=event_loop) as runner:
        seen = runner.run(busy())
    delay_s = seen["loop_delay_s"]
    assert 40 < delay_s["n"] < 160
    assert delay_s["p50"] < 0.05
    assert 0.05 < delay_s["p99"] <= delay_s["max"]
    assert 0.09 < delay_s["max"] < 0.3
    assert 0 < seen["cpu_s"] < seen["elapsed_s"]


def test_late_sending_of_a_closed_loop_is_the_engines_where_both_share_a_process() -> None:
    late = [replace(each, sent_s=each.scheduled_s + 0.008) for each in closed()]
    assert [each.code for each in checked(late, CLOSED).findings] == ["client-limited"]
    assert checked(late, CLOSED, served=False).findings == ()


@pytest.mark.parametrize(("delay_s", "codes"), [(0.0049, set()), (0.0051, {"client-limited"})])
def test_with_the_kernels_stamps_a_late_loop_counts_from_half_a_gap(delay_s: float, codes: set[str]) -> None:
    late = client(delay_s).model_copy(update={"kernel_stamps": True})
    assert {finding.code for finding in checked(opened(), OPEN, [late]).findings} == codes


@pytest.mark.parametrize(("late_s", "codes"), [(0.0004, set()), (0.0006, {"client-limited"})])
def test_with_the_kernels_stamps_only_reads_of_two_tokens_can_be_late(late_s: float, codes: set[str]) -> None:
    stamps = Delay(n=3000, p50=1e-6, p99=late_s, max=0.1)
    late = client(0.05).model_copy(update={"kernel_stamps": True, "late_stamp_s": stamps})
    assert {finding.code for finding in checked(opened(), OPEN, [late]).findings} == codes


def test_the_monitor_tells_for_how_long_the_loop_had_not_run() -> None:
    async def busy() -> list[float]:
        with LoopMonitor() as monitor:
            monitor.begin()
            await asyncio.sleep(0.02)
            begin_s = time.monotonic()
            while time.monotonic() < begin_s + 0.1:
                pass
            await asyncio.sleep(0.02)
            return [monitor.late_s(begin_s + after_s) for after_s in (-0.001, 0.05, 0.09, 0.2)]

    with asyncio.Runner(loop_factory=event_loop) as runner:
        for _ in range(5):
            before, middle, late, after = runner.run(busy())
            if before == 0.0:  # else the machine was busy too
                break
    assert before == after == 0.0
    assert 0.04 < middle <= 0.05
    assert late == pytest.approx(middle + 0.04)


def test_later_turns_while_the_load_drains_are_no_load_that_was_not_held() -> None:
    """Two users with a conversation each at a time; the last one goes on alone for three more turns."""
    begun = [(0, 0.0, 2), (1, 0.0, 2), (2, 0.4, 1), (3, 0.4, 4)]
    records = [
        replace(record(0, at + 0.2 * turn), arrival_s=(at + 0.2 * turn + 0.1, at + 0.2 * turn + 0.2),
                end_s=at + 0.2 * turn + 0.2, arrival_tokens=(1, 1), conversation=talk, turn=turn)
        for talk, at, turns in begun for turn in range(turns)
    ]  # fmt: skip
    records = [replace(each, index=i) for i, each in enumerate(sorted(records, key=lambda each: each.sent_s or 0.0))]
    assert checked(records, {"shape": "closed", "users": 2}).findings == ()
