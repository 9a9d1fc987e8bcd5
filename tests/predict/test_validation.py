"""What stands beside predictions: baselines, scales of intervals, limits of the data, another tool's estimates."""

import numpy as np
import pytest
from places import script

from harness.predict.predict import known_gpu
from harness.predict.shapes import shape_of
from harness.predict.work import Serving

TRIED, LIMITS, PEER = script("validate-predict"), script("predict-limits"), script("aiconfigurator-estimates")


def point(batch: float = 8, engine: str = "vllm", version: str = "1", released: float = 2026.0) -> Serving:
    shape, gpu = shape_of("Qwen3-8B"), known_gpu("H100")
    return Serving(shape, gpu, "bf16", batch, engine=engine, version=version, released=released)


def trial(errors: np.ndarray, levels: list[str], servings: list[Serving]) -> object:
    n = len(errors)
    nothing = {"aiconfigurator": np.full(n, np.nan)}
    return TRIED.Trial(servings, ["x"] * n, np.ones(n), errors, np.ones(n), np.array(levels), nothing)


def test_baselines_know_nothing_of_the_level_that_is_left_out() -> None:
    measured, level = np.array([1.0, 1.0, 3.0, 3.0]), np.array(["a", "a", "b", "b"])
    assert np.exp(TRIED.constant(measured, level, np.ones(4))) == pytest.approx([3, 3, 1, 1])
    assert np.exp(TRIED.constant(measured, level, measured)) == pytest.approx(measured)
    servings = [point(8), point(16), point(9), point(100)]
    assert np.exp(TRIED.nearest(servings, np.array([1.0, 2.0, 3.0, 4.0]), level)) == pytest.approx([3, 3, 1, 2])


def test_the_scale_of_an_interval_holds_the_share_of_points_that_it_promises() -> None:
    rng = np.random.default_rng(0)
    errors, levels = rng.normal(0, 2, 4000), [str(i % 40) for i in range(4000)]
    each = trial(errors, levels, [point()] * 4000)
    scales = TRIED.scales_of(each, np.ones(4000, bool))
    assert np.exp(sum(scales.values())) == pytest.approx(2 * 1.751 / 1.645, rel=0.03)  # 92% of a normal of sd 2
    assert np.mean(np.abs(errors) <= TRIED.half_widths(each)) == pytest.approx(0.92, abs=0.01)


def test_a_table_gives_the_other_tool_only_rows_that_it_estimates_whole() -> None:
    n = TRIED.LEAST
    each = trial(np.full(2 * n, np.log(1.5)), ["a"] * n + ["b"] * n, [point()] * (2 * n))
    each.baselines["aiconfigurator"][:n] = np.log(1.2)  # type: ignore[attr-defined]
    rows = {row[2]: row[3:] for row in TRIED.table("time", "model", each)}
    assert (rows["all"][0], rows["all"][1], rows["all"][-1]) == (2 * n, "1.500", "")
    assert (rows["all estimated by aiconfigurator"][0], rows["all estimated by aiconfigurator"][-1]) == (n, "1.200")


def test_measurements_are_compared_that_differ_in_one_thing() -> None:
    double = [(point(8), 1.0), (point(16), 2.2), (point(32), 4.0)]
    assert [*LIMITS.bends(double)] == pytest.approx([np.log(1.1)])
    later = [(point(version="2", released=2026.5), 0.5), (point(), 1.0), (point(batch=9), 7.0)]
    assert [*LIMITS.releases(later)] == pytest.approx([np.log(0.5)])
    other = [(point(), 1.0), (point(version="2"), 1.5), (point(engine="sglang"), 2.0)]
    assert sorted(np.exp(np.abs([*LIMITS.engines(other)]))) == pytest.approx([2 / 1.5, 2.0])
    rows = [{"key": "a", "t": 1}, {"key": "a", "t": 2}, {"key": "a", "t": 2}, {"key": "b", "t": 9}]
    assert [*LIMITS.again(rows, ("key",), "t")] == pytest.approx([np.log(2)])


def test_classes_of_independent_points_are_missed_less_than_classes_of_few_setups() -> None:
    rng = np.random.default_rng(1)
    many = [point(version=str(i)) for i in range(300)]
    few = [point(version=str(i % 3)) for i in range(300)]
    shared = np.array([0.0, 1.0, 3.0])[np.arange(300) % 3]
    missed = [
        LIMITS.by_chance([trial(errors, ["a"] * 300, servings)], TRIED.classes).mean()
        for errors, servings in ((rng.normal(0, 1, 300), many), (shared, few))
    ]
    assert missed[0] < 0.1 * missed[1]


SAMPLE = dict.fromkeys(
    ("precision", "gemm_quant_mode", "moe_quant_mode", "pp_size", "silicon_data_source", "id", "backend_version"), ""
)


def test_another_tool_is_asked_with_the_layout_of_the_row() -> None:
    row = SAMPLE | {
        "mode": "agg", "model_path": "Qwen/Qwen3-32B", "system": "h100_sxm", "backend": "vllm", "isl": "1024",
        "osl": "512", "tp_size": "2", "pp_size": "1", "attention_dp_size": "1", "moe_tp_size": "", "moe_ep_size": "",
        "batch_size": "16", "precision": "fp8", "gemm_quant_mode": "fp8",
    }  # fmt: skip
    assert PEER.asked(row) == {
        "model_path": "Qwen/Qwen3-32B", "system_name": "h100_sxm", "backend_name": "vllm", "backend_version": "current",
        "isl": 1024, "osl": 512, "gemm_quant_mode": "fp8", "batch_size": 16, "tp_size": 2, "attention_dp_size": 1,
    }  # fmt: skip
    assert PEER.asked(row | {"model_path": "nobody/Zonk"}) is None
    experts = row | {"model_path": "MiniMaxAI/MiniMax-M2.5", "tp_size": "4", "moe_tp_size": "1", "moe_ep_size": "4"}
    found = PEER.asked(experts)
    assert (found["tp_size"], found["moe_tp_size"], found["moe_ep_size"]) == (4, 1, 4)
