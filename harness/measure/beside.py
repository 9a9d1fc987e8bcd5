"""Is another run measured on this machine at the same time?"""

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

LOCK = Path(tempfile.gettempdir()) / "inference-cost-harness.lock"


class Beside:
    """A shared lock of all runs on one machine, held from the construction until `close`.

    Each run appends a byte, so that an earlier run sees a later one, also one that has ended. The kernel releases the
    lock when a process ends, however that happens. Where the file cannot be written, no other run is seen.
    """

    def __init__(self, path: Path = LOCK) -> None:
        self._file: int | None = None
        self._earlier, self._size = False, 0
        with contextlib.suppress(OSError):
            if not path.exists():  # O_CREAT on another user's file is refused in a directory for all users
                path.touch()
                path.chmod(0o666)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._earlier = True
            fcntl.flock(self._file, fcntl.LOCK_SH)
            os.write(self._file, b".")
            self._size = os.fstat(self._file).st_size

    def seen(self) -> bool:
        """Whether another run has overlapped with this one so far."""
        return self._file is not None and (self._earlier or os.fstat(self._file).st_size > self._size)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
