"""The part of a run in which the load was what was asked: found from times and counts alone. docs/method.md derives it.

Times are seconds since the load began.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEAST_REQUESTS, LEAST_TURNOVERS = 60, 5
"""With fewer requests under full load, or fewer for each that is in flight at a time, a run is too short to be cut."""
LEAST_BINS, MOST_BINS, COMPARED = 20, 500, 20
"""Parts that the loaded time is divided into for the cut, and into how many what is left, to compare their rates."""
CHANGE = 0.03
"""Relative change of the rate over the window below which it counts as steady."""
QUEUE = 0.05
"""Share of the requests of the window by which the number in flight may grow in it."""
LINE_P, STEP_P = 0.005, 0.0005
"""Chance that a steady rate passes for a line, and for a step at one of the places where it may be."""
MOST_CUT = 1 / 3
"""Share of the loaded time beyond which what drifts is no warm-up."""
PLATEAU = 0.2
"""Share of the compared time that a level has to last."""

WHOLE = {
    "offline": "offline: all requests are sent at once, and the whole run is the load",
    **dict.fromkeys(("trace", "ramp", "steps"), "a load that varies: the whole run is the load"),
}
"""Shapes whose window is the whole run, and why."""


@dataclass(frozen=True, slots=True)
class Change:
    """How a rate moved: from `before` to `since`, its levels around a step at `at`, or the ends of a line."""

    kind: Literal["drift", "shift"]
    before: float
    since: float
    at: float = 0.0
    """Share of the time that had passed at the step."""


@dataclass(frozen=True, slots=True)
class Window:
    """Requests sent from `begin_s` until before `end_s` are its members; of a whole run all are."""

    begin_s: float
    end_s: float
    in_flight: float
    """Requests at a time."""
    closed: bool = False
    whole: str | None = None
    """Why it is the whole run; None: it is the steady part of it."""
    code: Literal["not-steady", "level-shift", "queue-grows"] | None = None
    """The finding that goes with it."""
    change: Change | None = None
    shift_s: float | None = None
    """When the level shifted."""


def find_window(
    sent_s: Array,
    end_s: Array,
    request_tokens: Array,
    token_s: Array,
    tokens: Array,
    *,
    shape: str,
    users: int | None = None,
    complete: bool = True,
    watts: Callable[[Array], Array] | None = None,
) -> Window:
    """The steady window of a run of at least one request.

    `sent_s`, `end_s` (NaN: it did not come to that) and `request_tokens` have an element a request, `token_s` and
    `tokens` one an arrival. `shape` and `users` are the load's. `watts` gives the mean power between each two of some
    instants, NaN where it is not known.

    Closed: from when the last user sent its first request until the first slot stays empty. Open: from the first
    request to the last. Of that the warm-up is cut by MSER-5, on the rate of tokens and on power; what is left must
    have neither drift nor shift nor a growing queue. Offline, a trace, an incomplete run and a short one are whole.
    """
    known = ~np.isnan(sent_s) & ~np.isnan(end_s)
    order = np.argsort(sent_s[known], kind="stable")
    sent, stay, asked = (each[known][order] for each in (sent_s, end_s - sent_s, request_tokens))
    ends, first, last = np.sort(end_s[known]), float(np.nanmin(sent_s)), float(np.nanmax([sent_s, end_s]))
    slots = users if shape == "closed" and users is not None else 0
    run = Window(first, last, max(1.0, float(stay.sum()) / max(last - first, 1e-9)), slots > 0)
    if shape in WHOLE or not complete:
        return replace(run, whole=WHOLE[shape] if complete else "the run is incomplete")
    if len(sent) <= slots:
        return replace(run, whole=f"{len(sent)} requests cannot keep {slots} slots busy")
    begin, limit = (float(sent[slots - 1]), float(ends[-slots])) if slots else (first, float(sent[-1]))
    held = float(slots or run.in_flight)
    needs = max(LEAST_REQUESTS, LEAST_TURNOVERS * round(held))
    members = int(((sent >= begin) & (sent < limit)).sum())
    if members < needs:
        return replace(run, whole=f"{members} requests under full load, too few to cut a warm-up: {needs} are needed")

    came = np.argsort(token_s, kind="stable")
    token_s, arrived = token_s[came], np.concatenate(([0.0], np.cumsum(tokens[came])))
    stay_s = float(stay.mean())
    cuts = np.linspace(begin, limit, int(np.clip((limit - begin) / max(stay_s, 1e-9), LEAST_BINS, MOST_BINS)) + 1)
    rate = np.diff(arrived[np.searchsorted(token_s, cuts)]) / np.diff(cuts)
    power = np.array([np.nan]) if watts is None else watts(cuts)
    cut = max(mser(rate), 0 if np.isnan(power).any() else mser(power))
    # Of the instants within one stay the one at which as many tokens are owed to earlier requests as to the members
    # when the window ends: then the members' tokens are those that came in it, also where all users are in step.
    edges = np.append(sent[slice(*np.searchsorted(sent, [cuts[cut], min(cuts[cut] + stay_s, limit)]))], limit)
    owed = np.concatenate(([0.0], np.cumsum(asked)))[np.searchsorted(sent, edges)]
    owed -= arrived[np.searchsorted(token_s, edges)]
    balanced = float(edges[np.abs(owed[:-1] - owed[-1]).argmin()]) if len(edges) > 1 else float(cuts[cut])
    steady = replace(run, begin_s=balanced, end_s=limit, in_flight=held)

    queue = np.searchsorted(sent, cuts[cut:]) - np.searchsorted(ends, cuts[cut:])
    grown = float(np.polyfit(np.linspace(0, 1, len(queue)), queue, 1)[0])
    if slots == 0 and grown > QUEUE * members:
        return replace(run, whole=f"the requests in flight grew by {grown:.0f}", code="queue-grows")
    return _judged(run, steady, rate, cuts, cut)


def _judged(run: Window, steady: Window, rate: Array, cuts: Array, cut: int) -> Window:
    """The steady window, or the whole run where its rate drifts or shifts; `cut` of the bins are warm-up."""
    ever, rest = change(_parts(rate)), change(_parts(rate[cut:]))
    if ever is None and rest is None:
        return steady
    moved = ever or rest
    assert moved is not None
    since = cuts[0] if moved is ever else cuts[cut]
    shift_s = since + moved.at * (cuts[-1] - since)
    if moved.kind == "drift" and (rest is not None or cut > MOST_CUT * len(rate)):
        return replace(run, whole="the rate never settled", code="not-steady", change=moved)
    if moved.kind == "shift" and (rest is not None or shift_s > cuts[min(cut + 1, len(rate))]):
        return replace(run, whole="the rate shifted", code="level-shift", change=moved, shift_s=float(shift_s))
    if moved.kind == "shift" and cut >= PLATEAU / 2 * len(rate):
        return replace(steady, code="level-shift", change=moved, shift_s=float(shift_s))
    return steady


def mser(values: Array) -> int:
    """How many of the first values to leave out, at most half of them: the MSER rule.

    It is the d with the least sum of squares about the mean of the values from d on, over the square of their number.
    MSER-5 does so on means of five; here every value is the mean of all that came within it. Sources: White (1997),
    Simulation 69(6); White, Cobb and Spratt (2000), Proc. Winter Simulation Conference.

    >>> mser(np.array([1.0, 4.0, 9.5, 10.0, 9.5, 10.5, 10.0, 9.5, 10.0, 10.5]))
    2
    """
    n = np.arange(len(values), 0, -1)
    sums, squares = (np.cumsum(each[::-1])[::-1] for each in (values, np.square(values)))
    return int(((squares - sums**2 / n) / n**2)[: len(values) // 2 + 1].argmin())


def change(values: Array) -> Change | None:
    """How evenly spaced values moved: by a line, by one step between two levels, or (None) not so that it shows.

    Each is an F test against a constant, its F divided by (1 + r) / (1 - r), with r the autocorrelation of what the
    better of the two leaves over. The one that leaves less is it; a step whose levels slope by more than half of it
    is a drift.

    >>> change(np.r_[np.tile([9.9, 10.1], 5), np.tile([7.9, 8.1], 5)])
    Change(kind='shift', before=10.0, since=8.0, at=0.5)
    >>> change(np.linspace(10, 8, 20)).kind, change(np.tile([9.9, 10.1], 10)) is None
    ('drift', True)
    """
    from scipy.special import fdtrc

    n, mean = len(values), abs(float(values.mean()))
    least, time = max(2, round(PLATEAU * len(values))), np.arange(n) - (n - 1) / 2
    slope = float(time @ values / (time @ time))
    levels = [np.repeat([values[:k].mean(), values[k:].mean()], [k, n - k]) for k in range(least, n - least + 1)]
    step = min(levels, key=lambda each: float(np.square(values - each).sum()))
    at = int(np.flatnonzero(np.diff(step))[0]) + 1 if np.ptp(step) else n // 2
    line = values.mean() + slope * time

    def shows(model: Array, terms: int, chance: float) -> bool:
        left, about = values - model, float(np.square(model - values.mean()).sum())
        size, rest = abs(float(model[-1] - model[0])), float(left @ left)
        r = min(max(0.0, float(left[1:] @ left[:-1]) / rest), 0.8) if rest > 0 else 0.0
        f = about / (rest / (n - terms)) * (1 - r) / (1 + r) if rest > 0 else np.inf
        return size > CHANGE * mean and bool(fdtrc(1, n - terms, f) < chance)

    centred = time - np.repeat([time[:at].mean(), time[at:].mean()], [at, n - at])
    sloping = abs(float(centred @ values / (centred @ centred))) * n > abs(float(step[-1] - step[0])) / 2
    better = np.square(values - step).sum() < np.square(values - line).sum()
    if better and not sloping and shows(step, 3, STEP_P):
        return Change("shift", float(step[0]), float(step[-1]), at / n)
    if shows(line, 2, LINE_P) or (better and shows(step, 3, STEP_P)):
        return Change("drift", float(line[0]), float(line[-1]))
    return None


def _parts(values: Array) -> Array:
    """Means of `COMPARED` equal parts, or of fewer; what does not fit is left out at the beginning."""
    size = max(1, len(values) // COMPARED)
    return np.asarray(values[len(values) % size :].reshape(-1, size).mean(axis=1))
