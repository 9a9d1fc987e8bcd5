"""Servers that remember prompts: what an earlier run sent is answered ten times sooner."""

from __future__ import annotations

import json
from collections.abc import Iterator

from gauntlet.stub import GAP_S, TTFT_S, Ask, Step, behaviour, stand
from gauntlet.trap import Load, Trap, Truth, Wrong

WARM_S = 0.02
USERS, TOKENS = 8, 4
RATE = USERS / (TTFT_S + (TOKENS - 1) * GAP_S)
TRUTHS = (Truth("ttft_s.p50", TTFT_S, slack=0.01), Truth("requests_per_s", RATE, within=0.1, each=1))
LOAD = Load(requests=16, users=USERS, output_tokens=TOKENS, runs=2)


def known(ask: Ask) -> bool:
    """Whether the prompt was sent before."""
    key, seen = json.dumps(ask.prompt), ask.state.setdefault("seen", set())
    return key in seen or bool(seen.add(key))


@behaviour
def prefix_silent(ask: Ask) -> Iterator[Step]:
    """A prefix cache that the server never mentions."""
    yield WARM_S if known(ask) else TTFT_S
    yield from ask.words()
    yield from ask.end()


@behaviour
def prefix_metrics(ask: Ask) -> Iterator[Step]:
    """A prefix cache whose hits are in /metrics, in vLLM's names."""
    warm = known(ask)
    looked, hits = ask.state.get("looked", 0) + len(ask.prompt), ask.state.get("hits", 0) + warm * len(ask.prompt)
    ask.state.update(looked=looked, hits=hits)
    ask.state["metrics"] = (
        f'vllm:prefix_cache_queries_total{{engine="0"}} {looked}\nvllm:prefix_cache_hits_total{{engine="0"}} {hits}\n'
    )
    yield WARM_S if warm else TTFT_S
    yield from ask.words()
    yield from ask.end()


WHY = "A second run of one workload measures the cache: 334, then 928 tok/s on one server."
SOURCE = "https://github.com/vllm-project/vllm/blob/main/docs/features/automatic_prefix_caching.md"


def trap(name: str, *seed: str, says: tuple[str, ...] = (), must_say: tuple[str, ...] = ()) -> Trap:
    told = f"{name}, its second run{' of one seed' if seed else ''}"
    return Trap(
        "-".join((name, *(["seed"] if seed else []))), "server", told, WHY, SOURCE, lambda: stand(name), TRUTHS, LOAD,
        says=says, must_say=must_say, options=seed,
        falls=("silent",) if seed else (Wrong("the same prompts again", {"ttft_s.p50": WARM_S}),),
    )  # fmt: skip


TRAPS = (
    trap("prefix_silent"),
    trap("prefix_silent", "--seed", "3", says=("prompts-repeated",), must_say=("prompts-repeated",)),
    trap("prefix_metrics", "--seed", "3", says=("warm-cache",), must_say=("prompts-repeated",)),
)
