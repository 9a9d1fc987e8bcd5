"""A server whose every token leaves on a known schedule, at 1 to 256 in flight, and a client that is too slow."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from gauntlet.trap import LATE_S, Load, Stand, Trap, Truth, Wrong
from known_server.server import known_server

TTFT_S, GAP_S, TOKENS = 0.1, 0.01, 32
BUSY, CORE = 16, 0
"""Processes that share the client's core, and that core; the server has another."""


@contextlib.contextmanager
def stand(gap_s: float) -> Iterator[Stand]:
    with known_server(ttft_us=round(TTFT_S * 1e6), itl_us=round(gap_s * 1e6)) as known:
        yield Stand(known.url, late_s=lambda: float(known.truth()["next_late_s"]["p50"]))


@contextlib.contextmanager
def crowded(gap_s: float) -> Iterator[Stand]:
    """While answers are streamed the client has a fifth of a core, a slice at a time."""
    pin, ended = functools.partial(os.sched_setaffinity, 0, {CORE}), threading.Event()
    with known_server(core=CORE + 1, ttft_us=round(TTFT_S * 1e6), itl_us=round(gap_s * 1e6)) as known:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=pin) for _ in range(BUSY)]

        def crowd() -> None:
            while not ended.wait(0.05):
                for other in others:
                    other.send_signal(signal.SIGCONT if known.truth()["streams"] else signal.SIGSTOP)

        thread = threading.Thread(target=crowd)
        thread.start()
        try:
            yield Stand(known.url, core=CORE, late_s=lambda: float(known.truth()["next_late_s"]["p99"]))
        finally:
            ended.set()
            thread.join()
            for other in others:
                other.kill()
                other.wait()


def trap(users: int, requests: int, gap_s: float = GAP_S, **more: Any) -> Trap:
    rate = users / (TTFT_S + (TOKENS - 1) * gap_s)
    made: dict[str, Any] = {
        "name": f"known-schedule-{users}",
        "behaviour": f"{users} in flight; first token after {TTFT_S * 1000:g} ms, then one each {gap_s * 1000:g} ms",
        "why": "A client that is late itself reports its own delay as the server's.",
        "stand": lambda: stand(gap_s),
        "truths": (
            Truth("ttft_s.p50", TTFT_S, slack=0.003 if users < 256 else 0.01),
            Truth("tpot_s.p50", gap_s, slack=0.0005),
            Truth("requests_per_s", rate, within=0.1),
            Truth("output_tokens_per_s", rate * TOKENS, within=0.1),
        ),
        "says": ("client-limited",),
        "falls": ("own-delay", "tpot-with-first"),
    }
    load = Load(requests=requests, users=users, output_tokens=TOKENS)
    return Trap(kind="server", source="docs/method.md", load=load, **(made | more))


TRAPS = (
    trap(1, 10),
    trap(64, 640),
    trap(256, 1024, gap_s=0.02),
    trap(
        16,
        64,
        name="client-too-slow",
        behaviour=f"the client has to share its core with {BUSY} busy processes",
        why="The client's own delay passes for the server's.",
        stand=lambda: crowded(GAP_S),
        truths=(Truth("ttft_s.p99", TTFT_S, slack=LATE_S), Truth("itl_s.p99", GAP_S, slack=LATE_S)),
        alone=True,
        falls=(Wrong("its own delay counts", {"ttft_s.p99": TTFT_S + 0.02, "itl_s.p99": GAP_S + 0.02}),),
    ),
)
