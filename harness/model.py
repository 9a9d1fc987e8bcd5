"""The values that all parts of the harness share.

Units are SI and stand in the names. A missing value is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge

ENGINES: dict[str, str] = {
    "openai": "harness.engines.openai.server:create",
    "simulated": "harness.engines.simulated:SimulatedEngine",
    "transformers": "harness.engines.transformers:TransformersEngine",
    "vllm": "harness.engines.vllm:VLLMEngine",
}
"""Name -> `module:class`; the module is imported only when the engine is chosen."""
MOST_TOKENS = 10**9
"""No request has as many tokens."""
SERVED = ("openai", "simulated")
"""Engines to which several client processes can send; the others run in the harness's own process."""

Status = Literal["measured", "derived", "assumed", "reported", "published", "simulated"]
"""How a figure was obtained; stored and printed with the figure."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call to the engine."""

    index: int
    prompt: tuple[int, ...]
    """Token ids."""
    output_tokens: int
    """Maximum number of tokens to generate; the exact number if `ignore_eos`."""
    ignore_eos: bool = True
    messages: tuple[str, ...] | None = None
    """The prompt as texts of user and assistant alternately, the user's last; None if the prompt is random tokens."""
    cancel_after_s: float | None = None
    """The client cancels the request this long after sending."""
    part: str | None = None
    """Name of its part in a mixed workload."""
    conversation: int | None = None
    turn: int | None = None
    """From 0."""
    stand_in_tokens: int | None = None
    """Number of random prompt tokens that replace earlier answers, because the engine returned no ids or text."""
    shared_tokens: int = 0
    """Upper bound of the tokens at the prompt's beginning that other requests of the workload have too."""
    age_tokens: int | None = None
    """Tokens that the answer had before the run began, in the first wave of an equilibrium start; None in any other."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine reports about a finished request, by the engine's own count (None: not reported)."""

    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None = None
    """Input tokens read from a prefix cache."""
    finish_reason: str | None = None
    arrival_tokens: tuple[int, ...] | None = None
    """Tokens in each arrival, if known only after parsing; replaces the counts given while streaming."""
    connect_s: float | None = None
    """Time to open a connection for this request; None: none was opened."""
    token_ids: tuple[int, ...] | None = None
    text: str | None = None
    """The answer, for the next turn of a conversation; None: the engine returned no text."""
    hidden_tokens: int | None = None
    """Output tokens that were counted and not sent, such as reasoning; they are in the first arrival."""
    retries: int | None = None
    """Times that the request was sent again because the server asked it to wait; None: it was not."""


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of one request: a row of requests.parquet. Times are seconds since the start of the load."""

    index: int
    scheduled_s: float
    """Due time by the load shape."""
    sent_s: float
    end_s: float
    """When the engine reported the end of the request, with or without success."""
    arrival_s: tuple[float, ...]
    """When each group of tokens arrived; never decreasing."""
    arrival_tokens: tuple[int, ...]
    """Tokens in each group."""
    input_asked: int
    output_asked: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    """Kind of failure; None: success."""
    error_text: str | None = None
    part: str | None = None
    conversation: int | None = None
    turn: int | None = None
    stand_in_tokens: int | None = None
    """As in `Request`. If above 0, the prompt has the length, but not the content, of a user's prompt."""
    connect_s: float | None = None
    """Time to open a connection, between sent and the first arrival; None: none was opened."""
    client: int | None = None
    """Number, from 0, of the client process that sent the request, if there were several."""
    shared_tokens: int | None = None
    """As in `Request`; None in runs of schema versions before 3."""
    hidden_tokens: int | None = None
    """As in `Completion`: the first arrival is that of the first token shown, not of the first that was made."""
    retries: int | None = None
    """As in `Completion`; the waits lie between sent and the first arrival."""
    age_tokens: int | None = None
    """As in `Request`. Not None: the request is load only, and has no latencies."""


@dataclass(frozen=True, slots=True)
class PowerSample:
    """One reading of one device: a row of power.parquet. A value that the meter does not provide is None, never 0.

    Times are on CLOCK_MONOTONIC while measuring, and seconds since the start of the load once stored.
    """

    before_s: float
    """When the reading was requested."""
    after_s: float
    """When the reading returned; the value was taken between the two times."""
    device: str
    """`0`, `1`… for GPUs in NVML's order, else the meter's name for the device."""
    domain: str
    """`gpu`, `gpu module` (with its CPU and memory), `gpu memory`, `cpu package`, `dram` or `host`."""
    energy_j: float | None = None
    """A growing counter with an unknown start value."""
    power_w: float | None = None
    """The device's newest reading."""
    average_w: float | None = None
    """The device's running mean."""
    temperature_c: float | None = None
    sm_clock_hz: float | None = None
    throttle: int | None = None
    """NVML's clock event reasons, as bits."""
    power_capped_s: float | None = None
    """Counter of the time in which the power limit held the clocks down."""
    heat_capped_s: float | None = None
    """Counter of the time in which the temperature held the clocks down."""
    processes: int | None = None
    """Number of processes on the GPU that are the harness's or its children."""
    foreign_processes: int | None = None
    """Number of all other processes on the GPU, those that the harness cannot identify included."""
    error: str | None = None
    """Failed readings with their reasons, such as `energy=gpu_is_lost`, separated by spaces."""


@dataclass(frozen=True, slots=True)
class ServerSample:
    """One value of one of the server's metrics: a row of server.parquet."""

    time_s: float
    """On CLOCK_MONOTONIC while measuring, and seconds since the start of the load once stored."""
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class MeterDevice:
    """What a meter found out about one device and domain before the load started."""

    device: str
    domain: str
    name: str | None = None
    uuid: str | None = None
    period_s: float | None = None
    """Time between updates of the energy counter; None: no counter."""
    period_half_s: float | None = None
    """Half-width of the interval in which `period_s` lies; None: not known."""
    quantum_j: float | None = None
    """Smallest step of the counter."""
    power_period_s: float | None = None
    average_period_s: float | None = None
    average_window_s: float | None = None
    """Length of the running mean; None: unknown."""
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    mig: bool = False
    """The GPU is divided into MIG instances; the power is still that of the whole board."""
    note: str | None = None


@dataclass(frozen=True, slots=True)
class MeterInfo:
    """What a meter reports about itself: at its start and, with its CPU time, at its stop."""

    meter: str
    status: Status
    """`measured`, `assumed` (a declared constant) or `simulated` (a recording, or a GPU that does not exist)."""
    devices: tuple[MeterDevice, ...]
    driver: str | None = None
    cpu_s: float | None = None
    """CPU time of the readings, without start-up and probing."""
    elapsed_s: float | None = None
    """Duration of the readings."""
    clock_offset_s: Annotated[float, Ge(0)] = 0.0
    """Largest possible difference between the meter's clock and the harness's; widens every bound."""
    error: str | None = None
    """Why the meter stopped before the end of the run."""


@dataclass(frozen=True, slots=True)
class Device:
    """The hardware to pay for: `count` GPUs of this name, or `count` vCPUs of a CPU. `none`: a simulated engine."""

    kind: Literal["gpu", "cpu", "none"]
    name: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Charged:
    """The GPUs whose energy and price a run is charged."""

    devices: tuple[str, ...]
    """As in `PowerSample.device`: NVML's indices."""
    why: str
    """How they were found, or why they are not known."""
    name: str | None = None
    """NVML's name; None: there are none, or of several kinds."""
    asked: tuple[str, ...] = ()
    """What the user named with `--gpus`, if what was seen contradicts it."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The weights that answered. `asked` is the model as the user named it; None: the engine does not know."""

    asked: str | None
    source: str | None = None
    """Hub id, package or file of the weights."""
    revision: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    """Parameters used for one token; fewer than `parameters` in a mixture of experts."""
    precision: str | None = None
    """Precision of the computation, for instance bfloat16."""
    stored_precision: str | None = None
    """Precision of the stored weights before conversion, for instance Q4_1."""
    weights_sha256: str | None = None
    config: Mapping[str, Any] | None = None
    """The model's config.json, from which its shape follows."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a started engine reports about itself."""

    engine: str
    version: str | None
    model: ModelIdentity
    device: str
    """`cpu`, `cuda` or `none` (simulated)."""
    device_count: int
    """Number of accelerators used (tensor x pipeline parallel), or 1 for a CPU machine."""
    vocabulary: int
    """Token ids of prompts are below this number."""
    max_length: int | None
    """Maximum number of tokens of one request, input and output together."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """All options in force, set by the user or by the harness, as JSON values."""
    encode: Callable[[str], list[int]] | None = None
    """Text to token ids; None: the engine has no tokenizer."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A named quantity with its unit and interval.

    If `value` is None, `reason` says why the value is unknown; otherwise `reason` says why there is no interval.
    `low` and `high` are the ends of the interval that `interval` names; `n` is the number of observations.

    >>> Figure("ttft_s.p99", None, "s", "measured", n=3, reason="needs 299 requests, has 3").text()
    'n/a (needs 299 requests, has 3)'
    >>> Figure("ttft_s.p50", math.nan, "s", "measured").text()
    'n/a (not a finite number)'
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

    def __post_init__(self) -> None:
        """Damaged rows can give infinite values or intervals; these are unknown."""
        ends = ("value", "low", "high")
        if wrong := [name for name in ends if isinstance(x := getattr(self, name), float) and not math.isfinite(x)]:
            for name in (*wrong, "low", "high"):
                object.__setattr__(self, name, None)
            object.__setattr__(self, "reason", "not a finite number")

    def text(self) -> str:
        """The value with at most four significant digits, or n/a with the reason."""
        if self.value is None:
            return f"n/a ({self.reason or 'not recorded'})"
        return f"{self.value:.4g}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A doubt about a run: a fixed code, what was observed, and what to do about it."""

    code: str
    text: str
    advice: str
    serious: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """A run's figures and findings: the content of summary.json."""

    run: str
    """Name of the run's directory."""
    state: str
    """complete, interrupted, failed or running."""
    figures: tuple[Figure, ...]
    errors: Mapping[str, int]
    """Kind of failure -> number of failed requests."""
    findings: tuple[Finding, ...] = ()

    def get(self, name: str) -> Figure | None:
        """The figure of this name; None if the run does not have it."""
        return next((figure for figure in self.figures if figure.name == name), None)

    def __getitem__(self, name: str) -> Figure:
        return {figure.name: figure for figure in self.figures}[name]
