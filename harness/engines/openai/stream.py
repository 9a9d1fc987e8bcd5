"""Parse a server's answer: server-sent events, text, tokens in each arrival, token usage and finish reason."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from harness.engines.openai.usage import Usage
from harness.errors import RequestFailed

LONG = 1 << 20
"""Longest error text. It is cut to the length that is stored when it has no secrets any more."""
DONE = b"[DONE]"
"""Data of the last event of an OpenAI stream."""
_TEXTS = ("text", "thinking", "reasoning", "summary", "content", "function", "name", "arguments")
"""Fields of the parts of an answer that hold text, or parts with text."""
_BLANK_LINE, _BLANK_LINE_OF_LF = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}"), re.compile(rb"\n\n")
"""Of any body, and of one without a CR, in a fifth of the time."""
_TEXT = re.compile(rb'"(?:text|content)": ?"((?:[^"\\\n]|\\.)*)"')


@dataclass(slots=True)
class Response:
    """An answer, complete or up to the point where the connection failed."""

    status: int = 0
    """0 if the status line did not arrive."""
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    """The body without HTTP framing: one piece per chunk if it was sent in chunks, else one piece per read."""
    ends: list[int] = field(default_factory=list)
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

    def arrivals(self) -> list[int]:
        """Number of the arrival, from 0, with each piece."""
        found, before = list[int](), 0
        for arrival, end in enumerate(self.ends):
            if end == before + 1:  # the usual case
                found.append(arrival)
            else:
                found += [arrival] * (end - before)
            before = end
        return found


def events(body: bytes, ends: Sequence[int]) -> list[tuple[bytes, bytes, int]]:
    r"""The type and data of each server-sent event, and the piece (from 0) that contained its last byte.

    `ends` are the byte offsets in `body` at which the pieces end. Parsing follows the WHATWG HTML standard, 9.2.6:
    lines end in CRLF, LF or CR; a blank line ends an event; several data lines are joined by LF; comments and other
    fields are ignored, as are events without data and an unfinished last event. The type is usually empty.

    >>> events(b"data: 1\n\n: hello\n\nevent: x\ndata: 2\r\ndata:3\r\n\r\ndata: cut", [5, 49, 55])
    [(b'', b'1', 1), (b'x', b'2\n3', 1)]
    """
    start = 3 if body.startswith(b"\xef\xbb\xbf") else 0
    found = []
    for blank in (_BLANK_LINE if b"\r" in body else _BLANK_LINE_OF_LF).finditer(body, start):
        block, start = body[start : blank.start()], blank.end()
        kind, lines = b"", []
        for line in block.splitlines():
            name, _, value = line.partition(b":")
            if name == b"data":
                lines.append(value.removeprefix(b" "))
            elif name == b"event":
                kind = value.strip()
        if any(lines):
            found.append((kind, b"\n".join(lines), bisect.bisect_left(ends, start)))
    return found


def uniform_events(pieces: Sequence[bytes]) -> tuple[int, int, list[str]] | None:
    r"""The range (first, last) of pieces that are single events differing only in their text, and the texts.

    Most of a stream consists of such events; this parses them without a Python loop over JSON documents. None if there
    is no such range.

    >>> uniform_events([b'data: {"choices":[{"text":"%b"}]}\n\n' % text for text in (b"a", b"", b"c")] + [b"x"])
    (0, 3, ['a', '', 'c'])
    """
    example = pieces[len(pieces) // 2] if len(pieces) > 3 else b""
    one_line = example.startswith(b"data:") and example.endswith(b"\n\n") and example.count(b"\n") == 2
    text = _TEXT.search(example)
    if text is None or not one_line or b"\r" in example:
        return None
    before, after = example[: text.start(1)], example[text.end(1) :]
    first = next(i for i, piece in enumerate(pieces) if piece.startswith(before))
    last = next(i for i in range(len(pieces), first, -1) if pieces[i - 1].endswith(after))
    start, stop = len(before), -len(after)
    texts = [piece[start:stop] for piece in pieces[first:last]]
    same = before + (after + before).join(texts) + after == b"".join(pieces[first:last])
    if not same or not (first == 0 or pieces[first - 1].endswith(b"\n\n")):
        return None
    try:
        event, strings = _decode(pieces[first][5:]), _decode_texts(b'["%b"]' % b'","'.join(texts))
    except NOT_JSON:
        return None
    return (first, last, strings) if len(strings) == last - first and _is_text(event, strings[0]) else None


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
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_FILTERED = re.compile("filter|safety|refus|block|prohibit", re.IGNORECASE)
"""Finish reasons of an answer that was withheld."""
_THOUGHT = re.compile("think|thought|reason")
"""Fields of a delta, and types of the parts of a content, that hold reasoning."""


class Answer:
    """A parsed answer to a request for `asked` tokens, and the tokens in each of its arrivals.

    An event with text, reasoning or a tool call counts as one token, or as the number of token ids in it. An event with
    only a role, or with nothing, counts as none, unless the usage says otherwise (`_place`). Tokens count for the
    arrival that contained the event's last byte.
    """

    usage = Usage()

    def __init__(self, arrivals: int, asked: int) -> None:
        self.counts = [0] * arrivals
        """Tokens in each arrival."""
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.output_tokens: int | None = None
        """Output tokens by the server's count; None if not reported."""
        self.hidden_tokens = 0
        """Tokens that the usage counts and that were not sent in any form."""
        self._asked, self._choices = asked, 1
        self._refused = self._done = self._reasoning_shown = False
        self._end: int | None = None
        """The event with the finish reason."""
        # Of each event with a choice, in order: tokens; text, reasoning and tool calls; number of the arrival.
        self._tokens: list[int] = []
        self._shown: list[str] = []
        self._arrivals: list[int] = []
        self._stated: list[tuple[int, int]] = []
        """Of each usage with output tokens: the last event until then, and the output tokens."""

    def read(self, response: Response, streamed: bool = True) -> None:
        """Parse an answer. Raises RequestFailed; the counts and texts before the error are kept."""
        try:
            if streamed:
                self._read_stream(response)
            else:  # all its tokens arrive with the last byte
                self._parse(response.body(), len(self.counts) - 1)
                if not self._tokens:
                    raise RequestFailed("error", error_message(response.body()))
            self._finish()
        except RecursionError:
            raise RequestFailed("malformed", "the answer's JSON is nested too deep") from None
        finally:
            counts = self.counts
            for arrival, tokens in zip(self._arrivals, self._tokens, strict=True):
                counts[arrival] += tokens

    def _read_stream(self, response: Response) -> None:
        pieces, arrivals = response.pieces, response.arrivals()
        first, last, texts = uniform_events(pieces) or (0, 0, [])
        self._read_events(pieces[:first], arrivals)
        self.text += texts
        self._shown += texts
        self._tokens += map(bool, texts)
        self._arrivals += arrivals[first:last]
        self._read_events(pieces[last:], arrivals[last:])  # some servers send the usage after [DONE]
        if not self._done and self.finish_reason is None:
            raise RequestFailed("cut", "the stream ended without [DONE] and without a finish_reason")

    def _read_events(self, pieces: Sequence[bytes], arrivals: Sequence[int]) -> None:
        ends = [*itertools.accumulate(map(len, pieces))]
        for kind, data, piece in events(b"".join(pieces), ends):
            self._parse(data, arrivals[piece], kind)

    def _parse(self, data: bytes, arrival: int, kind: bytes = b"") -> None:
        """Record one event. Events of types that hold no choice, such as pings, are passed over."""
        if data.strip() == DONE:
            self._done = True
            return
        try:
            event = _decode(data)
        except NOT_JSON as wrong:
            if kind == b"error":
                raise RequestFailed("error", error_message(data)) from None
            if kind not in (b"", b"message"):
                return
            raise RequestFailed("malformed", f"{wrong} in {data[:LONG]!r}") from None
        failed, usage = event.error, _timed(event.timings) if event.timings else {}
        if isinstance(of_groq := (event.x_groq or {}).get("usage"), dict):
            usage |= of_groq
        if event.choices:
            shown, tokens = "", 0
            for choice in event.choices:
                text, seen = self._read(choice)
                shown, tokens, failed = shown + text, tokens + seen, failed or choice.error
                usage |= choice.usage or {}
            self._tokens.append(tokens)
            self._shown.append(shown)
            self._arrivals.append(arrival)
        if usage := usage | (event.usage or {}):
            stated = Usage(usage)
            self.usage = self.usage.updated(stated)
            if stated.output:
                self._stated.append((len(self._tokens) - 1, stated.output))
        if failed is None and event.choices is None:
            says = event.object is event.type is None and (event.message or event.detail)
            if says or "error" in (event.object, event.type) or kind == b"error":
                failed = error_message(data)
        if failed is not None:
            raise RequestFailed("error", _error_text(failed or event.message or event.detail))

    def _read(self, choice: _Choice) -> tuple[str, int]:
        """Record one choice of an event: what it shows, and its number of tokens."""
        self._choices = max(self._choices, choice.index + 1)
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason
            self._end = len(self._tokens)
        text, shown, ids, made = choice.text or "", "", choice.token_ids or [], list[Any]()
        if (delta := choice.delta or choice.message) is not None:
            text, thought = _content(delta.get("content"))
            forms = (value for key, value in delta.items() if _THOUGHT.search(key))
            reasoning = thought or next(filter(None, map(text_of, forms)), "")  # some servers send it in two forms
            self._reasoning_shown |= bool(reasoning)
            made = [delta[key] for key in ("tool_calls", "function_call") if delta.get(key)]
            shown = reasoning + text_of(made)
            self._refused |= bool(delta.get("refusal"))
        if text:
            self.text.append(text)
        self.token_ids += ids
        return text + shown, len(ids) or bool(text or shown or made)

    def _finish(self) -> None:
        """Place the tokens that no event showed. Raises RequestFailed for an aborted, withheld or empty answer."""
        if self.finish_reason in ("abort", "error"):
            raise RequestFailed(self.finish_reason, "the server aborted the request")
        shown, stated = sum(self._tokens), self.usage.output or 0
        withheld = self._refused or _FILTERED.search(self.finish_reason or "")
        if withheld or not shown:
            text = f"{shown} tokens were shown; finish_reason {self.finish_reason}, usage {stated} tokens"
            raise RequestFailed("filtered" if withheld else "empty", text)
        self._asked *= self._choices
        self.output_tokens = self._total(shown)
        if (self.output_tokens or 0) > shown:
            self._place(self.output_tokens or 0, shown)

    def _total(self, seen: int) -> int | None:
        """Output tokens by the usage; None if the server states none, or stated them before the last token."""
        total = self.usage.output
        if not total or total >= seen or not self._stated:
            return total or None
        if any(self._tokens[self._stated[-1][0] + 1 :]):
            return None
        each = sum(tokens for _, tokens in self._stated)
        return each if seen <= each <= max(self._asked, seen) else total  # some usages count one event each

    def _place(self, total: int, seen: int) -> None:
        """Add the tokens of `total` beyond those `seen` to the events, and count the hidden ones.

        The end token belongs to the event with the finish reason, one token to each event without a text between the
        first with one and the end. If the text has fewer bytes than tokens, the reasoning was not sent, or events
        without a text come in place of most of the missing ones before the first text, tokens were hidden: they were
        made before the first that was shown. The others arrived in groups, and longer texts hold more of them. A usage
        above both what was asked for and what was shown is not believed.
        """
        tokens, stopped = self._tokens, self.finish_reason not in (None, "length")  # the last token is an end token
        reasoning = 0 if self._reasoning_shown else self.usage.reasoning
        most = max(self._asked, seen + stopped) + reasoning
        missing = min(total, most) - seen
        shown = [event for event, count in enumerate(tokens) if count]
        if self._arrivals[shown[0]] < self._arrivals[shown[-1]] or missing == len(shown) == 1:
            end = len(tokens) if self._end is None else self._end
            blank = [event for event in range(shown[0], end) if not tokens[event]]
            if stopped and not tokens[end]:
                blank.insert(0, end)
            for event in blank[: max(missing, 0)]:
                tokens[event] = 1
                missing -= 1
        if missing <= 0:
            return
        sizes = [len(self._shown[event].encode()) for event in shown]
        too_short = sum(sizes) < sum(tokens[event] for event in shown) + missing
        if too_short and total > most:
            return
        # One event has the role. A parser that held tokens back shows them together, in a long text.
        stripped = len(shown) > 2 and 2 * (shown[0] - 1) >= missing > 1 and sizes[0] <= 2 * statistics.median(sizes)
        self.hidden_tokens = missing if too_short or stripped else min(missing, reasoning)
        tokens[shown[0]] += self.hidden_tokens
        self._spread(shown, sizes, missing - self.hidden_tokens)

    def _spread(self, shown: Sequence[int], sizes: Sequence[int], missing: int) -> None:
        """Add `missing` tokens to the events that are shown, as their usage says, else in proportion to their bytes."""
        stated = dict(self._stated)
        if all(event in stated for event in shown):
            more: list[float] = [b - a - 1 for a, b in itertools.pairwise([0, *(stated[event] for event in shown)])]
        else:
            per_byte = (len(shown) + missing) / (sum(sizes) or 1)
            more = [size * per_byte - 1 for size in sizes]
        weights = [max(0.0, each) for each in more]
        weights = weights if any(weights) else [1.0] * len(shown)
        ends = [round(missing * each / sum(weights)) for each in itertools.accumulate(weights, initial=0.0)]
        for event, (before, after) in zip(shown, itertools.pairwise(ends), strict=True):
            self._tokens[event] += after - before


def last_token(pieces: list[bytes]) -> int:
    r"""Number of the last piece, from 0, that ends an event with a token; -1 if none does.

    >>> token = b'data: {"choices": [{"text": "a"}]}\n\n'
    >>> last_token([token, b": wait\n\n", token[:9], token[9:], token[:9]]), last_token([token[9:], b"{}"])
    (3, -1)
    """
    for tail in (pieces[-1:], pieces[-16:], pieces):  # nearly always the last event holds one
        answer = Answer(len(tail), 0)
        with contextlib.suppress(RequestFailed):
            answer._read_stream(Response(200, {}, tail, list(range(1, len(tail) + 1))))
        if found := [piece for piece, tokens in zip(answer._arrivals, answer._tokens, strict=True) if tokens]:
            return len(pieces) - len(tail) + found[-1]
    return -1


def _is_text(event: _Event, text: str) -> bool:
    """Whether an event holds this text and nothing else that is read."""
    choice = event.choices[0] if event.choices else _Choice()
    if choice.delta is None:
        return event == _Event([_Choice(text=text)], object=event.object)
    present = {key: value for key, value in choice.delta.items() if value is not None and key != "role"}
    return present == {"content": text} and event == _Event([_Choice(delta=choice.delta)], object=event.object)


def _timed(timings: Mapping[str, Any]) -> dict[str, Any]:
    """The counts in llama.cpp's timings under the names of a usage. Its `prompt_n` is without what the cache had."""
    cached, prompt, made = (timings.get(f"{name}_n") for name in ("cache", "prompt", "predicted"))
    if isinstance(prompt, int) and isinstance(cached, int):
        prompt += cached
    return {"prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": made}


def _content(content: Any) -> tuple[str, str]:
    """The text of a content, and the reasoning in it: a list holds parts of both."""
    if not isinstance(content, list):
        return text_of(content), ""
    thought = [part for part in content if isinstance(part, dict) and _THOUGHT.search(str(part.get("type")))]
    return text_of([part for part in content if part not in thought]), text_of(thought)


def text_of(part: Any) -> str:
    """The text of a string, of a part of a content, or of a list of these.

    >>> text_of([{"type": "thinking", "thinking": [{"text": "so"}]}, {"type": "text", "text": " be it"}])
    'so be it'
    """
    if isinstance(part, list):
        return "".join(map(text_of, part))
    if isinstance(part, dict):
        return "".join(text_of(part.get(key)) for key in _TEXTS)
    return part if isinstance(part, str) else ""


def error_message(body: bytes) -> str:
    """The error message in a server's answer, in any of the usual forms.

    >>> [error_message(body) for body in (b'{"error": {"message": "too long"}}', b'{"error": "busy"}', b"<html>")]
    ['too long', 'busy', '<html>']
    """
    with contextlib.suppress(*NOT_JSON):
        answer = msgspec.json.decode(body)
        if isinstance(answer, dict):
            return _error_text(answer.get("error") or answer.get("message") or answer.get("detail") or answer)
    return body[:LONG].decode(errors="replace").strip()


def _error_text(error: object) -> str:
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        error = error["message"]
    return ("" if error is None else error if isinstance(error, str) else json.dumps(error, default=str))[:LONG]
