"""The options of the engine `openai`, and the secrets that they name."""

import json
import os
import re
from typing import Any, Literal

from pydantic import Field

from harness.config import Section
from harness.errors import HarnessError
from harness.files import read_data
from harness.workload.arrivals import Seconds

ERROR_LENGTH = 500
"""Characters of a server's error that are stored."""
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
"""Control characters, and those that change the direction of a text."""
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
        """Each as it is, and as it stands in JSON."""

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
        self._values += secret, json.dumps(secret, ensure_ascii=False)[1:-1]
        return start + secret

    def hidden(self, text: str) -> str:
        """The text, for instance a server's error, without the secrets that it repeats."""
        for secret in self._values:
            text = text.replace(secret, "[secret]")
        return text

    def stored(self, text: str) -> str:
        """A server's text as it is stored: short, without secrets, and without what would move a terminal's cursor."""
        return _UNPRINTED.sub(" ", self.hidden(text)[:ERROR_LENGTH])


def header_lines(given: Options, secrets: Secrets) -> str:
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
