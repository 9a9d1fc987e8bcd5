"""Files found by name: the shipped workloads and traces, users' own, and how their mistakes are worded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from harness.cost.pricing import list_scenarios
from harness.engines.base import create_engine
from harness.errors import HarnessError
from harness.files import data_path
from harness.workload.arrivals import Trace, due_times
from harness.workload.library import list_workloads, read_files, read_prompts, read_trace, read_workload
from harness.workload.requests import Conversations
from harness.workload.schema import Prompt

SHIPPED = ["chat", "code", "mixed", "multi-turn", "offline-throughput", "phases", "reasoning", "smoke"]
PLAIN = "requests: {count: 4, input_tokens: 8, output_tokens: 4}\nload: {shape: closed, users: 2}\n"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Workloads


def test_shipped_workloads_are_found_from_anywhere(elsewhere: Path) -> None:
    assert elsewhere == Path.cwd()
    listed = list_workloads()
    assert [name for name, *_ in listed] == SHIPPED
    assert all(map(all, listed))


def test_the_list_shows_requests_and_load(elsewhere: Path) -> None:
    (elsewhere / "workloads").mkdir()
    (elsewhere / "workloads" / "a.yaml").write_text(
        "description: mine\n"
        "requests: {count: 4, input_tokens: 8, output_tokens: {distribution: uniform, min: 1, max: 9}}\n"
        "load: {shape: gamma, rate_per_s: 30 /min, burstiness: 2}\n"
    )
    (elsewhere / "workloads" / "b.yaml").write_text("load: 3")
    a, b, *_ = list_workloads()
    requests, load = (
        "count 4, input_tokens 8, output_tokens (uniform, min 1, max 9)",
        "gamma, rate_per_s 0.5, burstiness 2",
    )
    assert a == ("a", requests, load, "mine")
    assert b[-1].startswith("not usable: workloads/b.yaml")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_workloads_make_requests_that_a_context_of_8192_holds(name: str) -> None:
    workload = read_workload(name)
    make = Conversations(workload, 49_152, 8192, read_files(workload)).make
    assert workload.requests.count is not None
    requests = [make(i) for i in range(workload.requests.count)]
    assert max(len(request.prompt) + request.output_tokens for request in requests) <= 8192
    assert create_engine("simulated", None, workload.engine_options("simulated"))


def test_the_smoke_workload_is_small() -> None:
    requests = read_workload("smoke").requests
    assert requests.count is not None
    assert requests.output_tokens is not None
    assert requests.count * requests.output_tokens.at(0.999) <= 512  # 13 s at 40 tokens a second


def test_chat_lasts_as_long_as_it_says_and_code_replays_the_recording() -> None:
    chat, code = read_workload("chat"), read_workload("code")
    assert list(due_times(chat.load, chat.requests.count, chat.seed))[-1] == pytest.approx(150, abs=27)
    trace = read_trace("azure-code-2023")
    due = list(due_times(code.load, code.requests.count, code.seed, trace))
    assert due == trace.arrival_s[:300].tolist()
    make = Conversations(code, 49_152, files={"azure-code-2023": trace}).make
    assert [make(i).output_tokens for i in range(300)] == trace.output_tokens[:300].tolist()


def test_a_users_workload_hides_a_shipped_one_with_the_same_name(elsewhere: Path) -> None:
    (elsewhere / "workloads").mkdir()
    (elsewhere / "workloads" / "smoke.yaml").write_text(PLAIN)
    assert read_workload("smoke").requests.count == 4
    assert read_workload("smoke.yaml").requests.count == 4
    assert read_workload("workloads/smoke.yaml", {"requests.count": 5}).requests.count == 5


@pytest.mark.parametrize("asked", ["smok", "workloads/smoke.yaml", "nowhere/smoke.yml"])
def test_an_unknown_workload_error_lists_the_known_ones(elsewhere: Path, asked: str) -> None:
    assert not (elsewhere / asked).exists()
    with pytest.raises(HarnessError) as raised:
        read_workload(asked)
    assert raised.value.what == f"no workload '{asked}'"
    assert raised.value.fix == f"did you mean 'smoke'? give a file, or one of {', '.join(SHIPPED)}"


def test_files_of_a_workload_are_found_in_its_directory(elsewhere: Path) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,1,1\n")
    (elsewhere / "mine" / "w.yaml").write_text(
        "requests: {trace: t.csv}\nload: {shape: trace, trace: azure-code-2023, duration_s: 1}"
    )
    workload = read_workload("mine/w.yaml")
    assert (workload.requests.trace, workload.load.trace) == ("mine/t.csv", "azure-code-2023")


def test_mistakes_name_the_file_as_it_was_given(elsewhere: Path) -> None:
    (elsewhere / "w.yaml").write_text(PLAIN.replace("users: 2", "users: 0"))
    with pytest.raises(HarnessError, match=r"^w\.yaml:2: load\.users is 0"):
        read_workload("w.yaml")
    (elsewhere / "w.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HarnessError, match=r"cannot read w\.yaml"):
        read_workload("w.yaml")


# Traces


@pytest.mark.parametrize(
    ("name", "rows", "span_s", "n_in", "n_out"),  # mean, median, max; by hand from the original files
    [
        ("azure-conv-2023", 19366, 3501.721937, (1154.6974, 1020, 14050), (211.1259, 129, 1000)),
        ("azure-code-2023", 8819, 3435.948056, (2047.8483, 1469, 7437), (27.8825, 13, 1899)),
    ],
)
def test_shipped_traces_equal_azures_files(
    name: str, rows: int, span_s: float, n_in: tuple[float, ...], n_out: tuple[float, ...]
) -> None:
    trace = read_trace(name)
    assert [len(column) for column in (trace.arrival_s, trace.input_tokens, trace.output_tokens)] == [rows] * 3
    assert (trace.arrival_s[0], trace.arrival_s[-1]) == (0, pytest.approx(span_s, abs=1e-7))
    for column, (mean, median, most) in ((trace.input_tokens, n_in), (trace.output_tokens, n_out)):
        assert column.mean() == pytest.approx(mean, abs=1e-4)
        assert (np.median(column), column.max()) == (median, most)
    with gzip.open(data_path(f"traces/{name}.csv.gz"), "rt") as file:
        assert "CC-BY-4.0" in file.readline()


OURS = "# from a log\n# of mine\narrival_s,input_tokens,output_tokens\n5,10,1\n6.5,20,2\n\n"
AZURES = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:59:59.5000000,10,1\r\n2023-11-16 19:00:01,20,2\r\n"


@pytest.mark.parametrize("text", [OURS, AZURES, "\ufeff" + AZURES])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_users_trace_is_read(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix == ".csv.gz" else text.encode())
    trace = read_trace(str(path))
    assert trace.arrival_s.tolist() == pytest.approx([0, 1.5])
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([10, 20], [1, 2])


HEADER = "arrival_s,input_tokens,output_tokens\n"
# as in the releases of BurstGPT: a request that failed has no answer
BURST = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,1,2.5,ChatGPT,472,18,490,Conversation log
45,,0.1,GPT-4,1087,0,1087,API log
118,2,9,GPT-4,417,276,693,Conversation log
"""
# as in the traces of Mooncake (FAST '25)
MOONCAKE = """\
{"timestamp": 27482, "input_length": 1955, "output_length": 52, "hash_ids": [46, 47, 2353, 2354]}

{"timestamp": 30535, "input_length": 472, "output_length": 26, "hash_ids": [46], "more": "is ignored"}
{"timestamp": 30535, "input_length": 9, "output_length": 1}
"""


def test_traces_of_burstgpt(tmp_path: Path) -> None:
    (tmp_path / "BurstGPT_1.csv").write_text(BURST)
    trace = read_trace(str(tmp_path / "BurstGPT_1.csv"))
    assert trace.arrival_s.tolist() == [0, 113]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([472, 417], [18, 276])
    assert trace.blocks(0) == []


def test_traces_of_mooncake(tmp_path: Path) -> None:
    (tmp_path / "conversation_trace.jsonl").write_text(MOONCAKE)
    trace = read_trace(str(tmp_path / "conversation_trace.jsonl"))
    assert trace.arrival_s.tolist() == pytest.approx([0, 3.053, 3.053])
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([1955, 472, 9], [52, 26, 1])
    assert [trace.blocks(row) for row in range(3)] == [[46, 47, 2353, 2354], [46], []]


def test_a_trace_of_bailian_is_in_seconds_with_blocks_of_16_tokens() -> None:
    trace = read_trace(str(ROOT / "tests/data/bailian_seconds.jsonl"))
    assert trace.arrival_s.tolist() == [0, 1.5, 3.0, 4.2]
    assert (trace.block_tokens, trace.blocks(1)) == (16, [0, 1, 9])


def lines(times: Sequence[float], ids: int | None = None, length: int = 1000) -> str:
    blocks = {} if ids is None else {"hash_ids": list(range(ids))}
    rows = ({"timestamp": t, "input_length": length, "output_length": 9, **blocks} for t in times)
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("times", "ids", "last_s", "block"),
    [
        ([0, 900, 2500], 2, 2.5, 512),  # Mooncake
        ([0, 900, 2500], 63, 2.5, 16),  # whole milliseconds with small blocks: 0.8 requests/s rather than 1 in 20 min
        ([0, 1, 3], 63, 3.0, 16),  # whole seconds with small blocks: 0.7 requests/s rather than 700
        ([0.0, 0.9, 2.5], 2, 2.5, 512),  # seconds with large blocks
        ([0.5, 900.5, 2500.5], 2, 2.5, 512),  # fractions of milliseconds
        ([0.0, 0.9, 2.5], None, 2.5, 512),
        ([1_700_000_000, 1_700_000_002], None, 2.0, 512),  # seconds since 1970
        ([1_700_000_000_000, 1_700_000_002_000], 63, 2.0, 16),
        ([1_700_000_000_000_000_000, 1_700_000_002_000_000_000], None, 2.0, 512),
        ([7, 7, 7], 2, 0.0, 512),
    ],
)
def test_units_of_a_json_trace_are_told_by_its_content(
    tmp_path: Path, times: list[float], ids: int | None, last_s: float, block: int
) -> None:
    (tmp_path / "t.jsonl").write_text(lines(times, ids))
    trace = read_trace(str(tmp_path / "t.jsonl"))
    assert (trace.arrival_s[-1], trace.block_tokens) == (pytest.approx(last_s), block)


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (lines([0, 1, 2, 4]), "timestamps in milliseconds are 750 requests/s", "in seconds they would be 0.75"),
        (lines([0.5, 2e4]), "timestamps in seconds are 5e-05 requests/s", "in milliseconds they would be 0.05"),
        (lines([0, 310_000, 620_000]), "in milliseconds are 0.00323 requests/s", "in microseconds they would be 3.23"),
        (
            BURST.replace("118,", "5000000,"),
            "timestamps in seconds are 2e-07 requests/s",
            "in microseconds they would be 0.2",
        ),
        (lines([0, 900], 5), "input_length 1000 and 5 hash_ids", "of one size from 16 to 4096 tokens"),
        (HEADER + "1700000000000,1,1\n", "arrival_s is '1700000000000'", "a time in seconds"),
    ],
)
def test_a_rate_or_length_that_no_trace_has_is_refused(tmp_path: Path, text: str, what: str, fix: str) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(HarnessError) as refused:
        read_trace(str(tmp_path / "t"))
    assert what in refused.value.what
    assert fix in refused.value.fix


def test_the_files_of_a_workload_are_read_by_their_names(elsewhere: Path) -> None:
    (elsewhere / "m.jsonl").write_text(MOONCAKE)
    (elsewhere / "p.jsonl").write_text('{"prompt": "a"}')
    (elsewhere / "w.yaml").write_text(
        "requests: {parts: [{name: a, trace: m.jsonl}, {name: b, prompts: p.jsonl}]}\n"
        "load: {shape: trace, trace: m.jsonl}"
    )
    files = read_files(read_workload("w.yaml"))
    assert {name: type(file) for name, file in files.items()} == {"m.jsonl": Trace, "p.jsonl": tuple}


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (HEADER + "0,1,1\n1,x,1\n", ":3: input_tokens is 'x'", "whole number from 1"),
        (HEADER + "0,1,0\n", ":2: output_tokens is '0'", "whole number from 1"),
        (HEADER + "0,1.5,1\n", ":2: input_tokens is '1.5'", "whole number from 1"),
        (HEADER + "0,10000001,1\n", ":2: input_tokens is '10000001'", "to 10 million"),
        (HEADER + "2,1,1\n1,1,1\n", ":3: arrival_s is '1'", "not before that of the row above"),
        (HEADER + "nan,1,1\n", ":2: arrival_s is 'nan'", "a time"),
        (HEADER + "inf,1,1\n", ":2: arrival_s is 'inf'", "a time"),
        (AZURES.replace("19:00:01", "19:61:01"), ":3: TIMESTAMP is '2023-11-16 19:61:01'", "a time"),
        (HEADER + "0,1\n", ":2: '0,1' is not a row", "expected 3 cells"),
        ("0,1,1\n", ":1: '0,1,1' is not the header", "the columns arrival_s,input_tokens,output_tokens or TIMESTAMP,"),
        (HEADER + "0,1,1\n\n1,1,1,1\n", ":4: '1,1,1,1' is not a row of a trace", "expected 3 cells"),
        ("# a note\n" + HEADER + "0,1,1,1\n1,1,1,1\n", ":3: '0,1,1,1' is not a row", "expected 3 cells"),
        (BURST.replace("417", "0"), ":4: Request tokens is '0'", "whole number from 1"),
        (MOONCAKE.replace("30535,", "3053,"), ":3: timestamp is '3053.0'", "not before that of the row above"),
        (MOONCAKE.replace('"input_length": 472, ', ""), ":3: input_length is missing", "JSON lines with timestamp,"),
        (MOONCAKE.replace("472", '"472"'), ":3: input_length is '472'", "JSON lines with timestamp,"),
        (MOONCAKE[:-9], ":4: not JSON: ", "JSON lines with timestamp,"),
        (MOONCAKE.replace("[46]", "[-46]"), ":3: hash_ids.0 is -46", "JSON lines with timestamp,"),
        (HEADER, ": no rows", "the columns"),
        ("", ": no rows", "the columns"),
    ],
)
def test_mistakes_in_traces_name_file_line_and_column(tmp_path: Path, text: str, what: str, fix: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(HarnessError) as raised:
        read_trace(str(path))
    assert raised.value.what.startswith(f"{path}{what}")
    assert fix in raised.value.fix


def test_an_unreadable_or_unknown_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_text(OURS)
    with pytest.raises(HarnessError, match=r"cannot read .*t\.csv\.gz: Not a gzipped file"):
        read_trace(str(tmp_path / "t.csv.gz"))
    with pytest.raises(HarnessError, match="no trace 'azure-conv-2032'") as raised:
        read_trace("azure-conv-2032")
    assert raised.value.fix.startswith("did you mean 'azure-conv-2023'?")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "..", "/"])
def test_impossible_file_names_are_refused(name: str) -> None:
    for read in (read_workload, read_trace, read_prompts):
        with pytest.raises(HarnessError, match=r"^(no|cannot read) "):
            read(name)


# Prompts


def test_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "two\u2028lines"}\n\n{"prompt": "b", "output_tokens": 7}\r\n', encoding="utf-8")
    first, second = read_prompts(str(path))
    assert first == (Prompt(prompt="two\u2028lines"),)
    assert second == (Prompt.model_validate({"prompt": "b", "output_tokens": 7}),)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"prompt": "a"}\n{"prompt": ""}\n', ":2: "),
        ('{"prompt": "a"\n', ":1: "),
        ('{"prompt": "a", "output_token": 3}\n', ":1: "),
        ('{"prompt": "a", "output_tokens": 0}\n', ":1: "),
        ("[]\n", ": no prompts"),
        ("\n", ": no prompts"),
    ],
)
def test_mistakes_in_prompts_name_file_and_line(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(HarnessError) as raised:
        read_prompts(str(path))
    assert raised.value.what.startswith(f"{path}{what}")
    assert '{"prompt": "text"' in raised.value.fix


SHAREGPT = """[
 {"id": "QWJhYvA_0", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
   {"from": "human", "value": "More"}, {"from": "gpt", "value": "Here"}, {"from": "human", "value": "unanswered"}]},
 {"id": "i6IyJda_0", "conversations": [{"from": "gpt", "value": "cut off before"}]},
 {"id": "empty", "conversations": []},
 {"id": "system", "conversations": [{"from": "system", "value": "Be brief."}, {"from": "user", "value": "Why?"},
   {"from": "assistant", "value": "So."}]}
]"""


def test_conversations_of_sharegpt(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(SHAREGPT)
    assert read_prompts(str(tmp_path / "s.json")) == (
        (Prompt(prompt="Hi", answer="Hello"), Prompt(prompt="More", answer="Here")),
        (Prompt(prompt="Be brief.\n\nWhy?", answer="So."),),
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            SHAREGPT.replace('"value": "Be brief."', '"text": "Be brief."'),
            ": conversation 4: conversations.0.value is missing",
        ),
        (SHAREGPT.replace('"value": "Here"', '"value": 3'), ": conversation 1: conversations.3.value is 3"),
        (SHAREGPT[:-3], ": not JSON: "),
        ('["text"]', ": conversation 1: "),
        ("[]", ": no prompts"),
    ],
)
def test_mistakes_in_sharegpt_name_the_conversation(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(HarnessError) as raised:
        read_prompts(str(tmp_path / "s.json"))
    assert raised.value.what.startswith(f"{tmp_path / 's.json'}{what}")


def test_a_missing_prompts_file_is_refused() -> None:
    with pytest.raises(HarnessError, match=r"cannot read nowhere\.jsonl"):
        read_prompts("nowhere.jsonl")


def test_scenarios_are_listed() -> None:
    assert "cpu-smoke" in dict(list_scenarios())
