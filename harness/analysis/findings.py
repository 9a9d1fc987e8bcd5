"""Doubts about a run, as data. docs/findings.md says of each code what it means and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.latency import Times, times
from harness.analysis.window import Window
from harness.model import Finding, Summary
from harness.stats import least_n
from harness.store.run import Run
from harness.store.run_file import AskedRequests, Environment

FAILED_SHARE = 0.01
"""Share of failed requests above which the others had an easier time of it."""
SWAPPED_BYTES = 4 << 20
"""Moved to or from swap during a run, beyond which it is no accident."""
COVERAGE = 0.05
"""How far the window's mean output length may be from that of all requests."""
GROUPED_SHARE = 0.1
"""Share of gaps between tokens that may go unseen before ITL says little."""


def check_requests(
    requests: pd.DataFrame,
    summary: Summary,
    window: Window | None = None,
    *,
    asked: int | None,
    ignore_eos: bool,
    warmup_requests: int,
) -> tuple[Finding, ...]:
    """The findings of a run, serious ones first.

    `requests`, `summary` and `window` belong together. `asked` is how many requests the workload wanted (None: as many
    as fit its duration), `ignore_eos` whether it fixed the output lengths, `warmup_requests` how many came before that.
    """
    seen = times(requests, summary.state)
    found = (
        *_conduct(seen, summary, asked),
        *_steadiness(summary, window, warmup_requests),
        *_tokens(requests, seen, summary, ignore_eos),
    )
    return tuple(sorted(found, key=lambda finding: not finding.serious))


def check_conditions(
    place: Environment, requests: AskedRequests, options: Mapping[str, Any], summary: Summary
) -> Iterator[Finding]:
    """Of where a run took place, and how its engine was set. `options` are the engine's."""
    if summary["duration_s"].status == "simulated":
        return
    swapped = sum(place.swap.values())
    if place.debug:
        text = f"it ran with {', '.join(place.debug)}, which is slow"
        yield Finding("debug-build", text, "unset it, or install a release build", serious=True)
    if swapped > SWAPPED_BYTES:
        text = f"the machine swapped {swapped / 1e6:.0f} MB while it ran"
        yield Finding("swap", text, "leave more memory free, or switch swap off")
    if set(place.governors) - {"performance"}:
        text = f"processors change their frequency (governor {', '.join(place.governors)})"
        yield Finding("cpu-frequency", text, "set it to performance: `cpupower frequency-set -g performance`")
    if place.git is not None and place.git.dirty:
        text = f"the harness ran from a clone with changes that {str(place.git.revision)[:12]} does not have"
        yield Finding("dirty-tree", text, "commit them, so that the run can be repeated")
    repeats = any(x is not None for kind in requests.kinds for x in (kind.prompts, kind.prefix, kind.turns))
    if options.get("enable_prefix_caching") and repeats and summary["cached_tokens"].value is None:
        text = "the prefix cache is on, prompts repeat, and the engine does not say what came from the cache"
        yield Finding("prefix-cache", text, "switch the prefix cache off, or say so beside the figures")


def across(versions: Sequence[Mapping[str, Any]]) -> Finding | None:
    """What differs between runs that should differ in nothing else: of each run, versions by name.

    >>> across([{"vllm": "0.11", "driver": None}, {"vllm": "0.12", "driver": None}]).text
    'vllm differs: 0.11, 0.12'
    """
    names = sorted({name for each in versions for name in each})
    seen = {name: list(dict.fromkeys(str(each.get(name)) for each in versions)) for name in names}
    differ = [f"{name} differs: {', '.join(values)}" for name, values in seen.items() if len(values) > 1]
    if not differ:
        return None
    return Finding("mixed-versions", "; ".join(differ), "measure them all with the same software", serious=True)


def _conduct(seen: Times, summary: Summary, asked: int | None) -> Iterator[Finding]:
    """Of the run as a whole: whether it ended, what failed, whether there was enough of it."""
    done, failed = int(seen.completed.sum()), int(seen.failed.sum())
    cut = len(seen.completed) - done - failed
    if summary.state != "complete":
        text = f"the run is {summary.state}: {done}{'' if asked is None else f' of {asked}'} requests completed"
        if cut > 0:
            text += f"; {cut} were cut off, so short answers count for more than their share"
        yield Finding("incomplete", text, "measure it again to the end before you quote a figure", serious=True)
    if failed > FAILED_SHARE * (done + failed):
        kinds = ", ".join(f"{kind} {count}" for kind, count in summary.errors.items())
        text = f"{failed / (done + failed):.1%} of the requests failed ({kinds}) and left the others more room"
        yield Finding("failed-requests", text, "read error_text in requests.parquet, and engine.log", serious=True)
    if 0 < done < (needs := least_n(0.99)):
        text = f"{done} completed requests are too few to bound a p99, which needs {needs}"
        yield Finding("few-requests", text, f"set requests.count={needs} or more, or quote a lower percentile")


def _steadiness(summary: Summary, window: Window | None, warmup_requests: int) -> Iterator[Finding]:
    """Of the part of the run that the figures are of, and of what is in it that should not be."""
    cut_s = 0.0 if window is None or window.whole is not None else window.begin_s
    if warmup_requests == 0 and cut_s <= 0 and summary["duration_s"].status != "simulated":
        text = "no request warmed the engine up, so the first ones pay for compilation and cold caches"
        yield Finding("no-warmup", text, "set warmup.requests=1 or more")
    if window is None:
        return
    moved, serious = window.change, window.whole is not None
    rates = "" if moved is None else f"{moved.before:.4g} to {moved.since:.4g} tokens/s"
    if window.code == "queue-grows":
        text = f"requests came faster than they were served: {window.whole}; rates are of the whole run, its end too"
        yield Finding(
            "queue-grows", text, "lower the rate: latency has no steady value, and grows with the run", serious
        )
    elif window.code == "not-steady":
        text = f"the rate never settled: from {rates} over the run; figures are of the whole run"
        yield Finding("not-steady", text, "measure longer; look for heat, a growing context, other work", serious)
    elif window.code == "level-shift":
        text = f"the rate shifted from {rates} at {window.shift_s:.1f} s; figures are of "
        text += "the whole run, both levels" if serious else "what followed"
        yield Finding("level-shift", text, "find what changed then: a full cache, clocks, other work", serious)
    coverage = summary["window.output_coverage"].value
    if coverage is not None and abs(coverage - 1) > COVERAGE:
        text = f"the window's requests got {coverage:.0%} of the mean output length of all"
        yield Finding("output-coverage", text, "measure longer, so that the window holds its share of long answers")


def _tokens(requests: pd.DataFrame, seen: Times, summary: Summary, ignore_eos: bool) -> Iterator[Finding]:
    """Of what was asked against what was got, and of who counted it."""
    read, read_asked, counted, asked = (
        requests[column].to_numpy(float, na_value=np.nan)[seen.completed]
        for column in ("input_tokens", "input_asked", "output_tokens", "output_asked")
    )
    got, arrived = (seen.each[column].to_numpy()[seen.completed] for column in ("output_tokens", "arrived_tokens"))
    if ignore_eos and (short := got < asked).any():
        lost = 1 - got[short].sum() / asked[short].sum()
        text = f"{short.sum()} of {len(got)} answers are shorter than asked, by {lost:.0%} in all"
        advice = "check that the engine honours ignore_eos and has room for the length"
        yield Finding("short-output", text, advice, serious=True)
    if (differs := ~np.isnan(read) & (read != read_asked)).any():
        text = f"the engine read {read[differs].sum():.0f} input tokens where {read_asked[differs].sum():.0f} were sent"
        yield Finding("input-differs", text, "check whether it adds special tokens or cuts long prompts")
    if (differs := ~np.isnan(counted) & (counted != arrived)).any():
        text = (
            f"the engine counts {counted[differs].sum():.0f} output tokens where {arrived[differs].sum():.0f} arrived"
        )
        yield Finding("count-differs", text, "trust no rate or TPOT before you know which is right", serious=True)
    unseen = summary["unseen_gaps"].value
    if unseen is not None and unseen > GROUPED_SHARE:
        text = f"{unseen:.0%} of the gaps between tokens went unseen: the engine hands out several tokens at a time"
        yield Finding("grouped-tokens", text, "read ITL as the time between arrivals, and judge speed by TPOT")
    cached, total = summary["cached_tokens"].value, summary["input_tokens.got"].value
    if cached is not None and total is not None and cached > 0:
        text = f"a prefix cache supplied {cached / total:.0%} of the input tokens"
        yield Finding("cached-input", text, "switch the prefix cache off, or say so beside the figures")


def mixed(runs: Iterable[Run]) -> Finding | None:
    """Software that can change a figure and is not the same in all of these runs."""
    return across([_software(run) for run in runs])


def _software(run: Run) -> dict[str, str | None]:
    place = run.environment
    return {
        **place.packages,
        "harness": (place.git.revision if place.git else None) or place.harness,
        "python": place.python,
        "driver": place.driver,
        "engine": run.engine.version if run.engine else None,
    }
