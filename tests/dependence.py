"""Closed loops whose requests depend on each other, simulated without a clock: known answers for intervals.

Each user's requests follow each other in work time, in which the engine is steady; one warp for all users turns work
time into seconds, so that what slows all users together is exact, and so are the long-run means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from builders import frame_of
from numpy.typing import NDArray

from harness.analysis import diff, gates
from harness.analysis.latency import STATISTICS, summarise, window_of
from harness.analysis.part import LEAST_SLICES, MOST_SLICES
from harness.analysis.precision import LEAST, TURNOVERS, Looks
from harness.analysis.tokens import Events
from harness.analysis.window import find_window
from harness.model import Figure, Summary
from harness.stats import least_values, rate_half

Array = NDArray[np.float64]
TTFT_S, ITL_S, TOKENS = 0.3, 0.01, 100
STAY_S = TTFT_S + ITL_S * TOKENS
"""Mean time of a request."""
PARTS = 4
"""Arrivals of a request, the first of one token."""
EMPTY = frame_of([])


@dataclass(frozen=True)
class Kind:
    """How requests depend on each other."""

    cv: float = 0.5
    """Coefficient of variation of the lognormal lengths."""
    tail: float | None = None
    """Index of Pareto lengths instead."""
    own: float = 0.0
    """Correlation of the logarithm of the slowness of one user's successive requests."""
    own_sd: float = 0.4
    """Standard deviation of that logarithm, and of that of a conversation's slowness."""
    together_s: float = 0.0
    """Time over which all users are slow together, in mean request times."""
    together_sd: float = 0.1
    bursts_each: float = 0.0
    """Mean request times from one burst, in which all are `slow` times as slow for one request time, to the next."""
    slow: float = 1.5
    turns: int = 1
    """Most requests of a conversation, whose slowness is its own; the user thinks for a request time before each."""


KINDS: Mapping[str, Kind] = {
    "independent": Kind(),
    "each user's slowness, AR(1) 0.8": Kind(own=0.8),
    "all slow together, for 1 request time": Kind(together_s=1),
    "all slow together, for 2 request times": Kind(together_s=2),
    "bursts, one in 4 request times": Kind(bursts_each=4),
    "bursts, one in 8 request times": Kind(bursts_each=8),
    "Pareto lengths, index 2.5": Kind(tail=2.5),
    "conversations of 1 to 10 turns": Kind(turns=10),
}


def drawn(number: int) -> tuple[str, Kind, int, int]:
    """The name, kind, users and requests of a condition with random parameters; from 20 request times on."""
    rng = np.random.default_rng([2026, number])
    names = ("bursts", "together", "own", "tail", "conversations", "bursts and own")
    name, values = names[number % len(names)], {"cv": rng.uniform(0.1, 1.2)}
    if "own" in name:
        values |= {"own": rng.uniform(0.3, 0.9), "own_sd": rng.uniform(0.2, 0.5)}
    if "bursts" in name:
        values |= {"bursts_each": rng.uniform(3, 8), "slow": rng.uniform(1.2, 2.5)}
    if name == "together":
        values |= {"together_s": rng.uniform(0.3, 2.5), "together_sd": rng.uniform(0.04, 0.2)}
    if name == "tail":
        values = {"tail": rng.uniform(2.1, 3.5)}
    if name == "conversations":
        values |= {"own_sd": rng.uniform(0.2, 0.5)}
    kind = Kind(**values, turns=int(rng.integers(3, 16)) if name == "conversations" else 1)
    users = round(16 * 8 ** rng.random())
    told = ", ".join(f"{key} {value:.2g}" for key, value in values.items())
    turns = f", 1 to {kind.turns} turns" if kind.turns > 1 else ""
    return f"{name}: {told}{turns}", kind, users, max(1000, round(users * rng.uniform(20, 50)))


@dataclass(frozen=True)
class Sent:
    """Requests of all users in order of sending; times in seconds."""

    sent_s: Array
    arrival_s: Array
    """A row a request, a column an arrival."""
    tokens: Array
    user: NDArray[np.int64]
    talk: NDArray[np.int64]
    turn: NDArray[np.int64]
    wave: NDArray[np.bool_]
    """In flight at the start."""

    @property
    def stay_s(self) -> Array:
        return np.asarray(self.arrival_s[:, -1] - self.sent_s)


def _correlated(rng: np.random.Generator, shape: tuple[int, int], phi: float) -> Array:
    """Rows of a stationary AR(1) series with variance 1."""
    from scipy.signal import lfilter

    noise = rng.standard_normal(shape) * math.sqrt(1 - phi**2)
    noise[:, 0] /= math.sqrt(1 - phi**2)
    return np.asarray(lfilter([1.0], [1.0, -phi], noise, axis=1))


def _warp(kind: Kind, rng: np.random.Generator, begin: float, end: float) -> tuple[Array, Array]:
    """Instants of work time, and the seconds at each; a second a second in the mean."""
    step = STAY_S / 20
    work = np.arange(begin, end + step, step)
    slow = np.ones(len(work))
    if kind.together_s:
        z = _correlated(rng, (1, len(work)), math.exp(-step / (kind.together_s * STAY_S)))[0]
        slow = np.exp(kind.together_sd * z - kind.together_sd**2 / 2)
    if kind.bursts_each:
        first = begin - STAY_S
        count = rng.poisson((end - first) / (kind.bursts_each * STAY_S))
        starts = np.sort(rng.uniform(first, end, count))
        inside = np.searchsorted(starts, work) > np.searchsorted(starts, work - STAY_S)
        share = 1 - math.exp(-1 / kind.bursts_each)
        slow = np.where(inside, kind.slow, 1.0) / (1 + share * (kind.slow - 1))
    seconds = np.concatenate(([0.0], np.cumsum(slow[:-1]) * step))
    return work, seconds - np.interp(0.0, work, seconds)


def simulate(kind: Kind, users: int, requests: int, rng: np.random.Generator) -> Sent:
    """`requests` of `users`, after those in flight at the start; conversations all begin then."""
    talks, burn = kind.turns > 1, 0 if kind.turns > 1 else 10
    each = math.ceil(1.3 * requests / users + 5 * math.sqrt(requests / users)) + 2 * burn + 5
    shape = (users, each)
    sigma = math.sqrt(math.log1p(kind.cv**2))
    tokens = TOKENS * np.exp(sigma * rng.standard_normal(shape) - sigma**2 / 2)
    if kind.tail is not None:
        tokens = TOKENS * (kind.tail - 1) * rng.pareto(kind.tail, shape)
    tokens = np.maximum(PARTS, np.round(tokens))
    slow, sd = np.ones(shape), kind.own_sd
    if kind.own:
        slow = np.exp(sd * _correlated(rng, shape, kind.own) - sd**2 / 2)
    talk, turn, think = np.tile(np.arange(each), (users, 1)), np.zeros(shape, int), np.zeros(shape)
    if talks:
        sizes = rng.integers(1, kind.turns + 1, shape)
        ends = sizes.cumsum(axis=1)
        for i in range(users):
            talk[i] = np.searchsorted(ends[i], np.arange(each), side="right")
            turn[i] = np.arange(each) - np.concatenate(([0], ends[i]))[talk[i]]
            slow[i] = np.exp(sd * rng.standard_normal(each) - sd**2 / 2)[talk[i]]
        think = np.where(turn > 0, rng.exponential(STAY_S, shape), 0.0)
    wait = TTFT_S * rng.gamma(4.0, 0.25, shape) * slow
    decode = ITL_S * tokens * slow
    end = (think + wait + decode).cumsum(axis=1) - burn * STAY_S * (1 + rng.random((users, 1)) if burn else 1)
    sent, first = end - wait - decode, end - decode
    places = [first + decode * k / (PARTS - 1) for k in range(PARTS)]
    work, seconds = _warp(kind, rng, float(sent.min()), float(end.max()))
    warped = [np.interp(x, work, seconds).ravel() for x in (sent, *places)]
    over = warped[-1]
    wave = (warped[0] < 0) & (over > 0)
    order = np.flatnonzero(warped[0] >= 0)
    order = order[np.argsort(warped[0][order], kind="stable")][:requests]
    order = np.concatenate((np.flatnonzero(wave), order))
    named = (talk + each * np.arange(users)[:, None]).ravel()
    user = np.repeat(np.arange(users), each)
    arrival_s = np.column_stack([x[order] for x in warped[1:]])
    ids = user[order], named[order], turn.ravel()[order]
    return Sent(np.maximum(warped[0][order], 0.0), arrival_s, tokens.ravel()[order], *ids, wave[order])


def frame(sent: Sent, talks: bool) -> pd.DataFrame:
    """The rows that a run would store."""
    n = len(sent.sent_s)
    arrivals = [_after_0(*each) for each in zip(sent.arrival_s, np.round(_groups(sent)), strict=True)]
    known: dict[str, Any] = {
        "index": np.arange(n), "scheduled_s": sent.sent_s, "sent_s": sent.sent_s, "end_s": sent.arrival_s[:, -1],
        "arrival_s": [when for when, _ in arrivals],
        "arrival_tokens": [groups for _, groups in arrivals],
        "input_asked": 16, "input_tokens": 16,
        "output_asked": [int(groups.sum()) for _, groups in arrivals],
        "age_tokens": [1 if each else None for each in sent.wave],
    }  # fmt: skip
    known["output_tokens"] = known["output_asked"]
    if talks:
        known |= {"conversation": pd.factorize(sent.talk)[0], "turn": sent.turn}
    return pd.DataFrame({name: known.get(name) for name in EMPTY.columns}).astype(EMPTY.dtypes.to_dict())


def _groups(sent: Sent) -> Array:
    """Tokens of each arrival, of a request in flight at the start those after it: tokens are spread over a gap."""
    groups = np.diff(np.linspace(1, sent.tokens, PARTS, axis=1), axis=1, prepend=0.0)
    since = np.column_stack((sent.sent_s, sent.arrival_s[:, :-1]))
    gap_s = np.maximum(sent.arrival_s - since, 1e-9)
    return np.asarray(groups * np.where(since < 0, np.clip(sent.arrival_s / gap_s, 0, 1), 1))


def _after_0(when: Array, groups: Array) -> tuple[Array, NDArray[np.int64]]:
    """The arrivals of a request after the start. One that had tokens before has its next at once."""
    begun = int((when <= 0).sum())
    when, sizes = when[begun:], np.maximum(1, groups[begun:].astype(int))
    if begun and sizes[0] > 1:
        return np.append(min(ITL_S, when[0] / 2), when), np.append([1, sizes[0] - 1], sizes[1:])
    return when, sizes


def summary(sent: Sent, kind: Kind, users: int) -> Summary:
    """The figures of a run, as the harness computes them of its rows."""
    rows = frame(sent, kind.turns > 1)
    return summarise("simulated", "complete", rows, {}, True, window_of(rows, "complete", "closed", users))


QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
FIGURES = ("output_tokens_per_s", "e2e_s.mean", *(f"e2e_s.{name}" for name in QUANTILES))
LEAST_TRUTH = 200_000


@lru_cache(maxsize=64)
def truth(kind: Kind, users: int) -> Mapping[str, float]:
    """`FIGURES` of a run of many requests."""
    sent = simulate(kind, users, max(LEAST_TRUTH, 500 * users), np.random.default_rng(999))
    ends = np.quantile(sent.sent_s, [0.1, 0.9])
    inside = (sent.sent_s >= ends[0]) & (sent.sent_s < ends[1])
    stays, tokens = sent.stay_s[inside], float(sent.tokens[inside].sum())
    latencies = {f"e2e_s.{name}": float(np.quantile(stays, p)) for name, p in QUANTILES.items()}
    return {"output_tokens_per_s": tokens / float(ends[1] - ends[0]), "e2e_s.mean": float(stays.mean()), **latencies}


def covers(figure: Figure, true: float) -> bool | None:
    """Whether the interval holds the truth; None without an interval."""
    return None if figure.low is None or figure.high is None else figure.low <= true <= figure.high


@dataclass(frozen=True)
class Coverage:
    """Of the runs: the share with an interval, the share of these that hold the truth, and the median half-width over
    that of the true spread, 1.96 standard deviations of the figure between the runs."""

    given: float
    held: float
    width: float


def coverage(kind: Kind, users: int, requests: int, runs: int, seed: int = 0) -> dict[str, Coverage]:
    """The coverage of each of `FIGURES` in so many runs."""
    rngs = [np.random.default_rng([seed, i]) for i in range(runs)]
    made = [summary(simulate(kind, users, requests, rng), kind, users) for rng in rngs]
    found = {}
    for name in FIGURES:
        figures = [each[name] for each in made]
        held = [x for figure in figures if (x := covers(figure, truth(kind, users)[name])) is not None]
        halves = [(each.high - each.low) / 2 for each in figures if each.low is not None and each.high is not None]
        spread = 1.96 * float(np.std([figure.value for figure in figures if figure.value is not None]))
        width = float(np.median(halves)) / spread if halves else math.nan
        found[name] = Coverage(len(held) / runs, float(np.mean(held)) if held else math.nan, width)
    return found


def stopped(kind: Kind, users: int, share: float, most: int, rng: np.random.Generator) -> tuple[int, float, float]:
    """At how many requests `--precision` stops a run of at most `most`; the tokens per second and the half-width there.

    A run that ends sooner is the beginning of the same run. The half-width is nan without an interval.
    """
    whole, looks, n, rate, half = (
        simulate(kind, users, most, rng),
        Looks(max(LEAST, TURNOVERS * users)),
        0,
        math.nan,
        math.nan,
    )
    ahead = int(whole.wave.sum())

    def precise() -> bool:
        nonlocal rate, half
        rate, half = rate_of(Sent(*(getattr(whole, each.name)[: ahead + n] for each in fields(Sent))), users)
        return half <= share * rate

    while n < most and not looks.enough(n, precise):
        n = min(looks.due, most)
    return n, rate, half


def rate_of(sent: Sent, users: int) -> tuple[float, float]:
    """The tokens per second of `summary`, and the half-width of the interval, without the other figures."""
    begin = np.column_stack((sent.sent_s, sent.arrival_s[:, :-1]))
    output = Events(np.maximum(begin, 0.0).ravel(), np.maximum(sent.arrival_s, 0.0).ravel(), _groups(sent).ravel())
    first_s, end_s = sent.arrival_s[:, 0], sent.arrival_s[:, -1]
    window = find_window(sent.sent_s, first_s, end_s, output.until, shape="closed", users=users, load_only=sent.wave)
    rate = float(np.diff(output.until(np.array([window.begin_s, window.end_s])))[0]) / (window.end_s - window.begin_s)
    batches = int((~sent.wave & (sent.sent_s >= window.begin_s) & (sent.sent_s < window.end_s)).sum()) / users
    cuts = np.linspace(window.begin_s, window.end_s, round(np.clip(batches, LEAST_SLICES, MOST_SLICES)) + 1)
    stay_s = np.clip(end_s, window.begin_s, window.end_s) - np.clip(sent.sent_s, window.begin_s, window.end_s)
    gaps_s = np.maximum(output.end_s - output.begin_s, 1e-9)
    part = np.clip((np.minimum(output.end_s, window.end_s) - np.maximum(output.begin_s, window.begin_s)) / gaps_s, 0, 1)
    given = (output.amount * part).reshape(-1, PARTS).sum(axis=1)
    errors = given - given.sum() / stay_s.sum() * stay_s
    half = None
    if window.whole is None and batches * users >= least_values(users):
        half = rate_half(np.diff(output.until(cuts)), batches, errors[stay_s > 0], sent.user[stay_s > 0])
    return rate, math.nan if half is None else half * rate


KINDS_OF_FIGURES = {
    "throughput": ("output_tokens_per_s", "requests_per_s"),
    **{name: tuple(f"{name}.{each}" for each in STATISTICS) for name in ("ttft_s", "tpot_s", "e2e_s")},
}


def _run(rng: np.random.Generator, spread: float, within: float, session: float, slower: float) -> Summary:
    """A run's table of figures. Those of one kind differ between runs together; a run knows each to `within`."""
    figures = []
    for kind, names in KINDS_OF_FIGURES.items():
        shared = rng.normal(session, spread) + (-slower if kind == "throughput" else slower)
        for name in names:
            value = math.exp(shared + rng.normal(0, within))
            ends = (value * math.exp(-1.96 * within), value * math.exp(1.96 * within))
            figures.append(Figure(name, value, "u", "simulated", *ends))
    return Summary("simulated", "complete", tuple(figures), {})


@dataclass(frozen=True)
class Rates:
    """Of the pairs of groups: the share with any figure improved or regressed, with the throughput named, and with a
    failed gate `output_tps<-3%`."""

    table: float
    throughput: float
    gate: float


WITHIN = 0.005


def verdicts(repeats: int, turns: bool, spread: float, session: float, slower: float, pairs: int) -> Rates:
    """How often two groups of so many runs are called different. `spread`: standard deviation between runs; `session`:
    between sessions, of which each side has one, but for sides that took `turns`; `slower`: what is true of one."""
    rng, gate, found = np.random.default_rng(0), gates.parse_gate("output_tps<-3%"), []
    for _ in range(pairs):
        sessions = np.repeat(rng.normal(0, session), 2) if turns else rng.normal(0, session, 2)
        base, new = (
            [_run(rng, spread, WITHIN, float(at), change) for _ in range(repeats)]
            for at, change in zip(sessions, (0.0, slower), strict=True)
        )
        changes = diff.judge(base, new, interleaved=turns)
        named = {c.ratio.name for c in changes if c.judgement in ("improved", "regressed")}
        ((_, outcome),) = gates.of_changes([gate], changes)
        found.append((bool(named), "output_tokens_per_s" in named, outcome == "failed"))
    return Rates(*map(float, np.mean(found, axis=0)))
