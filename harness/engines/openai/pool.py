"""Addresses of servers, and the connections to them."""

import asyncio
import contextlib
import errno
import functools
import itertools
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from harness.engines.openai.http import READ_SIZE, SILENCE_CHECKS, Connection, Held, Stamped
from harness.errors import HarnessError, RequestFailed

_TIMESTAMPNS = 35
"""SO_TIMESTAMPNS of Linux, whose stream sockets tell the time at which the bytes of a read arrived (since 4.16)."""


@dataclass(frozen=True, slots=True)
class Base:
    """The address of a server."""

    url: str
    host: str
    """Value of the Host header."""
    address: tuple[str, int] | str
    """Host and port, or the path of a unix socket."""
    path: str
    """Path before `/v1`, usually empty."""
    tls: ssl.SSLContext | None = None
    name: str | None = None
    """Host name that the certificate must be issued for."""


def parse_base(url: str) -> Base:
    """Parse `http://host:port`, `https://…` or `unix:/path/of/socket`, with or without a trailing `/v1`.

    Certificates are verified against the system's authorities, or those in the file that SSL_CERT_FILE names. Raises
    HarnessError for any other form.

    >>> parse_base("http://box:8000/v1").address
    ('box', 8000)
    >>> parse_base("box:8000")
    Traceback (most recent call last):
        ...
    harness.errors.HarnessError: 'box:8000' is not the address of a server
      fix: write http://host:port, https://host:port or unix:/path/of/socket
    """
    fix = "write http://host:port, https://host:port or unix:/path/of/socket"
    wrong = HarnessError(f"'{url}' is not the address of a server", fix)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme == "unix" and parts.path.startswith("/"):
        return Base(url, "localhost", parts.path, "")
    if parts.scheme not in ("http", "https") or not parts.hostname or not (parts.netloc + parts.path).isprintable():
        raise wrong
    if "@" in parts.netloc or parts.query or parts.fragment:
        what = "the server's address contains credentials, a query or a fragment, and addresses are stored with the run"
        raise HarnessError(what, "give the key with engine.api_key_env")
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    address = parts.hostname, port or (443 if tls else 80)
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Base(url, parts.netloc, address, path, tls, parts.hostname if tls else None)


async def _connected(host: str, port: int) -> Stamped:
    """A socket with a connection to the first address that accepts one. Raises OSError."""
    loop, failed = asyncio.get_running_loop(), OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = Stamped(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
            return sock
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            failed = error
    raise failed


class Pool:
    """The connections to one or more servers, which are used in turn. Servers are numbered from 0."""

    def __init__(self, bases: Sequence[Base], connect_timeout_s: float, read_timeout_s: float) -> None:
        self._bases, self._connect_timeout_s, self._read_timeout_s = list(bases), connect_timeout_s, read_timeout_s
        self._free: list[list[Connection]] = [[] for _ in bases]
        self._all: set[Connection] = set()
        self.turns = itertools.cycle(range(len(bases)))
        self._buffer = memoryview(bytearray(READ_SIZE))
        self.held = Held()
        """Whoever has parsed a response takes its `kept` off."""
        self._silence_timer: asyncio.TimerHandle | None = None

    async def fill(self, count: int) -> None:
        """Open `count` connections, spread over the servers. Errors are ignored: requests will report them."""

        async def one(server: int) -> None:
            with contextlib.suppress(RequestFailed):
                self._free[server].append(await self.connect(server))

        for first in range(0, count, 64):  # a server's listen backlog holds at least 64
            numbers = range(first, min(count, first + 64))
            await asyncio.gather(*(one(number % len(self._bases)) for number in numbers))

    def take_idle(self, server: int) -> Connection | None:
        """An open, idle connection to that server, if there is one."""
        free = self._free[server]
        while free:
            if (connection := free.pop()).reusable:
                return connection
            self._all.discard(connection)
        return None

    def give_back(self, server: int, connection: Connection) -> None:
        """After an exchange: keep the connection if it is reusable, else close it."""
        connection.release()
        if connection.reusable:
            self._free[server].append(connection)
        else:
            connection.close()
            self._all.discard(connection)

    async def close(self) -> None:
        """Close all connections. The pool cannot be used afterwards."""
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        for connection in self._all:
            connection.close()
        await asyncio.sleep(0)  # transports close their sockets in the next iteration of the loop

    async def connect(self, server: int) -> Connection:
        """Open a connection. Raises RequestFailed: timeout, refused, certificate, tls or unreachable."""
        base, loop, sock = self._bases[server], asyncio.get_running_loop(), None
        if self._silence_timer is None:
            self._check_silence(loop)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                make = functools.partial(Connection, self._buffer, self.held)
                if isinstance(base.address, str):
                    _, connection = await loop.create_unix_connection(make, base.address)
                else:
                    sock = await _connected(*base.address)
                    # Resolve the name once: later connections use the address of this one.
                    self._bases[server] = replace(base, address=sock.getpeername()[:2])
                    _, connection = await loop.create_connection(
                        functools.partial(make, sock), sock=sock, ssl=base.tls, server_hostname=base.name
                    )
        except TimeoutError:
            raise RequestFailed("timeout", f"{base.url}: no connection within {self._connect_timeout_s} s") from None
        except ConnectionRefusedError as refused:
            raise RequestFailed("refused", f"{base.url}: {refused.strerror}") from None
        except ssl.SSLCertVerificationError as failed:
            raise RequestFailed("certificate", f"{base.url}: {failed.verify_message}") from None
        except ssl.SSLError as failed:
            raise RequestFailed("tls", f"{base.url}: {failed.reason or failed}") from None
        except OSError as failed:
            name = errno.errorcode.get(failed.errno or 0, "")
            raise RequestFailed("unreachable", f"{base.url}: {name} {failed.strerror or failed}") from None
        self._all.add(connection)
        return connection

    def _check_silence(self, loop: asyncio.AbstractEventLoop) -> None:
        for connection in self._all:
            connection.check_silence()
        self._silence_timer = loop.call_later(self._read_timeout_s / SILENCE_CHECKS, self._check_silence, loop)
