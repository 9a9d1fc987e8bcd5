"""HTTP/1.1 for measuring: connections kept open, bytes stamped before anything is made of them, bounds on all of it.

While an answer comes, a read costs one stamp and the search for the answer's end; its content is parsed afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from harness.errors import HarnessError, RequestFailed

MOST_HEAD = 64 << 10
"""Bytes of a status line and headers, or of trailers."""
MOST_BODY = 64 << 20
"""Bytes of an answer."""
READ = 256 << 10
"""Bytes taken from a socket at a time, at most."""
SWEEPS = 8
"""A silence is noticed at most this part of the timeout late."""
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: .*)?")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\r\n]{0,256})?[ \t]*\r\n")
_CHUNK_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,8}(?:[ \t]*;[^\r\n]{0,256})?[ \t]*\r?)?")


@dataclass(frozen=True, slots=True)
class Base:
    """Where a server listens."""

    url: str
    host: str
    """For the Host header."""
    address: tuple[str, int] | str
    """Host and port, or the path of a unix socket."""
    path: str
    """Before `/v1`; mostly empty."""
    tls: ssl.SSLContext | None = None
    name: str | None = None
    """Which the certificate must be for."""


def base(url: str) -> Base:
    """A server from `http://host:port`, `https://…` or `unix:/path/of/socket`, with or without a `/v1` at its end.

    A certificate is checked against the system's authorities, or those that the variable SSL_CERT_FILE names.

    >>> base("http://box:8000/v1").address
    ('box', 8000)
    >>> base("box:8000")
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: 'box:8000' is not the address of a server
      fix: write http://host:port, https://host:port or unix:/path/of/socket
    """
    fix = "write http://host:port, https://host:port or unix:/path/of/socket"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise HarnessError(f"'{url}' is not the address of a server", fix) from None
    if parts.scheme == "unix" and parts.path.startswith("/"):
        return Base(url, "localhost", parts.path, "")
    if parts.scheme not in ("http", "https") or not parts.hostname or not (parts.netloc + parts.path).isprintable():
        raise HarnessError(f"'{url}' is not the address of a server", fix)
    if "@" in parts.netloc or parts.query:
        raise HarnessError("a server's address holds credentials or a query", "addresses are stored: use api_key_env")
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    address = parts.hostname, port or (443 if tls else 80)
    return Base(
        url, parts.netloc, address, parts.path.rstrip("/").removesuffix("/v1"), tls, parts.hostname if tls else None
    )


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    keep: bool
    """Whether the connection stays open."""
    chunked: bool
    length: int | None
    """Of the body; None: it ends with its last chunk, or with the connection."""


@functools.lru_cache(maxsize=256)
def _parsed(head: bytes) -> _Head:
    """A status line and headers, without the blank line. ValueError where they are not HTTP."""
    line, _, rest = head.partition(b"\r\n")
    match = _STATUS.fullmatch(line)
    if match is None:
        raise ValueError(f"not an HTTP answer: {line[:60]!r}")
    status = int(match[1])
    fields = (field.partition(b":") for field in rest.split(b"\r\n"))
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
    length = b"0" if status in (204, 304) else headers.get(b"content-length")
    if chunked or length is None:
        size = None
    elif length.isdigit() and len(length) < 16 and int(length) <= MOST_BODY:
        size = int(length)
    else:
        raise ValueError(f"the answer's Content-Length is {length[:40]!r}")
    keep = line.startswith(b"HTTP/1.1") and headers.get(b"connection", b"").lower() != b"close"
    return _Head(status, headers, keep, chunked, size)


@dataclass(frozen=True, slots=True)
class Response:
    """What came, all of it or until it broke off."""

    status: int
    """0: not even the head came."""
    headers: Mapping[bytes, bytes]
    pieces: Sequence[bytes]
    """The body without HTTP's framing, in the chunks in which it was sent, or else as it arrived."""
    ends: Sequence[int]
    """How many pieces there were after each arrival."""

    def body(self) -> bytes:
        return b"".join(self.pieces)

    def offsets(self) -> list[int]:
        """How long the body was after each arrival."""
        upto = [0, *itertools.accumulate(map(len, self.pieces))]
        return [upto[end] for end in self.ends]


class Connection(asyncio.BufferedProtocol):
    """One connection to a server, good for one exchange at a time."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer  # shared: what a read puts there is taken out before the next one
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._arrived: Callable[[int], None] | None = None
        self.silence = 0
        self._status = 0
        self._headers: Mapping[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._size = 0
        self.ends: list[int] = []
        self.reusable = False
        self.stale = False
        """Closed in good order, and nothing came: on a connection that was kept, before the server saw the request."""

    async def exchange(self, data: bytes, arrived: Callable[[int], None]) -> Response:
        """Send a request, and wait for the end of its answer; `arrived(1)` is called first thing when bytes have come.

        Raises RequestFailed; `response` is then what came by that time.
        """
        assert self._transport is not None
        self._waiter = asyncio.get_running_loop().create_future()
        self._arrived = arrived
        self._take = self._head
        self._rest = b""
        self._left = 0
        self.silence = self._status = 0
        self._pieces, self._size = [], 0
        self.ends = []
        self.reusable = False
        self._transport.write(data)
        try:
            await self._waiter
        finally:
            self._arrived = self._waiter = None
        return self.response()

    def response(self) -> Response:
        return Response(self._status, self._headers, self._pieces, self.ends)

    def close(self) -> None:
        """At once: the server is to see that nobody reads on."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def sweep(self, most: int) -> None:
        """Called now and then: gives an exchange up in which nothing came between `most` calls."""
        self.silence += 1
        if self.silence > most and self._waiter is not None:
            self._fail("timeout", "the server fell silent")

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.reusable = True

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        arrived = self._arrived
        if arrived is None:  # nothing was asked
            self.close()
            return
        arrived(1)
        self.silence = 0
        try:
            self._take(bytes(self._buffer[:size]))
        except ValueError as wrong:
            self._fail("malformed", str(wrong))
        self.ends.append(len(self._pieces))

    def eof_received(self) -> None:
        if self._waiter is not None and self._take == self._until_closed:
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

    # What is done with the bytes: `_take` is one of these.

    def _head(self, data: bytes) -> None:
        data = self._rest + data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = _parsed(data[: min(end, MOST_HEAD)])
            data = data[end + 4 :]
            if head.status >= 200:
                self._status, self._headers, self._keep = head.status, head.headers, head.keep
                self._rest, self._left = b"", head.length or 0
                ending = self._until_closed if head.length is None else self._counted
                self._take = self._chunked if head.chunked else ending
                self._take(data)
                return
        self._rest = data
        if len(data) > MOST_HEAD or not data.startswith(b"HTTP/1."[: len(data)]):
            raise ValueError(f"not an HTTP answer, or with headers of more than {MOST_HEAD} bytes: {data[:60]!r}")

    def _counted(self, data: bytes) -> None:
        self._keep_piece(data)
        if self._size > self._left:
            raise ValueError("the answer is longer than its Content-Length")
        if self._size == self._left:
            self._finish(self._keep)

    def _until_closed(self, data: bytes) -> None:
        self._keep_piece(data)

    def _chunked(self, data: bytes) -> None:
        if not self._left:
            data = self._rest + data
            # The common case, at C's speed: whole chunks without a CRLF inside are pieces as long as they say.
            pieces = data.split(b"\r\n")
            ended = pieces[-3:] == [b"0", b"", b""]
            if ended:
                del pieces[-2:]
            if len(pieces) > 2 and (ended or pieces[-1] == b"") and _lengths_fit(pieces):
                self._rest = b""
                self._pieces += pieces[1::2]
                self._grow(len(data))
                if ended:
                    self._finish(self._keep)
                return
        at = 0
        while True:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                self._keep_piece(piece)
                at += len(piece)
                self._left -= len(piece)
            if 0 < self._left <= 2:
                ending = data[at : at + self._left]
                if not b"\r\n"[2 - self._left :].startswith(ending):
                    raise ValueError("a chunk is longer than it says")
                at += len(ending)
                self._left -= len(ending)
            if self._left:
                return
            header = _CHUNK.match(data, at)
            if header is None:
                self._rest = data[at:]
                if not _CHUNK_BEGUN.fullmatch(self._rest):
                    raise ValueError(f"not the head of a chunk: {self._rest[:40]!r}")
                return
            if (size := int(header[1], 16)) == 0:
                if (end := data.find(b"\r\n\r\n", header.end() - 2)) >= 0:
                    self._finish(self._keep and end + 4 == len(data))
                elif len(data) - at > MOST_HEAD:
                    raise ValueError(f"the trailers of the answer exceed {MOST_HEAD} bytes")
                self._rest = data[at:]
                return
            self._left, at = size + 2, header.end()

    def _keep_piece(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._grow(len(piece))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MOST_BODY:
            raise ValueError(f"the answer exceeds {MOST_BODY} bytes")

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
    """Whether every second piece is as long as the one before it says, and none ends the answer."""
    try:
        sizes = list(map(int, pieces[:-1:2], itertools.repeat(16)))
    except ValueError:
        return False
    return 0 not in sizes and sizes == list(map(len, pieces[1::2]))


class Pool:
    """The connections to several servers, which take turns."""

    def __init__(self, bases: Sequence[Base], connect_timeout_s: float, read_timeout_s: float) -> None:
        self._bases, self._connect_timeout_s, self._read_timeout_s = list(bases), connect_timeout_s, read_timeout_s
        self._free: list[list[Connection]] = [[] for _ in bases]
        self._all: set[Connection] = set()
        self._turns = itertools.cycle(range(len(bases)))
        self._buffer = memoryview(bytearray(READ))
        self._sweeper: asyncio.TimerHandle | None = None

    async def fill(self, count: int) -> None:
        """Open so many connections beforehand, spread over the servers; one that is refused is left to its requests."""

        async def one(number: int) -> None:
            with contextlib.suppress(RequestFailed):
                self._free[number].append(await self._connect(number))

        for first in range(0, count, 64):  # not more at a time than a server's backlog holds
            numbers = range(first, min(count, first + 64))
            await asyncio.gather(*(one(number % len(self._bases)) for number in numbers))

    def turn(self) -> int:
        """Whose turn it is."""
        return next(self._turns)

    def idle(self, number: int) -> Connection | None:
        """An open connection to that server; None: there is none to spare."""
        free = self._free[number]
        while free:
            if (connection := free.pop()).reusable:
                return connection
            self._all.discard(connection)
        return None

    async def open(self, number: int) -> Connection:
        """A new one. Raises RequestFailed where it cannot be had."""
        return await self._connect(number)

    def give_back(self, number: int, connection: Connection) -> None:
        """After an exchange: kept where it can be used again, else closed."""
        if connection.reusable:
            self._free[number].append(connection)
        else:
            connection.close()
            self._all.discard(connection)

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in self._all:
            connection.close()
        self._all.clear()
        await asyncio.sleep(0)  # a closed transport lets go of its socket when the loop comes round
        self._free = [[] for _ in self._bases]

    async def _connect(self, number: int) -> Connection:
        here, loop = self._bases[number], asyncio.get_running_loop()
        if self._sweeper is None:
            self._sweep(loop)
        make = functools.partial(Connection, self._buffer)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if isinstance(here.address, str):
                    transport, connection = await loop.create_unix_connection(make, here.address)
                else:
                    transport, connection = await loop.create_connection(
                        make, *here.address, ssl=here.tls, server_hostname=here.name
                    )
                    # A name is looked up once: later connections go where this one went.
                    self._bases[number] = replace(here, address=transport.get_extra_info("peername")[:2])
        except TimeoutError:
            raise RequestFailed("timeout", f"{here.url}: no connection in {self._connect_timeout_s} s") from None
        except ConnectionRefusedError as refused:
            raise RequestFailed("refused", f"{here.url}: {refused.strerror}") from None
        except OSError as failed:
            raise RequestFailed("unreachable", f"{here.url}: {failed}") from None
        self._all.add(connection)
        return connection

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        for connection in self._all:
            connection.sweep(SWEEPS)
        self._sweeper = loop.call_later(self._read_timeout_s / SWEEPS, self._sweep, loop)
