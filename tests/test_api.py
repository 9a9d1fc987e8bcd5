"""The notebook page's code runs, and frames say their units."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import Command

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the code of docs/notebooks.md leaves behind, run in an empty directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        found: dict[str, Any] = {"here": Path.cwd()}
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/notebooks.md").read_text(), re.S):
            exec(block, found)
        return found


def test_frames_hold_their_units_and_requests_their_latencies(names: dict[str, Any]) -> None:
    assert names["points"]["users"].tolist() == [4, 16]
    assert names["every"].attrs["units"]["output_tokens_per_s"] == "tokens/s"
    requests = names["requests"]
    assert {"ttft_s", "tpot_s", "e2e_s"} <= set(requests.columns)
    assert requests.attrs["units"] | {"e2e_s": "s", "output_tokens": "tokens"} == requests.attrs["units"]
    assert names["costs"].attrs["units"]["usd_per_query"] == "USD/query"
    assert set(names["guess"]["gpu"]) == {"H100", "B200"}
    change = names["change"]
    assert change[change["key"] == "output_tokens_per_s"]["value"].notna().any()
    assert len(names["press"])


def test_a_report_shows_its_page_in_a_notebook_and_has_altair_charts(names: dict[str, Any]) -> None:
    shown = names["shown"]
    assert shown._repr_html_().startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert shown.charts["ttft-load"].to_dict()["$schema"].startswith("https://vega.github.io/schema/vega-lite")


def test_requests_are_written_as_csv(names: dict[str, Any], harness: Command) -> None:
    run = names["here"] / "results" / names["run"]
    assert harness("report", str(run), "--requests-csv", "requests.csv").code == 0
    rows = pd.read_csv("requests.csv")
    assert rows["ttft_s"].median() == pytest.approx(names["requests"]["ttft_s"].median())
    assert set(rows["run"]) == {names["run"]}
