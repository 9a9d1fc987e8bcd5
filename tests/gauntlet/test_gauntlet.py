"""This harness against every trap, and the judge against answers of known worth."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from gauntlet.ours import answers
from gauntlet.trap import Answer, Stand, Trap, Truth, faults, traps

JUDGED = Trap(
    "judged", "server", "", "", "", lambda: contextlib.nullcontext(Stand()), (Truth("ttft_s.p50", 0.2),), says=("late",)
)


@pytest.mark.parametrize("trap", list(traps()), ids=lambda trap: trap.name)
def test_the_harness_falls_into_no_trap(trap: Trap, tmp_path: Path) -> None:
    with trap.stand() as stand:
        given = list(answers(trap, stand, tmp_path))
        known = stand.truths()
    assert len(given) == trap.load.runs
    assert [faults(trap, answer, known) for answer in given] == [[]] * len(given)


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (Answer({"ttft_s.p50": 0.205}), True),
        (Answer({"ttft_s.p50": 0.3}), False),
        (Answer({"ttft_s.p50": None}), False),
        (Answer({}), False),
        (Answer({"ttft_s.p50": 0.3}, frozenset({"late"})), True),
        (Answer({}, refused="no"), False),
    ],
)
def test_a_wrong_figure_passes_only_if_the_tool_says_so(answer: Answer, passes: bool) -> None:
    assert (faults(JUDGED, answer) == []) is passes


def test_names_are_unique_and_every_trap_states_a_truth_or_a_finding() -> None:
    every = list(traps())
    assert len({trap.name for trap in every}) == len(every)
    assert all(trap.truths or trap.must_say or trap.says for trap in every)
