"""What a server's answer says: its events, its tokens by arrival, its own counts, and how it ended."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from harness.engines.openai import http, stream
from harness.errors import RequestFailed

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


class _Fields(msgspec.Struct, gc=False):
    """What is read of a server's JSON; all else is passed over, and a value of another type is malformed."""


class _Delta(_Fields):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(_Fields):
    text: str | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None  # vLLM, with `return_token_ids: true` in the body


class _Details(_Fields):
    cached_tokens: int | None = None


class _Usage(_Fields):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek


class _Timings(_Fields):
    cache_n: int | None = None  # llama.cpp


class _Answer(_Fields):
    """An event of a stream, or an answer that is not streamed."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Any = None
    message: Any = None


_decode = msgspec.json.Decoder(_Answer).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Reading:
    """What an answer holds, and which of its arrivals held tokens.

    An event with a piece of text, of reasoning or of a tool call is one token, or as many as the token ids in it; one
    with a role only, or nothing, is none. It counts for the arrival that brought its last byte.
    """

    def __init__(self, arrivals: int) -> None:
        self.counts = [0] * arrivals
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.usage = _Usage()
        self.timings: _Timings | None = None
        self.finish_reason: str | None = None

    def stream(self, response: http.Response) -> None:
        """Raises RequestFailed; what was read before that stays."""
        if not self._quickly(response):
            self.text, self.token_ids = [], []
            found, arrivals = stream.events(response.body(), response.offsets())
            for data, arrival in zip(found, arrivals, strict=True):
                if data == stream.DONE:
                    break
                self.counts[arrival] += self._parse(data)
            else:
                if self.finish_reason is None:
                    raise RequestFailed("cut", "the stream ended without [DONE] and without a finish_reason")
        self._settle()

    def whole(self, body: bytes) -> None:
        """An answer in one piece: all its tokens came with its last byte. Raises RequestFailed."""
        self.counts[-1] = self._parse(body)
        self._settle()

    def cached_tokens(self) -> int | None:
        """Of the prompt, in whichever place the server says it; None: it does not."""
        if (details := self.usage.prompt_tokens_details) is not None and details.cached_tokens is not None:
            return details.cached_tokens
        if self.timings is not None:
            return self.timings.cache_n
        return self.usage.prompt_cache_hit_tokens

    def _quickly(self, response: http.Response) -> bool:
        """Read a stream of lone events, most of which are alike; False: it must be read with more care."""
        pieces = response.pieces
        if (found := stream.alike(pieces)) is None:
            return False
        first, last, strings = found
        others = [data for piece in (*pieces[:first], *pieces[last:]) if (data := stream.lone(piece)) is not None]
        if len(others) != first + len(pieces) - last or others[-1:] != [b" " + stream.DONE]:
            return False
        try:
            texts = _decode_texts(strings)
            one = _decode(stream.lone(pieces[first]) or b"")
            alone = _Answer([_Choice(text=texts[0])]), _Answer([_Choice(delta=_Delta(content=texts[0]))])
            if one not in alone or len(texts) != last - first:
                return False
            tokens = [self._parse(data) for data in others[:first]]
            tokens += [int(text != "") for text in texts]
            self.text += texts
            tokens += [self._parse(data) for data in others[first:-1]]
        except (RequestFailed, *_NOT_JSON):
            return False
        self.counts = [sum(tokens[before:after]) for before, after in itertools.pairwise((0, *response.ends))]
        return True

    def _parse(self, data: bytes) -> int:
        try:
            answer = _decode(data)
        except _NOT_JSON as wrong:
            raise RequestFailed("malformed", f"{wrong} in {data[:200]!r}") from None
        return self._event(answer)

    def _event(self, answer: _Answer) -> int:
        """How many tokens it holds."""
        if answer.usage is not None:
            self.usage = answer.usage
        if answer.timings is not None:
            self.timings = answer.timings
        if answer.error is not None:
            raise RequestFailed("error", _told(answer.error))
        if answer.choices is None:
            if answer.usage is None:
                raise RequestFailed("error", _told(answer.message) or "an event without choices")
            return 0
        tokens = 0
        for choice in answer.choices:
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
            piece = choice.text
            if (delta := choice.delta or choice.message) is not None:
                piece = delta.content
                if not piece and (delta.reasoning_content or delta.reasoning or delta.tool_calls):
                    tokens += 1
            if piece:
                self.text.append(piece)
                tokens += 1
            if choice.token_ids:
                self.token_ids += choice.token_ids
                tokens += len(choice.token_ids) - bool(piece)
        return tokens

    def _settle(self) -> None:
        """Where the server counts more tokens than there were events, spread them evenly over the arrivals with any.

        Then several came in an event, or some have no text of their own. Their gaps are not seen, and `unseen_gaps`
        says so. Where it counts fewer, both counts stay, and differ.
        """
        if self.finish_reason in ("abort", "error"):
            raise RequestFailed(self.finish_reason, "the server gave the request up")
        total, counted = self.usage.completion_tokens or 0, sum(self.counts)
        if 0 < counted < total:
            upto = [0, *(total * each // counted for each in itertools.accumulate(self.counts))]
            self.counts = [after - before for before, after in itertools.pairwise(upto)]


def message(body: bytes) -> str:
    """What a server says went wrong, in whichever of the usual forms; at most 500 characters.

    >>> message(b'{"error": {"message": "too long", "code": 400}}'), message(b'{"error": "busy"}'), message(b"<html>")
    ('too long', 'busy', '<html>')
    """
    with contextlib.suppress(*_NOT_JSON):
        said = msgspec.json.decode(body)
        if isinstance(said, dict):
            return _told(said.get("error") or said.get("message") or said.get("detail") or said)
    return body[:2000].decode(errors="replace").strip()[:500]


def _told(error: object) -> str:
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        error = error["message"]
    return ("" if error is None else error if isinstance(error, str) else json.dumps(error, default=str))[:500]
