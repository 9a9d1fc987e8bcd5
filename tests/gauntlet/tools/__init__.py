"""Drivers, one file a tool: this harness, and its peers."""

from gauntlet.tools import aiperf, guidellm, inference_perf, sglang_bench, vllm_bench

PEERS = {each.PEER.name: each.PEER for each in (vllm_bench, sglang_bench, guidellm, aiperf, inference_perf)}
