"""Shapes from config.json against sums by hand and against the shipped table; names that are nearly right."""

import json
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.predict.shapes import find_model, from_config, models, precision_of, shape_of

LLAMA = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256,
}  # fmt: skip
MLA = {
    "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
    "intermediate_size": 18432, "vocab_size": 129280, "quantization_config": {"quant_method": "fp8"},
}  # fmt: skip


def test_a_dense_config_has_the_parameters_of_its_matrices() -> None:
    found = from_config(LLAMA, "x", "hand")
    attention, mlp = 4096 * 128 * (2 * 32 + 2 * 8), 3 * 4096 * 14336
    assert found.total_params == 32 * (attention + mlp) + 2 * 128256 * 4096
    assert (found.kind, found.kv_values, found.kv_layers, found.experts) == ("dense", 2 * 8 * 128, 32, 0)
    assert found.active_params == found.total_params - 128256 * 4096  # the input embedding is looked up


def test_latent_attention_caches_one_vector_for_all_heads() -> None:
    found = from_config(MLA, "x", "hand")
    assert (found.kind, found.kv_values, found.kv_heads, found.moe_layers) == ("mla moe", 576, 1, 58)
    assert found.expert_params == 3 * 7168 * 2048 * 256 * 58
    assert found.total_params == pytest.approx(671e9, rel=0.002)
    assert found.precision == "fp8"


def test_windows_and_linear_layers_are_counted_apart() -> None:
    mixed = LLAMA | {"layer_types": ["sliding_attention", "full_attention"] * 16, "sliding_window": 128}
    found = from_config(mixed, "x", "hand")
    assert (found.kv_layers, found.window_layers, found.window) == (32, 16, 128)
    linear = LLAMA | {
        "full_attention_interval": 4, "linear_num_value_heads": 32, "linear_value_head_dim": 128,
        "linear_key_head_dim": 128, "linear_num_key_heads": 16,
    }  # fmt: skip
    found = from_config(linear, "x", "hand")
    assert (found.kind, found.kv_layers, found.state_values) == ("hybrid", 8, 24 * 32 * 128 * 128)


def test_a_config_is_read_from_its_file_and_from_its_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    for reference in (tmp_path, tmp_path / "config.json"):
        assert shape_of(str(reference)).total_params == from_config(LLAMA, "x", "hand").total_params


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "{",
        '{"num_hidden_layers": 0}',
        *(json.dumps(LLAMA | x) for x in ({"vocab_size": -1}, {"num_hidden_layers": 10**30})),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(HarnessError, match="is not a configuration of a language model"):
        shape_of(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "Qwen3-235B-A22B"),
        ("meta-llama/Meta-Llama-3.1-70B-Instruct", "Llama-3.1-70B"),
        ("nvidia/DeepSeek-R1-NVFP4", "DeepSeek-R1"),
        ("google/gemma-2-9b-it", "Gemma-2-9b-it"),
        ("Qwen/Qwen3-VL-8B-Instruct", "Qwen3-8B"),
        ("no/such", None),
    ],
)
def test_hub_names_find_their_shape(name: str, found: str | None) -> None:
    shape = find_model(name)
    assert (shape.name if shape else None) == found


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(HarnessError, match="did you mean 'Qwen3-32B'"):
        shape_of("Qwn3-32B")


@pytest.mark.parametrize("name", ["int3", 5, ["fp8"]])
def test_an_unknown_precision_is_refused_by_name(name: object) -> None:
    with pytest.raises(HarnessError, match="unknown precision"):
        precision_of(name)


def test_the_table_agrees_with_the_names_of_the_models() -> None:
    for model in models():
        assert 0 < model.active_params <= model.total_params, model.name
        assert model.expert_params < model.total_params, model.name
        assert model.experts_active <= model.experts, model.name
        assert precision_of(model.precision) == model.precision
