"""The nouns that every part of the harness shares.

Units are SI and stand in the names. A missing value is None, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge

SERVED = ("openai", "simulated")
"""Engines that several processes can send to; any other works inside the harness's own process."""


Status = Literal["measured", "derived", "assumed", "reported", "published", "simulated"]
"""Where a figure comes from; stored with it and printed beside it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call to the engine: what is sent, and how many tokens are asked for."""

    index: int
    prompt: tuple[int, ...]
    """Token ids, exactly as many as the workload asked for."""
    output_tokens: int
    """The most tokens to generate; exactly that many when `ignore_eos`."""
    ignore_eos: bool = True
    messages: tuple[str, ...] | None = None
    """The prompt as texts, user and assistant in turn, the user last; None: random tokens, which stand for no text."""
    cancel_after_s: float | None = None
    """The user gives up so long after sending."""
    part: str | None = None
    """Which part of a mixed workload it belongs to."""
    conversation: int | None = None
    turn: int | None = None
    """From 0."""
    stand_in_tokens: int | None = None
    """Prompt tokens that stand in for earlier answers, which the engine gave neither as ids nor as text."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine says of a finished request, by its own count (None: it does not say)."""

    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None = None
    """Input tokens that came from a prefix cache."""
    finish_reason: str | None = None
    arrival_tokens: tuple[int, ...] | None = None
    """Tokens in each arrival, where the engine knows that only after parsing; replaces the live counts."""
    connect_s: float | None = None
    """How long it took to open a connection for this request; None: none was opened."""
    token_ids: tuple[int, ...] | None = None
    text: str | None = None
    """The answer, for the next turn of a conversation; None: the engine did not give it so."""


@dataclass(frozen=True, slots=True)
class Record:
    """A request as it went: one row of requests.parquet. Times are seconds since the load began."""

    index: int
    scheduled_s: float
    """When the load shape said that the request was due."""
    sent_s: float
    end_s: float
    """When the engine said that the request was over, well or badly."""
    arrival_s: tuple[float, ...]
    """When each group of tokens arrived; never decreasing."""
    arrival_tokens: tuple[int, ...]
    """Tokens in each of those groups."""
    input_asked: int
    output_asked: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    """The kind of failure, None for success."""
    error_text: str | None = None
    part: str | None = None
    conversation: int | None = None
    turn: int | None = None
    stand_in_tokens: int | None = None
    """As in `Request`; above 0, the prompt is not what a user would have sent, only as long."""
    connect_s: float | None = None
    """Spent on opening a connection, between sent and the first arrival; None: none was opened."""
    client: int | None = None
    """Which of several client processes sent it, from 0."""


@dataclass(frozen=True, slots=True)
class PowerSample:
    """One reading of one device: a row of power.parquet. What a meter does not give is None, never 0.

    A meter stamps with CLOCK_MONOTONIC; what is stored is seconds since the load began.
    """

    before_s: float
    """When the reading was asked for."""
    after_s: float
    """When it had come: the truth lies between the two."""
    device: str
    """`0`, `1`… for GPUs in NVML's order, else the meter's own name."""
    domain: str
    """`gpu`, `gpu module` (with its CPU and memory), `gpu memory`, `cpu package`, `dram` or `host`."""
    energy_j: float | None = None
    """A counter that only grows, from an unknown start."""
    power_w: float | None = None
    """The device's newest reading."""
    average_w: float | None = None
    """The device's own running mean."""
    temperature_c: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    utilisation: float | None = None
    memory_used_bytes: int | None = None
    power_limit_w: float | None = None
    throttle: int | None = None
    """NVML's clock event reasons, as bits."""
    processes: int | None = None
    """Processes on the GPU that are the harness's or its children."""
    foreign_processes: int | None = None
    """All others, and those that this process cannot see."""
    error: str | None = None
    """What could not be read and why: `energy=gpu_is_lost`, separated by blanks."""


@dataclass(frozen=True, slots=True)
class ServerSample:
    """One of a server's own metrics at one instant: a row of server.parquet."""

    time_s: float
    """Of CLOCK_MONOTONIC; what is stored is seconds since the load began."""
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class MeterDevice:
    """What a meter found out about one device and domain before the load began, by asking it."""

    device: str
    domain: str
    name: str | None = None
    uuid: str | None = None
    period_s: float | None = None
    """Time between updates of the energy counter; None: no counter."""
    quantum_j: float | None = None
    """The counter's smallest step."""
    power_period_s: float | None = None
    average_period_s: float | None = None
    average_window_s: float | None = None
    """How long the running mean is; None: unknown."""
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    mig: bool = False
    """The board is divided between instances; its power is still the whole board's."""
    note: str | None = None


@dataclass(frozen=True, slots=True)
class MeterInfo:
    """What a meter says of itself: at its start, and, with its own cost, at its stop."""

    meter: str
    status: Status
    """`measured`, `assumed` (a declared constant) or `simulated` (a recording, or a GPU that is not there)."""
    devices: tuple[MeterDevice, ...]
    driver: str | None = None
    cpu_s: float | None = None
    """Processor time that the reading took, start-up and probing apart."""
    elapsed_s: float | None = None
    """How long it read."""
    clock_offset_s: Annotated[float, Ge(0)] = 0.0
    """How far its stamps may be from the harness's clock; widens every bound."""
    error: str | None = None
    """Why it stopped before it was asked to."""


@dataclass(frozen=True, slots=True)
class Device:
    """What was paid for: `count` GPUs of that name, or vCPUs of a CPU machine. `none`: a simulated engine."""

    kind: Literal["gpu", "cpu", "none"]
    name: str | None
    count: int


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which weights answered. `asked` is what the user typed; None: unknown to this engine."""

    asked: str | None
    source: str | None = None
    """Hub id, package or file that the weights came from."""
    revision: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    """Parameters that one token passes through; fewer than `parameters` in a mixture of experts."""
    precision: str | None = None
    """What the weights are computed in, for instance bfloat16."""
    stored_precision: str | None = None
    """What they were stored in before conversion, for instance Q4_1."""
    weights_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a started engine says of itself."""

    engine: str
    version: str | None
    model: ModelIdentity
    device: str
    """`cpu`, `cuda` or `none` (simulated)."""
    device_count: int
    """Accelerators used (tensor x pipeline parallel), or 1 machine for a CPU: what a price is multiplied by."""
    vocabulary: int
    """Prompts are made of token ids below this."""
    max_length: int | None
    """The most tokens, input and output together, that one request may have."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Every option in force, given or defaulted by the harness, as JSON values."""
    encode: Callable[[str], list[int]] | None = None
    """Text to token ids, where the engine has a tokenizer."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A named quantity with its unit and its doubt.

    `value` None means that it is not known, and `reason` says why; beside a value, `reason` says why there is no
    interval. `low` and `high` are the ends of what `interval` names; `n` is how many observations it rests on.

    >>> Figure("ttft_s.p99", None, "s", "measured", n=3, reason="needs 299 requests, has 3").text()
    'n/a (needs 299 requests, has 3)'
    """

    name: str
    value: float | None
    unit: str
    status: Status
    low: float | None = None
    high: float | None = None
    n: int | None = None
    reason: str | None = None
    interval: str = "95%"

    def text(self) -> str:
        """The value alone in at most four significant digits, or why there is none."""
        if self.value is None:
            return f"n/a ({self.reason or 'not recorded'})"
        return f"{self.value:.4g}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A doubt about a run, as data: a stable code, what was seen, and what to do about it."""

    code: str
    text: str
    advice: str
    serious: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """A run's figures and findings: what summary.json holds."""

    run: str
    """The run's directory name: where every figure here comes from."""
    state: str
    """complete, interrupted, failed, or running (which on a dead process means killed)."""
    figures: tuple[Figure, ...]
    errors: Mapping[str, int]
    """Failed requests by kind."""
    findings: tuple[Finding, ...] = ()

    def __getitem__(self, name: str) -> Figure:
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)
