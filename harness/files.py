"""Package data, users' files, versions of installed packages, and the user's cache directory."""

import contextlib
import csv
import gzip
import hashlib
import io
import os
import shlex
import sys
import zlib
from importlib import metadata, resources
from pathlib import Path

from harness.errors import HarnessError

PACKAGE = Path(str(resources.files("harness")))
MOST_BYTES = 2**30
"""Largest text that is read, decompressed."""


def data_path(name: str) -> Path:
    """Path of a file in harness/data."""
    return PACKAGE / "data" / name


def read_data(name: str) -> str:
    """Text of a file in harness/data."""
    return data_path(name).read_text(encoding="utf-8")


def data_rows(name: str) -> list[dict[str, str]]:
    """The rows of a shipped table in CSV."""
    return list(csv.DictReader(io.StringIO(read_data(name))))


def results_root(root: str | Path) -> Path:
    """The directory of runs. HarnessError for a URL."""
    if "://" in str(root):
        raise HarnessError(f"'{root}' is a URL, not a directory", "mount the store, or sync it to a directory")
    return Path(root)


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, plain or .gz. HarnessError if it cannot be read, or has more than `MOST_BYTES`."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise HarnessError(f"cannot read {path}: no such file", "check the path and the current directory") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: not UTF-8, or a null byte in the name
        raise HarnessError(f"cannot read {path}: {error}", "give a readable UTF-8 text file") from None


def text_digest(path: Path) -> str:
    """SHA-256 of the text of a file, as `read_text` gives it."""
    return hashlib.sha256(read_text(path).encode()).hexdigest()


def install(extra: str) -> str:
    """The command that adds an extra to this environment: from the checkout, or else by the names of its packages."""
    asked = ["-e", f"{PACKAGE.parent}[{extra}]"]
    if not (PACKAGE.parent / "pyproject.toml").is_file():
        needs = [each.partition(";") for each in metadata.requires("inference-cost-harness") or ()]
        asked = [name.strip() for name, _, when in needs if when.replace("'", '"').strip() == f'extra == "{extra}"']
    return pip(*asked)


def pip(*packages: str) -> str:
    """The command that installs packages into this environment, whichever `pip` is first on the PATH."""
    return shlex.join([sys.executable, "-m", "pip", "install", *packages])


def installed_version(package: str) -> str | None:
    """The version of an installed Python package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cache_root() -> Path:
    """Directory of converted models, hashes and sensor periods: HARNESS_CACHE, else in XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("HARNESS_CACHE"):
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inference-cost-harness"


def write_cache(path: Path, text: str) -> None:
    """Write a cache file atomically: temporary name, then rename. Write errors are ignored, a cache only saves time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
