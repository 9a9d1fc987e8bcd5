"""A server's own metrics: read by another process while the load runs, and made into figures."""

from __future__ import annotations

import http.server
import json
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from harness import scrape


class Busy(http.server.BaseHTTPRequestHandler):
    """Each answer finds one more request running; there are metrics only below /metrics."""

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
def url() -> object:
    Busy.asked = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_readings_are_there_from_before_the_load_until_after_it(url: str, tmp_path: Path) -> None:
    journal = tmp_path / "server.jsonl"
    with scrape.scraping([f"{url}/v1", "http://127.0.0.1:9"], journal):  # the second one refuses
        begun_s = time.monotonic()
        time.sleep(1.2)
        ended_s = time.monotonic()
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [(row["name"], row["value"]) for row in rows] == [("running", 1.0), ("running", 2.0), ("running", 3.0)]
    assert rows[0]["time_s"] < begun_s < rows[1]["time_s"] < ended_s < rows[2]["time_s"]


def test_a_server_without_metrics_leaves_none(url: str, tmp_path: Path) -> None:
    with scrape.scraping([f"{url}/elsewhere"], tmp_path / "server.jsonl"):
        pass
    assert (tmp_path / "server.jsonl").read_text() == ""


def readings(**values: list[float]) -> pd.DataFrame:
    """One reading a second from -1 on."""
    rows = [(at - 1.0, name, value) for name, each in values.items() for at, value in enumerate(each)]
    return pd.DataFrame(rows, columns=["time_s", "name", "value"])


def test_figures_are_those_of_the_span() -> None:
    said = readings(
        running=[0, 2, 4, 9],
        kv_cache_use=[0, 0.25, 0.5, 0.9],
        prefix_cache_queries=[100, 110, 180, 300],
        prefix_cache_hits=[50, 50, 80, 150],
        preemptions=[1, 1, 1, 3],
    )
    found = {figure.name: (figure.value, figure.unit, figure.n) for figure in scrape.figures(said, -0.5, 1.5)}
    assert found == {
        "server.running.mean": (3.0, "requests", 2),  # of the readings at 0 and 1
        "server.running.max": (4.0, "requests", 2),
        "server.kv_cache_use.max": (0.5, "share", 2),
        "server.prefix_cache_hits": (0.5, "share", 200),  # 100 of 200, from the reading at -1 to that at 2
        "server.preemptions": (2.0, "requests", None),
    }


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (readings(), set()),
        (readings(waiting=[7]), {"server.waiting.mean": "no reading fell into the measured part"}),
        (
            readings(prefix_cache_queries=[4, 4], prefix_cache_hits=[0, 0]),
            {"server.prefix_cache_hits": "no token was looked up"},
        ),
    ],
)
def test_what_was_not_read_is_not_made_up(said: pd.DataFrame, names: dict[str, str]) -> None:
    found = {figure.name: figure for figure in scrape.figures(said, 0.5, 1.5)}
    assert {name: found[name].reason for name in names} == dict(names)
    assert all(found[name].value is None for name in names)
    assert bool(found) == bool(names)
