"""How the command ends a run: signals, interrupts, closed streams and a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from builders import ENDLESS, KNOWN
from commands import Command

from harness.store.run import read_run


def command_line(tmp_path: Path, *overrides: str) -> tuple[list[str], Path]:
    """The command that runs the known workload, and where its run goes."""
    path, out = tmp_path / "known.yaml", tmp_path / "runs"
    path.write_text(KNOWN)
    words = (word for override in overrides for word in ("--set", override))
    return [sys.executable, "-m", "harness", "run", str(path), "--out", str(out), *words], out


Start = Callable[[list[str]], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a command whose errors can be read; one that still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def go(command: list[str]) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield go
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [
        (signal.SIGINT, 3, "interrupted"),
        (signal.SIGTERM, 3, "interrupted"),
        (signal.SIGHUP, 3, "interrupted"),  # the terminal was closed
        (signal.SIGKILL, -9, "interrupted"),
    ],
)
def test_a_run_ended_by_a_signal_can_be_read(
    harness: Command, start: Start, tmp_path: Path, number: signal.Signals, code: int, state: str
) -> None:
    command, out = command_line(tmp_path, *ENDLESS)
    process = start(command)
    journal = None
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        journal = next(out.glob("*/requests.jsonl"), None)
        if journal is not None and journal.stat().st_size > 20_000:
            break
        time.sleep(0.02)
    assert journal is not None
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    run = read_run(journal.parent)
    assert run.file.state == state
    assert run.requests["error"].isna().sum() > 20
    assert not [child for child in psutil.Process().children() if child.pid == process.pid]
    assert json.loads(harness("report", str(journal.parent), "--format", "json").out)
    assert "incomplete" in harness("report", str(journal.parent)).out


def test_an_interrupt_before_the_load_is_reported_as_such(start: Start, tmp_path: Path) -> None:
    command, _ = command_line(tmp_path, "engine.start_s=60")
    process = start(command)
    assert process.stderr is not None
    assert process.stderr.readline() == "starting …\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert "interrupted before the measured part began" in process.communicate(timeout=30)[1]
    assert process.returncode == 3


@pytest.mark.parametrize("third_s", [0.1, 0.3, 0.6])
def test_further_interrupts_end_with_a_message_and_without_a_traceback(
    start: Start, tmp_path: Path, third_s: float
) -> None:
    """Wherever they fall: the third in what reads the run, in what prints it, or in the exit."""
    command, out = command_line(tmp_path, *ENDLESS)
    process = start(command)
    assert process.stderr is not None
    for line, wait_s in (("measuring …\n", 0.2), ("stopping …\n", 0.0), ("", third_s)):
        while line and process.stderr.readline() != line:
            assert process.poll() is None
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    said = "interrupted: a run keeps what was measured until then; see `harness list runs`\n"
    assert (process.returncode, errors) in ((130, said), (3, "incomplete: interrupted while measuring\n"))
    assert read_run(next(out.glob("2*"))).file.state == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("module", ["harness.errors", "numpy"])
def test_a_signal_ends_any_verb_with_a_message_also_while_it_is_imported(
    tmp_path: Path, number: signal.Signals, module: str
) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "harness", "list", "workloads"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).rstrip().endswith(module):
            assert line
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in errors) == (130, False)
    assert "interrupted" in errors


IGNORED = """
import os, signal, sys, time, weakref
from harness.cli import app, on_signals
on_signals(app._interrupt)
sys.unraisablehook = app._interrupt_again
thing = type("Thing", (), {})()
ref = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
try:
    del thing
    time.sleep(30)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_in_a_callback_of_the_garbage_collector_is_not_lost() -> None:
    ended = subprocess.run([sys.executable, "-c", IGNORED], capture_output=True, text=True, check=False, timeout=20)
    assert (ended.stdout, ended.stderr) == ("interrupted\n", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(tmp_path: Path, closed: str) -> None:
    command, out = command_line(tmp_path, "requests.count=5")
    ended = subprocess.run(
        ["bash", "-c", f'exec "$@" {closed}', "-", *command], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)
    assert len(read_run(next(out.glob("2*"))).requests) == 5


def test_a_full_disk_ends_the_run_and_the_written_rows_can_be_read(tmp_path: Path) -> None:
    command, out = command_line(tmp_path, "requests.count=3000")
    limited = ["bash", "-c", 'ulimit -f 16; exec "$@"', "-", *command]
    ended = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, "error: cannot write to" in ended.stderr) == (2, True), ended.stderr
    assert "Traceback" not in ended.stderr
    run = read_run(next(out.glob("2*")))
    assert run.file.state != "complete"
    assert len(run.requests) > 10
