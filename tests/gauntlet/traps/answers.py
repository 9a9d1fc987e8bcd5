"""Servers whose answers are not one token an event: hidden, grouped, empty, refused or cut."""

from __future__ import annotations

import gzip as compression
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from gauntlet.stub import DONE, GAP_S, TTFT_S, Ask, HangUp, Step, Whole, behaviour, sse, stand
from gauntlet.trap import Load, Trap, Truth

TOKENS, USERS = 16, 8
LENGTH_S = TTFT_S + (TOKENS - 1) * GAP_S
RATE = USERS / LENGTH_S
TTFT = Truth("ttft_s.p50", TTFT_S, slack=0.01)
TPOT = Truth("tpot_s.p50", GAP_S, slack=0.001)
E2E = Truth("e2e_s.p50", LENGTH_S, slack=0.02)
OUTPUT = Truth("output_tokens_per_s", RATE * TOKENS, within=0.1, each=TOKENS)


@behaviour
def hidden(ask: Ask) -> Iterator[Step]:
    """Three quarters are reasoning that is counted and not sent."""
    unsent = ask.tokens * 3 // 4
    yield ask.event(role="assistant")
    yield TTFT_S + GAP_S * unsent
    yield from ask.words(ask.tokens - unsent)
    yield from ask.end(completion_tokens_details={"reasoning_tokens": unsent})


@behaviour
def thinking(ask: Ask) -> Iterator[Step]:
    """Half is reasoning, in one of the forms that servers use."""
    forms: list[dict[str, Any]] = [
        {"reasoning": "so "},
        {"reasoning_content": "so "},
        {"reasoning": "so ", "reasoning_details": [{"type": "reasoning.text", "text": "so "}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "so "}]}]},
    ]
    half = ask.tokens // 2
    yield TTFT_S
    for i in range(half):
        if i:
            yield GAP_S
        yield ask.event(**forms[ask.number % len(forms)])
    yield GAP_S
    yield from ask.words(ask.tokens - half)
    yield from ask.end(completion_tokens_details={"reasoning_tokens": half})


@behaviour
def groups(ask: Ask) -> Iterator[Step]:
    """The first token alone, then three an event, as a draft model makes them."""
    yield TTFT_S
    yield ask.event(" one")
    for i in range(0, ask.tokens - 1, 3):
        yield GAP_S
        yield ask.event(" two" * min(3, ask.tokens - 1 - i))
    yield from ask.end()


@behaviour
def end_token(ask: Ask) -> Iterator[Step]:
    """Four tokens, and the end token in an event without a text."""
    yield TTFT_S
    yield from ask.words(4)
    yield GAP_S
    yield from ask.end(5, "stop")


@behaviour
def early_stop(ask: Ask) -> Iterator[Step]:
    """Stops at half of the length, whatever was asked."""
    yield TTFT_S
    yield from ask.words(ask.tokens // 2)
    yield from ask.end(ask.tokens // 2, "stop")


@behaviour
def preempts(ask: Ask) -> Iterator[Step]:
    """Takes every second answer's place away for 0.2 s, and counts that in /metrics as vLLM does."""
    yield TTFT_S
    yield from ask.words(ask.tokens // 2)
    if ask.number % 2:
        ask.state["preempted"] = ask.state.get("preempted", 0) + 1
        yield 0.2
    ask.state["metrics"] = f'vllm:num_preemptions_total{{engine="0"}} {ask.state.get("preempted", 0)}\n'
    yield GAP_S
    yield from ask.words(ask.tokens - ask.tokens // 2)
    yield from ask.end()


@behaviour
def half_blank(ask: Ask) -> Iterator[Step]:
    """Every second answer has no token, and is there at once."""
    if ask.number % 2:
        yield ask.event(role="assistant", content=None)
        yield DONE
        return
    yield TTFT_S
    yield from ask.words()
    yield from ask.end()


@behaviour
def withheld(ask: Ask) -> Iterator[Step]:
    """A content filter holds every second answer back."""
    yield TTFT_S
    if ask.number % 2:
        yield from ask.end(0, "content_filter")
        return
    yield from ask.words()
    yield from ask.end()


@behaviour
def cached_apart(ask: Ask) -> Iterator[Step]:
    """The usage states input tokens beside those from the cache."""
    yield TTFT_S
    yield from ask.words()
    cached = len(ask.prompt) - 3
    yield from ask.end(prompt=3, prompt_tokens_details={"cached_tokens": cached})


@behaviour
def boastful(ask: Ask) -> Iterator[Step]:
    """The usage counts a thousand tokens."""
    yield TTFT_S
    yield from ask.words()
    yield from ask.end(1000)


@behaviour
def absurd(ask: Ask) -> Iterator[Step]:
    """The usage counts less than nothing, nothing, or more than any answer has."""
    yield TTFT_S
    yield from ask.words()
    count = (-5, 0, 10**8)[ask.number % 3]
    yield from ask.end(count, prompt=count)


@behaviour
def newer(ask: Ask) -> Iterator[Step]:
    """Takes the length as max_completion_tokens alone."""
    if "max_tokens" in ask.body:
        text = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
        yield Whole({"error": {"message": text, "param": "max_tokens", "code": "unsupported_parameter"}}, 400)
        return
    yield TTFT_S
    yield from ask.words()
    yield from ask.end()


@behaviour
def gzip(ask: Ask) -> Iterator[Step]:
    """Compresses, though it was not asked to."""
    yield TTFT_S
    body = b"".join(sse(step) for step in ask.words() if isinstance(step, dict)) + DONE
    yield Whole(compression.compress(body), headers={"Content-Type": "text/event-stream", "Content-Encoding": "gzip"})


@behaviour
def tool_calls(ask: Ask) -> Iterator[Step]:
    """A tool call, a piece of its arguments an event."""
    yield TTFT_S
    for i in range(ask.tokens):
        if i:
            yield GAP_S
        yield ask.event(tool_calls=[{"index": 0, "function": {"arguments": "a"}}])
    yield from ask.end(finish="tool_calls")


@behaviour
def held_back(ask: Ask) -> Iterator[Step]:
    """A parser of tool calls holds all tokens back, and sends events without anything meanwhile."""
    yield ask.event(role="assistant")
    yield TTFT_S
    for _ in range(ask.tokens - 1):
        yield ask.event(tool_calls=None, role=None)
        yield GAP_S
    yield ask.event(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}])
    yield from ask.end(finish="tool_calls")


@behaviour
def buffered(ask: Ask) -> Iterator[Step]:
    """A proxy holds the whole stream back."""
    yield LENGTH_S
    yield b"".join(sse(step) for step in (*ask.words(), *ask.end()) if isinstance(step, dict)) + DONE


@behaviour
def limited(ask: Ask) -> Iterator[Step]:
    """Rejects every second request, to be sent again after half a second."""
    if ask.number % 2 == 0:
        yield Whole({"error": {"message": "Rate limit"}}, 429, {"retry-after-ms": "500"})
        return
    yield TTFT_S
    yield from ask.words()
    yield from ask.end()


@behaviour
def breaks(ask: Ask) -> Iterator[Step]:
    """Of four answers one ends in an error, and one where the connection does."""
    yield TTFT_S
    if ask.number % 4 == 2:
        yield from ask.words(3)
        yield {"error": {"message": "CUDA out of memory", "code": 500}}
        yield DONE
        return
    if ask.number % 4 == 3:
        yield from ask.words(2)
        yield HangUp()
        return
    yield from ask.words()
    yield from ask.end()


LOAD = Load(requests=24, users=USERS, input_tokens=64, output_tokens=TOKENS, endpoint="chat")
IDS, FREE = replace(LOAD, endpoint="completions"), replace(LOAD, ignore_eos=False)


def trap(
    name: str, behaviour: str, why: str, source: str, *truths: Truth, load: Load = LOAD, fail: float = 0, **more: Any
) -> Trap:
    """A trap in which this share of the requests fails."""
    failed = Truth("requests.failed", fail * LOAD.requests, slack=2)
    completed = Truth("requests.completed", (1 - fail) * LOAD.requests, slack=2)
    told = (*truths, failed, completed) if truths else ()
    return Trap(name, "server", behaviour, why, source, lambda: stand(name), told, load, **more)


TTFT_SHOWN = Truth("ttft_s.p50", TTFT_S + TOKENS * 3 // 4 * GAP_S, slack=0.01)
END_S = TTFT_S + 4 * GAP_S
NO_TPOT = Truth("tpot_s.p50", None)
HALF: Mapping[str, Any] = {"fail": 0.5, "must_say": ("failed-requests",)}
TRAPS = (
    trap(
        "hidden",
        "3/4 of the tokens are not sent",
        "TPOT would be a quarter.",
        "OpenAI's reasoning models",
        TTFT_SHOWN,
        replace(NO_TPOT, otherwise=GAP_S),  # of the tokens that are shown
        OUTPUT,
        must_say=("hidden-tokens",),
        falls=("usage-believed", "events-are-tokens"),
    ),
    trap(
        "thinking",
        "reasoning in four forms",
        "TTFT would be that of the answer.",
        "vLLM, SGLang, OpenRouter, Mistral",
        TTFT,
        TPOT,
        E2E,
        OUTPUT,
        falls=("answer-only",),
    ),
    trap(
        "groups",
        "one token, then three an event",
        "TPOT would be off by the first group.",
        "vLLM's speculative decoding",
        TTFT,
        replace(TPOT, value=GAP_S / 3),
        load=IDS,
        falls=("events-are-tokens",),
    ),
    trap(
        "end_token",
        "an end token without a text",
        "TPOT and E2E would miss a token.",
        "vLLM",
        replace(E2E, value=END_S),
        TPOT,
        replace(OUTPUT, value=5 * USERS / END_S, each=5),
        load=FREE,
        falls=("events-are-tokens",),
    ),
    trap(
        "early_stop",
        "answers of half the length, against ignore_eos",
        "Throughput would be twice the true one, or that of other lengths than were asked for.",
        "servers that do not know ignore_eos",
        TTFT,
        TPOT,
        replace(OUTPUT, value=8 * USERS / (TTFT_S + 7 * GAP_S), each=8),
        must_say=("short-output",),
        falls=("asked-tokens",),
    ),
    trap(
        "preempts",
        "every second answer loses its place for 0.2 s",
        "The figures are those of a server without room for the load.",
        "vLLM's vllm:num_preemptions_total",
        TTFT,
        load=IDS,
        must_say=("preemptions",),
        falls=("silent",),
    ),
    trap(
        "half_blank",
        "every second answer is empty",
        "Twice the requests per second.",
        "vLLM issue 8935",
        E2E,
        load=FREE,
        falls=("all-are-answers",),
        **HALF,
    ),
    trap(
        "withheld",
        "every second answer is withheld",
        "Twice the requests per second.",
        "Azure OpenAI's content filter",
        E2E,
        load=FREE,
        falls=("all-are-answers",),
        **HALF,
    ),
    trap(
        "cached_apart",
        "input tokens beside the cached",
        "More tokens from the cache than were read.",
        "Anthropic's usage",
        Truth("input_tokens.got", 64 * 24),
        Truth("cached_tokens", 61 * 24),
        load=IDS,
        falls=("usage-believed",),
    ),
    trap(
        "boastful",
        "usage of 1,000 for 16",
        "Throughput would be 60 times the true one.",
        "LiteLLM",
        TTFT,
        TPOT,
        OUTPUT,
        must_say=("usage-not-believed",),
        falls=("usage-believed",),
    ),
    trap(
        "absurd",
        "usage of -5, 0 and 10**8",
        "A negative TPOT, no input, or no result.",
        "gateways that pass a missing count on",
        TTFT,
        TPOT,
        OUTPUT,
        Truth("input_tokens.got", None),
        must_say=("usage-not-believed",),
        falls=("usage-believed",),
    ),
    trap(
        "newer",
        "max_completion_tokens",
        "No answer, or answers of another length.",
        "OpenAI's API",
        TTFT,
        TPOT,
        OUTPUT,
        falls=("old-parameter",),
    ),
    trap(
        "gzip",
        "a compressed answer",
        "A message that does not name the compression.",
        "nginx's gzip",
        says=("refused",),
        must_say=("compressed",),
        falls=("silent",),
    ),
    trap(
        "tool_calls",
        "arguments of a tool call",
        "They are tokens.",
        "OpenAI's API",
        TTFT,
        TPOT,
        E2E,
        OUTPUT,
        falls=("answer-only",),
    ),
    trap(
        "held_back",
        "a call that a parser holds back",
        "TPOT would be nothing.",
        "SGLang pull request 36272",
        replace(TTFT, value=LENGTH_S),
        NO_TPOT,
        OUTPUT,
        falls=("first-event",),
    ),
    trap(
        "buffered",
        "all in one read",
        "TPOT would be nothing.",
        "nginx's proxy_buffering",
        replace(TTFT, value=LENGTH_S),
        NO_TPOT,
        OUTPUT,
        falls=("events-are-tokens",),
    ),
    trap(
        "limited",
        "429 for every second request",
        "Failures are not served.",
        "RFC 6585",
        TTFT,
        TPOT,
        falls=("all-are-answers",),
        **HALF,
    ),
    trap(
        "breaks",
        "errors and cuts in streams",
        "Parts of answers are no answers.",
        "vLLM",
        TTFT,
        TPOT,
        falls=("all-are-answers",),
        **HALF,
    ),
)
