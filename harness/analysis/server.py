"""What a server reported of itself while it was measured: figures from its metrics, and doubts that they raise."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from harness.analysis.findings import finding
from harness.files import data_rows
from harness.model import Figure, Finding
from harness.stats import Array
from harness.store.run import Run

WARM_SHARE = 0.01
"""Share of the input that a prefix cache may supply beyond what is declared, without a finding."""
FULL = 0.95
"""Use of the KV cache above which requests soon wait or are preempted."""
GROWN = 0.05
"""Growth of a server's queue over the window, as a share of the requests in the server, above which it is a finding."""
OUTSIDE_SHARE, OUTSIDE_S = 0.2, 0.005
"""TTFT outside the engine, as a share and in s, above both of which it is a finding."""
LEAST_READINGS = 9
"""Readings needed to compare the first third of a window with the last."""


def server_figures(readings: pd.DataFrame, begin_s: float, end_s: float) -> tuple[Figure, ...]:
    """Figures `server.…` from the readings (columns of server.parquet) between two times.

    Means and maxima of gauges are over readings one second apart, and miss changes in between. The increase of a
    counter is the first reading after the span less the last one before it. `server.prefix_cache_hits` is the share of
    the prompt tokens looked up in the cache that were found; `queue_s` and `prefill_s` are means of the requests that
    ended, `ttft_s` of those that had their first token. Of speculative decoding: `acceptance` is the share of drafted
    tokens that were accepted, `accepted_length` the tokens of a verified step, with the one that the model adds itself.
    A metric that is not reported gives none.
    """
    found: dict[str, Figure] = {}
    grown = _growth(readings, begin_s, end_s)
    for row in data_rows("server_figures.csv"):
        seen = _value(row, grown, _inside(readings, row["metric"], begin_s, end_s))
        if seen is not None and row["figure"] not in found:
            value, n = seen
            reason = row["no_value"] if value is None else None
            name = f"server.{row['figure']}"
            found[row["figure"]] = Figure(name, value, row["unit"], "measured", n=n, reason=reason)
    return tuple(found.values())


def _value(
    row: Mapping[str, str], grown: Mapping[str, float], inside: Array | None
) -> tuple[float | None, int | None] | None:
    """Value and number of observations of a row of server_figures.csv; None: the server does not report the metric."""
    above, below = grown.get(row["metric"]), grown.get(row["per"])
    if inside is None or above is None:
        return None
    if row["statistic"] == "increase":
        return above, None
    if row["per"]:
        more = 1 if row["statistic"] == "1 + ratio" else 0
        return None if below is None else (more + above / below if below > 0 else None, int(below))
    return float(getattr(np, row["statistic"])(inside)) if len(inside) else None, len(inside)


def _growth(readings: pd.DataFrame, begin_s: float, end_s: float) -> Mapping[str, float]:
    """The increase of every metric over a span, as if it were a counter."""
    grown: dict[str, float] = {}
    for name, rows in readings.groupby("name"):
        values = rows.set_index("time_s")["value"].sort_index()
        first = max(int(values.index.searchsorted(begin_s, side="right")) - 1, 0)
        last = min(int(values.index.searchsorted(end_s)), len(values) - 1)
        grown[str(name)] = float(values.iloc[last] - values.iloc[first])
    return grown


def _inside(readings: pd.DataFrame, name: str, begin_s: float, end_s: float) -> Array | None:
    """The values of a metric that were read in a span, in order of time; None: it was never read."""
    rows = readings[readings["name"] == name].sort_values("time_s")
    inside = rows["time_s"].between(begin_s, end_s)
    return rows["value"].to_numpy(float)[inside.to_numpy()] if len(rows) else None


def check_server(run: Run, figures: Mapping[str, Figure], begin_s: float, end_s: float) -> Iterator[Finding]:
    """Findings from what the server reported of its time, queue and memory in the window; all `figures` by name."""

    def value(name: str) -> float:
        return getattr(figures.get(name), "value", None) or 0.0

    if (preempted := value("server.preemptions")) > 0:
        yield finding("preemptions", count=preempted)
    if (use := value("server.kv_cache_use.max")) > FULL:
        yield finding("kv-cache-full", use=use)
    if engine_s := value("server.ttft_s.mean"):
        ttft_s = value("ttft_s.mean")
        outside_s = ttft_s - engine_s
        if outside_s > max(OUTSIDE_SHARE * ttft_s, OUTSIDE_S + value("client.loop_delay_s.p99")):
            yield finding("front-end", outside_s=outside_s, ttft_s=ttft_s, engine_s=engine_s)
    waiting = _inside(run.server, "waiting", begin_s, end_s)
    if waiting is not None and len(waiting) >= LEAST_READINGS:
        third = len(waiting) // 3
        before, since = float(waiting[:third].mean()), float(waiting[-third:].mean())
        if since - before > max(1.0, GROWN * (value("server.running.mean") + value("server.waiting.mean"))):
            yield finding("waiting-grows", before=before, since=since)


def check_cache(run: Run) -> Iterator[Finding]:
    """Did the engine's prefix cache know the prompts, or may it have known them?"""
    prompts, share = run.file.prompts, undeclared_hits(run)
    if share is not None and share > WARM_SHARE:
        yield finding("warm-cache", share=share)
    if prompts is not None and prompts.repeated:
        yield finding("prompts-repeated", seed=run.file.workload.seed)


def _input(run: Run) -> tuple[Array, Array, Array, Array]:
    """Of each request the input tokens: in all, sent, from the cache (NaN: not reported), and shared."""
    read, sent, cached, shared = (
        run.requests[name].to_numpy(float, na_value=np.nan)
        for name in ("input_tokens", "input_asked", "cached_tokens", "shared_tokens")
    )
    return np.fmax(read, sent), sent, cached, shared


def cached_share(run: Run) -> float | None:
    """Share of the input tokens that the engine reports from its cache; None: it does not report it."""
    total, _, cached, _ = _input(run)
    known = ~np.isnan(cached)
    return float(cached[known].sum() / max(total[known].sum(), 1)) if known.any() else None


def undeclared_hits(run: Run) -> float | None:
    """Share of the input tokens that a prefix cache supplied beyond what the requests share by the workload.

    Declared are the tokens that a prompt shares with others of the run, and those of the chat template: what the engine
    supplied of a new prompt after the warm-up, or the input tokens that it counts beyond those sent. The larger share
    of two accounts: the engine's for each request, and its metrics over the run. None: it gives neither account, or the
    run was stored before prompts were recorded.
    """
    if run.file.prompts is None:
        return None
    total, sent, cached, shared = _input(run)
    alone = np.maximum(total - sent, run.file.prompts.cached_alone or 0)
    declared = np.minimum(np.nan_to_num(shared) + alone, total)
    shares, known = [], ~np.isnan(cached)
    if known.any():
        shares.append(float(np.maximum(cached - declared, 0)[known].sum() / max(total[known].sum(), 1)))
    grown = _growth(run.server, -np.inf, np.inf)
    # A request that is preempted finds its own tokens in the cache.
    if "prefix_cache_hits" in grown and "prefix_cache_queries" in grown and not grown.get("preemptions"):
        hits = grown["prefix_cache_hits"] / max(grown["prefix_cache_queries"], 1)
        shares.append(max(0.0, hits - float(declared.sum() / max(total.sum(), 1))))
    return max(shares) if shares else None
