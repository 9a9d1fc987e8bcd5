"""The measured window on simulated loads whose steady part is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from closed_loop import Array, Sent, closed_loops, truth

from harness.analysis.window import COMPARED, LEAST_BINS, PLATEAU, Change, Window, change, find_window, mser

USERS, REQUESTS = 16, 16 * 60
LENGTH_S = 60 * 1.3


def window(run: Sent, users: int | None = USERS, shape: str = "closed", power: Array | None = None) -> Window:
    came = run.arrivals()
    watts = None if power is None else lambda cuts: np.interp((cuts[1:] + cuts[:-1]) / 2, *power)
    return find_window(
        run.sent_s, run.end_s, run.tokens, came, np.ones(len(came)), shape=shape, users=users, watts=watts
    )


@pytest.mark.parametrize("options", [{"cv": 0.0}, {"cv": 0.5}, {"cv": 1.0}, {"tail": 2.2}], ids=str)
def test_a_steady_load_raises_no_alarm(options: dict[str, Any]) -> None:
    found = [window(run) for run in closed_loops(USERS, REQUESTS, 100, seed=1, **options)]
    assert sum(each.code is None and each.whole is None for each in found) >= 95


def test_the_rate_of_the_window_is_the_long_run_rate() -> None:
    """Also with long outputs that linger, and users that go in step. The whole run's rate has the drain in it."""
    for cv, bias in ((0.0, 0.004), (1.0, 0.004)):
        rate, _ = truth(USERS, cv)
        seen, whole, members = [], [], []
        for run in closed_loops(USERS, 16 * 30, 100, seed=2, cv=cv):
            found, came = window(run), run.arrivals()
            length_s = found.end_s - found.begin_s
            inside = (run.sent_s >= found.begin_s) & (run.sent_s < found.end_s)
            seen.append(((came >= found.begin_s) & (came < found.end_s)).sum() / length_s)
            members.append(run.tokens[inside].sum() / length_s)
            whole.append(run.tokens.sum() / run.end_s.max())
        assert np.mean(seen) == pytest.approx(rate, rel=bias)
        assert np.mean(members) == pytest.approx(rate, rel=bias)
        assert np.mean(whole) < 0.985 * rate


def test_users_in_step_are_cut_between_their_bursts() -> None:
    """Eight users whose requests all take one second: the window is whole seconds, and its members their bursts."""
    sent_s = np.repeat(np.arange(20.0), 8) + np.tile(np.arange(8) / 1000, 20)
    run = Sent(sent_s, sent_s + 0.1, sent_s + 0.999, np.full(160, 50.0))
    found = window(run, users=8)
    inside = ((run.sent_s >= found.begin_s) & (run.sent_s < found.end_s)).sum()
    assert inside % 8 == 0
    assert inside / (found.end_s - found.begin_s) == pytest.approx(8, rel=0.001)


def slow(before: float, after: float, at: float, over: float) -> Callable[[Array], Array]:
    """Slowness that goes from one value to another, from `at` for a span `over`, both shares of the run."""
    return lambda sent_s: np.interp(sent_s / LENGTH_S, [at, at + over], [before, after])


@pytest.mark.parametrize(
    ("slowness", "codes", "begins"),
    [
        # a ramp in the first tenth: cut, and no finding
        (slow(3, 1, 0, 0.1), {None}, (0.05, 0.35)),
        # a step early on: cut, and both levels told
        (slow(0.8, 1, 0.3, 1e-9), {"level-shift"}, (0.25, 0.5)),
        # the same step late in the run: figures of the whole run, and both levels told
        (slow(1, 1.25, 0.6, 1e-9), {"level-shift"}, (0, 0)),
        # a drift over all of the run, as of a machine that gets hot
        (slow(1, 1.4, 0, 1), {"not-steady"}, (0, 0)),
        (lambda s: 1.4 - 0.4 * np.exp(-s / LENGTH_S / 0.5), {"not-steady"}, (0, 0)),
    ],
    ids=["ramp", "early step", "late step", "drift", "heat"],
)
def test_ramps_are_cut_and_steps_are_distinguished_from_drifts(
    slowness: Callable[[Array], Array], codes: set[str | None], begins: tuple[float, float]
) -> None:
    found = [window(run) for run in closed_loops(USERS, REQUESTS, 30, seed=3, cv=0.3, slowness=slowness)]
    assert sum(each.code in codes for each in found) >= 27, Counter(each.code for each in found)
    right = [each for each in found if each.code in codes]
    assert all(begins[0] * LENGTH_S <= each.begin_s <= begins[1] * LENGTH_S for each in right)
    assert all((each.whole is not None) == (begins == (0, 0)) for each in right)


def test_a_level_shift_has_both_levels_and_its_time() -> None:
    (run,) = closed_loops(USERS, REQUESTS, 1, seed=4, cv=0.3, slowness=slow(1, 1.25, 0.6, 1e-9))
    found, (rate, _) = window(run), truth(USERS, 0.3)
    assert found.change is not None
    assert found.change.before == pytest.approx(rate, rel=0.03)
    assert found.change.since == pytest.approx(rate / 1.25, rel=0.03)
    assert found.shift_s == pytest.approx(0.6 * LENGTH_S, rel=0.08)


def test_power_that_settles_after_the_rate_moves_the_cut() -> None:
    (run,) = closed_loops(USERS, REQUESTS, 1, seed=5)
    power = np.array([[0.0, 20, 20.001, 100], [100.0, 100, 300, 300]])
    assert window(run).begin_s < 15
    assert window(run, power=power).begin_s > 19


def poisson(load: float, seed: int = 0, n: int = 600) -> Sent:
    """One server that takes 0.1 s a request, under that load."""
    rng = np.random.default_rng(seed)
    sent = np.cumsum(rng.exponential(0.1 / load, n))
    end = sent.copy()
    for i in range(n):
        end[i] = max(sent[i], end[i - 1] if i else 0.0) + 0.1
    return Sent(sent, end - 0.08, end, np.full(n, 10.0))


def test_an_open_load_is_steady_below_capacity_and_its_queue_grows_above() -> None:
    calm = [window(poisson(0.7, seed), None, "poisson") for seed in range(40)]
    assert sum(each.code is None and each.whole is None for each in calm) >= 38
    flooded = [window(poisson(1.2, seed), None, "poisson") for seed in range(10)]
    assert {each.code for each in flooded} == {"queue-grows"}


@pytest.mark.parametrize(
    ("shape", "users", "requests", "reason"),
    [
        ("offline", None, REQUESTS, "offline"),
        ("trace", None, REQUESTS, "a load that varies"),
        ("closed", USERS, 40, "40 requests under full load, 80 needed to cut the warm-up"),
        ("closed", 64, 64, "64 requests cannot keep 64 slots busy"),
    ],
)
def test_a_window_of_the_whole_run_has_a_reason(shape: str, users: int | None, requests: int, reason: str) -> None:
    (run,) = closed_loops(users or USERS, requests, 1, seed=6)
    found = window(run, users, shape)
    assert (found.whole or "").startswith(reason)
    assert (found.begin_s, found.end_s) == (run.sent_s.min(), run.end_s.max())


def test_the_window_of_an_interrupted_run_is_the_whole_run() -> None:
    sent, nothing = np.arange(3.0), np.array([np.nan, 2.0, np.nan])
    found = find_window(sent, nothing, np.ones(3), np.array([1.5]), np.ones(1), shape="closed", users=2, complete=False)
    assert found.whole == "the run is incomplete"


def test_mser_cuts_the_transient_and_at_most_half() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(10, 1, 100)
    values[:20] = np.linspace(0, 10, 20)
    assert 10 <= mser(values) <= 30
    assert mser(np.linspace(0, 1, 50)) <= 25
    assert mser(np.ones(20)) == 0


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
