"""The measured window: the part of a run in which the load was as asked. docs/method.md derives the method.

Times are seconds since the load began.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEAST_REQUESTS, LEAST_TURNOVERS = 60, 5
"""Fewest requests under full load, in all and per request in flight, for cutting the warm-up."""
LEAST_BINS, MOST_BINS, COMPARED = 20, 500, 20
"""Smallest and largest number of parts of the loaded time for the cut; number of parts whose rates are compared."""
CHANGE = 0.03
"""Largest relative change of the rate over the window that counts as steady."""
QUEUE = 0.05
"""Largest growth of the requests in flight over the window, as a share of its requests."""
LINE_P, STEP_P = 0.005, 0.0005
"""Probability that a steady rate tests as a line, and as a step at one given place."""
MOST_CUT = 1 / 3
"""Largest share of the loaded time that a warm-up may take."""
PLATEAU = 0.2
"""Smallest share of the compared time for a level."""
WHOLE = {
    "offline": "offline: all requests are sent at once, and the whole run is the load",
    **dict.fromkeys(("trace", "ramp", "steps"), "a load that varies: the whole run is the load"),
}
"""Load shapes whose window is the whole run, and the reason."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the rate from `before` to `since`: levels around a step at `at`, or ends of a line."""

    kind: Literal["drift", "shift"]
    before: float
    since: float
    at: float = 0.0
    """Time of the step as a share of the whole."""


@dataclass(frozen=True, slots=True)
class Window:
    """The requests sent from `begin_s` until before `end_s`; all requests if it is the whole run."""

    begin_s: float
    end_s: float
    in_flight: float
    """Mean requests in flight."""
    closed: bool = False
    whole: str | None = None
    """The reason why the window is the whole run; None: it is the steady part."""
    code: Literal["not-steady", "level-shift", "queue-grows"] | None = None
    """The code of its finding."""
    change: Change | None = None
    shift_s: float | None = None
    """Time of the level shift."""


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
    """The measured window of a run with at least one request.

    `sent_s`, `end_s` (NaN if not reached) and `request_tokens` have an element per request, `token_s` and `tokens` one
    per arrival. `shape` and `users` are those of the load. `watts` gives the mean power between successive instants,
    NaN if unknown.

    Closed loops count from the first request of the last user until a slot stays empty, open loops from the first
    request to the last. MSER-5, on the token rate and on power, cuts the warm-up from that. The rest must have no
    drift, no level shift and no growing queue. The window of an offline run, a trace, an incomplete or a short run is
    the whole run.
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
        return replace(run, whole=f"{members} requests under full load, {needs} needed to cut the warm-up")

    by_time = np.argsort(token_s, kind="stable")
    token_s, arrived = token_s[by_time], np.concatenate(([0.0], np.cumsum(tokens[by_time])))
    stay_s = float(stay.mean())
    cuts = np.linspace(begin, limit, int(np.clip((limit - begin) / max(stay_s, 1e-9), LEAST_BINS, MOST_BINS)) + 1)
    rate = np.diff(arrived[np.searchsorted(token_s, cuts)]) / np.diff(cuts)
    power = np.array([np.nan]) if watts is None else watts(cuts)
    cut = max(mser(rate), 0 if np.isnan(power).any() else mser(power))
    # Begin within one stay where earlier requests are still owed as many tokens as the members at the window's end.
    # Then the members' tokens equal the tokens that arrive in the window, even if all users are in step.
    edges = np.append(sent[slice(*np.searchsorted(sent, [cuts[cut], min(cuts[cut] + stay_s, limit)]))], limit)
    owed = np.concatenate(([0.0], np.cumsum(asked)))[np.searchsorted(sent, edges)]
    owed -= arrived[np.searchsorted(token_s, edges)]
    balanced = float(edges[np.abs(owed[:-1] - owed[-1]).argmin()]) if len(edges) > 1 else float(cuts[cut])
    steady = replace(run, begin_s=balanced, end_s=limit, in_flight=held)

    queue = np.searchsorted(sent, cuts[cut:]) - np.searchsorted(ends, cuts[cut:])
    grown = float(np.polyfit(np.linspace(0, 1, len(queue)), queue, 1)[0])
    if slots == 0 and grown > QUEUE * members:
        return replace(run, whole=f"the requests in flight grew by {grown:.0f}", code="queue-grows")
    return _steady_or_whole(run, steady, rate, cuts, cut)


def _steady_or_whole(run: Window, steady: Window, rate: Array, cuts: Array, cut: int) -> Window:
    """The steady window, or the whole run if its rate drifts or shifts; the first `cut` bins are warm-up."""
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
    """Number of values to cut at the start, at most half of them, by the MSER rule.

    The cut d has the least sum of squares about the mean of the values from d on, divided by their number squared.
    MSER-5 uses means of five values; here every value is the mean over a part of the time. Sources: White (1997),
    Simulation 69(6); White, Cobb and Spratt (2000), Proc. Winter Simulation Conference.

    >>> mser(np.array([1.0, 4.0, 9.5, 10.0, 9.5, 10.5, 10.0, 9.5, 10.0, 10.5]))
    2
    """
    n = np.arange(len(values), 0, -1)
    sums, squares = (np.cumsum(each[::-1])[::-1] for each in (values, np.square(values)))
    return int(((squares - sums**2 / n) / n**2)[: len(values) // 2 + 1].argmin())


def change(values: Array) -> Change | None:
    """The change of evenly spaced values: a line, a step between two levels, or None if neither is significant.

    Each is an F test against a constant, with F divided by (1 + r) / (1 - r), r the autocorrelation of the residuals.
    The model with the smaller residuals counts; a step whose levels slope by more than half of the step is a drift.

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
    """Means of about `COMPARED` equal parts; a remainder at the start is left out."""
    size = max(1, len(values) // COMPARED)
    return np.asarray(values[len(values) % size :].reshape(-1, size).mean(axis=1))
