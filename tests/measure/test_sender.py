"""The load loop on engines with known answers: pre-built requests, timestamps, deferred parsing and records."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.engines.base import Arrived
from harness.engines.simulated import SimulatedEngine
from harness.errors import HarnessError, RequestFailed
from harness.measure import sender
from harness.measure.eventloop import event_loop
from harness.measure.sender import Sender
from harness.model import Completion, EngineInfo, Record, Request
from harness.workload.schema import Workload, parse_workload


def workload(load: dict[str, Any], count: int | None = None, burst: bool = True) -> Workload:
    load |= {"start": "burst"} if burst and "users" in load else {}
    requests = {"input_tokens": 4, "output_tokens": 3} | ({} if count is None else {"count": count})
    return parse_workload(json.dumps({"requests": requests, "load": load}), "test.yaml")


class Scripted:
    """Answers at once as configured, and keeps a log of its calls."""

    def __init__(self, answer: Callable[[Request], Completion] | None = None) -> None:
        self.log: list[tuple[str, int]] = []
        self._answer = answer or (lambda _: Completion(4, 3, arrival_tokens=(0, 1, 2)))

    async def start(self) -> EngineInfo:
        raise NotImplementedError

    def prepare(self, request: Request) -> None:
        self.log.append(("prepared", request.index))

    async def generate(self, request: Request, arrived: Callable[[int], None]) -> Completion:
        return (await self.exchange(request, lambda tokens, _: arrived(tokens)))()

    async def exchange(self, request: Request, arrived: Arrived) -> Callable[[], Completion]:
        self.log.append(("sent", request.index))
        for _ in range(3):
            arrived(1, None)
            await asyncio.sleep(0)

        def answer() -> Completion:
            self.log.append(("read", request.index))
            return self._answer(request)

        return answer

    async def stop(self) -> None:
        pass


class Talk:
    """Makes single requests."""

    arrivals = None

    def __init__(self, make: Callable[[int], Request], first_wave: Callable[[int], Request] | None = None) -> None:
        self.make, self.first_wave = make, first_wave

    def follow(self, _request: Request, _completion: Completion) -> None:
        return None


def send(
    asked: Workload,
    engine: Any,
    share: tuple[int, int] = (0, 1),
    add: Callable[[Record], None] | None = None,
    make: Callable[[int], Request] = lambda index: Request(index, (1, 2, 3, 4), 3),
    first_wave: Callable[[int], Request] | None = None,
) -> tuple[list[Record], Sender]:
    records: list[Record] = []

    async def load() -> Sender:
        talk: Any = Talk(make, first_wave or refuse)
        sending = Sender(asked, engine, talk, add or records.append, share)
        await sending.run(time.monotonic_ns())
        return sending

    with asyncio.Runner(loop_factory=event_loop) as runner:
        return records, runner.run(load())


def test_a_known_count_of_requests_is_built_before_the_load() -> None:
    engine = Scripted()
    records, sending = send(workload({"shape": "closed", "users": 2}, count=50), engine)
    assert engine.log[:50] == [("prepared", index) for index in range(50)]
    assert sorted(record.index for record in records) == list(range(50))
    assert (sending.finished, sending.failures.total(), sending.output_tokens) == (50, 0, 150)


def test_an_unknown_count_prebuilds_a_few_per_user_and_one_per_request_sent() -> None:
    engine = Scripted()
    records, _ = send(workload({"shape": "closed", "users": 2, "duration_s": 0.02}), engine)
    made = [index for what, index in engine.log if what == "prepared"]
    first = next(i for i, (what, _) in enumerate(engine.log) if what == "sent")
    assert made == list(range(len(made)))
    assert first == 2 * sender.PREBUILT_PER_USER
    assert len(records) <= len(made) <= len(records) + first


def test_each_user_of_a_closed_loop_and_of_each_step_begins_in_the_middle_of_an_answer() -> None:
    """The first wave comes before the schedule's requests and on top of their count; a burst has none."""

    def wave(number: int) -> Request:
        return Request(1000 + number, (1,) * 9, 2, age_tokens=5)

    for load, expected in (
        ({"shape": "closed", "users": 3}, [1000, 1001, 1002]),
        ({"shape": "closed", "users": 3, "start": "burst"}, []),
        (
            {"shape": "steps", "steps": [{"users": 1, "duration_s": 0.05}, {"users": 3, "duration_s": 0.05}]},
            [1000, 1001, 1002],
        ),
        ({"shape": "ramp", "from_users": 1, "to_users": 2, "over_s": 0.01}, []),
    ):
        engine = Scripted()
        records, sending = send(workload(load, count=6, burst=False), engine, first_wave=wave)
        waves = [record for record in records if record.age_tokens is not None]
        assert sorted(record.index for record in waves) == expected[: len(waves)]
        assert {record.age_tokens for record in waves} <= {5}
        assert bool(waves) == bool(expected)
        assert sorted(record.index for record in records if record.age_tokens is None) == list(range(6))
        assert sending.progress().finished == 6


def test_an_answer_is_parsed_after_the_next_request_is_sent() -> None:
    engine = Scripted()
    send(workload({"shape": "closed", "users": 1}, count=3), engine)
    calls = [entry for entry in engine.log if entry[0] != "prepared"]
    assert calls == [("sent", 0), ("sent", 1), ("read", 0), ("sent", 2), ("read", 1), ("read", 2)]


def test_the_number_of_unparsed_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "MAX_UNPARSED", 5)
    engine = Scripted()
    records, _ = send(workload({"shape": "closed", "users": 100}, count=500), engine)
    waiting = np.cumsum([{"sent": 1, "read": -1}.get(what, 0) for what, _ in engine.log])
    assert len(records) == 500
    assert waiting.max() <= 100 + 5 + 1


def test_arrival_tokens_of_the_completion_replace_the_live_counts() -> None:
    records, _ = send(workload({"shape": "offline"}, count=1), Scripted())
    assert records[0].arrival_tokens == (1, 2)
    assert len(records[0].arrival_s) == 2
    assert records[0].sent_s < records[0].arrival_s[0] < records[0].arrival_s[1] <= records[0].end_s


def test_an_answer_that_cannot_be_parsed_is_one_failed_request() -> None:
    def answer(request: Request) -> Completion:
        if request.index != 1:
            return Completion(4, 3, arrival_tokens=(1, 1, 1))
        failed = RequestFailed("malformed", "not JSON")
        failed.arrival_tokens = (1, 0, 0)  # type: ignore[attr-defined]
        raise failed

    records, sending = send(workload({"shape": "offline"}, count=3), Scripted(answer))
    ended = [(r.index, r.error, r.error_text, r.arrival_tokens) for r in sorted(records, key=lambda r: r.index)]
    assert ended == [(0, None, None, (1, 1, 1)), (1, "malformed", "not JSON", (1,)), (2, None, None, (1, 1, 1))]
    assert sending.failures == {"malformed": 1}


class Breaks(Scripted):
    """Its connections break in mid-answer, and what arrived takes a while to parse."""

    def __init__(self, parse_s: float) -> None:
        super().__init__()
        self._parse_s = parse_s

    async def exchange(self, request: Request, arrived: Arrived) -> Callable[[], Completion]:
        await super().exchange(request, arrived)

        def counted() -> tuple[int, ...]:
            time.sleep(self._parse_s)
            return (1, 0, 2)

        failed = RequestFailed("cut", "in mid-answer")
        failed.arrival_tokens = counted  # type: ignore[attr-defined]
        raise failed


def test_what_arrived_of_a_broken_answer_is_counted_when_the_loop_has_time() -> None:
    records, sending = send(workload({"shape": "offline"}, count=3), Breaks(0.0))
    assert [(each.error, each.arrival_tokens) for each in records] == [("cut", (1, 2))] * 3
    assert sending.failures == {"cut": 3}


def test_the_age_of_requests_in_flight_is_without_the_time_of_parsing() -> None:
    """Eight users, whose answers take 20 ms each to parse: a request waits for some of the others to be parsed."""
    ages: list[tuple[float, float]] = []

    def add(_: Record) -> None:
        seen, flying = sending.progress(), next(iter(sending._in_flight.values()), None)
        if flying is not None:
            ages.append((seen.oldest_s, (time.monotonic_ns() - flying.sent_ns) / 1e9))

    asked = workload({"shape": "closed", "users": 8}, count=60)
    talk: Any = Talk(lambda index: Request(index, (1, 2, 3, 4), 3))
    sending = Sender(asked, Breaks(0.02), talk, add)
    asyncio.run(sending.run(time.monotonic_ns()))
    own_s, wall_s = map(sum, zip(*ages, strict=True))
    assert wall_s > 0.02 * len(ages) > 2 * own_s


def test_a_load_that_is_cancelled_ends_in_time_however_long_its_answers_take_to_parse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(_: Request) -> Completion:
        time.sleep(0.02)
        return Completion(4, 3, arrival_tokens=(1, 1, 1))

    class Together(Scripted):
        async def exchange(self, request: Request, arrived: Arrived) -> Callable[[], Completion]:
            await asyncio.sleep(0.3)
            return await super().exchange(request, arrived)

    monkeypatch.setattr("harness.measure.sender.LAST_PARSE_S", 0.1)
    records: list[Record] = []
    asked = workload({"shape": "offline"}, count=200)
    talk: Any = Talk(lambda index: Request(index, (1, 2, 3, 4), 3))
    sending = Sender(asked, Together(answer), talk, records.append)

    async def cancelled() -> None:
        load = asyncio.ensure_future(sending.run(time.monotonic_ns()))
        await asyncio.sleep(0.4)
        load.cancel()
        await load

    began_s = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert time.monotonic() - began_s < 200 * 0.02 / 2
    left = [each for each in records if each.error is not None]
    assert len(records) == 200
    assert {(each.error, each.error_text, each.arrival_tokens) for each in left} == {
        ("aborted", "the run ended before the answer was parsed", ())
    }
    assert 100 < len(left) < 200


def refuse(_: object) -> Any:
    raise HarnessError("the disk is full", "make room")


@pytest.mark.parametrize("count", [1, 50])
def test_a_record_that_cannot_be_stored_ends_the_load(count: int) -> None:
    with pytest.raises(ExceptionGroup) as ended:
        send(workload({"shape": "closed", "users": 1}, count=count), Scripted(), add=refuse)
    assert ended.value.subgroup(HarnessError) is not None


class Waits(Scripted):
    """Its `prepare` asks a server."""

    prepare_waits = True

    def prepare(self, request: Request) -> None:
        super().prepare(request)
        self.log.append((threading.current_thread().name, request.index))


@pytest.mark.parametrize("engine", [Scripted(), Waits()])
def test_a_request_that_cannot_be_built_ends_the_load(engine: Scripted) -> None:
    def make(index: int) -> Request:
        return Request(index, (1,), 3) if index < 20 else refuse(index)

    with pytest.raises(ExceptionGroup) as ended:
        send(workload({"shape": "closed", "users": 1, "duration_s": 10}), engine, make=make)
    assert ended.value.subgroup(HarnessError) is not None


def test_requests_whose_preparation_waits_for_a_server_are_prepared_in_another_thread_during_the_load() -> None:
    engine = Waits()
    records, _ = send(workload({"shape": "closed", "users": 2, "duration_s": 0.05}), engine)
    first = next(i for i, (what, _) in enumerate(engine.log) if what == "sent")
    assert (threading.main_thread().name, 0) in engine.log[:first]
    assert threading.main_thread().name not in {what for what, _ in engine.log[first:]}
    assert sorted(record.index for record in records) == list(range(len(records)))


def test_a_cancelled_request_is_recorded_with_its_tokens() -> None:
    engine = SimulatedEngine(None, {"ttft_s": 0.01, "itl_s": 10})
    records, _ = send(
        workload({"shape": "closed", "users": 1}, count=2),
        engine,
        make=lambda index: Request(index, (1,), 3, cancel_after_s=0.05),
    )
    assert [(r.error, r.error_text, r.arrival_tokens) for r in records] == [
        ("cancelled", "the user gave up after 0.05 s", (1,))
    ] * 2


@pytest.mark.parametrize("clients", [1, 2, 3])
def test_clients_share_one_schedule(clients: int) -> None:
    """Together they send one Poisson process. If each drew its own from the same seed, all would send the same."""
    asked = workload({"shape": "poisson", "rate_per_s": 20_000}, count=2000)
    shares = [send(asked, Scripted(), share=(k, clients))[0] for k in range(clients)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    together = sorted((record for share in shares for record in share), key=lambda record: record.index)
    assert [record.index for record in together] == list(range(2000))
    gaps = np.diff([record.scheduled_s for record in together])
    assert stats.kstest(gaps, "expon", args=(0, 1 / 20_000)).pvalue > 0.01
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 3 / len(gaps) ** 0.5
    assert {record.client for record in together} == ({None} if clients == 1 else set(range(clients)))
