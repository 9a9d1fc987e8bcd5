"""Roots in an object store (s3://, gs://, any URL of fsspec): mirrored here, and finished runs sent back.

A verb works on the mirror as on any root. `opened` brings what is new there, `send` takes what is new here; a run is
written once, so that a file of the same size is the same file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

from harness import store, weights
from harness.errors import HarnessError

_open: dict[Path, str] = {}
"""Mirror -> URL of the roots that this process has opened."""


def opened(url: str) -> Path:
    """The mirror of the root at this URL, with every run that is there. HarnessError where it cannot be reached."""
    mirror = weights.cache_root() / "stores" / hashlib.sha256(url.encode()).hexdigest()[:16]
    mirror.mkdir(parents=True, exist_ok=True)
    fs, root = _reach(url)
    for path, about in _files(fs, root, url).items():
        local = mirror / path
        if not local.is_file() or local.stat().st_size != about["size"]:
            local.parent.mkdir(parents=True, exist_ok=True)
            partial = local.with_name(f".{local.name}.part")
            fs.get_file(about["name"], str(partial))
            partial.rename(local)
    _open[mirror] = url
    return mirror


def send() -> None:
    """Take to each opened root the runs that ended here and are not whole there; run.json, which shows a run, last."""
    for mirror, url in _open.items():
        fs, root = _reach(url)
        there = _files(fs, root, url)
        for directory, file in store.list_runs(mirror):
            if isinstance(file, HarnessError) or file.state == "running":
                continue
            for path in sorted(directory.iterdir(), key=lambda each: each.name == "run.json"):
                name = str(PurePosixPath(directory.name, path.name))
                if path.is_file() and there.get(name, {}).get("size") != path.stat().st_size:
                    fs.makedirs(f"{root}/{directory.name}", exist_ok=True)
                    fs.put_file(str(path), f"{root}/{name}")


def _reach(url: str) -> tuple[Any, str]:
    try:
        import fsspec

        fs, root = fsspec.core.url_to_fs(url)
    except ImportError as absent:
        scheme = url.partition("://")[0]
        fix = f"pip install fsspec and what it needs for {scheme}:// (s3fs, gcsfs, adlfs…)"
        raise HarnessError(f"{url}: {absent}", fix) from None
    except Exception as refused:  # each store has errors of its own
        raise HarnessError(f"{url}: {refused}", "give a directory, or a URL such as s3://bucket/results") from None
    return fs, root.rstrip("/")


def _files(fs: Any, root: str, url: str) -> dict[str, Any]:
    """Path below the root -> name and size of every file of a run there."""
    try:
        fs.invalidate_cache()
        found = fs.find(root, detail=True) if fs.exists(root) else {}
    except Exception as refused:
        reason = str(refused).strip() or type(refused).__name__
        raise HarnessError(f"{url}: {reason}", "check the name, the network and the credentials") from None
    paths = {name.removeprefix(root).lstrip("/"): about for name, about in found.items()}
    return {path: about for path, about in paths.items() if path.count("/") == 1 and not path.startswith(".")}
