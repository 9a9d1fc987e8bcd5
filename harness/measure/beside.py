"""Other runs on this machine at the same time: each run holds a lock on a file of its own while it lasts."""

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO

FORGET_S = 3600.0
"""Age at which the file of a run that has ended is deleted."""


class Beside:
    """Counts the runs that overlap with this one.

    The kernel releases a lock when its process ends, however that happens. A file outlives its run, so that a longer
    run sees one that began and ended meanwhile. Without a directory for the files, no other run is seen.
    """

    def __init__(self, place: Path | None = None) -> None:
        self.place = place or Path(tempfile.gettempdir()) / "inference-cost-harness-runs"
        self._file: IO[bytes] | None = None
        self._seen: set[str] = set()

    def __enter__(self) -> "Beside":
        with contextlib.suppress(OSError):
            self.place.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):  # made by another user
                self.place.chmod(0o1777)
            own = self.place / f"{os.getpid()}-{time.monotonic_ns()}"
            file = own.open("xb")
            fcntl.flock(file, fcntl.LOCK_EX)
            self._file, self._own, self._begun_s = file, own.name, own.stat().st_mtime
            self.count()
        return self

    def __exit__(self, *_: TracebackType | type[BaseException] | BaseException | None) -> None:
        if self._file is not None:
            self._file.close()

    def count(self) -> int:
        """Number of other runs that have overlapped with this one so far."""
        if self._file is None:
            return 0
        for path in self.place.iterdir():
            with contextlib.suppress(OSError):  # deleted meanwhile, or another user's
                begun_s = path.stat().st_mtime
                if path.name != self._own and (begun_s > self._begun_s or _locked(path)):
                    self._seen.add(path.name)
                elif path.name != self._own and time.time() - begun_s > FORGET_S:
                    path.unlink()
        return len(self._seen)


def _locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
