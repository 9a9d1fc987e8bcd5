"""Counts of tokens over time."""

import numpy as np
import pytest
from builders import by_hand, frame_of
from hypothesis import given
from hypothesis import strategies as some

from harness.analysis.tokens import Events, between, counted


def test_tokens_accrue_evenly_over_the_gap_before_their_arrival() -> None:
    times = [(at + 0.125, at + 0.25, at + 0.375, at + 0.5) for at in (0.0, 0.5)]
    came = frame_of([by_hand(sent_s=at[0] - 0.125, end_s=at[3], arrival_s=at, arrival_tokens=(1,) * 4) for at in times])
    parts = between(came, np.array([0.2, 0.5, 1.0]))
    assert parts["output_token"].tolist() == pytest.approx([0.4 + 2, 4])
    assert parts["context"].tolist() == pytest.approx([0.4 * 11.5 + 12.5 + 13.5, 10.5 + 11.5 + 12.5 + 13.5])
    assert parts["input_token"].tolist() == [0, 10]  # the first prompt was read by 0.125
    assert parts["request"].tolist() == pytest.approx([0.6, 1])
    at = counted(came, np.array([-1.0, 0.25, 0.75, 2.0]))
    assert (at["sent"] - at["ended"]).tolist() == [0, 1, 1, 0]


@given(some.lists(some.tuples(some.integers(0, 9), some.integers(0, 9), some.integers(1, 5)), min_size=1))
def test_counts_agree_with_each_event_counted_alone(drawn: list[tuple[int, int, int]]) -> None:
    begin, length, amount = np.array(drawn, float).T
    instants = np.arange(-1, 20) / 1.5
    alone = [
        n * np.clip((instants - at) / long, 0, 1) if long else n * (instants >= at)
        for at, long, n in zip(begin, length, amount, strict=True)
    ]
    assert Events(begin, begin + length, amount).until(instants) == pytest.approx(np.sum(alone, axis=0))
