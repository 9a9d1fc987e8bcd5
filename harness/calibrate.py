"""How much load one client carries here before its percentiles are no longer true.

The server that it is measured against is a process of its own. It sends every token on a known schedule and stamps it
as the operating system takes it. The truth is not the schedule but what left: a late token is the server's doing, and
is not laid to the client's account.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from harness.child import Child
from harness.errors import HarnessError
from harness.eventloop import event_loop

TRUE_WITHIN = 0.05
"""The share by which a p99 may be off."""
SERVER_LATE = TRUE_WITHIN / 2
"""The share of the TTFT by which the server may be late at p99. Beyond, the rate is its limit: a request that has come
waits as long to be read, which its stamps do not show. Gaps between tokens are as it stamped them, late or not."""
LOWEST = 4
"""The search gives up below this part of the first rate."""
FINE = 1.5
"""The search ends when the lowest rate that failed is less than this many times the highest that did not."""
LEVEL_S = 2.5
"""How long each rate is sent."""
LOADS: Mapping[str, tuple[float, float, int, float]] = {
    "tokens_per_s": (0.1, 0.02, 64, 4_000.0),
    "requests_per_s": (0.1, 0.02, 1, 1_000.0),
}
"""Figure -> TTFT, ITL, tokens of an answer, first rate: long answers for what a token costs, single tokens for what a
request does."""


def measure(
    url: str, rate_per_s: float, schedule: tuple[float, float, int], level_s: float = LEVEL_S
) -> tuple[str | None, int, str]:
    """What failed at this rate (`client`, `server` or None), the most streams at once, and p99s beside the truth."""
    from harness import run, store
    from harness.workload import Workload

    ttft_s, itl_s, tokens = schedule
    streams = rate_per_s * (ttft_s + itl_s * (tokens - 1))
    workload = Workload.model_validate(
        {
            "name": "calibrate",
            "requests": {"input_tokens": 256, "output_tokens": tokens},
            "load": {"shape": "poisson", "rate_per_s": rate_per_s, "duration_s": level_s},
            "warmup": {"requests": 4},
            "engine": {"name": "openai", "openai": {"base_url": url, "connections": round(1.5 * streams) + 8}},
        }
    )
    with tempfile.TemporaryDirectory() as root:
        urllib.request.urlopen(f"{url}/reset").close()
        rows = store.read(run.run(workload, Path(root), lambda _: None)).requests
    with urllib.request.urlopen(f"{url}/truth") as answer:
        truth = json.load(answer)
    if failed := int(rows["error"].notna().sum()):
        return "client", 0, f"{failed} of {len(rows)} requests failed: {rows['error_text'].dropna().iloc[0]}"
    sent_s, arrival_s = rows["sent_s"], rows["arrival_s"]
    seen = {
        "TTFT": (_p99([at[0] for at in arrival_s] - sent_s), truth["ttft_s"]),
        "ITL": (_p99(np.concatenate([np.diff(at) for at in arrival_s])), truth["itl_s"]),
    }
    lag_s = _p99(sent_s - rows["scheduled_s"])
    told = ", ".join(
        f"{name} p99 {here * 1e3:.2f} ms ({there * 1e3:.2f})" for name, (here, there) in seen.items() if there
    )
    late_s = truth["late_s"]
    told += f", sent late {lag_s * 1e3:.2f} ms, server late {late_s * 1e3:.2f} ms"
    off = [abs(here - there) - TRUE_WITHIN * there for here, there in seen.values()] + [lag_s - TRUE_WITHIN * ttft_s]
    if max(off) > late_s:  # more than the server's lateness can have done
        return "client", truth["streams"], told
    return "server" if max(off) > 0 or late_s > SERVER_LATE * ttft_s else None, truth["streams"], told


def _p99(values: Any) -> float:
    """0 of nothing."""
    return float(np.percentile(values, 99)) if np.size(values) else 0.0


Level = Callable[[str, float, tuple[float, float, int]], tuple[str | None, int, str]]


def calibrate(say: Callable[[str], None], level: Level = measure) -> dict[str, Any]:
    """The highest rates at which p99 of TTFT and of ITL are true within `TRUE_WITHIN`, for one client process.

    Poisson arrivals, by the same code as any run; `say` hears of each rate. `limited_by` is `client`, or `server`
    where its own lateness ended a search and the client may carry more. HarnessError where no rate is true.
    """
    found: dict[str, Any] = {"utc": datetime.now(UTC).isoformat(timespec="seconds")}
    limits = set()
    for name, (ttft_s, itl_s, tokens, first) in LOADS.items():
        rate, good, bad, streams, blame = first, 0.0, float("inf"), 0, None
        with known_server(ttft_s, itl_s) as url:
            while bad > FINE * good and rate >= first / LOWEST:
                for _ in range(2):  # a rate fails that fails twice: other work on the machine comes and goes
                    limit, streams_there, told = level(url, rate / tokens, (ttft_s, itl_s, tokens))
                    if limit is None:
                        break
                outcome = "true" if limit is None else f"no, for the {limit}"
                say(f"{rate:,.0f} {name.replace('_per_s', '/s')}: {outcome}; {told}")
                if limit is None:
                    good, streams = rate, streams_there
                else:
                    bad, blame = rate, limit
                rate = 2 * good if bad == float("inf") else (good * bad) ** 0.5 if good else bad / 2
        if not good:
            what = f"not even {bad:,.0f} {name.replace('_per_s', '/s')} could be measured truly: {told}"
            raise HarnessError(what, "free the machine of other work, then calibrate again")
        limits.add(blame)
        found |= {name: good, f"streams_at_{name}": streams}
    return found | {"limited_by": "server" if "server" in limits else "client"}


@contextlib.contextmanager
def known_server(ttft_s: float, itl_s: float) -> Iterator[str]:
    """The server in another process, by its address."""
    child = Child(serve, ttft_s, itl_s)
    try:
        yield f"http://127.0.0.1:{child.receive(None)}"
    finally:
        child.end()


_LENGTH, _MOST = re.compile(rb"(?i)content-length: *(\d+)"), re.compile(rb'"max_tokens": *(\d+)')
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _event(**fields: Any) -> bytes:
    data = b"data: %s\n\n" % json.dumps({"id": "c", "object": "text_completion", "model": "m", **fields}).encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


_TOKEN = _event(choices=[{"index": 0, "text": " token", "finish_reason": None}])
_END = _event(choices=[{"index": 0, "text": " end", "finish_reason": "length"}])


class _Truth:
    """What the server sent since the last reset."""

    def __init__(self) -> None:
        self.ttft_s: list[float] = []
        self.itl_s: list[float] = []
        self.late_s: list[float] = []
        self.streams = self.most = 0

    def page(self) -> dict[str, float]:
        named = {"ttft_s": self.ttft_s, "itl_s": self.itl_s, "late_s": self.late_s}
        return {"streams": self.most} | {name: _p99(values) for name, values in named.items()}


class _Answers(asyncio.Protocol):
    """A connection to the server: each token of an answer is a timer and a write."""

    truth = _Truth()

    def __init__(self, ttft_s: float, itl_s: float) -> None:
        self.ttft_s, self.itl_s, self.loop, self.held = ttft_s, itl_s, asyncio.get_running_loop(), b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.held += data
        head, ended, body = self.held.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not ended or len(body) < (int(length[1]) if length else 0):
            return
        self.held = b""
        if head.startswith(b"POST"):
            now_s, most = self.loop.time(), _MOST.search(body)
            self.transport.write(_HEAD)
            self.loop.call_at(
                now_s + self.ttft_s, self._token, now_s + self.ttft_s, 1, int(most[1]) if most else 16, now_s
            )
            self.truth.streams += 1
            self.truth.most = max(self.truth.most, self.truth.streams)
            return
        if b" /reset " in head:
            _Answers.truth = _Truth()
        about = self.truth.page() if b" /truth " in head else {"data": [{"id": "m", "max_model_len": 100_000}]}
        page = json.dumps(about).encode()
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page))

    def _token(self, at_s: float, number: int, asked: int, since_s: float) -> None:
        """Send a token that is due, stamp it, and see to the next; `since_s` is the stamp of what came before it."""
        data = _TOKEN
        if number == asked:
            data = _END + _event(choices=[], usage={"completion_tokens": asked}) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
            self.truth.streams -= 1
        self.transport.write(data)
        now_s = self.loop.time()
        self.truth.late_s.append(now_s - at_s)
        (self.truth.itl_s if number > 1 else self.truth.ttft_s).append(now_s - since_s)
        if number < asked:
            self.loop.call_at(at_s + self.itl_s, self._token, at_s + self.itl_s, number + 1, asked, now_s)


def serve(pipe: Connection, ttft_s: float, itl_s: float) -> None:
    """What the server's process does, until it is killed."""

    async def forever() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Answers(ttft_s, itl_s), "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(forever())
