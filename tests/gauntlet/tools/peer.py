"""The form of a driver of another tool, and how one is installed and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gauntlet.trap import Answer, Stand, Trap

LIMIT_S = 60
WORDS = ("so", "one", "two", "word", "größer", *(f"word{i}" for i in range(256)))
"""Words that the servers of traps send: a token each, so that a tool that counts text counts them rightly."""
WHOLE_RUN = "rates and latencies are those of the whole run, start and drain included"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another tool: how to install it, to call it, and to read what it reports."""

    name: str
    packages: tuple[str, ...]
    """Words for pip."""
    command: Callable[[Trap, str, Path, str], Sequence[str]]
    """Words of its command line, from the trap, the server's address, a directory for results, the tokenizer's path."""
    result: str
    """Where its result file is, a pattern under that directory; the last one if several fit."""
    read: Callable[[Mapping[str, Any]], Mapping[str, float | None]]
    """Figures by the names of docs/glossary.md; without those that it has not."""
    source: str
    """Where it defines its figures."""
    defines: Mapping[str, str] = field(default_factory=dict)
    """Its own definition of a figure, where that differs from docs/method.md."""
    best: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """More words, by the name of a setting that its documentation recommends."""
    python: str = "python3"
    no_dependencies: tuple[str, ...] = ()
    """Packages that are installed without what they ask for."""


def at(content: Any, path: str, scale: float = 1.0) -> float | None:
    """The number at a dotted path, or None; keys with a dot in them do not occur.

    >>> at({"a": {"b": 20}}, "a.b", 1e-3), at({}, "a.b")
    (0.02, None)
    """
    for key in path.split("."):
        content = content.get(key) if isinstance(content, Mapping) else None
    return None if content is None else float(content) * scale


def latencies(content: Any, paths: Mapping[str, str], keys: Mapping[str, str], scale: float) -> dict[str, float | None]:
    """Figures such as ttft_s.p50: `paths` by latency, and the key of each statistic below them."""
    return {
        f"{name}.{statistic}": at(content, f"{path}.{key}", scale)
        for name, path in paths.items()
        for statistic, key in keys.items()
    }


def install(peer: Peer, root: Path) -> Path:
    """The tool's environment under `root`, made from PyPI if it is not there yet. Raises RuntimeError if pip fails."""
    directory = root / peer.name
    if (directory / "bin" / "python").exists():
        return directory
    python = shutil.which(peer.python)
    if python is None:
        raise RuntimeError(f"needs {peer.python}")
    subprocess.run([python, "-m", "venv", str(directory)], check=True)
    for words in (peer.packages, *([("--no-deps", *peer.no_dependencies)] if peer.no_dependencies else [])):
        done = subprocess.run(
            [directory / "bin" / "pip", "install", "-q", *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            shutil.rmtree(directory)
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return directory


def version(peer: Peer, environment: Path) -> str:
    """The installed version of the tool's own package, the last that is named."""
    package = (*peer.packages, *peer.no_dependencies)[-1].partition("=")[0]
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run(
        [environment / "bin" / "python", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


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

    Traps with options of this harness ask for something that the load's form has no word for.
    """
    if stand.url is None or trap.options:
        return
    variables = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "HOME": str(scratch),
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
    }
    variables.pop("PYTHONPATH", None)
    for run in range(trap.load.runs):
        out = scratch / f"{run}"
        out.mkdir(parents=True)
        words = [*peer.command(trap, stand.url, out, str(tokenizer)), *peer.best.get(setting, ())]
        (scratch / "command").write_text(" ".join(words))
        with (out / "printed").open("w") as printed:
            try:
                pin = [] if stand.core is None else ["taskset", "-c", str(stand.core)]
                done = subprocess.run(
                    [*pin, environment / "bin" / words[0], *words[1:]],
                    cwd=out, env=variables, stdout=printed, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    timeout=LIMIT_S, check=False,
                )  # fmt: skip
                how = f"exit code {done.returncode}"
            except subprocess.TimeoutExpired:
                how = f"no end within {LIMIT_S} s"
        found = sorted(out.glob(peer.result))
        if not found:
            yield Answer({}, refused=f"no result: {how}")
            continue
        yield Answer({name: x for name, x in peer.read(_content(found[-1])).items() if x is not None})


def _content(path: Path) -> Any:
    """Of JSON, or the last line of JSON lines."""
    text = path.read_text()
    return json.loads(text.splitlines()[-1] if path.suffix == ".jsonl" else text)
