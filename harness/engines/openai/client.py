"""The engine `openai`: a client of any server with OpenAI's HTTP interface (vLLM, SGLang, TGI, llama.cpp, Ollama)."""

import asyncio
import contextlib
import functools
import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from harness.config import checked
from harness.engines.base import Arrived
from harness.engines.openai import http
from harness.engines.openai.options import PLAIN_FIELDS, Options, Secrets, header_lines
from harness.engines.openai.pool import Pool, parse_base
from harness.engines.openai.stream import Answer, error_message
from harness.errors import HarnessError, RequestFailed
from harness.files import data_rows
from harness.model import Completion, EngineInfo, ModelIdentity, Request
from harness.process import allow_files

VOCABULARY = 32_000
"""Assumed if neither the server nor an option states it: current models have at least this many tokens."""
ASK_TIMEOUT_S = 30.0
"""Read timeout of requests about the server itself: model, version, tokenizer."""
ASK_FIXES = {row["kind"]: row["fix"] for row in data_rows("server_refusals.csv")}
"""Why the server did not say what it serves -> what helps, if it is not to start the server."""
SGLANG_LIMITS = "chunked_prefill_size", "max_running_requests"
"""What SGLang says of itself that the first wave of a closed loop needs."""
LENGTH_FIELDS = "max_tokens", "max_completion_tokens"
"""Fields for a request's number of output tokens. The second is used where the server says that it must be."""
_UNSUPPORTED = re.compile(rb"unsupported|not supported|unrecogni[sz]ed|unknown|not permitted|deprecated", re.IGNORECASE)
ANSWER_SIZE = 8 << 20, 16 << 10
"""Largest answer in bytes: the first number, and the second for each token asked for, up to http.MAX_BODY."""
ERROR_LENGTH = 500
"""Characters of a server's error that are stored."""


class OpenAIEngine:
    """Sends each request to a server and parses the answer after its last byte."""

    def __init__(self, model: str | None, options: Mapping[str, Any]) -> None:
        self.options = given = checked(Options, options, "openai engine")
        urls = [given.base_url] if isinstance(given.base_url, str) else given.base_url
        if not urls:
            raise HarnessError("openai engine: base_url is empty", "give the address of at least one server")
        if given.system_prompt is not None and given.endpoint != "chat":
            raise HarnessError("openai engine: system_prompt goes with endpoint=chat", "set engine.endpoint=chat")
        self._bases = [parse_base(url) for url in urls]
        self._model = model
        self._secrets = Secrets()
        self._fields = {
            key: value if key in PLAIN_FIELDS else self._secrets.filled(f"body field {key}", value)
            for key, value in given.body.items()
        }
        headers = header_lines(given, self._secrets)
        path = "/v1/chat/completions" if given.endpoint == "chat" else "/v1/completions"
        rest = f"{path} HTTP/1.1\r\nHost: "
        self._heads = [f"POST {each.path}{rest}{each.host}\r\n{headers}".encode() for each in self._bases]
        self._pool = Pool(self._bases, given.connect_timeout_s, given.read_timeout_s)
        self._length_field = LENGTH_FIELDS[0]
        self._prepared: dict[int, tuple[Request, bytes]] = {}
        self._tokenizer: Any = None

    async def start(self) -> EngineInfo:
        """Ask the server for its model, version and limits. Raises HarnessError if it does not answer."""
        given = self.options
        allow_files(given.connections)
        try:
            first = await self._served()
        except RequestFailed as failed:
            what = f"no server answers at {self._bases[0].url}: {failed.kind}: {failed.message}"
            fix = ASK_FIXES.get(failed.kind, "start it, or give another address with --url http://host:port")
            raise HarnessError(what, fix) from None
        about: dict[str, Any] = {}
        for page in ("/version", "/api/version", "/info", "/props", "/get_server_info"):
            with contextlib.suppress(RequestFailed):
                about |= await self._ask("GET", page)
        self._model = first.get("id") or self._model
        if self._model is None:
            raise HarnessError(f"{self._bases[0].url} does not say which model it serves", "give it with --model")
        meta, settings = _map(first.get("meta")), _map(about.get("default_generation_settings"))
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
            | {"vocabulary": vocabulary, "max_length": max_length, "server": first.get("owned_by")}
            | {name: about[name] for name in SGLANG_LIMITS if name in about},
            encode=self._encode,
        )

    @property
    def prepare_waits(self) -> bool:
        """Prompts of token ids are sent as texts, which only the server can make of them."""
        sends_text = self.options.endpoint == "chat" or self.options.prompt == "text"
        return sends_text and self.options.tokenizer is None

    def prepare(self, request: Request) -> None:
        """Encode the request's body ahead of its send time."""
        self._prepared[request.index] = request, self._body(request)

    async def generate(self, request: Request, arrived: Callable[[int], None]) -> Completion:
        return (await self.exchange(request, lambda tokens, _: arrived(tokens)))()

    async def exchange(self, request: Request, arrived: Arrived) -> Callable[[], Completion]:
        """Send the request and wait for the last byte. The returned function parses the answer."""
        prepared, body = self._prepared.pop(request.index, (None, b""))
        if prepared is not request:
            body = self._body(request)
        earlier, retries, waited_s = 0, 0, 0.0  # arrivals that hold rejections of the request
        while True:
            response, connect_s = await self._attempt(request, body, arrived, earlier)
            wait_s = None if response.status == 200 else self._wait_s(response, body)
            if wait_s is None or waited_s + wait_s > self.options.read_timeout_s:
                return functools.partial(self._completion, request, response, connect_s, earlier, retries)
            self._pool.held.size -= response.kept
            earlier, retries, waited_s = earlier + len(response.ends), retries + (wait_s > 0), waited_s + wait_s
            try:
                await asyncio.sleep(wait_s)
            except BaseException as error:
                raise self._with_arrivals(error, [0] * earlier) from None
            body = self._renamed(body)

    async def _attempt(
        self, request: Request, body: bytes, arrived: Arrived, earlier: int
    ) -> tuple[http.Response, float | None]:
        """One exchange, and the time to open its connection. `earlier` arrivals belong to rejections of the request."""
        server = self._pool.next_server()
        connection = self._pool.take_idle(server) if self.options.keep_alive else None
        connect_s = None
        while True:
            if connection is None:
                clock = asyncio.get_running_loop().time
                begin_s = clock()
                connection = await self._pool.connect(server)
                connect_s = clock() - begin_s
            try:
                most = ANSWER_SIZE[0] + ANSWER_SIZE[1] * request.output_tokens
                return await connection.exchange(self._heads[server] + body, arrived, most), connect_s
            except BaseException as error:
                if not connection.stale or connect_s is not None:
                    # The counts are of the part that arrived before the error.
                    answer, _ = self._parse(request, connection.response())
                    raise self._with_arrivals(error, [0] * earlier + answer.counts) from None
            finally:
                self._pool.give_back(server, connection)
            connection = None  # the server had closed it while idle: send the request on a new one

    async def stop(self) -> None:
        await self._pool.close()

    async def model_name(self) -> str | None:
        """The model's name as the server says it; None if no server answers."""
        with contextlib.suppress(RequestFailed):
            return (await self._served()).get("id") or self._model
        return None

    async def _served(self) -> dict[str, Any]:
        """The server's entry for the model asked for, else for the only one that it serves, whatever was asked for."""
        listed = (await self._ask("GET", "/v1/models")).get("data")
        models = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        named = [each for each in models if each.get("id") == self._model]
        return next(iter(named or (models if self._model is None or len(models) == 1 else [])), {})

    async def reset_cache(self) -> None:
        """Empty the prefix cache of every server, in the way of vLLM or SGLang. HarnessError if one refuses."""
        for server, base in enumerate(self._bases):
            refusals = []
            for page in ("/reset_prefix_cache", "/flush_cache"):
                try:
                    await self._ask("POST", page, {}, server)
                except RequestFailed as failed:
                    if failed.kind != "malformed":  # both servers answer 200 without JSON
                        refusals.append(f"{page}: {failed.kind}")
            if len(refusals) == 2:
                what = f"{base.url} does not reset its prefix cache: {'; '.join(refusals)}"
                fix = "omit --reset-cache: every run sends new prompts; or start vLLM with VLLM_SERVER_DEV_MODE=1"
                raise HarnessError(what, fix)

    def _wait_s(self, response: http.Response, body: bytes) -> float | None:
        """Time after which a rejected request is sent again; None: it failed."""
        refused = response.status in (400, 422) and _length(0) in body and self.options.endpoint == "chat"
        if refused and LENGTH_FIELDS[1].encode() in (said := response.body()) and _UNSUPPORTED.search(said):
            self._length_field = LENGTH_FIELDS[1]
            self._prepared = {i: (request, self._renamed(each)) for i, (request, each) in self._prepared.items()}
            return 0.0
        if self.options.retry_after and response.status in (429, 503):
            return http.retry_after_s(response.headers, time.time())
        return None

    def _renamed(self, body: bytes) -> bytes:
        """A body with the answer's length in the field that the server takes."""
        if self._length_field == LENGTH_FIELDS[0]:
            return body
        _, _, data = body.partition(b"\r\n\r\n")
        return _framed(data.replace(_length(0), _length(1), 1))

    def _completion(
        self, request: Request, response: http.Response, connect_s: float | None, earlier: int, retries: int
    ) -> Completion:
        answer, failed = self._parse(request, response)
        counts = [0] * earlier + answer.counts
        if failed is not None:
            raise self._with_arrivals(failed, counts)
        ids_sent = self.options.endpoint == "completions" and self.options.prompt == "tokens"
        return Completion(
            input_tokens=answer.usage.input(len(request.prompt) if ids_sent else None),
            output_tokens=answer.output_tokens,
            cached_tokens=answer.usage.cached,
            finish_reason=answer.finish_reason and self._secrets.hidden(answer.finish_reason)[:ERROR_LENGTH],
            arrival_tokens=tuple(counts),
            connect_s=connect_s,
            token_ids=tuple(answer.token_ids) or None,
            text="".join(answer.text),
            hidden_tokens=answer.hidden_tokens,
            retries=retries,
        )

    def _parse(self, request: Request, response: http.Response) -> tuple[Answer, RequestFailed | None]:
        """The answer as far as it could be parsed, and the error that ended parsing. Called once for each response."""
        self._pool.held.size -= response.kept
        answer = Answer(len(response.ends), request.output_tokens)
        try:
            if response.coding is not None:
                raise _compressed(response.coding)
            if response.status != 200:
                raise _not_ok(response)
            if not self.options.stream or response.headers.get(b"content-type", b"").startswith(b"application/json"):
                answer.read_json(response.body())
            else:
                answer.read_stream(response)
        except RequestFailed as failed:
            return answer, failed
        return answer, None

    def _with_arrivals(self, error: BaseException, counts: Sequence[int]) -> BaseException:
        """The error without secrets, and with the tokens in each arrival as `arrival_tokens`."""
        if isinstance(error, RequestFailed):
            error = RequestFailed(error.kind, self._secrets.hidden(error.message)[:ERROR_LENGTH])
        error.arrival_tokens = tuple(counts)  # type: ignore[attr-defined]
        return error

    def _body(self, request: Request) -> bytes:
        """The Content-Length header, the blank line and the JSON body."""
        given = self.options
        fields: dict[str, Any] = {"model": self._model}
        if given.endpoint == "chat":
            texts = request.messages or (self._text(request.prompt),)
            roles = itertools.cycle(("user", "assistant"))
            system = [] if given.system_prompt is None else [{"role": "system", "content": given.system_prompt}]
            said = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
            fields["messages"] = system + said
        elif given.prompt == "text":
            fields["prompt"] = "\n".join(request.messages or (self._text(request.prompt),))
        else:
            fields["prompt"] = request.prompt
        fields |= {self._length_field: request.output_tokens, "temperature": given.temperature, "stream": given.stream}
        if given.stream:
            fields["stream_options"] = {"include_usage": True}
        if request.ignore_eos:
            fields["ignore_eos"] = True
        fields = {key: value for key, value in (fields | self._fields).items() if value is not None}
        return _framed(msgspec.json.encode(fields))

    def _text(self, ids: tuple[int, ...]) -> str:
        """Decode token ids with the tokenizer of the options, else with the server's /detokenize."""
        if self.options.tokenizer is not None:
            return str(self._local_tokenizer().decode(ids))
        answer = self._ask_blocking("/detokenize", {"model": self._model, "tokens": ids})
        text = answer.get("prompt", answer.get("content", answer.get("text")))  # vLLM, llama.cpp, SGLang
        if not isinstance(text, str):
            raise HarnessError("the server's /detokenize returned no text", "set engine.tokenizer")
        return text

    def _encode(self, text: str) -> list[int]:
        """Encode text with the tokenizer of the options, else with the server's /tokenize."""
        if self.options.tokenizer is not None:
            return list(self._local_tokenizer().encode(text, add_special_tokens=False))
        fields = {"model": self._model, "prompt": text, "content": text, "add_special_tokens": False}
        ids = self._ask_blocking("/tokenize", fields).get("tokens")
        if not isinstance(ids, list):
            raise HarnessError("the server's /tokenize returned no tokens", "set engine.tokenizer")
        return ids

    def _local_tokenizer(self) -> Any:
        if self._tokenizer is None:
            try:
                from transformers import AutoTokenizer

                self._tokenizer = AutoTokenizer.from_pretrained(self.options.tokenizer)
            except (ImportError, OSError, ValueError) as failed:
                what = f"engine.tokenizer '{self.options.tokenizer}' cannot be loaded: {failed}"
                raise HarnessError(what, "pip install transformers, and give a tokenizer's directory or name") from None
        return self._tokenizer

    def _ask_blocking(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """POST to the first server from code that cannot await; see `prepare_waits`."""
        try:
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(asyncio.run, self._ask("POST", path, fields)).result()
        except RequestFailed as failed:
            fix = "set engine.tokenizer, or send token ids: engine.prompt=tokens, engine.endpoint=completions"
            raise HarnessError(f"the server's {path} failed: {failed.kind}: {failed.message}", fix) from None

    async def _ask(
        self, method: str, path: str, fields: Mapping[str, Any] | None = None, server: int = 0
    ) -> dict[str, Any]:
        """The JSON object that a server returns, requested on a new connection. Raises RequestFailed."""
        data, base = b"" if fields is None else msgspec.json.encode(fields), self._bases[server]
        _, _, headers = self._heads[server].partition(b"\r\n")
        line = b"%b %b%b HTTP/1.1\r\n" % (method.encode(), base.path.encode(), path.encode())
        pool = Pool([base], self.options.connect_timeout_s, ASK_TIMEOUT_S)
        try:
            connection = await pool.connect(0)
            request = line + headers + b"Content-Length: %d\r\n\r\n%b" % (len(data), data)
            response = await connection.exchange(request, lambda *_: None)
            if response.coding is not None:
                raise _compressed(response.coding)
            if response.status != 200:
                raise self._with_arrivals(_not_ok(response), ())
            answer = msgspec.json.decode(self._secrets.hidden(response.body().decode(errors="replace")))
        except msgspec.DecodeError as wrong:
            raise RequestFailed("malformed", str(wrong)) from None
        finally:
            await pool.close()
        return _map(answer)


def _map(value: Any) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _length(which: int) -> bytes:
    """The key of a length field in a body. Quotes inside a JSON text are escaped, so that it occurs as a key alone."""
    return f'"{LENGTH_FIELDS[which]}":'.encode()


def _not_ok(response: http.Response) -> RequestFailed:
    """The failure of an answer with another status than 200. Redirects are not followed: their time would count."""
    said = error_message(response.body())
    if 300 <= response.status < 400:
        place = response.headers.get(b"location", b"?").decode("latin-1")
        said = f"the server redirects to {place}"
    return RequestFailed(f"http_{response.status}", said)


def _framed(data: bytes) -> bytes:
    """The Content-Length header, the blank line and the body."""
    return b"Content-Length: %d\r\n\r\n%b" % (len(data), data)


def _compressed(coding: str) -> RequestFailed:
    what = f"the answer is compressed ({coding}), though no compression was asked for: its tokens have no arrival times"
    return RequestFailed("compressed", what + "; switch compression off in the server or the proxy before it")
