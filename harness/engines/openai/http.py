"""An HTTP/1.1 client for measuring: persistent connections, arrivals stamped by the kernel, bounded sizes.

During an answer each read costs the search for the end of the answer. The content is parsed later. A server that
decodes in steps sends the tokens of all streams at once, and the last of 256 is read some milliseconds after it has
arrived: the kernel's time of its arrival does not depend on this process.
"""

import asyncio
import contextlib
import functools
import itertools
import re
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from harness.engines.base import Arrived
from harness.errors import RequestFailed

MAX_HEAD = 64 << 10
"""Maximum bytes of a status line with headers, and of trailers."""
MAX_BODY = 64 << 20
"""Maximum bytes of an answer's body, with PIECE_SIZE for each piece."""
MAX_HELD = 512 << 20
"""Maximum bytes of all answers that wait to be parsed or are still arriving, counted in the same way."""
PIECE_SIZE = 64
"""Bytes that a piece takes in memory beside its content."""
READ_SIZE = 256 << 10
"""Maximum bytes of one read from a socket."""
SILENCE_CHECKS = 8
"""Checks per read timeout: a timeout is detected at most 1/8 of it late."""
_TIMESPEC = struct.Struct("@ll")
_TLS_RECORDS = b"\x15\x03", b"\x16\x03"
"""How an answer of TLS to a plain request begins: an alert, or a handshake."""
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: .*)?")
_CRLF = re.compile(rb"\r\n")
_CHUNK_HEAD = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\r\n]{0,256})?[ \t]*\r\n")
_CHUNK_HEAD_START = re.compile(rb"(?:[0-9A-Fa-f]{1,8}(?:[ \t]*;[^\r\n]{0,256})?[ \t]*\r?)?")


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    keep_alive: bool
    chunked: bool
    length: int | None
    """Bytes of the body. None: the last chunk or the end of the connection ends the body."""


@functools.lru_cache(maxsize=256)
def _parsed(head: bytes) -> _Head:
    """Parse a status line and headers, given without the blank line. Raises ValueError if they are not HTTP."""
    line, _, rest = head.partition(b"\r\n")
    match = _STATUS.fullmatch(line)
    if match is None:
        raise ValueError(f"not an HTTP answer: {line!r}")
    status = int(match[1])
    fields = (field.partition(b":") for field in rest.split(b"\r\n"))
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    chunked = headers.get(b"transfer-encoding", b"").lower().endswith(b"chunked")
    length = b"0" if status in (204, 304) else headers.get(b"content-length")
    if chunked or length is None:
        size = None
    elif length.isdigit() and len(length) < 16 and int(length) <= MAX_BODY:
        size = int(length)
    else:
        raise ValueError(f"the answer's Content-Length is {length!r}")
    keep_alive = line.startswith(b"HTTP/1.1") and headers.get(b"connection", b"").lower() != b"close"
    return _Head(status, headers, keep_alive, chunked, size)


def retry_after_s(headers: Mapping[bytes, bytes], now_s: float) -> float | None:
    """How long a rejected request should wait, at least 0.1 s; None if the server does not say so.

    Retry-After holds seconds or a date (RFC 9110, 10.2.3), retry-after-ms milliseconds. `now_s` is Unix time.

    >>> [retry_after_s({b"retry-after": value}, 50.0) for value in (b"2", b"Thu, 01 Jan 1970 00:01:00 GMT", b"soon")]
    [2.0, 10.0, None]
    >>> retry_after_s({b"retry-after": b"Thu, 01 Jan 99999999999999999999 00:01:00 GMT"}, 50.0) is None
    True
    """
    with contextlib.suppress(ValueError, OverflowError):
        if (value := headers.get(b"retry-after-ms")) is not None:
            return max(0.1, float(value) / 1e3)
        if (value := headers.get(b"retry-after")) is not None:
            digits = value.replace(b".", b"", 1).isdigit()
            return max(0.1, float(value) if digits else parsedate_to_datetime(value.decode()).timestamp() - now_s)
    return None


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, complete or up to the point where the connection failed."""

    status: int
    """0 if the status line did not arrive."""
    headers: Mapping[bytes, bytes]
    pieces: Sequence[bytes]
    """The body without HTTP framing: one piece per chunk if it was sent in chunks, else one piece per read."""
    ends: Sequence[int]
    """Number of pieces received by the end of each arrival."""
    kept: int = 0
    """Bytes that the body takes in memory."""

    @property
    def coding(self) -> str | None:
        """The compression of the body; None: it is not compressed."""
        codings = b",".join([self.headers.get(name, b"") for name in (b"content-encoding", b"transfer-encoding")])
        if codings in (b",", b",chunked"):
            return None
        names = {each.strip() for each in codings.decode("latin-1").lower().split(",")} - {"", "identity", "chunked"}
        return ", ".join(sorted(names)) or None

    def body(self) -> bytes:
        return b"".join(self.pieces)

    def offsets(self) -> list[int]:
        """Bytes of the body received by the end of each arrival."""
        total = [0, *itertools.accumulate(map(len, self.pieces))]
        return [total[end] for end in self.ends]

    def arrivals(self) -> list[int]:
        """Number of the arrival, from 0, with each piece."""
        counts = (after - before for before, after in itertools.pairwise([0, *self.ends]))
        return [arrival for arrival, count in enumerate(counts) for _ in range(count)]


class Stamped(socket.socket):
    """A TCP socket that keeps the time at which the bytes of the last read arrived."""

    arrived_ns: int | None = None
    """On CLOCK_MONOTONIC; None: the kernel tells none."""

    def recv_into(self, buffer: Any, *_sizes: int) -> int:
        size, stamps, _, _ = self.recvmsg_into((buffer,), 64)
        self.arrived_ns = None
        if stamps:
            seconds, ns = _TIMESPEC.unpack(stamps[0][2])  # on CLOCK_REALTIME
            now_ns = time.monotonic_ns()
            self.arrived_ns = now_ns - max(0, time.time_ns() - seconds * 1_000_000_000 - ns)
        return size


@dataclass(slots=True)
class Held:
    """Bytes of all answers that wait to be parsed or are still arriving."""

    size: int = 0


class Connection(asyncio.BufferedProtocol):
    """One connection to a server. It carries one exchange at a time."""

    def __init__(self, buffer: memoryview, held: Held, sock: Stamped | None = None) -> None:
        self._sock = sock
        self._buffer = buffer  # shared by all connections: each read is copied out before the next one
        self._held, self._most = held, MAX_BODY
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._arrived: Arrived | None = None
        self._headers: Mapping[bytes, bytes] = {}
        self._reset()
        self.stale = False
        """Closed cleanly without a byte: a reused connection that the server had closed before it read the request."""

    async def exchange(self, data: bytes, arrived: Arrived, most: int = MAX_BODY) -> Response:
        """Send a request and wait for the end of its answer. `arrived(1, at_ns)` is called first on each read.

        Raises RequestFailed, also for a body of more than `most` bytes; `response()` then returns what was received.
        """
        self._most = min(most, MAX_BODY)
        assert self._transport is not None
        self._waiter = asyncio.get_running_loop().create_future()
        self._arrived = arrived
        self._reset()
        self._transport.write(data)
        try:
            await self._waiter
        finally:
            self._arrived = self._waiter = None
        return self.response()

    def _reset(self) -> None:
        self._consume = self._head
        self._rest, self._left = b"", 0
        self._status = self._size = self._kept = self._token_at = 0
        self._checked: list[int] = []
        """Number of pieces at each check of the silence since piece number `_token_at`, the last known with a token."""
        self._pieces: list[bytes] = []
        self.ends: list[int] = []
        self.reusable = False

    def response(self) -> Response:
        return Response(self._status, self._headers, self._pieces, self.ends, self._kept)

    def close(self) -> None:
        """Abort the connection, so that the server notices at once."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def check_silence(self, last_token: Callable[[Sequence[bytes]], int]) -> None:
        """Called SILENCE_CHECKS times per read timeout: fails an exchange that received no token for that long.

        Other bytes may never end: interim answers, headers, comments, events without a token. `last_token` returns the
        last of some pieces that ends a token, -1 if none does. It is asked only after a silence, or once in that time.
        """
        if self._waiter is None:
            return
        self._checked.append(len(self._pieces))
        if len(self._checked) > SILENCE_CHECKS:
            token_at = self._token_at + last_token(self._pieces[self._token_at :])
            self._checked = [pieces for pieces in self._checked if pieces > token_at]
            self._token_at = max(self._token_at, token_at)
        if len(self._checked) > SILENCE_CHECKS:
            self._fail("timeout", f"no token arrived within engine.read_timeout_s, but {self._size:,} bytes of a body")

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.reusable = True

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        arrived = self._arrived
        if arrived is None:  # bytes without a request
            self.close()
            return
        arrived(1, None if self._sock is None else self._sock.arrived_ns)
        try:
            self._consume(bytes(self._buffer[:size]))
        except ValueError as wrong:
            self._fail("malformed", str(wrong))
        self.ends.append(len(self._pieces))

    def eof_received(self) -> None:
        if self._waiter is not None and self._consume == self._add_piece:
            self._finish(reusable=False)

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        if not self.ends:
            self.stale = error is None
            self._fail("reset", str(error or "the server closed the connection before it answered"))
        elif error is not None and not isinstance(error, ssl.SSLError):
            self._fail("reset", str(error))
        else:
            self._fail("cut", "the server closed the connection in the middle of its answer")

    # States of the parser: `_consume` is the current one.

    def _head(self, data: bytes) -> None:
        data = self._rest + data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = _parsed(data[: min(end, MAX_HEAD)])
            data = data[end + 4 :]
            if head.status >= 200:
                self._status, self._headers, self._keep_alive = head.status, head.headers, head.keep_alive
                self._rest, self._left = b"", head.length or 0
                ending = self._add_piece if head.length is None else self._counted
                self._consume = self._chunked if head.chunked else ending
                self._consume(data)
                return
        self._rest = data
        if len(data) > MAX_HEAD or not data.startswith(b"HTTP/1."[: len(data)]):
            if data.startswith(_TLS_RECORDS):
                raise ValueError("the server speaks TLS: write https:// in its address")
            raise ValueError(f"not HTTP, or headers of more than {MAX_HEAD} bytes: {data[:MAX_HEAD]!r}")

    def _counted(self, data: bytes) -> None:
        self._add_piece(data)
        if self._size > self._left:
            raise ValueError("the body is longer than its Content-Length")
        if self._size == self._left:
            self._finish(self._keep_alive)

    def _chunked(self, data: bytes) -> None:
        if not self._left:
            data = self._rest + data
            stated, _, chunk = data.partition(b"\r\n")
            size = len(chunk) - 2
            if size > 0 and stated.lower() == b"%x" % size and chunk.endswith(b"\r\n"):  # the most common case
                self._rest = b""
                self._add_piece(chunk[:-2])
                return
            # Also without a Python loop: complete chunks, none with a CRLF inside.
            pieces = _CRLF.split(data)  # in half the time of bytes.split
            ended = pieces[-3:] == [b"0", b"", b""]
            if ended:
                del pieces[-2:]
            if len(pieces) > 2 and (ended or pieces[-1] == b"") and _lengths_fit(pieces):
                self._rest = b""
                self._pieces += pieces[1::2]
                self._grow(len(data), len(pieces) // 2)
                if ended:
                    self._finish(self._keep_alive)
                return
        at = 0
        while True:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                self._add_piece(piece)
                at += len(piece)
                self._left -= len(piece)
            if 0 < self._left <= 2:
                ending = data[at : at + self._left]
                if not b"\r\n"[2 - self._left :].startswith(ending):
                    raise ValueError("a chunk is longer than its stated size")
                at += len(ending)
                self._left -= len(ending)
            if self._left:
                return
            header = _CHUNK_HEAD.match(data, at)
            if header is None:
                self._rest = data[at:]
                if not _CHUNK_HEAD_START.fullmatch(self._rest):
                    raise ValueError(f"not a chunk size: {self._rest[:MAX_HEAD]!r}")
                return
            if (size := int(header[1], 16)) == 0:
                if (end := data.find(b"\r\n\r\n", header.end() - 2)) >= 0:
                    self._finish(self._keep_alive and end + 4 == len(data))
                elif len(data) - at > MAX_HEAD:
                    raise ValueError(f"the trailers of the answer exceed {MAX_HEAD} bytes")
                self._rest = data[at:]
                return
            self._left, at = size + 2, header.end()

    def _add_piece(self, data: bytes) -> None:
        self._pieces.append(data)
        self._grow(len(data))

    def _grow(self, size: int, pieces: int = 1) -> None:
        self._size += size
        self._kept += size + PIECE_SIZE * pieces
        self._held.size += size + PIECE_SIZE * pieces
        if self._kept > self._most:
            raise ValueError(f"the answer exceeds {self._most:,} bytes, the limit for the tokens that were asked for")
        if self._held.size > MAX_HELD:
            raise ValueError(f"the answers that are not parsed yet exceed {MAX_HELD:,} bytes in all")

    def _finish(self, reusable: bool) -> None:
        self.reusable = reusable
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._arrived = None

    def _fail(self, kind: str, message: str) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(RequestFailed(kind, message))
        self._arrived = None


def _lengths_fit(pieces: list[bytes]) -> bool:
    """Whether every second piece has the length that the piece before it states, and none is the last chunk."""
    stated = set(zip(pieces[:-1:2], map(len, pieces[1::2]), strict=True))  # most chunks of a stream are alike
    try:
        return all(size == int(digits, 16) > 0 for digits, size in stated)
    except ValueError:
        return False
