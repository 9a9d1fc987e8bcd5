"""Figures from a server's own metrics."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.analysis.server import server_figures


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
