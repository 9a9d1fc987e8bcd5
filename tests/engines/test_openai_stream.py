"""Events of a stream and their tokens, against streams with known content."""

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
from harness.engines.openai.stream import Answer
from harness.errors import RequestFailed

DONE = b"data: [DONE]\n\n"


def event(*choices: Any, **fields: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": choices, **fields}).encode()


def word(text: str = " word", **fields: Any) -> bytes:
    return event({"index": 0, "text": text, "finish_reason": None, **fields})


def response_of(body: bytes, ends: Sequence[int]) -> Response:
    """The body as it arrived, with arrivals that end at these offsets."""
    pieces = [body[a:b] for a, b in itertools.pairwise([0, *ends])]
    return Response(200, {}, pieces, range(1, len(pieces) + 1))


def read(body: bytes, ends: Sequence[int] | None = None) -> Answer:
    response = response_of(body, ends or [len(body)])
    answer = Answer(len(response.ends))
    answer.read_stream(response)
    return answer


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b"data: 1\n\ndata: 2\n\n", [b"1", b"2"]),
        (b"data:1\r\n\r\ndata:2\r\n\r\n", [b"1", b"2"]),  # no space after the colon, as TGI sends it
        (b"data: 1\r\rdata: 2\r\r", [b"1", b"2"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),  # several lines
        (b": ping\n\ndata: 1\n\n: ping\n\n", [b"1"]),  # comments
        (b"id: 7\nevent: x\nretry: 9\ndata: 1\nid: 7\n\n", [b"1"]),  # duplicate ids, other fields
        (b"\xef\xbb\xbfdata: 1\n\n", [b"1"]),  # a byte order mark
        (b"\n\n\ndata: 1\n\n\n\ndata: 2\n\n", [b"1", b"2"]),  # blank lines between
        (b"data: 1\n\ndata: 2\n", [b"1"]),  # the last event is unfinished
        (b"data\n\ndata:\n\nnonsense\n\n", []),  # events without data
        (b"data: \xff\xfe\n\n", [b"\xff\xfe"]),
        (b"", []),
    ],
)
def test_events_are_parsed_as_the_standard_says(body: bytes, data: list[bytes]) -> None:
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
    """A body, the offsets at which its arrivals end, and (end offset, tokens) of each event."""
    ending = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    body, held = b"", []
    for piece, tokens in draw(st.lists(st.sampled_from(PIECES), max_size=8)):
        body += piece.replace(b"\n", ending)
        held.append((len(body), tokens))
    body += DONE
    cuts = draw(st.just(range(1, len(body))) | st.lists(st.integers(0, len(body)), max_size=12))
    return body, [*sorted(cuts), len(body)], held


@given(streams())
def test_a_token_counts_for_the_arrival_with_its_last_byte(
    stream: tuple[bytes, list[int], list[tuple[int, int]]],
) -> None:
    body, ends, held = stream
    true = [0] * len(ends)
    for place, tokens in held:
        true[next(i for i, end in enumerate(ends) if end >= place)] += tokens
    assert read(body, ends).counts == true


def test_a_uniform_stream_takes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM sends it: one event per chunk, several chunks in an arrival, the role first, the usage last."""
    monkeypatch.setattr(sse, "events", None)
    texts = [" a", "", '\n"', "ü", " e"]
    last = event({"index": 0, "text": " z", "finish_reason": "length"})
    pieces = [event({"delta": {"role": "assistant"}}), *map(word, texts), last, event(usage={"prompt_tokens": 4}), DONE]
    answer = Answer(4)
    answer.read_stream(Response(200, {}, pieces, [0, 3, 6, 9]))
    assert (answer.counts, answer.finish_reason, answer.usage.prompt_tokens) == ([0, 1, 3, 1], "length", 4)
    assert sorted(answer.text) == sorted([" a", '\n"', "ü", " e", " z", ""])


@given(st.lists(st.sampled_from([*PIECES, (word("a"), 1), (word("b"), 1), (word(""), 0), (word() * 2, 2)]), max_size=9))
def test_the_fast_path_counts_as_the_slow_one(parts: list[tuple[bytes, int]]) -> None:
    pieces = [*(piece for piece, _ in parts), DONE]
    answer = Answer(len(pieces))
    answer.read_stream(Response(200, {}, pieces, range(1, len(pieces) + 1)))
    assert answer.counts == [*(tokens for _, tokens in parts), 0]
    assert "".join(answer.text) == "".join(read(b"".join(pieces)).text)


@given(st.binary(max_size=60), st.integers(0, 3))
def test_a_damaged_stream_is_parsed_or_fails(noise: bytes, place: int) -> None:
    parts = [word(), word(), DONE]
    body = b"".join([*parts[:place], noise, *parts[place:]])
    try:
        answer = read(body)
    except RequestFailed as refused:
        kind = refused.kind
    else:
        kind = "read"
        assert sum(answer.counts) <= 2  # noise adds no token
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
def test_a_stream_fails_with_its_kind_of_error_and_keeps_the_counts_before_it(body: bytes, kind: str) -> None:
    answer = Answer(1)
    with pytest.raises(RequestFailed) as refused:
        answer.read_stream(response_of(body, [len(body)]))
    assert refused.value.kind == kind
    assert answer.counts == [body.startswith(word())]


def test_a_stream_without_done_is_complete_if_it_has_a_finish_reason() -> None:
    assert read(word() + LAST).counts == [1]


def test_a_line_of_ten_megabytes_is_one_token() -> None:
    body = word("x" * 10_000_000) + DONE
    assert read(body).counts == [1]


@pytest.mark.parametrize(
    ("usage_tokens", "counts"),
    [
        (3, [1, 1, 1]),  # equal
        (4, [1, 1, 2]),  # one more: the end-of-sequence token has no text
        (7, [2, 2, 3]),  # several per chunk: spread evenly, counted by `unseen_gaps`
        (2, [1, 1, 1]),  # fewer than chunks: both counts are kept, finding count-differs
        (None, [1, 1, 1]),
    ],
)
def test_usage_with_more_tokens_than_chunks_is_spread_over_the_arrivals(
    usage_tokens: int | None, counts: list[int]
) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": usage_tokens, "prompt_tokens_details": {"cached_tokens": 8}}
    parts = [word(), word(), word(), event(usage=usage), DONE]
    answer = read(b"".join(parts), list(itertools.accumulate(map(len, parts))))
    assert answer.counts == [*counts, 0, 0]
    assert (answer.usage.prompt_tokens, answer.cached_tokens()) == (9, 8)
