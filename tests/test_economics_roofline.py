"""The roofline against sums by hand, the fit against known parameters, and predictions of models it has not seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import harness
from harness.economics.gpus import find_gpu, parse_gpus
from harness.economics.roofline import (
    Point,
    find_model,
    fit,
    floor_s,
    limits_of,
    parse_a100,
    parse_h100,
    parse_models,
    power_w,
    predict,
    spread_of,
    stacked,
    step_s,
    validate,
    validate_on,
    work,
    work_of,
)
from harness.errors import HarnessError

DATA = Path(harness.__file__).parent / "data"
GPUS = parse_gpus((DATA / "gpus.csv").read_text())
MODELS = parse_models((DATA / "models.csv").read_text())
H100_POINTS = parse_h100((DATA / "published/mlenergy_v3_h100.csv").read_text(), MODELS, GPUS)
A100_POINTS = parse_a100((DATA / "published/mlenergy_v2_a100.csv").read_text(), MODELS, GPUS)


def row(
    model: str, batch: float, devices: int = 1, precision: str = "bfloat16", gpu: str = "H100"
) -> tuple[float, ...]:
    found, device = find_model(model, MODELS), find_gpu(gpu, GPUS)
    assert found is not None
    assert device is not None
    return work(found, device, precision, devices, batch, 1000, 500)


def test_the_work_of_a_dense_step_by_hand() -> None:
    w = stacked([row("meta-llama/Llama-3.1-8B-Instruct", 10)])
    # KV cache: 2 x 32 layers x 8 heads x 128 x 2 bytes = 131072 bytes a token; 10 sequences at 1250 tokens.
    assert w.dense_bytes[0] == pytest.approx(16.06e9 + 131072 * 12500)
    assert w.expert_bytes[0] == 0
    assert w.flop[0] == pytest.approx(2 * 8.03e9 * 10 * 3)  # one output token and two of prompt each
    assert floor_s(w)[0] == pytest.approx(w.dense_bytes[0] / 3.35e12)


def test_a_batch_touches_more_experts_than_a_token_activates() -> None:
    one, many = (stacked([row("Qwen3-30B-A3B", batch)]) for batch in (1, 4096))
    assert one.expert_bytes[0] == pytest.approx(2 * 28.99e9 * 8 / 128)
    assert many.expert_bytes[0] == pytest.approx(2 * 28.99e9)
    two = stacked([row("Qwen3-30B-A3B", 2)])
    assert two.expert_bytes[0] == pytest.approx(2 * 28.99e9 * (1 - (120 / 128) ** 2))


def test_the_active_parameters_of_every_model_follow_from_its_experts() -> None:
    for model in MODELS:
        dense = model.total_params - model.expert_params
        # Some vendors leave the input embedding out of their active parameters.
        routed = model.expert_params * (model.experts_per_token / model.experts if model.experts else 0)
        assert model.active_params == pytest.approx(dense + routed, rel=0.2), model.name


def test_shares_of_the_limit_by_hand() -> None:
    w = stacked([row("Llama-3.1-8B", 10)])
    seconds = 4 * floor_s(w)[0]
    found = limits_of(w, 10 / seconds)
    assert found["mbu"] == pytest.approx(0.25)
    assert found["mfu"] == pytest.approx(w.flop[0] / (989.4e12 * seconds))
    assert found["floor_s"] == pytest.approx(seconds / 4 / 10)
    assert found["floor_joules"] == pytest.approx(700 * seconds / 4 / 10)


def test_a_precision_that_the_gpu_lacks_is_refused() -> None:
    for precision, gpu in (("fp8", "A100-80GB"), ("int3", "H100")):
        with pytest.raises(HarnessError, match=precision):
            row("Llama-3.1-8B", 1, 1, precision, gpu)


def test_known_parameters_come_back_from_points_made_with_them() -> None:
    step, power = np.array([5e-5, 4e-5, 3e-5, 0.8, 0.6, 0.5]), np.array([0.2, 0.3, 0.4])
    w = work_of(H100_POINTS)
    seconds = step_s(step, w)
    watts = power_w(power, w, seconds)
    made = [
        replace(point, output_tokens_per_s=float(point.batch / s), power_w=float(p))
        for point, s, p in zip(H100_POINTS, seconds, watts, strict=True)
    ]
    found = fit(made)
    assert step_s(found.step, w) == pytest.approx(seconds, rel=0.03)
    assert found.power == pytest.approx(power, rel=0.05)


def test_models_left_out_are_predicted_within_the_promised_error() -> None:
    found = validate(H100_POINTS)
    assert len(found.points) == 177
    assert found.median_error("dense")[0] <= 1.25
    assert found.median_error("moe")[0] <= 1.4
    assert np.all((found.coverage() >= 0.85) & (found.coverage() <= 0.97))


def test_a_left_out_model_does_not_reach_its_own_prediction() -> None:
    name = "Qwen3-30B-A3B"

    def slow(point: Point) -> Point:
        slower = replace(point, output_tokens_per_s=point.output_tokens_per_s / 2)
        return slower if point.model.name == name else point

    before, after = validate(H100_POINTS), validate([slow(point) for point in H100_POINTS])
    chosen = [i for i, point in enumerate(H100_POINTS) if point.model.name == name]
    assert after.errors[0, chosen] - before.errors[0, chosen] == pytest.approx(-np.log(2))
    assert after.spread[name] == pytest.approx(before.spread[name], rel=0.2)


def test_other_serving_software_is_not_covered_and_the_table_would_show_it() -> None:
    found = validate_on(H100_POINTS, A100_POINTS)
    assert found.median_error("dense")[0] > 2
    assert found.coverage()[0] < 0.1


def test_the_interval_counts_models_not_points() -> None:
    names = np.array(["a"] * 100 + ["b"])
    errors = np.array([[0.1] * 100 + [0.3]] * 2)
    # t_{0.95, 1} = 6.3138; mean square over models (0.01 + 0.09) / 2; x (1 + 1/2)
    assert spread_of(names, errors) == pytest.approx([6.3138 * (1.5 * 0.05) ** 0.5] * 2, rel=1e-4)


def test_a_prediction_has_the_stated_interval_and_more_devices_share_the_step() -> None:
    u = (np.arange(1000) + 0.5) / 1000
    seconds, joules = predict(H100_POINTS, row("Mistral-Nemo", 32), 1, u)
    names = np.array([point.model.name for point in H100_POINTS])
    low, high = np.quantile(np.log(seconds), [0.05, 0.95])
    assert (high - low) / 2 == pytest.approx(spread_of(names, validate(H100_POINTS).errors)[0], rel=0.01)
    assert np.all(np.diff(seconds) > 0)
    assert np.all(np.diff(joules) > 0)
    four, _ = predict(H100_POINTS, row("Mistral-Nemo", 32, devices=4), 4, u)
    assert np.median(seconds) < np.median(four) < 4 * np.median(seconds)
