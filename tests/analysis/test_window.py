"""The measured window on simulated loads whose truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import batching
import numpy as np
import pytest
from builders import by_hand, frame_of
from closed_loop import Array, Sent, closed_loops, truth

from harness.analysis import latency
from harness.analysis.tokens import Events
from harness.analysis.window import COMPARED, LEAST_BINS, PLATEAU, Change, Window, change, find_window, mser

USERS, REQUESTS = 16, 16 * 60
LENGTH_S = 60 * 1.3


def window(run: Sent, users: int | None = USERS, shape: str = "closed", power: Array | None = None) -> Window:
    came = run.arrivals()
    output = Events(came, came, np.ones(len(came)))
    watts = None if power is None else lambda cuts: np.interp((cuts[1:] + cuts[:-1]) / 2, *power)
    return find_window(run.sent_s, run.first_s, run.end_s, output.until, shape=shape, users=users, watts=watts)


# ---- closed loops ----


def test_the_window_is_whole_request_times_before_the_first_slot_stays_empty() -> None:
    """Two users, requests of 2 s: both busy until 9 s (the fourth end of one), so 4 x 2 s of the 4.5 - 0.5."""
    sent = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    run = Sent(sent, sent + 0.1, sent + 2, np.full(8, 20.0))
    found = window(run, users=2)
    assert (found.begin_s, found.end_s, found.whole) == (2.0, 8.0, None)  # 3 x 2 s: floor(4 - 0.5)


def test_a_window_begins_when_every_slot_has_had_its_first_token() -> None:
    sent = np.repeat(np.arange(6.0) * 2, 2)
    first = sent + 0.1
    first[:2] = 3.5  # the first two wait for the engine
    found = window(Sent(sent, first, sent + 2 + 2 * (sent == 0), np.full(12, 20.0)), users=2)
    assert found.begin_s >= 3.5


def test_requests_that_are_refused_at_once_do_not_shorten_the_window() -> None:
    """Two users in step, answers of 2 s, and as many refused in between: whole answers, not halves of them."""
    sent = np.repeat(np.arange(6.0) * 2, 4)
    failed = np.tile([True, True, False, False], 6)
    end = sent + np.where(failed, 0.0, 2.0)
    output = Events(end, end, np.where(failed, 0.0, 1.0))
    found = find_window(sent, np.minimum(sent + 0.1, end), end, output.until, shape="closed", users=2, failed=failed)
    assert (found.end_s - found.begin_s, found.whole) == (10.0, None)


@pytest.mark.parametrize(
    ("users", "requests", "reason"),
    [(64, 64, "64 requests cannot keep 64 slots busy"), (16, 20, "all users were busy for")],
)
def test_a_closed_loop_without_a_turnover_has_no_window(users: int, requests: int, reason: str) -> None:
    (run,) = closed_loops(users, requests, 1, seed=6, cv=0.0)
    found = window(run, users)
    assert found.code == "no-window"
    assert (found.whole or "").startswith(reason)
    assert (found.begin_s, found.end_s) == (run.sent_s.min(), run.end_s.max())


@pytest.mark.parametrize("kind", ["fixed", "lognormal", "azure-conv-2023"])
def test_rates_and_joules_of_short_runs_have_no_bias(kind: str) -> None:
    """Three requests a slot on a batching engine, from equilibrium: scripts/window-bias has the whole table."""
    lengths = {
        "fixed": batching.fixed(200, 100),
        "lognormal": batching.lognormal(200, 100, 1.0),
        "azure-conv-2023": batching.traced("azure-conv-2023"),
    }[kind]
    found = batching.bias(32, 3, lengths, seeds=16)
    assert abs(found.rate) < 0.01 + 2 * found.rate_error
    assert abs(found.joules) < 0.01 + 2 * found.joules_error


def test_the_bias_of_a_window_whose_users_read_long_prompts_is_said() -> None:
    """A first wave that is mid-answer leaves reading for later: tokens per second are 4% too high, and their intervals
    cannot know it."""
    lengths = batching.fixed(4000, 50)
    off, said = [], []
    for seed in range(6):
        run = batching.serve(8, 24, lengths, seed)
        arrivals = np.split(run.arrival_s, np.cumsum(run.sizes)[:-1])
        records = [
            by_hand(i, scheduled_s=sent, sent_s=sent, end_s=came[-1], arrival_s=tuple(came), arrival_tokens=(1,) * size,
                    input_tokens=4000, output_tokens=size, input_asked=4000, output_asked=size,
                    age_tokens=int(age) if wave else None)
            for i, (sent, came, size, wave, age) in enumerate(
                zip(run.sent_s, arrivals, run.sizes.tolist(), run.wave, run.age, strict=True))
        ]  # fmt: skip
        requests = frame_of(records)
        found = latency.summarise(
            "", "complete", requests, {}, False, latency.window_of(requests, "complete", "closed", 8)
        )
        off.append((found["output_tokens_per_s"].value or 0.0) / batching.truth(8, lengths)[0] - 1)
        said.append(found["window.bias"].value or 0.0)
    assert 0.02 < np.mean(off) == pytest.approx(np.mean(said), rel=0.5)


@pytest.mark.parametrize("options", [{"cv": 0.0}, {"cv": 0.5}, {"cv": 1.0}, {"tail": 2.2}], ids=str)
def test_a_steady_load_raises_no_alarm_and_is_never_cut(options: dict[str, Any]) -> None:
    found = [window(run) for run in closed_loops(USERS, REQUESTS, 60, seed=1, **options)]
    least = 53 if "tail" in options else 57
    assert sum(each.code is None and each.whole is None and each.left_out_s == 0 for each in found) >= least


def test_users_in_step_are_measured_over_whole_bursts() -> None:
    """Eight users whose requests all take one second: the window is whole seconds."""
    sent_s = np.repeat(np.arange(20.0), 8)
    run = Sent(sent_s, sent_s + 0.1, sent_s + 1, np.full(160, 50.0))
    found = window(run, users=8)
    assert (found.begin_s, found.end_s) == (1.0, 20.0)


# ---- what construction cannot know ----


def slow(before: float, after: float, at: float, over: float) -> Callable[[Array], Array]:
    """Slowness that goes from one value to another, from `at` for a span `over`, both shares of the run."""
    return lambda sent_s: np.interp(sent_s / LENGTH_S, [at, at + over], [before, after])


@pytest.mark.parametrize(
    ("slowness", "codes", "begins"),
    [
        # slow in the first tenth: cut, and no finding
        (slow(3, 1, 0, 0.1), {None}, (0.05, 0.35)),
        # a step early on: cut, and both levels told
        (slow(0.8, 1, 0.25, 1e-9), {"level-shift"}, (0.2, 0.4)),
        # the same step late in the run: both levels are in the window
        (slow(1, 1.25, 0.6, 1e-9), {"level-shift"}, (0, 0.05)),
        # a drift over all of the run, as of a machine that gets hot
        (slow(1, 1.4, 0, 1), {"not-steady"}, (0, 0.05)),
        (lambda s: 1.4 - 0.4 * np.exp(-s / LENGTH_S / 0.5), {"not-steady"}, (0, 0.05)),
    ],
    ids=["slow start", "early step", "late step", "drift", "heat"],
)
def test_slow_starts_are_cut_and_steps_are_distinguished_from_drifts(
    slowness: Callable[[Array], Array], codes: set[str | None], begins: tuple[float, float]
) -> None:
    found = [window(run) for run in closed_loops(USERS, REQUESTS, 30, seed=3, cv=0.3, slowness=slowness)]
    assert sum(each.code in codes for each in found) >= 27, Counter(each.code for each in found)
    right = [each for each in found if each.code in codes]
    assert sum(begins[0] * LENGTH_S <= each.begin_s <= begins[1] * LENGTH_S for each in right) >= 27
    assert sum((each.left_out_s > 0) == (begins[0] > 0) for each in right) >= 27
    assert all(each.whole is None for each in found)


def test_a_level_shift_has_both_levels_and_its_time() -> None:
    (run,) = closed_loops(USERS, REQUESTS, 1, seed=4, cv=0.3, slowness=slow(1, 1.25, 0.6, 1e-9))
    found, (rate, _) = window(run), truth(USERS, 0.3)
    assert found.change is not None
    assert found.change.before == pytest.approx(rate, rel=0.03)
    assert found.change.since == pytest.approx(rate / 1.25, rel=0.03)
    assert found.shift_s == pytest.approx(0.6 * LENGTH_S, rel=0.08)


def test_power_that_settles_after_the_rate_moves_the_begin() -> None:
    (run,) = closed_loops(USERS, REQUESTS, 1, seed=5)
    power = np.array([[0.0, 20, 20.001, 100], [100.0, 100, 300, 300]])
    assert window(run).begin_s < 15
    assert window(run, power=power).begin_s > 19


# ---- open loops and others ----


def poisson(load: float, seed: int = 0, n: int = 600, frozen_s: tuple[float, float] = (0.0, 0.0)) -> Sent:
    """One server that takes 0.1 s a request, under that load, and stands still for a time."""
    rng = np.random.default_rng(seed)
    sent = np.cumsum(rng.exponential(0.1 / load, n))
    end = sent.copy()
    for i in range(n):
        begin = max(sent[i], end[i - 1] if i else 0.0)
        end[i] = (frozen_s[1] if frozen_s[0] <= begin < frozen_s[1] else begin) + 0.1
    return Sent(sent, end - 0.08, end, np.full(n, 10.0))


def test_an_open_load_is_steady_below_capacity_and_its_queue_grows_above() -> None:
    calm = [window(poisson(0.7, seed), None, "poisson") for seed in range(40)]
    assert sum(each.code is None and each.whole is None for each in calm) >= 38
    flooded = [window(poisson(1.2, seed), None, "poisson") for seed in range(10)]
    assert {each.code for each in flooded} == {"queue-grows"}


def test_an_open_window_begins_after_nearly_all_stays_and_ends_with_the_last_sending() -> None:
    run = poisson(0.5, 3)
    found, stay = window(run, None, "poisson"), run.end_s - run.sent_s
    assert found.begin_s == pytest.approx(run.sent_s[0] + np.quantile(stay, 0.99))
    assert found.end_s == run.sent_s[-1]
    short = Sent(run.sent_s[:3], run.sent_s[:3] + 5, run.sent_s[:3] + 9, run.tokens[:3])
    assert window(short, None, "poisson").code == "no-window"


@pytest.mark.parametrize("lengths", ["constant", "exponential"])
def test_the_queue_of_a_load_that_is_too_short_grows_only_if_requests_take_longer_and_longer(lengths: str) -> None:
    """10 requests a second for 8 s: no server is busy for the first 10 s; four servers are after 0.4 s."""
    for seed in range(10):
        rng, sent = np.random.default_rng(seed), np.arange(80) / 10
        took = np.full(80, 10.0) if lengths == "constant" else 4 + rng.exponential(6, 80)
        found = window(Sent(sent, sent + 0.1, sent + took, np.full(80, 10.0)), None, "poisson")
        assert (found.code, found.whole is not None) == ("no-window", True)
    flooded = window(poisson(5.0, n=80), None, "poisson")
    assert (flooded.code, flooded.whole is not None) == ("queue-grows", True)


@pytest.mark.parametrize(("shape", "reason"), [("offline", "offline"), ("trace", "a load that varies")])
def test_the_window_of_a_load_that_is_never_steady_is_the_whole_run(shape: str, reason: str) -> None:
    (run,) = closed_loops(USERS, REQUESTS, 1, seed=6)
    found = window(run, None, shape)
    assert (found.whole or "").startswith(reason)
    assert (found.begin_s, found.end_s, found.code) == (run.sent_s.min(), run.end_s.max(), None)


def test_the_window_of_an_interrupted_run_is_the_whole_run() -> None:
    sent, nothing = np.arange(3.0), np.array([np.nan, 2.0, np.nan])
    output = Events(sent, sent, np.ones(3))
    found = find_window(sent, sent, nothing, output.until, shape="closed", users=2, complete=False)
    assert found.whole == "the run is incomplete"


# ---- tests of values ----


def test_mser_cuts_the_transient_and_at_most_half() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(10, 1, 100)
    values[:20] = np.linspace(0, 10, 20)
    assert 10 <= mser(values) <= 30
    assert mser(np.linspace(0, 1, 50)) <= 25
    assert mser(np.ones(20)) == 0


def test_mser_cuts_a_fast_start_and_not_the_flat_part_after_it() -> None:
    """Tokens per second of a server that became half as fast after 1.2 s of 9: the least sum is that from 14 on."""
    fast, slow = [736, 698, 759, 563], [393, 394, 358, 392, 401, 396, 393, 380, 387, 340, 381, 395, 389, 391, 385]
    assert mser(np.array([*fast, *slow, 385, 395, 387, 396, 349, 389, 392, 396, 386, 381], float)) == 4


def test_noise_alone_is_neither_a_step_nor_a_drift() -> None:
    rng = np.random.default_rng(1)
    alarms = Counter(getattr(change(10 + rng.normal(0, 1, 20)), "kind", None) for _ in range(1000))
    assert alarms[None] >= 975
    assert change(np.full(20, 5.0)) is None
    assert change(np.r_[np.full(10, 5.0), np.full(10, 5.1)]) is None  # 2% is not worth a word
    assert change(np.r_[np.full(10, 5.0), np.full(10, 5.5)]) == Change("shift", 5.0, 5.5, 0.5)


def test_the_limits_are_consistent() -> None:
    assert LEAST_BINS >= COMPARED
    assert 2 * round(PLATEAU * COMPARED) < COMPARED
