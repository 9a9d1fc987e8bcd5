"""Access to stored files: whatever goes wrong becomes one HarnessError that names the file and the cause."""

import contextlib
import csv
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from harness.errors import HarnessError, system_refused

RESTORE = "restore the file, or measure the run again"
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    *(csv.Error, pa.ArrowException),
)
"""What reading and computing raise on content that no run can have."""
MOST_BYTES = 1 << 28
"""Largest JSON file of a run that is read."""


@contextlib.contextmanager
def reading(path: Path, what: str = "cannot be read", fix: str = RESTORE) -> Iterator[None]:
    """Turns damaged content, refused access and want of memory into a HarnessError; only damage is the run's fault."""
    try:
        yield
    except (OSError, MemoryError) as refused:
        raise system_refused(f"{path} {what}", refused, fix) from None
    except DAMAGE as damaged:
        raise HarnessError(f"{path} {what}: {_words(damaged)}", fix) from None


def _words(damaged: Exception) -> str:
    match damaged:
        case KeyError():
            return f"it lacks {damaged}"
        case ValueError() | pa.ArrowException() | csv.Error():
            return str(damaged)
    return f"{type(damaged).__name__}: {damaged}"


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turns an OSError into a HarnessError that names the directory."""
    try:
        yield
    except OSError as refused:
        fix = "name another directory with --root; `harness report` reads what was written"
        raise system_refused(f"cannot write to {directory}", refused, fix) from None


def read_bytes(path: Path) -> bytes:
    """The content of a file of at most MOST_BYTES. OSError, or ValueError for what is not a regular file.

    A FIFO or a device would block, or never end.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} bytes")
    return content
