"""A server's account of a request's tokens, and the events to which its uncounted tokens belong."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import RequestFailed

_TEXTS = ("text", "thinking", "reasoning", "summary", "content", "function", "name", "arguments")
"""Fields of the parts of an answer that hold text, or parts with text."""
_INPUT = "prompt_tokens", "input_tokens"
_OUTPUT = "completion_tokens", "output_tokens"
_REASONING = (
    "reasoning_tokens",  # SGLang
    "completion_tokens_details.reasoning_tokens",
    "output_tokens_details.reasoning_tokens",
)
_CACHED = (
    "prompt_tokens_details.cached_tokens",
    "input_tokens_details.cached_tokens",
    "cached_tokens",  # Moonshot
    "prompt_cache_hit_tokens",  # DeepSeek
    "cache_read_input_tokens",  # Anthropic
)
"""Names of one count, the first that is above 0 is read."""
LARGEST = 10**9
"""No answer has as many tokens: one whose usage says so is malformed."""


class Usage:
    """Token counts under the names of OpenAI's two interfaces and of the servers that differ.

    >>> Usage({"completion_tokens": 8, "completion_tokens_details": {"reasoning_tokens": 3}}).counts
    {'completion_tokens': 8, 'completion_tokens_details.reasoning_tokens': 3}

    Raises RequestFailed for a count that none can have.
    """

    def __init__(self, stated: Mapping[str, Any] | None = None) -> None:
        self.counts: dict[str, int] = {}
        for name, value in (stated or {}).items():
            if isinstance(value, dict):
                for inner in ("cached_tokens", "reasoning_tokens"):
                    self._take(f"{name}.{inner}", value.get(inner))
            else:
                self._take(name, value)
        self.reasoning = self._first(_REASONING) or 0
        """Reasoning tokens, 0 if the server states none."""
        self.output = self._output()
        """Output tokens with reasoning tokens; None if the server states none."""
        self.cached = self._first(_CACHED)
        """Input tokens from a prefix cache."""

    def updated(self, newer: Usage) -> Usage:
        """These counts with newer ones. Zeros replace none: some servers end with them."""
        if not self.counts:
            return newer
        return Usage(self.counts | {name: n for name, n in newer.counts.items() if n or name not in self.counts})

    def _take(self, name: str, value: Any) -> None:
        """Values that count no tokens (negative ones, NaN, null, text, durations) are passed over."""
        if isinstance(value, int | float) and value >= 0 and name.endswith("tokens"):
            if value >= LARGEST:
                raise RequestFailed("malformed", f"the usage says {name} {value:.3g}")
            self.counts[name] = int(value)

    def _first(self, names: Sequence[str]) -> int | None:
        """The first of these counts that is above 0, else 0 if one of them is stated."""
        found = [self.counts[name] for name in names if name in self.counts]
        return next(filter(None, found), 0) if found else None

    def _output(self) -> int | None:
        """Output tokens; xAI counts reasoning tokens apart."""
        output, total = self._first(_OUTPUT), self.counts.get("total_tokens")
        if output is None or total is None or not self.reasoning:
            return output
        apart = total == (self._first(_INPUT) or 0) + output + self.reasoning
        return output + self.reasoning if apart else output

    def input(self, sent: int | None) -> int | None:
        """Input tokens, those from the cache included; `sent` is the number of token ids sent, None for a text.

        Gateways to Anthropic state the tokens beside those from the cache. They are added where the cache holds more
        than the input, or where the sum is what was sent.

        >>> details = {"cached_tokens": 61}
        >>> [Usage({"prompt_tokens": n, "prompt_tokens_details": details}).input(None) for n in (3, 64)]
        [64, 64]
        """
        count, cached = self.counts.get, self.cached or 0
        beside, read = count("input_tokens"), count("prompt_tokens")
        if not read and beside is not None and "cache_read_input_tokens" in self.counts:
            return beside + cached + count("cache_creation_input_tokens", 0)
        read = read or beside or 0
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
        self.stated: list[tuple[int, int]] = []
        """Of each usage with output tokens: the last event until then, and the output tokens."""
        self.end: int | None = None
        """The event with the finish reason."""
        self.stopped = False
        """The model ended the answer, not the limit on its length: the last token is an end token."""
        self.reasoning_shown = False

    def total(self, usage: Usage, asked: int) -> int | None:
        """Output tokens by the usage; None if the server states none, or stated them before the last token."""
        total, seen = usage.output, sum(self.tokens)
        if not total or total >= seen or not self.stated:
            return total or None
        if any(self.tokens[self.stated[-1][0] + 1 :]):
            return None
        each = sum(tokens for _, tokens in self.stated)
        return each if seen <= each <= max(asked, seen) else total  # some usages count one event each

    def place(self, usage: Usage, total: int, asked: int) -> int:
        """Add the tokens of `total` that no event showed; returns the number of hidden ones.

        The end token belongs to the event with the finish reason, one token to each event without a text between the
        first with one and the end. If the text has fewer bytes than tokens, the reasoning was not sent, or events
        without a text come in place of most of the missing ones before the first text, tokens were hidden: they were
        made before the first that was shown. The others arrived in groups, and longer texts hold more of them. A usage
        above both what was asked for and what was shown is not believed.
        """
        seen = sum(self.tokens)
        if total <= seen:
            return 0
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
        # One event has the role. A parser that held tokens back shows them together, in a long text.
        stripped = len(shown) > 2 and 2 * (shown[0] - 1) >= missing > 1 and sizes[0] <= 2 * statistics.median(sizes)
        hidden = missing if too_short or stripped else min(missing, reasoning)
        self.tokens[shown[0]] += hidden
        self._spread(shown, sizes, missing - hidden)
        return hidden

    def _spread(self, shown: Sequence[int], sizes: Sequence[int], missing: int) -> None:
        """Add `missing` tokens to the events that are shown, as their usage says, else in proportion to their bytes."""
        stated = dict(self.stated)
        if all(event in stated for event in shown):
            totals = [0, *(stated[event] for event in shown)]
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
