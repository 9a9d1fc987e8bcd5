"""Figures in words, tables as text at any width, and JSON that gives back every number."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from builders import CPU, a_run, frame_of, record
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from harness.analysis.latency import summarise
from harness.model import Figure, Finding, Record, Summary
from harness.report import formats, tables, text
from harness.report.format import ends, number, words
from harness.report.formats import Format
from harness.report.table import PROPERTIES, Cell, Table


def figure(**changes: Any) -> Figure:
    return replace(Figure("rate", 12.3456, "tokens/s", "measured"), **changes)


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        (figure(), "12.3 tokens/s (measured)"),
        (figure(n=1), "12.3 tokens/s (n=1; measured)"),
        (figure(n=20, low=11.0, high=13.5), "12.3 tokens/s (95%: 11.0–13.5; measured)"),
        (figure(low=11.0), "12.3 tokens/s (95%: ≥ 11.0; measured)"),
        (figure(high=13.0, interval="bound <="), "12.3 tokens/s (bound <=: ≤ 13.0; measured)"),
        (figure(value=None), "n/a (not recorded)"),
        (figure(value=None, reason="no request succeeded", n=0), "n/a (no request succeeded)"),
        (
            figure(reason="its interval needs 29 requests", n=3),
            "12.3 tokens/s (n=3; its interval needs 29 requests; measured)",
        ),
        (figure(name="ttft_s.p99", value=0.0123, unit="s"), "12.3 ms (measured)"),  # a latency
        (figure(name="lag_s.p50", value=8.388e-5, unit="s"), "0.084 ms (measured)"),  # no finer than a microsecond
        (figure(name="duration_s", value=0.0123, unit="s"), "0.0123 s (measured)"),  # not a latency
        (figure(value=0.98765, unit="share", status="simulated"), "98.8% (simulated)"),
        (figure(value=0.0), "0 tokens/s (measured)"),
        (figure(value=0.0, low=0.0, high=0.25), "0.00 tokens/s (95%: 0.00–0.25; measured)"),
    ],
)
def test_a_figure_in_words(given_: Figure, said: str) -> None:
    assert words(given_) == said


@given(st.floats(-1e15, 1e15, allow_subnormal=False))
def test_a_number_without_an_interval_is_right_to_three_digits(value: float) -> None:
    shown = number(value)
    times = {"tn": 1e12, "bn": 1e9, " M": 1e6}.get(shown[-2:], 1.0)
    parsed = float(re.sub("[ ,bntM]", "", shown)) * times
    assert math.isclose(parsed, value, rel_tol=5.01e-3)


@given(st.floats(1e-3, 1e8), st.floats(0.5, 1), st.floats(1, 2))
def test_interval_ends_have_the_decimals_of_what_they_enclose(value: float, below: float, above: float) -> None:
    shown = ends(figure(value=value, low=value * below, high=value * above)) or ""
    low, high = shown.split("–")
    decimals = [len(re.sub(r"[ bnM]", "", end).partition(".")[2]) for end in (low, high)]
    assert decimals[0] == decimals[1] <= 6


def summary(*records: Record, state: str = "complete", simulated: bool = False) -> Summary:
    made = summarise("20261121T120000Z-m-demo", state, frame_of(list(records)), {"ttft_s": 0.2}, simulated)
    return replace(made, findings=(Finding("lag", "the harness sent late", "free a core", serious=True),))


FORTY = [record(i) for i in range(40)]


def rendered(*records: Record, width: int = 80, simulated: bool = False, **changes: Any) -> str:
    state = changes.get("state", "complete")
    made = summary(*records, state=state, simulated=simulated)
    run = a_run(**changes)
    return text.render([*tables.measured_tables(run, made), tables.environment_table(run)], width, color=False)


def test_the_latency_table_at_80_columns() -> None:
    made = summary(*FORTY)
    bounded = {"ttft_s.p50": (0.102, 0.104), "e2e_s.p90": (0.135, 0.136)}
    figures = tuple(
        replace(x, low=bounded[x.name][0], high=bounded[x.name][1], reason=None) if x.name in bounded else x
        for x in made.figures
    )
    found = text.render(tables.measured_tables(a_run(), replace(made, figures=figures)), 80, color=False)
    assert (
        found[found.index("Latency") : found.index("Requests that")]
        == """\
Latency (ms, 95% interval below each, measured)
latency   mean          p50          p90   p95   p99    n
─────────────────────────────────────────────────────────
TTFT       103        103.0          106   106   106   40
           [1]  102.0–104.0          [1]   [1]   [1]
ITL       10.0         10.0         10.0  10.0  10.0  120
           [1]          [1]          [1]   [1]   [1]
TPOT      10.0         10.0         10.0  10.0  10.0   40
           [1]          [1]          [1]   [1]   [1]
E2E        133          133        136.0   136   136   40
           [1]          [1]  135.0–136.0   [1]   [1]
response   133          133          136   136   136   40
           [1]          [1]          [1]   [1]   [1]
lag          0            0            0     0     0   40
           [1]          [1]          [1]   [1]   [1]
[1] no interval of a whole run

"""
    )


def test_the_first_table_shows_the_conditions_of_the_run() -> None:
    found = rendered(*FORTY)
    assert found.startswith(
        """\
Run 20261121T120000Z-m-demo
state     complete
started   2026-11-21 12:00:00 UTC
model     m: LlamaForCausalLM, 135 M parameters, float32 (stored as Q4_1)
engine    vllm 0.11
device    Epyc, 2 cores usable
workload  demo: a demonstration
requests  count 40, input_tokens 10
load      poisson, rate_per_s 100
warmup    requests 1
took      engine start 12.346 s, measured 1 s
"""
    )
    assert "40 of 40 completed, 0 failed, 0 cut off" in found
    assert "first token within 200 ms of the due time  100%" in found
    assert "lag (serious)  the harness sent late  free a core" in found
    assert "packages        vllm 0.11" in found


@pytest.mark.parametrize(
    ("engine", "environment", "model", "device"),
    [
        (
            CPU
            | {
                "device": "cuda",
                "device_count": 2,
                "model": {"asked": "m", "parameters": 47e9, "active_parameters": 13e9},
            },
            {"gpus": [{"name": "NVIDIA H100"}]},
            "model     m: 47 bn parameters, 13 bn active",
            "device    2 × NVIDIA H100",
        ),
        (None, {}, "model     m", None),
    ],
)
def test_what_is_known_of_model_and_device(
    engine: dict[str, Any] | None, environment: dict[str, Any], model: str, device: str | None
) -> None:
    lines = rendered(engine=engine, environment=environment).splitlines()
    assert model in lines
    assert (device in lines) if device else not any(line.startswith("device") for line in lines)


def test_a_note_under_the_latencies_counts_unseen_gaps() -> None:
    grouped = [replace(each, arrival_s=each.arrival_s[:3], arrival_tokens=(1, 1, 2)) for each in FORTY]
    assert "33.3% of the gaps between tokens went unseen" in rendered(*grouped)
    assert "went unseen" not in rendered(*FORTY)


def test_a_failed_run_reads_and_has_no_zeros() -> None:
    failed = [replace(each, error="rejected", arrival_s=(), arrival_tokens=()) for each in FORTY]
    found = rendered(*failed, state="failed", error="the engine died")
    assert "state     failed: the engine died" in found
    assert "output tokens  n/a (no request succeeded)" in found
    assert re.search(r"^TTFT( +n/a \[1\]){5} +0$", found, re.MULTILINE)
    assert re.search(r"^rejected +40$", found, re.MULTILINE)
    assert "Failed requests" not in rendered(*FORTY)


def test_simulated_figures_are_marked_and_measured_ones_are_not() -> None:
    found = rendered(*FORTY, simulated=True, engine_asked="simulated")
    for title in ("Throughput", "Latency", "Requests that met", "Tokens of"):
        assert re.search(rf"^{title}.*SIMULATED\)$", found, re.MULTILINE), title
    assert "model     none: the engine is simulated" in found
    assert "SIMULATED" not in rendered(*FORTY)


RATES = (figure(name="a", n=3), figure(name="b", unit="requests/s", value=1234.5, n=3, status="assumed"))


@pytest.mark.parametrize(
    ("columns", "cells", "line"),
    [
        (("what", "value"), RATES[:1], "x     12.3 tokens/s (n=3; measured)"),
        (("what", "value", "unit"), (*RATES[:1], "tok/s"), "x     12.3 (n=3; measured)  tok/s"),
        (("what", "value", "status"), (*RATES[:1], "stated"), "x     12.3 tokens/s (n=3)  stated"),
        (("what", "value", "n"), (*RATES[:1], "3"), "x     12.3 tokens/s (measured)  3"),
        (("what", "value", "bound"), (figure(low=1.0), ">="), "x     12.3 tokens/s (measured)  >="),
    ],
)
def test_a_cell_does_not_repeat_what_has_its_own_column(
    columns: tuple[str, ...], cells: tuple[str | Figure, ...], line: str
) -> None:
    assert line in text.render([Table("t", "T", columns, (("x", *cells),))], 80, color=False).splitlines()


def test_the_title_has_what_all_figures_share_and_each_figure_the_rest() -> None:
    found = text.render([Table("t", "T", ("what", "value"), (("x", RATES[0]), ("y", RATES[1])))], 80, color=False)
    assert found.splitlines()[0] == "T (n=3)"
    assert "x      12.3 tokens/s (measured)" in found
    assert "y     1,230 requests/s (assumed)" in found


def test_a_wide_table_of_mixed_figures_keeps_status_interval_and_reason() -> None:
    cells = (figure(low=11.0, high=13.0), figure(interval="p5-p95", low=1.0, high=2.0), figure(status="assumed", n=4))
    table = Table("t", "T", ("what", "a", "b", "c", "d"), (("x", *cells, figure(value=None, reason="no meter")),))
    found = text.render([table], 100, color=False)
    for part in ("95%: 11.0–13.0; measured", "p5-p95: 1.0–2.0; measured", "n=4; assumed", "n/a [1]", "[1] no meter"):
        assert part in found
    narrow = text.render([table], 40, color=False)  # what has no room is beneath the row
    assert "d: n/a [1]" in narrow
    assert "[1] no meter" in narrow
    assert re.search("^what +a$", narrow, re.MULTILINE)


ARABIC = "تلقت مايكروسوفت 493.8 مليون دولار كمدفوعات لمشاركة الإيرادات من OpenAI خلال عام 2024"
WORDS = st.lists(st.sampled_from([*ARABIC.split(), "revenue", "分成收入", "a" * 30, "é"]), max_size=25).map(" ".join)
CELLS = st.one_of(WORDS, st.none(), st.builds(figure, value=st.none() | st.floats(-1e9, 1e9), n=st.none() | st.just(3)))


@example([(figure(value=None), "مايكروسوفت"), (" ".join(["تلقت"] * 15), None)], "")  # a long text among figures
@given(st.integers(1, 9).flatmap(lambda k: st.lists(st.tuples(*[CELLS] * k), min_size=1, max_size=3)), WORDS)
def test_any_table_fits_80_columns_and_loses_no_word(rows: list[tuple[Any, ...]], note: str) -> None:
    columns = tuple(f"c{i}" for i in range(len(rows[0])))
    found = text.render([Table("t", "title", columns, tuple(rows), (note,))], 80, color=False)
    assert max(map(cell_len, found.splitlines())) <= 80
    for cell in (cell for row in rows for cell in row if isinstance(cell, str)):
        for word in cell.split():
            assert word in found


def test_a_right_to_left_quote_has_its_own_line() -> None:
    found = text.render([Table("t", "T", ("id", "quote", "n"), (("A01", ARABIC, "7"),))], 80, color=False)
    assert found.splitlines()[1:] == [
        "id   n",
        "──────",
        "A01  7",
        "    quote: تلقت مايكروسوفت 493.8 مليون دولار كمدفوعات لمشاركة الإيرادات من",
        "    OpenAI خلال عام 2024",
        "",
    ]


def test_a_narrow_table_prints_a_claim_as_one_phrase_and_beneath_a_row_what_has_no_room() -> None:
    columns = ("what", "bound", "value", "unit", "period", "of", "source")
    hard, soft = figure(low=1.0, high=15.0, interval="bound range"), figure(low=11.0, high=13.0, interval="p5-p95")
    table = Table(
        "t", "T", columns,
        (
            ("a rate", "range", hard, "tokens/s", "2024", "x" * 30, "A01"),
            ("another", "~", soft, "tokens/s", "2025", "x" * 30, "A02"),
            ("words", "", "no number", "none", "2025", "x" * 30, "A03"),
        ),
    )  # fmt: skip
    assert text.render([table], 50, color=False).splitlines()[1:] == [
        "  in every row",
        f"  of: {'x' * 30}",
        "what     claim                      period  source",
        "─" * 50,
        "a rate   1 to 15 tokens/s           2024    A01",
        "         (measured)",
        "another  ~ 12.3 tokens/s (p5-p95:   2025    A02",
        "         11.0–13.0; measured)",
        "words    no number                  2025    A03",
        "",
    ]
    long = replace(table, rows=(("r" * 62, *table.rows[0][1:]),))
    assert text.render([long], 70, color=False).splitlines()[3:] == [
        "r" * 62,
        "    1 to 15 tokens/s (measured) · 2024",
        f"    of: {'x' * 30} · A01",
        "",
    ]


def test_a_narrow_table_says_once_what_all_rows_share() -> None:
    costs = tuple(figure(name=f"usd{i}", unit="USD/query", low=11.0, high=13.0, interval="p5-p95") for i in range(3))
    columns = ("run", "load", "scenario", "USD per million output tokens", "USD per million tokens", "USD per query")
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (f"20261126T1819{i}0Z-a-much-longer-llama8b-w", f"{i} users", "on-demand", *costs) for i in (8, 32)
    )
    wide, narrow = (text.render([Table("tiers", "T", columns, rows)], width, color=False) for width in (140, 76))
    assert "in every row" not in wide
    assert "  in every row · scenario: on-demand\n" in narrow
    assert max(map(cell_len, narrow.splitlines())) <= 76
    assert "    load: 32 users" in narrow.splitlines()


def test_control_characters_of_an_error_do_not_reach_the_terminal() -> None:
    found = text.render([Table("t", "T", ("a", "b"), (("x", "red \x1b[31m\r\nal\u202earm\x07"),))], 80, color=False)
    assert "red  [31m al arm" in found
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", found)


def test_color_is_for_terminals_and_empty_tables_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    table = Table("findings", "Findings", ("finding", "seen"), ())
    assert text.render([table], 80, color=False) == "Findings\n  none\n\n"
    assert "\x1b[" in text.render([table], 80, color=True)
    assert (
        text.render([replace(table, columns=PROPERTIES, rows=(("a", "b"),))], 80, color=False) == "Findings\na  b\n\n"
    )


def test_json_gives_back_every_figure_in_full() -> None:
    made = summary(*FORTY)
    shown = tables.measured_tables(a_run(), made)
    read = json.loads(formats.render(shown, "json", [made]))
    assert read["schema_version"] == 1
    (run,) = read["runs"]
    assert run["run"] == made.run
    assert {name: Figure(**fields) for name, fields in run["figures"].items()} == {x.name: x for x in made.figures}
    assert [Finding(**fields) for fields in run["findings"]] == list(made.findings)
    assert run["errors"] == {}
    for table, fields in zip(shown, read["tables"], strict=True):
        rows = [tuple(Figure(**x) if isinstance(x, dict) else x for x in row) for row in fields["rows"]]
        assert (table.name, table.columns, table.rows) == (fields["name"], tuple(fields["columns"]), tuple(rows))


def test_json_has_null_for_a_figure_that_is_not_a_number() -> None:
    read = json.loads(formats.render([Table("t", "T", ("a",), ((figure(value=math.nan),),))], "json"))
    assert read["tables"][0]["rows"][0][0]["value"] is None


@pytest.mark.parametrize("form", ["text", "md"])
def test_reasons_that_differ_in_a_count_are_one_note_of_a_table(form: Format) -> None:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (f"r{n}", *(figure(reason=f"its interval needs {need} requests, has {n}", n=n) for need in (29, 59, 99, 299)))
        for n in (5, 7)
    )
    shown = str(formats.render([Table("t", "T", ("what", "a", "b", "c", "d"), rows)], form))
    found = [line.removeprefix("- ") for line in shown.splitlines() if "its interval" in line]
    assert found == [f"[{i}] its interval needs {x} requests, has 5-7" for i, x in enumerate((29, 59, 99, 299), 1)]
