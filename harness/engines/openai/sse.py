"""Server-sent events from the pieces of an answer that is over, and in which of its arrivals each was whole."""

from __future__ import annotations

import re
from collections.abc import Sequence

DONE = b"[DONE]"
"""The data of the event with which OpenAI's streams end."""

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_TEXT = re.compile(rb'"(?:text|content)": ?"((?:[^"\\\n]|\\.)*)"')


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
        block, start = body[start : blank.start()], blank.end()
        fields = (line.partition(b":") for line in block.splitlines())
        lines = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
        if any(lines):
            while ends[at] < start:
                at += 1
            found.append(b"\n".join(lines))
            arrivals.append(at)
    return found, arrivals


def lone(piece: bytes) -> bytes | None:
    r"""The data of a piece that is one event of one line, as servers mostly send them; None: it is something else.

    >>> lone(b"data: 1\n\n"), lone(b"data: 1\n\ndata: 2\n\n")
    (b' 1', None)
    """
    if piece.startswith(b"data:") and piece.endswith(b"\n\n") and piece.count(b"\n") == 2 and b"\r" not in piece:
        return piece[5:-2]
    return None


def alike(pieces: Sequence[bytes]) -> tuple[int, int, bytes] | None:
    r"""Which pieces (from, to) are lone events that differ in their text alone, and their texts as a JSON array.

    Most of a stream is of this kind, and is read at C's speed by this. None: too few are.

    >>> alike([b'data: {"text":"%b"}\n\n' % text for text in (b"a", b"", b"c")] + [b"data: [DONE]\n\n"])
    (0, 3, b'["a","","c"]')
    """
    example = pieces[len(pieces) // 2] if len(pieces) > 3 else b""
    text = _TEXT.search(example)
    if text is None or lone(example) is None:
        return None
    before, after = example[: text.start(1)], example[text.end(1) :]
    first, last = 0, len(pieces)
    while not pieces[first].startswith(before):
        first += 1
    while not pieces[last - 1].endswith(after):
        last -= 1
    texts = [piece[len(before) : -len(after)] for piece in pieces[first:last]]
    strings = b'","'.join(texts)
    if before + (after + before).join(texts) + after != b"".join(pieces[first:last]) or b"\n" in strings:
        return None
    return first, last, b'["%b"]' % strings
