"""MLPerf's LoadGen, 4.0 to 6.0."""

import re
from collections.abc import Iterator

from harness.store.formats.point import PERCENTILES, Result, figures


def loadgen(text: str) -> Iterator[Result]:
    """mlperf_log_summary.txt. A rate that LoadGen inferred from the prompts' lengths is marked `(inferred)`."""
    said = dict(re.findall(r"^\s*(\S[^:\n]*?)\s*(?:\((?:ns|inferred)\))?\s*:\s*(.+?)\s*$", text, re.M))

    def number(*keys: str) -> float | None:
        """The value of the first key that the file has."""
        return next((float(said[key]) for key in keys if key in said), None)

    scenario = said["Scenario"]
    values = {
        "requests_per_s": number("Completed samples per second", "Samples per second", "QPS w/ loadgen overhead"),
        "output_tokens_per_s": number("Completed tokens per second", "Tokens per second", "TPS w/ loadgen overhead"),
    }
    found = figures(values, None)
    for name, mean, word in (
        ("ttft_s", ("Mean First Token latency",), "first token latency"),
        ("tpot_s", ("Mean Time per Output Token", "Mean Time to Output Token"), "time to output token"),
        ("response_s", ("Mean latency",), "latency"),
    ):
        spread = {f"{name}.mean": number(*mean)} | {
            f"{name}.{p}": number(f"{p[1:]}.00 percentile {word}") for p in PERCENTILES
        }
        found += figures(spread, None, 1e-9)
    notes = ["all latencies, TTFT included, count from the due time of the request"]
    if "tokens per second (inferred)" in text.lower():
        notes.append("LoadGen inferred the tokens per second")
    valid = said["Result is"] == "VALID"
    yield Result(
        found,
        name=f"{scenario.lower()} {said.get('SUT name', '')}".strip(),
        engine="LoadGen",
        load={"rate_per_s": number("target_qps")} if scenario == "Server" else {"shape": scenario.lower()},
        notes=tuple(notes),
        doubts=() if valid else (f"LoadGen calls this run {said['Result is']}",),
    )
