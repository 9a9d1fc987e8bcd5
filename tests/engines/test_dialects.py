"""Recorded answers of known servers (data/dialects), replayed to the client."""

from __future__ import annotations

import asyncio

import pytest
from places import ROOT

from harness.engines.openai.client import OpenAIEngine
from harness.errors import RequestFailed
from harness.meters.server import values_of
from harness.model import Completion, Request

RECORDED = ROOT / "tests" / "data" / "dialects"
FIRST_S, EVENT_S = 0.05, 0.005
"""Pause after the first event, so that it arrives alone, and after each later one."""


async def ask(name: str, endpoint: str = "completions", status: int = 200) -> tuple[Completion, list[int]]:
    """The Completion for a recorded answer, and the calls of `arrived` while it was received."""
    stream = name.endswith(".sse")
    body = (RECORDED / name).read_bytes()
    parts = [part + b"\n\n" for part in body.split(b"\n\n")[:-1]] if stream else [body]
    kind = "text/event-stream; charset=utf-8" if stream else "application/json"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for number, part in enumerate(parts):
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await asyncio.sleep(EVENT_S if number else FIRST_S)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    calls: list[int] = []
    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        options = {"base_url": f"http://127.0.0.1:{port}", "endpoint": endpoint, "prompt": "text", "stream": stream}
        engine = OpenAIEngine("m", options)
        try:
            request = Request(0, (5, 6, 7), 16, messages=("Count.",))
            return await engine.generate(request, calls.append), calls
        finally:
            await engine.stop()


@pytest.mark.parametrize(
    ("name", "text", "tokens", "first", "counted"),
    [
        # tokens: input, output, cached input (all from the usage), finish reason; first: tokens in the first arrival
        # the first event has only the role; the tenth token ends the answer and has no text
        ("vllm-chat.sse", "The count is 12, please.", (42, 10, 0, "stop"), 0, 10),
        ("vllm-completions.sse", "gevzvz", (200, 5, 128, "length"), 1, 5),
        ("vllm-chat.json", "The count is 12, please.", (42, 10, 0, "stop"), None, 10),
        ("vllm-completions.json", "gevzvz", (200, 5, 128, "length"), None, 5),
        # three events with reasoning tokens; the end token has no event
        ("sglang-chat.sse", "\n\n2!", (18, 7, 16, "stop"), 0, 7),
        ("sglang-completions.sse", " one two three four", (16, 4, None, "length"), 1, 4),
        ("tgi-chat.sse", "OK!", (39, 3, None, "stop"), 1, 3),
        ("llama.cpp-chat.sse", "The count is", (42, 4, 32, "length"), 0, 4),
        ("llama.cpp-completions.sse", " one two three", (16, 3, 0, "length"), 1, 3),
        ("ollama-chat.sse", "Hi there", (11, 5, None, "stop"), 1, 5),
        ("ollama-completions.sse", " one two", (16, 2, None, "length"), 1, 2),
    ],
)
def test_text_usage_and_arrivals_of_each_dialect_are_read(
    name: str, text: str, tokens: tuple[int, int, int | None, str], first: int | None, counted: int
) -> None:
    done, calls = asyncio.run(ask(name, "chat" if "-chat" in name else "completions"))
    assert done.text == text
    assert (done.input_tokens, done.output_tokens, done.cached_tokens, done.finish_reason) == tokens
    assert done.arrival_tokens is not None
    assert len(done.arrival_tokens) == len(calls)
    assert sum(done.arrival_tokens) == counted
    if first is not None:
        assert done.arrival_tokens[0] == first
        assert sum(count > 0 for count in done.arrival_tokens) > 1  # not all in the last arrival


@pytest.mark.parametrize(
    ("name", "status", "kind", "says"),
    [
        ("vllm-error.json", 400, "http_400", "maximum context length is 512 tokens"),
        ("sglang-error.json", 400, "http_400", "longer than the model's context length"),
        ("sglang-error.sse", 200, "error", "Generation aborted."),  # in the middle of a stream
        ("tgi-error.json", 422, "http_422", "Input validation error"),
        ("llama.cpp-error.json", 400, "http_400", "exceeds the available context size"),
        ("ollama-error.json", 404, "http_404", "model 'nobody' not found"),
    ],
)
def test_an_error_carries_the_servers_message(name: str, status: int, kind: str, says: str) -> None:
    with pytest.raises(RequestFailed) as failed:
        asyncio.run(ask(name, status=status))
    assert failed.value.kind == kind
    assert says in failed.value.message
    assert "{" not in failed.value.message  # the message, not the whole JSON


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("vllm", {"running": 0, "waiting": 0, "kv_cache_use": 0, "prefix_cache_queries": 969, "prefix_cache_hits": 256,
                  "preemptions": 0}),
        ("sglang", {"running": 3, "waiting": 1, "kv_cache_use": 0.28, "prefix_cache_queries": 8000,
                    "prefix_cache_hits": 6000, "preemptions": 2}),
        ("tgi", {"running": 5, "waiting": 2}),
        ("llama.cpp", {"running": 4, "waiting": 46}),
    ],
)  # fmt: skip
def test_each_dialects_metrics_map_to_the_stored_names(name: str, values: dict[str, float]) -> None:
    assert values_of((RECORDED / f"{name}-metrics.txt").read_text()) == values


def test_hits_of_a_kv_connector_are_hits_of_the_prefix_cache() -> None:
    """vLLM asks the connector for tokens that its own cache lacks: 1,000 looked up, 200 found here, 600 there."""
    text = """vllm:prefix_cache_queries_total{engine="0"} 1000.0
vllm:prefix_cache_hits_total{engine="0"} 200.0
vllm:external_prefix_cache_queries_total{engine="0"} 800.0
vllm:external_prefix_cache_hits_total{engine="0"} 600.0
"""
    assert values_of(text) == {"prefix_cache_queries": 1000, "prefix_cache_hits": 800}
