"""Predictions as the verb and the API see them: layouts, refusals, intervals, energy, and a run of one's own."""

import shlex
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import GPU, a_run
from commands import Command
from places import ROOT, script

from harness import api
from harness.errors import HarnessError
from harness.files import data_rows
from harness.model import Figure, ModelIdentity, Summary
from harness.predict import pooled
from harness.predict.predict import (
    GUESSES,
    Calibration,
    Plan,
    calibration,
    deployed,
    engine_of,
    hardware_limits,
    predict,
    serving_of,
)
from harness.predict.priced import priced
from harness.predict.work import columns
from harness.report.predict import prediction_tables, side_by_side, validation_table
from harness.store.run import Run


def run_on(device: str = "cuda", model: str = "Qwen/Qwen3-8B", gpu: str = "NVIDIA H100 80GB HBM3") -> Run:
    identity = ModelIdentity(model, model, precision="bfloat16")
    return a_run(engine=GPU | {"device": device, "model": identity}, environment={"gpus": [{"name": gpu}]})


def summary(rate: float = 1000.0, joules: float | None = 0.5) -> Summary:
    # Little's law: 2 requests/s of 4 s are 8 in flight; 500 tokens out and 500 in.
    values = {
        "output_tokens_per_s": rate, "total_tokens_per_s": 2 * rate, "requests_per_s": rate / 500,
        "e2e_s.mean": 4000 / rate, "joules_per_output_token": joules,
    }  # fmt: skip
    figures = tuple(Figure(k, v, "", "measured") for k, v in values.items() if v is not None)
    return Summary("mine", "complete", figures, {})


def test_a_file_without_e2e_has_its_batch_from_ttft_and_tpot() -> None:
    whole = summary()  # E2E of 4 s = TTFT of 1.006 s + 499 x 6 ms
    times = (Figure("ttft_s.mean", 1.006, "s", "reported"), Figure("tpot_s.mean", 0.006, "s", "reported"))
    without = replace(whole, figures=(*(f for f in whole.figures if f.name != "e2e_s.mean"), *times))
    assert serving_of(run_on(), without)[0].batch == pytest.approx(serving_of(run_on(), whole)[0].batch)


def median(draws: np.ndarray) -> float:
    return float(np.median(draws))


def test_devices_become_copies_of_the_smallest_group() -> None:
    eight = predict("Llama-3.1-8B", "B200", Plan(devices=8))
    assert (eight.replicas, eight.serving.gpus, eight.serving.batch) == (8, 1, 8)
    one = predict("Llama-3.1-8B", "B200", Plan(8))
    assert median(eight.device_s) == pytest.approx(median(one.device_s))
    assert (
        predict("Llama-3.1-70B", "H100", Plan(devices=8)).serving.gpus == 4
    )  # two GPUs hold the weights, not 64 sequences
    assert predict("Llama-3.1-8B", "B200", Plan(devices=8, tp=8)).replicas == 1


def test_the_interval_holds_nine_tenths_of_the_draws_and_an_unseen_gpu_is_wider() -> None:
    def width(gpu: str) -> float:
        draws = predict("Llama-3.1-70B", gpu, Plan(precision="fp8", tp=8)).tpot_s
        low, high = np.quantile(draws, [0.05, 0.95])
        return float(np.log(high / low))

    assert 1.1 * width("H200") < width("MI300X")
    found = predict("Llama-3.1-70B", "MI300X", Plan(precision="fp8", tp=8))
    assert "no point was measured on MI300X" in found.guesses


def test_a_guess_is_named_only_where_no_point_is() -> None:
    blocks = {block.name for block in pooled.fitted("time").blocks}
    assert {row["block"] for row in GUESSES} <= blocks
    assert predict("Llama-3.1-8B", "H100").guesses == ()
    sibling = "Llama-3.3-70B-Instruct is taken as Llama-3.1-70B, which differs in weights alone"
    assert predict("Llama-3.3-70B-Instruct", "H100").guesses == (sibling,)
    assert predict("Llama-3.1-8B", "H100", Plan(tp=2, pp=2)).guesses == ("no point has pipeline stages",)
    assert predict("Llama-3.1-8B", "H100", Plan(engine="vllm@99")).guesses == ("no point is of vllm of that release",)
    oldest = predict("Llama-3.1-8B", "H100", Plan(engine="vllm@0.1"))
    assert oldest.guesses == ("no point is of vllm of that release",)


def test_an_older_engine_is_slower() -> None:
    new, old = (predict("Llama-3.1-8B", "H100", Plan(engine=engine)).tpot_s for engine in ("vllm", "vllm@0.5.4"))
    assert median(old) > 1.5 * median(new)
    assert engine_of("vllm@0.13")[2] == pytest.approx(
        np.mean([engine_of("vllm@0.12.0")[2], engine_of("vllm@0.15.1")[2]])
    )


def test_an_engine_of_years_ago_is_less_certain() -> None:
    asked = [deployed("Llama-3.1-8B", "H100", Plan(engine="vllm@0.19.0"))[0]]
    new, old = (pooled.rows([replace(s, released=at) for s in asked], columns(asked)) for at in (2026.29, 2023.0))
    variance = [pooled.predicted(pooled.fitted("time"), each)[1][0] for each in (new, old)]
    assert variance[1] > variance[0] + 0.6  # 0.5 a year, 1.6 years before the oldest


def test_series_that_fall_with_more_sequences_contradict_themselves() -> None:
    contradicts = script("measured-points").contradicts
    series = (
        [(1, 0.010), (8, 0.012), (64, 0.020)],
        [(1, 0.010), (8, 0.009), (64, 0.020)],
        [(64, 0.072), (1, 0.015), (8, 0.133)],
    )
    rising, noisy, broken = ([{"batch": batch, "tpot_s": tpot} for batch, tpot in each] for each in series)
    assert [contradicts(each) for each in (rising, noisy, broken)] == [False, False, True]


def test_joules_are_not_scaled_by_time() -> None:
    slow = predict(
        "Llama-3.1-8B", "H100", own=calibration(run_on(model="meta-llama/Llama-3.1-8B-Instruct"), summary(500, None))
    )
    fast = predict(
        "Llama-3.1-8B", "H100", own=calibration(run_on(model="meta-llama/Llama-3.1-8B-Instruct"), summary(1000, None))
    )
    time_ratio, energy_ratio = median(slow.device_s) / median(fast.device_s), median(slow.joules) / median(fast.joules)
    assert 1 < energy_ratio < 0.9 * time_ratio
    assert np.all(slow.joules / slow.device_s <= 700 + 1e-9)


def test_a_run_of_ones_own_calibrates_time_by_time_and_joules_by_joules() -> None:
    own = calibration(run_on(), summary(1000, 0.5))
    found = predict("Qwen3-8B", "H100", Plan(8), own=own)
    assert median(found.device_s) == pytest.approx(1 / 1000, rel=0.02)
    assert median(found.joules) == pytest.approx(0.5, rel=0.02)
    plain = predict("Qwen3-8B", "H100", Plan(8))
    assert np.ptp(np.log(found.tpot_s)) < 0.7 * np.ptp(np.log(plain.tpot_s))


def test_a_run_of_a_local_copy_calibrates_as_the_model_of_its_sizes() -> None:
    config = {"num_hidden_layers": 36, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
              "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936}  # fmt: skip
    identity = ModelIdentity("/models/mine", "/models/mine", precision="bfloat16", config=config)
    copy = a_run(engine=GPU | {"model": identity}, environment={"gpus": [{"name": "NVIDIA H100 80GB HBM3"}]})
    own, named = (calibration(run, summary()) for run in (copy, run_on()))
    assert own.time == pytest.approx(named.time, rel=0.01)
    widths = [np.ptp(np.log(predict("Qwen3-8B", "H100", Plan(8), own=each).tpot_s)) for each in (own, named)]
    assert widths[0] == pytest.approx(widths[1], rel=0.01)


def test_a_run_says_most_of_the_same_load_and_least_of_another_model() -> None:
    own, bare = calibration(run_on(), summary(1000, 0.5)), calibration(run_on(), summary(1000, None))

    def width(model: str, batch: float, by: Calibration | None, of: str = "tpot_s") -> float:
        return float(np.ptp(np.log(getattr(predict(model, "H100", Plan(batch), own=by), of))))

    assert width("Qwen3-8B", 8, own) < width("Qwen3-8B", 512, own) < width("Qwen3-8B", 512, None)
    assert width("Qwen3-8B", 8, own) < 0.7 * width("Llama-3.1-8B", 8, own)
    assert width("Qwen3-8B", 8, own, "joules") < 0.9 * width("Qwen3-8B", 8, bare, "joules")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (run_on("cpu"), "measured on a CPU"),
        (run_on(model="x/y"), "model 'x/y' is not in the table"),
        (run_on(gpu="NVIDIA Zonk"), "GPU 'NVIDIA Zonk' is not in gpus.csv"),
    ],
)
def test_runs_that_cannot_calibrate_are_refused(run: Run, words: str) -> None:
    with pytest.raises(HarnessError, match=words):
        calibration(run, summary())


def test_the_limits_of_a_run_on_a_known_gpu() -> None:
    found = {figure.name: figure.value for figure in hardware_limits(run_on(), summary())[0]}
    weights, cache = 2 * (8.19e9 - 151936 * 4096), 2 * 36 * 8 * 128 * 2 * 750 * 8
    assert found["mbu"] == pytest.approx((weights + cache) / 3.35e12 / (8 / 1000), rel=0.01)
    assert found["floor_s_per_output_token"] == pytest.approx((weights + cache) / 3.35e12 / 8, rel=0.01)
    assert found["floor_joules_per_output_token"] == pytest.approx(700 * (weights + cache) / 3.35e12 / 8, rel=0.01)
    assert found["mfu"] == pytest.approx(2 * 7.57e9 * 2000 / 989.4e12, rel=0.05)
    assert {f.text() for f in hardware_limits(run_on("cpu"), summary())[0]} == {"n/a (not a GPU run)"}


def test_the_config_that_a_run_stores_describes_its_model() -> None:
    config = {"num_hidden_layers": 36, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
              "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936}  # fmt: skip
    identity = ModelIdentity("x/y", "x/y", precision="bfloat16", config=config)
    run = a_run(engine=GPU | {"model": identity}, environment={"gpus": [{"name": "NVIDIA H100 80GB HBM3"}]})
    by_config, by_name = (hardware_limits(each, summary())[0] for each in (run, run_on()))
    assert by_config[1].value == pytest.approx(by_name[1].value, rel=0.01)


def test_shares_of_the_hardware_above_one_are_a_finding_and_no_figure() -> None:
    figures, doubts = hardware_limits(run_on(), summary(1e6))
    assert [doubt.code for doubt in doubts] == ["beyond-hardware"]
    assert all(figure.value is None for figure in figures)


WRONG = [
    ("Qwn3-32B H100", "did you mean 'Qwen3-32B'"), ("Qwen3-32B H900", "GPU 'H900' is not in gpus.csv"),
    ("Qwen3-32B H10", "is not in gpus.csv"), ("Llama-3.1-70B L4 --tp 1", "takes 141 GB of weights"),
    ("Llama-3.1-8B B200 --batch 100000 --devices 1", "at most"), ("Llama-3.1-8B H100 --batch -5", "--batch is -5"),
    ("Llama-3.1-8B H100 --batch 0", "--batch is 0"), ("Llama-3.1-8B H100 --batch 2.5", "--batch is 2.5"),
    ("Llama-3.1-8B H100 --batch nan", "--batch nan"), ("Llama-3.1-8B H100 --batch inf", "--batch inf"),
    ("Llama-3.1-8B H100 --tokens 0:5", "input tokens is 0"), ("Llama-3.1-8B H100 --tokens 5:0", "output tokens is 0"),
    ("Llama-3.1-8B H100 --tokens 5", "is not of the form A:B"),
    ("Llama-3.1-8B H100 --tokens a:b", "is not of the form"),
    ("Llama-3.1-8B H100 --tokens -1:5", "input tokens is -1"), ("Llama-3.1-8B H100 --tokens 1e9:5", "does not fit"),
    ("Llama-3.1-8B H100 --devices 0", "--devices is 0"), ("Llama-3.1-8B H100 --devices -1", "--devices is -1"),
    ("Llama-3.1-8B H100 --tp 0", "--tp is 0"), ("Llama-3.1-8B H100 --tp 4 --devices 6", "whole groups of 4"),
    ("Llama-3.1-8B H100 --tp 16", "fast links join 8"), ("Llama-3.1-8B H100 --ep 4", "has no experts"),
    ("Qwen3-30B-A3B H100 --ep 3", "has 128 experts"), ("Llama-3.1-8B H100 --pp 0", "--pp is 0"),
    ("Llama-3.1-8B H100 --pp 33", "has 32 layers"), ("Llama-3.1-8B H100 --tp 3", "32 attention heads"),
    ("Llama-3.1-8B A100", "did you mean 'A100-80GB'"),
    ("'' H100", "model '' is not in the table"),
    ("Llama-3.1-8B H100 --dp 99999", "--dp is 99999"),
    ("Llama-3.1-8B H100 --precision int2", "unknown precision 'int2'"),
    ("Llama-3.1-8B H100 --engine tgi", "no measured points of engine 'tgi'"),
    ("Llama-3.1-8B H100 --engine vllm@x", "is not a version of vllm"),
    ("Llama-3.1-8B H100 --scenario no", "no scenario"),
    ("Llama-3.1-8B H100 --set no=1", "no"), ("Llama-3.1-8B H100 --run nowhere", "nowhere"),
    ("Llama-3.1-8B none.yaml", "none.yaml"), ("none.json H100", "is not in the table"), ("/tmp H100", "config.json"),
    ("Llama-3.1-8B H100 --tpot -1", "--tpot is '-1'"), ("Llama-3.1-8B H100 --ttft 0", "--ttft is '0'"),
    ("DeepSeek-R1 H100", "takes 671 GB"), ("Kimi-K3 RTX4090 --tp 8", "is not in gpus.csv"),
    ("Llama-3.1-8B H100 --prefill-gpus -1", "--prefill-gpus is -1"), ("Llama-3.1-8B ,", "no GPU in ','"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_wrong_calls_are_refused_with_advice(harness: Command, words: str, said: str) -> None:
    done = harness("predict", *shlex.split(words))
    assert done.code == 2, done
    assert said in done.err
    assert "Traceback" not in done.err


def test_the_cost_is_the_bill_for_the_predicted_time() -> None:
    certain = {"price.usd_per_hour": 3.6, "serving.utilisation": 0.5, "serving.overhead": 1.2}
    found = priced("Qwen3-8B", "B200", overrides=certain)
    figures = {figure.name: figure.value or 0.0 for figure in found.costs.figures}
    expected = 0.001 * 1.2 / 0.5 * figures["device_s_per_output_token"] * 1e6
    assert figures["usd_per_million_output_tokens"] == pytest.approx(expected)
    assert figures["usd_per_query"] == pytest.approx(expected / 1e6 * 500)
    assert figures["output_tokens_per_s"] == pytest.approx(1 / figures["device_s_per_output_token"], rel=0.01)


def test_the_screen_marks_the_best_batch_and_the_cheapest_gpu() -> None:
    found = priced("Llama-3.1-8B", "H100", limits=(0.02, 2.0))
    assert found.best is not None
    point, _ = found.front[found.best]
    assert median(point.tpot_s) <= 0.02
    table, front = prediction_tables(found)
    assert sum("*" in str(row[0]) for row in front.rows) == 1
    assert {row[0] for row in table.rows} >= {"tpot_s", "ttft_s", "wh_per_query", "memory"}
    several = side_by_side([("H100", found), ("B200", priced("Llama-3.1-8B", "B200")), ("L4", "too small")])
    assert sum("*" in str(row[0]) for row in several.rows) == 1
    assert "L4: too small" in several.notes


def test_a_gpu_of_ones_own_is_a_yaml_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "gpu: X1\nflops_bf16: 4.0e14\nbandwidth_bytes_per_s: 2.0e12\nmemory_bytes: 6.4e10\n"
        "tdp_w: 500\nlink_bytes_per_s: 1e11\n"
    )
    found = predict("Llama-3.1-8B", str(file))
    assert "no point was measured on X1" in found.guesses
    file.write_text("gpu: X1\n")
    with pytest.raises(HarnessError, match="flops_bf16"):
        predict("Llama-3.1-8B", str(file))


def test_two_hundred_predictions_take_less_than_two_seconds() -> None:
    predict("Qwen3-32B", "H100")
    began = time.process_time()
    for batch in range(1, 201):
        predict("Qwen3-32B", "H100", Plan(batch, tp=2))
    assert time.process_time() - began < 2


def test_the_shipped_fit_predicts_the_points_that_it_was_made_from() -> None:
    servings, seconds, *_ = script("fit-predict").points()
    asked = servings[::7]
    value, _ = pooled.predicted(pooled.fitted("time"), pooled.rows(asked, columns(asked)))
    error = np.abs(value - np.log(seconds[::7]))
    assert np.exp(np.median(error)) < 1.15


def test_the_validation_table_has_errors_coverage_and_baselines() -> None:
    table = validation_table()
    rows = {str(row[0]): row for row in table.rows}
    by_model, by_gpu = rows["time, model: all"], rows["time, gpu: all"]
    for row in (by_model, by_gpu):
        median_factor, nearest = row[2], row[6]
        assert isinstance(median_factor, Figure)
        assert isinstance(nearest, Figure)
        assert (median_factor.value or 9) < (nearest.value or 0)
    assert len(table.columns) == len(by_model)


def test_the_method_page_has_the_rows_of_the_validation() -> None:
    lines = (
        (ROOT / "docs/method.md").read_text().partition("<!-- validation -->\n\n")[2].partition("\n\n")[0].splitlines()
    )
    known = {
        (f"{r['quantity']}, {r['left out']}", r["class"].removeprefix("all ")): r
        for r in data_rows("predict/validation.csv")
    }
    assert len(lines) > 40
    for line in lines[2:]:
        quantity, level, n, median_factor, p90, inside, *_, peer = (cell.strip() for cell in line.strip("|").split("|"))
        row = known[quantity, level]
        numbers = [
            f"{float(row[name]):.2f}x" if row[name] else ""
            for name in ("median factor", "p90 factor", "aiconfigurator")
        ]
        assert [n, median_factor, p90, peer, inside] == [row["n"], *numbers, f"{float(row['inside 90%']):.0%}"]


def test_the_api_gives_a_prediction_as_rows_for_each_gpu() -> None:
    found = api.predict("Llama-3.1-8B", ["H100", "B200"])
    chosen = found[(found["name"] == "output_tokens_per_s") & found["value"].notna()].drop_duplicates("gpu")
    h100, b200 = chosen["value"]
    assert b200 > h100 > 1000
