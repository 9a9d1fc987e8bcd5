"""Find the weights for a model name, and describe them.

`resolve` turns the name a user typed into a directory or hub id that transformers and vLLM load. `identity` reads the
architecture, parameter counts and hash from the configuration and the safetensors headers. Neither imports torch: GGUF
files are converted in a child process, because forking an engine from a process with torch's threads can deadlock.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.config import data_yaml, near
from harness.errors import HarnessError
from harness.files import cache_root, data_rows, pip, write_cache
from harness.model import ModelIdentity
from harness.process import Child, Gone

CONVERTER = "1"
"""Version of the conversion below; part of the cache key, together with the version of transformers."""
_FORMS = "give a Hugging Face id, a local directory, a GGUF file, or a short name (`harness list models`)"
_DAMAGED = "download the file again if it is truncated, or set HARNESS_CACHE if the disk is full"
_HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_AUXILIARY = re.compile(r"(inv_freq|_scale|[._]scales|scale_inv|absmax|quant_map|qzeros|g_idx|zero_point)$|quant_state")
"""Names of auxiliary tensors in a checkpoint, which are not parameters."""
_BITS = {"I8": 8, "U8": 8, "I32": 32}
"""Integer types that quantised weights are packed in -> their width in bits."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that an engine can load, and what is known of them before: see `identity`."""

    name_or_path: str
    """A local directory or a hub id, as `from_pretrained` and vLLM's `model` accept it."""
    model: ModelIdentity
    """Its revision: the requested one of the hub (`id@revision`), or the one a Python package was built from."""


def short_names() -> dict[str, dict[str, str]]:
    """Short name of a model -> its row of data/short_names.csv.

    >>> short_names()["smollm2-135m"]["licence"]
    'Apache-2.0'
    """
    return {row["name"]: row for row in data_rows("short_names.csv")}


def resolve(asked: str) -> Weights:
    """The weights for a short name, a local directory, a GGUF file, or a hub id (`id@revision`).

    A GGUF file is converted to bfloat16 safetensors on first use, which takes seconds to minutes. Hub ids are returned
    unchanged: the engine downloads the model. Raises HarnessError for a path that does not exist, a directory without a
    model, a file that is damaged or not GGUF, and a missing package.

    >>> resolve("Qwen/Qwen3-0.6B@c1899de").model.revision
    'c1899de'
    """
    row = short_names().get(asked)
    if row is not None:
        return _packaged(asked, row)
    path, hub = Path(asked).expanduser(), _HUB_ID.fullmatch(asked)
    if path.is_dir() and asked:
        if not (path / "config.json").is_file():
            raise HarnessError(f"no model in '{asked}': it has no config.json", _FORMS)
        return Weights(str(path.resolve()), ModelIdentity(asked, str(path.resolve())))
    if path.is_file():
        directory, stored = _converted(path.resolve())
        return Weights(str(directory), ModelIdentity(asked, str(path.resolve()), stored_precision=stored))
    if hub is None or asked.startswith(".") or asked.endswith(".gguf"):
        raise HarnessError(f"no model at '{asked}'", f"check the path, or {_FORMS}")
    return Weights(hub["id"], ModelIdentity(asked, hub["id"], hub["revision"]))


def identity(weights: Weights, precision: str | None = None) -> ModelIdentity:
    """Describe the weights. Fields that cannot be determined are None: most of them for a hub id not in the cache.

    `precision` is the dtype that the engine computes in, if it differs from the configuration's. `weights_sha256` is
    the hash of the weights file; of several files, the hash of `sha256sum`'s output for them, sorted by name.
    """
    path, model = Path(weights.name_or_path), replace(weights.model, precision=precision)
    if not path.is_dir():
        snapshot = _snapshot(weights)
        if snapshot is None:
            return model
        path, model = snapshot, replace(model, revision=snapshot.name)
    top = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config = {**top, **(top.get("text_config") or {})}
    quantised = config.get("quantization_config") or {}
    files = _weight_files(path)
    sizes = _parameters(files, quantised, tied=bool(config.get("tie_word_embeddings")))
    lines = [f"{_sha256(file)}  {file.name}\n" for file in files]
    hash_of_hashes = hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None
    return replace(
        model,
        architecture=next(iter(top.get("architectures") or ()), None),
        parameters=sum(sizes.values()) if sizes else None,
        active_parameters=_active(sizes, config) if sizes else None,
        precision=precision or config.get("dtype") or config.get("torch_dtype"),
        stored_precision=model.stored_precision or quantised.get("quant_method"),
        weights_sha256=lines[0][:64] if len(lines) == 1 else hash_of_hashes,
        config=top,
    )


def hub_error(asked: str, exception: BaseException) -> HarnessError:
    """The HarnessError for an exception while an engine downloaded or loaded the model `asked`."""
    chain = [exception]
    while (link := chain[-1].__cause__ or chain[-1].__context__) and link not in chain:
        chain.append(link)
    text = " ".join(f"{' '.join(cls.__name__ for cls in type(link).__mro__)} {link}" for link in chain)
    row = next(row for row in data_yaml("hub_errors.yaml") if re.search(row["pattern"], text))
    known, page = short_names(), f"https://huggingface.co/{asked.partition('@')[0]}"
    meant, names = near(asked.lower(), known), ", ".join(known)
    fix = row["fix"].format(page=page, near=meant, forms=_FORMS, names=names)
    return HarnessError(f"model '{asked}' {row['what'].format(error=first_line(exception))}", fix)


def first_line(error: object) -> str:
    """The first line of an error message, or the exception's type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _packaged(asked: str, row: dict[str, str]) -> Weights:
    """The model inside a Python package, found without importing the package."""
    package = row["package"]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    path = Path(spec.origin).with_name(row["file"]) if spec and spec.origin else None
    if path is None or not path.is_file():
        what = f"model '{asked}' is in the package {package}, which is not installed or lacks {row['file']}"
        raise HarnessError(what, pip("--no-deps", package))
    directory, stored = _converted(path)
    source = f"{row['source']} ({package} {importlib.metadata.version(package)})"
    return Weights(str(directory), ModelIdentity(asked, source, row["revision"], stored_precision=stored))


def _converted(gguf: Path) -> tuple[Path, str]:
    """The directory with the converted GGUF file, and the type its weights were stored in. Converts on first use."""
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise HarnessError(f"'{gguf}' is not a GGUF file", _FORMS)
    missing = [name for name in ("torch", "transformers", "accelerate", "gguf") if not importlib.util.find_spec(name)]
    if missing:
        what = f"converting '{gguf}' needs {', '.join(missing)}"
        raise HarnessError(what, pip(*missing))
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
            _convert_in_child(gguf, final)
    return final, json.loads((final / "converted.json").read_text(encoding="utf-8"))["stored_precision"]


def _convert_in_child(gguf: Path, final: Path) -> None:
    """Run `convert` in a process that ends with this one, without a GPU."""
    print(f"converting {gguf.name} to bfloat16 safetensors (first use)", file=sys.stderr, flush=True)
    environment, silent = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}, subprocess.DEVNULL
    child = Child(convert, gguf, final, env=environment, stdout=silent, stderr=silent)
    try:
        answer = child.receive(None)
    except Gone as gone:
        answer = HarnessError(f"cannot convert '{gguf}': the process {gone} (out of memory?)", _DAMAGED)
    finally:
        child.end()
    if isinstance(answer, HarnessError):
        raise answer


def convert(pipe: Connection, gguf: Path, final: Path) -> None:
    """The main function of the process that converts: bfloat16 safetensors, configuration, tokenizer, chat template.

    HarnessError for a damaged file or a full disk.
    """
    folder, name, partial = str(gguf.parent), gguf.name, final.with_name(f"{final.name}.partial")
    try:
        import gguf as library
        import torch
        import transformers

        # Parsing takes seconds, and transformers parses once each for configuration, weights and tokenizer.
        library.GGUFReader = functools.cache(library.GGUFReader)
        field = library.GGUFReader(str(gguf)).get_field("general.file_type")
        stored = library.LlamaFileType(field.contents()).name.partition("_")[2] if field is not None else "unknown"
        shutil.rmtree(partial, ignore_errors=True)
        dense = transformers.GgufConfig(gguf_file=name, dequantize=True)
        how = {"gguf_file": name, "dtype": torch.bfloat16, "quantization_config": dense}
        transformers.AutoModelForCausalLM.from_pretrained(folder, **how).save_pretrained(partial)
        transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(partial)
        (partial / "converted.json").write_text(json.dumps({"stored_precision": stored, "file": name}))
        partial.rename(final)
    except Exception as error:
        raise HarnessError(f"cannot convert '{gguf}': {type(error).__name__}: {first_line(error)}", _DAMAGED) from error
    pipe.send("converted")


def _snapshot(weights: Weights) -> Path | None:
    """The model's directory in the hub's local cache, named by its commit; None if it is not cached."""
    with contextlib.suppress(ImportError):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(weights.name_or_path, "config.json", revision=weights.model.revision)
        return Path(found).parent if isinstance(found, str) else None
    return None


def _weight_files(directory: Path) -> list[Path]:
    """The weight files, sorted: those of the index, else model.safetensors, else all. Empty if a shard is missing."""
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = sorted(directory / shard for shard in shards)
        return files if all(file.is_file() for file in files) else []
    return [single] if single.is_file() else sorted(directory.glob("*.safetensors"))


def _parameters(files: list[Path], quantised: dict[str, Any], tied: bool) -> dict[str, int]:
    """Tensor -> number of parameters, from safetensors headers. Empty if the bits of packed weights are unknown.

    An output matrix tied to the input embeddings counts once, even if the files contain both.
    """
    tensors: dict[str, dict[str, Any]] = {}
    for file in files:
        with file.open("rb") as opened:
            tensors |= json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    tensors.pop("__metadata__", None)
    if tied and any(name.endswith("embed_tokens.weight") for name in tensors):
        tensors.pop("lm_head.weight", None)
    width = _width(quantised)
    kept = {name: tensor for name, tensor in tensors.items() if not _AUXILIARY.search(name)}
    sizes = {name: math.prod(each["shape"]) for name, each in kept.items() if each["dtype"] not in ("I64", "BOOL")}
    for name in sizes:
        if (bits := _BITS.get(kept[name]["dtype"])) is not None:
            if width is None:
                return {}
            sizes[name] = sizes[name] * bits // width
    return sizes


def _width(quantised: dict[str, Any]) -> int | None:
    """Bits per packed weight according to the configuration; None if not stated or not unique."""
    if quantised.get("quant_method") == "mxfp4" or quantised.get("load_in_4bit"):
        return 4
    groups = (quantised.get("config_groups") or {}).values()
    found = {quantised.get("bits"), *((group.get("weights") or {}).get("num_bits") for group in groups)} - {None}
    return found.pop() if len(found) == 1 else None


def _active(sizes: dict[str, int], config: dict[str, Any]) -> int | None:
    """Parameters used per token; None if a mixture of experts does not state its experts or those used per token.

    active = total - routed * (1 - used / held), where `routed` counts tensors with `.experts.` in their names. A dense
    model has active = total.
    """
    keys_held = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    keys_used = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k")
    held, used = (next((config[key] for key in keys if config.get(key)), None) for keys in (keys_held, keys_used))
    total, routed = sum(sizes.values()), sum(size for name, size in sizes.items() if ".experts." in name)
    if held is None and not routed:
        return total
    return total - routed + routed * used // held if held and used and routed else None


def _sha256(file: Path) -> str:
    """A file's hash, cached by path, size and modification time: hashing hundreds of gigabytes takes minutes."""
    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()
    cached = cache_root() / "sha256" / key
    with contextlib.suppress(OSError):
        return cached.read_text(encoding="ascii")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    write_cache(cached, digest)
    return digest
