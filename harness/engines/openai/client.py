"""The engine `openai`: a client of any server with OpenAI's HTTP interface (vLLM, SGLang, TGI, llama.cpp, Ollama)."""

import asyncio
import contextlib
import functools
import itertools
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import msgspec
from pydantic import Field

from harness.config import Section, checked
from harness.engines.base import Arrived
from harness.engines.openai.http import retry_after_s
from harness.engines.openai.pool import Base, Pool, parse_base
from harness.engines.openai.stream import Answer, Response, error_message
from harness.errors import HarnessError, RequestFailed
from harness.files import data_rows, pip, read_data
from harness.model import Completion, EngineInfo, ModelIdentity, Request
from harness.process import allow_files
from harness.workload.arrivals import Seconds

VOCABULARY = 32_000
"""Assumed if neither the server nor an option states it: current models have at least this many tokens."""
ASK_TIMEOUT_S = 30.0
"""Read timeout of requests about the server itself: model, version, tokenizer."""
ASK_FIXES = {row["kind"]: row["fix"] for row in data_rows("server_refusals.csv")}
"""Why the server did not say what it serves -> what helps, if it is not to start the server."""
SGLANG_LIMITS = "chunked_prefill_size", "max_running_requests"
"""What SGLang says of itself that the first wave of a closed loop needs."""
_LENGTHS = b'"max_tokens":', b'"max_completion_tokens":'
"""Keys of a request's number of output tokens in a body, where quotes inside a text are escaped. The second is used
where the server says that it must be."""
_UNSUPPORTED = re.compile(rb"unsupported|not supported|unrecogni[sz]ed|unknown|not permitted|deprecated", re.IGNORECASE)
ANSWER_SIZE = 8 << 20, 16 << 10
"""Largest answer in bytes: the first number, and the second for each token asked for, up to http.MAX_BODY."""
ERROR_LENGTH = 500
"""Characters of a server's error that are stored."""
_Form = TypeVar("_Form", str, list[int])
PLAIN_HEADERS = frozenset({"accept", "accept-language", "cache-control", "content-type", "user-agent", "x-priority"})
PLAIN_FIELDS = frozenset(read_data("openai_fields.txt").split())
"""Headers, and fields of a body, whose text is stored with the run. The text of any other can be a secret."""


class Options(Section, allow_inf_nan=False):
    """The options of the openai engine. They are stored with the run; a secret is given as the name of a variable."""

    base_url: str | list[str] = "http://127.0.0.1:8000"
    """`http://`, `https://` or `unix:`. Requests are sent to several servers in turn."""
    endpoint: Literal["completions", "chat"] = "completions"
    stream: bool = True
    prompt: Literal["tokens", "text"] = "tokens"
    """How a completion's prompt is sent. Chat prompts are always text."""
    tokenizer: str | None = None
    """Directory or name for transformers' AutoTokenizer. None: use the server's /tokenize and /detokenize."""
    system_prompt: str | None = None
    """First message of each chat request."""
    retry_after: bool = False
    """True: send a request that a 429 or 503 rejects again, after its Retry-After. False: the request has failed."""
    temperature: float = Field(0.0, ge=0)
    body: dict[str, Any] = Field({})
    """Additional JSON fields of each request; null removes one of the default fields. The text of a field that is not
    in PLAIN_FIELDS is `$NAME`, and that environment variable is sent."""
    headers: dict[str, str] = Field({})
    """Additional headers. `$NAME` in a value is replaced by that environment variable; needed if the header is not in
    PLAIN_HEADERS."""
    api_key_env: str | None = None
    """Environment variable that holds the API key."""
    connections: int = Field(0, ge=0, le=60_000)
    """Connections opened before the load begins. More are opened on demand."""
    keep_alive: bool = True
    """False: open a new connection for each request."""
    connect_timeout_s: Seconds = 10.0
    read_timeout_s: Seconds = 600.0
    """A request fails if no token arrives for this long."""
    device: Literal["unknown", "cpu", "cuda"] = "unknown"
    """The server's hardware, which its interface does not report."""
    device_count: int = Field(1, ge=1)
    vocabulary: int | None = Field(None, gt=1)
    max_length: int | None = Field(None, gt=0)
    max_num_batched_tokens: int | None = Field(None, gt=0)
    """The server's limit on the tokens in a step, by vLLM's name: how many prompts wait when the load begins."""
    max_num_seqs: int | None = Field(None, gt=0)
    """The server's limit on the requests that are decoded at a time."""


class Secrets:
    """Values of the environment variables that the options name. They are sent, and stored nowhere."""

    def __init__(self) -> None:
        self._values: list[str] = []

    def filled(self, where: str, value: Any) -> Any:
        """A value of an option with the values of environment variables in place of their names."""
        if isinstance(value, list):
            return [self.filled(where, each) for each in value]
        if isinstance(value, dict):
            return {key: self.filled(where, each) for key, each in value.items()}
        if not isinstance(value, str):
            return value
        start, dollar, variable = value.partition("$")
        if not dollar:
            what = f"the {where} can be a secret, and options are stored with the run"
            raise HarnessError(what, "write $NAME, the name of an environment variable")
        if not (secret := os.environ.get(variable)):
            raise HarnessError(f"the variable {variable} is not set", f"export {variable}=… before the run")
        self._values.append(secret)
        return start + secret

    def hidden(self, text: str) -> str:
        """The text, for instance a server's error, without the secrets that it repeats."""
        for secret in self._values:
            text = text.replace(secret, "[secret]")
        return text


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
        self._headers = _header_lines(given, self._secrets)
        path = "/v1/chat/completions" if given.endpoint == "chat" else "/v1/completions"
        self._heads = [self._head("POST", base, path) for base in self._bases]
        self._pool = Pool(self._bases, given.connect_timeout_s, given.read_timeout_s)
        self._length_renamed, self._sends_ids = False, given.endpoint == "completions" and given.prompt == "tokens"
        self._prepared: dict[int, tuple[Request, bytes]] = {}

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
        return not self._sends_ids and self.options.tokenizer is None

    def prepare(self, request: Request) -> None:
        """Encode the request's body ahead of its send time."""
        self._prepared[request.index] = request, self._body(request)

    async def generate(self, request: Request, arrived: Callable[[int], None]) -> Completion:
        return (await self.exchange(request, lambda tokens, _: arrived(tokens)))()

    async def exchange(self, request: Request, arrived: Arrived) -> Callable[[], Completion]:
        """Send the request and wait for the last byte. The returned function parses the answer."""
        prepared, body = self._prepared.pop(request.index, (None, b""))
        body = body if prepared is request else self._body(request)
        counts = list[int]()  # of the tokens in each arrival; one with a rejection of the request has none
        retries, waited_s = 0, 0.0
        try:
            while True:
                if self._length_renamed:
                    body = body.replace(*_LENGTHS, 1)
                response, connect_s = await self._attempt(request, body, arrived, counts)
                wait_s = None if response.status == 200 else self._wait_s(response, body)
                if wait_s is None or waited_s + wait_s > self.options.read_timeout_s:
                    return functools.partial(self._completion, request, response, counts, connect_s, retries)
                self._pool.held.size -= response.kept
                counts += [0] * len(response.ends)
                retries, waited_s = retries + (wait_s > 0), waited_s + wait_s
                await asyncio.sleep(wait_s)
        except BaseException as error:
            raise self._with_arrivals(error, counts) from None

    async def _attempt(
        self, request: Request, body: bytes, arrived: Arrived, counts: list[int]
    ) -> tuple[Response, float | None]:
        """One exchange, and the time to open its connection. If it fails, the tokens that arrived go to `counts`."""
        server = next(self._pool.turns)
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
                return await connection.exchange(_message(self._heads[server], body), arrived, most), connect_s
            except BaseException:
                if not connection.stale or connect_s is not None:
                    self._parse(request, connection.response, counts)
                    raise
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
        for base in self._bases:
            refusals = []
            for page in ("/reset_prefix_cache", "/flush_cache"):
                try:
                    await self._ask("POST", page, {}, base)
                except RequestFailed as failed:
                    if failed.kind != "malformed":  # both servers answer 200 without JSON
                        refusals.append(f"{page}: {failed.kind}")
            if len(refusals) == 2:
                what = f"{base.url} does not reset its prefix cache: {'; '.join(refusals)}"
                fix = "omit --reset-cache: every run sends new prompts; or start vLLM with VLLM_SERVER_DEV_MODE=1"
                raise HarnessError(what, fix)

    def _wait_s(self, response: Response, body: bytes) -> float | None:
        """Time after which a rejected request is sent again; None: it failed."""
        refused = response.status in (400, 422) and _LENGTHS[0] in body and self.options.endpoint == "chat"
        if refused and b"max_completion_tokens" in (message := response.body()) and _UNSUPPORTED.search(message):
            self._length_renamed = True
            return 0.0
        if self.options.retry_after and response.status in (429, 503):
            return retry_after_s(response.headers, time.time())
        return None

    def _completion(
        self, request: Request, response: Response, counts: list[int], connect_s: float | None, retries: int
    ) -> Completion:
        answer, failed = self._parse(request, response, counts)
        if failed is not None:
            raise self._with_arrivals(failed, counts)
        return Completion(
            input_tokens=answer.usage.input(len(request.prompt) if self._sends_ids else None),
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

    def _parse(self, request: Request, response: Response, counts: list[int]) -> tuple[Answer, RequestFailed | None]:
        """The answer as far as it could be parsed, and the error that ended parsing. Called once for each response."""
        self._pool.held.size -= response.kept
        answer, failure = Answer(len(response.ends), request.output_tokens), None
        try:
            _check(response)
            json = response.headers.get(b"content-type", b"").startswith(b"application/json")
            answer.read(response, self.options.stream and not json)
        except RequestFailed as failed:
            failure = failed.with_traceback(None)  # whose frames would keep the body until garbage is collected
        counts += answer.counts
        return answer, failure

    def _with_arrivals(self, error: BaseException, counts: Sequence[int]) -> BaseException:
        """The error without secrets, and with the tokens in each arrival as `arrival_tokens`."""
        if isinstance(error, RequestFailed):
            error = RequestFailed(error.kind, self._secrets.hidden(error.message)[:ERROR_LENGTH])
        error.arrival_tokens = tuple(counts)  # type: ignore[attr-defined]
        return error

    def _body(self, request: Request) -> bytes:
        """The JSON body of a request."""
        given = self.options
        fields: dict[str, Any] = {"model": self._model}
        texts = () if self._sends_ids else request.messages or (self._text(request.prompt),)
        if given.endpoint == "chat":
            turns = list(zip(itertools.cycle(("user", "assistant")), texts, strict=False))
            system = [] if given.system_prompt is None else [("system", given.system_prompt)]
            fields["messages"] = [{"role": role, "content": text} for role, text in system + turns]
        elif given.prompt == "text":
            fields["prompt"] = "\n".join(texts)
        else:
            fields["prompt"] = request.prompt
        fields |= {"max_tokens": request.output_tokens, "temperature": given.temperature, "stream": given.stream}
        if given.stream:
            fields["stream_options"] = {"include_usage": True}
        if request.ignore_eos:
            fields["ignore_eos"] = True
        return msgspec.json.encode({key: value for key, value in (fields | self._fields).items() if value is not None})

    def _text(self, ids: tuple[int, ...]) -> str:
        """Decode token ids with the tokenizer of the options, else with the server's /detokenize."""
        if self.options.tokenizer is not None:
            return str(self._tokenizer.decode(ids))
        return self._ask_for("/detokenize", str, ("prompt", "content", "text"), tokens=ids)  # vLLM, llama.cpp, SGLang

    def _encode(self, text: str) -> list[int]:
        """Encode text with the tokenizer of the options, else with the server's /tokenize."""
        if self.options.tokenizer is not None:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        return self._ask_for("/tokenize", list, ("tokens",), prompt=text, content=text, add_special_tokens=False)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self.options.tokenizer)
        except (ImportError, OSError, ValueError) as failed:
            what = f"engine.tokenizer '{self.options.tokenizer}' cannot be loaded: {failed}"
            raise HarnessError(what, f"{pip('transformers')}, and give a tokenizer's directory or name") from None

    def _ask_for(self, path: str, form: type[_Form], keys: Sequence[str], **fields: Any) -> _Form:
        """The value of the first of these keys that the first server answers, for code that cannot await."""
        try:
            with ThreadPoolExecutor(1) as thread:
                asked = self._ask("POST", path, {"model": self._model, **fields})
                answer = thread.submit(asyncio.run, asked).result()
        except RequestFailed as failed:
            fix = "set engine.tokenizer, or send token ids: engine.prompt=tokens, engine.endpoint=completions"
            raise HarnessError(f"the server's {path} failed: {failed.kind}: {failed.message}", fix) from None
        value = next((answer[key] for key in keys if key in answer), None)
        if not isinstance(value, form):
            what = f"the server's {path} returned no {'text' if form is str else 'tokens'}"
            raise HarnessError(what, "set engine.tokenizer")
        return value

    async def _ask(
        self, method: str, path: str, fields: Mapping[str, Any] | None = None, base: Base | None = None
    ) -> dict[str, Any]:
        """The JSON object that a server, else the first, returns on a new connection. Raises RequestFailed."""
        base = base or self._bases[0]
        pool = Pool([base], self.options.connect_timeout_s, ASK_TIMEOUT_S)
        try:
            connection = await pool.connect(0)
            data = b"" if fields is None else msgspec.json.encode(fields)
            response = await connection.exchange(_message(self._head(method, base, path), data), lambda *_: None)
            _check(response)
            return _map(msgspec.json.decode(self._secrets.hidden(response.body().decode(errors="replace"))))
        except RequestFailed as failed:
            raise self._with_arrivals(failed, ()) from None
        except msgspec.DecodeError as wrong:
            raise RequestFailed("malformed", str(wrong)) from None
        finally:
            await pool.close()

    def _head(self, method: str, base: Base, path: str) -> bytes:
        return f"{method} {base.path}{path} HTTP/1.1\r\nHost: {base.host}\r\n{self._headers}".encode()


def _header_lines(given: Options, secrets: Secrets) -> str:
    """The header lines common to all requests."""
    lines = ["Content-Type: application/json", "Accept-Encoding: identity"]
    if not given.keep_alive:
        lines.append("Connection: close")
    headers = dict(given.headers)
    if given.api_key_env is not None:
        headers["Authorization"] = f"Bearer ${given.api_key_env}"
    for name, value in headers.items():
        if name.lower() not in PLAIN_HEADERS or "$" in value:
            value = secrets.filled(f"header {name}", value)
        if not f"{name}{value}".isprintable() or not value.isascii() or not re.fullmatch(r"[\w-]+", name, re.ASCII):
            raise HarnessError(f"'{name}' cannot be sent as a header", "use printable ASCII in names and values")
        lines.append(f"{name}: {value}")
    return "".join(f"{line}\r\n" for line in lines)


def _map(value: Any) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _message(head: bytes, body: bytes) -> bytes:
    return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


def _check(response: Response) -> None:
    """Raises RequestFailed for a compressed answer, and for one with another status than 200.

    Redirects are not followed: their time would count.
    """
    if (coding := response.coding) is not None:
        what = f"the answer is compressed ({coding}), though no compression was asked for"
        fix = "switch compression off in the server or the proxy before it"
        raise RequestFailed("compressed", f"{what}: its tokens have no arrival times; {fix}")
    if 300 <= response.status < 400:
        place = response.headers.get(b"location", b"?").decode("latin-1")
        raise RequestFailed(f"http_{response.status}", f"the server redirects to {place}")
    if response.status != 200:
        raise RequestFailed(f"http_{response.status}", error_message(response.body()))
