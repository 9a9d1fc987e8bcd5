"""The transformers engine with a real model, loaded once: the protocol's rules, failures and the end."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.engines.transformers import TransformersEngine
from harness.errors import EngineDied, HarnessError, RequestFailed
from harness.model import Completion, EngineInfo, Request

MODEL = "smollm2-135m"
CAPACITY = 16 * 16
# One thread: two of torch's threads spin while they wait for each other, which takes minutes on a busy machine.
OPTIONS = {"threads": 1, "page_size": 16, "num_blocks": 16}


@dataclass
class Sent:
    """A request, its arrivals, and its Completion or exception."""

    request: Request
    completion: Completion | None = None
    error: Exception | None = None
    sent_s: float = 0.0
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    async def by(self, engine: TransformersEngine) -> None:
        self.sent_s = time.perf_counter()
        try:
            self.completion = await engine.generate(
                self.request, lambda n: self.arrivals.append((time.perf_counter(), n))
            )
        except (RequestFailed, EngineDied) as error:
            self.error = error


@dataclass
class Live:
    """A started engine and its event loop."""

    runner: asyncio.Runner
    engine: TransformersEngine
    info: EngineInfo

    def send(self, *requests: Request) -> list[Sent]:
        """Send all requests at once and wait for all."""
        flights = [Sent(request) for request in requests]

        async def every() -> None:
            await asyncio.gather(*(flight.by(self.engine) for flight in flights))

        self.runner.run(every())
        return flights


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    before = threading.enumerate()
    with asyncio.Runner() as runner:
        engine = TransformersEngine(MODEL, OPTIONS)
        yield Live(runner, engine, runner.run(engine.start()))
        runner.run(engine.stop())
    assert threading.enumerate() == before


def request(index: int, given: int, wanted: int) -> Request:
    return Request(index, tuple(range(100 + index, 100 + index + given)), wanted)


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        ({"num_block": 4}, "num_block", "num_blocks"),  # unknown: the known ones are named
        ({"dtype": "int3"}, "dtype is 'int3'", "dtype"),
        ({"device": "tpu"}, "device is 'tpu'", "device"),
        ({"num_blocks": 0}, "num_blocks is 0", "num_blocks"),
        ({"temperature": -1.0}, "temperature is -1.0", "temperature"),
    ],
)
def test_an_invalid_option_is_named_before_the_model_is_loaded(options: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(HarnessError) as refused:
        TransformersEngine(MODEL, options)
    assert what in refused.value.what
    assert fix in refused.value.fix


def test_a_model_is_required() -> None:
    with pytest.raises(HarnessError, match="needs a model"):
        TransformersEngine(None, {})


@pytest.mark.real_engine
def test_engine_info_has_limits_model_and_options_in_force(live: Live) -> None:
    info = live.info
    assert (info.engine, info.device, info.device_count) == ("transformers", "cpu", 1)
    assert (info.vocabulary, info.max_length) == (49_152, CAPACITY)
    assert (info.model.parameters, info.model.precision) == (134_515_008, "bfloat16")
    in_force = {"dtype": "bfloat16", "device": "cpu", "attention": "sdpa", "threads": 1, "temperature": 0.0}
    in_force |= {"num_blocks": 16, "page_size": 16, "max_batch_tokens": 512, "allow_block_sharing": False}
    assert in_force.items() <= info.options.items()
    assert info.encode is not None
    assert info.encode("The capital") == [504, 3575]


@pytest.mark.real_engine
def test_every_token_arrives_when_it_is_generated(live: Live) -> None:
    live.send(request(9, 17, 2))  # the first request of a process also pays for starting the generation thread
    (flight,) = live.send(request(0, 17, 24))
    assert flight.completion == Completion(17, 24, cached_tokens=0, finish_reason="length")
    times = [at for at, _ in flight.arrivals]
    assert [n for _, n in flight.arrivals] == [1] * 24
    assert times == sorted(times)
    # 23 of 24 steps lie between the first and the last token. If all tokens arrived at the end, none would.
    assert times[-1] - times[0] > 0.5 * (times[-1] - flight.sent_s)
    assert sum(later > earlier for earlier, later in itertools.pairwise(times)) == 23


@pytest.mark.real_engine
def test_requests_run_concurrently(live: Live) -> None:
    flights = live.send(*(request(i, 8 + i, 12 + i) for i in range(4)))
    assert [f.completion and (f.completion.input_tokens, f.completion.output_tokens) for f in flights] == [
        (8, 12), (9, 13), (10, 14), (11, 15),
    ]  # fmt: skip
    assert [sum(n for _, n in f.arrivals) for f in flights] == [12, 13, 14, 15]
    assert max(f.arrivals[0][0] for f in flights) < min(f.arrivals[-1][0] for f in flights)


@pytest.mark.real_engine
def test_requests_beyond_the_kv_cache_wait_and_complete(live: Live) -> None:
    flights = live.send(*(request(i, 80, 20) for i in range(5)))  # 500 tokens into 256
    assert [sum(n for _, n in f.arrivals) for f in flights] == [20] * 5
    assert [f.completion and f.completion.output_tokens for f in flights] == [20] * 5


@pytest.mark.real_engine
def test_without_ignore_eos_the_end_token_ends_the_answer(live: Live) -> None:
    assert live.info.encode is not None
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    (flight,) = live.send(Request(0, tuple(live.info.encode(text)), 100, ignore_eos=False))
    # "The capital of France is Paris." and the token that ends it.
    assert flight.completion == Completion(16, len(flight.arrivals), cached_tokens=0, finish_reason="stop")
    assert 5 < len(flight.arrivals) < 20


@pytest.mark.real_engine
@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (request(0, CAPACITY - 7, 8), "exceed 256"),
        (Request(0, (), 8), "needs input"),
        (Request(0, (1,), 0), "needs input"),
        (Request(0, (49_152,), 8), "0 to 49151"),  # would end the engine's thread
        (Request(0, (-1,), 8), "0 to 49151"),
    ],
)
def test_an_invalid_request_fails_without_affecting_others(live: Live, asked: Request, text: str) -> None:
    good, bad = live.send(request(1, 4, 2), asked)
    assert good.completion is not None
    assert isinstance(bad.error, RequestFailed)
    assert bad.error.kind == "rejected"
    assert text in bad.error.message


@pytest.mark.real_engine
def test_a_request_of_exactly_max_length_is_served(live: Live) -> None:
    (flight,) = live.send(request(0, CAPACITY - 8, 8))
    assert flight.completion == Completion(CAPACITY - 8, 8, cached_tokens=0, finish_reason="length")


@pytest.mark.real_engine
def test_a_cancelled_request_is_aborted_inside_the_engine(live: Live) -> None:
    async def cancel_after_some() -> tuple[int, int, int]:
        flight, enough = Sent(request(0, 8, 200)), asyncio.Event()

        def arrived(n: int) -> None:
            flight.arrivals.append((time.perf_counter(), n))
            if len(flight.arrivals) == 3:
                enough.set()

        task = asyncio.ensure_future(live.engine.generate(flight.request, arrived))
        await enough.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        then = len(flight.arrivals)
        after = Sent(request(1, 8, 8))
        await after.by(live.engine)  # the engine has processed the cancellation by the end of this request
        return then, len(flight.arrivals), len(live.engine._manager.batch_processor.scheduler.active_requests)

    then, later, active = live.runner.run(cancel_after_some())
    assert (later, active) == (then, 0)
    assert then < 10


@pytest.mark.real_engine
def test_a_dead_batching_thread_raises_engine_died() -> None:
    before = threading.enumerate()
    with asyncio.Runner() as runner:
        engine = TransformersEngine(MODEL, OPTIONS)
        live = Live(runner, engine, runner.run(engine.start()))

        async def poison() -> list[Sent]:
            flights = [Sent(request(0, 8, 100)), Sent(request(1, 8, 100))]
            tasks = [asyncio.ensure_future(flight.by(engine)) for flight in flights]
            while not flights[0].arrivals:
                await asyncio.sleep(0.01)
            engine._manager.add_request([10**6], max_new_tokens=1)  # an invalid token id, which `generate` would reject
            await asyncio.gather(*tasks)
            return flights

        flights = runner.run(poison())
        assert [type(flight.error) for flight in flights] == [EngineDied] * 2
        assert "index out of range" in str(flights[0].error)
        assert 0 < len(flights[0].arrivals) < 100
        (late,) = live.send(request(2, 4, 4))
        assert isinstance(late.error, EngineDied)
        runner.run(engine.stop())
    assert threading.enumerate() == before


@pytest.mark.real_engine
@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        ({"num_blocks": 10**8}, "out of memory on cpu", "lower num_blocks"),
        ({"attention": "flash_attention_2"}, "flash", "give a Hugging Face id"),
    ],
)
def test_a_failed_start_names_the_cause_and_a_fix(options: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(HarnessError) as refused:
        asyncio.run(TransformersEngine(MODEL, options).start())
    assert what in refused.value.what.lower()
    assert fix in refused.value.fix


def test_device_cuda_without_a_gpu_is_rejected() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(HarnessError) as refused:
        asyncio.run(TransformersEngine(MODEL, {"device": "cuda"}).start())
    assert "sees no GPU" in refused.value.what
    assert "nvidia-smi" in refused.value.fix
