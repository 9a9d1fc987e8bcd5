"""The measured window: the part of a run in which the load was as asked. docs/method.md derives the method.

Times are seconds since the load began.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.analysis.tokens import within
from harness.stats import Array, correlation
from harness.workload.arrivals import Stage

LEAST_TURNOVERS = 1.5
"""Fewest mean request times that a closed loop must last at full load, for a window of one of them."""
SETTLED = 0.99
"""Share of an open loop's requests that end within the time after which its occupancy has settled."""
MOST_SETTLING = 0.5
"""Largest share of an open loop that may pass before its occupancy has settled."""
JUDGED_REQUESTS, JUDGED_TURNOVERS = 60, 5
"""Fewest requests in a window, in all and per request in flight, for tests of its steadiness."""
LEAST_BINS, MOST_BINS, COMPARED = 20, 500, 20
"""Smallest and largest number of parts of the window for the cut; number of parts whose rates are compared."""
CHANGE = 0.03
"""Largest relative change of the rate over the window that counts as steady."""
QUEUE = 0.05
"""Largest growth of the requests in flight over the window, as a share of its requests."""
SLOWED = 2.0
"""Times the mean of the first quarter's requests that those of the last take, where a queue grows in a load that is too
short for its occupancy to settle: there the requests in flight grow without a queue too."""
LINE_P, STEP_P = 0.005, 0.0005
"""Probability that a steady rate tests as a line, and as a step at one given place."""
TRANSIENT_Z = 4.0
"""Smallest difference of a start that is cut from the rest, in standard errors: `mser` picks the largest of many."""
MOST_CORRELATED = 0.8
"""Largest correlation of successive parts that counts."""
MOST_CUT = 1 / 3
"""Largest share of the window that may be cut as the engine's warm-up."""
PLATEAU = 0.2
"""Smallest share of the compared time for a level."""
WHOLE = {
    "offline": "offline: all requests are sent at once, and the whole run is the load",
    **dict.fromkeys(("trace", "ramp"), "a load that varies: the whole run is the load"),
    "steps": "a load of steps: each step has its own window",
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
    """The time from `begin_s` to `end_s` to which rates and latencies belong."""

    begin_s: float
    end_s: float
    in_flight: float
    """Mean requests in flight."""
    closed: bool = False
    whole: str | None = None
    """The reason why the window is the whole run; None: the load was as asked in all of the window."""
    code: Literal["no-window", "not-steady", "level-shift", "queue-grows"] | None = None
    """The code of its finding."""
    change: Change | None = None
    shift_s: float | None = None
    """Time of the level shift."""
    grown: float = 0.0
    """Requests by which the requests in flight grew over the window."""
    left_out_s: float = 0.0
    """Time at the start that was left out because it was measured not to be settled, not by the load's construction."""
    stage: Stage | None = None
    """The step of the load in which the window lies."""
    since_s: float = 0.0
    """Begin of the load of the step: what was sent before is its first wave."""
    steps: tuple[Window, ...] = ()
    """The window of each step; this one is that of the step with the most users or the highest rate."""


def find_window(
    sent_s: Array,
    first_s: Array,
    end_s: Array,
    output: Callable[[Array], Array],
    *,
    shape: str,
    users: int | None = None,
    until_s: float = math.inf,
    load_only: NDArray[np.bool_] | None = None,
    failed: NDArray[np.bool_] | None = None,
    complete: bool = True,
    stalls_s: Array | None = None,
    watts: Callable[[Array], Array] | None = None,
) -> Window:
    """The measured window of a run with at least one request.

    `sent_s`, `first_s` (first token, or end without one) and `end_s` (NaN if not reached) have an element per request
    in order of sending, or per conversation of a closed loop: what one user does at a time. `load_only` marks those of
    the first wave of an equilibrium start, `failed` those without an answer. `output` gives the output tokens so far.
    `shape` and `users` are those of the load, which ends or changes at `until_s`.
    `stalls_s` holds (begin, end) rows of times without a token. `watts` gives the mean power between successive
    instants, NaN if unknown.

    Closed loop: whole turnovers before the first slot stays empty. Open loop: from the time when the occupancy has
    settled to the last sending. A change of the token rate or of the power at the start of that is cut if the rest is
    steady. The window of an offline run, of a load that varies, and of an incomplete run is the whole run.
    """
    known = ~np.isnan(sent_s) & ~np.isnan(end_s)
    sent, ends, stay = sent_s[known], np.sort(end_s[known]), (end_s - sent_s)[known]
    first, last = float(np.nanmin(sent_s)), min(float(np.nanmax([sent_s, end_s])), until_s)
    slots = users if shape == "closed" and users is not None else 0
    held_s = float((np.minimum(end_s[known], last) - sent).sum())
    run = Window(first, last, max(1.0, held_s / max(last - first, 1e-9)), slots > 0)
    if shape in WHOLE or not complete:
        return replace(run, whole=WHOLE[shape] if complete else "the run is incomplete")
    stalls_s = np.empty((0, 2)) if stalls_s is None else stalls_s
    if slots:
        ordinary = np.ones(len(stay), bool) if load_only is None else ~load_only[known]
        answered = ordinary if failed is None else ordinary & ~failed[known]
        # A request that is refused at once does not turn a slot over; one that fails late holds it longer.
        turnover_s = max((float(stay[each].mean()) for each in (ordinary, answered) if each.any()), default=math.inf)
        made = _turnovers(run, first_s[known], ends, slots, turnover_s)
    else:
        turnover_s = float(stay.mean())
        made = _settled(run, sent, ends, stay, stalls_s)
    return made if made.whole is not None else _steady(made, sent, output, turnover_s, len(stalls_s) > 0, watts)


def of_stage(stage: Stage, spans: pd.DataFrame, find: Callable[..., Window]) -> Window:
    """The window of a step, as if it were a run of which what is in flight at its begin is the first wave.

    A step of users begins when those who left have had their answers. `spans` has `sent_s`, `end_s` and `age_tokens` of
    each request, or conversation; `find` calls `find_window` for some of its rows.
    """
    since_s = stage.begin_s if stage.users is None else _full(spans, stage)
    here = within(spans, since_s, stage.end_s)
    left = since_s >= stage.end_s
    why = "those who left the step before had no answer yet" if left else "no request was in flight"
    found = Window(stage.begin_s, stage.end_s, 0.0, whole=why, code="no-window")
    if not stage.level:
        found = replace(found, whole="a pause", code=None)
    elif len(here):
        shape = "poisson" if stage.users is None else "closed"
        found = find(here, shape=shape, users=stage.users, until_s=stage.end_s)
    return replace(found, stage=stage, since_s=since_s, left_out_s=found.left_out_s + since_s - stage.begin_s)


def _full(spans: pd.DataFrame, stage: Stage) -> float:
    """The time from which no more requests than the step's users are in flight: those who leave end their answers."""
    sent, ends = (np.sort(spans[name].to_numpy(float)) for name in ("sent_s", "end_s"))
    within = ends[(ends > stage.begin_s) & (ends < stage.end_s)]
    at = np.concatenate(([stage.begin_s], within, [stage.end_s]))
    more = np.searchsorted(sent, at[:-1], "right") - np.searchsorted(ends, at[:-1], "right") > (stage.users or 0)
    return float(at[np.flatnonzero(more)[-1] + 1]) if more.any() else stage.begin_s


def _turnovers(run: Window, first_s: Array, ends: Array, slots: int, turnover_s: float) -> Window:
    """Whole mean request times of a closed loop, back from the instant at which its first slot stays empty.

    They begin no earlier than half a mean request time after the start, and when every slot has had its first token.
    """
    if len(ends) <= slots:
        return replace(run, whole=f"{len(ends)} requests cannot keep {slots} slots busy", code="no-window")
    full_s = min(float(ends[-slots]), run.end_s)
    turns = (full_s - run.begin_s) / turnover_s
    decoding = (full_s - float(first_s[:slots].max())) / turnover_s
    if turns < LEAST_TURNOVERS or decoding < 1:
        why = f"all users were busy for {turns:.2g} mean request times, and a window needs {LEAST_TURNOVERS}"
        if turns >= LEAST_TURNOVERS:
            why = f"all users had a first token for {decoding:.2g} mean request times, and a window needs 1"
        return replace(run, whole=why, code="no-window")
    length_s = math.floor(min(max(1.0, turns - 0.5), decoding)) * turnover_s
    return replace(run, begin_s=full_s - length_s, end_s=full_s, in_flight=float(slots))


def _settled(run: Window, sent: Array, ends: Array, stay: Array, stalls_s: Array) -> Window:
    """An open loop from the time that nearly all requests need to the last sending; whether its queue grows.

    Requests that met a stall do not count for that time: a stall is not a settling load.
    """
    last = float(sent.max())
    met = [(sent < end) & (sent + stay > begin) for begin, end in stalls_s]
    calm = stay[~np.logical_or.reduce(met)] if met else stay
    begin = run.begin_s + float(np.quantile(calm if len(calm) else stay, SETTLED))
    late = begin > run.begin_s + MOST_SETTLING * (last - run.begin_s)
    from_s = run.begin_s + MOST_SETTLING * (last - run.begin_s) if late else begin
    instants = np.linspace(from_s, last, LEAST_BINS)
    queue = np.searchsorted(np.sort(sent), instants) - np.searchsorted(ends, instants)
    trend = float(np.polyfit(np.linspace(0, 1, LEAST_BINS), queue, 1)[0])
    grown = min(trend, float(queue[-3:].min() - queue[:3].min()))  # a stall late in the run is no trend
    if len(sent) >= JUDGED_REQUESTS and grown > QUEUE * int((sent >= from_s).sum()):
        quarter = len(stay) // 4
        if not late or stay[-quarter:].mean() > SLOWED * stay[:quarter].mean():
            run = replace(run, code="queue-grows", grown=grown)
    if late:
        why = f"requests were sent for {last - run.begin_s:.3g} s, and took up to {begin - run.begin_s:.3g} s"
        return replace(run, whole=why, code=run.code or "no-window")
    return replace(run, begin_s=begin, end_s=last, left_out_s=begin - run.begin_s)


def _steady(
    made: Window,
    sent: Array,
    output: Callable[[Array], Array],
    turnover_s: float,
    stalled: bool,
    watts: Callable[[Array], Array] | None,
) -> Window:
    """The window without the engine's warm-up, or with the code of a rate that did not settle.

    Only a start that differs from the rest is cut, and never a stall.
    """
    length_s, held = made.end_s - made.begin_s, made.in_flight
    needs = max(JUDGED_REQUESTS, JUDGED_TURNOVERS * round(held))
    if made.code is not None or int(((sent >= made.begin_s) & (sent < made.end_s)).sum()) < needs:
        return made
    bins = int(np.clip(length_s / max(turnover_s, 1e-9), LEAST_BINS, MOST_BINS))
    cuts = np.linspace(made.begin_s, made.end_s, bins + 1)
    rate = np.diff(output(cuts)) / np.diff(cuts)
    power = np.array([np.nan]) if watts is None else watts(cuts)
    moved = change(_parts(rate))
    cut = 0 if stalled else max(_transient(each) for each in (rate, power) if not np.isnan(each).any())
    cut = cut if cut <= MOST_CUT * bins else 0
    if change(_parts(rate[cut:])) is not None and moved is not None:
        at_s = made.begin_s + moved.at * length_s
        shift = moved.kind == "shift"
        code: Literal["level-shift", "not-steady"] = "level-shift" if shift else "not-steady"
        return replace(made, code=code, change=moved, shift_s=at_s if shift else None)
    if cut == 0:
        return made
    begin = float(cuts[cut])
    if made.closed and (turns := math.floor((made.end_s - begin) / turnover_s)) >= 1:
        begin = made.end_s - turns * turnover_s
    made = replace(made, begin_s=begin, left_out_s=made.left_out_s + begin - made.begin_s)
    if moved is not None and moved.kind == "shift" and cut >= PLATEAU / 2 * bins:
        return replace(made, code="level-shift", change=moved, shift_s=begin)
    return made


def _transient(values: Array) -> int:
    """Number of values at the start that `mser` cuts, 0 unless these differ from the rest by more than its noise.

    So must the first quarter of them, or something happened after the start.
    """
    cut = mser(values)
    if cut == 0:
        return 0
    start, rest = values[:cut], values[cut:]
    r = correlation(rest - rest.mean(), MOST_CORRELATED)
    noise = float(rest.std()) * math.sqrt((1 / cut + 1 / len(rest)) * (1 + r) / (1 - r))
    off, at_first = (abs(float(each.mean() - rest.mean())) for each in (start, start[: math.ceil(cut / 4)]))
    shows = off > max(CHANGE * abs(float(rest.mean())), TRANSIENT_Z * noise)
    return cut if shows and at_first > off / 2 else 0


def mser(values: Array) -> int:
    """Number of values to cut at the start, at most half of them, by the MSER rule.

    The best cut has the least sum of squares about the mean of the values from there on, divided by their number
    squared. The cut is the smallest one that is as good within a standard error of that sum: chance alone picks among
    the cuts of a flat part. MSER-5 uses means of five values; here every value is the mean over a part of the time.
    Sources: White (1997), Simulation 69(6); White, Cobb and Spratt (2000), Proc. Winter Simulation Conference; of the
    standard error, Breiman et al. (1984), Classification and Regression Trees.

    >>> mser(np.array([1.0, 4.0, 9.5, 10.0, 9.5, 10.5, 10.0, 9.5, 10.0, 10.5]))
    2
    """
    n = np.arange(len(values), 0, -1)
    sums, squares = (np.cumsum(each[::-1])[::-1] for each in (values, np.square(values)))
    score = ((squares - sums**2 / n) / n**2)[: len(values) // 2 + 1]
    best = int(score.argmin())
    return int(np.argmax(score <= score[best] * (1 + math.sqrt(2 / n[best]))))


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
        r = correlation(left, MOST_CORRELATED)
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
