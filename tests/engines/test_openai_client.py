"""The openai client against local servers: known schedules, and every kind of failure."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import http.server
import json
import resource
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from known_server.server import known_server

from harness.engines.openai.client import OpenAIEngine
from harness.errors import HarnessError
from harness.measure import run
from harness.measure.eventloop import event_loop
from harness.measure.sender import Sender
from harness.model import Completion, EngineInfo, Record, Request
from harness.process import allow_files
from harness.store.run import read_run
from harness.workload.schema import Workload, parse_workload

pytestmark = pytest.mark.alone


def workload(count: int, options: Mapping[str, Any], users: int = 8, tokens: int = 5) -> Workload:
    asked = {"count": count, "input_tokens": 4, "output_tokens": tokens}
    whole = {
        "requests": asked,
        "load": {"shape": "closed", "users": users, "start": "burst"},
        "engine": {"name": "openai", "options": options},
        "warmup": {"requests": 0},
    }
    return parse_workload(json.dumps(whole), "test.yaml")


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def measure(
    options: Mapping[str, Any], count: int = 20, users: int = 8, tokens: int = 5, cancel_after_s: float | None = None
) -> tuple[list[Record], EngineInfo]:
    """The records of a closed loop on a server. Checks that no file descriptor is left open."""

    async def load() -> tuple[list[Record], EngineInfo]:
        asked, records = workload(count, options, users, tokens), list[Record]()
        engine = OpenAIEngine(None, asked.engine_options("openai"))
        before = open_files()

        class Talk:
            arrivals = None

            def make(self, index: int) -> Request:
                return Request(index, (5, 6, 7, 8), tokens, cancel_after_s=cancel_after_s, messages=("a", "b", "c"))

        talk: Any = Talk()
        try:
            info = await engine.start()
            await Sender(asked, engine, talk, records.append).run(time.monotonic_ns())
        finally:
            await engine.stop()
        deadline = time.monotonic() + 2
        while open_files() > before and time.monotonic() < deadline:
            await asyncio.sleep(0.005)  # a server in this process closes its own descriptors a little later
        assert open_files() <= before
        return records, info

    with asyncio.Runner(loop_factory=event_loop) as runner:
        return runner.run(load())


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("stream", [True, False])
def test_tokens_are_stamped_on_schedule_and_counted(endpoint: str, stream: bool) -> None:
    with known_server(ttft_us=30_000, itl_us=5_000) as server:
        records, info = measure({"base_url": server.url, "endpoint": endpoint, "stream": stream}, count=3, users=1)
        assert server.truth()["tokens"] == 15
    assert (info.model.asked, info.version, info.max_length) == ("known", "1.0", 1_000_000)
    assert (info.device, info.options["api_key_env"]) == ("unknown", None)
    for record in records:
        assert (record.error, record.finish_reason, record.output_tokens) == (None, "length", 5)
        assert record.input_tokens == (4 if endpoint == "completions" else None)
        # Headers and the first chunk of a chat (only a role) arrive at once and are not tokens.
        ttft_s = record.arrival_s[0] - record.sent_s
        assert ttft_s >= (0.03 if stream else 0.05)
        assert sum(record.arrival_tokens) == 5
        assert len(record.arrival_s) == len(record.arrival_tokens) <= (5 if stream else 1)


def test_connections_are_opened_before_the_load_and_reused() -> None:
    with known_server(ttft_us=1000, itl_us=0) as server:
        records, _ = measure({"base_url": server.url, "connections": 8}, count=100)
        assert server.truth()["accepted"] <= 8 + 6 + 1  # load, queries about the server, truth()
        assert server.truth()["connected"] == 1
    assert {record.connect_s for record in records} == {None}


def test_without_keep_alive_each_request_opens_and_times_a_connection() -> None:
    with known_server(ttft_us=1000, itl_us=0) as server:
        records, _ = measure({"base_url": server.url, "keep_alive": False}, count=50)
        truth = server.truth()
    assert truth["accepted"] >= 50
    assert truth["connected"] == 1
    for record in records:
        assert record.connect_s is not None
        assert 0 < record.connect_s < record.arrival_s[0] - record.sent_s


def test_a_request_on_a_connection_closed_while_idle_is_sent_on_a_new_one() -> None:
    async def load(url: str) -> list[Completion]:
        engine = OpenAIEngine(None, {"base_url": url, "connections": 2, "stream": False})
        await engine.start()
        time.sleep(0.3)  # blocks the event loop, so that it does not notice the close
        completions = [await engine.generate(Request(i, (1,), 1), lambda *_: None) for i in range(3)]
        await engine.stop()
        return completions

    with scripted(idle_s=0.1) as (url, asked):
        completions = asyncio.run(load(url))
    assert [(each.text, each.connect_s is None) for each in completions] == [("a", False), ("a", True), ("a", True)]
    assert len(asked) == 3


def test_a_unix_socket_is_a_valid_address(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with known_server(unix=str(path), ttft_us=1000, itl_us=0):
        records, _ = measure({"base_url": f"unix:{path}"})
    assert [record.error for record in records] == [None] * 20


def test_requests_are_sent_to_several_servers_in_turn() -> None:
    with known_server(ttft_us=1000, itl_us=0) as one, known_server(ttft_us=1000, itl_us=0) as other:
        measure({"base_url": [one.url, other.url + "/v1"]}, count=40)
        assert (one.truth()["fine"], other.truth()["fine"]) == (20, 20)


def test_every_request_has_one_record_whichever_way_it_fails() -> None:
    kinds = ("reset", "http_400", "http_503", "malformed", "cut", "hang")
    share = 1 / 9  # of nine servers in ten; the tenth refuses connections
    with known_server(dict.fromkeys(kinds, share), ttft_us=500, itl_us=100, seed=3) as server:
        servers = [*[server.url] * 9, "http://127.0.0.1:9"]
        records, _ = measure({"base_url": servers, "read_timeout_s": 0.4}, count=2000, users=200)
        truth = server.truth()
    assert sorted(record.index for record in records) == list(range(2000))
    errors = collections.Counter(record.error for record in records)
    assert errors == {None: truth["fine"], "timeout": truth["hang"], "refused": 200} | {k: truth[k] for k in kinds[:-1]}
    assert truth["connected"] == 1
    text = {record.error: record.error_text for record in records}
    assert (text["http_400"], text["http_503"]) == ("refused, as drawn", "busy, as drawn")
    tokens = {kind: {sum(r.arrival_tokens) for r in records if r.error == kind} for kind in errors}
    # Tokens before a cut are kept; the body of an HTTP error and an invalid event are not tokens.
    assert tokens == {kind: {0} for kind in errors} | {None: {5}, "cut": {3}, "timeout": {1}}


def test_a_cancelled_request_frees_the_server() -> None:
    with known_server(ttft_us=1000, itl_us=50_000) as server:
        records, _ = measure({"base_url": server.url}, count=16, tokens=1000, cancel_after_s=0.08)
        time.sleep(0.05)
        truth = server.truth()
    assert {record.error for record in records} == {"cancelled"}
    assert all(1 <= sum(record.arrival_tokens) < 10 for record in records)  # 2, if nothing is late
    assert (truth["given_up"], truth["streams"], truth["connected"]) == (16, 0, 1)


def test_start_fails_if_no_server_answers() -> None:
    with pytest.raises(HarnessError, match=r"no server answers at .*: refused"):
        measure({"base_url": "http://127.0.0.1:9"})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"base_ulr": "x"}, "base_ulr"),
        ({"base_url": "localhost:8000"}, "'localhost:8000' is not the address"),
        ({"base_url": []}, "base_url is empty"),
        ({"base_url": "http://me:hunter2@box"}, "contains credentials"),
        ({"base_url": "http://box#hunter2"}, "contains credentials, a query or a fragment"),
        ({"base_url": "ftp://me:hunter2@box"}, "'ftp://…@box' is not the address"),
        ({"api_key": "hunter2"}, "unknown key api_key\n"),
        ({"headers": {"Authorization": "Bearer sk-1"}}, "header Authorization can be a secret"),
        ({"headers": {"Accept": "a\r\nY: b"}}, "cannot be sent as a header"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "variable NOT_SET_ANYWHERE is not set"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(HarnessError, match=named) as wrong:
        OpenAIEngine(None, options)
    assert "sk-1" not in str(wrong.value)
    assert "hunter2" not in str(wrong.value)


MODELS = b'{"data": [{"id": "scripted"}]}'


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers completions, or rejects them with a message that repeats the API key."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[dict[str, Any]]]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200, b"vllm:num_requests_running 2\n" if self.path == "/metrics" else MODELS)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self._send(200, {"tokens": [ord(letter) for letter in body["prompt"]]})
        elif self.path == "/detokenize":
            self._send(200, {"prompt": "".join(map(chr, body["tokens"]))})
        else:
            self.asked.append(body)
            if self.timeout is not None:
                self._send(200, {"choices": [{"text": "a", "finish_reason": "stop"}]})
                return
            said = f"{self.headers['Authorization']}, {self.headers['X-Other']} "
            self._send(401, {"error": {"message": f"wrong key: {said * 40}"}})

    def _send(self, status: int, fields: dict[str, Any]) -> None:
        self._answer(status, json.dumps(fields).encode())

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def scripted(
    context: ssl.SSLContext | None = None, idle_s: float | None = None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its URL and the bodies it received. With `idle_s` it closes idle connections and accepts any key."""

    class Handler(Scripted):
        asked: ClassVar[list[dict[str, Any]]] = []
        timeout = idle_s

    with serving(Handler, context) as url:
        yield url, Handler.asked


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http{'s' if context else ''}://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def command_lines() -> set[bytes]:
    """Those of all processes of the machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.add(path.read_bytes())
    return found


@pytest.mark.parametrize("clients", [None, 2])
def test_a_key_is_sent_and_never_stored_printed_or_in_the_process_list(
    clients: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In every place where a key can be given, with a server that repeats it, also across the length that is stored."""
    listed = set[bytes]()
    monkeypatch.setenv("THE_KEY", "sk-very-secret")
    given = {"api_key_env": "THE_KEY", "headers": {"X-Other": "id $THE_KEY"}, "body": {"metadata": {"key": "$THE_KEY"}}}
    with scripted() as (url, asked):
        spec = workload(3, {"base_url": url, **given})
        run.run(spec, tmp_path, lambda _: listed.update(command_lines()), run.Setup(clients=clients))
    stored = read_run(tmp_path / "latest")
    assert set(stored.requests["error"]) == {"http_401"}
    (text,) = set(stored.requests["error_text"])
    assert text.startswith("wrong key: Bearer [secret], id [secret]")
    assert len(text) == 500
    assert asked[0]["metadata"] == {"key": "sk-very-secret"}
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"sk-very" in path.read_bytes()] == []
    assert listed
    assert not any(b"sk-very" in line for line in listed)
    assert "sk-very" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"X-Whatever": "sk-very-secret"}},
        {"body": {"metadata": {"key": ["sk-very-secret"]}}},
        {"base_url": "http://user:sk-very-secret@127.0.0.1:1"},
        {"base_url": "http://127.0.0.1:1/v1?key=sk-very-secret"},
        {"serve": "server --port {port} --api-key=sk-very-secret"},
        {"serve": "vllm", "serve_options": {"api_key": "sk-very-secret"}},
    ],
)
def test_a_key_where_it_would_be_stored_is_refused_before_anything_is(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as refused:
        run.run(workload(3, options), tmp_path, lambda _: None)
    assert "sk-very" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_plain_header_or_field_is_sent_as_it_is() -> None:
    engine = OpenAIEngine("m", {"headers": {"User-Agent": "a b"}, "body": {"stop": ["x"], "unknown": [1, True, None]}})
    body = json.loads(engine._body(Request(0, (1,), 2)))
    assert (body["stop"], body["unknown"]) == (["x"], [1, True, None])


def test_server_metrics_are_stored_from_before_the_load_until_after_it(tmp_path: Path) -> None:
    with scripted(idle_s=9) as (url, _):
        stored = read_run(run.run(workload(3, {"base_url": url, "stream": False}), tmp_path, lambda _: None))
    assert set(zip(stored.server["name"], stored.server["value"], strict=True)) == {("running", 2.0)}
    assert stored.server["time_s"].min() < 0
    assert stored.server["time_s"].max() > stored.requests["end_s"].max()
    assert sorted(path.name for path in stored.directory.iterdir() if path.suffix != ".log") == [
        "requests.parquet", "run.json", "server.parquet",
    ]  # fmt: skip


def test_the_servers_tokenizer_makes_text_and_chat_roles_alternate() -> None:
    async def prepared(options: dict[str, Any], request: Request) -> dict[str, Any]:
        with scripted() as (url, asked):
            engine = OpenAIEngine(None, {"base_url": url, **options})
            info = await engine.start()
            assert info.encode is not None
            assert info.encode("AB") == [65, 66]
            engine.prepare(request)
            with contextlib.suppress(Exception):
                await engine.generate(request, lambda _: None)
            await engine.stop()
            return asked[0]

    ids = Request(0, (65, 66), 3, ignore_eos=False)
    body = asyncio.run(prepared({"prompt": "text", "body": {"temperature": None, "top_k": 1}}, ids))
    rest = {"model": "scripted", "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    assert body == {"prompt": "AB", "top_k": 1, **rest}
    turns = Request(0, (1,), 3, messages=("a", "b", "c"))
    body = asyncio.run(prepared({"endpoint": "chat"}, turns))
    messages = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), "abc", strict=True)
    ]
    assert body == {"messages": messages, "temperature": 0, "ignore_eos": True, **rest}


def certified(place: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """The settings of a server with a certificate of its own for `name`, and the certificate's file."""
    certificate, key = place / "certificate.pem", place / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=test"
    out = ["-addext", f"subjectAltName={name}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *out], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


def test_tls_accepts_the_authority_in_ssl_cert_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, certificate = certified(tmp_path, "IP:127.0.0.1")
    with scripted(context) as (url, _):
        with pytest.raises(HarnessError, match="certificate"):
            measure({"base_url": url})
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        records, info = measure({"base_url": url})
    assert info.model.asked == "scripted"
    assert {record.error for record in records} == {"http_401"}


@pytest.mark.parametrize(
    "drip", [b": wait\n\n", b'data: {"choices": []}\n\n', b'data: {"choices": [{"text": ""}]}\n\n']
)
def test_a_drip_of_bytes_without_a_token_is_a_timeout(drip: bytes) -> None:
    """The first token is kept, and the server notices at once."""

    class Drip(Scripted):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'data: {"choices": [{"text": "a"}]}\n\n')
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(drip)
                    time.sleep(0.01)

    with serving(Drip) as url:
        began_s = time.monotonic()
        records, _ = measure({"base_url": url, "read_timeout_s": "300 ms"}, count=2, users=2)
    assert [(each.error, each.arrival_tokens) for each in records] == [("timeout", (1,))] * 2
    assert all("no token arrived within engine.read_timeout_s" in str(each.error_text) for each in records)
    assert time.monotonic() - began_s < 10


def flood(size: int) -> http.server.ThreadingHTTPServer:
    """A server whose answers have `size` bytes and no token; other pages redirect to https://box/v1/models."""
    piece = b": " + b"x" * 65_534

    class Flood(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(size // len(piece)):
                    self.wfile.write(piece)

        def do_GET(self) -> None:
            self.send_response(308)
            self.send_header("Location", "https://box/v1/models")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flood)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def test_huge_answers_fail_at_the_size_that_the_tokens_asked_for_can_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 answers of 100 MB at once; then with little room for all together."""

    async def ask(url: str) -> tuple[set[str], int]:
        engine = OpenAIEngine("m", {"base_url": url})
        requests = [engine.generate(Request(i, (1,), 8), lambda *_: None) for i in range(3)]
        failed = await asyncio.gather(*requests, return_exceptions=True)
        await engine.stop()
        return {str(each) for each in failed}, engine._pool.held.size

    server = flood(100_000_000)
    url = f"http://127.0.0.1:{server.server_port}"
    (text,), held = asyncio.run(ask(url))
    assert (text, held) == ("the answer exceeds 8,519,680 bytes, the limit for the tokens that were asked for", 0)
    monkeypatch.setattr("harness.engines.openai.http.MAX_HELD", 4 << 20)
    texts, held = asyncio.run(ask(url))
    assert "the answers that are not parsed yet exceed 4,194,304 bytes in all" in texts
    assert held == 0
    server.shutdown()
    server.server_close()


def refusal(options: Mapping[str, Any]) -> str:
    async def start() -> None:
        await OpenAIEngine(None, options).start()

    with pytest.raises(HarnessError) as refused:
        asyncio.run(start())
    return str(refused.value)


def test_errors_of_tls_and_redirects_advise_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = flood(0)
    context, certificate = certified(tmp_path, "DNS:other")
    redirected = refusal({"base_url": f"http://127.0.0.1:{plain.server_port}"})
    assert "http_308: the server redirects to https://box/v1/models\n  fix: give that address" in redirected
    assert "write http://" in refusal({"base_url": f"https://127.0.0.1:{plain.server_port}"})
    plain.shutdown()
    plain.server_close()
    with scripted(context) as (url, _):
        assert "self-signed certificate\n  fix:" in refusal({"base_url": url})
        assert "write https://" in refusal({"base_url": url.replace("https", "http")})
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert "not valid for '127.0.0.1'.\n  fix: use the name" in refusal({"base_url": url})


def test_too_few_open_files_for_the_load_are_refused_with_the_number_before_anything_is_sent() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = refusal({"base_url": "http://127.0.0.1:1", "connections": 60_000}) if hard < 60_000 else ""
    assert not said or f"60,000 connections need 60,128 open files, and the system allows {hard:,} (EMFILE)" in said
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        allow_files(1100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1228
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
