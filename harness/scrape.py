"""A server's own metrics while it is measured, read once a second.

A process of its own, as with the meters: a thread's reading would hold the interpreter's lock while tokens wait to be
stamped. It writes the journal itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from harness.child import Child, Gone
from harness.model import Figure

if TYPE_CHECKING:
    import pandas as pd

PERIOD_S = 1.0
TIMEOUT_S = 5.0
NAMES = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs", "tgi_batch_current_size",
                "llamacpp:requests_processing"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "tgi_queue_size", "llamacpp:requests_deferred"),
    "kv_cache_use": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage",
                     "llamacpp:kv_cache_usage_ratio"),
    "prefix_cache_queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total",
                             "sglang:prompt_tokens_total"),
    "prefix_cache_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total",
                          "sglang:cached_tokens_total"),
    "preemptions": ("vllm:num_preemptions_total", "sglang:num_retracted_requests_total"),
}  # fmt: skip
"""What is kept -> what vLLM, SGLang, TGI and llama.cpp call it. Use is a share of 1; queries and hits are tokens."""

_OURS = {theirs: name for name, all_theirs in NAMES.items() for theirs in all_theirs}
_LINE = re.compile(rf"^({'|'.join(map(re.escape, _OURS))})(?:\{{.*\}})? +([-+.\deE]+)", re.MULTILINE)


def parse(text: str) -> dict[str, float]:
    """The values in one answer of /metrics. Of several engines behind one server counts add up, and the fullest cache
    stands for all.

    >>> parse('vllm:num_requests_running{engine="0"} 3.0\\nvllm:num_requests_running{engine="1"} 4.0\\n')
    {'running': 7.0}
    """
    values: dict[str, float] = {}
    for theirs, number in _LINE.findall(text):
        name, value = _OURS[theirs], float(number)
        known = values.get(name, 0.0)
        values[name] = max(known, value) if name == "kv_cache_use" else known + value
    return values


GAUGES = {
    "running.mean": "requests",
    "running.max": "requests",
    "waiting.mean": "requests",
    "waiting.max": "requests",
    "kv_cache_use.max": "share",
}
"""Figures of the readings themselves, and their units."""


def figures(readings: pd.DataFrame, begin_s: float, end_s: float) -> tuple[Figure, ...]:
    """What a server said of itself between two times (the columns of server.parquet), as figures named `server.…`.

    Means and maxima are over the readings, a second apart: what came and went in between is not in them. Of counters,
    the last reading before the span is taken from the first one after it: `server.prefix_cache_hits` is the share of
    the prompt tokens looked up that were found. A figure whose metric the server does not give is left out.
    """
    by_name = {name: rows.set_index("time_s")["value"].sort_index() for name, rows in readings.groupby("name")}
    found: list[Figure] = []
    for key, unit in GAUGES.items():
        name, stat = key.split(".")
        if name in by_name:
            inside = by_name[name][begin_s:end_s]
            value = float(getattr(inside, stat)()) if len(inside) else None
            reason = None if len(inside) else "no reading fell into the measured part"
            found.append(Figure(f"server.{key}", value, unit, "measured", n=len(inside), reason=reason))
    grown: dict[str, float] = {}
    for counter, values in by_name.items():
        first = max(int(values.index.searchsorted(begin_s, side="right")) - 1, 0)
        last = min(int(values.index.searchsorted(end_s)), len(values) - 1)
        grown[str(counter)] = float(values.iloc[last] - values.iloc[first])
    if "prefix_cache_hits" in grown and (asked := grown.get("prefix_cache_queries")) is not None:
        share = grown["prefix_cache_hits"] / asked if asked > 0 else None
        reason = None if asked > 0 else "no token was looked up"
        found.append(Figure("server.prefix_cache_hits", share, "share", "measured", n=int(asked), reason=reason))
    if "preemptions" in grown:
        found.append(Figure("server.preemptions", grown["preemptions"], "requests", "measured"))
    return tuple(found)


@contextlib.contextmanager
def scraping(base_urls: Sequence[str], journal: Path) -> Iterator[None]:
    """Keep the metrics of these servers, together, in `journal` meanwhile: the first reading is there at once.

    Rows are {time_s, name, value}, their times on CLOCK_MONOTONIC. A server without metrics adds none.
    """
    child = Child(read, journal, base_urls)
    try:
        with contextlib.suppress(Gone):
            child.receive(None)
        yield
    finally:
        child.send("stop")
        child.end(TIMEOUT_S)


def _get(base_url: str) -> str:
    """What it says; nothing where it has no metrics, or is too busy: the next reading comes."""
    url = f"{base_url.rstrip('/').removesuffix('/v1')}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode(errors="replace"))
    except (OSError, ValueError, http.client.HTTPException):
        return ""


def read(pipe: Connection, path: Path, base_urls: Sequence[str]) -> None:
    """What the process does: a first reading at once, and a last one when it is told to stop."""
    with path.open("w") as journal:
        _note(journal, base_urls)
        pipe.send("begun")
        while not pipe.poll(PERIOD_S):
            _note(journal, base_urls)
        _note(journal, base_urls)


def _note(journal: TextIO, base_urls: Sequence[str]) -> None:
    asked_s = time.monotonic()
    text = "\n".join(map(_get, base_urls))
    time_s = (asked_s + time.monotonic()) / 2
    for name, value in parse(text).items():
        journal.write(json.dumps({"time_s": time_s, "name": name, "value": value}) + "\n")
    journal.flush()
