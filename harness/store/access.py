"""Access to stored files: whatever goes wrong becomes one HarnessError that names the file and the cause.

Journals have one row per line, passed to the operating system at once, so that a killed run can still be read. They are
written with orjson because the load loop writes there: a request with 64 arrivals takes 6 us, with the standard library
39 us (with one arrival 3.4 us and 11 us).
"""

import contextlib
import csv
import dataclasses
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from harness.errors import HarnessError, system_refused
from harness.model import PowerSample, Record, ServerSample

Row = Record | PowerSample | ServerSample
RESTORE = "restore the file, or measure the run again"
KEPT = "name another directory with --root; `harness report` reads what was written"
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
def writing(path: Path, fix: str = KEPT) -> Iterator[None]:
    """Turns an OSError into a HarnessError that names the file, or the directory of runs."""
    try:
        yield
    except OSError as refused:
        raise system_refused(f"cannot write to {path}", refused, fix) from None


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


class Journal:
    """An append-only file of rows. HarnessError if it cannot be written; rows written before can still be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path.parent):
            self._file = path.open("wb")

    def add(self, *rows: Row) -> None:
        """Write the rows, and flush them to the operating system."""
        try:
            self._file.writelines(map(_line, rows))
            self._file.flush()
        except OSError as refused:
            with writing(self.path.parent):
                raise refused

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


def journalled(path: Path) -> Iterator[Any]:
    """The rows of a journal, without an incomplete last line; None for a line that is not JSON."""
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            try:
                yield orjson.loads(line)
            except ValueError:
                yield None


def _line(row: Row) -> bytes:
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # half of a surrogate pair in a text from a server
        text = json.dumps(dataclasses.asdict(row), ensure_ascii=False)
        return text.encode("utf-8", "replace") + b"\n"
