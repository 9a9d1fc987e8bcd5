"""HTTP parsing: answers in every framing, split at any byte, complete, truncated or invalid."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.engines.openai import http
from harness.engines.openai.pool import Pool, parse_base
from harness.errors import RequestFailed

BODY = b"data: 1\n\ndata: 2\r\n\r\n0\r\n\r\n\x00\xff" * 3


class Wire(asyncio.Transport):
    """A transport that sends nothing."""

    def write(self, _data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        pass


def exchange(pieces: Sequence[bytes], *, closes: bool = True) -> tuple[http.Connection, int, RequestFailed | None]:
    """The connection after it received these pieces, the number of arrivals, and the error if one was raised."""

    async def play() -> tuple[http.Connection, int, RequestFailed | None]:
        buffer = memoryview(bytearray(http.READ_SIZE))
        connection, arrivals = http.Connection(buffer, http.Held()), 0

        def arrived(*_: int | None) -> None:
            nonlocal arrivals
            arrivals += 1

        connection.connection_made(Wire())
        task = asyncio.ensure_future(connection.exchange(b"", arrived))
        await asyncio.sleep(0)
        for piece in pieces:
            for at in range(0, len(piece), http.READ_SIZE):
                part = piece[at : at + http.READ_SIZE]
                connection.get_buffer(-1)[: len(part)] = part
                connection.buffer_updated(len(part))
        await asyncio.sleep(0)
        if closes and not task.done():
            connection.eof_received()
            connection.connection_lost(None)
        try:
            await asyncio.wait_for(task, 1)
        except RequestFailed as failed:
            return connection, arrivals, failed
        return connection, arrivals, None

    return asyncio.run(play())


@st.composite
def framed(draw: st.DrawFn) -> tuple[bytes, bool]:
    """An answer with BODY as its body, and whether the connection stays open."""
    start = b"HTTP/1.1 100 Continue\r\n\r\n" * draw(st.integers(0, 2)) + b"HTTP/1.1 200 OK\r\nX-Any: a\r\n"
    way = draw(st.sampled_from(["length", "chunks", "close"]))
    if way == "length":
        return start + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, True
    if way == "close":
        return start + b"\r\n" + BODY, False
    cuts = sorted(draw(st.sets(st.integers(1, len(BODY) - 1), max_size=6)))
    chunks = [BODY[a:b] for a, b in itertools.pairwise([0, *cuts, len(BODY)])]
    extension = draw(st.sampled_from([b"", b";a=b", b" ; a"]))
    framed = b"".join(b"%X%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    trailers = draw(st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]))
    return start + b"transfer-encoding: Chunked\r\n\r\n" + framed + b"0\r\n" + trailers + b"\r\n", True


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    return [data[a:b] for a, b in itertools.pairwise([0, *sorted(places), len(data)]) if b > a]


@given(framed(), st.data())
def test_an_answer_is_complete_in_any_framing_and_split(answer: tuple[bytes, bool], draw: st.DataObject) -> None:
    raw, keep_alive = answer
    everywhere = st.just(range(1, len(raw)))
    pieces = cut(raw, draw.draw(everywhere | st.lists(st.integers(0, len(raw)), max_size=8)))
    connection, arrivals, failed = exchange(pieces)
    assert failed is None
    assert (connection.response.status, connection.response.body()) == (200, BODY)
    assert connection.reusable == keep_alive
    assert len(connection.response.ends) == arrivals
    assert connection.response.ends[-1] == len(connection.response.pieces)


@given(framed(), st.data())
def test_a_truncated_answer_fails(answer: tuple[bytes, bool], draw: st.DataObject) -> None:
    raw, self_delimiting = answer
    kept = draw.draw(st.integers(0, len(raw) - 1 if self_delimiting else raw.index(b"\r\nX-Any")))
    connection, _, failed = exchange([raw[:kept]] if kept else [])
    assert failed is not None
    assert failed.kind == ("cut" if kept else "reset")
    assert not connection.reusable


@settings(max_examples=300)
@given(
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]),
    st.lists(
        st.binary(max_size=20) | st.sampled_from([b"\r\n", b"5\r\n", b"ffffffff\r\n", b"0\r\n", b"Content-Length: "])
    ),
)
def test_garbage_gives_an_answer_or_an_error(start: bytes, pieces: list[bytes]) -> None:
    connection, arrivals, failed = exchange([start, *pieces])
    assert len(connection.response.ends) <= arrivals
    assert failed is None or failed.kind in ("malformed", "cut", "reset")


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n12",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000 + b"HTTP/1.1 200\r\n" + b"a" * http.MAX_HEAD,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (http.MAX_BODY + 1),
    ],
    ids=range(11),
)
def test_invalid_or_endless_http_is_malformed_at_once(raw: bytes) -> None:
    _, _, failed = exchange([raw], closes=False)
    assert failed is not None
    assert failed.kind == "malformed"


def test_an_arrival_has_the_time_at_which_the_kernel_received_it_however_late_it_is_read() -> None:
    sent_ns = 0

    def serve() -> None:
        nonlocal sent_ns
        peer, _ = listener.accept()
        with peer:
            peer.recv(100)
            time.sleep(0.05)
            sent_ns = time.monotonic_ns()
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")

    async def read_late() -> int | None:
        pool, stamps = Pool([parse_base(f"http://127.0.0.1:{listener.getsockname()[1]}")], 1, 1), []
        connection = await pool.connect(0)
        answer = asyncio.ensure_future(connection.exchange(b"GET", lambda _, at_ns: stamps.append(at_ns)))
        await asyncio.sleep(0)
        time.sleep(0.2)  # the loop is stalled while the answer arrives
        await answer
        await pool.close()
        return stamps[0]

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        arrived_ns = asyncio.run(read_late())
        thread.join()
    assert arrived_ns is not None
    assert 0 <= (arrived_ns - sent_ns) / 1e9 < 0.1


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
TOKEN = b'data: {"choices": [{"text": "a"}]}\n\n'
ROLE = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
LIMIT = http.SILENCE_CHECKS


@pytest.mark.parametrize(
    ("head", "between", "fails_at"),
    [
        (b"", [b"HTTP/1.1 100 Continue\r\n\r\n"], LIMIT),
        (b"", [b"HTTP/1.1 200 OK\r\nA: b\r\n"], LIMIT),
        (HEAD, [b": wait\n\n"], LIMIT),
        (HEAD, [ROLE], LIMIT),
        (HEAD, [b'{"a": 1,'], LIMIT),
        (HEAD, [b"data: what\n\n"], LIMIT),
        (HEAD, [TOKEN], None),
        # The limit begins anew with each token, which may arrive in several parts, or between other events.
        (HEAD, [ROLE] * (LIMIT - 1) + [TOKEN], None),
        (HEAD, [*[b""] * (LIMIT - 4), TOKEN[:9], TOKEN[9:20], TOKEN[20:], ROLE * 40], None),
        (HEAD, [TOKEN, *[ROLE] * 99], LIMIT),
        (HEAD, [ROLE, TOKEN[:9], TOKEN[9:], *[ROLE] * 99], LIMIT + 2),
    ],
)  # fmt: skip
def test_a_request_in_which_no_token_arrives_for_the_read_timeout_fails(
    head: bytes, between: list[bytes], fails_at: int | None
) -> None:
    """Between two checks of the silence one of these parts arrives, in turn."""

    async def play() -> tuple[str, int] | None:
        connection = http.Connection(memoryview(buffer := bytearray(http.READ_SIZE)), http.Held())
        connection.connection_made(Wire())
        task = asyncio.ensure_future(connection.exchange(b"", lambda *_: None))
        for check, part in zip(range(4 * LIMIT), itertools.cycle(between), strict=False):
            await asyncio.sleep(0)
            if task.done():
                failed = task.exception()
                assert isinstance(failed, RequestFailed)
                return failed.kind, check - 1
            data = part if check else head + part
            buffer[: len(data)] = data
            connection.buffer_updated(len(data))
            connection.check_silence()
        task.cancel()
        return None

    assert asyncio.run(play()) == (None if fails_at is None else ("timeout", fails_at))
