"""The engine `openai`: a client of any server with OpenAI's HTTP interface (vLLM, SGLang, TGI, llama.cpp, Ollama)."""

import asyncio
import contextlib
import functools
import itertools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from harness.config import checked
from harness.engines.base import Arrived, Counts
from harness.engines.openai.http import retry_after_s
from harness.engines.openai.options import PLAIN_FIELDS, Options, Secrets, header_lines
from harness.engines.openai.pool import Base, Pool, parse_base
from harness.engines.openai.stream import NOT_JSON, Answer, Response, error_message
from harness.errors import HarnessError, RequestFailed
from harness.files import data_rows, pip
from harness.model import MOST_TOKENS, Completion, EngineInfo, ModelIdentity, Request
from harness.process import allow_files

VOCABULARY = 32_000
"""Assumed if neither the server nor an option states it: current models have at least this many tokens."""
ASK_TIMEOUT_S = 30.0
"""Limit on the time of a request about the server itself: model, version, tokenizer; read_timeout_s if that is less."""
ABOUT = "/version", "/api/version", "/info", "/props", "/get_server_info"
"""Pages that say the server's version and limits."""
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
LONGEST = 1000
"""Characters of the longest name or version that is believed."""
_Form = TypeVar("_Form", str, list[int])


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
        self._headers = header_lines(given, self._secrets)
        path = "/v1/chat/completions" if given.endpoint == "chat" else "/v1/completions"
        self._heads = [self._head("POST", base, path) for base in self._bases]
        self._pool = Pool(self._bases, given.connect_timeout_s, given.read_timeout_s)
        self._length_renamed, self._sends_ids = False, given.endpoint == "completions" and given.prompt == "tokens"
        self._prepared: dict[int, tuple[Request, bytes]] = {}

    async def start(self) -> EngineInfo:
        """Ask the server for its model, version and limits. Raises HarnessError if it does not answer."""
        given = self.options
        allow_files(given.connections)
        first = await self._served()
        about = dict(itertools.chain.from_iterable([each.items() for each in await self._about()]))
        self._model = _text(first.get("id")) or self._model
        if self._model is None:
            raise HarnessError(f"{self._bases[0].url} does not say which model it serves", "give it with --model")
        meta, settings = _map(first.get("meta")), _map(about.get("default_generation_settings"))
        lengths = given.max_length, first.get("max_model_len"), about.get("max_total_tokens"), settings.get("n_ctx")
        vocabulary, max_length = _count(given.vocabulary, meta.get("n_vocab")) or VOCABULARY, _count(*lengths)
        await self._pool.fill(given.connections)
        return EngineInfo(
            engine="openai",
            version=_text(about.get("version"), about.get("build_info")),
            model=ModelIdentity(asked=self._model, source=_text(first.get("root"), first.get("id"))),
            device=given.device,
            device_count=given.device_count,
            vocabulary=vocabulary,
            max_length=max_length,
            options=given.model_dump()
            | {"vocabulary": vocabulary, "max_length": max_length, "server": _text(first.get("owned_by"))}
            | {name: limit for name in SGLANG_LIMITS if (limit := _count(about.get(name)))},
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
        try:
            return (await self.exchange(request, lambda tokens, _: arrived(tokens)))()
        except BaseException as error:
            if callable(counted := getattr(error, "arrival_tokens", None)):
                raise self._with_arrivals(error, counted()) from None
            raise

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
            raise self._with_arrivals(error, getattr(error, "arrival_tokens", tuple(counts))) from None

    async def _attempt(
        self, request: Request, body: bytes, arrived: Arrived, counts: list[int]
    ) -> tuple[Response, float | None]:
        """One exchange, and the time to open its connection."""
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
            except BaseException as error:
                if not connection.stale or connect_s is not None:
                    counted = functools.partial(self._counted, request, connection.response, counts)
                    raise self._with_arrivals(error, counted) from None
            finally:
                self._pool.give_back(server, connection)
            connection = None  # the server had closed it while idle: send the request on a new one

    async def stop(self) -> None:
        await self._pool.close()

    async def model_name(self) -> str | None:
        return _text((await self._served()).get("id")) or self._model

    async def _served(self) -> dict[str, Any]:
        """The server's entry for the model asked for, else for the only one that it serves, whatever was asked for.

        HarnessError if it lists no models.
        """
        try:
            listed = (await self._ask("GET", "/v1/models")).get("data")
        except RequestFailed as failed:
            answers = failed.kind == "malformed" or failed.kind.startswith("http_")
            fix = ASK_FIXES.get(failed.kind, "start it, or give another address with --url http://host:port")
            what = f"{'no list of models' if answers else 'no server answers'} at {self._bases[0].url}"
            raise HarnessError(f"{what}: {failed.kind}: {failed.message}", fix) from None
        models = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        named = [each for each in models if each.get("id") == self._model]
        return next(iter(named or (models if self._model is None or len(models) == 1 else [])), {})

    async def _about(self) -> list[dict[str, Any]]:
        """What the server answers to each page of ABOUT, nothing where it has no such page."""

        async def ask(page: str) -> dict[str, Any]:
            with contextlib.suppress(RequestFailed):
                return await self._ask("GET", page)
            return {}

        return await asyncio.gather(*map(ask, ABOUT))

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
            raise self._with_arrivals(failed, tuple(counts))
        return Completion(
            input_tokens=answer.usage.input(len(request.prompt) if self._sends_ids else None),
            output_tokens=answer.output_tokens,
            cached_tokens=answer.usage.cached,
            finish_reason=answer.finish_reason and self._secrets.stored(answer.finish_reason),
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
            whole = response.headers.get(b"content-type", b"").startswith(b"application/json")
            answer.read(response, self.options.stream and not whole)
        except RequestFailed as failed:
            failure = failed.with_traceback(None)  # whose frames would keep the body until garbage is collected
        counts += answer.counts
        return answer, failure

    def _counted(self, request: Request, response: Response, counts: list[int]) -> tuple[int, ...]:
        """The tokens in each arrival of an answer that did not come to its end."""
        self._parse(request, response, counts)
        return tuple(counts)

    def _with_arrivals(self, error: BaseException, counts: Counts) -> BaseException:
        """The error without secrets, and with the tokens in each arrival as `arrival_tokens`."""
        if isinstance(error, RequestFailed):
            error = RequestFailed(error.kind, self._secrets.stored(error.message))
        error.arrival_tokens = counts  # type: ignore[attr-defined]
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
        base, limit_s = base or self._bases[0], min(ASK_TIMEOUT_S, self.options.read_timeout_s)
        pool = Pool([base], self.options.connect_timeout_s, limit_s)
        try:
            async with asyncio.timeout(limit_s):
                connection = await pool.connect(0)
                data = b"" if fields is None else msgspec.json.encode(fields)
                response = await connection.exchange(_message(self._head(method, base, path), data), lambda *_: None)
            _check(response)
            answer = json.dumps(msgspec.json.decode(response.body()), ensure_ascii=False)
            return _map(msgspec.json.decode(self._secrets.hidden(answer)))
        except TimeoutError:
            raise RequestFailed("timeout", f"{path} was not answered within {limit_s:g} s") from None
        except RequestFailed as failed:
            raise self._with_arrivals(failed, ()) from None
        except NOT_JSON as wrong:
            raise RequestFailed("malformed", f"{path}: {wrong}") from None
        finally:
            await pool.close()

    def _head(self, method: str, base: Base, path: str) -> bytes:
        return f"{method} {base.path}{path} HTTP/1.1\r\nHost: {base.host}\r\n{self._headers}".encode()


def _map(value: Any) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _text(*stated: Any) -> str | None:
    """The first text that can be printed; a server states it, so that it can be anything."""
    return next(
        (each for each in stated if isinstance(each, str) and each.isprintable() and 0 < len(each) < 1000), None
    )


def _count(*stated: Any) -> int | None:
    """The first number of tokens that is possible."""
    return next((each for each in stated if isinstance(each, int) and 0 < each < MOST_TOKENS), None)


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
