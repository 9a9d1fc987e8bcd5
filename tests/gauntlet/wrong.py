"""Mutations: wrong tools, each made of what the right one saw. A trap that none of them falls into catches nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from gauntlet.trap import Answer, Seen, Stand, Trap, Wrong

Figures = dict[str, float | None]
Estimator = Callable[[Trap, Stand, Answer], Figures]
ESTIMATORS: dict[str, Estimator] = {}


def estimator(make: Estimator) -> Estimator:
    ESTIMATORS[make.__name__.replace("_", "-")] = make
    return make


SILENT = "silent"
"""A tool that does not look at what went wrong: right figures without a finding."""


def mutated(wrong: str | Wrong, trap: Trap, stand: Stand, answer: Answer) -> Answer:
    """The right answer with a wrong tool's figures, and the findings that the trap asks for: only figures are wrong."""
    if wrong == SILENT:
        return Answer(answer.figures)
    figures = wrong.figures if isinstance(wrong, Wrong) else ESTIMATORS[wrong](trap, stand, answer)
    return Answer({**answer.figures, **figures}, frozenset(trap.must_say))


# ---- clients that misread a stream ----


def contents(event: Any) -> list[str]:
    """The fields of an event that hold something a model wrote."""
    choices = event.get("choices") if isinstance(event, dict) else None
    if not choices:
        return []
    said = {"content": choices[0].get("text")} | (choices[0].get("delta") or {})
    return [name for name, value in said.items() if value and name != "role"]


def shown(event: Any) -> bool:
    return bool(contents(event))


def usage(seen: Seen) -> dict[str, Any]:
    told = [event["usage"] for _, event in seen.events if isinstance(event, dict) and event.get("usage")]
    return told[-1] if told else {}


def asked(trap: Trap, stand: Stand) -> Sequence[Seen]:
    """The requests of the load; those before them are warm-up and first wave."""
    return list(stand.log())[-trap.load.requests :]


def client(
    trap: Trap,
    stand: Stand,
    *,
    is_first: Callable[[Any], bool] = shown,
    is_token: Callable[[Any], bool] = shown,
    count: Callable[[Seen, int], int] = lambda _, events: events,
    counts_failed: bool = False,
) -> Figures:
    """A simple client's figures: what starts the answer for it, what is a token, how many there were, what failed.

    TPOT is (last - first) / (tokens - 1).
    """
    first, tpot, e2e, tokens, failed = [], [], [], 0, 0
    requests = asked(trap, stand)
    for seen in requests:
        times = [at for at, event in seen.events if is_token(event)]
        broken = seen.status != 200 or not times or any("error" in (event or {}) for _, event in seen.events)
        failed += broken
        if broken and not counts_failed:
            continue
        n = count(seen, len(times))
        start = next((at for at, event in seen.events if is_first(event)), seen.end_s)
        last = times[-1] if times else seen.end_s
        first.append(start - seen.sent_s)
        e2e.append(last - seen.sent_s)
        tokens += n
        if n > 1:
            tpot.append((last - start) / (n - 1))
    over_s = max(seen.end_s for seen in requests) - requests[0].sent_s
    return {
        "ttft_s.p50": float(np.median(first)) if first else None,
        "tpot_s.p50": float(np.median(tpot)) if tpot else None,
        "e2e_s.p50": float(np.median(e2e)) if e2e else None,
        "requests_per_s": len(e2e) / over_s,
        "output_tokens_per_s": tokens / over_s,
        "requests.failed": 0.0 if counts_failed else float(failed),
        "input_tokens.got": float(sum(usage(seen).get("prompt_tokens", 0) for seen in requests)),
    }


@estimator
def first_event(trap: Trap, stand: Stand, _: Answer) -> Figures:
    """TTFT is that of the first event, such as a role."""
    return client(trap, stand, is_first=lambda event: isinstance(event, dict))


@estimator
def first_byte(trap: Trap, stand: Stand, _: Answer) -> Figures:
    """TTFT is that of the first byte, such as a comment's."""
    return client(trap, stand, is_first=lambda _: True)


@estimator
def answer_only(trap: Trap, stand: Stand, _: Answer) -> Figures:
    """Only the text of the answer counts: no reasoning, no tool call."""
    only = lambda event: contents(event) == ["content"] and isinstance(text_of(event), str)  # noqa: E731
    return client(trap, stand, is_first=only, is_token=only)


def text_of(event: Any) -> Any:
    choice = event["choices"][0]
    return choice.get("text") or choice["delta"].get("content")


@estimator
def usage_believed(trap: Trap, stand: Stand, _: Answer) -> Figures:
    """Tokens are those of the last usage, whatever came."""
    return client(trap, stand, count=lambda seen, _: int(usage(seen).get("completion_tokens", 0)))


@estimator
def events_are_tokens(trap: Trap, stand: Stand, _: Answer) -> Figures:
    """Each event with a text is one token, and no other is."""
    return client(trap, stand)


@estimator
def chunks_are_events(trap: Trap, stand: Stand, _: Answer) -> Figures:
    """A chunk of HTTP that is no whole event is dropped."""
    return client(trap, stand, is_token=lambda event: isinstance(event, dict) and shown(event))


@estimator
def all_are_answers(trap: Trap, stand: Stand, _: Answer) -> Figures:
    """Whatever ends is an answer, and nothing fails."""
    return client(trap, stand, counts_failed=True)


@estimator
def asked_tokens(trap: Trap, stand: Stand, _: Answer) -> Figures:
    """Each answer has the tokens that were asked for."""
    return client(trap, stand, count=lambda seen, _: seen.asked)


@estimator
def old_parameter(trap: Trap, *_: object) -> Figures:
    """Sends max_tokens alone, which the server refuses."""
    return {"requests.failed": float(trap.load.requests), "ttft_s.p50": None, "tpot_s.p50": None}


# ---- loads and windows, from the requests of the stored run ----


def requests_of(answer: Answer) -> pd.DataFrame:
    from harness.store.run import read_run

    assert answer.run is not None
    found = read_run(answer.run).requests
    return found.sort_values("sent_s", ignore_index=True)


def firsts(requests: pd.DataFrame) -> Any:
    return requests["arrival_s"].list[0].to_numpy(float)


def lasts(requests: pd.DataFrame) -> Any:
    return requests["arrival_s"].list[-1].to_numpy(float)


@estimator
def whole_run(trap: Trap, _: Stand, answer: Answer) -> Figures:
    """Rates over the whole run, with its end at falling load."""
    found = requests_of(answer)
    return {"requests_per_s": trap.load.requests / (lasts(found).max() - found["sent_s"].min())}


@estimator
def tpot_with_first(_: Trap, __: Stand, answer: Answer) -> Figures:
    """TPOT is E2E over tokens."""
    found = requests_of(answer)
    return {"tpot_s.p50": float(np.median((lasts(found) - found["sent_s"]) / found["output_tokens"]))}


@estimator
def own_delay(_: Trap, __: Stand, answer: Answer) -> Figures:
    """A client that comes to each token 30 ms late, as one that is busy does."""
    return {"ttft_s.p50": float(np.median(firsts(found := requests_of(answer)) + 0.03 - found["sent_s"]))}


@estimator
def from_service(_: Trap, __: Stand, answer: Answer) -> Figures:
    """Sends only when a slot of the server is free, and counts from there: coordinated omission."""
    found = requests_of(answer)
    last = lasts(found)
    slots = 4
    begun = np.maximum(found["sent_s"].to_numpy(float)[slots:], last[:-slots])
    return {"whole_run.ttft_s.p50": float(np.median(firsts(found)[slots:] - begun))}


@estimator
def asked_rate(trap: Trap, *_: object) -> Figures:
    """The rate that was asked for passes for the rate that was served."""
    return {"requests_per_s": trap.load.rate_per_s}


@estimator
def response_from_sent(_: Trap, __: Stand, answer: Answer) -> Figures:
    """The user's wait begins when the client gets round to sending."""
    return {"whole_run.response_s.p50": answer.figures["whole_run.e2e_s.p50"]}


def arrivals(gaps: Any) -> Figures:
    from scipy import stats

    scaled = gaps / gaps.mean()
    distance = float(stats.kstest(scaled, "expon").statistic)
    return {"arrivals.gap_cv": float(scaled.std()), "arrivals.ks_to_poisson": distance}


@estimator
def constant_gaps(trap: Trap, *_: object) -> Figures:
    return arrivals(np.full(trap.load.requests, 1.0))


@estimator
def poisson_gaps(trap: Trap, *_: object) -> Figures:
    return arrivals(np.random.default_rng(1).exponential(size=trap.load.requests))


# ---- meters, from their readings ----


@estimator
def mean_of_readings(_: Trap, __: Stand, answer: Answer) -> Figures:
    """Power is the mean of the newest power, read each second."""
    assert answer.power is not None
    gpu = answer.power[answer.power["domain"] == "gpu"]
    return {"gpu_power_w": float(gpu["power_w"].mean())}


@estimator
def counter_ends(_: Trap, __: Stand, answer: Answer) -> Figures:
    """Power is the last reading of the counter minus the first, over the time."""
    assert answer.power is not None
    gpu = answer.power[(answer.power["domain"] == "gpu") & answer.power["energy_j"].notna()]
    spans = gpu[["energy_j", "before_s"]].iloc[[0, -1]].diff().iloc[-1]
    return {"gpu_power_w": float(spans["energy_j"] / spans["before_s"])}
