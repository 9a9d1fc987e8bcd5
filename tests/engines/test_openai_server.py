"""Servers started by the harness: health check, errors from the log, and no process left afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from places import ROOT

from harness.analysis.summary import summary_of
from harness.engines.openai.options import Options
from harness.engines.openai.server import SERVERS, ServedEngine, create
from harness.errors import EngineDied, HarnessError, RequestFailed
from harness.measure import run as measuring
from harness.model import Request
from harness.store.run import read_run
from harness.workload.schema import parse_workload

SERVER = """
import http.server, signal, subprocess, sys, threading, time
port, mode = int(sys.argv[1]), sys.argv[2]
print("loading", sys.argv[3:], flush=True)
if mode == "broken":
    raise ValueError("the model has no weights")
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
ready = time.monotonic() + 0.5

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answers = {"/health": "{}", "/props": '{"build_info": "b1234"}', "/v1/models": '{"data": [{"id": "m"}]}',
                   "/metrics": "llamacpp:requests_processing 2\\n"}
        self.answer(answers.get(self.path, "").encode())
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(open(sys.argv[3], "rb").read() if mode == "answering" else b"")
    def answer(self, body):
        self.send_response(503 if time.monotonic() < ready else 200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

if mode == "slow":
    time.sleep(60)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def command(tmp_path: Path) -> str:
    """The command of a server, without its mode."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    return f"{shlex.join([sys.executable, str(script)])} {{port}}"


def served(command: str, options: dict[str, object] | None = None, timeout_s: float = 10) -> ServedEngine:
    return ServedEngine(None, {"serve": command, "serve_options": options or {}, "serve_timeout_s": timeout_s})


async def start_and_stop(server: ServedEngine) -> None:
    try:
        await server.start()
    finally:
        await server.stop()


def children() -> list[psutil.Process]:
    return [c for c in psutil.Process().children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("mode", ["good", "stubborn"])
def test_stop_ends_the_server_and_every_process_it_started(command: str, mode: str) -> None:
    async def life() -> None:
        server = ServedEngine("some model", {"serve": f"{command} {mode} {{asked}}", "serve_options": {"ctx_size": 64}})
        server.stop_s = 0.5
        try:
            await server.start()
            assert server.server_record["command"].endswith(f"{mode} 'some model' --ctx-size 64")
            assert server.server_record["start_s"] > 0.5  # /health answers 503 for the first 0.5 s
            assert server.died() is None
            assert len(children()) == 3  # watchdog, server, and the server's child in a new session
        finally:
            await server.stop()
        assert children() == []

    asyncio.run(life())


def test_a_run_starts_its_server_and_stores_log_and_metrics(command: str, tmp_path: Path) -> None:
    recorded = ROOT / "tests" / "data" / "dialects" / "vllm-completions.sse"  # 5 tokens
    serve = json.dumps(f"{command} answering {recorded}")
    spec = f"""
name: served
model: m
requests: {{count: 8, input_tokens: 200, output_tokens: 5}}
load: {{shape: closed, users: 2}}
engine: {{name: openai, openai: {{serve: {serve}}}}}
"""
    run = read_run(measuring.run(parse_workload(spec, "test"), tmp_path, lambda _: None))
    measured = run.requests[run.requests["age_tokens"].isna()]  # without the first wave
    assert (run.file.state, measured["output_tokens"].tolist()) == ("complete", [5] * 8)
    assert run.file.server is not None
    assert run.file.server["log"] == "engine.log"
    assert "loading" in (run.directory / "engine.log").read_text()
    assert not (run.directory / "server.jsonl").exists()
    summary = summary_of(run)
    assert summary["cached_tokens"].value == 8 * 128
    assert len(run.server) >= 2  # before the load and after it
    assert run.server["time_s"].iloc[0] < 0 < run.server["time_s"].iloc[-1]
    assert set(run.server["value"]) == {2.0}
    assert children() == []


@pytest.mark.parametrize(
    ("mode", "timeout_s", "what"),
    [
        ("broken", 30, "the server ended with status 1: ValueError: the model has no weights"),
        ("slow", 4, r"the server was not ready within 4 s: loading \['x'\]"),
    ],
)
def test_a_failed_start_quotes_the_servers_log(command: str, mode: str, timeout_s: float, what: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(HarnessError) as failed:
        asyncio.run(start_and_stop(served(f"{command} {mode} x", timeout_s=timeout_s)))
    assert re.fullmatch(what, failed.value.what)
    assert time.monotonic() - began_s < 15
    assert children() == []


def test_a_request_after_the_servers_end_raises_engine_died(command: str) -> None:
    async def life() -> None:
        engine = create("some/model", {"serve": f"{command} good", "max_length": 512})
        assert isinstance(engine, ServedEngine)
        try:
            info = await engine.start()
            assert (info.version, info.max_length, info.model.asked) == ("b1234", 512, "m")  # as the server says
            assert info.options["serve"] == f"{command} good"
            assert set(engine.server_record) == {"command", "log", "start_s"}
            assert engine.client_options["base_url"].startswith("http://127.0.0.1:")
            # The server answers POST with 404: a failed request. After the server's end: EngineDied.
            with pytest.raises(RequestFailed):
                await engine.generate(Request(0, (1, 2), 3), lambda _: None)
            next(child for child in children() if "server.py" in " ".join(child.cmdline())).kill()
            await asyncio.sleep(0.2)
            with pytest.raises(EngineDied, match="the server was ended by signal 9: loading"):
                await engine.generate(Request(1, (1, 2), 3), lambda _: None)
        finally:
            await engine.stop()

    asyncio.run(life())
    assert children() == []


def test_the_server_ends_with_a_harness_that_is_killed(command: str, tmp_path: Path) -> None:
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import asyncio, psutil\n"
        "from harness.engines.openai.server import ServedEngine\n"
        "async def main():\n"
        f"    server = ServedEngine(None, {{'serve': {command + ' good'!r}}})\n"
        "    await server.start()\n"
        "    print(*(c.pid for c in psutil.Process().children(recursive=True)), flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE, text=True, env=environment) as harness:
        assert harness.stdout is not None
        started = [int(pid) for pid in harness.stdout.readline().split()]
        harness.send_signal(signal.SIGKILL)
    assert len(started) == 3
    end_s = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in started):
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("how", "model", "what", "fix"),
    [
        ("vlm", "m", "unknown server 'vlm'", "choose one of llama.cpp, sglang, tgi, vllm"),
        ("vllm", None, "the server 'vllm' needs a model", "--model"),
        ("serve {model} on {port}", None, "the server 'serve {model} on {port}' needs a model", "--model"),
    ],
)
def test_an_invalid_server_is_rejected_before_the_start(how: str, model: str | None, what: str, fix: str) -> None:
    with pytest.raises(HarnessError) as refused:
        create(model, {"serve": how})
    assert refused.value.what == what
    assert fix in refused.value.fix


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"base_url": "http://here:1"}, "engine.serve and engine.base_url exclude each other"),
        ({"serve_options": "--fast"}, "openai engine: serve_options is '--fast'"),
        ({"steam": False}, "openai engine: unknown key steam"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, object], what: str) -> None:
    with pytest.raises(HarnessError, match=what):
        create("m", {"serve": "vllm", **options})


def test_every_option_is_documented() -> None:
    page = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
    for option in (*Options.model_fields, *SERVERS, "serve", "serve_options", "serve_timeout_s"):
        assert f"`{option}`" in page


def test_a_missing_program_is_named() -> None:
    with pytest.raises(HarnessError, match=r"cannot start '/nowhere/server': No such file"):
        asyncio.run(start_and_stop(served("/nowhere/server {port}")))
