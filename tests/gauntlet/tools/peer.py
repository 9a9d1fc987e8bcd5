"""The form of a driver of another tool, and how one is installed and run."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gauntlet.tools import forks
from gauntlet.trap import Answer, Stand, Trap

LIMIT_S = 60
WORDS = ("so", "one", "two", "word", "größer", *(f"word{i}" for i in range(256)))
"""Words that the servers of traps send: a token each, so that a tool that counts text counts them rightly."""
WHOLE_RUN = "rates and latencies are those of the whole run, start and drain included"


@dataclass(frozen=True, slots=True)
class At:
    """Where a figure is in a tool's result."""

    path: str
    """Keys with dots between them; -1 is the last of a list."""
    scale: float = 1.0
    missing: float | None = None
    """The value where the tool writes none."""

    def of(self, content: Any) -> float | None:
        """The figure, or None.

        >>> At("a.-1.b", 1e-3).of({"a": [{"b": 20}]}), At("a.b").of({})
        (0.02, None)
        """
        for key in self.path.split("."):
            if isinstance(content, list) and content:
                content = content[int(key)]
            else:
                content = content.get(key) if isinstance(content, Mapping) else None
        return self.missing if content is None else float(content) * self.scale


def latencies(names: Mapping[str, str], keys: Iterable[str], form: str, scale: float = 1.0) -> dict[str, At]:
    """Where figures such as ttft_s.p50 are: `form` is the path of a {name}'s {key}, for the keys of mean, p50, p99.

    >>> latencies({"ttft_s": "ttft"}, ("avg",), "{name}.{key}")
    {'ttft_s.mean': At(path='ttft.avg', scale=1.0, missing=None)}
    """
    return {
        f"{figure}.{statistic}": At(form.format(name=name, key=key), scale)
        for figure, name in names.items()
        for statistic, key in zip(("mean", "p50", "p99"), keys, strict=False)
    }


@dataclass(frozen=True, slots=True)
class Peer:
    """Another tool: how to install it, to call it, and where its figures are."""

    name: str
    packages: tuple[str, ...]
    """Words for pip; the tool's own package is the last."""
    program: str
    """As a user types it."""
    code: str
    """What the program runs."""
    imports: str
    """A module that `code` needs; it is imported once for all traps."""
    command: Callable[[Trap, str, Path, str], Sequence[str]]
    """Words after the program, from the trap, the server's address, a directory for results, the tokenizer's path;
    none if it cannot send the trap's load."""
    result: str
    """Its result file, a pattern under that directory; the last one if several fit."""
    figures: Mapping[str, At]
    """By the names of docs/glossary.md, those that it has; the number of completed requests among them."""
    source: str
    """Where it defines its figures."""
    note: str = ""
    """What a reader must know of how it was installed or called."""
    defines: Mapping[str, str] = field(default_factory=dict)
    """Its own definition of a figure, where that differs from docs/method.md."""
    best: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """More words, by the name of a setting that its documentation recommends."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """More variables of its environment."""
    without: tuple[str, ...] = ()
    """Packages that are removed again: they need a GPU to be imported."""
    alone: bool = False
    """The last package is installed without those that it asks for."""


def install(peer: Peer, root: Path) -> Path:
    """The tool's environment under `root`, made from PyPI if it is not there yet. Raises RuntimeError if pip fails."""
    directory = root / peer.name
    if (directory / "bin" / "python").exists():
        return directory
    venv.create(directory, with_pip=True)
    *others, own = peer.packages
    steps = [["install", *others], ["install", "--no-deps", "--ignore-requires-python", own]]
    if not peer.alone:
        steps = [["install", *peer.packages], *([["uninstall", "-y", *peer.without]] if peer.without else [])]
    for words in steps:
        done = subprocess.run([directory / "bin" / "pip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(directory)
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return directory


def version(peer: Peer, environment: Path) -> str:
    """The installed version of the tool's own package."""
    code = f"import importlib.metadata as m; print(m.version({peer.packages[-1].partition('=')[0]!r}))"
    return subprocess.check_output([environment / "bin" / "python", "-c", code], text=True).strip()


def write_tokenizer(directory: Path) -> Path:
    """A tokenizer in Hugging Face's form: an ASCII letter is a token, and so is each of `WORDS` after a space."""
    directory.mkdir(parents=True, exist_ok=True)
    # Byte-level BPE writes a space as Ġ, a line's end as Ċ. Without merges, texts of random tokens read back as these.
    letters = ["Ġ", "Ċ", *map(chr, range(33, 127))]
    vocabulary = {letter: i for i, letter in enumerate(["<s>", *letters])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = [{"id": 0, "content": "<s>", **flags, "special": True}]
    added += [{"id": len(vocabulary) + i, "content": f" {word}", **flags} for i, word in enumerate(WORDS)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content = {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level}
    model = {"type": "BPE", "merges": [], "vocab": vocabulary}
    (directory / "tokenizer.json").write_text(json.dumps({**content, "model": model}))
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<s>")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 100_000}))
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": len(vocabulary)}))
    return directory


def answers(
    peer: Peer, environment: Path, tokenizer: Path, setting: str, trap: Trap, stand: Stand, scratch: Path
) -> Iterator[Answer]:
    """What the tool reports of the stand, once for each of the load's runs; nothing if it cannot measure there.

    Traps with options of this harness ask for something that the load's form has no word for, and those without a
    truth ask for a finding of this harness.
    """
    if stand.url is None or trap.options or not trap.truths:
        return
    variables = {**_variables(peer, environment), "HOME": str(scratch)}
    for run in range(trap.load.runs):
        out = scratch / f"{run}"
        out.mkdir(parents=True)
        words = peer.command(trap, stand.url, out, str(tokenizer))
        if not words:
            return
        words = [*words, *peer.best.get(setting, ())]
        told = [*(f"{name}={value}" for name, value in peer.variables.items()), *peer.program.split(), *words]
        (scratch / "command").write_text(shlex.join(told))
        ended = _run(peer, environment, words, out, variables, stand.core)
        found = sorted(out.glob(peer.result))
        content = _content(found[-1]) if found else {}
        figures = {name: x for name, at in peer.figures.items() if (x := at.of(content)) is not None}
        yield Answer(figures, refused=_failure(ended, figures, out / "printed"))


def _variables(peer: Peer, environment: Path) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = {"TOKENIZERS_PARALLELISM": "false", "PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
    return {**others, **found, **peer.variables}


PARENTS: dict[str, subprocess.Popen[str]] = {}
"""By tool: the process that has imported it, until this one ends."""


def _run(
    peer: Peer, environment: Path, words: Sequence[str], out: Path, variables: Mapping[str, str], core: int | None
) -> str:
    """Run the tool in `out`, where its output is the file `printed`; returns what went wrong, or nothing."""
    if peer.name not in PARENTS:
        PARENTS[peer.name] = subprocess.Popen(
            [environment / "bin" / "python", "-P", forks.__file__, peer.imports], env=_variables(peer, environment),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
    calls, answers = PARENTS[peer.name].stdin, PARENTS[peer.name].stdout
    assert calls is not None
    assert answers is not None
    call = {"code": peer.code, "words": [peer.program, *words], "directory": str(out), "core": core}
    print(json.dumps({**call, "variables": dict(variables)}), file=calls, flush=True)
    begun, late = answers.readline(), threading.Event()
    if not begun:
        raise RuntimeError(f"{peer.imports} cannot be imported")
    group = int(begun)

    def kill() -> None:
        late.set()
        os.killpg(group, signal.SIGKILL)

    timer = threading.Timer(LIMIT_S, kill)
    timer.start()
    code = int(answers.readline())
    timer.cancel()
    with contextlib.suppress(ProcessLookupError):  # workers that it left
        os.killpg(group, signal.SIGKILL)
    if late.is_set():
        return f"no end within {LIMIT_S} s"
    return f"exit code {code}" if code else ""


def _failure(ended: str, figures: Mapping[str, float], printed: Path) -> str | None:
    """Why figures are no result, or None: the tool failed, or none of its requests completed by its own count."""
    if not ended and figures.get("requests.completed"):
        return None
    lines = [line.strip() for line in printed.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "error" in line.lower()]
    counts = [f"{figures[name]:g} {name}" for name in ("requests.completed", "requests.failed") if name in figures]
    return ", ".join([*([ended, *errors[-1:]] if ended else ["no request completed"]), *counts])[:200]


def _content(path: Path) -> Any:
    """Of JSON, or the last line of JSON lines."""
    text = path.read_text()
    return json.loads(text.splitlines()[-1] if path.suffix == ".jsonl" else text)
