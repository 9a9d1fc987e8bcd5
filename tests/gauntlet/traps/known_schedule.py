"""A server whose every token leaves on a known schedule, at 1 and at 64 requests in flight."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gauntlet.trap import Load, Stand, Trap, Truth
from known_server.server import known_server

TTFT_S, GAP_S, TOKENS = 0.1, 0.01, 32


@contextlib.contextmanager
def stand() -> Iterator[Stand]:
    with known_server(ttft_us=round(TTFT_S * 1e6), itl_us=round(GAP_S * 1e6)) as known:
        yield Stand(known.url)


def trap(users: int, requests: int) -> Trap:
    rate = users / (TTFT_S + (TOKENS - 1) * GAP_S)
    return Trap(
        name=f"known-schedule-{users}",
        kind="server",
        behaviour=f"first token {TTFT_S * 1000:g} ms after the request, then one each {GAP_S * 1000:g} ms",
        why="A client that is late itself reports its own delay as the server's.",
        source="docs/method.md",
        stand=stand,
        load=Load(requests=requests, users=users, output_tokens=TOKENS),
        truths=(
            Truth("ttft_s.p50", TTFT_S, slack=0.002),
            Truth("tpot_s.p50", GAP_S, slack=0.0005),
            Truth("requests_per_s", rate),
            Truth("output_tokens_per_s", rate * TOKENS),
        ),
    )


TRAPS = (trap(1, 10), trap(64, 640))
