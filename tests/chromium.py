"""A page in headless Chromium, driven over the DevTools protocol through two pipes; no package is needed for it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Page:
    """One tab. `complaints` are what the console, scripts and policies said; `requests` every address asked for."""

    to: IO[bytes]
    answers: Iterator[dict[str, Any]]
    session: str | None = None
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command; what else arrives until then is kept."""
        number = next(self.numbers)
        session = {} if self.session is None else {"sessionId": self.session}
        self.to.write(json.dumps({"id": number, "method": method, "params": parameters} | session).encode() + b"\0")
        self.to.flush()
        answer = self._until(lambda message: message.get("id") == number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path) -> None:
        """Load a file, and wait until all that it asks for is there."""
        self.complaints.clear()
        self.requests.clear()
        self.call("Page.navigate", url=path.as_uri())
        self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def size(self, width: int, height: int = 900, scale: float = 1) -> None:
        """Give the tab that many CSS pixels; below 600 it is a phone."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )

    def screenshot(self, path: Path, whole: bool = True) -> None:
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _until(self, wanted: Any) -> dict[str, Any]:
        for message in self.answers:
            kind, about = message.get("method"), message.get("params", {})
            if kind in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(about))
            if kind == "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
            if wanted(message):
                return message
        raise RuntimeError("chromium is gone")


@contextmanager
def page(profile: Path) -> Iterator[Page]:
    """A tab of a Chromium of its own, which keeps its files under `profile`."""
    assert PROGRAM is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    options = f"--headless --no-sandbox --disable-gpu --no-first-run --user-data-dir={profile} --remote-debugging-pipe"
    shell = f"exec {PROGRAM} {options} 3<&{theirs_in} 4>&{theirs_out} 2>{profile}.log"
    with subprocess.Popen(["bash", "-c", shell], pass_fds=(theirs_in, theirs_out)) as process:
        os.close(theirs_in)
        os.close(theirs_out)
        with os.fdopen(ours_out, "wb") as to, os.fdopen(ours_in, "rb") as back:
            tab = Page(to, _messages(back))
            target = tab.call("Target.createTarget", url="about:blank")["targetId"]
            tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                tab.call(f"{domain}.enable")
            try:
                yield tab
            finally:
                process.terminate()


def _messages(back: IO[bytes]) -> Iterator[dict[str, Any]]:
    waiting = b""
    while read := os.read(back.fileno(), 1 << 20):
        *whole, waiting = (waiting + read).split(b"\0")
        yield from map(json.loads, whole)
