"""Other tools' results: their files against what the same tool printed on its terminal, to the digits it printed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from builders import changed
from places import ROOT

from harness.analysis.summary import summary_of
from harness.errors import HarnessError
from harness.files import read_data
from harness.store.imports import points, store_points
from harness.store.run import read_run

DATA = ROOT / "tests/data/imported"

PRINTED: dict[str, dict[str, str]] = {
    "vllm_serve.json": {
        "requests.completed": "40", "requests.failed": "0", "duration_s": "0.67",
        "input_tokens.got": "787", "output_tokens.got": "640",
        "requests_per_s": "59.75", "output_tokens_per_s": "956.04", "total_tokens_per_s": "2131.67",
        "ttft_s.mean": "0.05686", "ttft_s.p50": "0.05614", "ttft_s.p99": "0.06095",
        "tpot_s.mean": "0.00504", "tpot_s.p99": "0.00512",
        "itl_s.mean": "0.00504", "itl_s.p50": "0.00500", "itl_s.p90": "0.00583", "itl_s.p99": "0.00700",
        "e2e_s.mean": "0.13251", "e2e_s.p95": "0.13651", "e2e_s.p99": "0.13685",
    },
    "vllm_throughput.json": {"requests_per_s": "6.40", "total_tokens_per_s": "307.19"},
    "guidellm.json": {
        "requests.completed": "40", "duration_s": "0.7", "input_tokens.got": "1280", "output_tokens.got": "640",
        "requests_per_s": "53.9", "input_tokens_per_s": "1724.9", "output_tokens_per_s": "862.5",
        "total_tokens_per_s": "2587.4", "e2e_s.p95": "0.1",
        "ttft_s.mean": "0.0545", "ttft_s.p50": "0.0528", "ttft_s.p95": "0.0636", "tpot_s.mean": "0.0050",
    },
    "aiperf.json": {
        "requests.completed": "40", "duration_s": "0.72", "requests_per_s": "54.90", "output_tokens_per_s": "878.38",
        "total_tokens_per_s": "2635.13", "ttft_s.mean": "0.05579", "ttft_s.p50": "0.05558", "ttft_s.p99": "0.06216",
        "tpot_s.mean": "0.00520", "tpot_s.p90": "0.00550", "tpot_s.p99": "0.00570",
        "e2e_s.mean": "0.13371", "e2e_s.p90": "0.13859",
    },
    "inference_perf.json": {
        "requests.completed": "40", "e2e_s.mean": "0.1273", "e2e_s.p90": "0.1282", "ttft_s.mean": "0.0517",
        "ttft_s.p90": "0.0521", "itl_s.mean": "0.0050", "itl_s.p50": "0.0051", "itl_s.p90": "0.0056",
        "tpot_s.p90": "0.0050",
    },
    "loadgen.txt": {
        "requests_per_s": "20.19", "output_tokens_per_s": "330.60", "ttft_s.mean": "0.050770147",
        "ttft_s.p99": "0.054074909", "tpot_s.p50": "0.005012455", "response_s.p95": "0.128276265",
    },
}  # fmt: skip
"""File -> figure -> what the tool itself printed of it, in SI units."""
PRINTED["aiperf.csv"] = PRINTED["aiperf.json"]


@pytest.mark.parametrize("name", PRINTED)
def test_figures_are_those_that_the_tool_printed(name: str, tmp_path: Path) -> None:
    (directory,) = store_points(DATA / name, tmp_path)
    summary = summary_of(read_run(directory))
    whole = {each.name for each in summary.figures if each.name.startswith("whole_run.") and each.status == "reported"}
    assert bool(whole) == (name == "vllm_serve.json")  # its rows have a measured window
    for figure, printed in PRINTED[name].items():
        figure = f"whole_run.{figure}" if f"whole_run.{figure}" in whole else figure
        value = summary[figure].value
        assert value is not None, figure
        decimals = len(printed.partition(".")[2])
        assert f"{value:.{decimals}f}" == printed, figure
        assert summary[figure].status == "reported"
    assert summary.findings[0].code == "imported"


def test_a_value_missing_in_the_file_stays_missing(tmp_path: Path) -> None:
    (directory,) = store_points(DATA / "vllm_throughput.json", tmp_path)
    missing = summary_of(read_run(directory))["ttft_s.p50"]
    assert (missing.value, missing.reason) == (None, "vllm bench throughput does not give it")


@pytest.mark.parametrize(("rows", "summary"), [("vllm_serve.json",) * 2, ("aiperf.jsonl", "aiperf.json")])
def test_rows_give_the_same_figures_as_the_tool(rows: str, summary: str, tmp_path: Path) -> None:
    """Computed here from the rows: the same latencies, to what an interpolated percentile may differ by."""
    (from_rows,) = store_points(DATA / rows, tmp_path)
    run = read_run(from_rows)
    assert run.file.imported is not None
    bare = changed(run, imported=None)
    (from_summary,) = store_points(DATA / summary, tmp_path)
    computed, printed = summary_of(bare), summary_of(read_run(from_summary))
    for name in ("ttft_s.p50", "ttft_s.p90", "itl_s.mean", "itl_s.p50", "tpot_s.mean", "tpot_s.p50", "e2e_s.p50"):
        expected = printed[f"whole_run.{name}" if rows == summary else name].value
        assert computed[f"whole_run.{name}"].value == pytest.approx(expected, rel=0.02), name


def test_leaderboard_rows_are_points_with_their_gpu(tmp_path: Path) -> None:
    rows = list(csv.DictReader(read_data("published/mlenergy_v3_h100.csv").splitlines()))[:3]
    counts, texts = {"num_gpus", "max_num_seqs"}, {"task", "model_id", "gpu_model", "weight_precision"}
    used = {"avg_output_len", "output_throughput_tokens_per_sec", "energy_per_token_joules", "avg_power_watts"}
    used |= {"energy_per_request_joules", "median_itl_ms", "p90_itl_ms", "p95_itl_ms", "p99_itl_ms"} | counts | texts
    fields = [
        {key: int(x) if key in counts else x if key in texts else float(x) for key, x in row.items() if key in used}
        for row in rows
    ]
    file = tmp_path / "gpqa.json"
    file.write_text(json.dumps({"task": "gpqa", "task_display_name": "GPQA", "configurations": fields}))
    directories = store_points(file, tmp_path)
    assert len(directories) == 3
    run = read_run(directories[0])
    summary = summary_of(run)
    assert summary["joules_per_output_token"].value == float(rows[0]["energy_per_token_joules"])
    assert summary["itl_s.p50"].value == pytest.approx(float(rows[0]["median_itl_ms"]) / 1e3)
    assert run.on_gpu
    assert [gpu.name for gpu in run.environment.gpus] == ["H100"]


def test_energy_of_the_benchmark_is_that_of_its_steady_state(tmp_path: Path) -> None:
    content = json.loads((DATA / "vllm_serve.json").read_text())
    content |= {"steady_state_energy": 5000.0, "steady_state_duration": 10.0, "steady_state_energy_per_token": 0.5}
    file = tmp_path / "results.json"
    file.write_text(json.dumps(content))
    ((kind, point),) = points(file)
    values = {figure.name: figure.value for figure in point.figures}
    assert kind.tool == "ML.ENERGY benchmark"
    assert (values["gpu_power_w"], values["output_tokens_per_s"], values["joules_per_output_token"]) == (500, 1000, 0.5)
    assert values["requests_per_s"] == content["request_throughput"]


def test_a_sweep_gives_one_point_per_entry(tmp_path: Path) -> None:
    content = json.loads((DATA / "vllm_serve.json").read_text())
    file = tmp_path / "summary.json"
    file.write_text(json.dumps([content, content | {"max_concurrency": 16}]))
    assert [point.load["users"] for _, point in points(file)] == [8, 16]


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "[1]", "null", "hello", '{"a": 1}', "\x00", '{"elapsed_time": ', "[" * 99_999]
)
def test_an_unknown_file_names_the_keys_that_were_expected(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(HarnessError) as refused:
        points(tmp_path / "x.json")
    assert "x.json" in refused.value.what
    assert all(key in refused.value.fix for key in ("output_throughput", "benchmarks.metrics", "load_summary"))


@pytest.mark.parametrize("name", PRINTED)
def test_a_damaged_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Whatever is cut out, the file is read or refused; never a traceback, never an empty point."""
    content = (DATA / name).read_text()
    damaged = tmp_path / name
    lines = content.splitlines(keepends=True) if name.endswith((".txt", ".csv")) else None
    if lines:
        variants = ["".join(lines[:i] + lines[i + 1 :]) for i in range(len(lines))]
    else:
        whole = json.loads(content)
        variants = [json.dumps({k: v for k, v in whole.items() if k != key}) for key in whole]
        wrongs: tuple[Any, ...] = (None, "x", [], {})
        variants += [json.dumps(whole | {key: wrong}) for key in whole for wrong in wrongs]
    refusals = []
    for variant in variants:
        damaged.write_text(variant)
        try:
            assert all(point.figures for _, point in points(damaged))
        except HarnessError as refused:
            refusals.append(refused.what)
    assert refusals
    assert all(name in what for what in refusals)


@pytest.mark.parametrize(
    "wrong",
    [{"model_id": 5}, {"model_id": ["a"]}, {"model_id": "\ud800"}]
    + [{"steady_state_energy": 5, "steady_state_duration": 1, "num_gpus": n} for n in (-1, 10**12, "8")],
)
def test_a_point_that_cannot_be_stored_is_refused_by_name(wrong: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "serve.json"
    file.write_text(json.dumps(json.loads((DATA / "vllm_serve.json").read_text()) | wrong))
    with pytest.raises(HarnessError, match=r"serve\.json"):
        store_points(file, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"absent\.json"):
        store_points(tmp_path / "absent.json", tmp_path)


def test_an_imported_model_has_the_size_that_its_name_gives(tmp_path: Path) -> None:
    file = tmp_path / "serve.json"
    text = (DATA / "vllm_serve.json").read_text("utf-8")
    file.write_text(text.replace('"model_id": "known"', '"model_id": "meta-llama/Llama-3.3-70B-Instruct"'), "utf-8")
    (directory,) = store_points(file, tmp_path / "results", "H100", 4)
    model = read_run(directory).model
    assert (model.parameters, model.active_parameters) == (70_000_000_000, 70_000_000_000)
