"""The table of engines, and the simulated engine against its schedule. Real engines have their own test modules."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from commands import Command

from harness.engines.base import create_engine
from harness.engines.simulated import SimulatedEngine
from harness.errors import EngineDied, HarnessError, RequestFailed
from harness.measure.eventloop import event_loop
from harness.model import ENGINES, Completion, Request
from harness.store.run import read_run


def serve(engine: SimulatedEngine, *requests: Request) -> list[tuple[list[float], Completion | Exception]]:
    """Each request's arrival times in seconds since all were sent, and its Completion or exception."""

    async def one(request: Request) -> tuple[list[float], Completion | Exception]:
        arrivals: list[float] = []
        sent = time.monotonic()
        try:
            end: Completion | Exception = await engine.generate(
                request, lambda _: arrivals.append(time.monotonic() - sent)
            )
        except Exception as failure:
            end = failure
        return arrivals, end

    async def all_of_them() -> list[tuple[list[float], Completion | Exception]]:
        await engine.start()
        try:
            return await asyncio.gather(*map(one, requests))
        finally:
            await engine.stop()

    with asyncio.Runner(loop_factory=event_loop) as runner:
        return runner.run(all_of_them())


def request(index: int, tokens: int = 5) -> Request:
    return Request(index, (1, 2, 3), tokens)


@pytest.mark.alone
def test_tokens_arrive_on_schedule() -> None:
    ((arrivals, end),) = serve(SimulatedEngine(None, {"ttft_s": 0.02, "itl_s": 0.004}), request(0))
    assert end == Completion(3, 5, finish_reason="length")
    assert np.allclose(arrivals, 0.02 + 0.004 * np.arange(5), atol=0.01)
    assert min(arrivals) >= 0.02


@pytest.mark.alone
def test_capacity_makes_requests_wait_in_order() -> None:
    served = serve(SimulatedEngine(None, {"ttft_s": 0.03, "itl_s": 0, "capacity": 1}), *map(request, range(3)))
    firsts = [arrivals[0] for arrivals, _ in served]
    assert np.allclose(firsts, [0.03, 0.06, 0.09], atol=0.02)


def test_jitter_has_the_configured_mean_and_deviation_and_depends_on_the_seed() -> None:
    engine = SimulatedEngine(None, {"ttft_s": 0.1, "itl_s": 0.01, "jitter": 0.2})
    offsets = engine.offsets_s(20_000, np.random.default_rng(1))
    gaps = np.diff(offsets)
    assert gaps.mean() == pytest.approx(0.01, rel=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert offsets == engine.offsets_s(20_000, np.random.default_rng(1))


def test_failure_share_fails_requests_and_dies_after_kills_the_engine() -> None:
    served = serve(SimulatedEngine(None, {"ttft_s": 0, "itl_s": 0, "failure_share": 1}), request(0))
    assert isinstance(served[0][1], RequestFailed)
    served = serve(SimulatedEngine(None, {"ttft_s": 0, "itl_s": 0, "dies_after": 1}), request(0), request(1))
    assert isinstance(served[0][1], Completion)
    assert isinstance(served[1][1], EngineDied)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"speed": 1}, "speed"),
        ({"ttft_s": -1}, "simulated engine: ttft_s is -1"),
        ({"jitter": 2}, "jitter"),
        ({"capacity": 0}, "capacity"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(HarnessError, match=named):
        create_engine("simulated", None, options)


TORTOISE = """
import asyncio

from pydantic import BaseModel, ConfigDict, Field

from harness.config import checked
from harness.model import Completion, EngineInfo, ModelIdentity


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pace_s: float = Field(0.001, gt=0)


class Tortoise:
    def __init__(self, model, options):
        self.model, self.options = model, checked(Options, options, "tortoise engine")

    async def start(self):
        model = ModelIdentity(self.model)
        return EngineInfo("tortoise", "1.0", model, "cpu", 1, 1000, None, self.options.model_dump())

    def prepare(self, request):
        pass

    async def generate(self, request, arrived):
        for _ in range(request.output_tokens):
            await asyncio.sleep(self.options.pace_s)
            arrived(1)
        return Completion(len(request.prompt), request.output_tokens)

    async def stop(self):
        pass
"""


def test_an_engine_is_added_by_a_module_and_a_line_in_the_table(
    harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tortoise.py").write_text(TORTOISE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "tortoise", "tortoise:Tortoise")
    words = ("run", "smoke", "--engine", "tortoise", "--meter", "none")
    ran = harness(*words, "--set", "engine.tortoise.pace_s=0.002")
    assert ran.code == 0, ran.err
    assert "tortoise" in ran.out
    engine = read_run(tmp_path / "results" / "latest").engine
    assert engine is not None
    assert (engine.engine, engine.version, engine.options) == ("tortoise", "1.0", {"pace_s": 0.002})
    assert harness("report").code == 0
    assert harness("rerun").code == 0
    assert "tortoise" in harness("list", "engines").out
    for option, said in (("pace_s=-1", "pace_s is -1"), ("pase_s=1", "did you mean 'pace_s'?")):
        refused = harness(*words, "--set", f"engine.{option}")
        assert refused.code == 2
        assert "error: tortoise engine: " in refused.err
        assert said in refused.err
