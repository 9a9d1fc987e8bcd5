"""When to read a counter that is updated rarely, and what its updates look like."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import numpy as np

GUARD_S = 0.0005
"""How long before and after its expected update a counter is read, and so how well that instant is known."""
FILL_S = 0.04
"""Between other readings; with two for each tracked update (at most ten a second) that makes 45 a second."""
TRACK_S = 0.08
"""The least time between two tracked updates, for counters that update faster than they need to be followed."""


@dataclass(slots=True)
class EdgeTracker:
    """Says when to read a counter next, so that some 45 readings a second tell its updates to about a millisecond.

    docs/energy.md has the method. Fill readings between updates have jitter, so that no load in step with them is seen
    at one phase alone; without a period (no counter, or not probed) every reading is a fill.
    """

    rng: random.Random
    period_s: float | None = None
    fill_s: float = FILL_S
    track_s: float = TRACK_S
    edge_s: float = -math.inf
    """The middle of the last interval in which an update was seen, `half_s` to either side."""
    half_s: float = math.inf
    tracked_s: float = -math.inf
    plan: list[float] = field(default_factory=list)
    """Instants of the readings that bracket the update tracked now."""
    last_s: float = -math.inf

    @property
    def locked(self) -> bool:
        """Whether an update's instant is known to less than half a period."""
        return self.period_s is not None and self.half_s < self.period_s / 2

    def saw(self, before_s: float, after_s: float, changed: bool) -> None:
        """A reading was taken between those two instants; `changed` against the one before it."""
        last_s, self.last_s = self.last_s, before_s
        if self.period_s is None:
            return
        if not changed:
            if self.plan and before_s >= self.plan[-1]:  # look further on, in growing steps; after half a period, anew
                late_s = before_s - self.plan[0]
                self.plan = [self.plan[0], before_s + late_s]
                if late_s > self.period_s / 2:
                    self.plan, self.half_s = [], math.inf
            return
        middle_s, half_s = (last_s + after_s) / 2, (after_s - last_s) / 2
        several = half_s >= self.period_s / 2
        if self.plan and before_s >= self.plan[-1 if several else 0]:
            self.plan, self.tracked_s = [], after_s
        if several:
            return  # updates in it, perhaps: it does not say when
        if self.locked:
            turns = round((middle_s - self.edge_s) / self.period_s)
            expected_s = self.edge_s + turns * self.period_s
            if half_s > self.half_s and last_s <= expected_s <= after_s:
                middle_s, half_s = expected_s, self.half_s  # it tells nothing new
            else:
                self.plan = []
                self.period_s += 0.1 * (middle_s - expected_s) / turns if turns else 0.0
        self.edge_s, self.half_s = middle_s, half_s

    def due_s(self, now_s: float) -> float:
        """When to read next."""
        fill_s = self.fill_s
        if self.period_s is not None and not self.locked:
            fill_s = min(fill_s, self.period_s / 3)
        elif self.period_s is not None and not self.plan:
            doubt_s = self.half_s + GUARD_S
            soonest_s = max(now_s, self.tracked_s + self.track_s - self.period_s / 2) + doubt_s
            expected_s = self.edge_s + self.period_s * math.ceil((soonest_s - self.edge_s) / self.period_s)
            self.plan = [expected_s - doubt_s, expected_s, expected_s + doubt_s]
        filled_s = now_s + fill_s * self.rng.uniform(0.8, 1.2)
        ahead_s = next((instant for instant in self.plan if instant > now_s), math.inf)
        return filled_s if filled_s < ahead_s - fill_s / 4 else ahead_s


def period_s(changes: list[tuple[float, int]]) -> float | None:
    """Seconds between updates, from (instant, value) pairs of a field that was read often; None for fewer than five.

    The first pair is where the watch began, no update. Gaps that held several updates (where the value came out the
    same) count as so many.

    >>> period_s([(0.0, 1), (0.06, 2), (0.16, 3), (0.26, 4), (0.46, 5), (0.56, 6)])
    0.1
    """
    if len(changes) < 6:
        return None
    gaps = np.diff([instant for instant, _ in changes[1:]])
    one = float(np.quantile(gaps, 0.25))
    return round(float(gaps.sum() / np.maximum(1, np.round(gaps / one)).sum()), 6)


def quantum(changes: list[tuple[float, int]], per: int) -> float | None:
    """The greatest step that all changes are multiples of, over `per`; None where there was no change."""
    steps = np.diff([value for _, value in changes])
    return float(np.gcd.reduce(np.abs(steps))) / per if len(steps) else None
