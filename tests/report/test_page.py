"""The page: nothing that a run says acts in it, it asks for nothing, and its what-if shows what the verbs print."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
from builders import GPU, a_run, changed, stored

from harness import cli
from harness.analysis.summary import load
from harness.cost.bill import Costs
from harness.cost.pricing import price_run
from harness.facts import whatif
from harness.facts.appraisal import shipped_book
from harness.facts.formulas import Context
from harness.facts.gap import bill_a_prompt
from harness.model import Figure, ModelIdentity, Record, Summary
from harness.report import document, page
from harness.report.facts import facts_table
from harness.report.format import carried
from harness.report.table import Table
from harness.store.directory import RunWriter
from harness.store.run import Run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
HEBREW = "„הכנסות של 4.3 מיליארד דולר” (A11)"
BOOK = shipped_book()


def requests(tokens_in: int, tokens_out: int) -> list[Record]:
    """One after the other: each takes 1 ms an input token, 10 ms an output token and 5 ms more."""
    records, now = [], 0.0
    for index in range(40):
        n_in, n_out = tokens_in + 7 * (index % 5), tokens_out + index % 7
        first = now + 0.005 + 0.001 * n_in
        times = tuple(first + 0.01 * (i + 1) for i in range(n_out))
        records.append(Record(index, now, now, times[-1], times, (1,) * n_out, n_in, n_out, n_in, n_out, 0, "length"))
        now = times[-1]
    return records


def run(tokens_in: int, tokens_out: int) -> tuple[Run, Summary]:
    """A run of two H100."""
    made = a_run(
        *requests(tokens_in, tokens_out),
        id=f"run-{tokens_in}-{tokens_out}",
        workload={},
        engine=GPU | {"device_count": 2, "model": ModelIdentity("m", "m", parameters=8 * 10**9)},
        environment={"gpus": [{"name": "NVIDIA H100 80GB HBM3"}]},
    )
    figures = (
        Figure("output_tokens_per_s", 3000.0, "1/s", "measured", 2900.0, 3100.0),
        Figure("total_tokens_per_s", 9000.0, "1/s", "measured"),
        Figure("requests_per_s", 12.0, "1/s", "measured", 11.7, 12.4),
        Figure("joules_per_request", 90.0, "J", "measured", 85.0, 95.0),
        Figure("joules_per_output_token", 0.36, "J", "measured"),
    )
    return made, Summary(made.id, "complete", figures, {})


RUNS = (run(300, 3), run(20, 60), run(150, 25))
"""A start from each."""


@pytest.fixture(scope="module")
def tab() -> Iterator[chromium.Page]:
    if chromium.PROGRAM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as files,
        chromium.page(Path(files) / "profile") as tab,
    ):
        tab.size(1280)
        yield tab


@pytest.fixture(scope="module")
def starts() -> list[whatif.Json]:
    return whatif.starts(RUNS, Context(BOOK))


def shown(tab: chromium.Page) -> dict[str, tuple[float, ...]]:
    """By figure, every number that its row shows: the value, then p5, p95 and mean where there are any."""
    rows = tab.evaluate(
        "[...document.querySelectorAll('[data-figure]:not([hidden])')].map(row => "
        "[row.dataset.figure, row.querySelector('.value').textContent, row.querySelector('.aside').textContent])"
    )
    number = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?")
    return {
        name: tuple(float(x.replace(",", "")) for x in number.findall(value + aside.replace("p5–p95", "")))
        for name, value, aside in rows
    }


def move(tab: chromium.Page, sliders: dict[str, float]) -> None:
    """Type each value into its field, as a user would."""
    for name, value in sliders.items():
        tab.evaluate(
            f"(() => {{ const field = document.querySelector('[data-slider={name}] [type=number]');"
            f"field.value = {value!r}; field.dispatchEvent(new Event('input')); }})()"
        )


def settings(start: whatif.Json, seed: int) -> dict[str, float]:
    """A random value for each slider that can be moved."""
    rng = np.random.default_rng(seed)
    movable = {name: given for name, given in start["sliders"].items() if isinstance(given, dict)}
    return {name: float(f"{rng.uniform(given['low'], given['high']):.6g}") for name, given in movable.items()}


def printed(figure: Figure, factor: float = 1.0, within: float = 0.0) -> Any:
    """Value, p5 and p95 as a page prints them: to the last digit that the interval of the value carries.

    `within`: a share of the value by which they may differ besides.
    """
    ends = value, low, high = [end and end * factor for end in (figure.value, figure.low, figure.high)]
    shown = carried(Figure("x", value, "USD", "derived", low, high))[0].replace(",", "")
    whole, _, decimals = shown.partition(".")
    place = 10.0 ** (-len(decimals) if decimals else len(whole) - len(whole.rstrip("0")))
    assert value is not None
    return pytest.approx([end for end in ends if end is not None], abs=0.5001 * place + within * value)


def costs_at(x: dict[str, float]) -> Costs:
    """What `harness cost` makes of the same inputs."""
    return price_run(*RUNS[0], None, {key: x[slider] for slider, key in whatif.COST}).costs


def test_at_20_random_settings_the_page_shows_what_the_verbs_print(
    tab: chromium.Page, starts: list[whatif.Json], tmp_path: Path
) -> None:
    tab.open(written(tmp_path, page.render("t", [], (), [starts[0]])))
    for seed in range(20):
        x = settings(starts[0], seed)
        move(tab, x)
        found, costs = shown(tab), costs_at(x)
        measured = 250.0  # output tokens a request: 3000 a second over 12 requests a second
        longer = x["output"] / measured
        assert found["usd_per_query"] == printed(costs["usd_per_query"], longer * 1e6), x
        assert found["usd_per_million_output_tokens"] == printed(costs["usd_per_million_output_tokens"]), x
        assert found["wh_per_query"] == printed(costs["wh_per_query"], longer, 1e-4), x
        bill, cost = bill_a_prompt(Context(BOOK)), costs["usd_per_query"].value
        assert bill.value is not None
        assert cost is not None
        gap = x["chat_share"] / (cost * longer)
        reported = Figure("bill", bill.value, "USD", "reported", bill.low, bill.high)
        assert found["reported_usd_per_query"] == printed(reported, x["chat_share"] * 1e6), x
        assert found["gap"] == printed(reported, gap), x
        assert found["agreeing_usd_per_hour"] == printed(reported, gap * x["price"]), x
        assert found["queries_per_subscription"] == printed(Figure("n", 20 / (cost * longer), "1", "derived")), x


def test_the_commands_on_a_page_print_what_the_page_shows(
    tab: chromium.Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def harness(command: str) -> str:
        monkeypatch.setattr("sys.argv", command.split())
        with contextlib.suppress(SystemExit):
            cli.main()
        return capfd.readouterr().out

    monkeypatch.chdir(tmp_path)
    file = RUNS[1][0].file
    writer = RunWriter(tmp_path / "results", file)
    for record in requests(20, 60):
        writer.add(record)
    writer.finish("complete")
    harness(f"harness report {file.id} --format html --out page.html")
    tab.open(tmp_path / "page.html")
    assert tab.complaints == []
    move(
        tab, {"price": 2.34, "utilisation": 0.43, "chat_share": 0.27}
    )  # at the run's own length: `cost` knows no other
    commands = tab.evaluate("document.querySelector('.commands').textContent").split("\n")
    assert [command.split()[1] for command in commands] == ["cost", "compare"]
    cost, compare = (
        {
            str(row[0]): row[1:]
            for table in json.loads(harness(f"{command} --format json"))["tables"]
            for row in table["rows"]
        }
        for command in commands
    )
    found = shown(tab)
    for name in ("usd_per_query", "usd_per_million_output_tokens"):
        times = 1e6 if name == "usd_per_query" else 1.0
        assert found[name] == printed(Figure(**cost[name][0]), times)
    gap = compare["reported / measured"][1]["value"]  # of draws, and of all the bill
    assert found["gap"][0] == pytest.approx(gap * 0.27, rel=0.1)


def test_published_measurements_move_with_their_price(
    tab: chromium.Page, starts: list[whatif.Json], tmp_path: Path
) -> None:
    start = next(start for start in starts if start["label"].startswith("published"))
    tab.open(written(tmp_path, page.render("t", [], (), [start])))
    x = settings(start, 0)
    move(tab, x)
    once, (cheap,) = shown(tab)["gap"], shown(tab)["usd_per_million_output_tokens"]
    move(tab, {**x, "price": x["price"] / 2})
    assert shown(tab)["gap"] == pytest.approx([2 * end for end in once], rel=0.05)
    assert shown(tab)["usd_per_million_output_tokens"][0] == pytest.approx(cheap / 2, rel=0.01)


def test_a_page_loads_nothing_and_runs_no_text_of_a_run(
    tab: chromium.Page, starts: list[whatif.Json], tmp_path: Path
) -> None:
    named = Table(HOSTILE, HOSTILE, ("model", HOSTILE), ((HOSTILE, HEBREW),), (HOSTILE,))
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><clipPath id="clip0"/><g clip-path="url(#clip0)"/></svg>'
    hostile = {**starts[1], "label": HOSTILE}
    html = page.render(
        HOSTILE, [named], [(HOSTILE, HOSTILE, HOSTILE, svg), ("second", "b", "c", svg)], [hostile, *starts]
    )
    assert len(html.encode()) < 3e6
    tab.open(written(tmp_path, html))
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [(tmp_path / "page.html").as_uri()]
    assert tab.evaluate("document.scripts.length") == 2
    assert tab.evaluate("document.images.length") == 0
    assert tab.evaluate("document.querySelector('h1').textContent") == HOSTILE
    assert tab.evaluate("document.querySelector('#what-if option').textContent") == HOSTILE
    assert tab.evaluate("getComputedStyle(document.querySelector('[data-table] td')).direction") == "rtl"
    targets = (
        "[...document.querySelectorAll('nav a')].map(a => document.querySelector(a.getAttribute('href')) !== null)"
    )
    assert tab.evaluate(targets) == [True] * 2
    assert tab.evaluate("new Set([...document.querySelectorAll('clipPath')].map(x => x.id)).size") == 2


def test_a_table_too_long_for_a_page_is_cut_and_says_so() -> None:
    html = page.render("t", [Table("n", "t", ("n",), tuple((str(i),) for i in range(1234)))])
    assert html.count("<tr>") == 1 + page.MOST_ROWS
    assert "the first 500 of 1,234 rows" in html


def test_the_policy_of_a_page_blocks_an_injected_script(tab: chromium.Page, tmp_path: Path) -> None:
    html = page.render("t", []).replace(
        "<main", "<script>window.ran = 1</script><img src='https://127.0.0.1:9/x'><main"
    )
    tab.open(written(tmp_path, html))
    assert tab.evaluate("window.ran === undefined")
    assert len(tab.complaints) == 2


def test_keys_move_a_slider_and_a_screen_reader_announces_it(
    tab: chromium.Page, starts: list[whatif.Json], tmp_path: Path
) -> None:
    tab.open(written(tmp_path, page.render("t", [], (), starts)))
    heard = "document.querySelector('[aria-live=polite]').textContent"
    before, said = shown(tab)["gap"], tab.evaluate(heard)
    tab.evaluate("document.querySelector('label[for=slide-chat_share]').control.focus()")
    for kind in ("rawKeyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    assert tab.evaluate("document.querySelector('[data-slider=chat_share] [type=number]').value") == "0.41"
    assert shown(tab)["gap"][0] > before[0]
    assert tab.evaluate(heard) != said
    tab.evaluate("document.querySelector('#what-if button').click()")
    assert shown(tab)["gap"] == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_tables_and_never_the_page(
    tab: chromium.Page, starts: list[whatif.Json], tmp_path: Path, scheme: str
) -> None:
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.size(360, 740)
    tab.open(written(tmp_path, page.render("t", [facts_table(BOOK.facts.values())], (), starts)))
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert tab.evaluate("(box => box.scrollWidth > box.clientWidth)(document.querySelector('.scroll'))")
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    tab.size(1280)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three loads on two versions of an engine."""
    root = tmp_path_factory.mktemp("study")
    sweep = [load(stored(root, users)) for users in (4, 8, 32)]
    for run, summary in list(sweep):
        assert run.engine is not None
        newer = changed(run, id=f"{run.id}-newer", engine=run.engine.model_copy(update={"version": "0.99"}))
        folder = shutil.copytree(run.directory, root / f"{run.id}-newer")
        sweep.append((Run(folder, newer.file), dataclasses.replace(summary, run=folder.name)))
    return written(root, document.page_of(document.report(sweep, "on-demand"), sweep, "on-demand"))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("single")
    sweep = [load(stored(root))]
    return written(root, document.page_of(document.report(sweep, "on-demand"), sweep, "on-demand"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_a_page_fits_the_screen_and_neither_complains_nor_asks_the_network(
    tab: chromium.Page, study: Path, single: Path, width: int, scheme: str
) -> None:
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.size(width)
    for path in (study, single):
        assert path.stat().st_size < 5e5
        tab.open(path)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.complaints == []
        assert [url for url in tab.requests if not url.startswith(("data:", "file:"))] == []
    tab.size(1280)


def test_a_page_begins_with_what_was_measured_the_serious_findings_and_the_key_figures(
    tab: chromium.Page, single: Path
) -> None:
    tab.open(single)
    assert tab.evaluate("document.querySelector('h1').textContent") == "Qwen3-8B bfloat16 on 1 x H100 80GB HBM3"
    assert "load-not-held" in tab.evaluate("document.querySelector('.banner').textContent")
    tiles = tab.evaluate("[...document.querySelectorAll('.tiles div')].map(x => x.innerText.split('\\n'))")
    assert tiles[0][0] == "Output throughput"
    assert {tile[0] for tile in tiles} >= {"TTFT, p99", "Energy per output token", "USD per M output tokens"}
    marked = [mark for tile in tiles for mark in re.findall(r"no interval (\[\d\])", tile[-1])]
    reasons = tab.evaluate("document.querySelector('.reasons').innerText")  # a phone shows no text on hovering
    assert marked
    assert all(f"{mark} " in reasons for mark in marked)
    assert "intervals: 95%" in reasons
    assert tab.evaluate("document.querySelector('#what-if option').textContent").startswith("20261121T120000Z-")
    parts = tab.evaluate("[...document.querySelectorAll('h2')].map(x => x.textContent)")
    assert parts == ["Results", "Against the press", "What if", "Sources", "Methods"]


def test_a_study_is_narrowed_to_one_engine_and_starts_from_its_best_point(tab: chromium.Page, study: Path) -> None:
    tab.open(study)
    rows = "[...document.querySelectorAll('[data-table=runs] tbody tr')].filter(x => x.checkVisibility()).length"
    marks = "[...document.querySelectorAll('[data-chart=ttft-load] [aria-roledescription=point]')]"
    seen = f"{marks}.filter(x => getComputedStyle(x).display !== 'none').length"
    assert (tab.evaluate(rows), tab.evaluate(seen)) == (6, 12)
    choose = "s => { s.value = 'vllm 0.99'; s.dispatchEvent(new Event('change')); }"
    tab.evaluate(f"({choose})(document.querySelector('.choose select'))")
    assert (tab.evaluate(rows), tab.evaluate(seen)) == (3, 6)
    assert "32 users" in tab.evaluate("document.querySelector('#what-if option').textContent")
    assert "32 users · vllm 0.99: TTFT in ms" in tab.evaluate(f"{marks}.map(x => x.getAttribute('aria-label')).join()")
    lines = "[...document.querySelectorAll('[data-chart=ttft] [aria-roledescription=\"line mark\"]')]"
    seen = f"{lines}.filter(x => getComputedStyle(x).display !== 'none').map(x => x.getAttribute('aria-label'))"
    assert all(name.startswith("vllm 0.99, ") for name in tab.evaluate(seen))
    assert len(tab.evaluate(seen)) == 3


def test_a_table_is_sorted_by_its_numbers_and_downloads_as_csv(tab: chromium.Page, tmp_path: Path) -> None:
    figures = [Figure("ttft_s.p50", value, "s", "measured", 0.001, 0.02) for value in (0.009, None, 0.010)]
    rows = tuple((name, "k", figure) for name, figure in zip(("=b", "a", "c"), figures, strict=True))
    tab.open(written(tmp_path, page.render("t", [Table("n", "t", ("name", "kind", "TTFT"), rows)])))
    heads = "[...document.querySelectorAll('thead th')].filter(x => x.checkVisibility()).map(x => x.textContent).join()"
    assert tab.evaluate(heads) == "name,TTFT, ms"
    assert tab.evaluate("document.querySelector('.notes li').textContent") == "in every row: kind k"
    tab.evaluate("URL.createObjectURL = blob => { window.made = blob; return '#'; }")
    tab.evaluate("document.querySelectorAll('th button')[2].click()")
    names = "[...document.querySelectorAll('tbody th')].map(x => x.textContent).join()"
    assert tab.evaluate(names) == "=b,c,a"
    tab.evaluate("document.querySelectorAll('th button')[2].click()")
    assert tab.evaluate(names) == "c,=b,a"  # what is missing stays last
    tab.evaluate("document.querySelector('.csv').click()")
    heads, *lines = tab.evaluate("window.made.text()").splitlines()
    assert heads == '"name","kind","TTFT","TTFT low","TTFT high","TTFT unit"'
    assert lines == ['"c","k","10","1","20","ms"', '"\'=b","k","9","1","20","ms"', '"a","k","","1","20","ms"']


def test_a_number_outside_its_range_is_told_and_has_no_result(
    tab: chromium.Page, starts: list[whatif.Json], tmp_path: Path
) -> None:
    tab.open(written(tmp_path, page.render("t", [], (), starts)))
    before = shown(tab)
    move(tab, {"utilisation": 1.7})
    assert tab.evaluate("document.querySelector('[data-slider=utilisation] small').textContent") == (
        "give a number from 0.05 to 1"
    )
    assert set(shown(tab).values()) == {()}
    tab.evaluate("document.querySelector('#what-if button').click()")
    assert shown(tab) == before


def written(directory: Path, html: str) -> Path:
    path = directory / "page.html"
    path.write_text(html, encoding="utf-8")
    return path
