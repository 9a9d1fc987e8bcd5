"""A discrete-event simulation of continuous batching under a closed loop: known rates and joules for windows.

One engine step gives every decoding request a token and reads up to `CHUNK` prompt tokens of waiting requests, first
in, first out. Its time has the form of a GPU's: a constant, a part per decoding request, per token of context and per
prompt token; so has its energy. The constants are near those of an H100 that serves a model of 8 billion parameters.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.analysis.tokens import Events, spread_from
from harness.analysis.window import find_window
from harness.workload.library import read_trace

Array = NDArray[np.float64]
Lengths = Callable[[np.random.Generator, int], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Prompt and answer lengths of n requests."""
Start = Literal["equilibrium", "chunk unknown", "burst"]
"""How a run begins: "chunk unknown" is an equilibrium for which the harness does not know `CHUNK`."""
CHUNK = 8192
STEP_S, REQUEST_S, CONTEXT_S, PROMPT_S = 6.4e-3, 12e-6, 40e-9, 40e-6
STATIC_W, REQUEST_J, CONTEXT_J, PROMPT_J = 350.0, 2e-3, 1e-6, 6e-3
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
        rows = rng.integers(len(trace.input_tokens), size=n)
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
    return prompts[drawn] + ages, answers[drawn] - ages, ages


def serve(users: int, count: int, lengths: Lengths, seed: int, start: Start = "equilibrium") -> Served:
    """A run of `count` requests after the first wave (of none if it is a burst), all run to their end."""
    rng = np.random.default_rng(seed)
    prompts, answers = lengths(rng, count)
    ages = np.zeros(count, int)
    if start != "burst":
        wave = first_wave(lengths, rng, users, CHUNK if start == "equilibrium" else np.inf)
        prompts, answers, ages = (np.concatenate(each) for each in zip(wave, (prompts, answers, ages), strict=True))
    n = len(answers)
    sent, first, last = np.zeros(n), np.zeros(n, int), np.zeros(n, int)
    waiting = deque((i, int(prompts[i])) for i in range(min(users, n)))
    following, now, joules, batch, context = len(waiting), 0.0, 0.0, 0, 0
    ends: list[tuple[int, int, int]] = []
    times, energy = [0.0], [0.0]
    while waiting or ends:
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
            first[request], batch, context = step, batch + 1, context + int(prompts[request]) + 1
            heapq.heappush(ends, (step + int(answers[request]) - 1, request, int(prompts[request] + answers[request])))
        while ends and ends[0][0] == step:
            _, request, held = heapq.heappop(ends)
            last[request], batch, context = step, batch - 1, context - held
            if following < n:
                sent[following] = now
                waiting.append((following, int(prompts[following])))
                following += 1
    step_s = np.array(times)
    place = np.arange(answers.sum()) - np.repeat(np.cumsum(answers) - answers, answers)
    arrivals = step_s[np.repeat(first, answers) + place]
    wave_mask = np.arange(n) < n - count
    return Served(sent, step_s[last], ages, wave_mask, answers, arrivals, step_s, np.array(energy))


@lru_cache(maxsize=64)
def truth(users: int, lengths: Lengths, least: int = 20_000, seed: int = 999) -> tuple[float, float]:
    """Tokens per second and joules per token of a long run, without its first and last tenth."""
    run = serve(users, max(least, 150 * users), lengths, seed)
    span = np.quantile(run.sent_s, [0.1, 0.9])
    tokens, joules = float(np.diff(run.output().until(span))[0]), float(np.diff(run.joules(span))[0])
    return tokens / float(span[1] - span[0]), joules / tokens


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


def bias(users: int, each: int, lengths: Lengths, seeds: int = 16, start: Start = "equilibrium") -> Bias:
    """The errors of the windows of runs with `each` requests a slot."""
    rate, joules = truth(users, lengths)
    errors, without = [], 0
    for seed in range(seeds):
        run = serve(users, users * each, lengths, seed, start)
        first_s = run.arrival_s[np.cumsum(run.sizes) - run.sizes]
        found = find_window(
            run.sent_s, first_s, run.end_s, run.output().until, shape="closed", users=users, load_only=run.wave
        )
        if found.whole is not None:
            without += 1
            continue
        ends = np.array([found.begin_s, found.end_s])
        tokens, spent = float(np.diff(run.output().until(ends))[0]), float(np.diff(run.joules(ends))[0])
        turns = np.diff(ends)[0] / (run.end_s - run.sent_s)[~run.wave].mean()
        errors.append((tokens / np.diff(ends)[0] / rate - 1, spent / tokens / joules - 1, turns, _coverage(run, ends)))
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
