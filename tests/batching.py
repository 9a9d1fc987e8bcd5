"""A discrete-event simulation of continuous batching under a closed loop: known rates and joules for windows.

One engine step gives every decoding request a token and reads up to `CHUNK` prompt tokens of waiting requests, first
in, first out. Its time has the form of a GPU's: a constant, a part per decoding request, per token of context and per
prompt token; so has its energy. The constants are near those of an H100 that serves a model of 8 billion parameters.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.analysis.tokens import Events, ordinary, spread_from
from harness.analysis.window import Window, find_window, of_stage
from harness.workload.arrivals import Stage
from harness.workload.library import read_trace

Array = NDArray[np.float64]
Lengths = Callable[[np.random.Generator, int], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Prompt and answer lengths of n requests."""
Start = Literal["equilibrium", "chunk unknown", "burst"]
"""How a run begins: "chunk unknown" is an equilibrium for which the harness does not know `CHUNK`."""
CHUNK = 8192
STEP_S, REQUEST_S, CONTEXT_S, PROMPT_S = 6.4e-3, 12e-6, 40e-9, 40e-6
STATIC_W, REQUEST_J, CONTEXT_J, PROMPT_J = 350.0, 2e-3, 1e-6, 6e-3
LEAST = 20_000
"""Requests of the long run that counts as the truth."""
POOL = 4096
"""Requests from which those of the first wave are drawn."""


@dataclass(frozen=True)
class Served:
    """One run, an element a request in order of sending, the first wave first; `energy` at each end of a step."""

    sent_s: Array
    end_s: Array
    age: NDArray[np.int64]
    """Tokens that a request of the first wave had before the run."""
    wave: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    """Tokens of each answer."""
    arrival_s: Array
    """The time of every token, request by request."""
    step_s: Array
    energy_j: Array

    def output(self) -> Events:
        return Events(
            spread_from(self.sent_s, self.arrival_s, self.sizes), self.arrival_s, np.ones(len(self.arrival_s))
        )

    def joules(self, instants: Array) -> Array:
        return np.asarray(np.interp(instants, self.step_s, self.energy_j))


def fixed(prompt: int, answer: int) -> Lengths:
    return lambda _, n: (np.full(n, prompt), np.full(n, answer))


def lognormal(prompt: int, mean: float, cv: float) -> Lengths:
    sigma = np.sqrt(np.log1p(cv**2))

    def draw(rng: np.random.Generator, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        answers = mean * np.exp(sigma * rng.standard_normal(n) - sigma**2 / 2)
        return np.full(n, prompt), np.maximum(1, np.round(answers)).astype(int)

    return draw


def traced(name: str) -> Lengths:
    trace = read_trace(name)

    def draw(rng: np.random.Generator, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # Each row as often as any other: a long run then has the trace's own mean.
        turns = -(-n // len(trace.input_tokens))
        rows = np.concatenate([rng.permutation(len(trace.input_tokens)) for _ in range(turns)])[:n]
        return trace.input_tokens[rows], np.maximum(1, trace.output_tokens[rows])

    return draw


def first_wave(lengths: Lengths, rng: np.random.Generator, users: int, chunk: float) -> tuple[NDArray[np.int64], ...]:
    """Prompts with the age, rest of the answers, and ages: lengths drawn in proportion to themselves, ages uniform.

    Users beyond those whose answers end as fast as `chunk` reads prompts send any request, at its beginning.
    """
    prompts, answers = lengths(rng, POOL)
    drawn = rng.choice(POOL, users, p=answers / answers.sum())
    ages = (rng.random(users) * answers[drawn]).astype(int)
    waits = np.arange(users) >= chunk * answers.mean() / prompts.mean()
    drawn[waits], ages[waits] = rng.integers(POOL, size=int(waits.sum())), 0
    # Each has its age when the last that does not wait is read.
    later = np.maximum(0, np.flatnonzero(~waits)[-1] - np.arange(users)) * prompts.mean() / chunk
    ages = np.maximum(0, ages - later).astype(int)
    return prompts[drawn] + ages, answers[drawn] - ages, ages


def serve(
    users: int, count: int, lengths: Lengths, seed: int, start: Start = "equilibrium", stages: Sequence[Stage] = ()
) -> Served:
    """A run of `count` requests after the first wave (of none if it is a burst), all run to their end.

    With `stages` of users the users are theirs: new ones begin with a first wave, and those of the highest numbers end
    their answers and leave.
    """
    rng = np.random.default_rng(seed)
    supply = iter(zip(*lengths(rng, count), strict=True))
    joins = deque(stages or [Stage(0.0, np.inf, users, None)])
    until = np.array([each.end_s for each in joins])
    level = np.array([*(each.users or 0 for each in joins), 0])
    chunk, sent, asked = CHUNK if start == "equilibrium" else np.inf, list[float](), list[tuple[int, int, int, bool]]()
    user_of, first, last, active = list[int](), dict[int, int](), dict[int, int](), 0
    waiting, ends, now, joules, batch, context = deque[tuple[int, int]](), list[tuple[int, int, int]](), 0.0, 0.0, 0, 0
    times, energy = [0.0], [0.0]

    def send(user: int, at_s: float, request: tuple[int, int, int, bool] | None = None) -> None:
        if request is None:
            request = next(((prompt, answer, 0, False) for prompt, answer in supply), None)
        if request is not None:
            waiting.append((len(asked), int(request[0])))
            sent.append(at_s)
            asked.append(request)
            user_of.append(user)

    while waiting or ends or joins:
        if not waiting and not ends:  # idle until the next users come
            joules, now = joules + max(0.0, joins[0].begin_s - now) * STATIC_W, max(now, joins[0].begin_s)
        while joins and joins[0].begin_s <= now:
            joined = joins.popleft()
            new = joined.users or 0
            wave: list[Any] = [None] * new
            if start != "burst" and new > active:
                wave = [(*each, True) for each in zip(*first_wave(lengths, rng, new, chunk), strict=True)]
            for user in range(active, new):
                send(user, joined.begin_s, wave[user])
            active = new
        step, left, begun = len(times), CHUNK, []
        while waiting and left:
            request, tokens = waiting.popleft()
            read = min(tokens, left)
            left -= read
            if read < tokens:
                waiting.appendleft((request, tokens - read))
            else:
                begun.append(request)
        duration = STEP_S + batch * REQUEST_S + context * CONTEXT_S + (CHUNK - left) * PROMPT_S
        joules += duration * STATIC_W + batch * REQUEST_J + context * CONTEXT_J + (CHUNK - left) * PROMPT_J
        now += duration
        times.append(now)
        energy.append(joules)
        context += batch
        for request in begun:
            prompt, answer = (int(x) for x in asked[request][:2])
            first[request], batch, context = step, batch + 1, context + prompt + 1
            heapq.heappush(ends, (step + answer - 1, request, prompt + answer))
        while ends and ends[0][0] == step:
            _, request, held = heapq.heappop(ends)
            last[request], batch, context = step, batch - 1, context - held
            if user_of[request] < level[np.searchsorted(until, now, "right")]:
                send(user_of[request], now)
    step_s, n = np.array(times), len(asked)
    _, answers, ages, waves = (np.array(each) for each in zip(*asked, strict=True))
    firsts, lasts = (np.array([each[i] for i in range(n)]) for each in (first, last))
    place = np.arange(answers.sum()) - np.repeat(np.cumsum(answers) - answers, answers)
    arrivals = step_s[np.repeat(firsts, answers) + place]
    return Served(np.array(sent), step_s[lasts], ages, waves, answers, arrivals, step_s, np.array(energy))


@lru_cache(maxsize=64)
def truth(users: int, lengths: Lengths, least: int = LEAST, seed: int = 999) -> tuple[float, float, float]:
    """Tokens per second, joules per token and mean request time of a long run, without its first and last tenth."""
    run = serve(users, max(least, 150 * users), lengths, seed)
    span = np.quantile(run.sent_s, [0.1, 0.9])
    tokens, joules = float(np.diff(run.output().until(span))[0]), float(np.diff(run.joules(span))[0])
    return tokens / float(span[1] - span[0]), joules / tokens, float((run.end_s - run.sent_s)[~run.wave].mean())


@dataclass(frozen=True)
class Bias:
    """Mean relative errors of windows of several runs, with their standard errors, and their mean position coverage."""

    rate: float
    rate_error: float
    joules: float
    joules_error: float
    turnovers: float
    coverage: float
    without: int
    """Runs without a window."""


def bias(
    users: int, each: int, lengths: Lengths, seeds: int = 16, start: Start = "equilibrium", least: int = LEAST
) -> Bias:
    """The errors of the windows of runs with `each` requests a slot, against a run of `least` requests."""
    runs = (serve(users, users * each, lengths, seed, start) for seed in range(seeds))
    found = []
    for run in runs:
        rows, find = _spans(run)
        found.append((run, find(rows, shape="closed", users=users)))
    return _bias(found, truth(users, lengths, least))


def bias_of_steps(
    levels: Sequence[int],
    each: int,
    lengths: Lengths,
    seeds: int = 16,
    start: Start = "equilibrium",
    least: int = LEAST,
) -> list[Bias]:
    """The errors of the windows of each step of runs with steps of `levels` users, for `each` request times each."""
    ends = np.cumsum([each * truth(users, lengths, least)[2] for users in levels]).tolist()
    stages = [Stage(*span, users, None) for span, users in zip(itertools.pairwise([0.0, *ends]), levels, strict=True)]
    most = 2 * each * sum(levels)
    runs = [serve(0, most, lengths, seed, start, stages) for seed in range(seeds)]
    made = []
    for stage, users in zip(stages, levels, strict=True):
        made.append(_bias([(run, of_stage(stage, *_spans(run))) for run in runs], truth(users, lengths, least)))
    return made


def _spans(run: Served) -> tuple[pd.DataFrame, Callable[..., Window]]:
    """The times of each request, and what calls `find_window` for some of them."""
    first_s, ages = run.arrival_s[np.cumsum(run.sizes) - run.sizes], np.where(run.wave, run.age, np.nan)
    rows = pd.DataFrame({"sent_s": run.sent_s, "first_s": first_s, "end_s": run.end_s, "age_tokens": ages})

    def find(some: pd.DataFrame, **load: Any) -> Window:
        load |= {name: some[name].to_numpy(float) for name in ("sent_s", "first_s", "end_s")}
        return find_window(output=run.output().until, load_only=~ordinary(some), **load)

    return rows, find


def _bias(windows: Sequence[tuple[Served, Window]], true: tuple[float, float, float]) -> Bias:
    rate, joules, stay_s = true
    errors = []
    for run, found in windows:
        if found.whole is None:
            ends = np.array([found.begin_s, found.end_s])
            tokens, spent = float(np.diff(run.output().until(ends))[0]), float(np.diff(run.joules(ends))[0])
            off = tokens / np.diff(ends)[0] / rate - 1, spent / tokens / joules - 1
            errors.append((*off, np.diff(ends)[0] / stay_s, _coverage(run, ends)))
    without = len(windows) - len(errors)
    if len(errors) < 2:
        return Bias(np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, without)
    means, deviations = np.mean(errors, axis=0), np.std(errors, axis=0, ddof=1) / np.sqrt(len(errors))
    return Bias(means[0], deviations[0], means[1], deviations[1], means[2], means[3], without)


def _coverage(run: Served, ends: Array) -> float:
    place = np.arange(len(run.arrival_s)) - np.repeat(np.cumsum(run.sizes) - run.sizes, run.sizes) + 1
    inside = (run.arrival_s > ends[0]) & (run.arrival_s <= ends[1])
    answers = run.sizes + run.age
    # A request of the first wave was drawn in proportion to its length, and stands for a mean answer's tokens.
    weights = np.where(run.wave, run.sizes[~run.wave].mean(), run.sizes)
    everywhere = float((weights * (answers + 1) / 2).sum() / weights.sum())
    return float((place + np.repeat(run.age, run.sizes))[inside].mean()) / everywhere
