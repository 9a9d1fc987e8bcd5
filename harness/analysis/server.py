"""Figures from the metrics that a server reported while it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.model import Figure

if TYPE_CHECKING:
    import pandas as pd


GAUGES = {
    "running.mean": "requests",
    "running.max": "requests",
    "waiting.mean": "requests",
    "waiting.max": "requests",
    "kv_cache_use.max": "share",
}
"""Figures of metrics that are not counters, and their units."""


def server_figures(readings: pd.DataFrame, begin_s: float, end_s: float) -> tuple[Figure, ...]:
    """Figures `server.…` from the readings (columns of server.parquet) between two times.

    Means and maxima are over readings one second apart, and miss changes in between. The increase of a counter is the
    first reading after the span less the last one before it. `server.prefix_cache_hits` is the share of the prompt
    tokens looked up in the cache that were found. Metrics that the server does not report give no figure.
    """
    by_name = {name: rows.set_index("time_s")["value"].sort_index() for name, rows in readings.groupby("name")}
    found: list[Figure] = []
    for key, unit in GAUGES.items():
        name, stat = key.split(".")
        if name in by_name:
            inside = by_name[name][begin_s:end_s]
            value = float(getattr(inside, stat)()) if len(inside) else None
            reason = None if len(inside) else "no reading lies in the measured window"
            found.append(Figure(f"server.{key}", value, unit, "measured", n=len(inside), reason=reason))
    grown: dict[str, float] = {}
    for counter, values in by_name.items():
        first = max(int(values.index.searchsorted(begin_s, side="right")) - 1, 0)
        last = min(int(values.index.searchsorted(end_s)), len(values) - 1)
        grown[str(counter)] = float(values.iloc[last] - values.iloc[first])
    if "prefix_cache_hits" in grown and (asked := grown.get("prefix_cache_queries")) is not None:
        share = grown["prefix_cache_hits"] / asked if asked > 0 else None
        reason = None if asked > 0 else "no token was looked up in the cache"
        found.append(Figure("server.prefix_cache_hits", share, "share", "measured", n=int(asked), reason=reason))
    if "preemptions" in grown:
        found.append(Figure("server.preemptions", grown["preemptions"], "requests", "measured"))
    return tuple(found)
