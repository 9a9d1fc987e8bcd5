"""engine.log: what the engine printed during a run."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

KEPT = b"(the engine was started for an earlier run, whose engine.log has its start)\n"


def last_line(log: Path) -> str:
    """The last line of a log without its prefix in brackets, at most 60 characters."""
    lines = log.read_bytes()[-2000:].decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    return "".join(filter(str.isprintable, last.rpartition("] ")[2]))[:60]


@contextlib.contextmanager
def output_to(path: Path, first: IO[bytes] | None = None) -> Iterator[None]:
    """Append the output of this process and its children to a file, so that an engine's log is stored with the run.

    `first` is the open log of the run that started a kept engine: the engine's processes write there until they end,
    and what they write meanwhile is appended at the end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    originals = [os.dup(1), os.dup(2)]
    if first is not None:
        first.seek(0, os.SEEK_END)
    try:
        with path.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in enumerate(originals, 1):
            os.dup2(original, number)
            os.close(original)
        if first is not None:
            with path.open("ab") as log:
                log.write(KEPT + first.read())
