"""Processes of an engine are killed when the harness ends, also by SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SLEEP = "import time; time.sleep(60)"
PARENT = f"""
import os, subprocess, sys, time
from harness.process import Descendants
sleep = [sys.executable, "-c", {SLEEP!r}]
before = subprocess.Popen(sleep)
started = Descendants()
child = subprocess.Popen([sys.executable, "-c", "import subprocess, sys, time; "
                          "print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); time.sleep(60)"],
                         stdout=subprocess.PIPE, text=True)
grandchild = child.stdout.readline().strip()
forked = os.fork()  # inherits copies of all open file descriptors
if forked == 0:
    time.sleep(60)
    os._exit(0)
MODE
print(before.pid, child.pid, grandchild, forked, started._watchdog.process.pid, flush=True)
time.sleep(60)
"""


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether the process ends in time. A zombie has ended."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("mode", "kill"),
    [
        ("started.settled()", True),  # during the measurement
        ("time.sleep(1)", True),  # during the engine's start, while the watchdog polls
        ("time.sleep(1); child.kill(); child.wait(); started.close()", False),  # a grandchild whose parent ended first
    ],
)
def test_processes_started_after_construction_are_killed(tmp_path: Path, mode: str, kill: bool) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.replace("MODE", mode))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert parent.stdout is not None
    before, *started = map(int, parent.stdout.readline().split())
    try:
        if kill:
            parent.kill()
            parent.wait()
        assert [gone(pid) for pid in started] == [True] * 4
        assert not gone(before, within_s=0.1)  # started before, so not the engine's
    finally:
        os.kill(before, signal.SIGKILL)
        parent.kill()
        parent.wait()
        parent.stdout.close()
