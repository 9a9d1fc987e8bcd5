"""A parent that is killed with -9 takes the processes along that it started under watch."""

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
watched = Descendants()
child = subprocess.Popen([sys.executable, "-c", "import subprocess, sys, time; "
                          "print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); time.sleep(60)"],
                         stdout=subprocess.PIPE, text=True)
grandchild = child.stdout.readline().strip()
forked = os.fork()  # which has copies of what this process has open
if forked == 0:
    time.sleep(60)
    os._exit(0)
MODE
print(before.pid, child.pid, grandchild, forked, watched._watcher.process.pid, flush=True)
time.sleep(60)
"""


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether the process ends in time; one that only waits to be reaped has ended."""
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
        ("watched.settled()", True),  # while it measures
        ("time.sleep(1)", True),  # while the engine starts: the listing goes on
        ("time.sleep(1); child.kill(); child.wait(); watched.close()", False),  # a grandchild whose parent died before
    ],
)
def test_what_was_started_under_watch_is_killed(tmp_path: Path, mode: str, kill: bool) -> None:
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
        assert not gone(before, within_s=0.1)  # what ran before is not the engine's
    finally:
        os.kill(before, signal.SIGKILL)
        parent.kill()
        parent.wait()
        parent.stdout.close()
