"""A run in progress as its directory tells it: rates, latencies and power, over the last seconds and in all.

Journals are read from where the last look ended, and latencies are counted in bins: a look costs what is new, however
long the run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from harness import store
from harness.sender import Progress

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_PER_DECADE, _LEAST, _BINS = 100, -6, 900
"""Bins of latency are 2.3% wide, from a microsecond to a quarter of an hour."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Seen:
    """A run at one look. Missing is None; percentiles are by name of `PERCENTILES`, good to 1.2%."""

    file: store.RunFile
    progress: Progress
    tokens_per_s: tuple[float | None, float | None]
    """Over the window, and since the load began; those of requests still in flight too."""
    finished: int
    failed: int
    latency_s: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]]
    """`TTFT` and `ITL` of finished requests: those that ended in the window, and all."""
    power_w: Mapping[str, float]
    """By domain, all devices together."""


class Watched:
    """A run's directory that is looked at again and again; the window is the last `window` looks."""

    def __init__(self, directory: Path, window: int) -> None:
        self.directory = directory
        self._tails: dict[Path, Tail] = {}
        self._progress = Progress("starting")
        self._marks: deque[Progress] = deque(maxlen=window + 1)
        self._recent: dict[str, deque[Counts]] = {name: deque(maxlen=window) for name in ("TTFT", "ITL")}
        self._all = {name: np.zeros(_BINS, np.int64) for name in self._recent}
        self._finished = self._failed = 0
        self._power: dict[tuple[str, str], deque[Mapping[str, Any]]] = {}
        self._window = window

    def look(self) -> Seen:
        """What there is now. HarnessError where the directory holds no run."""
        file = store.read_file(self.directory)
        self._read_progress()
        self._count(row for path in sorted(self.directory.glob("requests*.jsonl")) for row in self._new(path))
        self._meter(self._new(self.directory / "power.jsonl"))
        first, last = (self._marks[0], self._marks[-1]) if self._marks else (None, None)
        return Seen(
            file,
            self._progress,
            (_rate(first, last), _rate(Progress(""), last)),
            self._finished,
            self._failed,
            {name: (_percentiles(sum(self._recent[name])), _percentiles(self._all[name])) for name in self._all},
            self._watts(),
        )

    def _new(self, path: Path) -> list[dict[str, Any]]:
        return self._tails.setdefault(path, Tail(path)).rows()

    def _read_progress(self) -> None:
        try:
            self._progress = Progress(**orjson.loads((self.directory / store.PROGRESS).read_bytes()))
        except (OSError, ValueError):  # the run is over, or is just writing it
            return
        if self._progress.phase == "measuring":
            self._marks.append(self._progress)

    def _count(self, rows: Iterable[Mapping[str, Any]]) -> None:
        first, gaps = [], []
        for row in rows:
            self._finished += 1
            self._failed += row["error"] is not None
            arrivals = row["arrival_s"]
            if row["error"] is None and arrivals:
                first.append(arrivals[0] - row["sent_s"])
                gaps.append(np.diff(arrivals))
        for name, values in (("TTFT", np.array(first)), ("ITL", np.concatenate([[], *gaps]))):
            counts = _binned(values)
            self._recent[name].append(counts)
            self._all[name] += counts

    def _meter(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            kept = self._power.setdefault((row["domain"], row["device"]), deque())
            kept.append(row)
            while kept[0]["after_s"] < row["after_s"] - self._window:
                kept.popleft()

    def _watts(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for (domain, _), rows in self._power.items():
            watts = _power_of(rows[0], rows[-1])
            if watts is not None:
                found[domain] = found.get(domain, 0.0) + watts
        return found


class Tail:
    """What a journal has got since it was last asked; nothing while there is no such file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._begun = b""

    def rows(self) -> list[dict[str, Any]]:
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return []
        *lines, self._begun = (self._begun + self._file.read()).split(b"\n")
        return [orjson.loads(line) for line in lines]


def _binned(values: NDArray[np.float64]) -> Counts:
    bins = (np.log10(np.maximum(values, 10.0**_LEAST)) - _LEAST) * _PER_DECADE
    return np.bincount(np.minimum(bins.astype(int), _BINS - 1), minlength=_BINS)


def _percentiles(counts: Counts | int) -> dict[str, float]:
    """The middle of the bin that holds each percentile; empty where nothing was counted."""
    reached = np.cumsum(counts)
    if not reached[-1]:
        return {}
    bins = np.searchsorted(reached, [math.ceil(q * reached[-1]) for q in PERCENTILES.values()])
    return dict(zip(PERCENTILES, (float(10 ** ((b + 0.5) / _PER_DECADE + _LEAST)) for b in bins), strict=True))


def _rate(first: Progress | None, last: Progress | None) -> float | None:
    """Output tokens a second between two words of progress; None where no time lies between."""
    if first is None or last is None or not last.elapsed_s > first.elapsed_s:
        return None
    return (last.output_tokens - first.output_tokens) / (last.elapsed_s - first.elapsed_s)


def _power_of(first: Mapping[str, Any], last: Mapping[str, Any]) -> float | None:
    """By the counter where there is one, else the last reading."""
    if first["energy_j"] is not None and last["energy_j"] is not None and last["after_s"] > first["after_s"]:
        return float((last["energy_j"] - first["energy_j"]) / (last["after_s"] - first["after_s"]))
    return None if last["power_w"] is None else float(last["power_w"])
