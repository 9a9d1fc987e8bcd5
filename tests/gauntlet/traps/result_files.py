"""Result files of other tools whose figures mislead whoever copies them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from gauntlet.trap import Stand, Trap, Truth, Wrong
from places import ROOT

CASES = ROOT / "tests/data/imported/cases"


def trap(
    name: str, behaviour: str, why: str, truths: tuple[Truth, ...], copied: Mapping[str, float] | None, *must_say: str
) -> Trap:
    @contextlib.contextmanager
    def stand() -> Iterator[Stand]:
        yield Stand(file=CASES / name)

    return Trap(
        name=f"file-{name.partition('.')[0].replace('_', '-')}",
        kind="file",
        behaviour=behaviour,
        why=why,
        source="docs/importing.md",
        stand=stand,
        truths=truths,
        must_say=must_say,
        falls=("silent" if copied is None else Wrong("copies what stands there", copied),),
    )


TRAPS = (
    trap(
        "vllm_all_failed.json",
        "all 8 requests failed, and every latency is written as 0.0",
        "An engine that never answered would be the fastest of all.",
        (Truth("ttft_s.p50", None), Truth("tpot_s.mean", None), Truth("requests.failed", 8)),
        {"ttft_s.p50": 0.0, "tpot_s.mean": 0.0},
        "failed-requests",
    ),
    trap(
        "guidellm_mostly_failed.json",
        "500 of 532 requests failed; 32 completed, but latencies are of 4",
        "The 4 had the engine to themselves.",
        (Truth("requests.failed", 500), Truth("requests.completed", 32)),
        None,
        "failed-requests",
        "file-contradicts",
    ),
    trap(
        "guidellm_warmup_window.json",
        "30 requests were made, 25 of them in the measured window, of which tokens, latencies and duration are",
        "A rate of requests made with a warm-up over the time without it is too high.",
        (Truth("requests.completed", 25), Truth("output_tokens.got", 25600)),
        {"requests.completed": 30},
    ),
    trap(
        "sglang_bench_serving.jsonl",
        "keys of vLLM's file, but the end-to-end latency and the input rate have other names",
        "Read as vLLM's file, it has no end-to-end latency.",
        (Truth("e2e_s.mean", 2.4), Truth("input_tokens_per_s", 1500)),
        {"e2e_s.mean": 0.0},
    ),
)
