"""Server-sent events from the bytes of an answer that is over, each with the place where it ended."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")


def events(body: bytes) -> Iterator[tuple[bytes, int]]:
    r"""The data of each event, and how many bytes of the body had come when it was whole.

    By the rules of the WHATWG's HTML standard (9.2.6): lines end in CRLF, LF or CR; a blank line ends an event;
    several data lines are joined by LF; comments and other fields are dropped; an event without data is none, and
    neither is what no blank line ends.

    >>> list(events(b"data: 1\n\n: hello\n\ndata: 2\r\ndata:3\r\n\r\ndata: cut"))
    [(b'1', 9), (b'2\n3', 37)]
    """
    start = 3 if body.startswith(b"\xef\xbb\xbf") else 0
    if b"\r" in body:
        for blank in _BLANK_LINE.finditer(body, start):
            if (data := _data(body[start : blank.start()])) is not None:
                yield data, blank.end()
            start = blank.end()
        return
    *blocks, _unfinished = body[start:].split(b"\n\n")
    for block in blocks:
        start += len(block) + 2
        if block.startswith(b"data: ") and b"\n" not in block:
            yield block[6:], start
        elif (data := _data(block)) is not None:
            yield data, start


def _data(block: bytes) -> bytes | None:
    """The data lines among the lines of an event; None: there is none."""
    lines = [
        value.removeprefix(b" ")
        for name, _, value in (x.partition(b":") for x in block.splitlines())
        if name == b"data"
    ]
    return b"\n".join(lines) if any(lines) else None
