"""What is published under results/ is what the tool makes today."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from places import ROOT, script

PUBLISHED = ROOT / "results/published"
STALE = "run scripts/publish-results, and name a figure that moved in CHANGELOG.md"


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published")
    script("publish-results").publish(out, draw=False)
    return out


def test_the_same_files_are_published(again: Path) -> None:
    kept = {path.name for path in PUBLISHED.iterdir() if path.is_file()}
    assert {path.name for path in again.iterdir()} == kept
    sizes = [path.stat().st_size for path in PUBLISHED.rglob("*") if path.is_file() and path.name != "runs.tgz"]
    assert sum(sizes) < 1.1e6


@pytest.mark.parametrize(
    "path", sorted([*PUBLISHED.glob("*.md"), *PUBLISHED.glob("*.tex")]), ids=lambda path: path.name
)
def test_published_documents_are_what_the_tool_makes(again: Path, path: Path) -> None:
    assert (again / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), STALE


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.csv")), ids=lambda path: path.name)
def test_published_data_are_what_the_tool_makes_to_nine_digits(again: Path, path: Path) -> None:
    """Another processor may round the last digit of a logarithm in another way."""
    kept, made = (pd.read_csv(folder / path.name) for folder in (PUBLISHED, again))
    pd.testing.assert_frame_equal(made, kept, rtol=1e-9, atol=1e-15)
    assert math.isfinite(kept["value"].abs().max())
