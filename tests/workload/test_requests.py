"""What requests hold: the same from the seed to the byte, and conversations that grow by what was answered."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.config import overrides
from harness.engines.base import create_engine
from harness.errors import HarnessError
from harness.measure.sender import Sender
from harness.model import Completion, Record, Request
from harness.workload.arrivals import Trace
from harness.workload.library import read_files
from harness.workload.requests import HEAD_TOKENS, RESERVED_IDS, Conversations
from harness.workload.schema import Prompt, Workload, parse_workload

PLAIN = "requests: {count: 4, input_tokens: 8, output_tokens: 4}\nload: {shape: closed, users: 2}\n"
VOCABULARY = 49_152


def plain(*words: str) -> Workload:
    return parse_workload(PLAIN, "w.yaml", overrides(words))


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


RECORDED = Trace(np.array([0.0, 1, 2]), np.array([10, 20, 30]), np.array([1, 2, 3]))
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
def test_limits_shorten_the_input_first(limits: list[str], pairs: list[tuple[int, int]]) -> None:
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
    again = Request(2, (97, 98), 5, False, ("ab",), shared_tokens=2)
    assert [make(0), make(1), make(2)] == [first, second, again]


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
    with pytest.raises(KeyError):
        Conversations(plain(source), VOCABULARY, encode=encode)


def test_a_workload_whose_requests_never_fit_is_refused() -> None:
    with pytest.raises(HarnessError, match=r"every request has 12 tokens or more.*the engine takes 11") as raised:
        Conversations(plain(), VOCABULARY, max_length=11)
    assert "requests.max_total_tokens=11" in raised.value.fix
    assert asked(plain("requests.max_total_tokens=11"), 1, max_length=11) == [(7, 4)]
    assert asked(plain(), 1, max_length=12) == [(8, 4)]


def test_requests_that_fit_only_sometimes_are_sent() -> None:
    varied = plain("requests.input_tokens={distribution: uniform, min: 1, max: 100}")
    assert max(total for total, _ in asked(varied, 50, max_length=11)) > 11


# Conversations


def talk(*words: str, **given: Any) -> Conversations:
    return Conversations(plain(*words), VOCABULARY, **given)


def answers(talk: Conversations, conversation: int, completion: Completion) -> list[tuple[Request, float]]:
    """Every request of a conversation in which each answer is the same, and the thought before it."""
    turns = [(talk.make(conversation), 0.0)]
    while (following := talk.follow(turns[-1][0], completion)) is not None:
        turns.append(following)
    return turns


def test_a_prompt_grows_by_the_answer_and_the_users_next_text() -> None:
    turns = answers(talk("requests.turns=4"), 7, Completion(None, 3, token_ids=(1, 2, 3)))
    assert [(request.index, request.conversation, request.turn) for request, _ in turns] == [
        (7000, 7, 0), (7001, 7, 1), (7002, 7, 2), (7003, 7, 3),
    ]  # fmt: skip
    for (before, _), (after, _) in pairwise(turns):
        assert after.prompt[: len(before.prompt) + 3] == (*before.prompt, 1, 2, 3)
        assert len(after.prompt) == len(before.prompt) + 3 + 8
    assert [request.stand_in_tokens for request, _ in turns] == [None, 0, 0, 0]
    said = [turns[0][0].prompt, *(request.prompt[-8:] for request, _ in turns[1:])]
    assert len(set(said)) == 4


def test_an_answer_in_text_is_encoded_without_a_begin_token() -> None:
    turns = answers(talk("requests.turns=2", encode=lambda text: [9, *encode(text)]), 0, Completion(None, 2, text="hi"))
    assert turns[1][0].prompt[8:10] == (104, 105)
    assert turns[1][0].stand_in_tokens == 0


@pytest.mark.parametrize(
    ("completion", "n"), [(Completion(None, 3), 3), (Completion(None, None), 4), (Completion(None, 3, text=""), 3)]
)
def test_random_tokens_replace_a_missing_answer_and_are_counted(completion: Completion, n: int) -> None:
    turns = answers(talk("requests.turns=3", encode=encode), 1, completion)
    assert [len(request.prompt) for request, _ in turns] == [8, 16 + n, 24 + 2 * n]
    assert [request.stand_in_tokens for request, _ in turns] == [None, n, 2 * n]
    assert min(turns[1][0].prompt) >= RESERVED_IDS


def test_without_turns_a_request_is_not_part_of_a_conversation() -> None:
    plainly = talk()
    request = plainly.make(3)
    assert (request.index, request.conversation, request.turn, request.part) == (3, None, None, None)
    assert plainly.follow(request, Completion(None, 4)) is None


def test_indices_are_unique_over_conversations_and_turns_also_of_clients_that_share_them() -> None:
    varied = "requests.turns={distribution: lognormal, median: 3, p95: 900}", "seed=3"
    seen: list[int] = []
    for client in range(3):  # client k takes every third conversation, in a process of its own
        one = talk(*varied)
        for conversation in range(client, 30, 3):
            seen += [request.index for request, _ in answers(one, conversation, Completion(None, 1))]
    assert len(set(seen)) == len(seen) > 60
    assert max(index % 1000 for index in seen) > 100


def test_turns_and_think_times_follow_their_distributions() -> None:
    of = talk(
        "requests.turns={distribution: uniform, min: 1, max: 4}",
        "requests.think_time_s={distribution: exponential, mean: 5 s}",
    )
    talks = [answers(of, i, Completion(None, 1)) for i in range(400)]
    counts = np.bincount([len(turns) for turns in talks], minlength=5)[1:]
    assert stats.chisquare(counts).pvalue > 0.01
    thought = [think_s for turns in talks for _, think_s in turns[1:]]
    assert stats.kstest(thought, "expon", args=(0, 5)).pvalue > 0.01


@pytest.mark.parametrize(
    ("limits", "given", "turns"),
    [
        ([], {}, 5),
        (["requests.max_input_tokens=30"], {}, 2),  # prompts of 8, 20, 32…
        (["requests.max_total_tokens=36"], {}, 3),  # 32 and 4
        ([], {"max_length": 36}, 3),
        ([], {"max_length": 35}, 2),
    ],
)
def test_a_conversation_ends_before_a_turn_that_exceeds_a_limit(
    limits: list[str], given: dict[str, Any], turns: int
) -> None:
    assert len(answers(talk("requests.turns=5", *limits, **given), 0, Completion(None, 4))) == turns


SAID = ((Prompt(prompt="ab", answer="xyz"), Prompt(prompt="cd", answer="uv")), (Prompt(prompt="ef", answer="w"),))
SHAREGPT = "requests={count: 2, prompts: s.json, turns: 9}"


def test_recorded_conversations_go_on_with_the_real_answer_and_ask_for_the_recorded_length() -> None:
    of = talk(SHAREGPT, files={"s.json": SAID}, encode=encode)
    (first, _), (second, _) = answers(of, 0, Completion(None, 2, text="AB"))
    assert (first.prompt, first.output_tokens, first.messages) == (tuple(b"ab"), 3, ("ab",))
    assert (second.prompt, second.output_tokens) == (tuple(b"abABcd"), 2)
    assert second.messages == ("ab", "AB", "cd")
    assert len(answers(of, 1, Completion(None, 1, text="W"))) == 1
    ids_only = answers(of, 0, Completion(None, 1, token_ids=(5,)))
    assert (ids_only[1][0].prompt, ids_only[1][0].messages) == ((97, 98, 5, 99, 100), None)


def test_of_recorded_conversations_the_first_turn_alone_is_sent_where_no_turns_are_asked_for() -> None:
    of = talk("requests={count: 2, prompts: s.json}", files={"s.json": SAID}, encode=encode)
    assert of.follow(of.make(0), Completion(None, 1, text="W")) is None


# Prefixes, mixtures, cancelling


def test_a_share_of_the_requests_begins_with_one_of_the_prefixes() -> None:
    make = talk("requests.prefix={share: 0.3, count: 4, tokens: 20}").make
    requests = [make(i) for i in range(4000)]
    prefixed = [request.prompt[:20] for request in requests if len(request.prompt) == 28]
    assert {len(request.prompt) for request in requests} == {8, 28}
    assert stats.binomtest(len(prefixed), 4000, 0.3).pvalue > 0.01
    assert stats.chisquare(list(Counter(prefixed).values())).pvalue > 0.01
    assert len(set(prefixed)) == 4
    assert requests[0].prompt[-8:] == talk().make(0).prompt  # what comes after is as it would be without


def test_a_text_prefix_is_put_before_the_prompt() -> None:
    given = {"files": {"p.jsonl": ((Prompt(prompt="ab"),),)}, "encode": encode}
    request = talk(*PROMPTED, "requests.output_tokens=5", "requests.prefix={texts: [You are.]}", **given).make(0)
    assert (request.prompt, request.messages) == (tuple(b"You are.\n\nab"), ("You are.\n\nab",))


MIXED = (
    "requests={count: 9, output_tokens: 4, parts: [{name: short, weight: 3, input_tokens: 5},"
    " {name: long, input_tokens: 50}, {name: talk, weight: 2, input_tokens: 7, turns: 2}]}"
)


def test_parts_are_drawn_by_weight_and_each_has_its_own_lengths() -> None:
    make = talk(MIXED, "requests.prefix={tokens: 10}").make
    requests = [make(i) for i in range(3000)]
    assert {(request.part, len(request.prompt)) for request in requests} == {("short", 15), ("long", 60), ("talk", 17)}
    names = Counter(request.part for request in requests)
    assert stats.chisquare([names["short"], names["long"], names["talk"]], [1500, 500, 1000]).pvalue > 0.01
    assert len({request.prompt[:10] for request in requests}) == 1  # handed down, so shared by all


def test_only_the_part_with_turns_goes_on() -> None:
    of = talk(MIXED)
    assert {(r.part, len(answers(of, i, Completion(None, 1)))) for i in range(50) for r in [of.make(i)]} == {
        ("short", 1), ("long", 1), ("talk", 2),
    }  # fmt: skip


def test_a_share_of_the_requests_is_cancelled() -> None:
    make = talk("requests.cancel_after_s={distribution: uniform, min: 1, max: 3}", "requests.cancel_share=0.2").make
    given_up = [after for i in range(4000) if (after := make(i).cancel_after_s) is not None]
    assert stats.binomtest(len(given_up), 4000, 0.2).pvalue > 0.01
    assert stats.kstest(given_up, "uniform", args=(1, 2)).pvalue > 0.01
    assert talk("requests.cancel_after_s=2 s").make(5).cancel_after_s == 2


@pytest.mark.parametrize("key", ["cancel_after_s=1", "prefix={tokens: 5}", "parts=[{name: a}, {name: b}]"])
def test_adding_a_key_does_not_change_the_tokens(key: str) -> None:
    assert talk(f"requests.{key}").make(6).prompt[-8:] == talk().make(6).prompt


def test_equal_hash_ids_are_equal_blocks_of_tokens() -> None:
    trace = Trace(
        np.zeros(3), np.array([1000, 1030, 700]), np.ones(3, int),
        np.array([4, 5, 4, 5, 6, 4, 9]), np.array([0, 2, 5, 7]),
    )  # fmt: skip
    make = talk("requests={count: 3, trace: m, trace_order: recorded}", files={"m": trace}).make
    a, b, c = (make(i).prompt for i in range(3))
    assert [len(prompt) for prompt in (a, b, c)] == [1000, 1030, 700]
    assert a == b[:1000]
    assert c[:512] == a[:512]
    assert c[512:] != a[512:700]


def test_the_first_wave_is_drawn_in_proportion_to_length_and_is_of_any_age() -> None:
    """Answers of 1 to 99 tokens: those in progress have a mean of E[L^2] / E[L] = 66.3, and half of it is over."""
    made = talk(
        "requests={count: 9, input_tokens: 10, output_tokens: {distribution: uniform, min: 1, max: 99}}", "load.users=2"
    )
    waves = [made.first_wave(number) for number in range(2000)]
    ages = np.array([wave.age_tokens for wave in waves], float)
    left = np.array([wave.output_tokens for wave in waves])
    assert (ages + left).mean() == pytest.approx(66.3, rel=0.03)
    assert (ages / (ages + left)).mean() == pytest.approx(0.49, abs=0.03)
    assert all(len(wave.prompt) == 10 + (wave.age_tokens or 0) for wave in waves)
    assert len({wave.index for wave in waves} | {made.make(i).index for i in range(2000)}) == 4000
    assert len({wave.prompt for wave in waves}) == 2000
    assert made.first_wave(7) == made.first_wave(7)


@pytest.mark.parametrize(
    ("limits", "mid_answer"),
    [((None, None), 40), ((80, None), 20), ((80, 12), 12), ((None, 30), 30), ((2000, 400), 40)],
)
def test_users_that_the_engine_cannot_decode_for_begin_with_a_whole_request(
    limits: tuple[int | None, int | None], mid_answer: int
) -> None:
    """Prompts of 30, answers of 10: a step of 80 tokens decodes for 20 users and reads 2 prompts, as 2 answers end."""
    made = talk(
        "requests={count: 9, input_tokens: 30, output_tokens: 10}",
        "load.users=40",
        step_tokens=limits[0],
        most_running=limits[1],
    )
    waves = [made.first_wave(number) for number in range(40)]
    assert all(wave.age_tokens == 0 and wave.output_tokens == 10 for wave in waves[mid_answer:])
    assert (len({wave.age_tokens for wave in waves[:mid_answer]}) > 1) == (mid_answer > 1)
    assert made.first_wave(40 + mid_answer - 1).index != waves[-1].index  # of the users' next spans


def test_an_answer_in_progress_has_its_age_when_the_last_prompt_of_its_wave_is_read() -> None:
    """Prompts of 300, answers of 100 tokens, 1,600 in a step: the first of 40 prompts is read 10 steps before the last
    one; that of the 10 users who begin before the others, 2 steps."""
    load = "load={shape: steps, steps: [{users: 10, duration_s: 9}, {users: 40, duration_s: 9}]}"
    asked = "requests={input_tokens: 300, output_tokens: 100}", load
    plain, read = talk(*asked), talk(*asked, step_tokens=1600)
    ages = [[each.first_wave(user).age_tokens or 0 for user in range(40)] for each in (plain, read)]
    later = [(9 if user < 10 else 39) - user for user in range(40)]
    expected = [max(0, age - prompts / 4) for age, prompts in zip(ages[0], later, strict=True)]
    assert ages[1] == pytest.approx(expected, abs=1)
    assert sum(ages[1]) < sum(ages[0])


def test_a_conversation_of_the_first_wave_goes_on_from_its_turn() -> None:
    made = talk("requests={count: 9, input_tokens: 10, output_tokens: 20, turns: 4}", "load.users=2")
    waves = [made.first_wave(number) for number in range(60)]
    assert {wave.turn for wave in waves} == {0, 1, 2, 3}
    for wave in waves:
        assert wave.turn is not None
        assert len(wave.prompt) == 10 + 30 * wave.turn + (wave.age_tokens or 0)
        following = made.follow(wave, Completion(None, None))
        assert (following is None) == (wave.turn == 3)
        assert following is None or (following[0].turn, following[0].age_tokens) == (wave.turn + 1, None)


def test_blocks_have_the_size_of_the_trace() -> None:
    """As in Bailian's traces: the first two blocks of 16 tokens are the same, the third is not."""
    trace = Trace(
        np.zeros(2), np.array([40, 33]), np.ones(2, int), np.array([0, 1, 2, 0, 1, 9]), np.array([0, 3, 6]), 16
    )
    make = talk("requests={count: 2, trace: m, trace_order: recorded}", files={"m": trace}).make
    a, b = (make(i).prompt for i in range(2))
    assert (len(a), len(b)) == (40, 33)
    assert a[:32] == b[:32]
    assert a[32] != b[32]


# As the sender sends them


def sent(*words: str, stop_after_s: float | None = None) -> tuple[list[Record], float]:
    """The records of a run on the simulated engine, 1 ms to the first token and 1 ms a token, and how long it took."""
    workload, records = plain("load.start=burst", *words), list[Record]()
    engine = create_engine("simulated", None, {"ttft_s": 0.001, "itl_s": 0.001})

    async def load() -> float:
        info = await engine.start()
        talk = Conversations(workload, info.vocabulary)
        sender = Sender(workload, engine, talk, records.append)
        if stop_after_s is not None:
            asyncio.get_running_loop().call_later(stop_after_s, sender.stop)
        began = time.monotonic_ns()
        await sender.run(began)
        return (time.monotonic_ns() - began) / 1e9

    return records, asyncio.run(load())


def test_each_turn_has_one_record_and_is_due_after_the_think_time() -> None:
    records, _ = sent("requests.turns=3", "requests.think_time_s=30 ms")
    assert sorted(record.index for record in records) == [1000 * c + t for c in range(4) for t in range(3)]
    ends = {(record.conversation, record.turn): record.end_s for record in records}
    for record in records:
        if record.turn:
            thought_s = record.scheduled_s - ends[record.conversation, record.turn - 1]
            assert thought_s == pytest.approx(0.03, abs=0.01)
            assert record.stand_in_tokens == 4 * record.turn


def test_a_run_ends_without_users_that_start_after_the_last_request() -> None:
    records, took_s = sent(
        "load={shape: steps, start: burst, steps: [{users: 1, duration_s: 60}, {users: 2, duration_s: 60}]}"
    )
    assert len(records) == 4
    assert took_s < 10


def test_no_request_follows_a_think_time_after_the_stop() -> None:
    records, took_s = sent("requests.turns=3", "requests.think_time_s=60", stop_after_s=0.1)
    assert [record.turn for record in records] == [0, 0]
    assert took_s < 10


def test_no_turn_is_due_after_the_end_of_the_load() -> None:
    records, _ = sent("requests.turns=9", "requests.think_time_s=20 ms", "load.duration_s=100 ms")
    assert max(record.scheduled_s for record in records) < 0.1
    assert max(record.turn or 0 for record in records) > 0


# Prompts that no earlier run sent


def test_a_salt_changes_every_token_and_no_length() -> None:
    plainly, salted, other = (Conversations(plain(*VARIED), VOCABULARY, salt=salt) for salt in (None, 1, 2))
    for i in range(50):
        a, b, c = plainly.make(i), salted.make(i), other.make(i)
        assert len(a.prompt) == len(b.prompt) == len(c.prompt)
        assert a.output_tokens == b.output_tokens == c.output_tokens
        for one, two in ((a, b), (b, c)):
            assert np.mean(np.array(one.prompt) == np.array(two.prompt)) < 0.2
    assert salted.make(3) == Conversations(plain(*VARIED), VOCABULARY, salt=1).make(3)


def test_salted_ids_are_uniform_also_beyond_the_words_of_the_salt() -> None:
    make = Conversations(plain("requests.input_tokens=20000"), vocabulary=1128, salt=5).make
    seen = np.bincount(np.concatenate([make(i).prompt for i in range(10)]), minlength=1128)
    assert seen[:RESERVED_IDS].sum() == 0
    chi2 = ((seen[RESERVED_IDS:] - 200) ** 2 / 200).sum()
    assert abs(chi2 - 999) < 4 * (2 * 999) ** 0.5


def test_prefixes_stay_shared_within_a_salt_and_differ_between_two() -> None:
    one, two = (talk("requests.prefix={tokens: 20}", salt=salt).make for salt in (1, 2))
    assert one(0).prompt[:20] == one(1).prompt[:20] != two(0).prompt[:20]
    assert one(0).shared_tokens == 20


def test_texts_begin_with_the_salt_also_before_a_prefix_of_text() -> None:
    given = {"files": {"p.jsonl": ((Prompt(prompt="ab"),),)}, "encode": encode, "salt": 0xABC}
    asked = (*PROMPTED, "requests.output_tokens=5")
    assert talk(*asked, **given).make(0).messages == ("abc ab",)
    prefixed = talk(*asked, "requests.prefix={texts: [You are.]}", **given).make(0)
    assert (prefixed.messages, prefixed.prompt) == (("abc You are.\n\nab",), tuple(b"abc You are.\n\nab"))


def test_what_a_prompt_shares_with_others_of_the_workload_is_counted() -> None:
    assert talk().make(0).shared_tokens == 0
    texts = tuple((Prompt(prompt=text),) for text in ("abcx", "abcy", "b"))
    make = talk(*PROMPTED, "requests.output_tokens=5", files={"p.jsonl": texts}, encode=encode).make
    assert [make(i).shared_tokens for i in range(4)] == [3, 3, 0, 4]  # the fourth is the first again
    (first, _), (second, _) = answers(talk("requests.turns=2"), 0, Completion(None, 3, token_ids=(1, 2, 3)))
    assert (first.shared_tokens, second.shared_tokens) == (0, 8 + 3)


@pytest.mark.parametrize(("order", "shared"), [("recorded", [512, 512, 0, 1024]), ("sampled", None)])
def test_blocks_that_a_trace_repeats_are_shared(order: str, shared: list[int] | None) -> None:
    ids = np.array([7, 8, 7, 9, 10])
    trace = Trace(np.arange(3.0), np.array([1024, 1024, 300]), np.ones(3, int), ids, np.array([0, 2, 4, 5]))
    make = talk(*TRACED, f"requests.trace_order={order}", files={"t": trace}).make
    made = [make(i) for i in range(4)]
    assert [r.shared_tokens for r in made] == (shared or [len(r.prompt) for r in made])


def words_of(text: str) -> list[int]:
    """A tokenizer of words, by their length."""
    return [1000 + len(word) for word in text.split()]


@pytest.mark.parametrize("fill", ["prose", "code"])
def test_natural_text_has_the_asked_length_and_begins_with_tokens_of_its_own(fill: str) -> None:
    asked = plain(f"requests.fill={fill}", *VARIED)
    files = read_files(asked)
    (text,) = (file for file in files.values() if isinstance(file, str))
    shown = "".join(map(chr, words_of(text)))
    random = Conversations(asked, VOCABULARY)
    natural = [Conversations(asked, VOCABULARY, None, files, words_of, salt) for salt in (1, 2)]
    assert (random.random, [talk.random for talk in natural]) == (True, [False, False])
    heads = set()
    for i in range(64):
        for talk in natural:
            made = talk.make(i)
            assert (len(made.prompt), made.output_tokens) == (len(random.make(i).prompt), random.make(i).output_tokens)
            heads.add(made.prompt[:HEAD_TOKENS])
            if len(made.prompt) < 400:
                assert "".join(map(chr, made.prompt[HEAD_TOKENS:])) in shown + shown[:400]
    assert len(heads) == 128


def test_without_a_tokenizer_the_tokens_are_random() -> None:
    def refuses(_: str) -> list[int]:
        raise HarnessError("the server's /tokenize failed", "set engine.tokenizer")

    asked = plain("requests.fill=prose", *VARIED)
    talk = Conversations(asked, VOCABULARY, None, read_files(asked), refuses)
    assert talk.random
    assert talk.make(3) == Conversations(plain(*VARIED), VOCABULARY).make(3)
