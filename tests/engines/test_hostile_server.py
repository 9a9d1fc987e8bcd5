"""What a hostile server can answer: each request ends in time, as a failure of a named kind or with its tokens."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import select
import socket
import threading
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest

from harness.engines.openai.client import OpenAIEngine
from harness.errors import HarnessError, RequestFailed
from harness.model import Completion, EngineInfo, ModelIdentity, Request

TIMEOUT_S = 0.5
TOKEN = b'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\n'
END = b'data: {"choices": [{"text": "", "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
HANG, SLOW = None, 0.02
"""Pieces of an answer: no more and no end; a pause in seconds."""
Piece = bytes | float | None


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1")


def whole(body: bytes, *lines: str, status: str = "200 OK") -> list[Piece]:
    return [head(f"Content-Length: {len(body)}", *lines, status=status), body]


def chunked(*chunks: bytes) -> list[Piece]:
    return [head("Transfer-Encoding: chunked"), *(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks)]


def dripping(piece: bytes) -> list[Piece]:
    return [piece, SLOW] * 200


def usage(**counts: object) -> bytes:
    return b"data: " + json.dumps({"choices": [], "usage": counts}).encode() + b"\n\n"


def choice(value: object) -> bytes:
    return b"data: " + json.dumps({"choices": value}).encode() + b"\n\n"


DEEP = b"[" * 900 + b"]" * 900
"""Less than the parser of JSON refuses."""
GOOD, CHUNK = TOKEN + END, b"%x\r\n%s\r\n" % (len(TOKEN), TOKEN)
HOSTILE: dict[str, tuple[Sequence[Piece], str]] = {
    # connection
    "closes at once": ([], "cut reset"),
    "never answers": ([HANG], "timeout"),
    "closes after half a status line": ([b"HTTP/1.1 2"], "cut reset"),
    "hangs after half a status line": ([b"HTTP/1.1 2", HANG], "timeout"),
    "closes after the headers": ([head("Content-Length: 100")], "cut"),
    "hangs after the headers": ([head("Content-Length: 100"), HANG], "timeout"),
    "headers a byte at a time, for ever": ([b"HTTP/1.1 200 OK\r\nA: ", *dripping(b"x")], "timeout"),
    "a header a time, for ever": ([b"HTTP/1.1 200 OK\r\n", *dripping(b"A: b\r\n")], "timeout"),
    # heads
    "informational answers first": ([head(status="103 Early Hints") * 3, *whole(GOOD)], ""),
    "informational answers for ever": ([*dripping(head(status="102 Processing"))], "timeout"),
    "changes the protocol": ([head("Upgrade: h2c", status="101 Switching Protocols"), HANG], "timeout"),
    "no content": ([head(status="204 No Content")], "http_204"),
    "not modified": ([head(status="304 Not Modified")], "http_304"),
    "a redirect to itself": (whole(b"", "Location: /v1/completions", status="307 Temporary Redirect"), "http_307"),
    "a redirect without a place": (whole(b"", status="302 Found"), "http_302"),
    "a status of 000": ([head(status="000 X")], "malformed"),
    "a status of 999": (whole(b"x", status="999 X"), "http_999"),
    "headers with zero bytes": ([head("A: \0\0"), GOOD], ""),
    "headers in Latin-1": (whole(GOOD, "A: \xff\xfe"), ""),
    "two lengths": ([head("Content-Length: 5", "Content-Length: 6"), b"123456"], "cut"),
    "a length and chunks": ([head("Content-Length: 5", "Transfer-Encoding: chunked"), HANG], "timeout"),
    "a length that is too short": ([head("Content-Length: 3"), GOOD], "malformed"),
    "a length of 50 digits": ([head("Content-Length: " + "9" * 50), GOOD, HANG], "malformed"),
    "a length that is no whole number": ([head("Content-Length: 1e3"), GOOD], "malformed"),
    "a list of lengths": ([head(f"Content-Length: {len(GOOD)}, {len(GOOD)}"), GOOD], "malformed"),
    "a header of 2 MB": ([head("A: " + "x" * 2_000_000), GOOD], "malformed"),
    "100,000 headers": ([head(*["A: b"] * 100_000), GOOD], "malformed"),
    "the first bytes of HTTP/2": ([b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" * 10], "malformed"),
    "compressed chunks": ([head("Transfer-Encoding: gzip, chunked"), *chunked(GOOD, b"")[1:]], "compressed"),
    "a time to wait without end": (whole(b"", "Retry-After: 1e308", status="429 Too Many Requests"), "http_429"),
    "a redirect to no address": (whole(b"", "Location: http://[::1", status="301 Moved"), "http_301"),
    "an error of 200 MB": ([head("Content-Length: 200000000", status="500 X"), *[b"x" * 1_000_000] * 200], "malformed"),
    "a negative length": ([head("Content-Length: -1"), GOOD], "malformed"),
    # chunks
    "a chunk for ever": ([head("Transfer-Encoding: chunked"), b"ffff\r\n", *dripping(b"x")], "timeout"),
    "a chunk of 2^64": ([head("Transfer-Encoding: chunked"), b"fffffffffffffffff\r\nx", HANG], "malformed"),
    "a chunk longer than it says": ([head("Transfer-Encoding: chunked"), b"2\r\nabcdef\r\n"], "malformed"),
    "a chunk of no number": ([head("Transfer-Encoding: chunked"), b"-1\r\nx\r\n"], "malformed"),
    "a chunk size and spaces for ever": ([head("Transfer-Encoding: chunked"), b"5", *dripping(b" ")], "malformed"),
    "no last chunk": (chunked(TOKEN), "cut"),
    "trailers for ever": ([*chunked(GOOD, b"")[:-1], b"0\r\n", *dripping(b"A: b\r\n")], "timeout"),
    "empty events between the tokens": (chunked(b"\n\n" * 999, GOOD, b""), ""),
    "tokens for ever": ([head("Transfer-Encoding: chunked"), CHUNK * 9000, *dripping(CHUNK)], "malformed"),
    # bodies
    "gzip that was not asked for": (whole(gzip.compress(GOOD), "Content-Encoding: gzip"), "compressed"),
    "a page of HTML": (whole(b"<html>502</html>", "Content-Type: text/html"), "cut"),
    "zero bytes": (whole(b"\0" * 4096), "cut"),
    "bad UTF-8": (whole(b'data: {"choices": [{"text": "\xff\xfe"}]}\n\n' + END), "malformed"),
    "half of a surrogate pair": (whole(b'data: {"choices": [{"text": "\\ud800"}]}\n\n' + END), "malformed"),
    "another encoding": (whole(GOOD.decode().encode("utf-16")), "cut"),
    "deep JSON": (whole(b"data: " + b"[" * 200_000 + b"\n\n"), "malformed"),
    "deep reasoning": (whole(b'data: {"choices": [{"delta": {"reasoning": ' + DEEP + b"}}]}\n\n"), "malformed"),
    "a number of a million digits": (whole(b"data: " + b"9" * 1_000_000 + b"\n\n"), "malformed"),
    "JSON of another kind": (whole(b"data: 5\n\ndata: null\n\ndata: []\n\n"), "malformed"),
    "NaN in JSON": (whole(b'data: {"choices": NaN}\n\n'), "malformed"),
    "no choices": (whole(choice([]) + END.replace(b'[{"text": "", "finish_reason": "stop"}]', b"[]")), "empty"),
    "choices of no list": (whole(choice({"text": "a"}) + END), "malformed"),
    "a choice of no map": (whole(choice([5, None]) + END), "malformed"),
    "a text of no text": (whole(choice([{"text": 5}]) + END), "malformed"),
    "a text of 10 MB": (whole(choice([{"text": "a" * 10_000_000}]) + END), "malformed"),
    "a reason of 1 MB": (whole(choice([{"text": "a", "finish_reason": "x" * 1_000_000}]) + b"data: [DONE]\n\n"), ""),
    "ids that are none": (whole(choice([{"text": "a", "token_ids": ["x", 1e300, None]}]) + END), "malformed"),
    "an index of 10^30": (whole(choice([{"text": "a", "index": 10**30}]) + END), ""),
    "one key twice": (whole(b'data: {"choices": [], "choices": [{"text": "a"}]}\n\n' + END), ""),
    "a thousand choices": (whole(choice([{"text": "a", "index": i} for i in range(1000)]) + END), ""),
    "an error after a token": (whole(TOKEN + b'data: {"error": {"message": "out of memory"}}\n\n'), "error"),
    "an error of no map": (whole(b'data: {"error": 5}\n\n'), "error"),
    "a reason that is a number": (whole(choice([{"text": "a", "finish_reason": 7}]) + END), "malformed"),
    # usages
    "negative usage": (whole(TOKEN + usage(prompt_tokens=-5, completion_tokens=-1) + END), ""),
    "usage of 10^20": (whole(TOKEN + usage(prompt_tokens=1, completion_tokens=10**20) + END), "malformed"),
    "usage of 400 digits": (whole(TOKEN + usage(completion_tokens=10**400) + END), "malformed"),
    "usage in text": (whole(TOKEN + usage(prompt_tokens="4", completion_tokens="x") + END), ""),
    "usage of fractions": (whole(TOKEN + usage(prompt_tokens=4.5, completion_tokens=1.5) + END), ""),
    "usage of true": (whole(TOKEN + usage(prompt_tokens=True, completion_tokens=True) + END), ""),
    "cached tokens of 10^30": (
        whole(TOKEN + usage(prompt_tokens=2, prompt_tokens_details={"cached_tokens": 10**30}) + END),
        "malformed",
    ),
    "usage of maps and lists": (whole(TOKEN + usage(prompt_tokens={"a": 1}, completion_tokens=[4]) + END), ""),
    "usage of no map": (whole(TOKEN + b'data: {"choices": [], "usage": [1]}\n\n' + END), "malformed"),
    # ends
    "two ends": (whole(TOKEN + END + END), ""),
    "tokens after the end": (whole(TOKEN + END + TOKEN * 5), ""),
    "a second answer at once": ([*whole(GOOD), *whole(GOOD)], "malformed"),
    "bytes after the end": ([*whole(GOOD), b"\0" * 100], "malformed"),
    "no end": (whole(TOKEN), "cut"),
    "an end alone": (whole(END), "empty"),
}


async def answered(pieces: Sequence[Piece]) -> str:
    """The kind of failure of a request that gets these pieces, "" for an answer; the next request is answered well."""
    number = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while header := (await reader.readuntil(b"\r\n\r\n")).lower():
                length = next(int(x.split(b":")[1]) for x in header.split(b"\r\n") if x.startswith(b"content-length"))
                await reader.readexactly(length)
                number += 1
                for each in pieces if number == 1 else whole(GOOD):
                    if isinstance(each, bytes):
                        writer.write(each)
                        await writer.drain()
                    else:
                        await asyncio.sleep(60 if each is None else each)
                if number == 1:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    engine = OpenAIEngine("m", {"base_url": f"http://127.0.0.1:{port}", "read_timeout_s": TIMEOUT_S})

    async def ask() -> str:
        try:
            made = await engine.generate(Request(0, (5, 6), 4), lambda *_: None)
        except RequestFailed as failed:
            return failed.kind
        assert isinstance(made, Completion)
        return ""

    try:
        first = await ask()
        assert await ask() == ""
    finally:
        await engine.stop()
        server.close()
    return first


@pytest.mark.parametrize("name", HOSTILE)
def test_a_request_ends_in_time_by_name_and_the_next_one_is_answered(name: str) -> None:
    pieces, kinds = HOSTILE[name]  # words: one of several; "" is an answer
    began_s = time.monotonic()
    kind = asyncio.run(asyncio.wait_for(answered(pieces), 60))
    assert kind in (kinds.split() or [""])
    assert time.monotonic() - began_s < 20 * TIMEOUT_S


@pytest.mark.parametrize("last", [b"", END], ids=["cut", "whole"])
def test_nothing_keeps_the_body_of_an_answer_that_was_parsed(last: bytes) -> None:
    """Not even until garbage is collected, which happens seldom while few objects are made: answers can be large."""
    body = TOKEN * 50_000 + last
    asyncio.run(answered(whole(GOOD)))  # imports
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        assert asyncio.run(answered([head("Connection: close"), body])) == ("" if last else "cut")
        assert tracemalloc.get_traced_memory()[0] < len(body) / 4
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_request_that_a_closed_connection_lost_is_sent_on_a_new_one() -> None:
    """The server closes an idle connection while the next request is on its way: the kernel resets the connection."""

    def serve() -> None:
        for closes in (True, False):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"".join(filter(None, whole(GOOD))))  # type: ignore[arg-type]
                select.select([connection], [], [], 10)  # the next request, which is not read
                if not closes:
                    connection.recv(65536)

    async def ask() -> list[Completion]:
        engine = OpenAIEngine("m", {"base_url": f"http://127.0.0.1:{listener.getsockname()[1]}"})
        try:
            return [await engine.generate(Request(i, (5, 6), 4), lambda *_: None) for i in range(2)]
        finally:
            await engine.stop()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        answers = asyncio.run(ask())
        thread.join()
    assert [each.connect_s is not None for each in answers] == [True, True]


async def started(models: bytes | None, **pages: bytes) -> EngineInfo:
    """What the engine takes over from a server with this list of models and these pages; others have no answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            page = (await reader.readuntil(b"\r\n\r\n")).split()[1].rpartition(b"/")[2].decode()
            if (body := models if page == "models" else pages.get(page)) is None:
                await asyncio.sleep(60)
            writer.write(head(f"Content-Length: {len(body or b'')}") + (body or b""))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    engine = OpenAIEngine(None, {"base_url": url, "read_timeout_s": TIMEOUT_S})
    try:
        return await engine.start()
    finally:
        await engine.stop()
        server.close()


@pytest.mark.parametrize(
    ("entry", "about"),
    [
        ({"max_model_len": 10**23, "meta": {"n_vocab": -5}}, {}),
        ({"max_model_len": -5, "meta": {"n_vocab": 1e300}, "owned_by": {"a": [10**30]}}, {"version": {"a": [1]}}),
        ({"max_model_len": 0, "meta": [], "root": [1]}, {"build_info": 5, "max_running_requests": "x"}),
        ({"max_model_len": "x", "root": "\x1b[31m"}, {"chunked_prefill_size": [1], "version": "v" * 2000}),
    ],
)
def test_what_a_server_cannot_mean_of_itself_is_passed_over(entry: dict[str, Any], about: dict[str, Any]) -> None:
    body = json.dumps({"data": [{"id": "m", **entry}]}).encode()
    info = asyncio.run(started(body, version=json.dumps(about).encode(), get_server_info=b"[" * 20_000))
    assert (info.vocabulary, info.max_length, info.version, info.options["server"]) == (32_000, None, None, None)
    assert info.model == ModelIdentity(asked="m", source="m")
    assert not {"max_running_requests", "chunked_prefill_size"} & set(info.options)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>", "no list of models at .*: malformed: /v1/models: JSON is malformed"),
        (b'{"data": ' + b"[" * 20_000, "no list of models at .*: malformed"),
        (b"null", "does not say which model it serves\n  fix: give it with --model"),
        (json.dumps({"data": [{"id": 5}]}).encode(), "does not say which model it serves"),
        (json.dumps({"data": [{"id": "../\x1b[31m"}]}).encode(), "does not say which model it serves"),
        (None, "no server answers at .*: timeout: /v1/models was not answered within 0.5 s\n  fix: wait until"),
    ],
)
def test_a_server_that_lists_no_models_is_refused_by_name_and_in_time(body: bytes | None, said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        asyncio.run(asyncio.wait_for(started(body), 20 * TIMEOUT_S))
