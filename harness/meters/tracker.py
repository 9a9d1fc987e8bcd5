"""Decide when to read a counter that is updated rarely, so that few readings show when it is updated."""

import math
import random
from dataclasses import dataclass, field

import numpy as np

from harness.periodic import LOOSE, WIDEST, Line, fit

QUIET_S, QUIET_SHARE = 0.02, 0.2
"""A call this long after an update (at most this share of the period) waits for the driver: on an H100 for 16 ms in
place of 3 to 4 (measured 2026-11-26)."""
DOUBT_S, SURE_S, MOST_TRIES = 0.028, 0.010, 12
"""Doubt of the next update from which it is located anew under load, and at which that ends, and the most trials; of a
counter that moves more often the same shares of 0.1 s. Where calls are slow, what they can show and 1.2 times that.
Trials before and after the load bound the updates between them, so this only keeps readings out of the quiet time."""
REST_S = 20.0
"""Time after the last of these trials without another one: those that did not help would take a part of a core."""
HOPELESS = 0.7
"""Doubt in periods from which a trial cannot tell which update it has seen."""
EARLY = 0.35
"""The second reading of a trial comes in this first share of the interval in which the update lies. A reading after the
update would wait for the driver and narrow little; of the shares tried in a simulation this one narrows it fastest."""
LEAST = 10
"""Number of intervals from which a line must fit."""
CALL_S = 0.003
"""Shortest call that matters: timers are late by as much on a busy machine."""
FAST_S, FEW_CALLS = 0.05, 10
"""Period, and calls in it, below which the three readings of a trial would be too far apart to narrow an update."""
KEPT = 300
"""Number of intervals kept for the fit."""
MOST_SLACK_S = 0.001
"""Largest jitter of updates that can be predicted."""
STEPS = 4
"""Times that the counter's step must go into its smallest change to be seen."""
STOOD = 1.5
"""Periods after which a value that still stands shows that the counter's period is a longer one."""


@dataclass(slots=True)
class UpdateTracker:
    """Places the readings of a counter. Without a period (no counter, or not probed) they follow the slots.

    A trial is three readings around one update: before it, as it is due, and after the quiet time. The second reading
    shows that the update was before its arrival, or else after its request.
    """

    rng: random.Random
    period: tuple[float, float] | None = None
    """Bounds of the time between updates."""
    call_s: float = 0.004
    """How long a reading takes."""
    line: Line | None = None
    """The updates, in seconds on the clock of the readings."""
    plan: list[float] = field(default_factory=list)
    """Times of the coming readings of a trial."""
    ends: list[tuple[float, float]] = field(default_factory=list)
    """Intervals that contain an update each."""
    fresh: bool = False
    doubtful: bool = False
    """Whether the updates are being located anew; `tries` counts the trials."""
    tries: int = 0
    rest_until_s: float = -math.inf
    last_s: float | None = None
    since_s: float = math.inf
    """When the value was read first."""
    slower: bool = False
    """A value stood for longer than the period allows."""

    @property
    def located(self) -> bool:
        """Whether the last update is known about as well as readings can show."""
        return self.line is not None and self.last_s is not None and self.doubt_s(self.last_s) < self._least_s

    @property
    def _least_s(self) -> float:
        return 1.6 * max(CALL_S, self.call_s)

    def doubt_s(self, time_s: float) -> float:
        """Width of the interval in which the next update lies."""
        low_s, high_s = self.expected_s(time_s, 1)
        return high_s - low_s

    def observe(self, before_s: float, after_s: float, changed: bool) -> None:
        """Record a reading taken between the two times; `changed`: its value differs from the previous reading's."""
        last_s, self.last_s = self.last_s, before_s
        self.since_s = after_s if changed or last_s is None else self.since_s
        self.slower |= self.period is not None and before_s - self.since_s > STOOD * self.period[1]
        if changed and last_s is not None and (self.period is None or after_s - last_s < WIDEST * self.period[0]):
            self.ends = [*self.ends[-KEPT:], (last_s, after_s)]
            self.fresh = True

    def locate(self) -> None:
        """Fit the line to the intervals. A counter whose updates fit no line is read in slots."""
        if self.period is None or not self.fresh:
            return
        self.fresh = False
        low_s, high_s = np.array(self.ends).T
        self.line = fit(low_s, high_s, self.period, MOST_SLACK_S)
        if self.line is None and len(self.ends) >= LEAST:
            # A period from the cache may be of other conditions; one that was loose already fits no line.
            middle_s, half_s = sum(self.period) / 2, (self.period[1] - self.period[0]) / 2
            loose_s = LOOSE * middle_s
            self.period = (middle_s - loose_s, middle_s + loose_s) if half_s < loose_s / 2 else None

    def expected_s(self, time_s: float, after: int) -> tuple[float, float]:
        """When the update comes that is the `after`th from the last one before `time_s`: earliest and latest."""
        assert self.line is not None
        return self.line.around_s(time_s, after)

    def next_read_s(self, now_s: float, slot_s: float, trial_from_s: float | None) -> float:
        """When to read next: in the slot, or from `trial_from_s` on (None: not now) in a trial that takes its place."""
        self.plan = [instant for instant in self.plan if instant > now_s]
        if self.plan:
            return self.plan[0]
        self.locate()
        if self.line is None:
            return slot_s
        share, doubt_s = min(1.0, self.line.period[0] / 0.1), self.doubt_s(now_s)
        if self.doubtful:
            self.doubtful = doubt_s > max(share * SURE_S, self._least_s) and self.tries < MOST_TRIES
            self.rest_until_s = now_s + REST_S
        elif trial_from_s is not None and now_s > self.rest_until_s:
            start_s = max(share * DOUBT_S, 1.2 * self._least_s)
            self.doubtful, self.tries = start_s < doubt_s < HOPELESS * self.line.period[0], 0
        if not self.doubtful or trial_from_s is None:
            return self.safe_s(slot_s)
        self.tries += 1
        self.plan = self.trial_s(trial_from_s)
        return self.plan[0]

    def safe_s(self, time_s: float) -> float:
        """The first instant from `time_s` on at which a call meets no update and no quiet time.

        In a trial it is `time_s`; a trial that has become late is given up.
        """
        if self.line is None or self.period is None:
            return time_s
        if self.plan:
            if time_s < self.plan[0] + self.call_s / 2:
                return time_s
            self.plan = []  # other GPUs' readings made the trial late
        for after in (0, 1):
            low_s, high_s = self.expected_s(time_s, after)
            if high_s - low_s + self._quiet_s > self.period[0] / 2:  # too doubtful to be avoided
                return time_s
            if low_s - self.call_s < time_s < high_s + self._quiet_s:
                time_s = high_s + self._quiet_s + self.call_s * self.rng.random()
        return time_s

    @property
    def _quiet_s(self) -> float:
        assert self.period is not None
        return min(QUIET_S, QUIET_SHARE * self.period[0])

    def trial_s(self, time_s: float) -> list[float]:
        """The times of the readings of a trial after `time_s`; before a line is found, a random one.

        Of a fast counter, whose period is a few calls: readings one after the other, until one shows an update.
        """
        if self.period is not None and self.period[1] < min(FAST_S, FEW_CALLS * self.call_s):
            return [time_s + i * self.call_s for i in range(2 + math.ceil(self.period[1] / self.call_s))]
        if self.line is None:
            return [time_s + (0.0 if self.period is None else self.period[0] * self.rng.uniform(0.05, 0.3))]
        for after in (1, 2, 3):  # the first update with enough time before it
            low_s, high_s = self.expected_s(time_s, after)
            begin_s = low_s - self.call_s * self.rng.uniform(2.0, 3.0)
            if begin_s > time_s:
                break
        due_s = low_s + self.rng.uniform(0.0, EARLY) * (high_s - low_s)
        return [begin_s, due_s, high_s + self._quiet_s + self.call_s * self.rng.random()]


def period_of(line: Line | None, otherwise_s: float | None) -> dict[str, float | None]:
    """The period of a line with half of its doubt, as fields of MeterDevice."""
    if line is None:
        return {"period_s": otherwise_s, "period_half_s": None}
    low_s, high_s = line.period
    return {"period_s": (low_s + high_s) / 2, "period_half_s": (high_s - low_s) / 2}


def update_period_s(changes: list[tuple[float, int]]) -> float | None:
    """Seconds between updates of a field that was read often, from its changes (time, value); None for fewer than five.

    The first pair is the start of the probe, not an update. An update that repeats the value is not visible, so updates
    are numbered by whole periods, at first of the usual short gap: a reading that was late moves one update alone.

    >>> update_period_s([(0.0, 1), (0.06, 2), (0.16, 3), (0.26, 4), (0.46, 5), (0.56, 6)])
    0.1
    """
    if len(changes) < 6:
        return None
    times_s = np.array([instant - changes[1][0] for instant, _ in changes[1:]])
    gaps_s = np.diff(times_s)
    one_s, width = 1.1 * float(np.median(gaps_s[gaps_s < 1.5 * np.quantile(gaps_s, 0.25)])), 0.5
    count = 0
    while count < len(times_s):  # the more updates, the better must the period be known to number them
        count = min(max(24, 2 * count), len(times_s))
        tried_s = one_s * (1 + np.linspace(-width, width, 101))
        sums = np.exp(2j * np.pi * np.divide.outer(times_s[:count], tried_s)).sum(axis=0)
        one_s, width = float(tried_s[np.abs(sums).argmax()]), 0.6 / count
    for _ in range(2):
        phase = np.angle(np.exp(2j * np.pi * times_s / one_s).sum()) / (2 * np.pi)
        one_s = float(np.polyfit(np.round(times_s / one_s - phase), times_s, 1)[0])
    return round(one_s, 6)


def smallest_step(changes: list[tuple[float, int]]) -> int | None:
    """The greatest common divisor of all changes in value; None if they do not show it.

    Under constant power all changes are alike, and say nothing of smaller ones.
    """
    steps = np.abs(np.diff([value for _, value in changes]))
    common = int(np.gcd.reduce(steps)) if len(steps) else 0
    return common if 0 < STEPS * common < steps.min() else None
