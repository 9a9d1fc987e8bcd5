"""A server's own metrics, read once a second while it is measured."""

import contextlib
import time
from collections.abc import Callable, Sequence
from statistics import fmean

from harness.errors import HarnessError
from harness.meters import prometheus
from harness.model import MeterInfo, ServerSample

PERIOD_S = 1.0
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
    "queue_s": ("vllm:request_queue_time_seconds_sum", "sglang:queue_time_seconds_sum",
                "tgi_request_queue_duration_sum"),
    "queued": ("vllm:request_queue_time_seconds_count", "sglang:queue_time_seconds_count",
               "tgi_request_queue_duration_count"),
    "prefill_s": ("vllm:request_prefill_time_seconds_sum",),
    "prefilled": ("vllm:request_prefill_time_seconds_count",),
    "drafts": ("vllm:spec_decode_num_drafts_total",),
    "draft_tokens": ("vllm:spec_decode_num_draft_tokens_total",),
    "accepted_tokens": ("vllm:spec_decode_num_accepted_tokens_total",),
    "acceptance": ("sglang:spec_accept_rate",),
    "accepted_length": ("sglang:spec_accept_length",),
}  # fmt: skip
"""Metric as stored -> its names in vLLM, SGLang, TGI and llama.cpp. kv_cache_use is from 0 to 1; prefix_cache_queries
and prefix_cache_hits are tokens; queue_s and prefill_s are sums over the requests that queued and prefilled count."""
GAUGES = ("running", "waiting", "kv_cache_use", "acceptance", "accepted_length")
OVER_ENGINES: dict[str, Callable[[list[float]], float]] = {
    "kv_cache_use": max,
    "acceptance": fmean,
    "accepted_length": fmean,
}
"""Metrics that do not add up over several engines -> what stands for all."""

_STORED_NAME = {theirs: name for name, names in NAMES.items() for theirs in names}


def values_of(text: str) -> dict[str, float]:
    """The stored metrics in an answer of /metrics; over several engines added up, or as `OVER_ENGINES` says.

    >>> values_of('vllm:num_requests_running{engine="0"} 3.0\\nvllm:num_requests_running{engine="1"} 4.0\\n')
    {'running': 7.0}
    """
    values: dict[str, list[float]] = {}
    for metric, _, value in prometheus.parse(text, _STORED_NAME):
        values.setdefault(_STORED_NAME[metric], []).append(value)
    return {name: OVER_ENGINES.get(name, sum)(each) for name, each in values.items()}


def counters(text: str) -> list[ServerSample]:
    """The counters among the stored metrics, at the time of the call: of an engine that is read at both ends alone."""
    now_s = time.monotonic()
    return [ServerSample(now_s, name, value) for name, value in values_of(text).items() if name not in GAUGES]


class ServerReader:
    """Reads the metrics of all servers as one. A server without metrics, or too busy to answer, is left out."""

    next_s = 0.0

    def __init__(self, base_urls: Sequence[str]) -> None:
        self.urls = [f"{url.rstrip('/').removesuffix('/v1')}/metrics" for url in base_urls]

    def open(self) -> MeterInfo:
        return MeterInfo("server", "measured", ())

    def read(self) -> list[ServerSample]:
        asked_s, answers = time.monotonic(), list[str]()
        for url in self.urls:
            with contextlib.suppress(HarnessError):
                answers.append(prometheus.fetch(url))
        answered_s = time.monotonic()
        self.next_s = answered_s + PERIOD_S
        time_s = (asked_s + answered_s) / 2
        return [ServerSample(time_s, name, value) for name, value in values_of("\n".join(answers)).items()]
