"""Figures from a server's own metrics."""

from __future__ import annotations

import pandas as pd
import pytest
from builders import a_run, record

from harness.analysis.server import check_cache, check_server, server_figures, undeclared_hits
from harness.model import Figure, Record
from harness.store.run import Run


def readings(**values: list[float]) -> pd.DataFrame:
    """One reading a second from -1 on."""
    rows = [(at - 1.0, name, value) for name, each in values.items() for at, value in enumerate(each)]
    return pd.DataFrame(rows, columns=["time_s", "name", "value"])


def test_figures_come_from_the_readings_in_the_span() -> None:
    given = readings(
        running=[0, 2, 4, 9],
        kv_cache_use=[0, 0.25, 0.5, 0.9],
        prefix_cache_queries=[100, 110, 180, 300],
        prefix_cache_hits=[50, 50, 80, 150],
        preemptions=[1, 1, 1, 3],
    )
    found = {figure.name: (figure.value, figure.unit, figure.n) for figure in server_figures(given, -0.5, 1.5)}
    assert found == {
        "server.running.mean": (3.0, "requests", 2),  # of the readings at 0 and 1
        "server.running.max": (4.0, "requests", 2),
        "server.kv_cache_use.max": (0.5, "share", 2),
        "server.prefix_cache_hits": (0.5, "share", 200),  # 100 of 200, from the reading at -1 to that at 2
        "server.preemptions": (2.0, "requests", None),
    }


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (readings(), set()),
        (readings(waiting=[7]), {"server.waiting.mean": "no reading lies in the measured window"}),
        (
            readings(prefix_cache_queries=[4, 4], prefix_cache_hits=[0, 0]),
            {"server.prefix_cache_hits": "no token was looked up in the cache"},
        ),
    ],
)
def test_metrics_without_readings_give_no_value(given: pd.DataFrame, names: dict[str, str]) -> None:
    found = {figure.name: figure for figure in server_figures(given, 0.5, 1.5)}
    assert {name: found[name].reason for name in names} == dict(names)
    assert all(found[name].value is None for name in names)
    assert bool(found) == bool(names)


def test_a_ttft_is_split_into_queue_and_prefill_by_the_servers_histograms() -> None:
    given = readings(queue_s=[1, 2, 5], queued=[10, 20, 30], prefill_s=[0, 1, 3], prefilled=[10, 20, 30])
    found = {figure.name: (figure.value, figure.unit, figure.n) for figure in server_figures(given, -0.5, 0.5)}
    assert found == {"server.queue_s.mean": (0.2, "s", 20), "server.prefill_s.mean": (0.15, "s", 20)}


@pytest.mark.parametrize(
    ("given", "true"),
    [
        # vLLM's counters: 100 steps drafted 300 tokens, of which 150 were accepted, and each step adds one of its own
        (readings(drafts=[0, 100], draft_tokens=[0, 300], accepted_tokens=[0, 150]), (0.5, 2.5)),
        (readings(acceptance=[0.4, 0.6], accepted_length=[2, 3]), (0.5, 2.5)),  # SGLang's gauges
        (readings(drafts=[7, 7], draft_tokens=[21, 21], accepted_tokens=[3, 3]), (None, None)),
    ],
)
def test_speculative_decoding_is_told_in_one_way(given: pd.DataFrame, true: tuple[float | None, float | None]) -> None:
    found = {figure.name: figure.value for figure in server_figures(given, -1, 0)}
    assert (found["server.acceptance.mean"], found["server.accepted_length.mean"]) == true
    if "draft_tokens" in set(given["name"]):
        assert found["server.draft_tokens"] == (300 if true[0] else 0)


def met(
    *records: Record, told: pd.DataFrame | None = None, alone: int | None = 0, salt: int | None = 1, **prompts: bool
) -> Run:
    """A run that these requests and readings were stored of."""
    given = {"salt": salt, "attached": True, "cached_alone": alone} | prompts
    run = a_run(*records, prompts=given)
    run.__dict__["server"] = readings() if told is None else told
    return run


def asked(cached: int | None, shared: int = 0, sent: int = 100, read: int | None = 100) -> Record:
    return record(0, input_asked=sent, input_tokens=read, cached_tokens=cached, shared_tokens=shared)


@pytest.mark.parametrize(
    ("run", "share"),
    [
        (met(asked(None)), None),
        (met(asked(0)), 0),
        (met(asked(96), asked(0)), 0.48),
        (met(asked(48, shared=50)), 0),  # a prefix of the workload
        (met(asked(96, shared=50)), 0.46),
        (met(asked(16), alone=20), 0),  # the chat template, as seen in the warm-up
        (met(asked(16, sent=80)), 0),  # or as the server counts it
        (met(asked(97, read=3)), 0.97),  # a gateway that leaves cached tokens out of the input
        (met(asked(None), told=readings(prefix_cache_queries=[9, 109], prefix_cache_hits=[5, 85])), 0.8),
        (met(asked(None, shared=50), told=readings(prefix_cache_queries=[0, 99], prefix_cache_hits=[0, 44])), 0),
        (met(asked(0), told=readings(prefix_cache_queries=[0, 100], prefix_cache_hits=[0, 80])), 0.8),
        (met(asked(None), told=readings(prefix_cache_queries=[0, 0], prefix_cache_hits=[0, 0])), 0),
        # preempted requests find their own tokens
        (met(asked(0), told=readings(prefix_cache_queries=[0, 9], prefix_cache_hits=[0, 5], preemptions=[0, 1])), 0),
        (a_run(asked(96)), None),  # a run of an earlier version
    ],
)
def test_hits_are_undeclared_beyond_what_the_workload_and_the_template_share(run: Run, share: float | None) -> None:
    found = undeclared_hits(run)
    assert found == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("run", "found"),
    [
        (met(asked(0)), []),
        (met(asked(96)), [("warm-cache", True)]),
        (met(asked(None), salt=None), [("prompts-repeated", True)]),
        (met(asked(96), salt=None), [("warm-cache", True), ("prompts-repeated", True)]),
        (met(asked(None), salt=None, cache_reset=True), []),
        (met(asked(None), salt=None, attached=False), []),
    ],
)
def test_a_cache_that_knew_the_prompts_or_may_have_is_a_finding(run: Run, found: list[tuple[str, bool]]) -> None:
    assert [(each.code, each.serious) for each in check_cache(run)] == found


NINE = [0.0] * 9


@pytest.mark.parametrize(
    ("told", "codes"),
    [
        (readings(waiting=[5, 6, 5, 6, 5, 6, 5, 6, 5], kv_cache_use=[0.9] * 9, preemptions=NINE), []),
        (readings(waiting=[0, 1, 2, 3, 4, 5, 6, 7, 8], running=[20.0] * 9), ["waiting-grows"]),
        (readings(waiting=[0, 0, 0, 0, 0, 0, 1, 1, 1]), []),  # one request more is chance
        (readings(waiting=[100, 100, 100, 101, 101, 101, 103, 103, 103]), []),  # 3% of those in the server
        (readings(kv_cache_use=[0.5] * 8 + [0.97]), ["kv-cache-full"]),
        (readings(preemptions=[*NINE[:8], 2]), ["preemptions"]),
    ],
)
def test_a_server_without_room_for_the_load_is_a_finding(told: pd.DataFrame, codes: list[str]) -> None:
    figures = {each.name: each for each in server_figures(told, -1, 7)}
    assert [each.code for each in check_server(met(asked(0), told=told), figures, -1, 7)] == codes


@pytest.mark.parametrize(
    ("ttft_s", "late_s", "found"),
    [(0.040, 0.0, []), (0.049, 0.0, []), (0.115, 0.0, ["front-end"]), (0.115, 0.08, []), (None, 0.0, [])],
)
def test_time_to_the_first_token_outside_the_engine_is_a_finding(
    ttft_s: float | None, late_s: float, found: list[str]
) -> None:
    """The engine's 40 ms are those of an H200 at 128 users, the 115 ms those that its client saw over HTTP."""
    told = readings(ttft_s=[10, 12], first_tokens=[0, 50])
    theirs = {"ttft_s.mean": ttft_s, "client.loop_delay_s.p99": late_s}
    figures = {each.name: each for each in server_figures(told, -1, 0)}
    figures |= {name: Figure(name, value, "s", "measured") for name, value in theirs.items()}
    assert figures["server.ttft_s.mean"].value == pytest.approx(0.04)
    assert [each.code for each in check_server(met(asked(0), told=told), figures, -1, 0)] == found
