"""What each request holds, and what follows it in a conversation. Pure: the seed decides, and what was answered."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from harness.errors import HarnessError
from harness.model import Completion, Request
from harness.workload.arrivals import Trace
from harness.workload.lengths import Lengths
from harness.workload.schema import Content, Prompt, Prompts, Workload

RESERVED_IDS = 128
"""Random prompts use no token id below this: tokenizers keep their special tokens there, where not at the end."""
BLOCK_TOKENS = 512
"""Prompt tokens that one hash id of a Mooncake trace stands for; its last id stands for what is left."""
MOST_TURNS = 1000
"""Of a conversation. Where there may be several, turn t of conversation c is the request of index 1000 c + t."""
_TOKENS, _CONVERSATION, _THINK, _CANCEL, _PREFIX, _BLOCK, _STAND_IN = range(7)
"""Purposes, each with random numbers of its own: a key that is added to a workload changes nothing else in it."""
_Encode = Callable[[str], list[int]]
_Said = tuple[tuple[int, ...], int, str | None]
"""What a user says in one turn: token ids, how many to answer with, and the text, where there is one."""
_Source = Trace | list[list[tuple[tuple[int, ...], Lengths, str]]] | None
"""A trace; or of each conversation, of each turn, the token ids, answer lengths and text; or neither."""


class Conversations:
    """Makes the first request of each conversation, and what follows an answer.

    Both depend on the arguments and the seed alone: they are the same in any order, at any speed, in any process.
    `files` are the traces and prompts that the workload names, by those names. A trace's rows in recorded order, and
    prompts, start over after the last.

    Random token ids are uniform over [RESERVED_IDS, vocabulary), or over the upper half of a smaller vocabulary. What
    exceeds `max_input_tokens` or `max_total_tokens` is cut, the input first; what exceeds the engine's `max_length` is
    left for it to reject.

    HarnessError where every request exceeds `max_length`, where prompts meet an engine without a tokenizer, and where a
    prompt has no output length. ValueError where a file was not passed.

    The random numbers are raw words of Philox, a counter-based generator that has the words of (seed, index) at hand;
    numpy keeps those the same from version to version, and promises no such thing of its distributions (NEP 19).
    """

    def __init__(
        self,
        workload: Workload,
        vocabulary: int,
        max_length: int | None = None,
        files: Mapping[str, Trace | Prompts] | None = None,
        encode: _Encode | None = None,
    ) -> None:
        self.seed, self.contents = workload.seed, workload.requests.contents
        self.vocabulary, self.max_length, self.encode = vocabulary, max_length, encode
        weights = [part.weight for part in workload.requests.parts or ()]
        self.names = [part.name for part in workload.requests.parts or ()]
        self.edges = [edge / sum(weights) for edge in itertools.accumulate(weights)][:-1]
        self.stride = MOST_TURNS if any(content.turns for content in self.contents) else 1
        self.sources = [_source(content, files or {}, encode, workload.requests.count) for content in self.contents]
        for content in self.contents:
            if content.input_tokens is not None and content.output_tokens is not None and max_length is not None:
                least = sum(_cut(content, content.input_tokens.shortest(), content.output_tokens.shortest()))
                if least > max_length:
                    what = f"every request has {least} tokens or more, input and output together"
                    fix = f"set requests.max_total_tokens={max_length}, or give the engine more room"
                    raise HarnessError(f"{what}; the engine takes {max_length}", fix)

    def make(self, conversation: int) -> Request:
        """The first request of the conversation of that number, from 0 up; where there are no turns, the only one."""
        part, _, number = self._plan(conversation)
        content = self.contents[part]
        ids, n_out, text = self._said(part, conversation, 0)
        if number is not None and content.prefix is not None and content.prefix.tokens is not None:
            # Parts of which the same prefixes are asked have the same ones.
            first = next(i for i, each in enumerate(self.contents) if each.prefix == content.prefix)
            ids = self._random(_PREFIX, first << 32 | number, content.prefix.tokens) + ids
        elif number is not None and content.prefix is not None and content.prefix.texts and self.encode is not None:
            text = f"{content.prefix.texts[number]}\n\n{text}"
            ids = tuple(self.encode(text))
        n_in, n_out = _cut(content, len(ids), n_out)
        messages = None if text is None or n_in < len(ids) else (text,)
        return self._request(part, conversation, 0, (ids[:n_in], n_out, text), messages, None)

    def follow(self, request: Request, completion: Completion) -> tuple[Request, float] | None:
        """The next request of the conversation, and the seconds of thought before it; None: it is over.

        Its prompt is the one before, the answer, and what the user says next. The answer is the completion's token ids,
        or else its text, encoded; where the engine gives neither, so many random tokens stand in for it, and
        `stand_in_tokens` counts them. A turn that exceeds a limit is not cut: the conversation ends before it.
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
        ids, n_out, text = self._said(part, conversation, turn)
        prompt = request.prompt + answer + ids
        total = len(prompt) + n_out
        if (len(prompt), n_out) != _cut(content, len(prompt), n_out) or total > (self.max_length or total):
            return None
        messages = None
        if request.messages is not None and completion.text is not None and text is not None:
            messages = (*request.messages, completion.text, text)
        think = content.think_time_s
        think_s = 0.0 if think is None else think.at(_uniform(self._words(_THINK, request.index), 1)[0])
        return self._request(part, conversation, turn, (prompt, n_out, text), messages, stand_in), think_s

    def _plan(self, conversation: int) -> tuple[int, int, int | None]:
        """Part, number of turns, and number of the shared prefix."""
        if not self.edges and self.stride == 1 and self.contents[0].prefix is None:
            return 0, 1, None
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
        words = self._words(_TOKENS, conversation * self.stride + turn)
        u, v = _uniform(words, 2)
        if isinstance(source, list):
            ids, lengths, text = source[conversation % len(source)][turn]
            return ids, lengths.at(v), text
        shared: tuple[int, ...] = ()
        if source is not None:
            rows = len(source.arrival_s)
            row = conversation % rows if content.trace_order == "recorded" else int(u * rows)
            n_in, n_out = int(source.input_tokens[row]), int(source.output_tokens[row])
            blocks = source.blocks(row)[: -(-n_in // BLOCK_TOKENS)]
            shared = tuple(i for block in blocks for i in self._random(_BLOCK, block, BLOCK_TOKENS))[:n_in]
        elif content.input_tokens is not None and content.output_tokens is not None:
            n_in, n_out = content.input_tokens.at(u), content.output_tokens.at(v)
        return shared + self._ids(words, n_in - len(shared)), n_out, None

    def _request(
        self,
        part: int,
        conversation: int,
        turn: int,
        said: _Said,
        messages: tuple[str, ...] | None,
        stand_in: int | None,
    ) -> Request:
        content, index = self.contents[part], conversation * self.stride + turn
        cancel_s = None
        if content.cancel_after_s is not None:
            u, v = _uniform(self._words(_CANCEL, index), 2)
            cancel_s = content.cancel_after_s.at(v) if u < (content.cancel_share or 1.0) else None
        return Request(
            index=index,
            prompt=said[0],
            output_tokens=said[1],
            ignore_eos=content.ignore_eos,
            messages=messages,
            cancel_after_s=cancel_s,
            part=self.names[part] if self.names else None,
            conversation=conversation if self.stride > 1 else None,
            turn=turn if self.stride > 1 else None,
            stand_in_tokens=stand_in,
        )

    def _words(self, purpose: int, index: int) -> np.random.Philox:
        return np.random.Philox(key=self.seed, counter=purpose << 128 | index << 64)

    def _random(self, purpose: int, index: int, n: int) -> tuple[int, ...]:
        return self._ids(self._words(purpose, index), n)

    def _ids(self, words: np.random.Philox, n: int) -> tuple[int, ...]:
        low = min(RESERVED_IDS, self.vocabulary // 2)
        return tuple((low + ((words.random_raw(n) >> 32) * (self.vocabulary - low) >> 32)).tolist())


def _uniform(words: np.random.Philox, n: int) -> list[float]:
    """Numbers above 0 and below 1."""
    uniform: list[float] = (((words.random_raw(n) >> 12) + 0.5) * 2.0**-52).tolist()
    return uniform


def _source(
    content: Content, files: Mapping[str, Trace | Prompts], encode: _Encode | None, count: int | None
) -> _Source:
    """Where lengths or texts come from. Texts are encoded here, as many as can be asked for: it takes a while."""
    named = content.prompts if content.prompts is not None else content.trace
    if named is None:
        return None
    file = files.get(named)
    if isinstance(file, Trace) and content.prompts is None:
        return file
    if isinstance(file, Trace) or file is None:
        raise ValueError(f"the workload's trace or prompts were not passed: {named}")
    if encode is None:
        raise HarnessError(f"{named} holds texts; this engine has no tokenizer", "give input_tokens instead")
    most = 1 if content.turns is None else content.turns.at(1 - 2**-53)
    return [
        [
            _encoded(prompt, turn, content, encode, f"{named}: prompt {number}")
            for turn, prompt in enumerate(prompts[:most])
        ]
        for number, prompts in enumerate(file[:count], start=1)
    ]


def _encoded(
    prompt: Prompt, turn: int, content: Content, encode: _Encode, place: str
) -> tuple[tuple[int, ...], Lengths, str]:
    output = content.output_tokens if prompt.output_tokens is None else prompt.output_tokens
    if output is None and prompt.answer is not None:
        output = Lengths(distribution="fixed", tokens=max(1, len(_inner(prompt.answer, encode))))
    if output is None:
        raise HarnessError(f"{place} has no output_tokens", "add it there, or set requests.output_tokens")
    return (_inner(prompt.prompt, encode) if turn else tuple(encode(prompt.prompt))), output, prompt.prompt


def _inner(text: str, encode: _Encode) -> tuple[int, ...]:
    """The tokens of a text that others come before: without the one for a beginning, where the tokenizer sets it."""
    ids, begin = encode(text), encode("")
    return tuple(ids[len(begin) :] if ids[: len(begin)] == begin else ids)


def _cut(content: Content, n_in: int, n_out: int) -> tuple[int, int]:
    n_in = n_in if content.max_input_tokens is None else min(n_in, content.max_input_tokens)
    if content.max_total_tokens is not None:
        n_out = min(n_out, content.max_total_tokens - 1)
        n_in = min(n_in, content.max_total_tokens - n_out)
    return n_in, n_out
