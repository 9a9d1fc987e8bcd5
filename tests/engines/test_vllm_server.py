"""`vllm serve` with a real model on a CPU, started and stopped by the harness, once for all tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pandas as pd
import psutil
import pytest

from harness.analysis.server import server_figures
from harness.engines.openai.client import OpenAIEngine
from harness.engines.openai.server import ServedEngine, create
from harness.errors import RequestFailed
from harness.meters.sampler import Polled
from harness.meters.server import NAMES, ServerReader
from harness.model import Completion, EngineInfo, Request, ServerSample

pytestmark = pytest.mark.vllm

MAX_LENGTH = 512
Loaded = tuple[ServedEngine, EngineInfo, asyncio.Runner]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    engine = create(
        "smollm2-135m",
        {"serve": "vllm", "serve_options": {"max_model_len": MAX_LENGTH, "kv_cache_memory_bytes": 256 << 20}},
    )
    assert isinstance(engine, ServedEngine)
    with asyncio.Runner() as runner:
        try:
            yield engine, runner.run(engine.start()), runner
        finally:
            runner.run(engine.stop())


def request(index: int, n_in: int, n_out: int) -> Request:
    prompt = tuple(1000 + (index * 997 + i * 31) % 30000 for i in range(n_in))
    return Request(index, prompt, n_out, messages=("Count from one to ten, please, as children do.",))


def send(loaded: Loaded, asked: Request, **options: object) -> tuple[Completion, int]:
    """The Completion, and the number of arrivals."""
    engine, _, runner = loaded

    async def one() -> tuple[Completion, int]:
        client = OpenAIEngine("smollm2-135m", {**engine.client_options, **options})
        arrivals: list[int] = []
        try:
            return await client.generate(asked, arrivals.append), len(arrivals)
        finally:
            await client.stop()

    return runner.run(one())


def test_engine_info_describes_the_started_server(loaded: Loaded) -> None:
    engine, info, _ = loaded
    assert (info.engine, info.device, info.device_count, info.max_length) == ("openai", "cpu", 1, MAX_LENGTH)
    assert (info.model.asked, info.model.parameters) == ("smollm2-135m", 134515008)
    assert info.version is not None
    assert "--max-model-len 512" in engine.server_record["command"]
    assert json.loads(json.dumps(info.options))["serve"] == "vllm"


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("stream", [True, False])
def test_counted_tokens_equal_the_usage(loaded: Loaded, endpoint: str, stream: bool) -> None:
    done, arrivals = send(loaded, request(1, 40, 48), endpoint=endpoint, stream=stream)
    assert done.arrival_tokens is not None
    assert (done.output_tokens, sum(done.arrival_tokens), done.finish_reason) == (48, 48, "length")
    assert done.input_tokens == (40 if endpoint == "completions" else 42)  # the chat template adds tokens
    if stream:
        assert arrivals >= 8  # on a busy machine tokens may share an arrival
        assert sum(done.arrival_tokens[: arrivals // 2]) in range(8, 40)
    else:
        assert done.arrival_tokens[-1] == 48


def test_cached_tokens_of_a_repeated_prompt_are_reported_and_in_the_metrics(loaded: Loaded) -> None:
    url = loaded[0].client_options["base_url"]
    server = Polled("server", ServerSample, ServerReader, [url])
    server.start()
    cached = [send(loaded, request(2, 200, 4))[0].cached_tokens for _ in range(2)]
    server.stop()
    assert cached[0] == 0
    assert cached[1] is not None
    assert cached[1] >= 128  # the block size on a CPU
    readings = pd.DataFrame(server.drain())
    speculative = {"drafts", "draft_tokens", "accepted_tokens", "acceptance", "accepted_length"}
    assert set(readings["name"]) == set(NAMES) - speculative
    figures = server_figures(readings, readings["time_s"].min(), readings["time_s"].max())
    found = {each.name: each for each in figures}["server.prefix_cache_hits"]
    assert (found.value, found.n) == (cached[1] / 400, 400)


def test_a_prompt_that_is_too_long_fails_with_the_servers_message(loaded: Loaded) -> None:
    with pytest.raises(RequestFailed, match="maximum context length is 512 tokens") as refused:
        send(loaded, request(3, 600, 4))
    assert refused.value.kind == "http_400"


def test_no_process_is_left_after_stop(loaded: Loaded) -> None:  # the last test: it stops the server
    engine, _, runner = loaded
    runner.run(engine.stop())
    left = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    assert [line for child in left if "resource_tracker" not in (line := " ".join(child.cmdline()))] == []
