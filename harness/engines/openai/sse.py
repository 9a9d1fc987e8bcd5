"""Server-sent events from the bytes of an answer that is over, and in which of its arrivals each was whole."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

DONE = b"[DONE]"
"""The data of the event with which OpenAI's streams end."""

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_BEGIN = b"data: "
_NEXT = b"\n\n" + _BEGIN
_LAST = _NEXT + DONE + b"\n\n"


def events(body: bytes, ends: Sequence[int]) -> tuple[list[bytes], list[int]]:
    r"""The data of each event, and in which arrival (from 0) its last byte came; `ends` is where the arrivals ended.

    By the rules of the WHATWG's HTML standard (9.2.6): lines end in CRLF, LF or CR; a blank line ends an event;
    several data lines are joined by LF; comments and other fields are dropped; an event without data is none, and
    neither is what no blank line ends.

    >>> events(b"data: 1\n\n: hello\n\ndata: 2\r\ndata:3\r\n\r\ndata: cut", [5, 40, 46])
    ([b'1', b'2\n3'], [1, 1])
    """
    start = 3 if body.startswith(b"\xef\xbb\xbf") else 0
    at, found, arrivals = 0, [], []
    for blank in _BLANK_LINE.finditer(body, start):
        fields = (line.partition(b":") for line in body[start : blank.start()].splitlines())
        lines = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
        start = blank.end()
        if any(lines):
            while ends[at] < start:
                at += 1
            found.append(b"\n".join(lines))
            arrivals.append(at)
    return found, arrivals


def plain(body: bytes, ends: Sequence[int]) -> tuple[bytes, int, list[int]] | None:
    r"""As `events`, twenty times as fast, where every event is one line after `data: ` and the last one is DONE.

    The data comes as one JSON array, without DONE, and how many there are; the arrivals as how many of them had ended
    after each. None: the body is not of that form.

    >>> plain(b"data: {}\n\ndata: 2\n\ndata: [DONE]\n\n", [9, 10, 33])
    (b'[{},2]', 2, [0, 1, 2])
    """
    if not (body.startswith(_BEGIN) and body.endswith(_LAST)) or b"\r" in body:
        return None
    *parts, _done = body.split(_NEXT)  # the body is long: each copy of it counts
    sizes = np.fromiter(map(len, parts), int, len(parts)) + len(_NEXT)
    sizes[0] -= len(_BEGIN)
    parts[0] = b"[" + parts[0][len(_BEGIN) :]
    parts[-1] += b"]"
    data = b",".join(parts)
    if b"\n" in data:  # lines within an event, or between two
        return None
    return data, len(parts), sizes.cumsum().searchsorted(ends, "right").tolist()
