"""An HTTP/1.1 client for measuring: persistent connections, arrivals stamped by the kernel, bounded sizes.

During an answer each read costs the search for the end of the answer. The content is parsed later. A server that
decodes in steps sends the tokens of all streams at once, and the last of 256 is read some milliseconds after it has
arrived: the kernel's time of its arrival does not depend on this process.
"""

import asyncio
import contextlib
import functools
import re
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from harness.engines.base import Arrived
from harness.engines.openai.stream import Response, last_token
from harness.errors import RequestFailed

MAX_HEAD = 64 << 10
"""Maximum bytes of a status line with headers, and of trailers."""
MAX_BODY = 64 << 20
"""Maximum bytes of an answer's body, with PIECE_SIZE for each piece."""
MAX_HELD = 512 << 20
"""Maximum bytes of all answers that wait to be parsed or are still arriving, counted in the same way."""
PIECE_SIZE = 64
"""Bytes that a piece takes in memory beside its content."""
BYTES_OF_A_PIECE = 1 << 10
"""Bytes of the largest answer for each piece that it may have: tokens that never end come in small pieces."""
LAST_CHUNK = b"0\r\n\r\n"
READ_SIZE = 256 << 10
"""Maximum bytes of one read from a socket."""
SILENCE_CHECKS = 8
"""Checks per read timeout: a timeout is detected at most 1/8 of it late."""
_TIMESPEC = struct.Struct("@ll")
_TLS_RECORDS = b"\x15\x03", b"\x16\x03"
"""How an answer of TLS to a plain request begins: an alert, or a handshake."""
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: .*)?")
_CRLF = re.compile(rb"\r\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]{0,9};[^\r\n]{0,256})?[ \t]{0,9}")
_CHUNK_LINE_START = re.compile(rb"(?:[0-9A-Fa-f]{1,8}(?:[ \t]{0,9};[^\r\n]{0,256})?[ \t]{0,9}\r?)?")


@functools.lru_cache(maxsize=256)
def _parsed(head: bytes) -> tuple[int, Mapping[bytes, bytes], bool, bool, int | None]:
    """Status, headers by name in lower case, whether the connection is kept and the body chunked, the body's bytes.

    `head` is without the blank line. The size is None if the last chunk or the end of the connection ends the body.
    Raises ValueError for what is not HTTP.
    """
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
    return status, headers, keep_alive, chunked, size


@functools.lru_cache(maxsize=1024)
def _chunk_size(line: bytes) -> int:
    if (match := _CHUNK_LINE.fullmatch(line)) is None:
        raise ValueError(f"not a chunk size: {line[:MAX_HEAD]!r}")
    return int(match[1], 16)


def _whole_chunks(data: bytes) -> list[bytes] | None:
    """Stated sizes and contents in turn, and a 0 if the last chunk is there too; None if the data are not only that.

    Without a Python loop, for the usual case: no chunk has a CRLF inside, and most are of one size.
    """
    found = _CRLF.split(data)  # in half the time of bytes.split
    if found[-1] or len(found) < 3:
        return None
    del found[-2 if found[-3:] == [b"0", b"", b""] else -1 :]
    stated = set(zip(found[:-1:2], map(len, found[1::2]), strict=False))
    try:
        return found if all(size == int(digits, 16) > 0 for digits, size in stated) else None
    except ValueError:
        return None


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
        self._held, self._most, self._most_pieces = held, MAX_BODY, 0
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[RequestFailed | None] | None = None
        self._arrived: Arrived | None = None
        self._reset()
        self.stale = False
        """Closed without a byte: a reused connection that the server had closed before it read the request."""

    async def exchange(self, data: bytes, arrived: Arrived, most: int = MAX_BODY) -> Response:
        """Send a request and wait for the end of its answer. `arrived(1, at_ns)` is called first on each read.

        Raises RequestFailed, also for a body of more than `most` bytes; `response` then has what was received.
        """
        self._reset()
        self._waiter = asyncio.get_running_loop().create_future()
        self._most, self._most_pieces, self._arrived = min(most, MAX_BODY), most // BYTES_OF_A_PIECE, arrived
        self._transport.write(data)
        try:
            if failed := await self._waiter:
                raise failed
        finally:
            self._arrived = self._waiter = None
        return self.response

    def _reset(self) -> None:
        self._consume = self._head
        self._rest, self._left = b"", 0
        self._size = self._token_at = 0
        self._checked: list[int] = []
        """Number of pieces at each check of the silence since piece number `_token_at`, the last known with a token."""
        self.response = Response()
        """What was received so far."""
        self.reusable = False

    def release(self) -> None:
        """Keep nothing of the answer, as an idle connection would until its next request."""
        self.response, self._rest = Response(), b""

    def close(self) -> None:
        """Abort the connection, so that the server notices at once."""
        self.reusable = False
        self._transport.abort()

    def check_silence(self) -> None:
        """Called SILENCE_CHECKS times per read timeout: fails an exchange that received no token for that long.

        Other bytes may never end: interim answers, headers, comments, events without a token. They are
        read for tokens only after a silence, or once in that time.
        """
        if self._waiter is None:
            return
        if (pieces := len(self.response.pieces)) > self._most_pieces:
            self._fail(
                "malformed", f"{pieces:,} pieces of an answer without an end, for the tokens that were asked for"
            )
        self._checked.append(pieces)
        if len(self._checked) > SILENCE_CHECKS:
            token_at = self._token_at + last_token(self.response.pieces[self._token_at :])
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
        if self._arrived is None:  # bytes without a request
            self.close()
            return
        self._arrived(1, None if self._sock is None else self._sock.arrived_ns)
        try:
            self._consume(bytes(self._buffer[:size]))
        except ValueError as wrong:
            self._fail("malformed", str(wrong))
        self.response.ends.append(len(self.response.pieces))

    def eof_received(self) -> None:
        if self._consume == self._add_piece:
            self._finish(reusable=False)

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        if not self.response.ends:
            self.stale = error is None or isinstance(error, ConnectionError)  # the request was lost in the socket
            self._fail("reset", str(error or "the server closed the connection before it answered"))
        elif error is not None and not isinstance(error, ssl.SSLError):
            self._fail("reset", str(error))
        self._fail("cut", "the server closed the connection in the middle of its answer")

    # States of the parser: `_consume` is the current one.

    def _head(self, data: bytes) -> None:
        data = self._rest + data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            status, headers, keep_alive, chunked, size = _parsed(data[: min(end, MAX_HEAD)])
            data = data[end + 4 :]
            if status >= 200:
                self.response.status, self.response.headers, self._keep_alive = status, headers, keep_alive
                self._rest, self._left = b"", size or 0
                ending = self._add_piece if size is None else self._counted
                self._consume = self._chunked if chunked else ending
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
        data, at, left, pieces = self._rest + data, 0, self._left, self.response.pieces
        had = len(pieces)
        while at < len(data):
            if not left:
                end = data.find(b"\r\n", at)
                if end < 0 or not (size := _chunk_size(data[at:end])):
                    break
                at, left = end + 2, size + 2
            end = at + left - 2
            if left > 2 and data[end : end + 2] == b"\r\n":  # the usual case: the whole chunk
                pieces.append(data[at:end])
                at, left = end + 2, 0
                if at < len(data) and len(pieces) == had + 1 and (whole := _whole_chunks(data[at:])):
                    pieces += whole[1::2]
                    at = len(data) - len(LAST_CHUNK) * (len(whole) % 2)
                continue
            part, content = data[at : at + left], max(left - 2, 0)
            if part[:content]:
                pieces.append(part[:content])
            if not b"\r\n"[-left:].startswith(part[content:]):
                raise ValueError("a chunk is longer than its stated size")
            at, left = at + len(part), left - len(part)
        self._left, self._rest = left, data[at:]
        self._grow(at, len(pieces) - had)
        if not (rest := self._rest):
            return
        line, complete, _ = rest.partition(b"\r\n")
        if not complete:
            if not _CHUNK_LINE_START.fullmatch(rest):
                raise ValueError(f"not a chunk size: {rest[:MAX_HEAD]!r}")
        elif (end := rest.find(b"\r\n\r\n", len(line))) >= 0:
            self._finish(self._keep_alive and end + 4 == len(rest))
        elif len(rest) > MAX_HEAD:
            raise ValueError(f"the trailers of the answer exceed {MAX_HEAD} bytes")

    def _add_piece(self, data: bytes) -> None:
        self.response.pieces.append(data)
        self._grow(len(data))

    def _grow(self, size: int, pieces: int = 1) -> None:
        self._size += size
        self.response.kept += size + PIECE_SIZE * pieces
        self._held.size += size + PIECE_SIZE * pieces
        if self.response.kept > self._most:
            raise ValueError(f"the answer exceeds {self._most:,} bytes, the limit for the tokens that were asked for")
        if self._held.size > MAX_HELD:
            raise ValueError(f"the answers that are not parsed yet exceed {MAX_HELD:,} bytes in all")

    def _finish(self, reusable: bool = False, failed: RequestFailed | None = None) -> None:
        self.reusable, self._arrived = reusable, None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(failed)

    def _fail(self, kind: str, message: str) -> None:
        self._finish(failed=RequestFailed(kind, message))
