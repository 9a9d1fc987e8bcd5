"""The screens of README.md are what the commands above them print; this test writes them anew where they are not."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
from commands import Command
from places import ROOT

README = ROOT / "README.md"
SCREEN = re.compile(r"(<!-- screen: (.*?) -->\n```text\n)(.*?)```", re.S)


def test_the_readme_is_short_and_its_screens_are_what_the_commands_print(
    harness: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with tarfile.open(ROOT / "results/published/h100/runs.tgz") as runs:
        runs.extractall(tmp_path / "results", filter="data")
    monkeypatch.setenv("COLUMNS", "100")
    before = README.read_text(encoding="utf-8")
    assert len(SCREEN.findall(before)) == 2

    def made(screen: re.Match[str]) -> str:
        done = harness(*screen[2].split())
        assert done.code == 0, done.err
        return f"{screen[1]}{done.out}```"

    after = SCREEN.sub(made, before)
    if after != before:
        README.write_text(after, encoding="utf-8")
    assert after == before, "README.md had an old screen and has the new one now: look at it and commit it"
    assert after.count("\n") < 150
