"""Decide when to read a counter that is updated rarely, and measure the period and step of its updates."""

import math
import random
from dataclasses import dataclass, field

import numpy as np

GUARD_S = 0.0005
"""A counter is read this long before and after its expected update; also the precision of the update's time."""
FILL_S = 0.04
"""Interval of the other readings. With two per tracked update (at most ten a second) that makes 45 a second."""
TRACK_S = 0.08
"""Minimum time between two tracked updates, for counters that are updated more often."""


@dataclass(slots=True)
class UpdateTracker:
    """Schedules the readings of a counter so that 45 a second locate its updates to about a millisecond.

    docs/energy.md describes the method. Readings between updates have random intervals, so that they do not run in step
    with a periodic load. Without a period (no counter, or not probed) all readings are of that kind.
    """

    rng: random.Random
    period_s: float | None = None
    fill_s: float = FILL_S
    track_s: float = TRACK_S
    update_s: float = -math.inf
    """Middle of the last interval that contained an update; the interval is `update_s` ± `half_s`."""
    half_s: float = math.inf
    tracked_s: float = -math.inf
    """When the last tracked update was seen."""
    plan: list[float] = field(default_factory=list)
    """Times of the readings around the next tracked update."""
    last_s: float = -math.inf
    """Time of the last reading."""

    @property
    def locked(self) -> bool:
        """Whether the time of an update is known to less than half a period."""
        return self.period_s is not None and self.half_s < self.period_s / 2

    def observe(self, before_s: float, after_s: float, changed: bool) -> None:
        """Record a reading taken between the two times; `changed`: its value differs from the previous reading's."""
        last_s, self.last_s = self.last_s, before_s
        if self.period_s is None:
            return
        if not changed:
            if self.plan and before_s >= self.plan[-1]:  # late update: read again in growing steps, for half a period
                late_s = before_s - self.plan[0]
                self.plan = [self.plan[0], before_s + late_s]
                if late_s > self.period_s / 2:
                    self.plan, self.half_s = [], math.inf
            return
        middle_s, half_s = (last_s + after_s) / 2, (after_s - last_s) / 2
        ambiguous = half_s >= self.period_s / 2  # the interval may contain several updates
        if self.plan and before_s >= self.plan[-1 if ambiguous else 0]:
            self.plan, self.tracked_s = [], after_s
        if ambiguous:
            return
        if self.locked:
            periods = round((middle_s - self.update_s) / self.period_s)
            expected_s = self.update_s + periods * self.period_s
            if half_s > self.half_s and last_s <= expected_s <= after_s:
                middle_s, half_s = expected_s, self.half_s  # the prediction is more precise than this interval
            else:
                self.plan = []
                self.period_s += 0.1 * (middle_s - expected_s) / periods if periods else 0.0
        self.update_s, self.half_s = middle_s, half_s

    def next_read_s(self, now_s: float) -> float:
        """When to read next."""
        fill_s = self.fill_s
        if self.period_s is not None and not self.locked:
            fill_s = min(fill_s, self.period_s / 3)
        elif self.period_s is not None and not self.plan:
            margin_s = self.half_s + GUARD_S
            earliest_s = max(now_s, self.tracked_s + self.track_s - self.period_s / 2) + margin_s
            expected_s = self.update_s + self.period_s * math.ceil((earliest_s - self.update_s) / self.period_s)
            self.plan = [expected_s - margin_s, expected_s, expected_s + margin_s]
        random_s = now_s + fill_s * self.rng.uniform(0.8, 1.2)
        planned_s = next((instant for instant in self.plan if instant > now_s), math.inf)
        return random_s if random_s < planned_s - fill_s / 4 else planned_s


def update_period_s(changes: list[tuple[float, int]]) -> float | None:
    """Seconds between updates of a field that was read often, from its changes (time, value); None for fewer than five.

    The first pair is the start of the probe, not an update. An update that repeats the value is not visible, so a gap
    counts as a whole number of periods; the lower quartile of the gaps is taken for one period.

    >>> update_period_s([(0.0, 1), (0.06, 2), (0.16, 3), (0.26, 4), (0.46, 5), (0.56, 6)])
    0.1
    """
    if len(changes) < 6:
        return None
    gaps = np.diff([instant for instant, _ in changes[1:]])
    one = float(np.quantile(gaps, 0.25))
    return round(float(gaps.sum() / np.maximum(1, np.round(gaps / one)).sum()), 6)


def smallest_step(changes: list[tuple[float, int]]) -> int | None:
    """The greatest common divisor of all changes in value; None without a change."""
    steps = np.diff([value for _, value in changes])
    return int(np.gcd.reduce(np.abs(steps))) if len(steps) else None
