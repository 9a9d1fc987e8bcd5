"""Hugging Face transformers with continuous batching: any model it can load, on a CPU or one GPU."""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field

from harness.config import Section, checked
from harness.engines import weights
from harness.errors import EngineDied, HarnessError, RequestFailed
from harness.model import Completion, EngineInfo, Request

CPU_BLOCKS, CPU_BATCH_TOKENS = 128, 512
"""Defaults on a CPU; 128 blocks of 256 tokens hold 32,768. By default transformers reserves 60% of the memory for its
KV cache, and filling an attention mask of that size delays the first token by tens of seconds."""
_ALIVE_CHECK_S = 1.0
"""Interval at which a waiting request checks that the batching thread is alive."""
_LESS_MEMORY = "lower num_blocks or max_batch_tokens, choose a smaller dtype or model, or free memory"
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "memory footprint", "num_sectors")
"""Messages of torch (GPU, then CPU) and of transformers (a KV cache that does not fit) when memory runs out."""


class Options(Section, allow_inf_nan=False):
    """The options of the transformers engine. Those without a docstring are fields of its ContinuousBatchingConfig."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto`: the dtype that the weights are stored in."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto`: a GPU if torch sees one, else the CPU."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "auto"
    """`auto`: flash attention if installed, else sdpa."""
    threads: int | None = Field(None, gt=0)
    """CPU threads of torch. None: torch's default."""
    temperature: float = Field(0.0, ge=0)
    """0: greedy."""
    trust_remote_code: bool = False
    seed: int = 0
    """Seed of sampling."""
    page_size: int = Field(256, gt=3)
    """Tokens in a block of the KV cache."""
    num_blocks: int | None = Field(None, gt=0)
    max_batch_tokens: int | None = Field(None, gt=0)
    allow_block_sharing: bool = False
    """Prefix caching. Off by default, because transformers does not report cached tokens."""


_NOT_BATCHING = {"dtype", "device", "attention", "threads", "temperature", "trust_remote_code"}
"""Options that are not fields of ContinuousBatchingConfig."""
RECORDED = ("max_memory_percent", "max_requests_per_batch", "use_cuda_graph", "use_async_batching")
"""Fields that transformers decides, stored with the options."""


class TransformersEngine:
    """One model and the thread that batches its requests. Greedy decoding unless `temperature` is above 0."""

    def __init__(self, model: str | None, options: Mapping[str, Any]) -> None:
        if model is None:
            raise HarnessError("the transformers engine needs a model", "give one with --model, or in the workload")
        self._given, self._model = checked(Options, options, "transformers engine"), model
        self._manager: Any = None
        self._vocabulary = self._max_length = 0
        self._names = map("request {}".format, itertools.count())

    async def start(self) -> EngineInfo:
        """Load the model and allocate its KV cache, in a thread. Raises HarnessError if either fails."""
        self._manager, info = await asyncio.to_thread(self._load)
        self._vocabulary, self._max_length = info.vocabulary, info.max_length or 0
        self._manager.start()
        return info

    def prepare(self, request: Request) -> None:
        """Nothing to prepare."""

    async def generate(self, request: Request, arrived: Callable[[int], None]) -> Completion:
        """Run one request. After each batch step the engine's thread schedules `arrived` on the event loop.

        The delay from the end of the step to the call is 0.1 to 0.6 ms (median, 1 to 16 requests in flight, two busy
        cores), occasionally milliseconds, and tens of milliseconds if other processes occupy the cores.
        """
        self._check(request)
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
        eos = {"eos_token_id": -1} if request.ignore_eos else {}
        try:
            queued = manager.add_request(
                list(request.prompt), request_id=name, max_new_tokens=request.output_tokens, streaming=True, **eos
            )
            while queued is not None and not done.done() and manager.is_running():
                await asyncio.wait([done], timeout=_ALIVE_CHECK_S)
        finally:
            if not done.done():
                done.cancel()
                manager.cancel_request(name)
        output, status = None if done.cancelled() else done.result(), manager.background_thread_status
        if output is None or (output.error and status.can_accept_new_requests() is not None):
            error = status.fatal_error or (output and output.error) or "its thread ended"
            fix = f"; {_LESS_MEMORY}" if _out_of_memory(error) else ""
            raise EngineDied(f"transformers: {weights.first_line(error)}{fix}")
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
        """End the thread after its current step and free the model."""
        manager, self._manager = self._manager, None
        if manager is not None:
            await asyncio.to_thread(manager.stop, block=True, hard_stop=True)
            manager.destroy()

    def _check(self, request: Request) -> None:
        """Raises RequestFailed for a request that would end the engine's thread."""
        n_in, n_out = len(request.prompt), request.output_tokens
        if n_in + n_out > self._max_length:
            raise RequestFailed("rejected", f"{n_in} input and {n_out} output tokens exceed {self._max_length}")
        if not n_in or n_out < 1 or not 0 <= min(request.prompt) <= max(request.prompt) < self._vocabulary:
            raise RequestFailed("rejected", f"needs input and output, and token ids from 0 to {self._vocabulary - 1}")

    def _load(self) -> tuple[Any, EngineInfo]:
        import torch

        found, device = weights.resolve(self._model), self._given.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device != "cpu" and not torch.cuda.is_available():
            fix = "check that nvidia-smi works and that torch was built for its driver, or set device=cpu"
            raise HarnessError(f"device '{device}': torch {torch.__version__} sees no GPU", fix)
        if self._given.threads is not None:
            torch.set_num_threads(self._given.threads)
        try:
            return _manager_of(found, device, self._given)
        except Exception as error:
            if _out_of_memory(error):
                raise HarnessError(f"out of memory on {device}: {weights.first_line(error)}", _LESS_MEMORY) from error
            raise weights.hub_error(self._model, error) from error


def _manager_of(found: weights.Weights, device: str, given: Options) -> tuple[Any, EngineInfo]:
    """Load the model; return its batching manager, warmed up but not started, and the EngineInfo."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()  # a progress bar leaves a thread behind
    name, source = found.name_or_path, {"revision": found.model.revision, "trust_remote_code": given.trust_remote_code}
    attention = given.attention if given.attention != "auto" else "sdpa" if device == "cpu" else None
    model = transformers.AutoModelForCausalLM.from_pretrained(
        name, dtype=given.dtype, device_map=device, attn_implementation=attention, **source
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **source)
    batching = given.model_dump(exclude=_NOT_BATCHING)
    if device == "cpu":
        batching["num_blocks"] = given.num_blocks or CPU_BLOCKS
        batching["max_batch_tokens"] = given.max_batch_tokens or CPU_BATCH_TOKENS
    sampling = {"temperature": given.temperature, "top_k": 0} if given.temperature else {}
    eos = model.generation_config.eos_token_id
    manager = model.init_continuous_batching(
        transformers.GenerationConfig(do_sample=bool(sampling), eos_token_id=eos, **sampling),
        transformers.ContinuousBatchingConfig(**batching, auto_switch_to_flash=given.attention == "auto"),
    )
    manager.warmup()  # allocates the KV cache and captures CUDA graphs, which the first request would wait for
    config, used = model.config.get_text_config(), manager.continuous_batching_config
    options = given.model_dump() | {name: getattr(used, name, None) for name in (*batching, *RECORDED)}
    options["dtype"], options["device"] = str(model.dtype).removeprefix("torch."), str(model.device)
    options["attention"], options["threads"] = config._attn_implementation, torch.get_num_threads()
    lengths = (used.num_blocks * used.page_size, getattr(config, "max_position_embeddings", None))
    return manager, EngineInfo(
        engine="transformers",
        version=transformers.__version__,
        model=weights.identity(found, precision=options["dtype"]),
        device=model.device.type,
        device_count=1,
        vocabulary=min(config.vocab_size, len(tokenizer)),
        max_length=min(length for length in lengths if length is not None),
        options=options,
        encode=tokenizer.encode,
    )


def _out_of_memory(error: object) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)
