"""Runs against a server that ran before: new prompts each time, and the model's name by the server's account."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from gauntlet.stub import Server, stub
from gauntlet.traps.caches import prefix_silent

from harness.analysis.summary import summary_of
from harness.config import overrides
from harness.errors import HarnessError
from harness.measure import run as measuring
from harness.report.changes import repeats_table
from harness.store.run import Run, read_run
from harness.workload.schema import parse_workload

NAME = prefix_silent.__name__
BASE = """
name: attached
model: smollm2-135m
requests: {count: 3, input_tokens: 8, output_tokens: 2}
load: {shape: closed, users: 3}
"""


@pytest.fixture
def server() -> Iterator[tuple[str, Server]]:
    with stub() as (url, server):
        yield f"{url}/{NAME}", server


def measure(url: str, root: Path, *words: str, **given: Any) -> Run:
    asked = parse_workload(BASE, "test", overrides(("engine.name=openai", f"engine.base_url={url}", *words)))
    return read_run(measuring.run(asked, root, lambda _: None, measuring.Setup(**given)))


def prompts(server: Server) -> list[tuple[int, ...]]:
    """The prompts that the server got since the last call."""
    return [tuple(body["prompt"]) for body in server.bodies.pop(NAME)]


def test_no_run_sends_a_prompt_that_an_earlier_one_sent(server: tuple[str, Server], tmp_path: Path) -> None:
    runs = [measure(server[0], tmp_path, clients=clients) for clients in (1, 1, 2)]
    sent = prompts(server[1])
    assert len(sent) == len(set(sent)) >= 3 * (1 + 1 + 3)  # a warm-up, a probe of the cache, and the load
    salts = [run.file.prompts.salt for run in runs if run.file.prompts is not None]
    assert len(set(salts)) == 3


def test_the_prompts_of_a_seed_are_sent_again_to_the_byte_after_a_new_warm_up(
    server: tuple[str, Server], tmp_path: Path
) -> None:
    both = []
    for clients in (None, 2):
        run = measure(server[0], tmp_path, same_prompts=True, clients=clients)
        assert run.file.prompts is not None
        assert run.file.prompts.repeated
        both.append(set(prompts(server[1])))
    assert len(both[0] - both[1]) == 1 + 1  # the warm-up and the probe


def test_the_cache_is_reset_where_the_server_offers_it(server: tuple[str, Server], tmp_path: Path) -> None:
    measure(server[0], tmp_path, same_prompts=True)
    run = measure(server[0], tmp_path, same_prompts=True, reset_cache=True)
    assert run.file.prompts is not None
    assert not run.file.prompts.repeated
    assert (run.requests["arrival_s"].list[0] - run.requests["sent_s"]).min() > 0.15
    with pytest.raises(HarnessError, match=r"does not reset its prefix cache: /reset_prefix_cache: http_404"):
        measure(server[0].replace(NAME, "plain"), tmp_path, reset_cache=True)


def test_an_engine_without_a_cache_is_not_reset(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="engine 'simulated' has no prefix cache that can be reset"):
        measure("", tmp_path, "engine={name: simulated}", reset_cache=True)


def test_the_models_name_is_what_the_server_says_it_serves(server: tuple[str, Server], tmp_path: Path) -> None:
    server[1].states[NAME] = {"model": {"id": "org/llama-70b"}}
    run = measure(server[0], tmp_path)
    assert run.model.asked == "org/llama-70b"
    assert "llama-70b" in run.directory.name
    assert {body["model"] for body in server[1].bodies[NAME]} == {"org/llama-70b"}


def test_an_address_without_a_server_is_a_failed_run_on_which_no_check_passes(
    server: tuple[str, Server], tmp_path: Path, harness: Command
) -> None:
    measure(server[0], tmp_path)
    for url, what in (("http://127.0.0.1:9", "no server answers"), (f"{server[0]}/no/such", "no list of models")):
        with pytest.raises(HarnessError, match=what):
            measure(url, tmp_path)
        failed = read_run(tmp_path / "latest")
        assert (failed.state, what in (failed.file.error or "")) == ("failed", True)
        assert harness("check", str(tmp_path / "latest")).code != 0


def test_a_simulated_run_carries_no_models_name(tmp_path: Path) -> None:
    run = measure("", tmp_path, "engine={name: simulated}")
    assert run.model.asked is None
    assert "smollm2" not in run.directory.name


def test_repeats_on_a_running_server_say_what_they_share(server: tuple[str, Server], tmp_path: Path) -> None:
    runs = [(run, summary_of(run)) for run in (measure(server[0], tmp_path) for _ in range(2))]
    assert "each run sent new prompts to a server that ran already" in repeats_table(runs).notes[0]
