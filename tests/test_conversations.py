"""What requests hold: the same from the seed to the byte, and conversations that grow by what was answered."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.conversations import RESERVED_IDS, Conversations
from harness.errors import HarnessError
from harness.load import Trace
from harness.model import Completion, Request
from harness.workload import Prompt, Workload, parse_workload

PLAIN = "requests: {count: 4, input_tokens: 8, output_tokens: 4}\nload: {shape: closed, users: 2}\n"
VOCABULARY = 49_152


def plain(*overrides: str) -> Workload:
    return parse_workload(PLAIN, "w.yaml", overrides)


def digest(requests: list[Request]) -> str:
    text = "\n".join(f"{r.index} {r.output_tokens} {' '.join(map(str, r.prompt))}" for r in requests)
    return hashlib.sha256(text.encode()).hexdigest()


VARIED = (
    "requests.input_tokens={distribution: lognormal, median: 60, p95: 300, max: 500}",
    "requests.output_tokens={distribution: normal, mean: 40, std: 20}",
    "seed=11",
)


def test_requests_are_the_same_to_the_byte_on_every_machine_and_in_every_version() -> None:
    make = Conversations(plain(*VARIED), VOCABULARY).make
    assert digest([make(i) for i in range(64)]) == "3c00602f233f14fd34122de87d28a6704fec59160f9a705e97790de218b85f72"


@given(indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=5), seed=st.integers(0, 2**63 - 1))
def test_a_request_depends_on_seed_and_index_alone(indices: list[int], seed: int) -> None:
    workload = plain(*VARIED[:2], f"seed={seed}")
    make = Conversations(workload, VOCABULARY).make
    made = {index: make(index) for index in indices}
    assert {index: Conversations(workload, VOCABULARY).make(index) for index in reversed(indices)} == made


def test_prompts_of_other_indices_and_seeds_share_nothing() -> None:
    makers = [Conversations(plain(f"seed={seed}"), VOCABULARY).make for seed in range(20)]
    prompts = {make(i).prompt for make in makers for i in range(50)}
    assert len(prompts) == 1000


def test_lengths_are_exactly_those_asked_and_ids_are_uniform_over_the_allowed() -> None:
    make = Conversations(plain("requests.input_tokens=1000"), vocabulary=1128).make
    requests = [make(i) for i in range(200)]
    assert {(len(r.prompt), r.output_tokens, r.ignore_eos) for r in requests} == {(1000, 4, True)}
    seen = np.bincount(np.concatenate([r.prompt for r in requests]), minlength=1128)
    assert seen[:RESERVED_IDS].sum() == 0
    expected = 200_000 / 1000
    chi2 = ((seen[RESERVED_IDS:] - expected) ** 2 / expected).sum()
    assert abs(chi2 - 999) < 4 * (2 * 999) ** 0.5  # chi-squared with 999 degrees of freedom, 4 standard deviations


def test_a_small_vocabulary_still_gives_prompts() -> None:
    make = Conversations(plain(), vocabulary=100).make
    assert {token // 50 for i in range(20) for token in make(i).prompt} == {1}


def test_input_and_output_lengths_are_drawn_independently() -> None:
    make = Conversations(plain(*VARIED), VOCABULARY).make
    pairs = np.array([(len(r.prompt), r.output_tokens) for r in map(make, range(2000))])
    assert abs(np.corrcoef(np.log(pairs.T))[0, 1]) < 3 / 2000**0.5
    assert np.median(pairs[:, 0]) == pytest.approx(60, rel=0.1)


RECORDED = Trace("t", np.array([0.0, 1, 2]), np.array([10, 20, 30]), np.array([1, 2, 3]), "here")
TRACED = ("requests={count: 9, trace: t}",)


def asked(workload: Workload, n: int, **given: Any) -> list[tuple[int, int]]:
    make = Conversations(workload, VOCABULARY, **given).make
    return [(len(r.prompt), r.output_tokens) for r in map(make, range(n))]


def test_rows_of_a_trace_are_sampled_whole() -> None:
    pairs = asked(plain(*TRACED), 3000, files={"t": RECORDED})
    shares = [pairs.count(row) / 3000 for row in ((10, 1), (20, 2), (30, 3))]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)


def test_rows_of_a_trace_in_recorded_order_start_over() -> None:
    workload = plain(*TRACED, "requests.trace_order=recorded")
    assert asked(workload, 4, files={"t": RECORDED}) == [(10, 1), (20, 2), (30, 3), (10, 1)]


@pytest.mark.parametrize(
    ("limits", "pairs"),
    [
        (["max_input_tokens=15"], [(10, 1), (15, 2), (15, 3)]),
        (["max_total_tokens=20"], [(10, 1), (18, 2), (17, 3)]),  # the input makes room
        (["max_total_tokens=3"], [(2, 1), (1, 2), (1, 2)]),  # the answer is cut where nothing else is left
        (["max_input_tokens=15", "max_total_tokens=16"], [(10, 1), (14, 2), (13, 3)]),
    ],
)
def test_cuts(limits: list[str], pairs: list[tuple[int, int]]) -> None:
    workload = plain(*TRACED, "requests.trace_order=recorded", *(f"requests.{limit}" for limit in limits))
    assert asked(workload, 3, files={"t": RECORDED}) == pairs


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


PROMPTED = ("requests={count: 4, prompts: p.jsonl, ignore_eos: false}",)


def test_texts_are_encoded_and_start_over() -> None:
    texts = ((Prompt(prompt="ab"),), (Prompt.model_validate({"prompt": "xyz", "output_tokens": 7}),))
    make = Conversations(
        plain(*PROMPTED, "requests.output_tokens=5"), VOCABULARY, files={"p.jsonl": texts}, encode=encode
    ).make
    first = Request(0, (97, 98), 5, False, ("ab",))
    second = Request(1, (120, 121, 122), 7, False, ("xyz",))
    assert [make(0), make(1), make(2)] == [first, second, Request(2, (97, 98), 5, False, ("ab",))]


def test_texts_are_cut_at_their_end() -> None:
    workload = plain(*PROMPTED, "requests.output_tokens=5", "requests.max_input_tokens=2")
    assert Conversations(workload, VOCABULARY, files={"p.jsonl": ((Prompt(prompt="xyz"),),)}, encode=encode).make(
        0
    ).prompt == (120, 121)


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(HarnessError, match=r"p\.jsonl holds texts; this engine has no tokenizer"):
        Conversations(plain(*PROMPTED), VOCABULARY, files={"p.jsonl": ((Prompt(prompt="ab"),),)})


def test_texts_need_an_answer_length() -> None:
    texts = ((Prompt.model_validate({"prompt": "a", "output_tokens": 7}),), (Prompt(prompt="b"),))
    with pytest.raises(HarnessError, match="prompt 2 has no output_tokens"):
        Conversations(plain(*PROMPTED), VOCABULARY, files={"p.jsonl": texts}, encode=encode)


@pytest.mark.parametrize("source", [*TRACED, "requests={count: 4, prompts: p.jsonl, output_tokens: 5}"])
def test_a_source_that_was_not_passed_is_not_replaced_by_random_tokens(source: str) -> None:
    with pytest.raises(ValueError, match="were not passed"):
        Conversations(plain(source), VOCABULARY, encode=encode)


def test_what_never_fits_is_refused_before_the_run() -> None:
    with pytest.raises(HarnessError, match=r"every request has 12 tokens or more.*the engine takes 11") as raised:
        Conversations(plain(), VOCABULARY, max_length=11)
    assert "requests.max_total_tokens=11" in raised.value.fix
    assert asked(plain("requests.max_total_tokens=11"), 1, max_length=11) == [(7, 4)]
    assert asked(plain(), 1, max_length=12) == [(8, 4)]


def test_what_fits_only_sometimes_is_left_to_the_engine() -> None:
    varied = plain("requests.input_tokens={distribution: uniform, min: 1, max: 100}")
    assert max(total for total, _ in asked(varied, 50, max_length=11)) > 11
