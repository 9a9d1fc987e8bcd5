"""Parse a server's answer: server-sent events, text, tokens in each arrival, token usage and finish reason."""

import contextlib
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from harness.engines.openai.http import Response
from harness.errors import RequestFailed

DONE = b"[DONE]"
"""Data of the last event of an OpenAI stream."""
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_TEXT = re.compile(rb'"(?:text|content)": ?"((?:[^"\\\n]|\\.)*)"')


def events(body: bytes, ends: Sequence[int]) -> tuple[list[bytes], list[int]]:
    r"""The data of each server-sent event, and the arrival (from 0) that contained its last byte.

    `ends` are the byte offsets in `body` at which the arrivals end. Parsing follows the WHATWG HTML standard, 9.2.6:
    lines end in CRLF, LF or CR; a blank line ends an event; several data lines are joined by LF; comments and other
    fields are ignored, as are events without data and an unfinished last event.

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


def single_event(piece: bytes) -> bytes | None:
    r"""The data of a piece that is exactly one event of one line, the usual form; None for any other piece.

    >>> single_event(b"data: 1\n\n"), single_event(b"data: 1\n\ndata: 2\n\n")
    (b' 1', None)
    """
    if piece.startswith(b"data:") and piece.endswith(b"\n\n") and piece.count(b"\n") == 2 and b"\r" not in piece:
        return piece[5:-2]
    return None


def uniform_events(pieces: Sequence[bytes]) -> tuple[int, int, bytes] | None:
    r"""The range (first, last) of pieces that are single events differing only in their text, and the texts as JSON.

    Most of a stream consists of such events; this parses them without a Python loop over JSON documents. None if there
    is no such range.

    >>> uniform_events([b'data: {"text":"%b"}\n\n' % text for text in (b"a", b"", b"c")] + [b"data: [DONE]\n\n"])
    (0, 3, b'["a","","c"]')
    """
    example = pieces[len(pieces) // 2] if len(pieces) > 3 else b""
    text = _TEXT.search(example)
    if text is None or single_event(example) is None:
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
    """The JSON fields that are read. Others are ignored; a value of the wrong type is an error."""


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


class _Event(_Fields):
    """An event of a stream, or a whole answer that is not streamed."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Any = None
    message: Any = None


_decode = msgspec.json.Decoder(_Event).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Answer:
    """A parsed answer, and the tokens in each of its arrivals.

    An event with text, reasoning or a tool call counts as one token, or as the number of token ids in it. An event with
    only a role, or with nothing, counts as none. Tokens count for the arrival that contained the event's last byte.
    """

    def __init__(self, arrivals: int) -> None:
        self.counts = [0] * arrivals
        """Tokens in each arrival."""
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.usage = _Usage()
        self.timings: _Timings | None = None
        self.finish_reason: str | None = None

    def read_stream(self, response: Response) -> None:
        """Parse a stream. Raises RequestFailed; the counts and texts before the error are kept."""
        if not self._read_uniform(response):
            self.text, self.token_ids = [], []
            found, arrivals = events(response.body(), response.offsets())
            for data, arrival in zip(found, arrivals, strict=True):
                if data == DONE:
                    break
                self.counts[arrival] += self._parse(data)
            else:
                if self.finish_reason is None:
                    raise RequestFailed("cut", "the stream ended without [DONE] and without a finish_reason")
        self._finish()

    def read_json(self, body: bytes) -> None:
        """Parse an answer that is not streamed: all its tokens arrive with the last byte. Raises RequestFailed."""
        self.counts[-1] = self._parse(body)
        self._finish()

    def cached_tokens(self) -> int | None:
        """Prompt tokens from the prefix cache, in the field of whichever server; None if not reported."""
        if (details := self.usage.prompt_tokens_details) is not None and details.cached_tokens is not None:
            return details.cached_tokens
        if self.timings is not None:
            return self.timings.cache_n
        return self.usage.prompt_cache_hit_tokens

    def _read_uniform(self, response: Response) -> bool:
        """Parse a stream of single events that are mostly uniform. False if the stream has another form."""
        pieces = response.pieces
        if (found := uniform_events(pieces)) is None:
            return False
        first, last, strings = found
        others = [data for piece in (*pieces[:first], *pieces[last:]) if (data := single_event(piece)) is not None]
        if len(others) != first + len(pieces) - last or others[-1:] != [b" " + DONE]:
            return False
        try:
            texts = _decode_texts(strings)
            event = _decode(single_event(pieces[first]) or b"")
            text_only = _Event([_Choice(text=texts[0])]), _Event([_Choice(delta=_Delta(content=texts[0]))])
            if event not in text_only or len(texts) != last - first:
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
        """Record one event, and return its number of tokens."""
        try:
            event = _decode(data)
        except _NOT_JSON as wrong:
            raise RequestFailed("malformed", f"{wrong} in {data[:200]!r}") from None
        if event.usage is not None:
            self.usage = event.usage
        if event.timings is not None:
            self.timings = event.timings
        if event.error is not None:
            raise RequestFailed("error", _error_text(event.error))
        if event.choices is None:
            if event.usage is None:
                raise RequestFailed("error", _error_text(event.message) or "an event has no choices")
            return 0
        tokens = 0
        for choice in event.choices:
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

    def _finish(self) -> None:
        """Raise RequestFailed if the server aborted; spread tokens of the usage that were not seen in events.

        If the usage has more tokens than the events, some event had several tokens, or some tokens had no text. The
        usage is then spread over the arrivals with tokens in proportion; the figure `unseen_gaps` counts the gaps that
        were not observed. If the usage has fewer tokens, both counts are kept.
        """
        if self.finish_reason in ("abort", "error"):
            raise RequestFailed(self.finish_reason, "the server aborted the request")
        total, counted = self.usage.completion_tokens or 0, sum(self.counts)
        if 0 < counted < total:
            cumulative = [0, *(total * each // counted for each in itertools.accumulate(self.counts))]
            self.counts = [after - before for before, after in itertools.pairwise(cumulative)]


def error_message(body: bytes) -> str:
    """The error message in a server's answer, in any of the usual forms; at most 500 characters.

    >>> [error_message(body) for body in (b'{"error": {"message": "too long"}}', b'{"error": "busy"}', b"<html>")]
    ['too long', 'busy', '<html>']
    """
    with contextlib.suppress(*_NOT_JSON):
        answer = msgspec.json.decode(body)
        if isinstance(answer, dict):
            return _error_text(answer.get("error") or answer.get("message") or answer.get("detail") or answer)
    return body[:2000].decode(errors="replace").strip()[:500]


def _error_text(error: object) -> str:
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        error = error["message"]
    return ("" if error is None else error if isinstance(error, str) else json.dumps(error, default=str))[:500]
