"""The vllm engine with a real model on a CPU, loaded once. Needs an environment with vllm."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from harness.engines.vllm import VLLMEngine
from harness.errors import HarnessError, RequestFailed
from harness.model import Completion, EngineInfo, Request

pytestmark = pytest.mark.vllm

MODEL = "smollm2-135m"
MAX_LENGTH = 512


@dataclass(slots=True)
class Loaded:
    engine: VLLMEngine
    info: EngineInfo
    runner: asyncio.Runner


@dataclass(slots=True)
class Seen:
    """One request: when it was sent, its arrivals and its Completion."""

    sent_s: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    completion: Completion | None = None


def children() -> list[str]:
    """Command lines of this process's descendants, except Python's resource tracker, which is not stopped."""
    alive = [c for c in psutil.Process().children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE]
    return [line for child in alive if "resource_tracker" not in (line := " ".join(child.cmdline()))]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    engine = VLLMEngine(MODEL, {"max_model_len": MAX_LENGTH, "kv_cache_memory_bytes": 256 << 20})
    with asyncio.Runner() as runner:
        try:
            yield Loaded(engine, runner.run(engine.start()), runner)
        finally:
            runner.run(engine.stop())


def request(index: int, n_in: int, n_out: int, ignore_eos: bool = True) -> Request:
    return Request(index, tuple(1000 + (index * 997 + i * 31) % 40000 for i in range(n_in)), n_out, ignore_eos)


async def send(engine: VLLMEngine, asked: Request) -> Seen:
    seen = Seen(time.monotonic())
    seen.completion = await engine.generate(asked, lambda n: seen.arrivals.append((time.monotonic(), n)))
    return seen


def counter(name: str) -> float:
    """One of vLLM's own metrics."""
    import prometheus_client  # type: ignore[import-not-found, unused-ignore]  # comes with vllm

    samples = (sample for metric in prometheus_client.REGISTRY.collect() for sample in metric.samples)
    return float(sum(sample.value for sample in samples if sample.name == name))


def test_engine_info_has_limits_model_and_options_in_force(loaded: Loaded) -> None:
    info = loaded.info
    assert (info.engine, info.device, info.device_count) == ("vllm", "cpu", 1)
    assert (info.vocabulary, info.max_length) == (49152, MAX_LENGTH)
    assert (info.model.precision, info.model.parameters) == ("bfloat16", 134515008)
    options = json.loads(json.dumps(info.options))
    # given; default of the harness on a CPU; default of vLLM; computed by vLLM
    assert options["max_model_len"] == MAX_LENGTH
    assert options["enforce_eager"] is True
    assert options["enable_prefix_caching"] is True
    assert options["kv_cache_tokens"] == options["kv_cache_blocks"] * options["block_size"] > MAX_LENGTH
    assert info.encode is not None
    assert info.encode("Once upon a time") == info.encode("Once upon a time")[:4]


def test_token_counts_are_exact_and_equal_to_vllms_counters(loaded: Loaded) -> None:
    before = counter("vllm:prompt_tokens_total"), counter("vllm:generation_tokens_total")
    lengths = [(1, 1), (7, 30), (64, 16), (200, 5), (33, 2)]

    async def all_at_once() -> list[Seen]:
        return await asyncio.gather(*(send(loaded.engine, request(i, *n)) for i, n in enumerate(lengths)))

    seen = loaded.runner.run(all_at_once())
    assert [one.completion for one in seen] == [Completion(n_in, n_out, 0, "length") for n_in, n_out in lengths]
    assert [sum(n for _, n in one.arrivals) for one in seen] == [n_out for _, n_out in lengths]
    after = counter("vllm:prompt_tokens_total"), counter("vllm:generation_tokens_total")
    assert after[0] - before[0] == sum(n_in for n_in, _ in lengths)
    assert after[1] - before[1] == sum(n_out for _, n_out in lengths)
    # concurrent: every request has its first token before the longest has its last
    assert max(one.arrivals[0][0] for one in seen) < max(one.arrivals[-1][0] for one in seen)


def test_tokens_arrive_one_by_one_when_they_are_generated(loaded: Loaded) -> None:
    seen = loaded.runner.run(send(loaded.engine, request(20, 16, 40)))
    times = [at for at, _ in seen.arrivals]
    assert len(times) > 30  # on a busy machine tokens may share an arrival
    # the prefill is one step of 40; if all tokens arrived at the end, the first would be as late as the last
    assert times[0] - seen.sent_s < 0.5 * (times[-1] - seen.sent_s)
    assert times[15] - times[0] > 0.1 * (times[-1] - times[0])


def test_cached_tokens_of_a_repeated_prompt_are_reported(loaded: Loaded) -> None:
    first, second = (loaded.runner.run(send(loaded.engine, request(30, 200, 4))) for _ in range(2))
    assert first.completion is not None
    assert second.completion is not None
    block = loaded.info.options["block_size"]
    assert (first.completion.cached_tokens, second.completion.cached_tokens) == (0, 200 // block * block)


def test_a_cancelled_request_ends_inside_the_engine(loaded: Loaded) -> None:
    async def cancel_then_count() -> list[float]:
        few = asyncio.Event()
        arrivals: list[int] = []

        def arrived(n: int) -> None:
            arrivals.append(n)
            if len(arrivals) == 3:
                few.set()

        long = asyncio.create_task(loaded.engine.generate(request(40, 16, 480), arrived))
        await few.wait()
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        running: list[float] = []
        await loaded.engine.generate(request(41, 16, 8), lambda _: running.append(counter("vllm:num_requests_running")))
        return running

    running = loaded.runner.run(cancel_then_count())
    assert max(running[2:]) == 1  # only the later request; vLLM updates the gauge after it delivers the token


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (request(50, 500, 13), "513 tokens, input and output, exceed max_model_len=512"),
        (Request(51, (49152,), 4), "out of vocabulary"),
        (Request(52, (), 4), "cannot be empty"),
    ],
)
def test_a_request_that_cannot_be_served_is_rejected(loaded: Loaded, asked: Request, says: str) -> None:
    with pytest.raises(RequestFailed, match=says) as failed:
        loaded.runner.run(send(loaded.engine, asked))
    assert failed.value.kind == "rejected"
    served = loaded.runner.run(send(loaded.engine, request(53, 64, 4))).completion  # the next request is served
    assert served == Completion(64, 4, 0, "length")


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        ({"tensor_paralel_size": 2}, "vllm has no option 'tensor_paralel_size'", "did you mean 'tensor_parallel_size'"),
        ({"zzz": 1}, "vllm has no option 'zzz'", "see vLLM's engine arguments"),
        ({"model": "x"}, "model is not an engine option", "--model"),
        ({"hf_token": "hf_x"}, "hf_token is not an engine option", "HF_TOKEN in the environment"),
        ({"temperature": "hot"}, "engine.temperature is 'hot'", "a number from 0 (greedy)"),
    ],
)
def test_an_invalid_option_is_rejected_before_vllm_is_loaded(options: dict[str, object], what: str, fix: str) -> None:
    with pytest.raises(HarnessError) as refused:
        VLLMEngine(MODEL, options)
    assert refused.value.what == what
    assert fix in refused.value.fix


def test_an_invalid_value_is_rejected_before_the_model_is_loaded(loaded: Loaded) -> None:
    engine = VLLMEngine(MODEL, {"dtype": "float17"})
    with pytest.raises(HarnessError) as refused:
        loaded.runner.run(engine.start())
    loaded.runner.run(engine.stop())
    assert refused.value.what == "vllm refuses engine.dtype=float17"
    assert "bfloat16" in refused.value.fix


def test_stop_ends_an_unfinished_start(loaded: Loaded) -> None:
    async def interrupted() -> None:
        engine = VLLMEngine(MODEL, {"max_model_len": MAX_LENGTH})
        before = len(children())
        start = asyncio.create_task(engine.start())
        while len(children()) < before + 2:  # the watchdog and the engine's process
            await asyncio.sleep(0.05)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        await engine.stop()
        assert len(children()) == before

    loaded.runner.run(interrupted())


def test_no_process_is_left_after_stop(loaded: Loaded) -> None:  # the last test: it stops the engine
    assert children()
    loaded.runner.run(loaded.engine.stop())
    assert children() == []
