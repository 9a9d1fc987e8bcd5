"""What a server's answer says: its tokens by arrival, its own counts, how it ended, and what is wrong with it."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import msgspec

from harness.engines.openai import http, sse
from harness.errors import RequestFailed


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
            found, arrivals = sse.events(response.body(), response.offsets())
            for data, arrival in zip(found, arrivals, strict=True):
                if data == sse.DONE:
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
        if (found := sse.alike(pieces)) is None:
            return False
        first, last, strings = found
        others = [data for piece in (*pieces[:first], *pieces[last:]) if (data := sse.lone(piece)) is not None]
        if len(others) != first + len(pieces) - last or others[-1:] != [b" " + sse.DONE]:
            return False
        try:
            texts = _decode_texts(strings)
            one = _decode(sse.lone(pieces[first]) or b"")
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
