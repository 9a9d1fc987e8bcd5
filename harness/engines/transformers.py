"""Hugging Face transformers, by its continuous batching: any model that it can load, on a CPU or one GPU."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.config import checked
from harness.engines import weights
from harness.errors import EngineDied, HarnessError, RequestFailed
from harness.model import Completion, EngineInfo, Request

CPU_BLOCKS, CPU_BATCH_TOKENS = 128, 512
"""Cache and batch on a CPU: 32,768 tokens at the usual page size. Left alone, transformers takes 60% of the memory for
its cache, and spends tens of seconds before its first token on filling an attention mask of gigabytes."""
_WATCH_S = 1.0
"""How often a waiting request makes sure that the engine's thread lives."""


class Options(BaseModel):
    """The options of the transformers engine; those without a comment are as in its ContinuousBatchingConfig."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto`: what the weights are stored in."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto`: a GPU where there is one."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "auto"
    """`auto`: flash attention where it is installed, else sdpa."""
    threads: int | None = Field(None, gt=0)
    """CPU threads of torch. None: its own choice."""
    temperature: float = Field(0.0, ge=0)
    """0: greedy."""
    trust_remote_code: bool = False
    seed: int = 0
    """Of sampling."""
    page_size: int = Field(256, gt=3)
    """Tokens in a block of the cache."""
    num_blocks: int | None = Field(None, gt=0)
    max_batch_tokens: int | None = Field(None, gt=0)
    max_requests_per_batch: int | None = Field(None, gt=0)
    max_memory_percent: float | None = Field(None, gt=0, le=1)
    allow_block_sharing: bool = False
    """Prefix caching: off, since transformers does not tell which tokens it found in its cache."""
    use_cuda_graph: bool | None = None
    use_async_batching: bool | None = None
    default_compile_level: int = Field(0, ge=0, le=3)


_OWN = {"dtype", "device", "attention", "threads", "temperature", "trust_remote_code"}
"""Options that are not ContinuousBatchingConfig's."""


class TransformersEngine:
    """One model, and the thread that batches its requests; greedy unless `temperature` is given."""

    def __init__(self, model: str | None, options: Mapping[str, Any]) -> None:
        if model is None:
            raise HarnessError("the transformers engine needs a model", "name one, for instance smollm2-135m")
        self._given, self._model = checked(Options, options, "transformers engine"), model
        self._manager: Any = None
        self._vocabulary = self._max_length = 0
        self._names = map("request {}".format, itertools.count())

    async def start(self) -> EngineInfo:
        """Load the model and make its cache, beside the event loop; raises HarnessError with the way out."""
        self._manager, info = await asyncio.to_thread(self._load)
        self._vocabulary, self._max_length = info.vocabulary, info.max_length or 0
        self._manager.start()
        return info

    def prepare(self, request: Request) -> None:
        """Nothing is to be done ahead."""

    async def generate(self, request: Request, arrived: Callable[[int], None]) -> Completion:
        """One request. The engine's thread calls `arrived` through the event loop after each step of the batch.

        From the step's end to the call it takes 0.1 to 0.6 ms (median, 1 to 16 in flight, two busy cores), and now and
        then milliseconds: tens of them where other processes hold the cores.
        """
        self._refuse(request)
        manager, name, seen = self._manager, next(self._names), 0
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def deliver(output: Any) -> None:
            nonlocal seen
            if done.done():
                return
            new, seen = len(output.generated_tokens) - seen, len(output.generated_tokens)
            if new > 0:
                arrived(new)
            if output.is_finished():
                done.set_result(output)

        manager.register_result_handler(name, deliver)
        ends = {"eos_token_id": -1} if request.ignore_eos else {}
        try:
            sent = manager.add_request(
                list(request.prompt), request_id=name, max_new_tokens=request.output_tokens, streaming=True, **ends
            )
            while sent is not None and not done.done() and manager.is_running():
                await asyncio.wait([done], timeout=_WATCH_S)
        finally:
            if not done.done():
                done.cancel()
                manager.cancel_request(name)
        output, status = None if done.cancelled() else done.result(), manager.background_thread_status
        if output is None or (output.error and status.can_accept_new_requests() is not None):
            raise EngineDied(_died(status.fatal_error or (output and output.error) or "its thread ended"))
        if output.error:
            raise RequestFailed("engine_error", output.error)
        return Completion(
            input_tokens=len(output.prompt_ids),
            output_tokens=seen,
            cached_tokens=None if self._given.allow_block_sharing else 0,
            finish_reason="length" if seen == request.output_tokens else "stop",
            token_ids=None if request.turn is None else tuple(output.generated_tokens),
        )

    async def stop(self) -> None:
        """End the thread after its present step, and let the model go."""
        manager, self._manager = self._manager, None
        if manager is not None:
            await asyncio.to_thread(manager.stop, block=True, hard_stop=True)
            manager.destroy()

    def _refuse(self, request: Request) -> None:
        """Raise RequestFailed for what would end the engine's thread instead of the request."""
        given, wanted = len(request.prompt), request.output_tokens
        if given + wanted > self._max_length:
            raise RequestFailed("rejected", f"{given} input and {wanted} output tokens are over {self._max_length}")
        if not given or wanted < 1 or not 0 <= min(request.prompt) <= max(request.prompt) < self._vocabulary:
            raise RequestFailed("rejected", f"needs input and output, and token ids from 0 to {self._vocabulary - 1}")

    def _load(self) -> tuple[Any, EngineInfo]:
        import torch

        found, device = weights.resolve(self._model), self._given.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device != "cpu" and not torch.cuda.is_available():
            fix = "see that nvidia-smi works and that torch was built for its driver, or set device=cpu"
            raise HarnessError(f"device '{device}': torch {torch.__version__} sees no GPU", fix)
        if self._given.threads is not None:
            torch.set_num_threads(self._given.threads)
        try:
            return _prepare(found, device, self._given)
        except Exception as error:
            if _out_of_memory(error):
                raise HarnessError(f"out of memory on {device}: {_first_line(error)}", _LESS_MEMORY) from error
            raise weights.hub_error(self._model, error) from error


def _prepare(found: weights.Weights, device: str, given: Options) -> tuple[Any, EngineInfo]:
    """The loaded model's manager, warmed up and not started, and what it came to."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()  # a bar leaves a thread behind
    name, where = found.name_or_path, {"revision": found.revision, "trust_remote_code": given.trust_remote_code}
    attention = given.attention if given.attention != "auto" else "sdpa" if device == "cpu" else None
    model = transformers.AutoModelForCausalLM.from_pretrained(
        name, dtype=given.dtype, device_map=device, attn_implementation=attention, **where
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **where)
    asked = given.model_dump(exclude=_OWN)
    if device == "cpu":
        asked["num_blocks"] = given.num_blocks or CPU_BLOCKS
        asked["max_batch_tokens"] = given.max_batch_tokens or CPU_BATCH_TOKENS
    sampling = {"temperature": given.temperature, "top_k": 0} if given.temperature else {}
    ends = model.generation_config.eos_token_id
    manager = model.init_continuous_batching(
        transformers.GenerationConfig(do_sample=bool(sampling), eos_token_id=ends, **sampling),
        transformers.ContinuousBatchingConfig(**asked, auto_switch_to_flash=given.attention == "auto"),
    )
    manager.warmup()  # makes the cache, and on a GPU captures graphs: not the first request's business
    text, used = model.config.get_text_config(), manager.continuous_batching_config
    in_force = given.model_dump() | {name: getattr(used, name) for name in asked}
    in_force["dtype"], in_force["device"] = str(model.dtype).removeprefix("torch."), str(model.device)
    in_force["attention"], in_force["threads"] = text._attn_implementation, torch.get_num_threads()
    lengths = (used.num_blocks * used.page_size, getattr(text, "max_position_embeddings", None))
    return manager, EngineInfo(
        engine="transformers",
        version=transformers.__version__,
        model=weights.identity(found, precision=in_force["dtype"]),
        device=model.device.type,
        device_count=1,
        vocabulary=min(text.vocab_size, len(tokenizer)),
        max_length=min(length for length in lengths if length is not None),
        options=in_force,
        encode=tokenizer.encode,
    )


_LESS_MEMORY = "lower num_blocks or max_batch_tokens, choose a narrower dtype or a smaller model, or free memory"
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "memory footprint", "num_sectors")
"""What torch says on a GPU and on a CPU, and transformers of a cache that does not fit."""


def _out_of_memory(error: object) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _died(error: object) -> str:
    return f"transformers: {_first_line(error)}" + (f"; {_LESS_MEMORY}" if _out_of_memory(error) else "")
