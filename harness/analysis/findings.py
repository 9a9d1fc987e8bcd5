"""Doubts about a run, as data. The texts are in the table of findings; the limits and conditions are here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.findings_table import finding
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
    return tuple(sorted(found, key=lambda each: not each.serious))


def check_conditions(
    place: Environment, requests: AskedRequests, options: Mapping[str, Any], summary: Summary
) -> Iterator[Finding]:
    """Of where a run took place, and how its engine was set. `options` are the engine's."""
    if summary["duration_s"].status == "simulated":
        return
    swapped = sum(place.swap.values())
    if place.debug:
        yield finding("debug-build", debug=", ".join(place.debug))
    if swapped > SWAPPED_BYTES:
        yield finding("swap", swapped=f"{swapped / 1e6:.0f} MB moved to or from swap during the run")
    if set(place.governors) - {"performance"}:
        yield finding("cpu-frequency", governor=", ".join(place.governors))
    if place.git is not None and place.git.dirty:
        yield finding("dirty-tree", revision=str(place.git.revision))
    repeats = any(x is not None for kind in requests.kinds for x in (kind.prompts, kind.prefix, kind.turns))
    if options.get("enable_prefix_caching") and repeats and summary["cached_tokens"].value is None:
        yield finding("prefix-cache")


def across(versions: Sequence[Mapping[str, Any]]) -> Finding | None:
    """What differs between runs that should differ in nothing else: of each run, versions by name.

    >>> across([{"vllm": "0.11", "driver": None}, {"vllm": "0.12", "driver": None}]).text
    'The runs were measured with different software: vllm 0.11, 0.12.'
    """
    names = sorted({name for each in versions for name in each})
    seen = {name: list(dict.fromkeys(str(each.get(name)) for each in versions)) for name in names}
    differ = [f"{name} {', '.join(values)}" for name, values in seen.items() if len(values) > 1]
    return finding("mixed-versions", differences="; ".join(differ)) if differ else None


def _conduct(seen: Times, summary: Summary, asked: int | None) -> Iterator[Finding]:
    """Of the run as a whole: whether it ended, what failed, whether there was enough of it."""
    done, failed = int(seen.completed.sum()), int(seen.failed.sum())
    if summary.state != "complete":
        of_all = done if asked is None else f"{done} of {asked}"
        yield finding("incomplete", state=summary.state, done=of_all, cut=len(seen.completed) - done - failed)
    if failed > FAILED_SHARE * (done + failed):
        kinds = ", ".join(f"{kind} {count}" for kind, count in summary.errors.items())
        yield finding("failed-requests", share=failed / (done + failed), kinds=kinds)
    if 0 < done < (needs := least_n(0.99)):
        yield finding("few-requests", done=done, needs=needs)


def _steadiness(summary: Summary, window: Window | None, warmup_requests: int) -> Iterator[Finding]:
    """Of the part of the run that the figures are of, and of what is in it that should not be."""
    cut_s = 0.0 if window is None or window.whole is not None else window.begin_s
    if warmup_requests == 0 and cut_s <= 0 and summary["duration_s"].status != "simulated":
        yield finding("no-warmup")
    if window is None:
        return
    if window.code == "queue-grows":
        yield finding("queue-grows", growth=window.whole)
    if window.code == "not-steady" and (moved := window.change) is not None:
        yield finding("not-steady", before=moved.before, since=moved.since)
    if window.code == "level-shift" and (moved := window.change) is not None:
        whole = window.whole is not None
        part = "the whole run, both levels" if whole else "the part after it"
        yield finding(
            "level-shift", before=moved.before, since=moved.since, shift_s=window.shift_s, part=part, serious=whole
        )
    coverage = summary["window.output_coverage"].value
    if coverage is not None and abs(coverage - 1) > COVERAGE:
        yield finding("output-coverage", coverage=coverage)


def _tokens(requests: pd.DataFrame, seen: Times, summary: Summary, ignore_eos: bool) -> Iterator[Finding]:
    """Of what was asked against what was got, and of who counted it."""
    read, read_asked, counted, asked = (
        requests[column].to_numpy(float, na_value=np.nan)[seen.completed]
        for column in ("input_tokens", "input_asked", "output_tokens", "output_asked")
    )
    got, arrived = (seen.each[column].to_numpy()[seen.completed] for column in ("output_tokens", "arrived_tokens"))
    if ignore_eos and (short := got < asked).any():
        lost = 1 - got[short].sum() / asked[short].sum()
        yield finding("short-output", short=short.sum(), answers=len(got), lost=lost)
    if (differs := ~np.isnan(read) & (read != read_asked)).any():
        yield finding("input-differs", read=read[differs].sum(), sent=read_asked[differs].sum())
    if (differs := ~np.isnan(counted) & (counted != arrived)).any():
        yield finding("count-differs", counted=counted[differs].sum(), arrived=arrived[differs].sum())
    unseen = summary["unseen_gaps"].value
    if unseen is not None and unseen > GROUPED_SHARE:
        yield finding("grouped-tokens", unseen=unseen)
    cached, total = summary["cached_tokens"].value, summary["input_tokens.got"].value
    if cached is not None and total is not None and cached > 0:
        yield finding("cached-input", share=cached / total)


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
