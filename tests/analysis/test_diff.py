"""Comparison of runs: how often real and absent differences are reported; gates; refusals."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import math
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer.main
import yaml
from builders import a_run, frame_of, record
from commands import QUICK, Command
from places import ROOT
from scipy import stats as reference

from harness.analysis import diff, gates
from harness.analysis.latency import summarise, window_of
from harness.cli.app import app
from harness.config import overrides
from harness.errors import HarnessError
from harness.model import Figure, Summary
from harness.store.run import Run
from harness.workload.library import read_workload

USERS, TOKENS = 8, 16
EMPTY = frame_of([])


def simulated(seed: int, speed: float = 1.0, *, requests: int = 304, jitter: float = 0.4) -> Summary:
    """A closed loop with noisy gaps, its rows computed at once: each user sends when the user's last request ended."""
    rng, shape = np.random.default_rng(seed), jitter**-2
    gaps = rng.gamma(shape, 0.01 / shape / speed, (requests, TOKENS))
    gaps[:, 0] *= 10  # the first token
    offsets_s = gaps.cumsum(axis=1)
    service_s = offsets_s[:, -1].reshape(USERS, -1)
    sent_s = (service_s.cumsum(axis=1) - service_s).ravel()
    arrival_s = sent_s[:, None] + offsets_s
    known = {
        "index": np.arange(requests), "scheduled_s": sent_s, "sent_s": sent_s, "end_s": arrival_s[:, -1],
        "arrival_s": list(arrival_s), "arrival_tokens": [np.ones(TOKENS, int)] * requests,
        "input_asked": 16, "input_tokens": 16, "output_asked": TOKENS, "output_tokens": TOKENS,
    }  # fmt: skip
    rows = pd.DataFrame({name: known.get(name) for name in EMPTY.columns}).astype(EMPTY.dtypes.to_dict())
    window = window_of(rows, "complete", "closed", USERS)
    return summarise(f"run-{seed}", "complete", rows, {}, True, window)


def exact(_: str) -> diff.Between:
    """No spread between runs."""
    return diff.Between(0.0)


def judged(changes: tuple[diff.Change, ...]) -> dict[str, str]:
    return {change.ratio.name: change.judgement for change in changes}


def test_two_runs_of_one_engine_show_no_difference_in_at_least_94_of_100_pairs() -> None:
    """In any figure of the table, if nothing differs between runs and that is known."""
    runs = [simulated(seed) for seed in range(161)]
    pairs = [diff.judge([base], [new], 0.0, exact) for base, new in itertools.pairwise(runs)]
    wrong = pd.DataFrame([judged(pair) for pair in pairs]).isin(["improved", "regressed"])
    assert wrong.any(axis=1).mean() <= 0.06


def test_a_change_of_3_percent_is_found_at_a_precision_of_1_percent() -> None:
    runs = [simulated(seed, 1.03 ** -(seed % 2), requests=1000, jitter=0.2) for seed in range(80)]
    pairs = [diff.judge([base], [new], 0.0, exact) for base, new in zip(runs[::2], runs[1::2], strict=True)]
    rates = [next(c for c in pair if c.ratio.name == "output_tokens_per_s") for pair in pairs]
    halves = [(c.base.high - c.base.low) / 2 / c.base.value for c in rates]  # type: ignore[operator]
    assert np.median(halves) < 0.01
    assert sum(c.judgement == "regressed" for c in rates) >= 0.95 * len(rates)
    assert sum("output_tokens_per_s" in {c.ratio.name for c in diff.verdict(pair)} for pair in pairs) >= 36
    (cost,) = (c for c in pairs[0] if c.ratio.name == "usd_per_million_output_tokens")
    assert cost.judgement == "regressed"
    assert cost.ratio.value == pytest.approx(1 / rates[0].ratio.value)  # type: ignore[operator]


def summary(name: str, value: float | None, *ends: float, **more: Any) -> Summary:
    low, high = ends or (None, None)
    return Summary("r", "complete", (Figure(name, value, "u", "measured", low, high, **more),), {})


def one(base: list[Summary], new: list[Summary]) -> diff.Change:
    return diff.judge(base, new, 0.0, exact)[0]


def test_the_interval_of_a_ratio_follows_mover() -> None:
    """Half-widths ln 2 and ln 1.25 of the base, ln 1.5 and ln 3 of new; the ratio falls as the base rises."""
    change = one([summary("ttft_s.p50", 10, 5, 12.5)], [summary("ttft_s.p50", 20, 20 / 1.5, 60)])
    assert change.ratio.value == pytest.approx(2)
    assert change.ratio.low == pytest.approx(2 * math.exp(-math.hypot(math.log(1.5), math.log(1.25))))
    assert change.ratio.high == pytest.approx(2 * math.exp(math.hypot(math.log(3), math.log(2))))
    assert change.judgement == "regressed"


@pytest.mark.parametrize(
    ("new", "least", "judgement"),
    [
        (10.0004, 0.01, "no difference seen"),  # 10.000 -> 10.000 ms with a tiny interval
        (10.0004, 0.0, "regressed"),
        (10.099, 0.01, "no difference seen"),
        (10.101, 0.01, "regressed"),
        (9.89, 0.01, "improved"),
        (9.91, 0.01, "no difference seen"),
    ],
)
def test_a_change_below_the_least_effect_is_no_difference_whatever_its_interval(
    new: float, least: float, judgement: str
) -> None:
    before, after = (summary("ttft_s.p50", x, x * 0.99999, x * 1.00001) for x in (10.0, new))
    changes = diff.judge([before], [after], least, exact)
    assert changes[0].judgement == judgement
    assert bool(diff.verdict(changes)) == (judgement != "no difference seen")


def test_repeats_are_compared_by_welchs_t() -> None:
    base, new = [100.0, 101, 99, 102], [105.0, 107, 103]
    change = one(*([summary("output_tokens_per_s", x) for x in side] for side in (base, new)))
    expected = reference.ttest_ind(np.log(new), np.log(base), equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert change.ratio.low == pytest.approx(math.exp(low))
    assert change.ratio.high == pytest.approx(math.exp(high))
    assert change.p == pytest.approx(expected.pvalue)
    assert change.judgement == "improved"
    assert change.base.value == pytest.approx(reference.gmean(base))


def test_a_single_run_is_compared_with_repeats_by_the_spread_of_the_repeats() -> None:
    """As a prediction of one more run: s sqrt(1 + 1/4), t with 3 degrees of freedom."""
    base = [100.0, 101, 99, 102]
    change = one([summary("requests_per_s", x) for x in base], [summary("requests_per_s", 100.5)])
    half = reference.t.ppf(0.975, 3) * np.log(base).std(ddof=1) * math.sqrt(1.25)
    assert math.log(change.ratio.high / change.ratio.value) == pytest.approx(half)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("base", "new", "reason"),
    [
        (summary("ttft_s.p99", 1.0, reason="needs 299 requests"), summary("ttft_s.p99", 1.0, 0.9, 1.1), "needs 299"),
        (summary("ttft_s.p50", None, reason="none came"), summary("ttft_s.p50", 1.0, 0.9, 1.1), "none came"),
        (summary("goodput_per_s", 0.0), summary("goodput_per_s", 1.0, 0.9, 1.1), "it is 0"),
        (
            summary("joules_per_request", 1.0, 0.9, 1.1, interval="hard bound"),
            summary("joules_per_request", 1.0, 0.9, 1.1),
            "no 95% interval",
        ),
    ],
)
def test_a_figure_without_interval_is_not_judged_and_has_a_reason(base: Summary, new: Summary, reason: str) -> None:
    change = one([base], [new])
    assert change.judgement == "not judged"
    assert reason in (change.ratio.reason or "")
    with pytest.raises(HarnessError, match=reason):
        gates.of_changes([gates.parse_gate(f"{change.ratio.name}>+5%")], [change])


def test_measured_figures_are_not_compared_with_simulated_ones() -> None:
    base, new = summary("ttft_s.p50", 1.0, 0.9, 1.1), simulated(1)
    assert one([base], [new]).ratio.reason == "measured against simulated"


def test_the_table_bounds_the_chance_of_any_false_change() -> None:
    """Of the 5%, 4% are for the six headlines, 1% for the others; what stands out leaves its share to the rest."""

    def standing(**ps: float) -> set[str]:
        figure = Figure("x", 1.0, "u", "measured")
        names = {name.replace("__", "."): diff.Change(figure, figure, figure, p, 1) for name, p in ps.items()}
        return diff._standing_out(names)

    others = {f"e2e_s__{name}": 0.5 for name in ("mean", "p50", "p90", "p95", "p99")}
    assert standing(output_tokens_per_s=0.019, ttft_s__p50=0.02, **others) == {"output_tokens_per_s", "ttft_s.p50"}
    assert standing(output_tokens_per_s=0.021, ttft_s__p50=0.021, **others) == set()
    assert standing(output_tokens_per_s=0.5, **(others | {"e2e_s__p90": 0.0019})) == {"e2e_s.p90"}
    assert standing(output_tokens_per_s=0.5, **(others | {"e2e_s__p90": 0.0021})) == set()


def test_one_run_a_side_is_judged_with_what_runs_differ_by() -> None:
    """3% are assumed: the half-width is 1.96 x sqrt(2) x 3% = 8.3%, so -11% and more fail a limit of -3%."""
    base = summary("output_tokens_per_s", 100.0, 99.9, 100.1)
    found = []
    for value in (96.0, 98.0, 90.0, 88.0):
        new = summary("output_tokens_per_s", value, value * 0.999, value * 1.001)
        changes = diff.judge([base], [new])
        found.append((changes[0].judgement, gates.of_changes([gates.parse_gate("output_tps<-3%")], changes)[0][1]))
    assert found[0] == ("no difference seen", "undecided")
    assert found[1] == ("no difference seen", "passed")
    assert found[2] == ("regressed", "undecided")
    assert found[3] == ("regressed", "failed")


def test_repeats_that_did_not_take_turns_have_the_session_on_top() -> None:
    base, new = ([summary("output_tokens_per_s", x) for x in (y, y + 0.1, y - 0.1)] for y in (100.0, 94.0))
    assert diff.judge(base, new)[0].judgement == "no difference seen"
    assert diff.judge(base, new, interleaved=True)[0].judgement == "regressed"


@pytest.mark.parametrize(
    ("order", "turns"),
    [
        ("AB", False),
        ("AABB", False),
        ("AAABBB", False),
        ("AAAAB", False),
        ("ABAB", True),
        ("ABBA", True),
        ("ABBAAB", True),
    ],
)
def test_runs_took_turns_unless_a_side_was_measured_after_the_other(order: str, turns: bool) -> None:
    runs = [a_run(created_utc=datetime(2026, 1, 1, i, tzinfo=UTC)) for i in range(len(order))]
    sides = [[run for run, of in zip(runs, order, strict=True) if of == side] for side in "AB"]
    assert diff.interleaved(*sides) == turns


def test_the_power_to_name_a_change_grows_with_the_repeats() -> None:
    assert [round(diff.power(0.03, 0.01, k), 2) for k in (1, 5, 10)] == [0.27, 0.81, 1.0]
    drawn = np.random.default_rng(0).normal([[0.0], [math.log(1.03)]], 0.01, (2000, 2, 5))
    t = reference.ttest_ind(drawn[:, 1], drawn[:, 0], axis=1)
    assert np.mean(t.pvalue < 0.05 * 0.8 / 6) == pytest.approx(diff.power(0.03, 0.01, 5), abs=0.03)


RATIO = Figure("output_tokens_per_s", 0.96, "ratio", "measured", 0.95, 0.97)


@pytest.mark.parametrize(
    ("gate", "outcome"),
    [
        ("output_tps<-2%", "failed"),  # all of -5% to -3% lies beyond
        ("output_tokens_per_s < -3 %", "undecided"),  # the limit itself is not beyond
        ("output_tps<-4%", "passed"),  # at the limit, not beyond
        ("output_tps<-5%", "passed"),
        ("output_tps>-6%", "failed"),
        ("output_tps>+3%", "passed"),
    ],
)
def test_a_gate_fails_where_the_whole_interval_lies_beyond_its_limit(gate: str, outcome: str) -> None:
    change = diff.Change(RATIO, RATIO, RATIO, 0.0, 1)
    ((_, found),) = gates.of_changes([gates.parse_gate(gate)], [change])
    assert found == outcome


@pytest.mark.parametrize("text", ["output_tps", "output_tps<3", "<3%", "output_tps<-100%", "output_tps=3%"])
def test_a_malformed_gate_is_refused_with_the_expected_form(text: str) -> None:
    with pytest.raises(HarnessError, match="FIGURE<PERCENT%"):
        gates.parse_gate(text)


def test_a_gate_on_an_unknown_figure_lists_the_known_figures() -> None:
    with pytest.raises(HarnessError, match="choose one of output_tokens_per_s"):
        gates.of_changes([gates.parse_gate("joules_per_token>+2%")], [diff.Change(RATIO, RATIO, RATIO, 0.0, 1)])


FIELDS: dict[str, Any] = {
    "engine_asked": "vllm",
    "workload": {"requests": {"count": 100, "output_tokens": {"tokens": 64}}, "load": {"shape": "closed", "users": 4},
                 "objectives": {"ttft_s": None}, "warmup": {"requests": 1}, "seed": 0},
    "engine": {"engine": "vllm", "version": "0.11", "device": "cuda", "device_count": 1,
               "options": {"max_num_seqs": 256},
               "model": {"asked": "qwen", "source": "Qwen/Qwen3-8B", "precision": "bfloat16", "weights_sha256": "abc"}},
    "environment": {"gpus": [{"name": "H100", "power_limit_w": 700.0}], "driver": "570", "packages": {"torch": "2.9"},
                    "cpu": {"model": "EPYC", "cores_usable": 16}, "git": {"revision": "a", "dirty": False}},
    "prompts": {"files": {"p.jsonl": "ab"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "refused", "noted"),
    [
        ("engine_asked", "transformers", "engine differs: vllm vs transformers", None),
        ("engine.model.precision", "fp8", "precision differs: bfloat16 vs fp8", None),
        ("engine.model.weights_sha256", "abd", "weights_sha256 differs: abc vs abd", None),
        ("engine.model.source", "/models/qwen", None, None),  # by another name, but the same weights
        ("engine.model.weights_sha256", None, None, "weights_sha256 is known of one side only"),
        ("engine.device_count", 2, "device_count differs: 1 vs 2", None),
        ("environment.gpus", [{"name": "H100", "power_limit_w": 450.0}], "power_limit_w differs: 700 vs 450", None),
        ("environment.gpus", [{"name": "A100", "power_limit_w": 700.0}], "gpu differs: H100 vs A100", None),
        ("workload.requests.output_tokens", {"tokens": 128}, "requests.output_tokens.tokens differs: 64 vs 128", None),
        ("workload.load.users", 8, "load.users differs: 4 vs 8", None),
        ("workload.objectives.ttft_s", 0.2, "objectives.ttft_s differs: not set vs 0.2", None),
        ("workload.requests.count", 200, None, "requests.count differs: 100 vs 200"),
        ("prompts.files", {"p.jsonl": "cd"}, "SHA-256 of p.jsonl differs: ab vs cd", None),
        ("prompts.files", {}, None, "SHA-256 of p.jsonl is known of one side only"),
        ("workload.seed", 1, None, "seed differs: 0 vs 1"),
        ("engine.version", "0.12", None, "engine_version differs: 0.11 vs 0.12"),
        ("engine.options.max_num_seqs", 512, None, "options.max_num_seqs differs: 256 vs 512"),
        ("environment.driver", "575", None, "driver differs: 570 vs 575"),
        ("environment.packages.torch", "2.10", None, "packages.torch differs: 2.9 vs 2.10"),
        ("environment.git.dirty", True, None, "git.dirty differs: False vs True"),
        ("environment.cpu.model", "Xeon", None, None),  # beside a GPU
    ],
)
def test_each_difference_is_refused_or_noted_with_its_field(
    path: str, value: Any, refused: str | None, noted: str | None
) -> None:
    other = copy.deepcopy(FIELDS)
    *parents, leaf = path.split(".")
    at = other
    for parent in parents:
        at = at[parent]
    at[leaf] = value
    must, may = diff.differences(a_run(**FIELDS), a_run(**other))
    assert must == ([refused] if refused else [])
    assert may == ([noted] if noted else [])
    back, _ = diff.differences(a_run(**other), a_run(**FIELDS))
    assert len(back) == len(must)  # what one side does not know is only noted, whichever it is


def test_on_a_cpu_another_number_of_cores_is_refused() -> None:
    base = copy.deepcopy(FIELDS)
    base["engine"]["device"] = "cpu"
    new = copy.deepcopy(base)
    new["environment"]["cpu"]["cores_usable"] = 8
    assert diff.differences(a_run(**base), a_run(**new)) == (["cores_usable differs: 16 vs 8"], [])


# ---- the verb ----

KEYS = ("requests.count=320", "requests.output_tokens=8", "load.users=40", "engine.jitter=0.5")
NOISY = ("run", "smoke", "--engine", "simulated", *(word for key in KEYS for word in ("--set", key)))
"""So much jitter that the timers of a busy machine add little."""


@pytest.fixture
def runs(harness: Command) -> tuple[str, str, str]:
    """Two runs of one engine, and one of an engine whose answers take twice as long."""
    for seed, ttft_s, itl_s in ((0, 0.05, 0.005), (1, 0.05, 0.005), (0, 0.1, 0.01)):
        words = (f"engine.seed={seed}", f"engine.ttft_s={ttft_s}", f"engine.itl_s={itl_s}")
        assert harness(*NOISY, *(word for key in words for word in ("--set", key))).code == 0
    first, second, third = sorted(path.name for path in Path("results").iterdir() if not path.is_symlink())
    return first, second, third


def test_diff_prints_gates_annotates_for_github_and_exits_with_their_outcome(
    runs: tuple[str, str, str], harness: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, same, slow = runs
    alike = harness("diff", base, same, "--fail-on", "output_tps<-30%", "--format", "json")
    assert alike.code == 0, alike.err
    tables = {table["name"]: table for table in json.loads(alike.out)["tables"]}
    assert re.match(
        "no difference seen of 1% or more; .* leave room for output_tokens_per_s -",
        dict(tables["verdict"]["rows"])["verdict"],
    )
    assert "options.seed differs: 0 vs 1" in dict(tables["verdict"]["rows"])["also different"]
    assert [row[2] for row in tables["gates"]["rows"]] == ["passed"]
    (seen,) = (row[3]["value"] for row in tables["diff"]["rows"] if row[0] == "ttft_s.p50")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    unsure = harness("diff", base, same, "--fail-on", f"ttft_s.p50>{100 * seen - 101:+.2f}%")
    assert unsure.code == 0
    assert "::warning title=harness::undecided: ttft_s.p50>" in unsure.err
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    worse = harness("diff", base, slow, "--fail-on", "output_tps<-3%")
    assert worse.code == 1
    assert "::error title=harness::failed: output_tps<-3%25: -" in worse.err
    assert "| regressed |" in Path("summary.md").read_text()
    repeats = harness("diff", f"{base},{same}", f"{slow},{slow}", "--format", "json")
    between = dict(next(x for x in json.loads(repeats.out)["tables"] if x["name"] == "verdict")["rows"])["between runs"]
    said = re.fullmatch(
        r"standard deviation ([\d.]+)% between the repeats of a side, and 3.0%, assumed: a true 3% .*", between
    )
    assert said is not None, "they did not take turns, and two of the four are one run"
    exact = harness("diff", base, same, "--between", "1%")
    assert "standard deviation 1.0%, declared" in exact.out
    assert harness("diff", "results", base).code == 0  # a directory stands for the runs in it


def test_runs_whose_caches_may_have_known_the_prompts_are_refused_or_stamped() -> None:
    def run(cached: int | None, salt: int | None) -> Run:
        each = record(0, input_asked=100, input_tokens=100, cached_tokens=cached, shared_tokens=90)
        return a_run(each, prompts={"salt": salt, "attached": True, "cached_alone": 0})

    fresh, other = run(0, 1), run(90, 2)
    assert diff.check_comparable([fresh], [fresh], False) == ([], [])
    assert diff.check_comparable([fresh], [other], False)[1] == ["input from the prefix cache differs: 0% to 90%"]
    for doubtful, code in ((run(100, 1), "warm-cache"), (run(None, None), "prompts-repeated")):
        with pytest.raises(HarnessError, match=f"not comparable: .* has {code}"):
            diff.check_comparable([doubtful], [fresh], False)
        assert code in diff.check_comparable([doubtful], [fresh], True)[0][0]


def test_runs_that_are_not_comparable_are_refused_or_stamped_with_force(harness: Command) -> None:
    for users in ("4", "8"):
        harness(*QUICK, "--set", f"load.users={users}")
    base, new = sorted(path.name for path in Path("results").iterdir() if not path.is_symlink())
    refused = harness("diff", base, new)
    assert refused.code == 2
    assert "not comparable: load.users differs: 4 vs 8" in refused.err
    forced = harness("diff", base, new, "--force")
    assert forced.code == 0
    assert "NEW against BASE (FORCED)" in forced.out
    assert "load.users differs: 4 vs 8" in forced.out
    file = Path("results") / new / "run.json"
    file.write_text(file.read_text().replace('"state": "complete"', '"state": "interrupted"'))
    assert f"{new} is interrupted" in harness("diff", base, new).err


PAGE = (ROOT / "docs/ci.md").read_text()


@pytest.mark.parametrize("text", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S))
def test_the_workflows_in_the_docs_parse_and_use_existing_commands(text: str) -> None:
    workflow = yaml.safe_load(text)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    lines = [line for step in steps for line in step.get("run", "").replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("harness ")]
    importlib.import_module("harness.cli.verbs")
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # typer hides click's type of a group
    assert not commands or {words[0] for words in commands} >= {"doctor", "run", "diff"}
    for verb, *arguments in commands:
        given = verbs[verb].make_context(verb, arguments).params
        if verb == "run":
            assert read_workload(given["workload"], overrides(given["set_"] or []))
        for gate in given.get("fail_on") or ():
            assert gates.parse_gate(gate).figure.partition(".")[0] in diff.BETTER
