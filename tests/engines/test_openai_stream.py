"""Events of a stream, and the tokens in them, against streams whose truth is known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.engines.openai import stream as sse
from harness.engines.openai.http import Response
from harness.engines.openai.stream import Reading
from harness.errors import RequestFailed

DONE = b"data: [DONE]\n\n"


def event(*choices: Any, **fields: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": choices, **fields}).encode()


def word(text: str = " word", **fields: Any) -> bytes:
    return event({"index": 0, "text": text, "finish_reason": None, **fields})


def came(body: bytes, ends: Sequence[int]) -> Response:
    """The body as it came in arrivals that ended there."""
    pieces = [body[a:b] for a, b in itertools.pairwise([0, *ends])]
    return Response(200, {}, pieces, range(1, len(pieces) + 1))


def read(body: bytes, ends: Sequence[int] | None = None) -> Reading:
    response = came(body, ends or [len(body)])
    reading = Reading(len(response.ends))
    reading.stream(response)
    return reading


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b"data: 1\n\ndata: 2\n\n", [b"1", b"2"]),
        (b"data:1\r\n\r\ndata:2\r\n\r\n", [b"1", b"2"]),  # no blank after the colon, as TGI writes it
        (b"data: 1\r\rdata: 2\r\r", [b"1", b"2"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),  # several lines
        (b": ping\n\ndata: 1\n\n: ping\n\n", [b"1"]),  # comments
        (b"id: 7\nevent: x\nretry: 9\ndata: 1\nid: 7\n\n", [b"1"]),  # duplicate ids, other fields
        (b"\xef\xbb\xbfdata: 1\n\n", [b"1"]),  # a byte order mark
        (b"\n\n\ndata: 1\n\n\n\ndata: 2\n\n", [b"1", b"2"]),  # blank lines between
        (b"data: 1\n\ndata: 2\n", [b"1"]),  # the last one is not over
        (b"data\n\ndata:\n\nnonsense\n\n", []),  # nothing in them
        (b"data: \xff\xfe\n\n", [b"\xff\xfe"]),
        (b"", []),
    ],
)
def test_events_are_told_apart_by_the_standard(body: bytes, data: list[bytes]) -> None:
    assert sse.events(body, [len(body)])[0] == data


PIECES = [
    (word("word"), 1),
    (word("\u2028 \n"), 1),
    (word("four", token_ids=[1, 2, 3, 4]), 4),
    (event({"delta": {"reasoning_content": "hm", "content": None}}), 1),
    (event({"delta": {"tool_calls": [{"index": 0}]}}), 1),
    (event({"delta": {"role": "assistant", "content": ""}}), 0),
    (event(), 0),
    (b": ping\n\n", 0),
]
"""Events, and the tokens in each."""


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[int], list[tuple[int, int]]]:
    """A body, where its arrivals ended, and where each event ended that held how many tokens."""
    ending = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    body, held = b"", []
    for piece, tokens in draw(st.lists(st.sampled_from(PIECES), max_size=8)):
        body += piece.replace(b"\n", ending)
        held.append((len(body), tokens))
    body += DONE
    cuts = draw(st.just(range(1, len(body))) | st.lists(st.integers(0, len(body)), max_size=12))
    return body, [*sorted(cuts), len(body)], held


@given(streams())
def test_a_token_counts_for_the_arrival_that_brought_its_last_byte(
    stream: tuple[bytes, list[int], list[tuple[int, int]]],
) -> None:
    body, ends, held = stream
    true = [0] * len(ends)
    for place, tokens in held:
        true[next(i for i, end in enumerate(ends) if end >= place)] += tokens
    assert read(body, ends).counts == true


def test_a_stream_that_can_be_read_quickly_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM sends it: an event a chunk, several chunks in an arrival, a role first, the usage last."""
    monkeypatch.setattr(sse, "events", None)
    texts = [" a", "", '\n"', "ü", " e"]
    last = event({"index": 0, "text": " z", "finish_reason": "length"})
    pieces = [event({"delta": {"role": "assistant"}}), *map(word, texts), last, event(usage={"prompt_tokens": 4}), DONE]
    reading = Reading(4)
    reading.stream(Response(200, {}, pieces, [0, 3, 6, 9]))
    assert (reading.counts, reading.finish_reason, reading.usage.prompt_tokens) == ([0, 1, 3, 1], "length", 4)
    assert sorted(reading.text) == sorted([" a", '\n"', "ü", " e", " z", ""])


@given(st.lists(st.sampled_from([*PIECES, (word("a"), 1), (word("b"), 1), (word(""), 0), (word() * 2, 2)]), max_size=9))
def test_the_quick_way_counts_as_the_careful_one(parts: list[tuple[bytes, int]]) -> None:
    pieces = [*(piece for piece, _ in parts), DONE]
    reading = Reading(len(pieces))
    reading.stream(Response(200, {}, pieces, range(1, len(pieces) + 1)))
    assert reading.counts == [*(tokens for _, tokens in parts), 0]
    assert "".join(reading.text) == "".join(read(b"".join(pieces)).text)


@given(st.binary(max_size=60), st.integers(0, 3))
def test_a_damaged_stream_is_read_or_refused(noise: bytes, place: int) -> None:
    parts = [word(), word(), DONE]
    body = b"".join([*parts[:place], noise, *parts[place:]])
    try:
        reading = read(body)
    except RequestFailed as refused:
        kind = refused.kind
    else:
        kind = "read"
        assert sum(reading.counts) <= 2  # noise is no token
    assert kind in ("read", "malformed", "cut")


LAST = event({"index": 0, "text": "", "finish_reason": "length"})


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (word() + b"data: {oops\n\n" + DONE, "malformed"),
        (word() + b'data: {"choices": 5}\n\n' + DONE, "malformed"),
        (word() + b'data: {"choices": [{"text": "\xff"}]}\n\n' + DONE, "malformed"),
        (b"data: " + b"[" * 100_000 + b"\n\n" + DONE, "malformed"),
        (word(), "cut"),  # neither [DONE] nor a finish_reason
        (b"", "cut"),
        (word() + b'data: {"error": {"message": "no room"}}\n\n' + DONE, "error"),
        (word() + b'data: {"object": "error", "message": "no room"}\n\n' + DONE, "error"),
        (word() + event({"finish_reason": "abort"}) + DONE, "abort"),
    ],
)
def test_what_is_wrong_with_a_stream_is_told_and_what_came_before_it_counts(body: bytes, kind: str) -> None:
    reading = Reading(1)
    with pytest.raises(RequestFailed) as refused:
        reading.stream(came(body, [len(body)]))
    assert refused.value.kind == kind
    assert reading.counts == [body.startswith(word())]


def test_a_stream_without_done_is_whole_where_it_says_why_it_ended() -> None:
    assert read(word() + LAST).counts == [1]


def test_a_line_of_ten_megabytes_is_one_token() -> None:
    body = word("x" * 10_000_000) + DONE
    assert read(body).counts == [1]


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        (3, [1, 1, 1]),  # agrees
        (4, [1, 1, 2]),  # one more at the end: it had no text, as an end-of-sequence token
        (7, [2, 2, 3]),  # several in a chunk: evenly, and `unseen_gaps` tells of them
        (2, [1, 1, 1]),  # fewer than chunks: both counts stay, and the finding count-differs tells
        (None, [1, 1, 1]),
    ],
)
def test_where_the_server_counts_more_tokens_than_chunks_they_share_them(counted: int | None, told: list[int]) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": counted, "prompt_tokens_details": {"cached_tokens": 8}}
    parts = [word(), word(), word(), event(usage=usage), DONE]
    reading = read(b"".join(parts), list(itertools.accumulate(map(len, parts))))
    assert reading.counts == [*told, 0, 0]
    assert (reading.usage.prompt_tokens, reading.cached_tokens()) == (9, 8)
