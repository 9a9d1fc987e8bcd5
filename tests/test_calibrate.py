"""Calibration: its server keeps its schedule and tells the truth, and the search ends where it should."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Sequence
from typing import Any

import pytest

from harness import calibrate, selfwatch, store
from harness.engines.openai.engine import OpenAIEngine
from harness.errors import HarnessError
from harness.model import Record, Request
from harness.steady import Window
from harness.summary import summarise


def test_its_server_sends_what_it_says() -> None:
    with calibrate.known_server(0.05, 0.01) as url:

        async def three() -> list[Any]:
            engine = OpenAIEngine(None, {"base_url": url})
            try:
                info = await engine.start()
                assert info.model.asked == "m"
                asked = (Request(i, (200, 201), 5) for i in range(3))
                return await asyncio.gather(*(engine.generate(request, lambda _: None) for request in asked))
            finally:
                await engine.stop()

        done = asyncio.run(three())
        with urllib.request.urlopen(f"{url}/truth") as answer:
            truth = json.load(answer)
    assert [(each.output_tokens, sum(each.arrival_tokens), each.finish_reason) for each in done] == [
        (5, 5, "length")
    ] * 3
    assert truth["streams"] == 3
    assert 0.05 <= truth["ttft_s"] <= 0.05 + truth["late_s"] + 1e-3
    assert truth["itl_s"] > 0.005


def test_a_rate_is_measured_against_what_left() -> None:
    with calibrate.known_server(0.05, 0.02) as url:
        limit, streams, told = calibrate.measure(url, 20, (0.05, 0.02, 8), 0.5)
    # On a busy machine either may be late, and is then blamed; what failed outright would be told so.
    assert limit in (None, "client", "server")
    assert streams >= 1
    assert "TTFT p99" in told
    assert "failed" not in told


@pytest.mark.parametrize(
    ("carries", "found", "tried"),
    [
        # by doubling up to what fails, each failure seen twice, then half way
        ((20_000, 3_000), {"tokens_per_s": 16_000.0, "requests_per_s": 2_828.0}, [4, 8, 16, 32, 32, 22.6, 22.6]),
        ((3_000, 900), {"tokens_per_s": 2_828.0, "requests_per_s": 707.0}, [4, 4, 2, 2.83]),
    ],
)
def test_the_search(carries: Sequence[float], found: dict[str, float], tried: Sequence[float]) -> None:
    rates: list[float] = []

    def level(_url: str, rate_per_s: float, schedule: tuple[float, float, int]) -> tuple[str | None, int, str]:
        rate = rate_per_s * schedule[2]
        rates.append(rate)
        return (None if rate <= carries[schedule[2] == 1] else "client"), int(rate / 10), "as known"

    got = calibrate.calibrate(lambda _: None, level)
    assert {name: round(got[name]) for name in found} == {name: round(value) for name, value in found.items()}
    assert got["limited_by"] == "client"
    assert rates[: len(tried)] == pytest.approx([1000 * each for each in tried], rel=0.01)


def test_a_machine_that_is_too_busy() -> None:
    with pytest.raises(HarnessError, match=r"not even 1,000 tokens/s could be measured truly: server late 5 ms"):
        calibrate.calibrate(lambda _: None, lambda *_: ("server", 0, "server late 5 ms"))


@pytest.mark.parametrize(
    ("carries", "clients", "found"),
    [
        # 50 arrivals and 10 requests a second: half of the one and half of the other, and more than half
        ({"tokens_per_s": 100.0, "requests_per_s": 20.0, "limited_by": "client"}, 1, None),
        ({"tokens_per_s": 99.0, "requests_per_s": 20.0, "limited_by": "client"}, 1, True),
        ({"tokens_per_s": 99.0, "requests_per_s": 20.0, "limited_by": "client"}, 2, None),
        ({"tokens_per_s": 99.0, "requests_per_s": 20.0, "limited_by": "server"}, 1, False),  # it may carry more
    ],
)
def test_a_run_beyond_what_a_client_carries_is_told(carries: dict[str, Any], clients: int, found: bool | None) -> None:
    records = [
        Record(i, i / 10, i / 10, i / 10 + 0.05, tuple(i / 10 + 0.01 * (k + 1) for k in range(5)), (1,) * 5, 8, 5, 8, 5)
        for i in range(100)
    ]
    rows = store.frame(records)
    summary = summarise("r", "complete", rows, {}, simulated=False)
    judged = selfwatch.judge(
        summary, rows, {"shape": "constant", "rate_per_s": 10.0}, clients=[{}] * clients,
        window=Window(0.0, 10.0, 1.0), capacity=carries,
    )  # fmt: skip
    told = [each.serious for each in judged.findings if each.code == "beyond-capacity"]
    assert told == ([] if found is None else [found])
