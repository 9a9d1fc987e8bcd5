"""Servers whose streams differ in form alone: every figure is that of the plain one."""

from __future__ import annotations

from collections.abc import Iterator

from gauntlet.stub import DONE, GAP_S, TTFT_S, Ask, Step, behaviour, sse, stand
from gauntlet.trap import Load, Trap, Truth

TOKENS, USERS = 16, 8
RATE = USERS / (TTFT_S + (TOKENS - 1) * GAP_S)
TRUTHS = (
    Truth("ttft_s.p50", TTFT_S, slack=0.01),
    Truth("tpot_s.p50", GAP_S, slack=0.002),
    Truth("e2e_s.p50", USERS / RATE, slack=0.02),
    Truth("requests_per_s", RATE, within=0.1, each=1),
    Truth("output_tokens_per_s", RATE * TOKENS, within=0.1, each=TOKENS),
)


@behaviour
def role_first(ask: Ask) -> Iterator[Step]:
    """A role at once, with nothing in all the other fields."""
    yield ask.event(role="assistant", content=None, reasoning=[], tool_calls=[], refusal=None)
    yield TTFT_S
    yield from ask.words()
    yield from ask.end()


@behaviour
def comments(ask: Ask) -> Iterator[Step]:
    """Comments before and between the tokens, pings in events of another type, and a byte order mark."""
    yield b"\xef\xbb\xbf: OPENROUTER PROCESSING\n\n"
    yield b'event: ping\ndata: {"type": "ping"}\n\n'
    yield TTFT_S
    for step in ask.words():
        yield step
        if not isinstance(step, float):
            yield b": keep-alive\n\n"
            yield b"event: ping\ndata: still here\n\n"
    yield from ask.end()


@behaviour
def crlf_cut(ask: Ask) -> Iterator[Step]:
    """Lines end in CRLF, and chunks end in the middle of a letter."""
    yield TTFT_S
    for step in ask.words():
        if isinstance(step, float):
            yield step
            continue
        data = sse(ask.event(" größer"), b"\r\n\r\n")
        middle = data.index("ö".encode()) + 1
        yield data[:middle]
        yield data[middle:]
    yield from ask.end()


@behaviour
def usage_each(ask: Ask) -> Iterator[Step]:
    """The usage so far in every event, then zeros."""
    yield TTFT_S
    for i, step in enumerate(step for step in ask.words() if isinstance(step, dict)):
        if i:
            yield GAP_S
        yield step | {"usage": ask.usage(i + 1)}
    yield ask.event(finish="length") | {"usage": ask.usage(0, 0)}
    yield DONE


def trap(name: str, behaviour: str, why: str, source: str, falls: str, endpoint: str = "chat") -> Trap:
    load = Load(requests=24, users=USERS, output_tokens=TOKENS, endpoint=endpoint)  # type: ignore[arg-type]
    return Trap(name, "server", behaviour, why, source, lambda: stand(name), TRUTHS, load, falls=(falls,))


HTML = "https://html.spec.whatwg.org/multipage/server-sent-events.html"
TRAPS = (
    trap("plain", "one token an event", "All other servers are compared with this one.", "docs/method.md", "own-delay"),
    trap("role_first", "a role at once", "TTFT would be that of the role.", "vLLM's chat endpoint", "first-event"),
    trap("comments", "comments and pings", "A ping is no token, and no error.", HTML, "first-byte"),
    trap(
        "crlf_cut",
        "CRLF, and letters cut between chunks",
        "Tokens would be lost.",
        HTML,
        "chunks-are-events",
        "completions",
    ),
    trap(
        "usage_each",
        "usage in every event",
        "Zeros at the end would erase it.",
        "vLLM's continuous_usage_stats",
        "usage-believed",
    ),
)
