"""A server of OpenAI's HTTP interface as an engine: vLLM's, SGLang's, TGI's, llama.cpp's, Ollama's."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from harness.config import checked
from harness.engines.openai import http
from harness.engines.openai.stream import Reading, message
from harness.errors import HarnessError, RequestFailed
from harness.model import Completion, EngineInfo, ModelIdentity, Request

VOCABULARY = 32_000
"""Where neither the server nor an option says more: what the models of today have at least."""
ASK_S = 30.0
"""How long a server may be silent when it is asked about itself."""
SECRET = ("authorization", "api-key", "x-api-key", "cookie")
"""Headers that are not to be written down."""


class Options(BaseModel):
    """The options of the openai engine. They are stored with the run; secrets are named by their variable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    base_url: str | list[str] = "http://127.0.0.1:8000"
    """`http://`, `https://` or `unix:`; several take turns."""
    endpoint: Literal["completions", "chat"] = "completions"
    stream: bool = True
    prompt: Literal["tokens", "text"] = "tokens"
    """What a completion is asked with; a chat is always asked with text."""
    tokenizer: str | None = None
    """Turns token ids into text and back: a directory or name for transformers; None: the server's own endpoints."""
    temperature: float = Field(0.0, ge=0)
    body: dict[str, Any] = {}
    """Further fields of each request; null takes out one of the harness's."""
    headers: dict[str, str] = {}
    """Further headers; a value `$NAME` stands for that variable."""
    api_key_env: str | None = None
    """The variable that holds the key."""
    connections: int = Field(0, ge=0, le=60_000)
    """Opened before the load begins; more are opened as they are needed."""
    keep_alive: bool = True
    """False: a new connection for each request."""
    connect_timeout_s: float = Field(10.0, gt=0)
    read_timeout_s: float = Field(600.0, gt=0)
    """A request fails when so long not a byte has come."""
    device: Literal["unknown", "cpu", "cuda"] = "unknown"
    """What the server runs on, and how many: nobody but the user can say."""
    device_count: int = Field(1, ge=1)
    vocabulary: int | None = Field(None, gt=1)
    max_length: int | None = Field(None, gt=0)


class OpenAIEngine:
    """Sends each request to a server, and reads its answer when it is over."""

    def __init__(self, model: str | None, options: Mapping[str, Any]) -> None:
        self.options = given = checked(Options, options, "openai engine")
        self._bases = [
            http.base(url) for url in ([given.base_url] if isinstance(given.base_url, str) else given.base_url)
        ]
        if not self._bases:
            raise HarnessError("openai engine: base_url is empty", "give the address of at least one server")
        self._model = model
        self._secrets: list[str] = []
        headers = self._headers()
        path = "/v1/chat/completions" if given.endpoint == "chat" else "/v1/completions"
        self._heads = [
            f"POST {each.path}{path} HTTP/1.1\r\nHost: {each.host}\r\n{headers}".encode() for each in self._bases
        ]
        self._pool = http.Pool(self._bases, given.connect_timeout_s, given.read_timeout_s)
        self._prepared: dict[int, tuple[Request, bytes]] = {}
        self._tokenizer: Any = None

    async def start(self) -> EngineInfo:
        """Ask the server what it is. Raises HarnessError where it does not answer."""
        given = self.options
        try:
            models = (await self._ask("GET", "/v1/models")).get("data")
        except RequestFailed as failed:
            raise HarnessError(
                f"no server answers at {self._bases[0].url}: {failed.kind}: {failed.message}",
                "start it, or name another with --set engine.base_url=http://host:port",
            ) from None
        about: dict[str, Any] = {}
        for page in ("/version", "/api/version", "/info", "/props", "/get_server_info"):
            with contextlib.suppress(RequestFailed):
                about |= await self._ask("GET", page)
        first = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
        self._model = self._model or first.get("id")
        if self._model is None:
            raise HarnessError(f"{self._bases[0].url} does not say which model it serves", "name it with --model")
        meta, settings = (
            each if isinstance(each, dict) else {}
            for each in (first.get("meta"), about.get("default_generation_settings"))
        )
        version = about.get("version") or about.get("build_info")
        lengths = given.max_length, first.get("max_model_len"), about.get("max_total_tokens"), settings.get("n_ctx")
        vocabulary = given.vocabulary or meta.get("n_vocab") or VOCABULARY
        max_length = next((each for each in lengths if isinstance(each, int)), None)
        await self._pool.fill(given.connections)
        return EngineInfo(
            engine="openai",
            version=None if version is None else str(version),
            model=ModelIdentity(asked=self._model, source=first.get("root") or first.get("id")),
            device=given.device,
            device_count=given.device_count,
            vocabulary=vocabulary,
            max_length=max_length,
            options=given.model_dump()
            | {"vocabulary": vocabulary, "max_length": max_length, "server": first.get("owned_by")},
            encode=self._encode,
        )

    def prepare(self, request: Request) -> None:
        """Encode its body, so that sending it is all that is left to do."""
        self._prepared[request.index] = request, self._body(request)

    async def generate(self, request: Request, arrived: Callable[[int], None]) -> Completion:
        return (await self.exchange(request, arrived))()

    async def exchange(self, request: Request, arrived: Callable[[int], None]) -> Callable[[], Completion]:
        """Send the request; what is returned reads the answer that came."""
        prepared, body = self._prepared.pop(request.index, (None, b""))
        if prepared is not request:
            body = self._body(request)
        number = self._pool.turn()
        connection = self._pool.idle(number) if self.options.keep_alive else None
        connect_s = None
        while True:
            if connection is None:
                clock = asyncio.get_running_loop().time
                begun = clock()
                connection = await self._pool.open(number)
                connect_s = clock() - begun
            try:
                response = await connection.exchange(self._heads[number] + body, arrived)
                return functools.partial(self._completion, response, connect_s)
            except BaseException as ended:
                if not connection.stale or connect_s is not None:
                    reading = Reading(len(connection.ends))
                    with contextlib.suppress(RequestFailed):
                        self._read(connection.response(), reading)  # what came before
                    raise self._accounted(ended, reading) from None
            finally:
                self._pool.give_back(number, connection)
            connection = None  # it was closed while nothing was asked of it: this request goes on a new one

    async def stop(self) -> None:
        await self._pool.close()

    def _completion(self, response: http.Response, connect_s: float | None) -> Completion:
        reading = Reading(len(response.ends))
        try:
            self._read(response, reading)
        except RequestFailed as failed:
            raise self._accounted(failed, reading) from None
        return Completion(
            input_tokens=reading.usage.prompt_tokens,
            output_tokens=reading.usage.completion_tokens,
            cached_tokens=reading.cached_tokens(),
            finish_reason=reading.finish_reason,
            arrival_tokens=tuple(reading.counts),
            connect_s=connect_s,
            token_ids=tuple(reading.token_ids) or None,
            text="".join(reading.text),
        )

    def _read(self, response: http.Response, reading: Reading) -> None:
        if response.status != 200:
            raise RequestFailed(f"http_{response.status}", message(response.body()))
        if not self.options.stream or response.headers.get(b"content-type", b"").startswith(b"application/json"):
            reading.whole(response.body())
        else:
            reading.stream(response)

    def _accounted(self, ended: BaseException, reading: Reading) -> BaseException:
        """The same, without secrets, and with what the arrivals held."""
        if isinstance(ended, RequestFailed):
            ended = RequestFailed(ended.kind, self._without_secrets(ended.message))
        ended.arrival_tokens = tuple(reading.counts)  # type: ignore[attr-defined]
        return ended

    def _body(self, request: Request) -> bytes:
        """The end of the headers, and the body."""
        given = self.options
        fields: dict[str, Any] = {"model": self._model}
        if given.endpoint == "chat":
            texts = request.messages or (self._text(request.prompt),)
            roles = itertools.cycle(("user", "assistant"))
            fields["messages"] = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        elif given.prompt == "text":
            fields["prompt"] = "\n".join(request.messages or (self._text(request.prompt),))
        else:
            fields["prompt"] = request.prompt
        fields |= {"max_tokens": request.output_tokens, "temperature": given.temperature, "stream": given.stream}
        if given.stream:
            fields["stream_options"] = {"include_usage": True}
        if request.ignore_eos:
            fields["ignore_eos"] = True
        fields = {key: value for key, value in (fields | given.body).items() if value is not None}
        data = msgspec.json.encode(fields)
        return b"Content-Length: %d\r\n\r\n%b" % (len(data), data)

    def _headers(self) -> str:
        """The lines that all requests share. Variables are read here, and their values kept out of everything else."""
        given, lines = self.options, ["Content-Type: application/json"]
        if not given.keep_alive:
            lines.append("Connection: close")
        headers = dict(given.headers)
        if given.api_key_env is not None:
            headers["Authorization"] = f"Bearer ${given.api_key_env}"
        for name, value in headers.items():
            start, dollar, variable = value.partition("$")
            if dollar:
                if not (secret := os.environ.get(variable)):
                    raise HarnessError(f"the variable {variable} is not set", f"export {variable}=… before the run")
                self._secrets.append(secret)
                value = start + secret
            elif name.lower() in SECRET:
                raise HarnessError(f"header {name} holds a secret, and options are stored", "write $NAME of a variable")
            if not f"{name}{value}".isprintable() or not value.isascii() or not re.fullmatch(r"[\w-]+", name, re.ASCII):
                raise HarnessError(f"'{name}' cannot be sent as a header", "use printable ASCII in names and values")
            lines.append(f"{name}: {value}")
        return "".join(f"{line}\r\n" for line in lines)

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return text

    def _text(self, ids: tuple[int, ...]) -> str:
        """Token ids as text, by the tokenizer named, else by the server's /detokenize."""
        if self.options.tokenizer is not None:
            return str(self._local().decode(ids))
        answer = self._ask_now("/detokenize", {"model": self._model, "tokens": ids})
        text = answer.get("prompt", answer.get("content", answer.get("text")))  # vLLM, llama.cpp, SGLang
        if not isinstance(text, str):
            raise HarnessError("the server's /detokenize gives no text", "name a tokenizer with engine.tokenizer")
        return text

    def _encode(self, text: str) -> list[int]:
        if self.options.tokenizer is not None:
            return list(self._local().encode(text, add_special_tokens=False))
        answer = self._ask_now(
            "/tokenize", {"model": self._model, "prompt": text, "content": text, "add_special_tokens": False}
        )
        ids = answer.get("tokens")
        if not isinstance(ids, list):
            raise HarnessError("the server's /tokenize gives no tokens", "name a tokenizer with engine.tokenizer")
        return ids

    def _local(self) -> Any:
        if self._tokenizer is None:
            try:
                from transformers import AutoTokenizer

                self._tokenizer = AutoTokenizer.from_pretrained(self.options.tokenizer)
            except (ImportError, OSError, ValueError) as failed:
                what = f"engine.tokenizer '{self.options.tokenizer}' cannot be loaded: {failed}"
                raise HarnessError(what, "pip install transformers, and name a tokenizer's directory") from None
        return self._tokenizer

    def _ask_now(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Ask from code that cannot await; only ahead of the load."""
        try:
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(asyncio.run, self._ask("POST", path, fields)).result()
        except RequestFailed as failed:
            raise HarnessError(
                f"the server's {path} failed: {failed.kind}: {failed.message}",
                "name a tokenizer with engine.tokenizer, or send tokens: engine.prompt=tokens, endpoint=completions",
            ) from None

    async def _ask(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A page of the first server's, on a connection of its own. Raises RequestFailed."""
        data = b"" if fields is None else msgspec.json.encode(fields)
        _, _, headers = self._heads[0].partition(b"\r\n")
        line = b"%b %b%b HTTP/1.1\r\n" % (method.encode(), self._bases[0].path.encode(), path.encode())
        pool = http.Pool(self._bases[:1], self.options.connect_timeout_s, ASK_S)
        try:
            connection = await pool.open(0)
            request = line + headers + b"Content-Length: %d\r\n\r\n%b" % (len(data), data)
            response = await connection.exchange(request, lambda _: None)
            if response.status != 200:
                raise RequestFailed(f"http_{response.status}", self._without_secrets(message(response.body())))
            answer = msgspec.json.decode(response.body())
        except msgspec.DecodeError as wrong:
            raise RequestFailed("malformed", str(wrong)) from None
        finally:
            await pool.close()
        return answer if isinstance(answer, dict) else {}
