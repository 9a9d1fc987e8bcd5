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
from harness.engines.openai.stream import Answer, Response
from harness.errors import RequestFailed
from harness.model import MOST_TOKENS

DONE = b"data: [DONE]\n\n"


def event(*choices: Any, **fields: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": choices, **fields}).encode()


def word(text: str = " word", **fields: Any) -> bytes:
    return event({"index": 0, "text": text, "finish_reason": None, **fields})


def response_of(body: bytes, ends: Sequence[int]) -> Response:
    """The body as it arrived, with arrivals that end at these offsets."""
    pieces = [body[a:b] for a, b in itertools.pairwise([0, *ends])]
    return Response(200, {}, pieces, list(range(1, len(pieces) + 1)))


def read(body: bytes, ends: Sequence[int] | None = None, asked: int = 100) -> Answer:
    response = response_of(body, ends or [len(body)])
    answer = Answer(len(response.ends), asked)
    answer.read(response)
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
    assert [found for _, found, _ in sse.events(body, [len(body)])] == data


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
    for piece, tokens in [PIECES[0], *draw(st.lists(st.sampled_from(PIECES), max_size=8))]:
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
    decoded, decode = list[bytes](), sse._decode

    def decode_one(data: bytes) -> Any:
        decoded.append(data)
        return decode(data)

    monkeypatch.setattr(sse, "_decode", decode_one)
    texts = [" a", "", '\n"', "ü", " e"]
    last = event({"index": 0, "text": " z", "finish_reason": "length"})
    pieces = [event({"delta": {"role": "assistant"}}), *map(word, texts), last, event(usage={"prompt_tokens": 4}), DONE]
    pieces = [piece.replace(b'{"choices"', b'{"object": "text_completion", "choices"') for piece in pieces]
    answer = Answer(4, 100)
    answer.read(Response(200, {}, pieces, [0, 3, 6, 9]))
    assert (answer.counts, answer.finish_reason, answer.usage.input(None)) == ([0, 1, 3, 1], "length", 4)
    assert len(decoded) == 4  # one of the texts, the role, the last text and the usage
    assert sorted(answer.text) == sorted([" a", '\n"', "ü", " e", " z", ""])


@given(st.lists(st.sampled_from([*PIECES, (word("a"), 1), (word("b"), 1), (word(""), 0), (word() * 2, 2)]), max_size=9))
def test_the_fast_path_counts_as_the_slow_one(parts: list[tuple[bytes, int]]) -> None:
    parts = [(word(), 1), *parts]
    pieces = [*(piece for piece, _ in parts), DONE]
    answer = Answer(len(pieces), 100)
    answer.read(Response(200, {}, pieces, list(range(1, len(pieces) + 1))))
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
    assert kind in ("read", "malformed", "cut", "empty")


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
    answer = Answer(1, 100)
    with pytest.raises(RequestFailed) as refused:
        answer.read(response_of(body, [len(body)]))
    assert refused.value.kind == kind
    assert answer.counts == [body.startswith(word())]


def test_a_stream_without_done_is_complete_if_it_has_a_finish_reason() -> None:
    assert read(word() + LAST).counts == [1]


def test_a_line_of_ten_megabytes_is_one_token() -> None:
    body = word("x" * 10_000_000) + DONE
    assert read(body).counts == [1]


STOP = event({"index": 0, "text": "", "finish_reason": "stop"})
BLANK = word("")


def usage_of(tokens: int | None, **more: Any) -> bytes:
    usage = {"prompt_tokens": 9, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 8}, **more}
    return event(usage=usage)


def reasoning_tokens(count: int) -> dict[str, Any]:
    return {"completion_tokens_details": {"reasoning_tokens": count}}


@pytest.mark.parametrize(
    ("parts", "counts", "hidden"),
    [
        # the usage agrees, states fewer, or nothing: an event is a token
        ([word(), word(), word(), LAST, usage_of(3)], [1, 1, 1, 0, 0], 0),
        ([word(), word(), word(), LAST, usage_of(2)], [1, 1, 1, 0, 0], 0),
        ([word(), word(), word(), LAST, usage_of(None)], [1, 1, 1, 0, 0], 0),
        # an end token arrives with the finish reason; at the limit of the length there is none
        ([word(), word(), STOP, usage_of(3)], [1, 1, 1, 0], 0),
        ([word(), STOP, usage_of(2)], [1, 1, 0], 0),
        ([word(), word(), LAST, usage_of(3)], [1, 2, 0, 0], 0),
        # tokens without a text after the first: special tokens, and letters of several tokens
        ([BLANK, word(), BLANK, BLANK, word(), LAST, usage_of(4)], [0, 1, 1, 1, 1, 0, 0], 0),
        # groups: the first token alone, then three together, as a draft model makes them
        ([word("a" * 4), word("b" * 12), word("c" * 12), LAST, usage_of(7)], [1, 3, 3, 0, 0], 0),
        ([word(), word(), word(), STOP, usage_of(10)], [3, 3, 3, 1, 0], 0),
        # more tokens than bytes, or reasoning that was not sent: hidden before the first
        ([word("ab"), word("cd"), LAST, usage_of(9)], [8, 1, 0, 0], 7),
        ([word(), word(), LAST, usage_of(8, **reasoning_tokens(6))], [7, 1, 0, 0], 6),
        ([word(), word(), LAST, usage_of(2, reasoning_tokens=6, total_tokens=17)], [7, 1, 0, 0], 6),  # xAI
        # reasoning that was sent, in groups of two
        ([event({"delta": {"reasoning": " so"}})] * 3 + [LAST, usage_of(6, **reasoning_tokens(6))], [2, 2, 2, 0, 0], 0),
        # all in one arrival, as a parser of tool calls holds them back: nothing is known of their times
        ([event({"delta": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}), STOP, usage_of(9)],
         [9, 0, 0], 8),
        # a usage of more than was asked for (20) and shown
        ([word("a"), word("b"), LAST, usage_of(1000)], [1, 1, 0, 0], 0),
        ([word("a" * 40), word("b" * 40), LAST, usage_of(24)], [10, 10, 0, 0], 0),  # it may have gone a little too far
        ([word()] * 20 + [STOP, usage_of(21)], [1] * 21 + [0], 0),  # an end token after the limit
    ],
)  # fmt: skip
def test_tokens_of_the_usage_that_no_event_showed_are_placed(
    parts: list[bytes], counts: list[int], hidden: int
) -> None:
    parts = [*parts, DONE]
    answer = read(b"".join(parts), list(itertools.accumulate(map(len, parts))), asked=20)
    assert (answer.counts, answer.hidden_tokens) == ([*counts, 0], hidden)


@pytest.mark.parametrize(
    ("parts", "tokens"),
    [
        ([usage_of(1), word(), word(), word(), LAST], None),  # overtaken: said at the start
        ([word(), word(), usage_of(5), LAST], 5),  # before the end, of the whole answer
        ([word(usage=None), event({"text": "b"}, usage={"completion_tokens": 2}), LAST, usage_of(0)], 2),  # zeros last
        ([event({"text": "a"}, usage={"completion_tokens": 1}) for _ in range(4)] + [LAST], 4),  # one event each
        ([event({"text": "a"}, usage={"output_tokens": i}) for i in (1, 2, 3)] + [LAST], 3),
        ([word(), LAST, usage_of(-5)], None),  # no count
        ([word(), LAST, event(usage={"completion_tokens": "1"})], None),
        ([word(), LAST, event(usage={"completion_tokens": 1.0})], 1),
        ([word(), LAST, usage_of(MOST_TOKENS - 1)], MOST_TOKENS - 1),  # it can be stored, and is not believed
    ],
)
def test_the_usage_that_counts_is_the_last_that_says_something(parts: list[bytes], tokens: int | None) -> None:
    assert read(b"".join([*parts, DONE])).output_tokens == tokens


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5}}


@pytest.mark.parametrize(
    "parts",
    [
        [event({"text": "", "finish_reason": "length", "usage": USAGE}), DONE],  # Moonshot
        [event({"text": "", "finish_reason": "length"}, x_groq={"id": "r", "usage": USAGE}), DONE],
        [event({"text": "", "finish_reason": "length"}, usage=USAGE), DONE],
        [LAST, DONE, event(usage=USAGE)],
        [LAST, event(timings={"cache_n": 5, "prompt_n": 4, "predicted_n": 4, "prompt_ms": 2e10}), DONE],  # llama.cpp
        [LAST, event(usage=USAGE | {"total_duration": 5_000_000_000}), DONE],  # no count of tokens
    ],
)
def test_the_usage_is_read_wherever_a_server_puts_it(parts: list[bytes]) -> None:
    answer = read(b"".join([word(), word(), *parts]))
    assert (answer.output_tokens, answer.usage.input(None), answer.usage.cached) == (4, 9, 5)


PLACES = [
    ("usage",), ("usage", "completion_tokens"), ("usage", "prompt_tokens_details"), ("x_groq",), ("x_groq", "usage"),
    ("timings",), ("timings", "prompt_n"), ("timings", "cache_n"), ("error",), ("choices",), ("choices", 0),
    ("choices", 0, "delta"), ("choices", 0, "usage"), ("choices", 0, "token_ids"), ("choices", 0, "finish_reason"),
    *(("choices", 0, "delta", name) for name in ("content", "reasoning", "reasoning_details", "tool_calls", "refusal")),
]  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(PLACES), ANYTHING)
def test_a_field_of_any_type_is_read_or_fails(place: tuple[Any, ...], value: Any) -> None:
    said: Any = {
        "choices": [{"delta": {"content": " word"}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 1}, "x_groq": {"usage": {}}, "timings": {"prompt_n": 4, "cache_n": 5},
    }  # fmt: skip
    inner = said
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        answer = read(b"data: %b\n\n" % json.dumps(said).encode() + DONE)
    except RequestFailed:
        return
    assert sum(answer.counts) >= 0


def test_an_error_inside_a_choice_ends_the_answer() -> None:
    with pytest.raises(RequestFailed, match="out of memory"):
        read(word() + event({"delta": {}, "error": {"message": "out of memory"}, "finish_reason": "stop"}) + DONE)


def test_an_empty_finish_reason_is_none() -> None:
    with pytest.raises(RequestFailed, match="ended without"):
        read(event({"text": "a", "finish_reason": ""}) * 3)


@pytest.mark.parametrize("tokens", [MOST_TOKENS, 10**20, 2**70, 1e300])
@pytest.mark.parametrize("name", ["completion_tokens", "prompt_tokens", "total_tokens"])
def test_a_count_of_tokens_that_none_can_have_makes_the_answer_malformed(name: str, tokens: float) -> None:
    with pytest.raises(RequestFailed, match=f"the usage says {name}") as failed:
        read(b"".join([word(), LAST, event(usage={name: tokens}), DONE]))
    assert failed.value.kind == "malformed"


def test_a_usage_in_every_event_tells_how_many_tokens_it_holds() -> None:
    parts = [event({"text": "word" * 4}, usage={"completion_tokens": told}) for told in (1, 5, 7)]
    parts += [LAST, DONE]
    assert read(b"".join(parts), list(itertools.accumulate(map(len, parts)))).counts == [1, 4, 2, 0, 0]


@pytest.mark.parametrize(
    ("usage", "read_tokens", "cached"),
    [
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 61}}, 64, 61),
        ({"prompt_tokens": 40, "prompt_tokens_details": {"cached_tokens": 24}}, 64, 24),  # 64 ids were sent
        ({"prompt_tokens": 64, "prompt_tokens_details": {"cached_tokens": 48}}, 64, 48),
        ({"prompt_tokens": 71, "prompt_cache_hit_tokens": 0}, 71, 0),
        ({"input_tokens": 3, "cache_read_input_tokens": 51, "cache_creation_input_tokens": 10}, 64, 51),
        ({"input_tokens": 64, "input_tokens_details": {"cached_tokens": 0}}, 64, 0),
        ({"completion_tokens": 1}, None, None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None, None),  # no prompt has 0 tokens
        ({"prompt_tokens": -1, "prompt_tokens_details": {"cached_tokens": -1}}, None, None),
    ],
)
def test_input_tokens_hold_those_from_the_cache(usage: Any, read_tokens: int | None, cached: int | None) -> None:
    answer = read(word() + LAST + event(usage=usage) + DONE)
    assert (answer.usage.input(64), answer.usage.cached) == (read_tokens, cached)


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([], "empty"),
        ([event({"delta": {"role": "assistant", "content": None}})], "empty"),
        ([STOP, usage_of(0)], "empty"),
        ([STOP, usage_of(20, **reasoning_tokens(20))], "empty"),  # the limit was reached while it reasoned
        ([event({"text": "", "finish_reason": "content_filter"}), usage_of(0)], "filtered"),
        ([event({"delta": {"refusal": "I cannot."}}), STOP, usage_of(4)], "filtered"),
        ([b'event: ping\ndata: {"type": "ping"}\n\n'], "empty"),
        ([word(), word(), event({"text": "", "finish_reason": "content_filter"}), usage_of(2)], "filtered"),
        ([word(), event({"delta": {"refusal": "I cannot."}}), STOP, usage_of(4)], "filtered"),
    ],
)
def test_an_answer_without_a_token_or_withheld_from_then_on_has_failed(parts: list[bytes], kind: str) -> None:
    with pytest.raises(RequestFailed) as failed:
        read(b"".join([*parts, DONE]))
    assert failed.value.kind == kind


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning": "so"},
        {"reasoning_content": "so", "content": None, "tool_calls": []},
        {"reasoning_details": [{"type": "reasoning.text", "text": "so"}], "reasoning": "so"},
        {"reasoning_text": "so"},
        {"thinking": "so", "thinking_blocks": [{"type": "thinking", "thinking": "so", "signature": "s"}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "so"}]}]},
        {"content": [{"type": "text", "text": "so"}]},
        {"function_call": {"name": "f", "arguments": ""}},
        {"tool_calls": [{"index": 0, "function": {"arguments": "a"}}]},
    ],
)
def test_every_form_of_a_token_counts_once(delta: dict[str, Any]) -> None:
    answer = read(event({"delta": delta}) + word(" end") + LAST + DONE)
    assert sum(answer.counts) == 2
    assert "".join(answer.text) in (" end", "so end")


def test_several_choices_share_the_usage() -> None:
    two = [event({"index": 0, "text": " a"}, {"index": 1, "text": " b"})] * 3
    assert read(b"".join([*two, LAST, usage_of(6), DONE]), asked=3).counts == [6]


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("ping", '{"type": "ping"}', None),
        ("ping", "alive", None),
        ("message", "alive", "malformed"),
        ("error", "upstream timed out", "error"),
        ("error", '{"code": 500, "message": "upstream timed out"}', "error"),
    ],
)
def test_events_of_other_types_are_passed_over_but_errors(name: str, data: str, kind: str | None) -> None:
    body = word() + f"event: {name}\ndata: {data}\n\n".encode() + LAST + DONE
    if kind is None:
        assert read(body).counts == [1]
        return
    with pytest.raises(RequestFailed) as failed:
        read(body)
    assert failed.value.kind == kind
    assert kind != "error" or failed.value.message == "upstream timed out"


@pytest.mark.parametrize(
    ("before", "first", "hidden"),
    [
        ([BLANK] * 13, " so", 12),  # reasoning, stripped by a proxy that lets its events through
        ([BLANK] * 13, " so it was that he came and went, and then", 0),  # a parser held the tokens back
        ([BLANK] * 3, " so", 0),  # signs of life: the tokens came in groups
    ],
)
def test_events_without_a_text_before_the_first_stand_for_hidden_tokens(
    before: list[bytes], first: str, hidden: int
) -> None:
    answer = read(b"".join([*before, word(first), *[word(" and")] * 11, LAST, usage_of(24), DONE]), asked=24)
    assert answer.hidden_tokens == hidden
    assert answer.output_tokens == sum(answer.counts) == 24
