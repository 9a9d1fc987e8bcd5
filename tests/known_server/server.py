"""Builds the server, starts it, and asks it for the truth."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@functools.cache
def build() -> Path:
    """The compiled server, once a process."""
    place = tempfile.TemporaryDirectory(prefix="known-server-")
    atexit.register(place.cleanup)
    target = Path(place.name) / "known_server"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(target), str(HERE / "known_server.c")]
    subprocess.run(command, check=True)
    return target


@dataclass(frozen=True, slots=True)
class Known:
    """A running server."""

    url: str
    pid: int

    def truth(self) -> dict[str, Any]:
        """What it sent since it started, or since the last `reset`."""
        return self._get("/truth")

    def reset(self) -> None:
        self._get("/reset")

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            counts: dict[str, Any] = json.load(answer)
        return counts


@contextlib.contextmanager
def known_server(shares: Mapping[str, float] | None = None, core: int | None = None, **options: Any) -> Iterator[Known]:
    """`known_server({"cut": 0.1}, ttft_us=1000, itl_us=0)`: until the end of the block, on one processor core if named.

    `shares`: of the requests that fail, by kind.
    """
    arguments = [
        str(part)
        for name, value in (options | dict(shares or {})).items()
        for part in (f"--{name.replace('_us', '-us')}", value)
    ]
    pin = None if core is None else functools.partial(os.sched_setaffinity, 0, {core})
    with subprocess.Popen(
        [build(), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=pin
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield Known(f"http://127.0.0.1:{process.stdout.readline().strip()}", process.pid)
        finally:
            process.stdin.close()
            process.wait(10)
