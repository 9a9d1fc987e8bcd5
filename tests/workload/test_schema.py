"""Workloads from text: what is accepted, how mistakes are worded, and the requests that follow from the seed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import yaml
from places import ROOT
from pydantic import BaseModel, ValidationError

from harness.config import overrides
from harness.errors import HarnessError
from harness.model import ENGINES
from harness.workload.schema import Workload, parse_workload

PLAIN = """\
requests: {count: 4, input_tokens: 8, output_tokens: 4}
load: {shape: closed, users: 2}
"""


def plain(*words: str) -> Workload:
    return parse_workload(PLAIN, "w.yaml", overrides(words))


def test_missing_keys_have_defaults() -> None:
    workload = plain()
    assert (workload.name, workload.model, workload.engine.name, workload.seed) == ("w", "smollm2-135m", "auto", 0)
    assert workload.warmup.requests == 1
    assert set(dict(workload.objectives).values()) == {None}
    assert workload.requests.ignore_eos is True


def test_a_stored_workload_reads_back_as_itself() -> None:
    workload = plain(
        "engine.dtype=float32",
        "objectives.ttft_s=200 ms",
        "requests.input_tokens={distribution: uniform, min: 2, max: 9}",
    )
    assert parse_workload(yaml.safe_dump(workload.model_dump(mode="json")), "run.json") == workload


# (overrides on PLAIN, what the error says, what its fix says)
MISTAKES = [
    (["load.users=-2"], "--set: load.users is -2", "expected users: requests in flight at any time, a whole number"),
    (["load.users=2.5"], "load.users is 2.5", "whole number from 1 to 100,000"),
    (["load.users=true"], "load.users is true", "whole number from 1"),
    (["load.users='2'"], "load.users is '2'", "whole number from 1"),
    (["load.users=010"], "load.users is '010'", "whole number from 1"),  # 8 in YAML 1.1
    (["load.users=1_0"], "load.users is '1_0'", "whole number from 1"),
    (["load.users=100001"], "load.users is 100001", "whole number from 1 to 100,000"),
    (["warmup.requests=1000000000"], "warmup.requests is 1000000000", "from 0 to 100,000"),
    (["requests.count=10000001"], "requests.count is 10000001", "whole number from 1 to 10"),
    (["requests.output_tokens=1e9"], "requests.output_tokens.tokens is 1000000000.0", "from 1 to 10 million"),
    (["model="], "model is null", "a short name"),
    (["name=''"], "name is ''", "a short name"),
    (["load.user=2"], "unknown key load.user, given 2", "did you mean 'users'? the keys here are shape, users, "),
    (["objective.ttft_s=1"], "unknown key objective", "did you mean 'objectives'?"),
    (["load=3"], "load is 3", "expected load: a map: shape, and the keys of that shape"),
    (["load={}"], "load.shape is missing", "one of closed, offline"),
    (["load={shape: poison, rate_per_s: 1}"], "load.shape is 'poison'", "did you mean 'poisson'?"),
    (["load={shape: poisson, rate_per_s: -3}"], "load.rate_per_s is -3", "3, '3 /s' or '180 /min'"),
    (["load={shape: poisson, rate_per_s: 3 s}"], "load.rate_per_s is '3 s'", "3, '3 /s' or '180 /min'"),
    (["load={shape: poisson}"], "load.rate_per_s is missing; poisson needs it", "requests per second above 0"),
    (["load.shape=closed", "load.rate_per_s=3"], "load.rate_per_s is 3, which does not go with closed", "remove it"),
    (["load.max_in_flight=3"], "load.max_in_flight is 3, which does not go with closed", "remove it"),
    (["objectives.ttft_s=200 sec"], "objectives.ttft_s is '200 sec'", "0.2 or '200 ms'"),
    (["requests.count=null"], "requests.count is missing, and nothing else ends the run", "whole number from 1 to 10"),
    (["requests.input_tokens=null"], "requests.input_tokens is missing; random tokens needs it", "whole number of"),
    (["requests.input_tokens=8 tokens"], "requests.input_tokens is '8 tokens'", "whole number of tokens"),
    (["requests.input_tokens=0"], "requests.input_tokens.tokens is 0", "whole number from 1 to 10"),
    (["requests.input_tokens.max=3"], "input_tokens.max: requests.input_tokens is 8, not a map", "as a whole"),
    (["requests.input_tokens={distribution: normal, mean: 5}"], "requests.input_tokens.std is missing", "standard dev"),
    (["requests.input_tokens={distribution: uniform, min: 5, max: 3}"], "tokens.max is 3, which is below", "max: "),
    (["requests.input_tokens={distribution: lognormal, median: 5, p95: 5}"], "p95 is 5, which is not above", "p95: "),
    (["requests.trace=azure"], "input_tokens is 8, which does not go with a trace", "requests.input_tokens=null"),
    (["requests.prompts=p.jsonl"], "requests.input_tokens is 8, which does not go with prompts", "remove it"),
    (["requests.trace_order=recorded"], "requests.trace_order is 'recorded', which does not go", "remove it"),
    (["requests.max_total_tokens=1"], "requests.max_total_tokens is 1", "from 2 to"),
    (["requests.think_time_s=1"], "requests.think_time_s is 1, which does not go without turns", "remove it"),
    (["requests.cancel_share=0.5"], "requests.cancel_share is 0.5, which does not go without cancel_after_s", "remove"),
    (["requests.cancel_after_s=1", "requests.cancel_share=2"], "requests.cancel_share is 2", "above 0, up to 1"),
    (["requests.cancel_after_s=soon"], "requests.cancel_after_s.seconds is 'soon'", "seconds above 0: 0.2 or"),
    (["requests.turns=0"], "requests.turns.tokens is 0", "whole number from 1"),
    (["requests={trace: t, trace_order: recorded, turns: 2}"], "turns is 2, which does not go with a recorded", ""),
    (["requests.prefix={share: 0.5}"], "requests.prefix.tokens is missing; random tokens needs it", "length of each"),
    (["requests.prefix={tokens: 5, share: 0}"], "requests.prefix.share is 0", "above 0, up to 1"),
    (["requests.prefix={texts: [a], count: 2}"], "requests.prefix.count is 2, which does not go with texts", "--set"),
    (["requests.prefix={texts: [a]}"], "which needs texts beside prompts, else tokens", "expected prefix: a map"),
    (["requests.parts=[]"], "requests.parts is []", "a list of maps"),
    (["requests.parts=[{weight: 2}]"], "requests.parts.0.name is missing", "a short name"),
    (["requests.parts=[{name: a}, {name: a}]"], "which has two parts of one name", "a list of maps"),
    (["requests.parts=[{name: a, weight: 0}]"], "requests.parts.0.weight is 0", "a number above 0"),
    (["requests.parts=[{name: a, wait: 1}]"], "unknown key requests.parts.0.wait, given 1", "the keys here are input_"),
    (["requests.parts=[{name: a, trace: t}]"], "parts.0.input_tokens is 8, which does not go with a trace", "remove"),
    (["requests.parts=[{name: a}]", "requests.parts.1.weight=2"], "a list without that index", "as a whole"),
    (["load={shape: ramp, from_users: 1}"], "load.to_users is missing; ramp of users needs it", "users at the end"),
    (["load={shape: ramp, over_s: 1}"], "load.from_rate_per_s is missing; ramp of the rate needs it", "at the start"),
    (["load={shape: steps, steps: [{users: 1}]}"], "load.steps.0.duration_s is missing", "60 or '1 min'"),
    (["load={shape: steps, steps: [{users: x, duration_s: 1}]}"], "load.steps.0.users is 'x'", "a whole number from 0"),
    (["requests.ignore_eos=1"], "requests.ignore_eos is 1", "true"),
    (["engine.name=vlm"], "engine.name is 'vlm'", "did you mean 'vllm'?"),
    (["engine.vllm" + ".a" * 3000 + "=1"], "w.yaml: engine: Error serializing to JSON", "JSON"),
    (["engine.x=!!binary gIGC"], "w.yaml: engine: Error serializing to JSON", "JSON"),
    (["engine={vlm: {dtype: float32}}"], "unknown key engine.vlm, given {", "did you mean 'vllm'? the keys"),
    (["engine.vllm=3"], "engine.vllm is 3", "expected vllm: a map"),
    (["seed=-1"], "seed is -1", "0 or more"),
    (["model=7"], "model is 7", "a short name"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "what", "fix"), MISTAKES, ids=[" ".join(row[0])[:60] for row in MISTAKES])
def test_mistakes_name_the_key_the_value_and_the_expected_form(words: list[str], what: str, fix: str) -> None:
    with pytest.raises(HarnessError) as raised:
        plain(*words)
    assert what in raised.value.what
    assert fix in raised.value.fix


# (the file, where the error is, what it says)
FILES = [
    (PLAIN.replace("users: 2", "users: 0"), "w.yaml:2: ", "load.users is 0"),
    (PLAIN + "load: {shape: offline}\n", "w.yaml:3: ", "load is given twice"),
    (PLAIN + "warmup:\n  requests: [1\n", "w.yaml:5: ", "not YAML"),
    (PLAIN + "name: a: b\n", "w.yaml:3: ", "not YAML"),
    (PLAIN + "name: \x00\n", "w.yaml: ", "not YAML"),
    (PLAIN + "seed: " + "[" * 5000, "w.yaml:3: ", "not YAML: more than 50 maps and lists"),
    (PLAIN + "1: x\n", "w.yaml:3: ", "unknown key 1"),
    (PLAIN.replace("requests:", "request:"), "w.yaml: ", "requests is missing"),
    (PLAIN + "engine: {vllm: &x {y: *x}}\n", "w.yaml:3: ", "not YAML: an alias is not allowed"),
    (
        PLAIN.replace("output_tokens: 4}", "output_tokens: 4,\n  parts: [{name: a},\n    {name: b, turns: x}]}"),
        "w.yaml:3: ",
        "parts.1",
    ),
    ("", "w.yaml: ", "null is not a map"),
    ("- 1\n", "w.yaml: ", "[1] is not a map"),
]


@pytest.mark.parametrize(("text", "place", "what"), FILES)
def test_mistakes_in_the_file_name_the_line(text: str, place: str, what: str) -> None:
    with pytest.raises(HarnessError) as raised:
        parse_workload(text, "w.yaml")
    assert raised.value.what.startswith(place)
    assert what in raised.value.what


def test_a_trace_ends_by_itself() -> None:
    load = "load={shape: trace, trace: azure-code-2023}"
    assert plain(load, "requests.count=null").requests.count is None


def test_steps_end_by_themselves() -> None:
    load = "load={shape: steps, steps: [{users: 1, duration_s: 1 min}]}"
    assert plain(load, "requests.count=null").load.end_s == 60


def test_keys_beside_the_parts_are_defaults_of_each_part() -> None:
    parts = "requests.parts=[{name: a, turns: 3}, {name: b, output_tokens: 9, think_time_s: null}]"
    workload = plain(parts, "requests.parts.1.weight=2.5", "requests.max_total_tokens=50")
    a, b = workload.requests.contents
    assert (a.input_tokens, b.input_tokens) == (workload.requests.input_tokens,) * 2
    assert (a.max_total_tokens, b.max_total_tokens) == (50, 50)
    assert [part.weight for part in workload.requests.parts or ()] == [1, 2.5]
    assert b.output_tokens is not None
    assert b.output_tokens.tokens == 9
    assert parse_workload(yaml.safe_dump(workload.model_dump(mode="json")), "run.json") == workload


def test_engine_options() -> None:
    workload = parse_workload(
        PLAIN + "engine: {name: vllm, vllm: {dtype: bfloat16, deep: {a: 1, b: 2}}, transformers: {dtype: float32}}",
        "w.yaml",
        {"engine.max_model_len": 512, "engine.deep.a": 3, "engine.transformers.threads": 2},
    )
    assert workload.engine_options("vllm") == {"dtype": "bfloat16", "deep": {"a": 3, "b": 2}, "max_model_len": 512}
    assert workload.engine_options("transformers")["threads"] == 2
    assert workload.engine_options("simulated") == {"max_model_len": 512, "deep": {"a": 3}}


def test_every_engine_has_its_map_and_its_name() -> None:
    assert plain().engine.model_dump() == {"name": "auto", "options": {}, **{name: {} for name in ENGINES}}
    for name in ("auto", *ENGINES):
        assert plain(f"engine.name={name}").engine.name == name


def test_overrides_are_not_modified() -> None:
    asked = {"load": {"shape": "closed"}, "load.users": 3}
    assert parse_workload(PLAIN, "w.yaml", asked).load.users == 3
    assert asked == {"load": {"shape": "closed"}, "load.users": 3}


def test_an_error_names_the_place_of_the_last_value() -> None:
    text = PLAIN.replace("users: 2", "users: 2, duration_s: never")
    with pytest.raises(HarnessError, match=r"^--set: load.users is 0"):
        plain("load.users=0")
    with pytest.raises(HarnessError, match=r"^w.yaml:2: load.duration_s is 'never'"):
        parse_workload(text, "w.yaml", {"load.users": 4})
    with pytest.raises(HarnessError, match=r"^--set: load.duration_s is 'ever'"):
        parse_workload(text, "w.yaml", {"load": {"shape": "closed", "users": 4, "duration_s": "ever"}})


def test_a_workload_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        plain().seed = 3  # type: ignore[misc]


# The documentation

DOCS = (ROOT / "docs" / "workloads.md").read_text(encoding="utf-8")


def keys(annotation: Any, prefix: str = "") -> Iterator[str]:
    """Every key that a model may have, dotted."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield prefix + name
            yield from keys(field.annotation, f"{prefix}{name}.")
    for inner in get_args(annotation):
        yield from keys(inner, prefix)


def documented() -> set[str]:
    return set(re.findall(r"^\| `([\w.]+)` \|", DOCS, flags=re.MULTILINE))


def test_every_key_is_documented_and_nothing_else() -> None:
    exist = {re.sub(r"^requests\.parts\.(?!name|weight)", "requests.", key) for key in keys(Workload)}
    exist = {re.sub(r"^requests\.(input_tokens|output_tokens|turns)\.", "lengths.", key) for key in exist}
    exist = {re.sub(r"^requests\.(think_time_s|cancel_after_s)\.", "times.", key) for key in exist}
    assert documented() == exist


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", DOCS, flags=re.DOTALL))
def test_examples_in_the_documentation_are_workloads_or_parts_of_one(example: str) -> None:
    assert parse_workload(yaml.safe_dump(yaml.safe_load(PLAIN) | yaml.safe_load(example)), "docs/workloads.md")


def test_the_error_in_the_documentation_is_what_is_printed() -> None:
    command, shown = re.findall(r"```console\n\$ (.*?)\n(.*?)```", DOCS, flags=re.DOTALL)[0]
    with pytest.raises(HarnessError) as raised:
        plain(*re.findall(r"--set (\S+)", command))
    assert shown.strip() == f"error: {raised.value}"


@pytest.mark.parametrize(
    ("count", "load", "named"),
    [
        (
            1000,
            "{shape: poisson, rate_per_s: 1e-9}",
            "load.rate_per_s is so low that the requests take more than a year",
        ),
        (1000, "{shape: ramp, from_rate_per_s: 5, to_rate_per_s: 1e-6, over_s: 100}", "load.to_rate_per_s is so low"),
        (1000, "{shape: closed, users: 3, duration_s: 1e9}", "load.duration_s is 1000000000.0"),
        (1000, "{shape: ramp, from_users: 1, to_users: 2, over_s: 9000 h}", "load.over_s is '9000 h'"),
    ],
)
def test_a_load_of_more_than_a_year_is_refused(count: int, load: str, named: str) -> None:
    text = f"requests: {{count: {count}, input_tokens: 4, output_tokens: 4}}\nload: {load}"
    with pytest.raises(HarnessError, match=named):
        parse_workload(text, "x.yaml")
