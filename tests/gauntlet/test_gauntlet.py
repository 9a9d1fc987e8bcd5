"""This harness and wrong tools against every trap, and the judges against answers of known worth."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from gauntlet import page
from gauntlet.tools.ours import answers
from gauntlet.trap import LATE_S, Answer, Stand, Trap, Truth, faults, judge, traps
from gauntlet.wrong import mutated
from places import ROOT

EVERY = list(traps())
JUDGED = Trap(
    "judged", "server", "", "", "", lambda: contextlib.nullcontext(Stand()), (Truth("ttft_s.p50", 0.2),), says=("late",)
)


@pytest.mark.parametrize("trap", EVERY, ids=lambda trap: trap.name)
def test_the_harness_falls_into_no_trap_and_wrong_tools_fall_into_each(trap: Trap, tmp_path: Path) -> None:
    for attempt in range(3):
        with trap.stand() as stand:
            (scratch := tmp_path / f"{attempt}").mkdir()
            given = [answer.beside(stand.seen()) for answer in answers(trap, stand, scratch)]
            late_s = stand.late_s()
        if late_s < LATE_S:
            break
    else:
        pytest.skip(f"the stand itself was {late_s * 1e3:.0f} ms late, three times")
    assert len(given) == trap.load.runs
    assert [faults(trap, answer) for answer in given] == [[]] * len(given)
    for wrong in trap.falls:
        assert faults(trap, mutated(wrong, trap, stand, given[-1])), f"{trap.name} does not catch {wrong}"


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


@pytest.mark.parametrize(
    ("figures", "defines", "verdict"),
    [
        ({"ttft_s.p50": 0.205}, {}, "right"),
        ({"ttft_s.p50": 0.3}, {}, "wrong"),
        ({"ttft_s.p50": 0.3}, {"ttft_s": "with the connection's"}, "defined otherwise"),
        ({"ttft_s.p50": 0.3}, {"tpot_s": "with the first", "*": "of the whole run"}, "wrong"),
        ({"tpot_s.p50": 0.3}, {}, "not measured"),
    ],
)
def test_another_tool_is_judged_by_its_own_definitions(
    figures: dict[str, float], defines: dict[str, str], verdict: str
) -> None:
    assert judge(JUDGED, [Answer(figures)], defines)[0] == verdict


def test_names_are_unique_and_every_trap_states_a_truth_or_a_finding_and_catches_a_wrong_tool() -> None:
    assert len({trap.name for trap in EVERY}) == len(EVERY)
    assert all(trap.truths or trap.must_say or trap.says for trap in EVERY)
    assert [trap.name for trap in EVERY if not trap.falls] == []


def test_the_page_is_made_from_the_published_answers() -> None:
    assert (ROOT / "docs/gauntlet.md").read_text() == page.page(EVERY, page.RAW)
