"""Extrapolation as the verb sees it: names, memory, CPU runs, calibration by a run of one's own, limits of a run."""

from typing import Any

import pytest
from builders import GPU, a_run

from harness.errors import HarnessError
from harness.model import Figure, ModelIdentity, Summary
from harness.predict.extrapolate import calibration, extrapolate, hardware_limits
from harness.predict.roofline import from_config
from harness.report.predict import validation_table
from harness.store.run import Run


def run_on(
    device: str = "cuda", model: str = "Qwen/Qwen3-8B", gpu: str = "NVIDIA H100 80GB HBM3", config: Any = None
) -> Run:
    identity = ModelIdentity(model, model, precision="bfloat16", config=config)
    return a_run(engine=GPU | {"device": device, "model": identity}, environment={"gpus": [{"name": gpu}]})


def summary(rate: float = 1000.0) -> Summary:
    # Little's law: 2 requests/s of 4 s are 8 in flight; 500 tokens out and 500 in.
    values = {
        "output_tokens_per_s": rate,
        "total_tokens_per_s": 2 * rate,
        "requests_per_s": rate / 500,
        "e2e_s.mean": 4000 / rate,
    }
    return Summary("mine", "complete", tuple(Figure(k, v, "", "measured") for k, v in values.items()), {})


def test_an_unmeasured_model_on_a_measured_gpu_has_a_cost_with_an_interval() -> None:
    found = {figure.name: figure for figure in extrapolate("openai/gpt-oss-120b", "H100", 1, "mxfp4").figures}
    usd = found["usd_per_million_output_tokens"]
    assert usd.low is not None
    assert usd.value is not None
    assert usd.high is not None
    assert 0 < usd.low < usd.value < usd.high


def test_cost_is_the_bill_for_the_predicted_time() -> None:
    certain = {"price.usd_per_hour": 3.6, "serving.utilisation": 0.5, "serving.overhead": 1.2}
    found = {f.name: f.value or 0.0 for f in extrapolate("Qwen3-8B", "B200", 1, overrides=certain).figures}
    expected = 0.001 * 1.2 / 0.5 * found["device_s_per_output_token"] * 1e6
    assert found["usd_per_million_output_tokens"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Qwen9-1T", "H100"), "model 'Qwen9-1T' is not in models.csv"),
        (("Qwen3-8B", "H900"), "GPU 'H900' is not in gpus.csv"),
        (("Llama-3.1-70B", "H100"), "takes 141 GB, 1 x H100 have 80 GB"),
        (("Qwen3-8B", "H100", 1, "int2"), "precision 'int2'"),
    ],
)
def test_what_cannot_be_extrapolated_is_refused(arguments: tuple[str, str], words: str) -> None:
    with pytest.raises(HarnessError, match=words):
        extrapolate(*arguments)


def test_extrapolating_from_a_cpu_run_is_refused() -> None:
    with pytest.raises(HarnessError, match="measured on a CPU: it says nothing about a GPU"):
        extrapolate("Qwen3-8B", "H100", run=(run_on("cpu"), summary()))
    with pytest.raises(HarnessError, match=r"model 'x/y' is not in models.csv"):
        extrapolate("Qwen3-8B", "H100", run=(run_on(model="x/y"), summary()))


def test_a_gpu_run_scales_the_prediction() -> None:
    once = calibration(run_on(), summary())
    assert calibration(run_on(), summary(500.0)) == pytest.approx(2 * once)
    scaled, plain = (
        extrapolate("Qwen3-14B", "H100", run=run).figures[0].value for run in ((run_on(), summary()), None)
    )
    assert scaled == pytest.approx((plain or 0.0) * once)


def test_the_limits_of_a_run_on_a_known_gpu() -> None:
    found = {figure.name: figure.value for figure in hardware_limits(run_on(), summary())[0]}
    bytes_moved = 2 * 8.19e9 + 2 * 36 * 8 * 128 * 2 * 750 * 8
    assert found["mbu"] == pytest.approx(bytes_moved / 3.35e12 / (8 / 1000))
    assert found["mfu"] == pytest.approx(2 * 8.19e9 * 2000 / 989.4e12)
    assert found["floor_s_per_output_token"] == pytest.approx(bytes_moved / 3.35e12 / 8)
    assert found["floor_joules_per_output_token"] == pytest.approx(700 * bytes_moved / 3.35e12 / 8)


LLAMA_8B = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_30B = {
    "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "moe_intermediate_size": 768, "intermediate_size": 6144, "num_experts": 128, "num_experts_per_tok": 8,
    "vocab_size": 151936, "layer_types": ["full_attention"] * 48,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "total", "active"), [(LLAMA_8B, 8.03e9, 8.03e9), ({"text_config": QWEN_30B}, 30.5e9, 3.35e9)]
)
def test_parameters_follow_from_the_configuration(config: dict[str, Any], total: float, active: float) -> None:
    """The published counts of Llama-3.1-8B and Qwen3-30B-A3B."""
    found = from_config("x", config)
    assert found is not None
    assert (found.total_params, found.active_params) == pytest.approx((total, active), rel=0.005)


@pytest.mark.parametrize(
    "config", [{}, LLAMA_8B | {"kv_lora_rank": 512}, LLAMA_8B | {"layer_types": ["sliding_attention"]}]
)
def test_a_configuration_of_another_kind_gives_no_shape(config: dict[str, Any]) -> None:
    assert from_config("x", config) is None


def test_limits_are_those_of_the_models_own_configuration() -> None:
    """A directory has no row in models.csv: the shape is that of its config.json."""
    figures, _ = hardware_limits(run_on(model="/models/mine", config=LLAMA_8B), summary())
    found = {figure.name: figure.value for figure in figures}
    assert found["mfu"] == pytest.approx(2 * 8.03e9 * 2000 / 989.4e12, rel=0.001)
    assert found["mbu"] == pytest.approx(
        (2 * 8.03e9 + 2 * 32 * 8 * 128 * 2 * 750 * 8) / 3.35e12 / (8 / 1000), rel=0.001
    )


def test_a_share_above_one_is_a_finding_and_no_figure() -> None:
    """1000 tokens/s need 81.7% of the bandwidth, so 34 times as many would need 27 times the bandwidth."""
    figures, (found,) = hardware_limits(run_on(), summary(34_000.0))
    assert found.code == "beyond-hardware"
    assert found.serious
    assert {figure.value for figure in figures} == {None}


@pytest.mark.parametrize(
    ("run", "of", "words"),
    [
        (run_on("cpu"), summary(), "not a GPU run"),
        (run_on(gpu="NVIDIA Zonk"), summary(), "GPU 'NVIDIA Zonk' is not in gpus.csv"),
        (run_on(model="x/y"), summary(), "model 'x/y' is not in models.csv"),
        (run_on(), Summary("r", "complete", (), {}), "output_tokens_per_s is not recorded"),
    ],
)
def test_limits_that_are_not_known_say_why(run: Run, of: Summary, words: str) -> None:
    assert {figure.text() for figure in hardware_limits(run, of)[0]} == {f"n/a ({words})"}


def test_the_validation_table_states_errors_and_coverage_of_both_gpus() -> None:
    table = validation_table()
    assert [row[0] for row in table.rows] == [
        "H100 dense", "H100 moe", "H100 hybrid", "H100 all", "A100-40GB dense", "A100-40GB moe", "A100-40GB all"
    ]  # fmt: skip
    assert all(len(row) == len(table.columns) for row in table.rows)
