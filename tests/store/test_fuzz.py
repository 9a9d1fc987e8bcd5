"""Result files and stored runs with random damage: each is read or refused by name, without a traceback or warning.

`pytest tests/store/test_fuzz.py --fuzz SEED:COUNT` tries as many others.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import stored
from places import ROOT

from harness.analysis import index
from harness.analysis.summary import summary_of
from harness.cli.tables import runs_lines, runs_tables
from harness.errors import CONTROL, HarnessError
from harness.report import changes, document, formats
from harness.store.imports import store_points
from harness.store.run import read_run

FILES = sorted(
    path for path in (ROOT / "tests/data/imported").rglob("*.*") if path.suffix in (".json", ".jsonl", ".csv", ".txt")
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "\ud800", "\x00\x1b[2J", "=1+1", "n/a", "1e400", [], {}, [[]], [None], {"a": {}}),
    *(0, -1, 1, 2**31, 2**63, 10**30, -(10**400), 0.5, -0.0, 1e-320, 1e20, 1e308, -1e308),
    *(float("nan"), float("inf"), -float("inf"), "9" * 5000, ["x"] * 50, "2026-01-02T03:04:05", "0001-01-01T00:00:00Z"),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every map or list inside, with each of its keys."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def damaged(rng: random.Random, values: list[Any]) -> list[Any]:
    """A copy of JSON values with one to three changes."""
    whole = copy.deepcopy(values)
    for _ in range(rng.randint(1, 3)):
        if not (inside := list(places(whole))):
            return whole
        at, key = rng.choice(inside)
        match rng.randrange(6):
            case 0:
                del at[key]
            case 1 if isinstance(at[key], int | float):
                at[key] = float(at[key]) * rng.choice([-1, 0, 1e-9, 1e9, 1e300])
            case 2:
                other, its = rng.choice(inside)
                at[key] = copy.deepcopy(other[its]) if len(repr(other[its])) < 5000 else None
            case 3 if isinstance(at, list):
                at.append(copy.deepcopy(at[key]))
            case _:
                at[key] = rng.choice(VALUES)
    return whole


JUNK = (b"", b"\x00", b"\xff\xfe", b"-", b"NaN", b"1e999", b"{", b"]", b",,", b'"', b"\n\n")


def scrambled(rng: random.Random, content: bytes) -> bytes:
    """Bytes that are cut, changed, left out or doubled."""
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    changed = content[:a] + rng.choice([*JUNK, rng.randbytes(1)]) + content[a + 1 :]
    return rng.choice([content[:a], changed, content[:a] + content[b:], content[:b] + content[a:]])


def imported(rng: random.Random, place: Path) -> None:
    """Imports a damaged file, and reports the runs."""
    source = rng.choice(FILES)
    file, content = place / source.name, source.read_bytes()
    if source.suffix in (".json", ".jsonl") and rng.random() < 0.8:
        values = list(map(json.loads, content.splitlines() if source.suffix == ".jsonl" else [content]))
        content = "\n".join(map(json.dumps, damaged(rng, values))).encode()
    else:
        content = scrambled(rng, content)
    file.write_bytes(content)
    for directory in store_points(file, place / "runs"):
        shown(directory)


def shown(directory: Path) -> None:
    """What most verbs do with a run."""
    run = read_run(directory)
    summary = summary_of(run)
    tables = document.report([(run, summary)])
    for kind in ("text", "json", "csv"):
        formats.render(tables, kind, [summary])
    changes.difference([run], [run], force=True)


def reread(rng: random.Random, place: Path, whole: Path) -> None:
    """Reads a damaged copy of a stored run, whose rows are in a Parquet file or in a journal."""
    directory = shutil.copytree(whole, place / "run")
    path = directory / rng.choice(["run.json", "summary.json", "requests.parquet", "power.parquet"])
    if path.name != "run.json":  # without the digests of its files
        raw = json.loads((directory / "run.json").read_text()) | {"sha256": {}}
        (directory / "run.json").write_text(json.dumps(raw))
    if path.name != "summary.json":
        (directory / "summary.json").unlink()
    if rng.random() < 0.25:
        path.write_bytes(scrambled(rng, path.read_bytes()))
    elif path.suffix == ".json":
        path.write_text("".join(map(json.dumps, damaged(rng, [json.loads(path.read_text())]))))
    else:
        rows = damaged(rng, pq.read_table(path).slice(0, 40).to_pylist())
        path.unlink()
        if rng.random() < 0.5:
            path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            with suppress(pa.ArrowException, TypeError, AttributeError, OverflowError, UnicodeError):  # no such columns
                pq.write_table(pa.Table.from_pylist(rows), path)
    shown(directory)


ODD_COLUMNS: tuple[list[Any], ...] = (
    *([None], ["", "x", "\x1b[2J"], [b"\xff"], [True, False], [{"a": 1}, None], [[], None, [None]], [[[1]]], [[]]),
    *([float("nan")], [float("inf"), 0.0], [-1], [2**62], [1e14, -1e14], [datetime(2026, 1, 2)], [Decimal(1)]),
)
"""Values of a column of another type."""


def reshaped(rng: random.Random, place: Path, whole: Path) -> None:
    """Reads a copy of a stored run whose Parquet files have other columns or rows, or that are no regular files."""
    directory = shutil.copytree(whole, place / "run")
    raw = json.loads((directory / "run.json").read_text()) | {"sha256": {}}
    (directory / "run.json").write_text(json.dumps(raw))
    (directory / "summary.json").unlink()
    path = directory / rng.choice(["requests.parquet", "power.parquet"])
    table = pq.read_table(path)
    for _ in range(rng.randint(1, 3)):
        at, other = rng.randrange(table.num_columns), rng.randrange(table.num_columns)
        name, n = table.column_names[at], len(table)
        match rng.randrange(8):
            case 0:
                table = table.remove_column(at)
            case 1:
                table = table.append_column(name, table.column(other))
            case 2:
                table = table.set_column(at, name, table.column(other))
            case 3:
                table = table.slice(0, rng.randrange(4))
            case 4 if n:
                table = table.take(rng.choices(range(n), k=n))
            case _:
                values = rng.choice(ODD_COLUMNS)
                table = table.set_column(at, name, pa.array(rng.choices(values, k=n)))
    pq.write_table(table, path, row_group_size=rng.choice([7, 1000]), compression=rng.choice(["none", "gzip"]))
    if rng.random() < 0.1:
        odd = directory / rng.choice(["requests.parquet", "power.parquet", "summary.json", "server.parquet"])
        odd.unlink(missing_ok=True)
        match rng.randrange(3):
            case 0:
                odd.mkdir()
            case 1:
                os.mkfifo(odd)
            case _:
                odd.symlink_to("/dev/zero")
    shown(directory)


PLANTED = (
    *("=1+1", "@x", "-1+1", "\t=1", "\n=1", "\r=1", "＝1", "\x1b[2J\x1b]0;x\x07", "\x9b31m", "\u202ex", "\ufffe"),
    *("<script>alert(1)</script>", "</script><script>", '" onload="x', "'><img src=x>", "\n::error::x"),
)
"""Texts that a spreadsheet would run, or that a terminal, a page or a CI log would not print as they are."""
FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠](?!\d[\d.e-]*$)")
KEPT = {"schema_version", "state", "created_utc", "engine_asked", "utc", "status", "device", "domain", "meter"}


def planted(rng: random.Random, place: Path, whole: Path) -> tuple[list[str], list[str]]:
    """Reports of a copy of a stored run with such texts, and of its original: screens, the page last, and CSV files."""
    text = rng.choice(PLANTED)

    def plant(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: each if key in KEPT else plant(each) for key, each in value.items()}
        if isinstance(value, list):
            return list(map(plant, value))
        return rng.choice(PLANTED) if isinstance(value, str) and rng.random() < 0.7 else value

    directory = shutil.copytree(whole, place / "run")
    shutil.copytree(whole, place / "good")
    (directory / "summary.json").unlink()
    raw = plant(json.loads((directory / "run.json").read_text()))
    figure = {"name": text, "value": 1.0, "unit": text, "status": "reported", "reason": text, "interval": text}
    values = {text: text, "load.users": text}
    raw |= {"sha256": {}, "error": text, "sweep": {"name": text, "key": text, "values": values}}
    raw |= {"imported": {"tool": text, "file": text, "figures": [figure], "notes": [text]}}
    (directory / "run.json").write_text(json.dumps(raw))
    table = pq.read_table(directory / "requests.parquet")
    for name in ("error", "error_text", "finish_reason"):
        texts = [rng.choice(PLANTED) if i % 7 == 0 else None for i in range(len(table))]
        table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
    pq.write_table(table, directory / "requests.parquet")
    sweep = [(run, summary_of(run)) for run in map(read_run, (directory, place / "good"))]
    runs = [run for run, _ in sweep]
    tables = document.report(sweep, None, ["all"])
    found, _, lines = changes.difference(runs[:1], runs[1:], force=True)
    screens = [document.first_screen(some, None, 100) for some in (sweep[:1], sweep)] + lines
    screens += [runs_lines(runs_tables(place), 100), changes.as_xml(text, [(text, text, "failed")])]
    screens += [str(formats.render([*tables, *found], kind)) for kind in ("text", "md", "latex", "json")]
    screens += [str(HarnessError(text, text)), document.page_of(document.report(sweep[:1]), sweep[:1], None)]
    requests = runs[0].requests[["error", "error_text"]]
    return screens, [formats.csv(index.figures(place)), formats.csv(requests), str(formats.render(tables, "csv"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = stored(tmp_path_factory.mktemp("whole"))
    summary_of(read_run(directory))
    return directory


def test_planted_texts_are_printed_as_texts(whole: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seed, _, count = request.config.getoption("--fuzz").partition(":")
    for number in range(int(seed), int(seed) + max(1, int(count) // 20)):
        (place := tmp_path / f"{number}").mkdir()
        screens, files = planted(random.Random(number), place, whole)
        shutil.rmtree(place)
        for screen in screens:
            assert not CONTROL.search(screen.replace("\n", "")), (number, screen[:500])
        assert not any(line.startswith("::error::") for screen in screens for line in screen.splitlines())
        assert not re.search(r"<(script>alert|img)", screens[-1])
        for content in files:
            cells = [cell for row in csv.reader(io.StringIO(content)) for cell in row]
            assert not [cell for cell in cells if FORMULA.match(cell)], number
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", content), number


@pytest.mark.parametrize("kind", ["imported", "reread", "reshaped"])
def test_damage_is_read_or_refused(kind: str, whole: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seed, _, count = request.config.getoption("--fuzz").partition(":")
    trials: dict[str, Callable[[random.Random, Path], None]] = {
        "imported": imported,
        "reread": lambda rng, at: reread(rng, at, whole),
        "reshaped": lambda rng, at: reshaped(rng, at, whole),
    }
    ended: dict[str, int] = {}
    for number in range(int(seed), int(seed) + int(count)):
        place = tmp_path / "place"
        place.mkdir()
        try:
            with warnings.catch_warnings(action="error", category=RuntimeWarning):
                trials[kind](random.Random(number), place)
            how = "read"
        except HarnessError:
            how = "refused"
        except Exception as error:
            error.add_note(f"seed {number}")
            raise
        ended[how] = ended.get(how, 0) + 1
        shutil.rmtree(place)
    assert set(ended) == {"read", "refused"}
