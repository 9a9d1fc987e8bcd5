"""Content of each request, and of the requests that follow it in a conversation. Pure: set by the seed and the answers.

Random numbers are raw words of Philox, a counter-based generator addressed by (seed, purpose, index). numpy guarantees
the same words in every version, which it does not for its distributions (NEP 19).
"""

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.model import Completion, Request
from harness.workload.arrivals import Trace, user_spans
from harness.workload.lengths import Lengths
from harness.workload.schema import FILL, Content, Prompt, Workload

RESERVED_IDS = 128
"""Random prompts use no token id below this: most tokenizers keep their special tokens there, the others at the end."""
HEAD_TOKENS = 4
"""Random tokens before a prompt's part of a text: no two prompts of any runs begin alike."""
PART_BYTES = 20_000
MOST_TURNS = 1000
"""Maximum turns of a conversation. With turns, the request of turn t of conversation c has index 1000 c + t."""
FIRST_WAVE = 1 << 41
"""Number of the first conversation of the first wave: above all others."""
POOL = 4096
"""Requests from which those of the first wave are drawn."""
_TOKENS, _CONVERSATION, _THINK, _CANCEL, _PREFIX, _BLOCK, _STAND_IN, _SALT, _AGE = range(9)
"""Purposes with separate random numbers, so that adding a key to a workload does not change the other values."""
_SALT_WORDS = 4096
"""Words made from the salt; prompts longer than this use them again."""
_Encode = Callable[[str], list[int]]
_Said = tuple[tuple[int, ...], int, str | None, int]
"""The user's part of one turn: token ids, number of tokens to answer with, the text, if any, and the number of ids at
its beginning that other requests of the run may have too."""
_Encoded = tuple[tuple[int, ...], Lengths, str]
_Source = Trace | list[list[_Encoded]] | None
"""A trace; or per conversation and turn the token ids, answer lengths and text; or None for random tokens."""


class Conversations:
    """Makes the first request of each conversation, and the next request after an answer.

    Both depend only on the arguments and the seed, so they are the same in any order and in any process.
    `files` maps the names in the workload to traces and prompts. Prompts, and a trace in recorded order, start again
    after the last one.

    Random token ids are uniform over [RESERVED_IDS, vocabulary), or over the upper half of a smaller vocabulary.
    Requests above `max_input_tokens` or `max_total_tokens` are shortened, the input first. Requests above the engine's
    `max_length` are sent, and the engine rejects them.

    A `salt` changes every prompt and no length or time: no prefix cache has the prompts of two salts in common, and
    prompts that share a beginning still share it. Texts begin with the salt as a word. None: the seed alone decides.

    `step_tokens` and `most_running` are the engine's limits: tokens of all requests in a step, and requests that it
    decodes at a time. None: unknown, and the first wave is as if there were none.

    HarnessError if every request exceeds `max_length`, if prompts meet an engine without a tokenizer, or if a prompt
    has no output length.
    """

    def __init__(
        self,
        workload: Workload,
        vocabulary: int,
        max_length: int | None = None,
        files: Mapping[str, Any] | None = None,
        encode: _Encode | None = None,
        salt: int | None = None,
        step_tokens: int | None = None,
        most_running: int | None = None,
    ) -> None:
        # A second generator for each request would cost 20 us: instead the salt's words change those of the first.
        self._mask = None if salt is None else np.random.Philox(key=salt, counter=_SALT << 128).random_raw(_SALT_WORDS)
        self._mark = "" if salt is None else f"{salt:x} "
        self.seed, self.contents, self.load = workload.seed, workload.requests.contents, workload.load
        self.vocabulary, self.max_length, self.encode = vocabulary, max_length, encode
        self.step_tokens, self.most_running = step_tokens, most_running
        weights = [part.weight for part in workload.requests.parts or ()]
        self.names = [part.name for part in workload.requests.parts or ()]
        self.edges = [edge / sum(weights) for edge in itertools.accumulate(weights)][:-1]
        self.stride = MOST_TURNS if any(content.turns for content in self.contents) else 1
        count, given = workload.requests.count, files or {}
        arrivals = given.get(workload.load.trace or "")
        self.arrivals = arrivals if isinstance(arrivals, Trace) else None
        """The trace that the load replays."""
        self.texts = [_text_ids(given.get(FILL.format(content.fill)), encode) for content in self.contents]
        self.sources = [_source(content, given, encode, count, self._mark) for content in self.contents]
        self._repeated = [_repeated(source) if isinstance(source, Trace) else frozenset() for source in self.sources]
        self._common = [_common(source) if isinstance(source, list) else [] for source in self.sources]
        for content in self.contents:
            if content.input_tokens is not None and content.output_tokens is not None and max_length is not None:
                least = sum(_cut(content, content.input_tokens.shortest(), content.output_tokens.shortest()))
                if least > max_length:
                    what = f"every request has {least} tokens or more, input and output together"
                    fix = f"set requests.max_total_tokens={max_length}, or raise the engine's maximum length"
                    raise HarnessError(f"{what}; the engine takes {max_length}", fix)

    def make(self, conversation: int) -> Request:
        """The first request of a conversation, which is numbered from 0; the only one if there are no turns."""
        part, _, number = self._plan(conversation)
        content, index = self.contents[part], conversation * self.stride
        ids, n_out, text, shared = self._said(part, conversation, 0)
        prefix = content.prefix if number is not None else None
        if prefix is not None and prefix.tokens is not None:
            # Parts with equal prefix settings share the prefixes.
            first = next(i for i, each in enumerate(self.contents) if each.prefix == prefix)
            ids = self._random(_PREFIX, first << 32 | (number or 0), prefix.tokens) + ids
            shared += prefix.tokens
        elif prefix is not None and prefix.texts and self.encode is not None and text is not None:
            begin = f"{self._mark}{prefix.texts[number or 0]}\n\n"
            text = begin + text.removeprefix(self._mark)
            ids, shared = tuple(self.encode(text)), shared + len(self.encode(begin))
        n_in, n_out = _cut(content, len(ids), n_out)
        return Request(
            index=index,
            prompt=ids[:n_in],
            output_tokens=n_out,
            ignore_eos=content.ignore_eos,
            messages=None if text is None or n_in < len(ids) else (text,),
            cancel_after_s=self._cancel_after_s(content, index),
            part=self.names[part] if self.names else None,
            conversation=conversation if self.stride > 1 else None,
            turn=0 if self.stride > 1 else None,
            shared_tokens=min(shared, n_in),
        )

    def first_wave(self, number: int) -> Request:
        """A request of the first wave of a load that begins in equilibrium, counted from 0 over users and their spans.

        At any instant of a closed loop the answers in progress are long ones in proportion to their length, and each
        has come any part of its way. So the request is drawn from the first `POOL` of the workload in proportion to its
        output tokens, and its age is uniform. The tokens of the age stand at the end of the prompt instead, as random
        tokens; a prompt of texts stays as it is. Of a conversation, the turns before are there, and those after follow.

        Users beyond those whose answers the engine can decode at a time wait: theirs is any request, at its beginning.
        The engine reads the others' prompts one after the other; each has its age when the last of them is read.
        """
        _, turn, age = self._drawn(number)
        request = self.make(FIRST_WAVE + number)
        for _ in range(turn if request.messages is None else 0):
            request = (self.follow(request, Completion(None, None)) or (request,))[0]
        age = min(age, request.output_tokens - 1)
        prompt = request.prompt if request.messages else request.prompt + self._random(_AGE, number, age)
        output = request.output_tokens - age
        return replace(request, prompt=prompt, output_tokens=output, age_tokens=age, cancel_after_s=None)

    @cached_property
    def _pool(self) -> tuple[list[tuple[int, int]], NDArray[np.int64], float, float]:
        """Conversation and turn of the requests from which the first wave is drawn; cumulative output tokens; how many
        users have answers in progress at a time; steps for each prompt.

        A step has room for `step_tokens`: a token of each answer in progress, and as many prompts as answers end.
        """
        turns = ((c, turn) for c in itertools.count() for turn in range(self._plan(c)[1]))
        pool = list(itertools.islice(turns, POOL))
        lengths = np.array([self._lengths(self._plan(c)[0], c, turn)[:2] for c, turn in pool])
        prompt, answer = lengths.mean(axis=0)
        steps = (prompt + answer) / (self.step_tokens or math.inf)
        decoding = min(answer / steps if steps else math.inf, self.most_running or math.inf)
        return pool, np.cumsum(lengths[:, 1]), decoding, steps

    def _drawn(self, number: int) -> tuple[int, int, int]:
        """Conversation, turn and age of a request of the first wave."""
        u, v = _uniform(self._words(_AGE, FIRST_WAVE + number), 2)
        pool, until, decoding, steps = self._pool
        span, user = divmod(number, len(self._spans))
        if user >= decoding:
            return *pool[int(u * len(pool))], 0
        at = int(np.searchsorted(until, u * until[-1]))
        tokens = int(until[at] - (until[at - 1] if at else 0))
        last = self._last[self._spans[user][min(span, len(self._spans[user]) - 1)][0]]
        return *pool[at], max(0, int(v * tokens - max(0.0, min(decoding - 1, last) - user) * steps))

    @cached_property
    def _last(self) -> dict[float, int]:
        """The last user who begins at each time at which one begins."""
        return {begin: user for user, spans in enumerate(self._spans) for begin, _ in spans}

    @cached_property
    def _spans(self) -> list[list[tuple[float, float]]]:
        return user_spans(self.load)

    @cached_property
    def _in_wave(self) -> frozenset[int]:
        """The conversations whose texts or blocks the first wave sends too."""
        if not self.load.in_equilibrium or not any(self.sources):
            return frozenset()
        return frozenset(self._drawn(n)[0] for n in range(len(self._spans) * max(map(len, self._spans))))

    def _origin(self, conversation: int) -> int:
        """The conversation from which this one has its part, turns, lengths and texts: another in the first wave."""
        return conversation if conversation < FIRST_WAVE else self._drawn(conversation - FIRST_WAVE)[0]

    def follow(self, request: Request, completion: Completion) -> tuple[Request, float] | None:
        """The next request of the conversation, and the think time before it in seconds; None: the conversation ends.

        Its prompt is the previous prompt, the answer, and the user's next text. The answer is the completion's token
        ids, or else its encoded text; if the engine returns neither, random tokens of the same number replace the
        answer, and `stand_in_tokens` counts them. A turn above a limit is not shortened: the conversation ends.
        """
        if request.conversation is None or request.turn is None:
            return None
        conversation, turn = request.conversation, request.turn + 1
        part, turns, _ = self._plan(conversation)
        if turn >= turns:
            return None
        content, stand_in = self.contents[part], request.stand_in_tokens or 0
        if completion.token_ids is not None:
            answer = completion.token_ids
        elif completion.text and self.encode is not None:
            answer = _inner(completion.text, self.encode)
        else:
            n = request.output_tokens if completion.output_tokens is None else completion.output_tokens
            answer, stand_in = self._random(_STAND_IN, request.index, n), stand_in + n
        ids, n_out, text, _ = self._said(part, conversation, turn)
        prompt = request.prompt + answer + ids
        total = len(prompt) + n_out
        if (len(prompt), n_out) != _cut(content, len(prompt), n_out) or total > (self.max_length or total):
            return None
        messages = None
        if request.messages is not None and completion.text is not None and text is not None:
            messages = (*request.messages, completion.text, text)
        think = content.think_time_s
        think_s = 0.0 if think is None else think.at(_uniform(self._words(_THINK, request.index), 1)[0])
        index = request.index + 1
        following = replace(
            request, index=index, turn=turn, prompt=prompt, output_tokens=n_out, messages=messages,
            stand_in_tokens=stand_in, cancel_after_s=self._cancel_after_s(content, index), age_tokens=None,
            shared_tokens=len(request.prompt) + len(answer),
        )  # fmt: skip
        return following, think_s

    def _plan(self, conversation: int) -> tuple[int, int, int | None]:
        """Index of the part, number of turns, and index of the shared prefix (None: no prefix)."""
        if not self.edges and self.stride == 1 and self.contents[0].prefix is None:
            return 0, 1, None
        conversation = self._origin(conversation)
        u, v, w, x = _uniform(self._words(_CONVERSATION, conversation), 4)
        part = bisect.bisect(self.edges, u)
        content, source = self.contents[part], self.sources[part]
        turns = 1 if content.turns is None else min(content.turns.at(v), MOST_TURNS)
        if isinstance(source, list):
            turns = min(turns, len(source[conversation % len(source)]))
        if content.prefix is None or w >= content.prefix.share:
            return part, turns, None
        return part, turns, int(x * (len(content.prefix.texts or ()) or content.prefix.count or 1))

    def _said(self, part: int, conversation: int, turn: int) -> _Said:
        content, source = self.contents[part], self.sources[part]
        n_in, n_out, row, words = self._lengths(part, conversation, turn)
        once = conversation < FIRST_WAVE and conversation not in self._in_wave
        if isinstance(source, list):
            ids, _, text = source[row][turn]
            first_time = once and conversation < len(source)
            return ids, n_out, text, self._common[part][conversation] if first_time else len(ids)
        if conversation >= FIRST_WAVE:  # other tokens than those of the request with the same lengths
            words = self._words(_TOKENS, conversation * self.stride + turn)
        shared, again = tuple[int, ...](), 0
        if source is not None:
            size = source.block_tokens
            blocks = source.blocks(row)[: -(-n_in // size)]
            first_time = once and content.trace_order == "recorded" and conversation < len(source.arrival_s)
            again = size * (len(self._repeated[part].intersection(blocks)) if first_time else len(blocks))
            shared = tuple(i for block in blocks for i in self._random(_BLOCK, block, size))[:n_in]
        return shared + self._content(part, words, n_in - len(shared)), n_out, None, again

    def _lengths(self, part: int, conversation: int, turn: int) -> tuple[int, int, int, np.random.Philox]:
        """Input and output tokens of a turn, its row in the trace or prompts (or 0), and the words after them."""
        content, source = self.contents[part], self.sources[part]
        conversation = self._origin(conversation)
        words = self._words(_TOKENS, conversation * self.stride + turn)
        u, v = _uniform(words, 2)
        if isinstance(source, list):
            row = conversation % len(source)
            ids, lengths, _ = source[row][turn]
            return len(ids), lengths.at(v), row, words
        if source is not None:
            rows = len(source.arrival_s)
            row = conversation % rows if content.trace_order == "recorded" else int(u * rows)
            return int(source.input_tokens[row]), int(source.output_tokens[row]), row, words
        assert content.input_tokens is not None
        assert content.output_tokens is not None
        return content.input_tokens.at(u), content.output_tokens.at(v), 0, words

    @property
    def random(self) -> bool:
        """Some prompts are random tokens."""
        pairs = zip(self.texts, self.contents, strict=True)
        return any(text is None and content.prompts is None for text, content in pairs)

    def _content(self, part: int, words: np.random.Philox, n: int) -> tuple[int, ...]:
        """Random token ids; or a few of them, by which each prompt differs from all others, and a part of the text."""
        if (text := self.texts[part]) is None:
            return self._ids(words, n)
        head = self._ids(words, min(n, HEAD_TOKENS))
        start = int(_uniform(words, 1)[0] * len(text))
        return head + tuple(text.take(np.arange(start, start + n - len(head)), mode="wrap").tolist())

    def _cancel_after_s(self, content: Content, index: int) -> float | None:
        if content.cancel_after_s is None:
            return None
        u, v = _uniform(self._words(_CANCEL, index), 2)
        return content.cancel_after_s.at(v) if u < (content.cancel_share or 1.0) else None

    def _words(self, purpose: int, index: int) -> np.random.Philox:
        return np.random.Philox(key=self.seed, counter=purpose << 128 | index << 64)

    def _random(self, purpose: int, index: int, n: int) -> tuple[int, ...]:
        return self._ids(self._words(purpose, index), n)

    def _ids(self, words: np.random.Philox, n: int) -> tuple[int, ...]:
        low, raw = min(RESERVED_IDS, self.vocabulary // 2), words.random_raw(n)
        if self._mask is not None:  # uniform words stay uniform
            raw ^= self._mask[:n] if n <= _SALT_WORDS else np.resize(self._mask, n)
        return tuple((low + ((raw >> 32) * (self.vocabulary - low) >> 32)).tolist())


def _uniform(words: np.random.Philox, n: int) -> list[float]:
    """Uniform random numbers above 0 and below 1."""
    return list((((words.random_raw(n) >> 12) + 0.5) * 2.0**-52).tolist())


def _repeated(trace: Trace) -> frozenset[int]:
    """Ids of the blocks that occur more than once in a trace."""
    ids, counts = np.unique([] if trace.block_ids is None else trace.block_ids, return_counts=True)
    return frozenset(ids[counts > 1].tolist())


def _common(source: list[list[_Encoded]]) -> list[int]:
    """For each prompt, the number of tokens at its beginning that another prompt has too."""
    prompts = [turns[0][0] for turns in source]
    common = [0] * len(prompts)
    in_order = sorted(range(len(prompts)), key=prompts.__getitem__)  # the two most alike are neighbours
    for a, b in itertools.pairwise(in_order):
        pairs = zip(prompts[a], prompts[b], strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        common[a], common[b] = max(common[a], same), max(common[b], same)
    return common


@functools.lru_cache(maxsize=4)
def _text_ids(text: str | None, encode: _Encode | None) -> NDArray[np.int64] | None:
    """Token ids of a text; None if the engine has no tokenizer. It is encoded in parts, as servers limit requests."""
    if text is None or encode is None:
        return None
    ends = [text.rfind(" ", 0, size) for size in range(PART_BYTES, len(text), PART_BYTES)]
    parts = [text[begin:end] for begin, end in itertools.pairwise([0, *ends, len(text)])]
    try:
        return np.concatenate([_inner(part, encode) for part in parts]).astype(np.int64)
    except HarnessError:  # of a server without /tokenize
        return None


def _source(
    content: Content, files: Mapping[str, Any], encode: _Encode | None, count: int | None, mark: str
) -> _Source:
    """The trace, or the prompts encoded as far as the run can need them: encoding is slow. `mark` begins each."""
    name = content.trace if content.prompts is None else content.prompts
    if name is None:
        return None
    file = files[name]
    if isinstance(file, Trace):
        return file
    if encode is None:
        raise HarnessError(f"{name} holds texts; this engine has no tokenizer", "give input_tokens instead")
    most = 1 if content.turns is None else content.turns.at(1 - 2**-53)

    def encoded(number: int, turn: int, prompt: Prompt) -> _Encoded:
        output = content.output_tokens if prompt.output_tokens is None else prompt.output_tokens
        if output is None and prompt.answer is not None:
            output = Lengths(distribution="fixed", tokens=max(1, len(_inner(prompt.answer, encode))))
        if output is None:
            what = f"{name}: prompt {number} has no output_tokens"
            raise HarnessError(what, "add it there, or set requests.output_tokens")
        if turn:
            return _inner(prompt.prompt, encode), output, prompt.prompt
        return tuple(encode(mark + prompt.prompt)), output, mark + prompt.prompt

    numbered = enumerate(file[:count], start=1)
    return [[encoded(i, turn, each) for turn, each in enumerate(prompts[:most])] for i, prompts in numbered]


def _inner(text: str, encode: _Encode) -> tuple[int, ...]:
    """Tokens of a text in the middle of a prompt: without the begin token, if the tokenizer adds one."""
    ids, begin = encode(text), encode("")
    return tuple(ids[len(begin) :] if ids[: len(begin)] == begin else ids)


def _cut(content: Content, n_in: int, n_out: int) -> tuple[int, int]:
    """Input and output tokens, reduced to the workload's limits."""
    n_in = n_in if content.max_input_tokens is None else min(n_in, content.max_input_tokens)
    if content.max_total_tokens is not None:
        n_out = min(n_out, content.max_total_tokens - 1)
        n_in = min(n_in, content.max_total_tokens - n_out)
    return n_in, n_out
