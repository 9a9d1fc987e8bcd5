"""Loads that a tool must send as asked, or servers whose speed differs between parts of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gauntlet.stub import GAP_S, TTFT_S, Ask, Server, Step, behaviour, stand
from gauntlet.trap import Load, Trap, Truth, Wrong
from scipy import stats

# ---- arrivals, as the server sees them ----

RATE, SENT = 60.0, 240


@behaviour
def quick(ask: Ask) -> Iterator[Step]:
    """Two tokens at once."""
    yield 0.01
    yield from ask.words(2)
    yield from ask.end()


def gaps(server: Server) -> Mapping[str, Any]:
    def seen() -> dict[str, float]:
        """Of the last requests that came: those before them are the tool's warm-up."""
        between = np.diff([each.sent_s for each in server.log][-SENT:])
        scaled = between / between.mean()
        return {
            "arrivals.rate_per_s": 1 / float(between.mean()),
            "arrivals.gap_cv": float(scaled.std()),
            "arrivals.ks_to_poisson": float(stats.kstest(scaled, "expon").statistic),
        }

    return {"seen": seen}


FAR = 1.63 / SENT**0.5
"""Kolmogorov-Smirnov distance that 1% of samples exceed."""
ARRIVALS = (
    Trap(
        "arrivals-poisson",
        "load",
        f"{RATE:g} requests per second, Poisson",
        "A smoother load makes shorter queues than the one that was asked for.",
        "docs/method.md",
        lambda: stand("quick", gaps),
        (
            Truth("arrivals.rate_per_s", RATE, within=3 / SENT**0.5),
            Truth("arrivals.gap_cv", 1.0, within=3 / SENT**0.5),
            Truth("arrivals.ks_to_poisson", 0.0, slack=FAR),
        ),
        Load(requests=SENT, rate_per_s=RATE, output_tokens=2),
        falls=("constant-gaps",),
    ),
    Trap(
        "arrivals-constant",
        "load",
        f"{RATE:g} requests per second at equal distances",
        "A timer that draws its distances makes queues where there should be none.",
        "inference-perf's ConstantLoadTimer before its mending",
        lambda: stand("quick", gaps),
        (Truth("arrivals.rate_per_s", RATE), Truth("arrivals.gap_cv", 0.0, slack=0.4)),
        Load(requests=SENT, rate_per_s=RATE, output_tokens=2, arrivals="constant"),
        falls=("poisson-gaps",),
    ),
)

# ---- a server that cannot keep up ----

SLOTS, SERVICE_S, ASKED = 4, 0.1, 180
MOST = SLOTS / SERVICE_S
"""Requests per second."""
OVER = 1.5 * MOST


def served_in_s(ask: Ask, slots: int, each_s: float) -> float:
    """Seconds until the request's service ends: `slots` at a time, first in, first out."""
    now = time.monotonic()
    free: list[float] = ask.state.setdefault("free", [now] * slots)
    end = max(now, min(free)) + each_s
    free[free.index(min(free))] = end
    return end - now


@behaviour
def queued(ask: Ask) -> Iterator[Step]:
    """Four at a time, 0.1 s each, first in, first out."""
    yield served_in_s(ask, SLOTS, SERVICE_S) - SERVICE_S / 2
    yield ask.event(" word0")
    yield SERVICE_S / 2
    yield ask.event(" word1")
    yield from ask.end()


WAIT_S = (ASKED / 2) * (1 / MOST - 1 / OVER)
"""Of the middle request, from when it was due."""
OVERLOAD: Mapping[str, Any] = {
    "kind": "load",
    "why": "A tool that waits for answers before it sends hides the queue: coordinated omission.",
    "source": "Gil Tene, How NOT to Measure Latency",
    "stand": lambda: stand("queued"),
    "load": Load(requests=ASKED, rate_per_s=OVER, output_tokens=2, arrivals="constant"),
    "must_say": ("queue-grows",),
}
OVERLOADED = Trap(
    name="overload",
    behaviour=f"the server ends {MOST:g} requests per second of {OVER:g}",
    truths=(
        Truth("whole_run.ttft_s.p50", WAIT_S + SERVICE_S / 2, within=0.4),
        Truth("requests_per_s", MOST, within=0.1),
    ),
    falls=("from-service", "asked-rate"),
    **OVERLOAD,
)
OMITTED = Trap(
    name="overload-few-in-flight",
    behaviour=f"as overload, and no more than {SLOTS} requests may be in flight",
    truths=(
        Truth("whole_run.response_s.p50", WAIT_S + SERVICE_S, within=0.15),
        Truth("whole_run.e2e_s.p50", SERVICE_S, slack=0.02),
    ),
    options=("--set", f"load.max_in_flight={SLOTS}"),
    falls=("response-from-sent",),
    **{**OVERLOAD, "must_say": ("load-not-held",)},
)

# ---- the parts of a run ----

WINDOW = "docs/method.md, The measured window"
PREFILL_S, DECODE_S, BURST_USERS, BURST_REQUESTS = 0.01, 0.3, 20, 80


@behaviour
def one_prefill(ask: Ask) -> Iterator[Step]:
    """Prompts are read one after the other, 10 ms each; the second token comes 0.3 s after the first."""
    yield served_in_s(ask, 1, PREFILL_S)
    yield ask.event(" word0")
    if ask.tokens > 1:
        yield DECODE_S
        yield ask.event(" word1")
    yield from ask.end()


FIRST_WAVE = {"ttft_s.mean": PREFILL_S * (1 + BURST_USERS * (BURST_USERS - 1) / 2 / BURST_REQUESTS)}
PARTS = (
    Trap(
        "start-up-burst",
        "load",
        f"prompts are read one after the other, {PREFILL_S * 1000:g} ms each; {BURST_USERS} users begin at once",
        "The first wave waits in a queue that never comes back: its TTFT is twenty times that of all others.",
        WINDOW,
        lambda: stand("one_prefill"),
        (
            Truth("ttft_s.mean", PREFILL_S, slack=0.01),
            Truth("requests_per_s", BURST_USERS / (PREFILL_S + DECODE_S), within=0.1),
        ),
        Load(requests=BURST_REQUESTS, users=BURST_USERS, output_tokens=2),
        steady=True,
        falls=(Wrong("the whole run", FIRST_WAVE),),
    ),
    Trap(
        "drain",
        "load",
        "20 requests of 8 users: four slots are empty in the last third of the run",
        "A rate over the whole run is that of a server with idle slots, not of the load that was asked for.",
        WINDOW,
        lambda: stand("plain"),
        (Truth("requests_per_s", 8 / (TTFT_S + 15 * GAP_S), within=0.08),),
        Load(requests=20, users=8),
        steady=True,
        falls=("whole-run",),
    ),
)

# ---- a speed that changes ----

PAUSE_S, PAUSE_AT = 1.6, 40
CHANGED, SHIFT_AT, DRIFT = Load(requests=600, users=16, output_tokens=4), 350, 0.002


@behaviour
def pause(ask: Ask) -> Iterator[Step]:
    """All answers stand still once, for 1.6 s from the 40th request on."""
    if ask.number == PAUSE_AT:
        ask.state["until"] = time.monotonic() + PAUSE_S
    yield TTFT_S
    for i in range(ask.tokens):
        if (left := ask.state.get("until", 0.0) - time.monotonic()) > 0:
            yield left
        if i:
            yield GAP_S
        yield ask.event(f" word{i}")
    yield from ask.end()


def paced(ask: Ask, pace: float) -> Iterator[Step]:
    for i in range(ask.tokens):
        yield 0.04 * pace
        yield ask.event(f" word{i}")
    yield from ask.end()


@behaviour
def shift(ask: Ask) -> Iterator[Step]:
    """Half as fast from the 350th request on."""
    yield from paced(ask, 1 if ask.number < SHIFT_AT else 2)


@behaviour
def drift(ask: Ask) -> Iterator[Step]:
    """Slower and slower, by a fifth each hundred requests."""
    yield from paced(ask, 1 + DRIFT * ask.number)


def changing(name: str, behaviour: str, say: str, *truths: Truth, load: Load = CHANGED, **words: Any) -> Trap:
    words = {"why": "One figure of two speeds is the speed of nothing.", "source": WINDOW} | words
    return Trap(
        name, "server", behaviour, stand=lambda: stand(name.rpartition("-")[2]), truths=truths, load=load,
        must_say=(say,), falls=("silent",), **words,
    )  # fmt: skip


TRAPS = (
    *ARRIVALS,
    OVERLOADED,
    OMITTED,
    *PARTS,
    changing(
        "pause",
        f"the server stands still for {PAUSE_S:g} s in the middle of the load, as for a compilation",
        "stall",
        Truth("tpot_s.p50", GAP_S, slack=0.002),
        load=Load(requests=80, users=8),
        why="Means and p99 hold a pause that no later run will have; a warm-up of one request did not find it.",
        source="vLLM's compilation at a batch size that was not seen before",
    ),
    changing("level-shift", f"half as fast from request {SHIFT_AT} of {CHANGED.requests} on", "level-shift"),
    changing("speed-drift", "slower and slower: at the end less than half as fast", "not-steady"),
)
