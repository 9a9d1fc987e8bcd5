"""Charts draw the figures of the tables: bounds as bounds, axes with units, inside the width that is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from builders import changed, stored

from harness.analysis.summary import load
from harness.model import Figure
from harness.predict.priced import priced
from harness.report import charts, document, run_charts
from harness.report.charts import PAGE, WIDTH, Chart
from harness.report.predict import prediction_tables
from harness.report.table import Table
from harness.store.run import Run


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    """Of three runs that differ in load, and of one of them."""
    root = tmp_path_factory.mktemp("charts")
    sweep = [load(stored(root, users)) for users in (4, 8, 32)]
    return [*document.report(sweep, "on-demand"), *document.report(sweep[:1], "on-demand")]


@pytest.fixture(scope="module")
def made(tables: list[Table]) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts.of_tables(tables)}


def data(chart: Chart) -> list[dict[str, Any]]:
    """Every row that the chart draws."""
    drawn: list[dict[str, Any]] = []

    def add(spec: dict[str, Any]) -> None:
        drawn.extend(row for row in spec.get("data", {}).get("values", ()) if row not in drawn)
        for part in (*spec.get("layer", ()), *spec.get("vconcat", ())):
            add(part)

    add(chart.spec)
    return drawn


def drawn(chart: Chart, width: int) -> str:
    """As SVG; it has to be no wider than asked."""
    svg = charts.svg(chart)
    found = re.search(r'<svg[^>]* width="(\d+)"', svg)
    assert found is not None
    assert int(found[1]) <= width + 20, (chart.name, found[1])
    return svg


@pytest.mark.parametrize("width", [WIDTH, PAGE])
def test_every_chart_of_the_tables_is_drawn_within_the_width_and_names_its_unit(
    tables: list[Table], width: int
) -> None:
    units = {
        "tornado": "share of the variance", "spend-revenue": "spend / revenue", "must-be": "median of what is believed",
    }  # fmt: skip
    found = {chart.name: drawn(chart, width) for chart in charts.of_tables(tables, width)}
    assert found.keys() == units.keys()
    assert [name for name, unit in units.items() if unit not in found[name]] == []


def test_the_front_of_a_prediction_has_each_batch_with_both_intervals_and_the_best_marked() -> None:
    found = priced("gpt-oss-120b", "H100")
    tables = prediction_tables(found)
    (chart,) = charts.of_tables(tables)
    assert "token/s of one user" in drawn(chart, WIDTH)
    (front,) = (table for table in tables if table.name == "front")
    rows = {str(label): (user, gpu) for label, user, gpu, *_ in front.rows}
    assert [row["batch"] for row in data(chart)] == [label.removesuffix(" *") for label in rows]
    for row, (label, (user, gpu)) in zip(data(chart), rows.items(), strict=True):
        assert isinstance(user, Figure)
        assert isinstance(gpu, Figure)
        assert (row["x_low"], row["x_high"], row["low"], row["high"]) == (user.low, user.high, gpu.low, gpu.high)
        assert row["best"] == label.endswith("*")


def test_a_one_sided_bound_is_drawn_to_the_end_of_the_plot() -> None:
    def row(bound: str, value: float, low: float | None = None, high: float | None = None) -> tuple[Any, ...]:
        figure = Figure("r", value, "ratio", "derived", low, high, interval=f"bound {bound}")
        return (f"inference spend / {bound}", bound, figure, "ratio", "2024", "cash", "leaked", "articles", "A")

    columns = ("quantity", "bound", "value", "unit", "period", "basis", "status", "layer", "source")
    rows = (row("<=", 1.5), row(">=", 0.5), row("~", 0.9), row("range", 1.1, 1.0, 1.25))
    (chart,) = charts.of_tables([Table("reported", "T", columns, rows)])
    spans = {row["series"]: (row["from"], row["to"], row["value"]) for row in data(chart) if "series" in row}
    top = 1.5 * 1.12
    assert spans["at most"] == (0.0, 1.5, 1.5)
    assert spans["at least"] == (0.5, pytest.approx(top), 0.5)
    assert spans["about"] == (0.9, 0.9, 0.9)
    assert spans["between"] == (1.0, 1.25, None)  # no one value is more likely than another


def test_several_runs_are_drawn_against_their_load_with_the_limits_of_their_objectives(tmp_path: Path) -> None:
    sweep = [load(stored(tmp_path, users)) for users in (32, 4)]
    tables = document.report(sweep, "on-demand")
    drawings = {chart.name: chart for chart in run_charts.of_report(tables, sweep, PAGE)}
    ttft = [row for row in data(drawings["ttft-load"]) if "series" in row]
    p50 = [summary["ttft_s.p50"].value * 1e3 for _, summary in sweep]  # type: ignore[operator]
    assert [(row["x"], row["value"]) for row in ttft if row["series"] == "p50"] == list(zip((32, 4), p50, strict=True))
    assert {"limit": 200.0} in data(drawings["ttft-load"])
    labels = re.findall(r"role-axis-label.*?</g>", drawn(drawings["ttft-load"], PAGE))[0]
    assert re.findall(r">(\d+)</text>", labels) == ["4", "32"]  # a tick at each load that was measured
    assert "32 users: TTFT in ms" in ttft[0]["about"]
    speed = [1 / summary["tpot_s.p50"].value for _, summary in sweep]  # type: ignore[operator]
    assert [row["x"] for row in data(drawings["throughput-interactivity"]) if "x" in row] == speed
    priced = next(table for table in tables if table.name == "tiers")
    costs = {cell.value for row in priced.rows if row[2] == "on-demand" and isinstance(cell := row[3], Figure)}
    for name in ("cost-latency", "cost-load"):
        assert {row["value"] for row in data(drawings[name]) if "value" in row} == costs
    assert "4 users" in drawn(drawings["ttft"], PAGE)


def test_one_run_has_no_chart_against_load_and_a_chart_of_tokens_alone_names_no_power(tmp_path: Path) -> None:
    run, summary = load(stored(tmp_path))
    (tmp_path / run.id / "power.parquet").unlink()
    found = {chart.name: chart.title for chart in run_charts.of_report([], [(changed(run, sha256={}), summary)])}
    assert found.keys() == {"ttft", "itl", "over-time"}
    assert found["over-time"] == "Tokens over time"


def test_runs_are_drawn_as_distributions_and_over_time_with_their_phases(tmp_path: Path) -> None:
    run, summary = load(stored(tmp_path))
    idled = changed(run, idle={"bare": (-9.0, -5.0), "after": (200.0, 204.0)})
    found = {chart.name: chart for chart in run_charts.of_report([], [(idled, summary)])}
    assert found.keys() == {"ttft", "itl", "over-time"}
    ttft = data(found["ttft"])
    assert (ttft[0]["y"], ttft[-1]["y"]) == (0.0, 1.0)
    middle = next(row["x"] for row in ttft if row["y"] == 0.5)
    assert middle == pytest.approx(summary["ttft_s.p50"].value * 1e3, rel=0.01)  # type: ignore[operator]
    over_time = data(found["over-time"])
    assert {row["phase"] for row in over_time if "phase" in row} == {"idle: bare", "idle: after", "load"}
    watts = [row["v"] for row in over_time if row.get("v", 0) > 400]
    assert watts == pytest.approx([505.0] * len(watts))
    assert "power of GPUs in W" in drawn(found["over-time"], WIDTH)


def test_a_sweep_over_two_settings_has_a_map_and_over_one_has_none(tmp_path: Path) -> None:
    run, summary = load(stored(tmp_path))

    def at(users: int, tokens: int) -> Run:
        return changed(run, workload={"load": {"users": users}, "requests": {"input_tokens": tokens}})

    sweep = [(at(users, tokens), summary) for users in (1, 2, 4) for tokens in (64, 512)]
    (chart,) = [each for each in run_charts.of_report([], sweep) if each.name == "sweep"]
    assert {(row["x"], row["y"]) for row in data(chart)} == {(u, n) for u in (1, 2, 4) for n in (64, 512)}
    assert "sweep" not in {
        each.name for each in run_charts.of_report([], [(at(users, 64), summary) for users in (1, 2)])
    }


def test_one_specification_gives_every_format(made: dict[str, Chart], tmp_path: Path) -> None:
    tornado = [made["tornado"]]
    begins = {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF", "html": b"<!DOCTYPE html>"}
    for format_, magic in begins.items():
        (path,) = charts.write(tornado, tmp_path, format_)  # type: ignore[arg-type]
        assert path.read_bytes().lstrip().startswith(magic)
    assert "<script src" not in (tmp_path / "tornado.html").read_text(encoding="utf-8")  # it opens offline


def test_a_report_from_the_command_line_writes_its_tables_and_charts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", "report", str(stored(tmp_path)), "--table", "latency"]
    written = ["--format", "parquet", "--out", str(tmp_path / "t.parquet"), "--charts", str(tmp_path / "drawn")]
    subprocess.run([*command, *written], check=True, capture_output=True)
    assert set(pd.read_parquet(tmp_path / "t.parquet")["table"]) == {"latency"}
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"ttft.svg", "itl.svg", "over-time.svg"}


def test_a_missing_extra_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['vl_convert'] = None; from harness.cli import main; main()"
    command = [sys.executable, "-c", code, "compare", "--charts", str(tmp_path / "drawn")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "charts need vl-convert" in done.stderr
    assert "pip install" in done.stderr
