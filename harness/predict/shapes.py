"""Shapes of models: what a step must read and compute, from Hugging Face's config.json or a row of models.csv."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from harness.config import near
from harness.cost.gpus import read_rows
from harness.errors import HarnessError
from harness.files import data_rows, read_text

Config = Mapping[str, Any]
PRECISIONS = {row["precision"]: float(row["bytes"]) for row in data_rows("precisions.csv")}
"""Bytes per weight, scales included: 16 bits for 32 int4 weights, 8 bits for 32 mxfp4 or 16 nvfp4 weights."""
WORDS = {word: row["precision"] for row in data_rows("precisions.csv") for word in row["also"].split()}
"""Other names of precisions, as configurations and engines write them."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A row of models.csv. Parameters are counts; `kv_layers` include `window_layers`; MLA has one cache head."""

    name: Annotated[str, Field(validation_alias="model")]
    also: Annotated[frozenset[str], BeforeValidator(lambda names: frozenset(names.split(";")) if names else ())]
    """Names of hub repositories with the same shape."""
    kind: str
    """dense, moe, mla moe, hybrid or hybrid moe."""
    layers: float
    hidden: float
    heads: float
    head_dim: float
    kv_layers: float
    kv_heads: float
    kv_values: float
    """Values that one attention layer caches for a token."""
    window_layers: float
    window: float
    """Tokens that a windowed layer looks back at most."""
    state_values: float
    """Values of the recurrent state of one sequence, all layers: linear attention and state-space layers."""
    experts: float
    experts_active: float
    moe_layers: float
    total_params: float
    expert_params: float
    """Parameters of all routed experts."""
    vocab: float
    embed_params: float
    """Input embedding that a step looks up instead of reading; 0 if the output layer shares it."""
    precision: str
    """Of the weights as published."""
    source: str

    @property
    def active_params(self) -> float:
        """Parameters that one token is multiplied with."""
        routed = self.expert_params * self.experts_active / self.experts if self.experts else 0.0
        return self.total_params - self.expert_params - self.embed_params + routed


TAILS = r"instruct|it|chat|hf|thinking|base|fp8|fp4|nvfp4|mxfp4|bf16|awq|gptq|int4|w4a16|dynamic|2507|0528|0324|v0.\d"
"""Words of a name that do not change the shape."""


@lru_cache(maxsize=1)
def models() -> tuple[ModelShape, ...]:
    """The rows of models.csv."""
    return read_rows("models.csv", ModelShape)


def plain(name: str) -> str:
    """A model's name without organisation, punctuation and the words that do not change its shape."""
    short = re.sub(r"[^a-z0-9.]+", "-", name.rpartition("/")[2].lower())
    while (shorter := re.sub(rf"-({TAILS})\b", "", short)) != short:
        short = shorter
    return short.removeprefix("meta-").removeprefix("nvidia-").strip("-")


def find_model(name: str) -> ModelShape | None:
    """The shape of this name or hub id; None: not in the table."""
    known, short = models(), name.rpartition("/")[2]
    exact = (each for each in known if short.lower() in {each.name.lower(), *(also.lower() for also in each.also)})
    near = (each for each in known if plain(name) in {plain(each.name), *map(plain, each.also)})
    return next(exact, None) or next(near, None)


@lru_cache(maxsize=256)
def family(m: ModelShape) -> str:
    """The first row of models.csv that differs from a model in weights alone, by which points are pooled; or its name.

    >>> [family(shape_of(name)) for name in ("Llama-3.3-70B-Instruct", "Kimi-K2.6", "DeepSeek-V3.2")]
    ['Llama-3.1-70B', 'Kimi-K2.5', 'DeepSeek-V3.2']
    """
    alike = [row for row in models() if SIZES(row) == SIZES(m)]
    same = [row for row in alike if row.total_params == m.total_params]
    return (same or alike or [m])[0].name


SIZES = attrgetter("kind", "layers", "hidden", "heads", "kv_heads", "experts", "experts_active", "vocab")


def shape_of(reference: str) -> ModelShape:
    """The shape of a model: config.json or its directory, a row of models.csv, or a hub id in the local cache.

    HarnessError with the nearest names for a model that is none of these.
    """
    path = Path(reference or " ")
    config = path / "config.json" if path.is_dir() else path if path.is_file() else None
    if config is None and (found := find_model(reference)):
        return found
    config = config or _cached(reference)
    if config is None:
        advice = near(reference.rpartition("/")[2], [name for each in models() for name in (each.name, *each.also)])
        fix = f"{advice}harness/data/models.csv has them all; or give the path of its config.json"
        raise HarnessError(f"model '{reference}' is not in the table", fix)
    try:
        content = json.loads(read_text(config))
    except ValueError as bad:
        what = f"{config} is not a configuration of a language model ({bad})"
        raise HarnessError(what, "give a config.json") from None
    return described(content, path.resolve().name if path.is_dir() else path.stem or reference, str(config))


def described(content: Config, name: str, source: str) -> ModelShape:
    """`from_config`, with a HarnessError for what is not the configuration of a language model."""
    try:
        return from_config(content, name, source)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as bad:
        what = f"{source} is not a configuration of a language model ({type(bad).__name__}: {bad})"
        raise HarnessError(what, "give a config.json with num_hidden_layers, hidden_size and vocab_size") from None


def _cached(reference: str) -> Path | None:
    """config.json of a hub id in Hugging Face's cache; the network is not asked."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
    found = (home / "hub" / f"models--{reference.replace('/', '--')}").glob("snapshots/*/config.json")
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def precision_of(name: Any) -> str:
    """The precision in the names of `PRECISIONS`. HarnessError if it is unknown."""
    word = str(name or "bf16").lower()
    if (found := WORDS.get(word, word)) not in PRECISIONS:
        raise HarnessError(f"unknown precision '{name}'", f"use one of {', '.join(PRECISIONS)}")
    return found


MIXED = dict(zip("M*-E", ("linear", "full", "mlp", "moe"), strict=True))
MIXED |= {"mamba": "linear", "attention": "full", "mlp": "mlp", "moe": "moe"}
"""Kinds of Nemotron-H's layers, by letter in hybrid_override_pattern and by name in layers_block_type (since 2026)."""


def from_config(top: Config, name: str, source: str) -> ModelShape:
    """The shape that a config.json describes. KeyError if a needed entry is missing."""
    c = {**top, **(top.get("text_config") or top.get("llm_config") or {})}
    mixed = [MIXED[each] for each in c.get("layers_block_type") or c.get("hybrid_override_pattern") or ()]
    layers, hidden = len(mixed) or int(c["num_hidden_layers"]), int(c["hidden_size"])
    heads = int(c["num_attention_heads"])
    head_dim = int(c.get("head_dim") or hidden // heads)
    sizes = (layers, hidden, heads, head_dim, int(c["vocab_size"]))
    if min(sizes) < 1 or max(sizes) > 10_000_000:
        raise ValueError("a size below 1, or above 10 million")
    kinds = mixed or _layer_kinds(c, layers)
    attention, linear = kinds.count("full") + kinds.count("window"), kinds.count("linear")
    kv_heads = int(c.get("num_key_value_heads") or heads)
    lora = c.get("kv_lora_rank")
    if lora:
        kv_values, kv_heads, attention_params = float(lora + c["qk_rope_head_dim"]), 1, _latent_params(c, hidden, heads)
    else:
        kv_values = kv_heads * float(head_dim + int(c.get("v_head_dim") or head_dim))
        gate = heads if c.get("attn_output_gate") else 0
        attention_params = hidden * head_dim * (2 * heads + gate + 2 * kv_heads)
    if ratios := c.get("compress_ratios"):  # DeepSeek-V4: keys and values of some tokens only, low-rank output
        kv_values = head_dim * sum(1 / max(1, ratio) for ratio in ratios[:layers]) / layers
        low, groups, rank = int(c["o_lora_rank"]), int(c["o_groups"]), int(c["q_lora_rank"])
        attention_params = rank * (hidden + heads * head_dim) + low * (heads * head_dim + groups * hidden)
        attention_params += hidden * head_dim
    known = {row["size"]: int(_first(c, *row["keys"].split()) or 0) for row in data_rows("config_keys.csv")}
    experts, width, shared_experts = known["experts"], known["expert_width"], known["shared_experts"]
    matrices = 2 if mixed else 3  # Nemotron-H has no gate
    moe_layers = 0 if not experts else kinds.count("moe") if mixed else _moe_layers(c, layers)
    expert_params = float(matrices * (known["expert_inner"] or hidden) * width * experts * moe_layers)
    shared = known["shared_width"] or width * (shared_experts or (c.get("model_type") == "llama4_text"))
    dense_layers = kinds.count("mlp") if mixed else layers - moe_layers
    state, linear_params = _linear(c, hidden)
    vocab = int(c["vocab_size"]) * hidden
    tied = bool(c.get("tie_word_embeddings", False))
    total = expert_params + attention * attention_params + linear * linear_params + vocab * (1 if tied else 2)
    total += hidden * (moe_layers * (matrices * shared + experts) + dense_layers * matrices * known["dense_width"])
    routing = ("mla " if lora else "") + "moe" if experts else "dense"
    kind = "hybrid" + (" moe" if experts else "") if linear else routing
    return ModelShape(
        name, frozenset(), kind, layers, hidden, heads, head_dim, attention, kv_heads, kv_values, kinds.count("window"),
        known["window"], float(state * linear), experts, known["experts_active"], moe_layers, float(total),
        expert_params, int(c["vocab_size"]), 0.0 if tied else float(vocab), _native(top, c), source,
    )  # fmt: skip


def _first(c: Config, *names: str) -> Any:
    return next((c[name] for name in names if c.get(name)), None)


def _layer_kinds(c: Config, layers: int) -> list[str]:
    """full, window or linear for each layer."""
    if given := c.get("layer_types"):
        known = {"sliding_attention": "window", "chunked_attention": "window", "linear_attention": "linear"}
        return [known.get(kind, "full") for kind in given]
    if linear := c.get("linear_attn_config"):
        full = set(linear["full_attn_layers"])
        return ["full" if i + 1 in full else "linear" for i in range(layers)]
    if pattern := c.get("hybrid_layer_pattern"):
        return ["window" if windowed else "full" for windowed in pattern]
    other, every = "linear", c.get("full_attention_interval")
    if not every:
        of_type = {"gemma2": 2, "llama4_text": 4}.get(str(c.get("model_type")), 1)
        other, every = "window", (c.get("sliding_window") and c.get("sliding_window_pattern")) or of_type
    return ["full" if (i + 1) % every == 0 else other for i in range(layers)]


def _moe_layers(c: Config, layers: int) -> int:
    every = _first(c, "interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq") or 1
    if isinstance(every, list):
        return sum(every)
    return (layers - int(c.get("first_k_dense_replace") or 0) - len(c.get("mlp_only_layers") or ())) // int(every)


def _latent_params(c: Config, hidden: int, heads: int) -> int:
    """Parameters of one layer of multi-head latent attention (DeepSeek-V2)."""
    names = "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"
    nope, rope, value, lora = (int(c[name]) for name in names)
    rank = int(c.get("q_lora_rank") or 0)
    query = rank * (hidden + heads * (nope + rope)) if rank else hidden * heads * (nope + rope)
    return query + hidden * (lora + rope) + lora * heads * (nope + value) + heads * value * hidden


def _linear(c: Config, hidden: int) -> tuple[int, int]:
    """State values of one sequence and parameters, of one linear-attention or state-space layer."""
    if "mamba_num_heads" in c:
        inner, state = int(c["mamba_num_heads"] * c["mamba_head_dim"]), int(c.get("ssm_state_size") or 128)
        return inner * state, hidden * (3 * inner + 2 * int(c.get("n_groups") or 1) * state)
    if "linear_num_value_heads" in c:
        keys = int(c["linear_num_key_heads"] * c["linear_key_head_dim"])
        values = int(c["linear_num_value_heads"] * c["linear_value_head_dim"])
        return values * int(c["linear_key_head_dim"]), hidden * (2 * keys + 3 * values)
    heads, dim = int(c["num_attention_heads"]), int((c.get("linear_attn_config") or {}).get("head_dim") or 128)
    return heads * dim * dim, 4 * hidden * heads * dim


def _native(top: Config, c: Config) -> str:
    """The precision of the weights that the configuration states."""
    said = top.get("quantization_config") or c.get("quantization_config") or {}
    text, method = json.dumps(said).lower(), str(said.get("quant_method", ""))
    if "mxfp4" in text or c.get("expert_dtype") == "fp4":
        return "mxfp4"
    if "nvfp4" in text or ('"num_bits": 4' in text and '"type": "float"' in text):
        return "nvfp4"
    if method == "fp8" or "float8" in text or '"fp8"' in text:
        return "fp8"
    return "int4" if '"num_bits": 4' in text or method in ("awq", "gptq") else "bf16"
