"""The roofline against sums by hand, the fit against known parameters, and predictions of models it has not seen."""

from pathlib import Path

import numpy as np
import pytest

import harness
from harness.cost.draws import Array
from harness.cost.gpus import Gpu, find_gpu, read_rows
from harness.errors import HarnessError
from harness.predict.roofline import (
    ServedModel,
    Work,
    find_model,
    fit,
    floor_s,
    left_out_errors,
    limits_of,
    parse_points,
    power_w,
    predict,
    spread_of,
    spreads,
    step_s,
    work,
)

DATA = Path(harness.__file__).parent / "data"
GPUS = read_rows((DATA / "gpus.csv").read_text(), Gpu)
MODELS = read_rows((DATA / "models.csv").read_text(), ServedModel)
H100_POINTS = parse_points((DATA / "published/mlenergy_v3_h100.csv").read_text(), MODELS, GPUS)
A100_POINTS = parse_points((DATA / "published/mlenergy_v2_a100.csv").read_text(), MODELS, GPUS)


def row(model: str, batch: float, devices: int = 1, precision: str = "bfloat16", gpu: str = "H100") -> Work:
    found, device = find_model(model, MODELS), find_gpu(gpu, GPUS)
    assert found is not None
    assert device is not None
    return work(found, device, precision, devices, batch, 1000, 500)


def test_the_work_of_a_dense_step_by_hand() -> None:
    w = row("meta-llama/Llama-3.1-8B-Instruct", 10)
    # KV cache: 2 x 32 layers x 8 heads x 128 x 2 bytes = 131072 bytes a token; 10 sequences at 1250 tokens.
    assert w.dense_bytes[0] == pytest.approx(16.06e9 + 131072 * 12500)
    assert w.expert_bytes[0] == 0
    assert w.flop[0] == pytest.approx(2 * 8.03e9 * 10 * 3)  # one output token and two of prompt each
    assert floor_s(w)[0] == pytest.approx(w.dense_bytes[0] / 3.35e12)


def test_a_batch_touches_more_experts_than_a_token_activates() -> None:
    one, many = (row("Qwen3-30B-A3B", batch) for batch in (1, 4096))
    assert one.expert_bytes[0] == pytest.approx(2 * 28.99e9 * 8 / 128)
    assert many.expert_bytes[0] == pytest.approx(2 * 28.99e9)
    two = row("Qwen3-30B-A3B", 2)
    assert two.expert_bytes[0] == pytest.approx(2 * 28.99e9 * (1 - (120 / 128) ** 2))


def test_the_active_parameters_of_every_model_follow_from_its_experts() -> None:
    for model in MODELS:
        dense = model.total_params - model.expert_params
        # Some vendors leave the input embedding out of their active parameters.
        routed = model.expert_params * (model.experts_per_token / model.experts if model.experts else 0)
        assert model.active_params == pytest.approx(dense + routed, rel=0.2), model.name


def test_shares_of_the_limit_by_hand() -> None:
    w = row("Llama-3.1-8B", 10)
    seconds = 4 * floor_s(w)[0]
    found = limits_of(w, 10 / seconds)
    assert found["mbu"] == pytest.approx(0.25)
    assert found["mfu"] == pytest.approx(w.flop[0] / (989.4e12 * seconds))
    assert found["floor_s_per_output_token"] == pytest.approx(seconds / 4 / 10)
    assert found["floor_joules_per_output_token"] == pytest.approx(700 * seconds / 4 / 10)


def test_a_precision_that_the_gpu_lacks_is_refused() -> None:
    for precision, gpu in (("fp8", "A100-80GB"), ("int3", "H100")):
        with pytest.raises(HarnessError, match=precision):
            row("Llama-3.1-8B", 1, 1, precision, gpu)


def test_known_parameters_come_back_from_points_made_with_them() -> None:
    step, power = np.array([5e-5, 4e-5, 3e-5, 0.8, 0.6, 0.5]), np.array([0.2, 0.3, 0.4])
    made = H100_POINTS.copy()
    seconds = step_s(step, made)
    made.output_tokens_per_s, made.power_w = made.batch / seconds, power_w(power, made, seconds)
    found_step, found_power = fit(made)
    assert step_s(found_step, made) == pytest.approx(seconds, rel=0.03)
    assert found_power == pytest.approx(power, rel=0.05)


def median_error(points: Work, errors: Array, kind: str) -> float:
    """As a factor, of time."""
    return float(np.exp(np.median(np.abs(errors[0, points.kind == kind]))))


def test_models_left_out_are_predicted_within_the_promised_error() -> None:
    errors = left_out_errors(H100_POINTS, H100_POINTS)
    assert errors.shape == (2, 177)
    assert median_error(H100_POINTS, errors, "dense") <= 1.25
    assert median_error(H100_POINTS, errors, "moe") <= 1.4
    coverage = np.mean(np.abs(errors) <= spreads(H100_POINTS, errors), axis=1)
    assert np.all((coverage >= 0.85) & (coverage <= 0.97))


def test_the_prediction_of_a_left_out_model_does_not_use_its_measurements() -> None:
    chosen = H100_POINTS.model == "Qwen3-30B-A3B"
    slower = H100_POINTS.copy()
    slower.output_tokens_per_s[chosen] /= 2
    before, after = (left_out_errors(points, points) for points in (H100_POINTS, slower))
    assert after[0, chosen] - before[0, chosen] == pytest.approx(-np.log(2))
    assert spreads(slower, after)[:, chosen] == pytest.approx(spreads(H100_POINTS, before)[:, chosen], rel=0.2)


def test_other_serving_software_is_not_covered_and_the_table_would_show_it() -> None:
    errors = left_out_errors(H100_POINTS, A100_POINTS)
    assert median_error(A100_POINTS, errors, "dense") > 2
    half = spread_of(H100_POINTS.model, left_out_errors(H100_POINTS, H100_POINTS))
    assert np.mean(np.abs(errors[0]) <= half[0]) < 0.1


def test_the_interval_counts_models_not_points() -> None:
    names = np.array(["a"] * 100 + ["b"])
    errors = np.array([[0.1] * 100 + [0.3]] * 2)
    # t_{0.95, 1} = 6.3138; mean square over models (0.01 + 0.09) / 2; x (1 + 1/2)
    assert spread_of(names, errors) == pytest.approx([6.3138 * (1.5 * 0.05) ** 0.5] * 2, rel=1e-4)


def test_a_prediction_has_the_stated_interval_and_more_devices_share_the_step() -> None:
    u = (np.arange(1000) + 0.5) / 1000
    seconds, joules = predict(H100_POINTS, row("Mistral-Nemo", 32), 1, u)
    half, _ = spread_of(H100_POINTS.model, left_out_errors(H100_POINTS, H100_POINTS))
    low, high = np.quantile(np.log(seconds), [0.05, 0.95])
    assert (high - low) / 2 == pytest.approx(half, rel=0.01)
    assert np.all(np.diff(seconds) > 0)
    assert np.all(np.diff(joules) > 0)
    four, _ = predict(H100_POINTS, row("Mistral-Nemo", 32, devices=4), 4, u)
    assert np.median(seconds) < np.median(four) < 4 * np.median(seconds)
