"""Each finding, provoked and not provoked; no finding on a good run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import CPU, a_run

from harness.analysis.findings import check_conditions, check_requests, mixed
from harness.analysis.latency import summarise
from harness.analysis.summary import made_of
from harness.analysis.window import Change, Window
from harness.model import Finding, Record
from harness.store.run import Run


def record(index: int, **changes: Any) -> Record:
    """Request `index` of a closed loop: sent 0.1 ms late, first token after 0.1 s, 8 tokens 10 ms apart."""
    due = index * 0.2
    sent = due + 0.0001
    arrival_s = tuple(sent + 0.1 + 0.01 * k for k in range(8))
    plain = Record(index, due, sent, arrival_s[-1], arrival_s, (1,) * 8, 16, 8, 16, 8, 0, "length")
    return replace(plain, **changes)


GOOD = [record(i) for i in range(300)]


def changed(count: int, **changes: Any) -> list[Record]:
    """The good run with its last `count` requests changed."""
    return [*GOOD[:-count], *(replace(old, **changes) for old in GOOD[-count:])] if count else GOOD


def check(
    records: Sequence[Record],
    state: str = "complete",
    engine: str = "vllm",
    count: int | None = 300,
    ignore_eos: bool = True,
    warmup_requests: int = 1,
    window: Window | None = None,
) -> tuple[Finding, ...]:
    workload = {"requests": {"count": count, "ignore_eos": ignore_eos}, "warmup": {"requests": warmup_requests}}
    run = a_run(*records, state=state, engine_asked=engine, workload=workload)
    summary = summarise("r", state, run.requests, {}, run.simulated, window)
    return tuple(check_requests(run, summary, window))


def test_a_good_run_has_no_findings() -> None:
    assert check(GOOD) == ()


STEADY = Window(5.0, 60.0, 1.0, closed=True)
WHOLE = Window(0.0, 60.2, 1.0, closed=True, whole="the rate shifted")
SHIFT, DRIFT = Change("shift", 80.0, 60.0, 0.5), Change("drift", 80.0, 60.0)
LONG = (193, *(1,) * 7)
GROUPED = {"arrival_s": (50.0, 50.01), "arrival_tokens": (1, 7), "sent_s": 49.9, "end_s": 50.01}

PROVOKED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # code, a run with the finding, a similar run without it
    ("incomplete", {"records": GOOD, "state": "interrupted"}, {"records": GOOD}),
    (
        "failed-requests",
        {"records": [*GOOD, *(record(300 + i, error="rejected") for i in range(4))]},  # 4 of 304 is above 1%
        {"records": [*GOOD, *(record(300 + i, error="rejected") for i in range(3))]},
    ),
    ("few-requests", {"records": GOOD[:298]}, {"records": GOOD[:299]}),
    ("no-warmup", {"records": GOOD, "warmup_requests": 0}, {"records": GOOD, "warmup_requests": 1}),
    ("no-warmup", {"records": GOOD, "warmup_requests": 0, "window": WHOLE}, {"records": GOOD, "window": STEADY}),
    (
        "not-steady",
        {"records": GOOD, "window": replace(STEADY, code="not-steady", change=DRIFT)},
        {"records": GOOD, "window": STEADY},
    ),
    (
        "level-shift",
        {"records": GOOD, "window": replace(STEADY, code="level-shift", change=SHIFT, shift_s=30.0)},
        {"records": GOOD, "window": STEADY},
    ),
    (
        "queue-grows",
        {"records": GOOD, "window": replace(STEADY, code="queue-grows")},
        {"records": GOOD, "window": STEADY},
    ),
    (
        "position-coverage",
        {"records": [record(0, output_tokens=200, output_asked=200, arrival_tokens=LONG), *GOOD[1:]], "window": STEADY},
        {"records": GOOD, "window": STEADY},
    ),
    ("no-window", {"records": GOOD, "window": replace(WHOLE, code="no-window")}, {"records": GOOD, "window": STEADY}),
    (
        "start-left-out",
        {"records": GOOD, "window": replace(STEADY, begin_s=7.0, left_out_s=7.0)},
        {"records": GOOD, "window": replace(STEADY, left_out_s=5.0)},
    ),
    (
        "stall",
        {"records": changed(1, arrival_s=(61.2, *(61.2 + 0.01 * k for k in range(7))), end_s=61.3), "window": STEADY},
        {"records": changed(1, arrival_s=(60.7, *(60.7 + 0.01 * k for k in range(7))), end_s=60.8), "window": STEADY},
    ),
    (
        "slow-end",
        {"records": changed(1, arrival_s=tuple(60.0 + k for k in range(8)), end_s=67.0), "window": STEADY},
        {"records": changed(1, arrival_s=tuple(60.0 + k / 2 for k in range(8)), end_s=63.5), "window": STEADY},
    ),
    (
        "short-output",
        {"records": changed(1, output_asked=9)},
        {"records": changed(1, output_asked=9), "ignore_eos": False},
    ),
    ("input-differs", {"records": changed(1, input_tokens=17)}, {"records": changed(1, input_tokens=None)}),
    ("count-differs", {"records": changed(1, output_tokens=9, output_asked=9)}, {"records": GOOD}),
    ("usage-not-believed", {"records": changed(1, output_tokens=1000)}, {"records": changed(1, output_tokens=None)}),
    ("hidden-tokens", {"records": changed(1, hidden_tokens=2)}, {"records": changed(1, hidden_tokens=None)}),
    ("retried", {"records": changed(1, retries=2)}, {"records": changed(1, retries=None)}),
    ("grouped-tokens", {"records": changed(40, **GROUPED)}, {"records": changed(30, **GROUPED)}),  # 6/7 of them unseen
    ("cached-input", {"records": changed(1, cached_tokens=8)}, {"records": changed(1, cached_tokens=0)}),
]


@pytest.mark.parametrize(("code", "with_it", "without"), PROVOKED, ids=[code for code, _, _ in PROVOKED])
def test_each_finding_appears_beyond_its_limit_only(
    code: str, with_it: dict[str, Any], without: dict[str, Any]
) -> None:
    assert [finding.code for finding in check(**with_it)] == [code]
    assert check(**without) == ()


TEXTS = {"prompts": "questions"}
EXPERTS = {"asked": "m", "parameters": 30_500_000_000, "active_parameters": 3_300_000_000}
CACHING = {"enable_prefix_caching": True}
PLACES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # code, arguments of `conditions` with the finding, similar ones without it
    ("debug-build", {"environment": {"debug": ["CUDA_LAUNCH_BLOCKING=1"]}}, {"environment": {"debug": []}}),
    (
        "swap",
        {"environment": {"swap": {"in_bytes": 3 << 20, "out_bytes": 3 << 20}}},
        {"environment": {"swap": {"in_bytes": 0, "out_bytes": 1 << 20}}},
    ),
    (
        "cpu-frequency",
        {"environment": {"governors": ["performance", "powersave"]}},
        {"environment": {"governors": ["performance"]}},
    ),
    (
        "dirty-tree",
        {"environment": {"git": {"revision": "abc", "dirty": True}}},
        {"environment": {"git": {"revision": "abc", "dirty": False}}},
    ),
    (
        "prefix-cache",
        {"requests": TEXTS, "options": CACHING, "cached": None},
        {"requests": TEXTS, "options": CACHING, "cached": 0},
    ),
    (
        "prefix-cache",
        {"requests": {"parts": [{"input_tokens": 8}, {"turns": 3}]}, "options": CACHING, "cached": None},
        {"requests": {"parts": [{"input_tokens": 8}]}, "options": CACHING, "cached": None},
    ),
    ("random-tokens", {"random": True, "model": EXPERTS}, {"random": True}),
    ("random-tokens", {"random": True, "model": EXPERTS}, {"random": False, "model": EXPERTS}),
]


def conditions(
    environment: Mapping[str, Any] | None = None,
    requests: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    cached: int | None = 0,
    simulated: bool = False,
    random: bool | None = None,
    model: Mapping[str, Any] | None = None,
) -> list[str]:
    run = a_run(
        record(0, cached_tokens=cached),
        environment=environment or {},
        workload={"requests": requests or {}},
        engine=CPU | {"options": options or {}, "model": model or CPU["model"]},
        prompts={"random": random},
        engine_asked="simulated" if simulated else "vllm",
    )
    summary = summarise("r", "complete", run.requests, {}, simulated)
    return [each.code for each in check_conditions(run, summary)]


def test_another_run_beside_is_a_finding_for_every_engine() -> None:
    for simulated in (False, True):
        assert conditions({"other_run": True}, simulated=simulated) == ["other-run"]
        assert conditions({"other_run": False}, simulated=simulated) == []


@pytest.mark.parametrize(("code", "with_it", "without"), PLACES)
def test_each_condition_is_a_finding_beyond_its_limit_only(
    code: str, with_it: dict[str, Any], without: dict[str, Any]
) -> None:
    assert conditions(**with_it) == [code]
    assert conditions(**without) == conditions(**with_it, simulated=True) == []


def test_software_that_differs_between_runs_is_named() -> None:
    old, new = (a_run(environment={"packages": {"vllm": version}}) for version in ("0.11", "0.12"))
    assert mixed([old, old]) is None
    found = mixed([old, new])
    assert found is not None
    assert (found.code, found.text, found.serious) == (
        "mixed-versions",
        "The runs were measured with different software: vllm 0.11, 0.12.",
        True,
    )


def test_a_level_shift_before_the_window_is_not_serious() -> None:
    (cut,) = check(GOOD, window=replace(STEADY, code="level-shift", change=SHIFT, shift_s=5.0))
    assert not cut.serious
    assert cut.text == "The rate shifted from 80 to 60 tokens/s at 5.0 s; the figures are of the part after it."
    (within,) = check(GOOD, window=replace(STEADY, code="level-shift", change=SHIFT, shift_s=30.0))
    assert within.serious
    assert within.text.endswith("the figures are of both levels.")


def test_a_simulated_engine_needs_no_warm_up() -> None:
    assert check(GOOD, engine="simulated", warmup_requests=0) == ()


def test_findings_state_counts_and_kinds() -> None:
    found = check(changed(30, error="timeout", cached_tokens=8)[100:], "interrupted", count=None, warmup_requests=0)
    assert [(finding.code, finding.serious) for finding in found] == [
        ("incomplete", True),
        ("failed-requests", True),
        ("few-requests", False),
        ("no-warmup", False),
    ]
    assert found[0].text == "The run is interrupted: 170 requests completed, 0 were cut off."
    assert found[1].text.startswith("15.0% of the requests failed (timeout 30)")


def test_a_first_wave_that_failed_is_found_and_counts_as_none_of_the_measured_requests() -> None:
    wave = [record(k, error="empty", age_tokens=3) for k in range(300, 330)]
    made = made_of(a_run(*changed(12, error="timeout"), *wave))
    assert (made["requests.failed"].value, made.errors) == (12, {"timeout": 12})
    (found,) = (each for each in made.findings if each.code == "failed-requests")
    assert found.text.startswith("12.7% of the requests failed (empty 30, timeout 12)")


def test_requests_cut_off_by_the_end_do_not_count_as_failed() -> None:
    found = check(changed(30, error="aborted"), "interrupted")
    assert [finding.code for finding in found] == ["incomplete", "few-requests"]
    assert found[0].text == "The run is interrupted: 270 of 300 requests completed, 30 were cut off."


@pytest.mark.parametrize("records", [[], [record(0, error="rejected")], [record(0, end_s=math.nan)]])
def test_runs_without_success_have_only_the_findings_about_failure(records: list[Record]) -> None:
    assert {finding.code for finding in check(records, "failed")} <= {"incomplete", "failed-requests"}


def test_serious_findings_come_first_in_the_summary() -> None:
    found = made_of(a_run(*GOOD[:100], record(100, output_asked=9))).findings
    assert {"few-requests", "short-output"} <= {finding.code for finding in found}
    assert [finding.serious for finding in found] == sorted((finding.serious for finding in found), reverse=True)
    assert len({finding.serious for finding in found}) == 2


def frozen(from_s: float, for_s: float) -> Run:
    """Ten requests a second for 30 s, 5 ms to the first token and 2 ms a token, while no token comes for a time."""
    rng, records = np.random.default_rng(1), []
    for i, due in enumerate(np.sort(rng.uniform(0, 30, 300)).tolist()):
        arrival_s = due + 0.005 + 0.002 * np.arange(10)
        if (held := (arrival_s >= from_s) & (arrival_s < from_s + for_s)).any():
            arrival_s[held.argmax() :] += from_s + for_s - arrival_s[held.argmax()]
        times = {"sent_s": due, "end_s": float(arrival_s[-1]), "arrival_s": tuple(arrival_s.tolist())}
        counts = {"arrival_tokens": (1,) * 10, "output_asked": 10, "output_tokens": 10}
        records.append(record(i, scheduled_s=due, **times, **counts))
    load = {"shape": "poisson", "rate_per_s": 10.0}
    return a_run(*records, workload={"load": load, "requests": {"count": 300}, "warmup": {"requests": 1}})


@pytest.mark.parametrize("from_s", [0.0, 3.0, 12.0, 22.0])
def test_a_freeze_is_a_finding_and_stays_in_the_window(from_s: float) -> None:
    """6 s of 30: a fifth of the requests wait, 1 in 100 for all of the 6 s. It is never left out as warm-up."""
    calm, found = made_of(frozen(0.0, 0.0)), made_of(frozen(from_s, 6.0))
    assert calm["ttft_s.p99"].value == pytest.approx(0.005)
    assert not {each.code for each in calm.findings} & {"stall", "start-left-out", "queue-grows"}
    assert found["ttft_s.p99"].value == pytest.approx(5.5, abs=0.3)
    (stall,) = (each for each in found.findings if each.code == "stall")
    assert stall.serious is True
    assert "within the measured window" in stall.text
    assert not {each.code for each in found.findings} & {"start-left-out", "queue-grows", "level-shift"}
