"""What CI uses: limits, JUnit XML, the summary of a job, the composite action, a trend, and a command at the end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from commands import QUICK, Command

from harness.analysis.gates import Gate, of_figures, parse_gate
from harness.errors import HarnessError
from harness.model import Figure

ROOT = Path(__file__).resolve().parents[2]
HELD = Figure("ttft_s.p99", 0.5, "s", "measured", 0.45, 0.56)
BARE = Figure("output_tokens_per_s", 100.0, "1/s", "measured")
ABSENT = Figure("joules_per_output_token", None, "J", "measured", reason="no meter")


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("ttft_s.p99>400ms", "failed"),
        ("ttft_s.p99>0.5", "undecided"),  # the interval reaches from 0.45 to 0.56 s
        ("ttft_s.p99>0.01min", "passed"),
        ("output_tps<100.5", "failed"),  # without an interval the value is judged
        ("output_tps<99", "passed"),
        ("joules_per_token>1", "failed"),  # a figure that is not known keeps no limit
    ],
)
def test_a_limit_fails_beyond_the_whole_interval(text: str, outcome: str) -> None:
    figures = {figure.name: figure for figure in (HELD, BARE, ABSENT)}
    assert [found for *_, found in of_figures([parse_gate(text, change=False)], figures)] == [outcome]


def broken_limits(xml: Path) -> list[str]:
    """Limits that JUnit XML says were not kept; a machine at work also has serious findings."""
    (suite,) = ElementTree.parse(xml).getroot()
    failed = [test.get("name") or "" for test in suite if test.find("failure") is not None]
    assert (suite.get("tests"), suite.get("failures")) == (f"{len(suite)}", f"{len(failed)}")
    return [name for name in failed if ">" in name]


def test_a_limit_that_is_none_is_refused_with_a_form_or_a_name() -> None:
    assert parse_gate("objectives_met<99%", change=False) == Gate("objectives_met<99%", "objectives_met", False, 0.99)
    with pytest.raises(HarnessError, match="not of the form FIGURE>VALUE"):
        parse_gate("ttft_s.p99 at most 3", change=False)
    for text, said in (("ttft_s.p99>500", "did you mean 0.5 or '500 ms'"), ("ttft_s.p99>+5%", "a time, not a share")):
        with pytest.raises(HarnessError, match=said):
            of_figures([parse_gate(text, change=False)], {HELD.name: HELD})
    with pytest.raises(HarnessError, match=r"did you mean 'ttft_s.p99'\?"):
        of_figures([parse_gate("ttft.p99>1", change=False)], {HELD.name: HELD})


def test_check_holds_a_run_against_limits_and_tells_junit_and_github(
    harness: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert harness(*QUICK).code == 0
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    kept = harness("check", "--fail-on", "ttft_s.p99>500ms", "--junit", "kept.xml")
    assert broken_limits(Path("kept.xml")) == []
    assert (kept.code == 0) == ("serious" not in kept.out)  # of a machine at work
    broken = harness("check", "--fail-on", "ttft_s.p50>1ms", "--fail-on", "e2e_s.p50>1", "--junit", "j.xml")
    assert broken.code == 1
    assert "::error title=harness::failed: ttft_s.p50>1ms: 1" in broken.err
    assert "failed |" in Path("summary.md").read_text()
    assert broken_limits(Path("j.xml")) == ["ttft_s.p50>1ms"]
    void = harness("check", "--fail-on", "ttft_s.p99>1", "--scenario", "on-demand")
    assert (void.code, "--scenario without a limit on a cost" in void.err) == (2, True)
    unknown = harness("check", "--fail-on", "joules_per_token>1", "--json")
    (gate,) = json.loads(unknown.out)["tables"][0]["rows"]
    assert (unknown.code, gate[1:]) == (1, ["n/a (no meter was read)", "failed"])


def test_a_trend_lists_comparable_runs_by_commit_and_draws_them(harness: Command) -> None:
    for words in (["init", "-q"], ["add", "a"], ["commit", "-qm", "first"]):
        Path("a").touch()
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    for users in (2, 4, 4):
        assert harness(*QUICK, "--users", f"{users}").code == 0
    (table,) = json.loads(harness("report", "--trend", "ttft_s.p50", "--json").out)["tables"]
    assert [row[1] for row in table["rows"]] == [commit[:10]] * 2
    assert 0.01 <= table["rows"][1][2]["value"] < 0.1  # the engine's 10 ms, on a machine that may be busy
    assert table["notes"][0].startswith("left out: 1 incomplete or not comparable")
    assert harness("run", "smoke", "--url", "http://127.0.0.1:9", "-q").code == 2  # a set-up that failed
    assert harness("report", "--trend", "output_tps", "--charts", "drawn", "-o", "t.html").code == 0
    labels = re.findall(r">([0-9a-f]{10})\*?<", Path("drawn/trend.svg").read_text())
    assert labels == [commit[:10]] * 2  # runs of one commit stand beside each other
    assert 'data-chart="trend"' in Path("t.html").read_text()
    assert "did you mean 'ttft_s.p50'?" in harness("report", "--trend", "ttft.p50").err


def test_a_command_at_the_end_gets_the_report_as_the_example_for_mlflow_takes_it(harness: Command) -> None:
    """`mlflow.py` records the calls of the example, in the form that MLflow has."""
    (example,) = (block for block in _blocks("docs/ci.md", "python") if "import mlflow" in block)
    Path("to_mlflow.py").write_text(example)
    Path("mlflow.py").write_text(
        "import contextlib, json\n"
        "def _told(**what):\n    with open('told.jsonl', 'a') as f: f.write(json.dumps(what) + '\\n')\n"
        "def set_experiment(name): _told(experiment=name)\n"
        "def set_tag(key, value): _told(tag=[key, value])\n"
        "def log_metrics(metrics): _told(metrics={k: float(v) for k, v in metrics.items()})\n"
        "def log_dict(dictionary, file): _told(file=file, tables=len(dictionary['tables']))\n"
        "@contextlib.contextmanager\ndef start_run(run_name): _told(run=run_name); yield\n"
    )
    python = f"{sys.executable} to_mlflow.py"
    assert harness(*QUICK, "--on-finish", python).code == 0
    told: dict[str, object] = {}
    for line in Path("told.jsonl").read_text().splitlines():
        told |= json.loads(line)
    assert told["run"] == Path("results/latest").resolve().name
    assert told["tag"] == ["state", "complete"]
    assert isinstance(told["metrics"], dict)
    assert told["metrics"]["ttft_s.p50"] == pytest.approx(0.01, rel=0.3)
    failing = harness(*QUICK, "--on-finish", "exit 7")
    assert (failing.code, "ended with 7: exit 7" in failing.err) == (0, True)


def _blocks(document: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / document).read_text(), re.S)


def test_the_action_measures_holds_limits_compares_and_writes_a_page(harness: Command, tmp_path: Path) -> None:
    """Every step that runs a command, as a runner would: bash -e, inputs as environment variables."""
    action = yaml.safe_load((ROOT / ".github/actions/benchmark/action.yml").read_text())
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "harness"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m harness "$@"\n')
    command.chmod(0o755)
    options = "--engine simulated --set engine.ttft_s=0.01 --set engine.itl_s=0.001 --requests 400 --users 16"

    def job(**given: str) -> dict[str, int]:
        """The exit code of each step; as on a runner those after a failure run only if they always do."""
        inputs = {name: each["default"] for name, each in action["inputs"].items()} | given
        codes: dict[str, int] = {}
        for step in action["runs"]["steps"]:
            wanted = re.fullmatch(r"inputs\.(\w+) != ''", step.get("if", ""))
            if "run" not in step or (wanted and not inputs[wanted[1]]):
                continue
            if any(codes.values()) and step.get("if") != "always()":
                continue
            held = {
                key: re.sub(r"\$\{\{ inputs\.(\w+) }}", lambda m: inputs[m[1]], value)
                for key, value in step["env"].items()
            }
            env = os.environ | held | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
            script = ["bash", "-eo", "pipefail", "-c", step["run"]]
            code = subprocess.run(script, cwd=tmp_path, env=env, check=False, capture_output=True).returncode
            xml = tmp_path / inputs["results"] / "limits.xml"
            codes[step["name"]] = len(broken_limits(xml)) if step["name"] == "Limits" and code == 1 else code
        return codes

    assert harness("run", "smoke", *options.split(), "--out", "base").code == 0
    slower = options.replace("itl_s=0.001", "itl_s=0.004")
    compared = {"base": "base", "changes": "output_tps<-5%"}
    codes = job(extras="", arguments=slower, limits="ttft_s.p99>5\ne2e_s.p50>10", results="new", **compared)
    assert codes == {"Measure": 0, "Limits": 0, "Against the base": 1, "The page": 0}
    assert (tmp_path / "new/report.html").read_text().startswith("<!DOCTYPE html>")
    assert "<failure" in (tmp_path / "new/changes.xml").read_text()
