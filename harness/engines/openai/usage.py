"""A server's account of a request's tokens, and the events to which its uncounted tokens belong."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

_TEXTS = ("text", "thinking", "reasoning", "summary", "content", "function", "name", "arguments")
"""Fields of the parts of an answer that hold text, or parts with text."""
LARGEST = 1 << 40
"""Larger counts are read as this one, which is not believed either."""
if TYPE_CHECKING:
    Count = int | None
else:
    Count = Any  # as it was sent; `Counts` makes a number of it


class Fields(msgspec.Struct, gc=False):
    """The JSON fields that are read. Others are ignored; a value of the wrong type is an error."""


class Counts(Fields):
    """Numbers of tokens. Values that count nothing (negative ones, NaN, text) become None; huge ones, `LARGEST`."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, int | float):
                setattr(self, name, int(min(value, LARGEST)) if value >= 0 else None)
            elif not isinstance(value, Counts):
                setattr(self, name, None)


class Details(Counts):
    cached_tokens: Count = None
    reasoning_tokens: Count = None


class Usage(Counts):
    """Token counts under the names of OpenAI's two interfaces and of the servers that differ."""

    prompt_tokens: Count = None
    input_tokens: Count = None
    completion_tokens: Count = None
    output_tokens: Count = None
    total_tokens: Count = None
    prompt_tokens_details: Details | None = None
    input_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None
    output_tokens_details: Details | None = None
    reasoning_tokens: Count = None  # SGLang
    cached_tokens: Count = None  # Moonshot
    prompt_cache_hit_tokens: Count = None  # DeepSeek
    cache_read_input_tokens: Count = None  # Anthropic, beside input tokens that were not in the cache
    cache_creation_input_tokens: Count = None

    def update(self, newer: "Usage") -> None:
        """Take over the values of a newer usage. Zeros and nulls replace no value: some servers end with them."""
        for name in self.__struct_fields__:
            if (value := getattr(newer, name)) or getattr(self, name) is None:
                setattr(self, name, value)

    @property
    def reasoning(self) -> int:
        """Reasoning tokens, 0 if the server states none."""
        details = self.completion_tokens_details or self.output_tokens_details or Details()
        return self.reasoning_tokens or details.reasoning_tokens or 0

    @property
    def output(self) -> int | None:
        """Output tokens with reasoning tokens, which xAI counts apart; None if the server states none."""
        output = self.completion_tokens or self.output_tokens
        if output is None or self.total_tokens is None or not self.reasoning:
            return output
        apart = self.total_tokens == (self.prompt_tokens or self.input_tokens or 0) + output + self.reasoning
        return output + self.reasoning if apart else output

    @property
    def cached(self) -> int | None:
        """Input tokens from a prefix cache."""
        details = self.prompt_tokens_details or self.input_tokens_details or Details()
        told = details.cached_tokens, self.cached_tokens, self.prompt_cache_hit_tokens, self.cache_read_input_tokens
        return next((each for each in told if each is not None), None)

    def input(self, sent: int | None) -> int | None:
        """Input tokens, those from the cache included; `sent` is the number of token ids sent, None for a text.

        Gateways to Anthropic state the tokens beside those from the cache. They are added where the cache holds more
        than the input, or where the sum is what was sent.

        >>> details = Details(cached_tokens=61)
        >>> [Usage(prompt_tokens=n, prompt_tokens_details=details).input(None) for n in (3, 64)]
        [64, 64]
        """
        read, cached = self.prompt_tokens, self.cached or 0
        if not read and self.cache_read_input_tokens is not None and self.input_tokens is not None:
            return self.input_tokens + cached + (self.cache_creation_input_tokens or 0)
        read = read or self.input_tokens or 0
        if cached > read or (sent is not None and read < sent <= read + cached <= sent + 1):
            return read + cached
        return read or None  # no prompt has 0 tokens


class Events:
    """The events of an answer that hold a choice, in order."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        """Tokens of each event: 1 if it shows anything, or the number of token ids in it."""
        self.shown: list[str] = []
        """Text, reasoning and tool calls of each event."""
        self.arrivals: list[int] = []
        """Number of the arrival, from 0, with the event's last byte."""
        self.told: list[tuple[int, int]] = []
        """Of each usage with output tokens: the last event until then, and the output tokens."""
        self.end: int | None = None
        """The event with the finish reason."""
        self.stopped = False
        """The model ended the answer, not the limit on its length: the last token is an end token."""
        self.reasoning_shown = False

    def add(self, shown: str, tokens: int, arrival: int) -> None:
        self.tokens.append(tokens)
        self.shown.append(shown)
        self.arrivals.append(arrival)

    def total(self, usage: Usage, asked: int) -> int | None:
        """Output tokens by the usage; None if the server states none, or stated them before the last token."""
        total, seen = usage.output, sum(self.tokens)
        if not total or total >= seen or not self.told:
            return total or None
        if any(self.tokens[self.told[-1][0] + 1 :]):
            return None
        each = sum(tokens for _, tokens in self.told)
        return each if seen <= each <= max(asked, seen) else total  # some usages count one event each

    def place(self, usage: Usage, asked: int) -> int:
        """Add the tokens that the usage counts and no event showed; returns the number of hidden ones.

        The end token belongs to the event with the finish reason, one token to each event without a text between the
        first with one and the end. If the text has fewer bytes than tokens, or the reasoning was not sent, tokens
        were hidden: they were made before the first that was shown. The others came in groups, and longer texts hold
        more of them. A usage above both what was asked for and what was shown is not believed.
        """
        total, seen = self.total(usage, asked) or 0, sum(self.tokens)
        reasoning = 0 if self.reasoning_shown else usage.reasoning
        most = max(asked, seen + self.stopped) + reasoning
        missing = min(total, most) - seen
        if missing <= 0:
            return 0
        shown = [event for event, tokens in enumerate(self.tokens) if tokens]
        if self.arrivals[shown[0]] < self.arrivals[shown[-1]] or missing == len(shown) == 1:
            end = len(self.tokens) if self.end is None else self.end
            blank = [event for event in range(shown[0], end) if not self.tokens[event]]
            if self.stopped and not self.tokens[end]:
                blank.insert(0, end)
            for event in blank[:missing]:
                self.tokens[event] = 1
            missing -= len(blank[:missing])
            if not missing:
                return 0
        sizes = [len(self.shown[event].encode()) for event in shown]
        too_short = sum(sizes) < sum(self.tokens[event] for event in shown) + missing
        if too_short and total > most:
            return 0
        hidden = missing if too_short else min(missing, reasoning)
        self.tokens[shown[0]] += hidden
        self._spread(shown, sizes, missing - hidden)
        return hidden

    def _spread(self, shown: Sequence[int], sizes: Sequence[int], missing: int) -> None:
        """Add `missing` tokens to the events that are shown, as their usage says, else in proportion to their bytes."""
        told = dict(self.told)
        if all(event in told for event in shown):
            totals = [0, *(told[event] for event in shown)]
            more: list[float] = [after - before - 1 for before, after in itertools.pairwise(totals)]
        else:
            per_byte = (len(shown) + missing) / (sum(sizes) or 1)
            more = [size * per_byte - 1 for size in sizes]
        weights = [max(0.0, each) for each in more]
        weights = weights if any(weights) else [1.0] * len(shown)
        ends = [round(missing * each / sum(weights)) for each in itertools.accumulate(weights, initial=0.0)]
        for event, (before, after) in zip(shown, itertools.pairwise(ends), strict=True):
            self.tokens[event] += after - before


def text_of(part: Any) -> str:
    """The text of a string, of a part of a content, or of a list of these.

    >>> text_of([{"type": "thinking", "thinking": [{"text": "so"}]}, {"type": "text", "text": " be it"}])
    'so be it'
    """
    if isinstance(part, list):
        return "".join(map(text_of, part))
    if isinstance(part, dict):
        return "".join(text_of(part.get(key)) for key in _TEXTS)
    return part if isinstance(part, str) else ""
