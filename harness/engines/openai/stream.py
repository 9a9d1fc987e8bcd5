"""Parse a server's answer: server-sent events, text, tokens in each arrival, token usage and finish reason."""

import contextlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from harness.engines.openai.http import Response
from harness.engines.openai.usage import Events, Usage, text_of
from harness.errors import RequestFailed

LONG = 1 << 20
"""Longest error text. It is cut to the length that is stored when it has no secrets any more."""
DONE = b"[DONE]"
"""Data of the last event of an OpenAI stream."""
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_TEXT = re.compile(rb'"(?:text|content)": ?"((?:[^"\\\n]|\\.)*)"')


def events(body: bytes, ends: Sequence[int]) -> list[tuple[bytes, bytes, int]]:
    r"""The type and data of each server-sent event, and the arrival (from 0) that contained its last byte.

    `ends` are the byte offsets in `body` at which the arrivals end. Parsing follows the WHATWG HTML standard, 9.2.6:
    lines end in CRLF, LF or CR; a blank line ends an event; several data lines are joined by LF; comments and other
    fields are ignored, as are events without data and an unfinished last event. The type is usually empty.

    >>> events(b"data: 1\n\n: hello\n\nevent: x\ndata: 2\r\ndata:3\r\n\r\ndata: cut", [5, 49, 55])
    [(b'', b'1', 1), (b'x', b'2\n3', 1)]
    """
    start = 3 if body.startswith(b"\xef\xbb\xbf") else 0
    at, found = 0, []
    for blank in _BLANK_LINE.finditer(body, start):
        block, start = body[start : blank.start()], blank.end()
        kind, lines = b"", []
        for name, _, value in (line.partition(b":") for line in block.splitlines()):
            if name == b"data":
                lines.append(value.removeprefix(b" "))
            elif name == b"event":
                kind = value.strip()
        if any(lines):
            while ends[at] < start:
                at += 1
            found.append((kind, b"\n".join(lines), at))
    return found


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
    start, end = len(before), -len(after)
    texts = [piece[start:end] for piece in pieces[first:last]]
    strings = b'","'.join(texts)
    if before + (after + before).join(texts) + after != b"".join(pieces[first:last]) or b"\n" in strings:
        return None
    return first, last, b'["%b"]' % strings


class _Fields(msgspec.Struct, gc=False):
    """The JSON fields that are read. Others are ignored; a value of the wrong type is an error."""


class _Choice(_Fields):
    index: int = 0
    text: str | None = None
    delta: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None  # vLLM, with `return_token_ids: true` in the body
    usage: dict[str, Any] | None = None  # Moonshot
    error: Any = None


class _Event(_Fields):
    """An event of a stream, or a whole answer that is not streamed."""

    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None  # llama.cpp
    x_groq: dict[str, Any] | None = None
    error: Any = None
    message: Any = None
    detail: Any = None
    object: Any = None
    type: Any = None


_decode = msgspec.json.Decoder(_Event).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_UNSTATED = Usage()
_FILTERED = re.compile("filter|safety|refus|block|prohibit", re.IGNORECASE)
"""Finish reasons of an answer that was withheld."""
_THOUGHT = re.compile("think|thought|reason")
"""Fields of a delta, and types of the parts of a content, that hold reasoning."""


class Answer:
    """A parsed answer to a request for `asked` tokens, and the tokens in each of its arrivals.

    An event with text, reasoning or a tool call counts as one token, or as the number of token ids in it. An event with
    only a role, or with nothing, counts as none, unless the usage says otherwise (`Events.place`). Tokens count for the
    arrival that contained the event's last byte.
    """

    def __init__(self, arrivals: int, asked: int) -> None:
        self.counts = [0] * arrivals
        """Tokens in each arrival."""
        self.asked = asked
        self._begin()

    def _begin(self) -> None:
        self.events, self.usage = Events(), _UNSTATED
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.output_tokens: int | None = None
        """Output tokens by the server's count; None if not reported."""
        self.hidden_tokens = 0
        """Tokens that the usage counts and that were not sent in any form."""
        self._refused = False
        self._choices = 1

    def read_stream(self, response: Response) -> None:
        """Parse a stream. Raises RequestFailed; the counts and texts before the error are kept."""
        if not self._read_uniform(response):
            self._begin()
            try:
                done = False
                for kind, data, arrival in events(response.body(), response.offsets()):
                    if data.strip() == DONE:
                        done = True
                    else:  # some servers send the usage after [DONE]
                        self._parse(data, arrival, kind)
                if not done and self.finish_reason is None:
                    raise RequestFailed("cut", "the stream ended without [DONE] and without a finish_reason")
            except RequestFailed:
                self._count()
                raise
        self._finish()

    def read_json(self, body: bytes) -> None:
        """Parse an answer that is not streamed: all its tokens arrive with the last byte. Raises RequestFailed."""
        self._parse(body, len(self.counts) - 1)
        if not self.events.tokens:
            raise RequestFailed("error", error_message(body))
        self._finish()

    def _read_uniform(self, response: Response) -> bool:
        """Parse a stream of single events that are mostly uniform. False if the stream has another form."""
        pieces = response.pieces
        if (found := uniform_events(pieces)) is None:
            return False
        first, last, strings = found
        others = [data for piece in (*pieces[:first], *pieces[last:]) if (data := single_event(piece)) is not None]
        if len(others) != first + len(pieces) - last or others[-1:] != [b" " + DONE]:
            return False
        arrivals: Sequence[int] = range(len(pieces))
        if response.ends != list(range(1, len(pieces) + 1)):  # not one piece in each arrival
            arrivals = []
            for arrival, end in enumerate(response.ends):
                arrivals += [arrival] * (end - len(arrivals))
        try:
            texts = _decode_texts(strings)
            event = _decode(single_event(pieces[first]) or b"")
            if not _is_text(event, texts[0]) or len(texts) != last - first:
                return False
            for data, arrival in zip(others[:first], arrivals, strict=False):
                self._parse(data, arrival)
            self.text += texts
            self.events.shown += texts
            self.events.tokens += map(bool, texts)
            self.events.arrivals += arrivals[first:last]
            for data, arrival in zip(others[first:-1], arrivals[last:], strict=False):
                self._parse(data, arrival)
        except (RequestFailed, *_NOT_JSON):
            return False
        return True

    def _parse(self, data: bytes, arrival: int, kind: bytes = b"") -> None:
        """Record one event. Events of types that hold no choice, such as pings, are passed over."""
        try:
            event = _decode(data)
        except _NOT_JSON as wrong:
            if kind == b"error":
                raise RequestFailed("error", error_message(data)) from None
            if kind not in (b"", b"message"):
                return
            raise RequestFailed("malformed", f"{wrong} in {data[:LONG]!r}") from None
        failed, said = event.error, _timed(event.timings) if event.timings else {}
        if isinstance(of_groq := (event.x_groq or {}).get("usage"), dict):
            said |= of_groq
        if event.choices:
            shown, tokens = "", 0
            for choice in event.choices:
                text, seen = self._read(choice)
                shown, tokens, failed = shown + text, tokens + seen, failed or choice.error
                said |= choice.usage or {}
            self.events.tokens.append(tokens)
            self.events.shown.append(shown)
            self.events.arrivals.append(arrival)
        if said := said | (event.usage or {}):
            stated = Usage(said)
            self.usage = self.usage.updated(stated)
            if stated.output:
                self.events.stated.append((len(self.events.tokens) - 1, stated.output))
        says = event.message or event.detail if event.object is None and event.type is None else None
        if failed is not None or (event.choices is None and (says or "error" in (event.object, event.type))):
            raise RequestFailed("error", _error_text(failed or event.message or event.detail))
        if kind == b"error" and event.choices is None:
            raise RequestFailed("error", error_message(data))

    def _read(self, choice: _Choice) -> tuple[str, int]:
        """Record one choice of an event: what it shows, and its number of tokens."""
        found = self.events
        self._choices = max(self._choices, choice.index + 1)
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason
            found.end = len(found.tokens)
        text, shown, ids = choice.text or "", "", choice.token_ids or []
        calls = False
        if (delta := choice.delta or choice.message) is not None:
            text, thought = _content(delta.get("content"))
            forms = (value for key, value in delta.items() if _THOUGHT.search(key))
            reasoning = thought or next(filter(None, map(text_of, forms)), "")  # some servers send it in two forms
            found.reasoning_shown |= bool(reasoning)
            made = [delta[key] for key in ("tool_calls", "function_call") if delta.get(key)]
            calls, shown = bool(made), reasoning + text_of(made)
            self._refused |= bool(delta.get("refusal"))
        if text:
            self.text.append(text)
        self.token_ids += ids
        return text + shown, len(ids) or bool(text or shown or calls)

    def _count(self) -> None:
        if len(self.counts) == 1:
            self.counts = [sum(self.events.tokens)]
            return
        self.counts = counts = [0] * len(self.counts)
        for arrival, tokens in zip(self.events.arrivals, self.events.tokens, strict=True):
            counts[arrival] += tokens

    def _finish(self) -> None:
        """Count the tokens in each arrival. Raises RequestFailed for one that was aborted or withheld, and for none."""
        if self.finish_reason in ("abort", "error"):
            self._count()
            raise RequestFailed(self.finish_reason, "the server aborted the request")
        shown = sum(self.events.tokens)
        withheld = self._refused or _FILTERED.search(self.finish_reason or "")
        if withheld or not shown:
            self._count()
            text = (
                f"{shown} tokens were shown; finish_reason {self.finish_reason}, usage {self.usage.output or 0} tokens"
            )
            raise RequestFailed("filtered" if withheld else "empty", text)
        self.events.stopped = self.finish_reason not in (None, "length")
        asked = self.asked * self._choices
        self.output_tokens = self.events.total(self.usage, asked)
        self.hidden_tokens = self.events.place(self.usage, self.output_tokens or 0, asked)
        self._count()


def last_token(pieces: Sequence[bytes]) -> int:
    r"""Number of the last piece, from 0, that ends an event with a token; -1 if none does.

    >>> token = b'data: {"choices": [{"text": "a"}]}\n\n'
    >>> last_token([token, b": wait\n\n", token[:9], token[9:], token[:9]]), last_token([token[9:], b"{}"])
    (3, -1)
    """
    for tail in (pieces[-1:], pieces[-16:], pieces):  # nearly always the last event holds one
        answer = Answer(len(tail), 0)
        with contextlib.suppress(RequestFailed):
            for kind, data, number in events(b"".join(tail), list(itertools.accumulate(map(len, tail)))):
                answer._parse(data, number, kind)
        found = answer.events
        if any(found.tokens):
            last = max(number for number, tokens in zip(found.arrivals, found.tokens, strict=True) if tokens)
            return len(pieces) - len(tail) + last
    return -1


def _is_text(event: _Event, text: str) -> bool:
    """Whether an event holds this text and nothing else that is read."""
    choice = event.choices[0] if event.choices else _Choice()
    delta = None if choice.delta is None else {"content": text}
    said = {key: value for key, value in (choice.delta or {}).items() if value is not None and key != "role"}
    plain = _Choice(text=text) if delta is None else _Choice(delta=choice.delta)
    return (delta is None or said == delta) and event == _Event([plain], object=event.object)


def _timed(timings: Mapping[str, Any]) -> dict[str, Any]:
    """The counts in llama.cpp's timings under the names of a usage. Its `prompt_n` is without what the cache had."""
    known = {name: n for name in ("cache", "prompt", "predicted") if isinstance(n := timings.get(f"{name}_n"), int)}
    prompt = known["prompt"] + known.get("cache", 0) if "prompt" in known else None
    return {"prompt_tokens": prompt, "cached_tokens": known.get("cache"), "completion_tokens": known.get("predicted")}


def _content(content: Any) -> tuple[str, str]:
    """The text of a content, and the reasoning in it: a list holds parts of both."""
    if not isinstance(content, list):
        return text_of(content), ""
    thought = [part for part in content if isinstance(part, dict) and _THOUGHT.search(str(part.get("type")))]
    return text_of([part for part in content if part not in thought]), text_of(thought)


def error_message(body: bytes) -> str:
    """The error message in a server's answer, in any of the usual forms.

    >>> [error_message(body) for body in (b'{"error": {"message": "too long"}}', b'{"error": "busy"}', b"<html>")]
    ['too long', 'busy', '<html>']
    """
    with contextlib.suppress(*_NOT_JSON):
        answer = msgspec.json.decode(body)
        if isinstance(answer, dict):
            return _error_text(answer.get("error") or answer.get("message") or answer.get("detail") or answer)
    return body[:LONG].decode(errors="replace").strip()


def _error_text(error: object) -> str:
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        error = error["message"]
    return ("" if error is None else error if isinstance(error, str) else json.dumps(error, default=str))[:LONG]
