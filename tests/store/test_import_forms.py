"""Other tools' files of other versions, of failed runs, and files that contradict themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from harness.analysis.summary import summary_of
from harness.errors import HarnessError
from harness.model import Summary
from harness.store.formats.point import Result
from harness.store.imports import points, store_points
from harness.store.run import read_run

DATA = ROOT / "tests/data/imported"
CASES = DATA / "cases"


def point_of(content: Any, folder: Path, name: str = "file.json") -> Result:
    """The only point of a file with this content."""
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    ((_, point),) = points(folder / name)
    return point


def values(point: Result) -> dict[str, float | None]:
    return {figure.name: figure.value for figure in point.figures}


def summary(path: Path, folder: Path) -> Summary:
    (directory,) = store_points(path, folder)
    return summary_of(read_run(directory))


def serve(**changes: Any) -> dict[str, Any]:
    """A file of `vllm bench serve`: 100 requests of 10 tokens in 10 s, 8 users."""
    whole = {
        "backend": "vllm", "model_id": "m", "num_prompts": 100, "request_rate": "inf", "max_concurrency": 8,
        "duration": 10.0, "completed": 100, "failed": 0, "total_input_tokens": 2000, "total_output_tokens": 1000,
        "request_throughput": 10.0, "output_throughput": 100.0, "total_token_throughput": 300.0,
        **{f"{stat}_{what}_ms": x for what, x in (("ttft", 50.0), ("tpot", 20.0), ("itl", 20.0), ("e2el", 230.0))
           for stat in ("mean", "median", "p99")},
    }  # fmt: skip
    return {key: x for key, x in (whole | changes).items() if x != "absent"}


CASE: dict[str, tuple[str, dict[str, Any]]] = {
    "vllm_09_rate.json": ("vllm bench serve", {"requests_per_s": 22.18, "load": {"rate_per_s": 30.0}}),
    "vllm_multiturn_2026.json": ("vllm bench serve", {"load": {"shape": "closed", "users": 4}}),
    "vllm_detailed_failed.json": ("vllm bench serve", {"requests.failed": 1, "tpot_s.mean": 0.02}),
    "sglang_bench_serving.jsonl": (
        "SGLang",
        {"e2e_s.mean": 2.4, "input_tokens_per_s": 1500, "load": {"shape": "poisson", "rate_per_s": 5.0}},
    ),
    "guidellm_warmup_window.json": (
        "guidellm",
        {"requests.completed": 25, "output_tokens.got": 25600, "load": {"users": 1}},
    ),
    "aiperf_warmup_phase.json": ("aiperf or genai-perf", {"load": {"shape": "closed", "users": 16}}),
    "aiperf_02_2025.json": ("aiperf or genai-perf", {"load": {"users": 1}, "model": "org/model"}),
    "genai_perf_2025.json": ("aiperf or genai-perf", {"load": {"users": 8}, "output_tokens.got": 5100}),
    "genai_perf_2025.csv": ("aiperf or genai-perf, CSV", {"ttft_s.mean": 1.0163, "requests.completed": 50}),
    "loadgen_41_server.txt": ("MLPerf LoadGen", {"tpot_s.mean": 0.143097185, "tpot_s.p99": 0.197873909}),
    "loadgen_41_gptj_server.txt": ("MLPerf LoadGen", {"output_tokens_per_s": 6070.26}),
    "mlenergy_results.json": (
        "ML.ENERGY benchmark",
        {"gpu": "B200", "gpus": 2, "load": {"users": 128}, "gpu_power_w": 500, "output_tokens_per_s": 5000},
    ),
    "inferencemax_agg.json": (
        "InferenceX",
        {"gpu": "mi355x", "gpus": 4, "output_tokens_per_s": 1456, "total_tokens_per_s": 13124, "ttft_s.p99": 22.6},
    ),
}


@pytest.mark.parametrize("name", CASE)
def test_the_forms_of_other_versions_are_read(name: str) -> None:
    tool, truth = CASE[name]
    ((kind, point),) = points(CASES / name)
    assert kind.tool == tool
    found: Mapping[str, Any] = values(point)
    for key, expected in truth.items():
        if key == "load":
            assert {part: point.load.get(part) for part in expected} == expected
        else:
            assert (getattr(point, key) if key in ("gpu", "gpus", "model") else found[key]) == pytest.approx(expected)
    assert point.doubts == ()


def test_a_run_in_which_every_request_failed_has_no_latency_and_a_serious_finding(tmp_path: Path) -> None:
    made = summary(CASES / "vllm_all_failed.json", tmp_path)
    latencies = [figure for figure in made.figures if figure.name.startswith(("ttft_s", "tpot_s", "itl_s", "e2e_s"))]
    assert {(figure.value, figure.reason) for figure in latencies} == {(None, "no request completed")}
    (failed,) = (each for each in made.findings if each.code == "failed-requests")
    assert failed.serious
    assert "8 of 8" in failed.text


def test_failures_and_counts_that_differ_are_found_in_a_file_of_guidellm(tmp_path: Path) -> None:
    texts = {each.code: each for each in summary(CASES / "guidellm_mostly_failed.json", tmp_path).findings}
    assert "500 of 532" in texts["failed-requests"].text
    assert texts["file-contradicts"].serious
    assert "32 requests completed, but the end-to-end latencies are of 4" in texts["file-contradicts"].text


@pytest.mark.parametrize(
    ("changes", "both"),
    [
        ({"duration": 20.0}, "requests_per_s 10 x 20 s is 200, but requests.completed is 100"),
        ({"total_output_tokens": 1100}, "output_tokens_per_s 100 x 10 s is 1000, but output_tokens.got is 1100"),
        ({"total_token_throughput": 400.0}, "x 10 s is 4000, but input_tokens.got + output_tokens.got is 3000"),
        ({"failed": 5}, "100 requests completed and 5 failed, but num_prompts is 100"),
        ({"mean_e2el_ms": 2300.0}, "10 requests/s of 2.3 s each are 23 in flight, but there were 8"),
        ({"p99_ttft_ms": 40.0}, "ttft_s.p50 is 0.05, but ttft_s.p99 is 0.04"),
        ({"mean_ttft_ms": 250.0}, "ttft_s.mean is 0.25, but e2e_s.mean is 0.23"),
        ({"input_throughput": 100.0}, "100 input and 100 output tokens/s, but total_tokens_per_s is 300"),
        ({"failed": "absent", "num_prompts": 90}, "100 requests completed, but num_prompts is 90"),
        ({"request_rate": 5.0, "max_concurrency": None}, "10 requests/s completed, but 5 a second were sent"),
        (  # TPOT in seconds under a key of milliseconds
            {f"{stat}_tpot_ms": 0.02 for stat in ("mean", "median", "p99")},
            "tpot_s.mean 2e-05 for 10 tokens are 0.05018, but e2e_s.mean is 0.23",
        ),
    ],
)
def test_a_file_that_contradicts_itself_names_both_values(changes: dict[str, Any], both: str, tmp_path: Path) -> None:
    assert point_of(serve(), tmp_path).doubts == ()
    assert any(both in doubt for doubt in point_of(serve(**changes), tmp_path).doubts)


def test_rounded_digits_are_no_contradiction(tmp_path: Path) -> None:
    rounded = serve(duration=3.333, completed=1, num_prompts=1, request_throughput=0.3, total_output_tokens=10,
                    output_throughput=3.0, total_input_tokens=20, total_token_throughput=9.0)  # fmt: skip
    assert point_of(rounded, tmp_path).doubts == ()


def test_failed_requests_of_older_files_are_those_asked_and_not_completed(tmp_path: Path) -> None:
    assert values(point_of(serve(failed="absent", num_prompts=120), tmp_path))["requests.failed"] == 20


def test_answers_of_one_token_have_no_time_between_tokens(tmp_path: Path) -> None:
    one = serve(total_output_tokens=100, output_throughput=10.0, total_token_throughput=210.0)
    assert not {name for name in values(point_of(one, tmp_path)) if name.startswith(("tpot_s", "itl_s"))}
    zero = values(point_of(serve(mean_tpot_ms=0.0, median_tpot_ms=0.0, p99_tpot_ms=0.0), tmp_path))
    assert "tpot_s.mean" not in zero
    assert zero["itl_s.mean"] == 0.02


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.0, 1e300, 1e-300, "12", True])
def test_a_figure_that_is_no_amount_is_refused_by_name(value: object, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"ttft_s\.mean is .*, not an amount"):
        point_of(json.dumps(serve(mean_ttft_ms=value)), tmp_path)


def test_several_chunks_of_a_detailed_row_share_the_tokens_that_were_counted(tmp_path: Path) -> None:
    """Speculative decoding: 9 tokens in 3 chunks."""
    rows = {"input_lens": [20] * 100, "output_lens": [9] * 100, "ttfts": [0.1] * 100, "itls": [[0.04, 0.04]] * 100,
            "start_times": [1.0] * 100, "errors": [""] * 100}  # fmt: skip
    record = point_of(serve(**rows), tmp_path).records[0]
    assert record.arrival_tokens == (3, 3, 3)


def aiperf(**changes: Any) -> dict[str, Any]:
    whole = json.loads((CASES / "aiperf_warmup_phase.json").read_text()) | changes
    return {key: x for key, x in whole.items() if x != "absent"}


CLOSED = {"shape": "closed", "users": 4}


@pytest.mark.parametrize(
    ("config", "model", "load"),
    [
        ({"model": ["m"], "concurrency": 4, "endpoint": "v1/chat/completions"}, "m", CLOSED),  # genai-perf 0.0.8
        ({"model_names": ["m"], "perf_analyzer": {"stimulus": {"request_rate": 3.0}}}, "m", {"rate_per_s": 3.0}),
        (
            {
                "endpoint": {"model_names": ["m"]},
                "loadgen": {"request_rate": 3.0, "request_rate_mode": "constant", "concurrency": 64},
            },
            "m",
            {"shape": "constant", "rate_per_s": 3.0},
        ),
        (
            {
                "models": {"items": [{"name": "m"}]},
                "phases": [
                    {"name": "a", "kind": "warmup", "type": "concurrency", "concurrency": 1},
                    {"name": "b", "kind": "profiling", "type": "poisson", "rate": 3.0, "concurrency": 64},
                ],
            },
            "m",
            {"shape": "poisson", "rate_per_s": 3.0},
        ),
        ({"phases": [{"name": "a", "concurrency": 4}, {"name": "b", "concurrency": 8}]}, None, {}),  # two loads
        ({"models": ["m"], "phases": []}, "m", {}),
    ],
)
def test_every_generation_of_aiperf_names_its_model_and_load(
    config: dict[str, Any], model: str | None, load: dict[str, Any], tmp_path: Path
) -> None:
    point = point_of(aiperf(input_config=config), tmp_path)
    assert (point.model, dict(point.load)) == (model, load)


def test_aiperfs_units_are_those_of_the_file(tmp_path: Path) -> None:
    point = point_of(
        aiperf(
            time_to_first_token={"unit": "us", "avg": 230100.0},
            inter_token_latency=None,
            inter_chunk_latency={"unit": "ms", "avg": None},
            benchmark_duration={"unit": "ms", "avg": 44520.0},
        ),
        tmp_path,
    )
    found = values(point)
    assert [found["ttft_s.mean"], found["duration_s"]] == pytest.approx([0.2301, 44.52])
    assert not {name for name in found if name.startswith(("tpot_s", "itl_s"))}


def test_a_cancelled_run_of_aiperf_and_one_without_a_success_are_found(tmp_path: Path) -> None:
    assert point_of(aiperf(was_cancelled=True), tmp_path).doubts == ("was_cancelled: the run was cancelled",)
    failed = {"error_summary": [{"error_details": {"code": 500}, "count": 96}], "input_config": {}}
    (tmp_path / "failed.json").write_text(json.dumps(failed))
    made = summary(tmp_path / "failed.json", tmp_path)
    assert made["requests.completed"].value == 0
    assert {each.code for each in made.findings if each.serious} == {"failed-requests"}


def test_records_of_the_warmup_are_left_out_and_cancelled_ones_failed(tmp_path: Path) -> None:
    ((_, kept),) = points(CASES / "aiperf_records_warmup.jsonl")
    assert [record.arrival_s for record in kept.records] == [pytest.approx((0.25, 0.255))]
    ((_, cancelled),) = points(CASES / "aiperf_records_cancelled.jsonl")
    assert [record.error for record in cancelled.records] == [None, "RequestCancellationError"]
    first, second = (CASES / "aiperf_records_warmup.jsonl").read_text().splitlines()
    assert len(point_of(second, tmp_path, "one.jsonl").records) == 1
    with pytest.raises(HarnessError, match="every row is of the warm-up"):
        point_of(first, tmp_path, "warm.jsonl")


def test_metrics_that_are_null_are_absent_in_a_record(tmp_path: Path) -> None:
    row = json.loads((CASES / "aiperf_records_warmup.jsonl").read_text().splitlines()[1])
    row["metrics"] |= {"inter_chunk_latency": None, "output_sequence_length": {"value": None, "unit": "tokens"}}
    (record,) = point_of(row, tmp_path).records
    assert record.arrival_s == pytest.approx((0.25,))
    assert record.output_tokens is None


def test_guidellm_before_04(tmp_path: Path) -> None:
    """`args`, `run_stats` and `worker` in place of `config`, `scheduler_metrics` and `config.backend`."""
    content = json.loads((CASES / "guidellm_warmup_window.json").read_text())
    (benchmark,) = content["benchmarks"]
    benchmark["args"] = {"strategy": {"type_": "concurrent", "streams": 2}}
    benchmark["worker"] = {"backend_model": "org/model"}
    benchmark["run_stats"] = benchmark.pop("scheduler_metrics")
    benchmark["request_totals"] = benchmark["metrics"].pop("request_totals")
    del benchmark["config"], benchmark["metrics"]["prompt_tokens_per_second"]
    point = point_of({"benchmarks": [benchmark]}, tmp_path)
    found = values(point)
    assert (point.model, point.load["users"], found["requests.completed"]) == ("org/model", 2, 25)
    assert "input_tokens_per_s" not in found


def test_inference_perf_before_april_2026(tmp_path: Path) -> None:
    content = json.loads((DATA / "inference_perf.json").read_text())
    seconds = content.pop("benchmark_time_seconds")
    good = content["successes"]
    good["prompt_len"] = {"mean": good.pop("prompt_tokens")["total"] / good["count"]}
    good["output_len"] = {"mean": good.pop("output_tokens")["total"] / good["count"]}
    content["load_summary"] |= {"requested_rate": 20.0}
    point = point_of(content, tmp_path)
    found = values(point)
    assert [found["duration_s"], found["output_tokens.got"]] == pytest.approx([seconds, 640])
    assert dict(point.load) == {"rate_per_s": 20.0}
    content["load_summary"] |= {"concurrency": 4, "count": 50}
    contradicts = point_of(content, tmp_path)
    assert dict(contradicts.load) == CLOSED
    assert contradicts.doubts == ("40 requests succeeded and 0 failed, but 50 were sent",)


def test_inferencex_with_prefill_and_decode_apart(tmp_path: Path) -> None:
    """Input rates are per prefill GPU, output rates per decode GPU, and the file's energy is that of decode alone."""
    (entry,) = json.loads((CASES / "inferencemax_agg.json").read_text())
    entry |= {"hw": "gb200-nv", "num_prefill_gpu": 4, "num_decode_gpu": 12, "avg_power_w": 600.0}
    entry |= {"input_tput_per_gpu": 1200.0, "output_tput_per_gpu": 50.0, "tput_per_gpu": 337.5}
    entry |= {"joules_per_output_token": 3}
    del entry["tp"]
    point = point_of([entry], tmp_path)
    found = values(point)
    assert (found["input_tokens_per_s"], found["output_tokens_per_s"], found["gpu_power_w"]) == (4800, 600, 9600)
    assert "joules_per_output_token" not in found
    assert (point.gpu, point.gpus, point.doubts) == ("gb200", 16, ())


def test_sglang_with_recorded_arrivals(tmp_path: Path) -> None:
    content = json.loads((CASES / "sglang_bench_serving.jsonl").read_text())
    assert dict(point_of(content | {"request_rate": "trace"}, tmp_path).load) == {"shape": "trace"}
    closed = content | {"request_rate": float("inf"), "errors": ["", "boom"]}
    point = point_of(closed, tmp_path)
    assert (dict(point.load), values(point)["requests.failed"]) == ({"shape": "closed", "users": 256}, 1)


def test_loadgens_offline_and_single_stream(tmp_path: Path) -> None:
    text = (CASES / "loadgen_41_gptj_server.txt").read_text().replace("Scenario : Server", "Scenario : Offline")
    offline = text.replace("Completed samples per second    :", "Samples per second:")
    offline = offline.replace("Completed tokens per second (inferred):", "Tokens per second (inferred):")
    point = point_of(offline, tmp_path, "log.txt")
    assert (values(point)["output_tokens_per_s"], dict(point.load)) == (6070.26, {"shape": "offline"})
    single = text.replace("Completed samples per second    :", "QPS w/ loadgen overhead         :")
    assert values(point_of(single.replace("Offline", "SingleStream"), tmp_path, "log.txt"))["requests_per_s"] == 87.97


def test_a_run_that_loadgen_calls_invalid_is_doubted(tmp_path: Path) -> None:
    text = (CASES / "loadgen_41_server.txt").read_text().replace("Result is : VALID", "Result is : INVALID")
    assert point_of(text, tmp_path, "log.txt").doubts == ("LoadGen calls this run INVALID",)


def test_mlenergys_zero_joules_per_token_are_none(tmp_path: Path) -> None:
    content = json.loads((CASES / "mlenergy_results.json").read_text()) | {"steady_state_energy_per_token": 0.0}
    found = values(point_of(content, tmp_path))
    assert found["gpu_power_w"] == 500
    assert "joules_per_output_token" not in found


def test_an_energy_of_0_is_none_and_power_is_compared_with_the_energy_of_a_token(tmp_path: Path) -> None:
    content = json.loads((CASES / "mlenergy_results.json").read_text())
    none = values(point_of(content | {"steady_state_energy": 0}, tmp_path))
    assert not {"gpu_power_w", "output_tokens_per_s"} & set(none)
    row = {
        "model_id": "m", "gpu_model": "H100", "num_gpus": 1, "output_throughput_tokens_per_sec": 1000.0,
        "energy_per_token_joules": 0.5, "energy_per_request_joules": 50.0, "avg_power_watts": 500_000.0,
    }  # fmt: skip
    wrong = point_of({"task": "t", "configurations": [row]}, tmp_path)
    assert wrong.doubts == ("5e+05 W at 1000 tokens/s, but joules_per_output_token is 0.5",)
    assert point_of({"task": "t", "configurations": [row | {"avg_power_watts": 500.0}]}, tmp_path).doubts == ()


@pytest.mark.parametrize(
    ("key", "value", "both"),
    [
        ("mean_ttft_ms", 5.0, "ttft_s.mean is 0.005, but the rows give "),
        ("total_output_tokens", 10, "output_tokens.got is 10, but the rows give "),
        ("completed", 30, "requests.completed is 30, but the rows give 40"),
    ],
)
def test_figures_are_compared_with_the_rows_of_their_file(key: str, value: float, both: str, tmp_path: Path) -> None:
    content = json.loads((DATA / "vllm_serve.json").read_text())
    assert point_of(content, tmp_path).doubts == ()
    assert any(doubt.startswith(both) for doubt in point_of(content | {key: value}, tmp_path).doubts)
