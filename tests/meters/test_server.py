"""A server's own metrics, read by another process during the load."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from harness.meters import prometheus
from harness.meters.sampler import Polled
from harness.meters.server import ServerReader, values_of
from harness.model import ServerSample


class Busy(http.server.BaseHTTPRequestHandler):
    """Reports one more running request in each answer; only /metrics has metrics."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self) -> None:
        Busy.asked += 1
        text = f'vllm:num_requests_running{{engine="0"}} {Busy.asked}.0\n' if self.path == "/metrics" else ""
        self.send_response(200 if text else 404)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    Busy.asked = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_metrics_are_read_from_before_the_load_until_after_it(url: str) -> None:
    server = Polled("server", ServerSample, ServerReader, [f"{url}/v1", "http://127.0.0.1:9"])  # the second refuses
    server.start()
    begun_s = time.monotonic()
    time.sleep(1.2)
    ended_s = time.monotonic()
    server.stop()
    samples = server.drain()
    assert [(each.name, each.value) for each in samples] == [("running", 1.0), ("running", 2.0), ("running", 3.0)]
    assert samples[0].time_s < begun_s < samples[1].time_s < ended_s < samples[2].time_s


def test_a_reading_that_one_of_several_servers_does_not_answer_is_left_out(url: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as other:
        threading.Thread(target=other.serve_forever).start()
        reader = ServerReader([url, f"http://127.0.0.1:{other.server_port}"])
        assert [sample.value for sample in reader.read()] == [3.0]  # 1 + 2
        other.shutdown()
    assert reader.read() == []


def test_a_server_without_metrics_gives_no_samples(url: str) -> None:
    server = Polled("server", ServerSample, ServerReader, [f"{url}/elsewhere"])
    server.start()
    assert server.stop().error is None
    assert server.drain() == []


@pytest.mark.parametrize("wait_s", [0.01, 0.0])
def test_an_endpoint_whose_answer_does_not_end_gives_no_samples(wait_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drip of comment lines ends at the time limit, a flood at the limit on size."""
    monkeypatch.setattr(prometheus, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(prometheus, "MOST_BYTES", 1 << 20)

    class Endless(Busy):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"# wait\n" * (1 if wait_s else 9999))
                    time.sleep(wait_s)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever).start()
        assert ServerReader([f"http://127.0.0.1:{server.server_port}"]).read() == []
        server.shutdown()


def test_a_counter_under_its_old_and_its_new_name_is_counted_once() -> None:
    """As in vLLM 0.9; the hits of a KV connector are others."""
    names = ("gpu_prefix_cache_hits_total", "prefix_cache_hits_total", "external_prefix_cache_hits_total")
    both = "".join(f'vllm:{name}{{engine="{engine}"}} 64\n' for name in names for engine in (0, 1))
    assert values_of(both) == {"prefix_cache_hits": 256}
    assert values_of("vllm:gpu_prefix_cache_hits_total 64\n") == {"prefix_cache_hits": 64}
