"""A server's own metrics, read once a second while it is measured."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from harness.config import data_yaml
from harness.errors import HarnessError
from harness.meters import prometheus
from harness.model import MeterInfo, ServerSample

PERIOD_S = 1.0
NAMES: Mapping[str, list[str]] = data_yaml("server_metrics.yaml")
"""Metric as stored -> its names on the servers."""
GAUGES = ("running", "waiting", "kv_cache_use", "acceptance", "accepted_length")
OVER_ENGINES: Mapping[str, Any] = {"kv_cache_use": max, "acceptance": fmean, "accepted_length": fmean}
"""Metrics that do not add up over several engines -> what stands for all."""

_STORED_NAME = {theirs: name for name, names in NAMES.items() for theirs in names}


def values_of(text: str) -> dict[str, float]:
    """The stored metrics in an answer of /metrics; over several engines added up, or as `OVER_ENGINES` says.

    >>> values_of('vllm:num_requests_running{engine="0"} 3.0\\nvllm:num_requests_running{engine="1"} 4.0\\n')
    {'running': 7.0}
    """
    said = list(prometheus.parse(text, _STORED_NAME))
    names, values = {metric for metric, _, _ in said}, dict[str, list[float]]()
    for metric, _, value in said:
        renamed = metric.replace(":gpu_", ":")
        if renamed == metric or renamed not in names:  # vLLM 0.9 has both names for one counter
            values.setdefault(_STORED_NAME[metric], []).append(value)
    return {name: OVER_ENGINES.get(name, sum)(each) for name, each in values.items()}


def counters(text: str) -> list[ServerSample]:
    """The counters among the stored metrics, at the time of the call: of an engine that is read at both ends alone."""
    now_s = time.monotonic()
    return [ServerSample(now_s, name, value) for name, value in values_of(text).items() if name not in GAUGES]


class ServerReader:
    """Reads the metrics of the servers that answer the first time as one.

    Where one of them does not answer, that reading is left out: the sum of the others' counters is another counter.
    """

    next_s = 0.0

    def __init__(self, base_urls: Sequence[str]) -> None:
        self.urls = [f"{url.rstrip('/').removesuffix('/v1')}/metrics" for url in base_urls]

    def open(self) -> MeterInfo:
        return MeterInfo("server", "measured", ())

    def read(self) -> list[ServerSample]:
        asked_s, answers = time.monotonic(), dict[str, str]()
        for url in self.urls:
            with contextlib.suppress(HarnessError):
                answers[url] = prometheus.fetch(url)
        answered_s = time.monotonic()
        first, self.next_s = self.next_s == 0.0, answered_s + PERIOD_S
        if first:
            self.urls = [*answers]
        elif len(answers) < len(self.urls):
            return []
        time_s = (asked_s + answered_s) / 2
        return [ServerSample(time_s, name, value) for name, value in values_of("\n".join(answers.values())).items()]
