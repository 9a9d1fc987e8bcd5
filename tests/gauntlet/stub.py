"""An OpenAI-compatible server in this process, with one known behaviour a path prefix: http://127.0.0.1:PORT/NAME.

A behaviour is a generator of steps, which the server carries out on a schedule that does not drift. By default the
first token arrives TTFT_S after the request and each later one GAP_S after the one before. To add a behaviour, write a
function with `@behaviour` that yields steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gauntlet.trap import Seen, Stand

TTFT_S = 0.2
GAP_S = 0.02


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that is not streamed, or the head of one whose body has a length."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the connection at once."""


Step = float | bytes | Mapping[str, Any] | Whole | HangUp
"""Seconds to wait, bytes or a JSON event to send as an HTTP chunk of their own, a whole answer, or the end."""


@dataclass(slots=True)
class Ask:
    """A request for tokens."""

    body: Mapping[str, Any]
    chat: bool
    number: int
    """Requests for tokens that the behaviour has had, this one included."""
    state: dict[str, Any]
    """Kept from one request of this behaviour to the next; /metrics is the value of `metrics`."""

    @property
    def tokens(self) -> int:
        """Number of output tokens asked for."""
        return int(self.body.get("max_tokens") or self.body.get("max_completion_tokens") or 16)

    @property
    def prompt(self) -> list[Any]:
        """The prompt's tokens: ids, words that /detokenize made, or the letters of another text."""
        given = self.body.get("prompt")
        if given is None:
            given = " ".join(str(message["content"]) for message in self.body["messages"])
        return given if isinstance(given, list) else MADE.findall(given) or list(given)

    def event(self, text: str = "", finish: str | None = None, **delta: Any) -> dict[str, Any]:
        """An event with a text in the form of the endpoint, or with other fields of a chat's delta."""
        if not self.chat:
            return self.form([{"index": 0, "text": text, "finish_reason": finish}])
        content = {} if delta and not text else {"content": text}
        return self.form([{"index": 0, "delta": content | delta, "finish_reason": finish}])

    def form(self, choices: list[Any], **more: Any) -> dict[str, Any]:
        """An event with all the fields that OpenAI's API has in one."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {"id": "x", "object": kind, "created": 1_700_000_000, "model": "stub", "choices": choices, **more}

    def usage(self, completion: int | None = None, prompt: int | None = None, **more: Any) -> dict[str, Any]:
        """The fields of a usage; the numbers that were asked for by default."""
        told = self.tokens if completion is None else completion
        read = len(self.prompt) if prompt is None else prompt
        return {"prompt_tokens": read, "completion_tokens": told, **more}

    def words(self, count: int | None = None, first: int = 0) -> Iterator[Step]:
        """One word an event, GAP_S apart, the first at once."""
        for i in range(self.tokens if count is None else count):
            if i:
                yield GAP_S
            yield self.event(f" word{first + i}")

    def end(self, completion: int | None = None, finish: str = "length", **usage: Any) -> Iterator[Step]:
        """The finish reason in an event without a text, the usage if it was asked for, and [DONE]."""
        yield self.event(finish=finish)
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield self.form([], usage=self.usage(completion, **usage))
        yield DONE


DONE = b"data: [DONE]\n\n"
MADE = re.compile(r"\bt\d+\b")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
Behaviour = Callable[[Ask], Iterator[Step]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(make: Behaviour) -> Behaviour:
    """Serve this behaviour under the function's name."""
    BEHAVIOURS[make.__name__] = make
    return make


@behaviour
def plain(ask: Ask) -> Iterator[Step]:
    """Tokens as asked for, one an event."""
    yield TTFT_S
    yield from ask.words()
    yield from ask.end()


def sse(event: Mapping[str, Any], ending: bytes = b"\n\n") -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + ending


class Server:
    """All behaviours on one port, each with a state of its own."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self.numbers: dict[str, int] = {}
        self.bodies: dict[str, list[Mapping[str, Any]]] = {}
        """Bodies of the requests for tokens, by behaviour."""
        self.log: list[Seen] = []
        self.lateness_s: list[float] = []
        """How late each step was that had to wait."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                sizes = [line.partition(":")[2] for line in head if line.lower().startswith("content-length:")]
                body = await reader.readexactly(int(sizes[0]) if sizes else 0)
                name, _, page = head[0].split(" ")[1].lstrip("/").partition("/")
                await self._answer(name, page.removeprefix("v1/"), json.loads(body or b"{}"), writer)
        writer.close()

    def late_s(self) -> float:
        """How late the steps were, at p95."""
        ordered = sorted(self.lateness_s) or [0.0]
        return ordered[int(0.95 * (len(ordered) - 1))]

    async def _answer(self, name: str, page: str, body: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        state = self.states.setdefault(name, {})
        if name not in BEHAVIOURS:
            await _whole(writer, Whole({"error": {"message": f"no behaviour {name}"}}, 404))
        elif page in ("completions", "chat/completions"):
            self.numbers[name] = self.numbers.get(name, 0) + 1
            self.bodies.setdefault(name, []).append(body)
            ask = Ask(body, page.startswith("chat"), self.numbers[name], state)
            await self._carry_out(ask, BEHAVIOURS[name](ask), writer)
        elif page == "models":
            await _whole(writer, Whole({"data": [state.get("model", {"id": "stub", "max_model_len": 100_000})]}))
        elif page == "tokenize":
            await _whole(writer, Whole({"tokens": [1000 + len(word) for word in body["prompt"].split()]}))
        elif page == "detokenize":
            await _whole(writer, Whole({"prompt": " ".join(f"t{token}" for token in body["tokens"])}))
        elif page == "flush_cache" and "seen" in state:
            state["seen"].clear()
            await _whole(writer, Whole(b"Cache flushed."))
        elif page == "health":
            await _whole(writer, Whole({}))
        elif page == "metrics" and "metrics" in state:
            await _whole(writer, Whole(state["metrics"].encode()))
        else:
            await _whole(writer, Whole({"error": {"message": "no such page"}}, 404))

    async def _carry_out(self, ask: Ask, steps: Iterator[Step], writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        at_s = clock()
        seen = Seen(ask.tokens, at_s)
        self.log.append(seen)
        for step in steps:
            if isinstance(step, float):
                at_s += step
                if step > 0:
                    await asyncio.sleep(at_s - clock())
                    self.lateness_s.append(clock() - at_s)
                continue
            if isinstance(step, HangUp):
                seen.status, seen.end_s = 0, clock()
                writer.transport.abort()
                return
            if isinstance(step, Whole):
                seen.status, seen.end_s = step.status, clock()
                await _whole(writer, step)
                return
            if not seen.events:
                writer.write(HEAD)
            data = step if isinstance(step, bytes) else sse(step)
            seen.events += [(clock(), event) for event in ([step] if isinstance(step, Mapping) else _events(data))]
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
        seen.end_s = clock()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _events(data: bytes) -> list[Any]:
    """The JSON of each event in bytes; None for what is none, such as a comment or a part of an event."""
    found: list[Any] = []
    for line in data.split(b"\n\n"):
        try:
            found.append(json.loads(line.removeprefix(b"data: ")))
        except ValueError:
            found.append(None)
    return found[:-1] or found


async def _whole(writer: asyncio.StreamWriter, answer: Whole) -> None:
    body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    headers = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
    writer.write(f"HTTP/1.1 {answer.status} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


@contextlib.contextmanager
def stub() -> Iterator[tuple[str, Server]]:
    """The address without a behaviour's name, and the server, until the end of the block."""
    server, loop, begun = Server(), asyncio.new_event_loop(), threading.Event()
    port: list[int] = []

    async def main() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=512)
        port.append(listening.sockets[0].getsockname()[1])
        begun.set()
        async with listening:
            with contextlib.suppress(asyncio.CancelledError):
                await listening.serve_forever()
        left = asyncio.all_tasks() - {task}
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    task: asyncio.Task[None] = loop.create_task(main())

    def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    try:
        yield f"http://127.0.0.1:{port[0]}", server
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


@contextlib.contextmanager
def stand(name: str, more: Callable[[Server], Mapping[str, Any]] = lambda _: {}) -> Iterator[Stand]:
    """A server of this behaviour; `more` are further fields of the stand."""
    with stub() as (url, server):
        yield Stand(f"{url}/{name}", late_s=server.late_s, log=lambda: server.log, **more(server))
