"""Findings: what is doubtful about a run. The texts are in data/findings.yaml, the limits and conditions here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.analysis.times import Times, error_kinds, times
from harness.analysis.tokens import by_conversation, ordinary, stalls
from harness.analysis.window import Window
from harness.config import data_yaml
from harness.model import Finding, ModelIdentity, Summary
from harness.stats import least_n
from harness.store.run import Run


@dataclass(frozen=True, slots=True)
class Row:
    """One code. `seen` and `advice` hold {names} that a run's values replace."""

    seen: str
    about: str
    advice: str
    serious: bool | str = False
    """A text names the condition under which it is serious: then the caller decides."""


@cache
def findings() -> Mapping[str, Row]:
    """The table, by code."""
    return {code: Row(**row) for code, row in data_yaml("findings.yaml").items()}


def finding(code: str, *, serious: bool | None = None, **values: Any) -> Finding:
    """The finding with this code and a run's values in its texts. KeyError for an unknown code or a missing value.

    >>> finding("few-requests", done=16, needs=299).text
    '16 requests completed, too few for an interval of the p99: it needs 299.'
    """
    row = findings()[code]
    decided = bool(row.serious if serious is None else serious)  # no bool of numpy, which JSON refuses
    return Finding(code, row.seen.format(**values), row.advice.format(**values), decided)


FAILED_SHARE = 0.01
"""Share of failed requests above which the load on the others was lower than asked."""
SWAPPED_BYTES = 4 << 20
"""Bytes moved to or from swap during a run, above which swapping is a finding."""
LARGEST_BIAS = 0.03
"""Largest bias of rates, from the mix of the window's tokens, without a finding."""
PER_SLOT = 5
"""Fewest completed requests per user of a closed loop for percentiles of E2E that hold the longest answers."""
SERIOUS_STALL = 0.05
"""Share of the run above which a stall is serious."""
MOST_LEFT_OUT = 0.1
"""Largest share of the run that is left out of the window without a finding."""
SLOW_END = 2.0
"""Times the longest request of the window, above which the time after it is a slow end."""
GROUPED_SHARE = 0.1
"""Share of unseen gaps between tokens above which ITL is doubtful."""


def check_requests(run: Run, summary: Summary, window: Window | None = None) -> Iterator[Finding]:
    """Findings about the requests of a run; `summary` and `window` are those of the run."""
    seen = times(run.requests, run.state)
    yield from _conduct(run, seen, window)
    yield from _steadiness(run, summary, window)
    yield from _tokens(run, seen, summary)


def check_conditions(run: Run, summary: Summary) -> Iterator[Finding]:
    """Findings about the machine and the engine's options; of a simulated run only that another one was beside it."""
    place, options = run.environment, run.engine.options if run.engine else {}
    if run.skipped:
        yield finding("damaged-rows", rows=", ".join(f"{lost:,} of {name}" for name, lost in run.skipped.items()))
    if place.other_run:
        yield finding("other-run", serious=not run.on_gpu and not run.simulated)
    if run.simulated:
        return
    swapped = sum(place.swap.values())
    if place.debug:
        yield finding("debug-build", debug=", ".join(place.debug))
    if run.engine is not None and run.engine.random_weights:
        yield finding("random-weights")
    if swapped > SWAPPED_BYTES:
        yield finding("swap", swapped=f"{swapped / 1e6:.0f} MB moved to or from swap during the run")
    if set(place.governors) - {"performance"}:
        yield finding("cpu-frequency", governor=", ".join(place.governors))
    if place.git is not None and place.git.dirty:
        yield finding("dirty-tree", revision=str(place.git.revision))
    if run.file.prompts is not None and run.file.prompts.random and (distorted := _distorted(run, summary)):
        yield finding("random-tokens", distorted=" and ".join(distorted))
    kinds = run.file.workload.requests.kinds
    repeats = any(x is not None for kind in kinds for x in (kind.prompts, kind.prefix, kind.turns))
    if options.get("enable_prefix_caching") and repeats and summary["cached_tokens"].value is None:
        yield finding("prefix-cache")


def _distorted(run: Run, summary: Summary) -> list[str]:
    """What random prompts distort in this run."""
    model = run.engine.model if run.engine else ModelIdentity(None)
    doubts = {
        "the acceptance of speculative decoding": any(each.name == "acceptance.mean" for each in summary.figures),
        "the load of the experts": (model.active_parameters or np.inf) < (model.parameters or 0),
        "the power of the GPU": any("gpu" in device.domain for meter in run.file.meters for device in meter.devices),
    }
    return [name for name, holds in doubts.items() if holds]


def _conduct(run: Run, seen: Times, window: Window | None) -> Iterator[Finding]:
    """Did the run end, which requests failed, and were there enough requests?"""
    done = int((seen.completed & ordinary(run.requests)).sum())
    if run.state != "complete":
        requests = run.file.workload.requests
        # With conversations `count` is the number of conversations, not of requests.
        asked = None if any(kind.turns for kind in requests.kinds) else requests.count
        of_all = done if asked is None else f"{done} of {asked}"
        cut = int((~seen.completed & ~seen.failed).sum())
        yield finding("incomplete", state=run.state, done=of_all, cut=cut)
    failed, ended = int(seen.failed.sum()), int((seen.completed | seen.failed).sum())
    if failed > FAILED_SHARE * ended:  # the first wave too: it is load
        yield _failed(run.requests, seen.failed, ended)
    elif window is not None:
        for i, step in enumerate(window.steps, 1):
            until_s = step.stage.end_s if step.stage else step.end_s
            here = run.requests["end_s"].between(step.since_s, until_s).to_numpy(bool)
            ended = int((here & (seen.completed | seen.failed)).sum())
            if (here & seen.failed).sum() > FAILED_SHARE * ended:
                yield of_step(i, step, _failed(run.requests, here & seen.failed, ended))
    if 0 < done < (needs := least_n(0.99)):
        yield finding("few-requests", done=done, needs=needs)
    if run.shape == "closed" and run.users and 0 < done < PER_SLOT * run.users:
        yield finding("few-requests-per-slot", done=done, each=done / run.users, needs=PER_SLOT)


def _failed(requests: pd.DataFrame, failed: NDArray[np.bool_], ended: int) -> Finding:
    kinds = ", ".join(f"{kind} {count}" for kind, count in error_kinds(requests[failed]).items())
    if len(texts := requests["error_text"][failed].dropna()):
        kinds += f"; mostly '{texts.mode()[0][:80]}'"
    return finding("failed-requests", share=failed.sum() / ended, kinds=kinds)


def of_step(i: int, step: Window, found: Finding) -> Finding:
    """The finding with the number of the load's step, and what was asked in it."""
    return replace(found, text=f"Step {i} ({step.stage.text if step.stage else ''}): {found.text}")


def _steadiness(run: Run, summary: Summary, window: Window | None) -> Iterator[Finding]:
    """Was the load steady in the window, and does the window stand for the whole run?"""
    cut_s = 0.0 if window is None or window.whole is not None else window.begin_s
    if run.file.workload.warmup.requests == 0 and cut_s <= 0 and not run.simulated:
        yield finding("no-warmup")
    if window is None:
        return
    for i, step in enumerate(window.steps, 1):
        for each in _of_window(step, summary, step.stage is window.stage, f"step.{i}."):
            yield of_step(i, step, each)
    if not window.steps:
        yield from _of_window(window, summary, True)
    yield from _outages(run.requests, window)


def _of_window(window: Window, summary: Summary, main: bool, figures: str = "") -> Iterator[Finding]:
    """Findings about one window. `main`: the run's figures are of this one.

    `figures`: the prefix of the names of the window's figures.
    """
    if window.whole is not None and window.code is not None:
        so = "the figures are of the whole run, ramp and drain included" if main else "the step has no figures"
        yield finding("no-window", why=window.whole, so=so, serious=main)
    if window.code == "queue-grows":
        yield finding("queue-grows", grown=window.grown)
    if window.code == "not-steady" and (moved := window.change) is not None:
        yield finding("not-steady", before=moved.before, since=moved.since)
    if window.code == "level-shift" and (moved := window.change) is not None:
        after = window.shift_s is not None and window.shift_s <= window.begin_s
        part, at_s = "the part after it" if after else "both levels", window.shift_s
        yield finding("level-shift", before=moved.before, since=moved.since, shift_s=at_s, part=part, serious=not after)
    users = window.stage.users if window.stage is not None and window.whole is None else None
    if users and (done := summary[f"{figures}e2e_s.mean"].n or 0) < PER_SLOT * users:
        yield finding("few-requests-per-slot", done=done, each=done / users, needs=PER_SLOT)
    coverage, bias = (summary[f"{figures}window.{name}"].value for name in ("position_coverage", "bias"))
    if coverage is not None and bias is not None and bias > LARGEST_BIAS:
        yield finding("position-coverage", coverage=coverage, bias=bias)


def _outages(requests: pd.DataFrame, window: Window) -> Iterator[Finding]:
    """Findings about stalls, about what the window leaves out, and about the end of the run."""
    begin_s, end_s = float(requests["sent_s"].min()), float(requests[["sent_s", "end_s"]].max().max())
    windows = window.steps or (window,)
    spans = [(begin_s, end_s, "the run")]
    if window.steps:
        steps = [each.stage for each in windows if each.stage is not None]
        spans = [(each.begin_s, each.end_s, f"step {i} ({each.text})") for i, each in enumerate(steps, 1)]
    for from_s, until_s in stalls(requests, [each.stage.begin_s for each in window.steps if each.stage]):
        waited = int(((requests["sent_s"] < until_s) & ~(requests["end_s"] < until_s)).sum())
        measured = [(each.begin_s, each.end_s) for each in windows if each.whole is None]
        inside = window.whole is not None or any(until_s > first and from_s < last for first, last in measured)
        part = "within the measured window" if inside else "outside the measured window"
        lost = [(min(until_s, last) - max(from_s, first)) / (last - first) for first, last, _ in spans]
        serious, stood_s = max(lost) > SERIOUS_STALL, until_s - from_s
        yield finding("stall", stood_s=stood_s, from_s=from_s, waited=waited, part=part, serious=serious)
    for each, (first, last, of) in zip(windows, spans, strict=True):
        share = each.left_out_s / (last - first)
        if each.whole is None and share > MOST_LEFT_OUT:
            yield finding("start-left-out", left_out_s=each.left_out_s, share=share, of=of)
    spans_of, last_s = by_conversation(requests[["sent_s", "end_s"]], requests), max(each.end_s for each in windows)
    usual_s = float((spans_of["end_s"] - spans_of["sent_s"])[spans_of["end_s"] <= last_s].max())
    tail_s = end_s - last_s
    if window.whole is None and tail_s > max(SLOW_END * usual_s, MOST_LEFT_OUT * (end_s - begin_s)):
        yield finding("slow-end", tail_s=tail_s, usual_s=usual_s)


def _tokens(run: Run, seen: Times, summary: Summary) -> Iterator[Finding]:
    """Do the tokens that were requested, sent, counted by the engine and received agree?"""
    read, read_asked, counted, asked = (
        run.requests[column].to_numpy(float, na_value=np.nan)[seen.completed]
        for column in ("input_tokens", "input_asked", "output_tokens", "output_asked")
    )
    got, arrived = (x[seen.completed] for x in (seen.output_tokens, seen.arrived_tokens))
    if run.file.workload.requests.ignore_eos and (short := got < asked).any():
        lost = 1 - got[short].sum() / asked[short].sum()
        yield finding("short-output", short=short.sum(), answers=len(got), lost=lost)
    if (differs := ~np.isnan(read) & (read != read_asked)).any():
        yield finding("input-differs", read=read[differs].sum(), sent=read_asked[differs].sum())
    if (claimed := counted > np.fmax(asked, arrived)).any():
        yield finding("usage-not-believed", counted=counted[claimed].sum(), used=got[claimed].sum())
    if (differs := ~np.isnan(counted) & (counted != arrived) & ~claimed).any():
        yield finding("count-differs", counted=counted[differs].sum(), arrived=arrived[differs].sum())
    if (hidden := seen.hidden_tokens[seen.completed]).any():
        yield finding("hidden-tokens", share=hidden.sum() / got.sum(), answers=int((hidden > 0).sum()), of=len(got))
    retries = run.requests["retries"].fillna(0).sum()
    if retries:
        yield finding("retried", retries=retries, requests=int((run.requests["retries"] > 0).sum()))
    unseen = summary["unseen_gaps"].value
    if unseen is not None and unseen > GROUPED_SHARE:
        yield finding("grouped-tokens", unseen=unseen)
    cached, total = summary["cached_tokens"].value, summary["input_tokens.got"].value
    if cached is not None and total is not None and cached > 0:
        yield finding("cached-input", share=cached / total)


def mixed(runs: Sequence[Run]) -> Finding | None:
    """The finding that software which can change a figure differs between these runs; None if it does not differ."""
    versions = [_software(run) for run in runs]
    names = sorted({name for each in versions for name in each})
    seen = {name: list(dict.fromkeys(str(each.get(name)) for each in versions)) for name in names}
    differ = [f"{name} {', '.join(values)}" for name, values in seen.items() if len(values) > 1]
    return finding("mixed-versions", differences="; ".join(differ)) if differ else None


def _software(run: Run) -> dict[str, str | None]:
    place = run.environment
    return {
        **place.packages,
        "harness": (place.git.revision if place.git else None) or place.harness,
        "python": place.python,
        "driver": place.driver,
        "engine": run.engine.version if run.engine else None,
    }
