"""run.json, typed: what was asked, where, and how it ended. Keys that this version does not know are kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from harness.model import Figure, MeterInfo, ModelIdentity

SCHEMA_VERSION = 2
"""Of run.json and the Parquet files. History: 1 (0.1.0) the first; 2 adds conversations, connections and clients."""

State = Literal["running", "complete", "interrupted", "failed"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Open(BaseModel):
    """A part that other versions and tools write too: every key that was given is written again, in the same order."""

    model_config = ConfigDict(extra="allow", frozen=True)
    _order: tuple[str, ...] = ()

    @model_validator(mode="wrap")
    @classmethod
    def ordered(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """The part, which remembers the order of its keys."""
        made = validate(given)
        if isinstance(given, Mapping):
            made._order = tuple(given)
        return made

    @model_serializer(mode="wrap")
    def as_given(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The part as JSON values, without the keys that were not given."""
        values = plain(self)
        given = dict.fromkeys((*self._order, *self.model_fields_set))
        return {key: values[key] for key in given if key in values}


class Anchor(_Part):
    """Second zero of a run, on both clocks."""

    utc: datetime
    monotonic_s: float


class Timings(_Part):
    """How long each part took, in seconds; None: it was not reached."""

    engine_start_s: float | None = None
    warmup_s: float | None = None
    measured_s: float | None = None
    engine_stop_s: float | None = None


class AskedRequests(_Open):
    """The requests of a stored workload, or one part of a mix."""

    count: int | None = None
    parts: tuple[AskedRequests, ...] | None = None
    turns: Any = None
    prompts: str | None = None
    prefix: Any = None
    ignore_eos: bool = True

    @property
    def kinds(self) -> tuple[AskedRequests, ...]:
        """The requests themselves, and each part of the mix."""
        return (self, *(self.parts or ()))


class AskedLoad(_Open):
    """The load of a stored workload."""

    shape: str | None = None
    users: int | None = None
    rate_per_s: float | None = None


class AskedWarmup(_Open):
    """The warm-up of a stored workload."""

    requests: int = 0


class Asked(_Open):
    """A stored workload, whichever version wrote it."""

    name: str | None = None
    description: str | None = None
    model: str | None = None
    requests: AskedRequests = AskedRequests()
    load: AskedLoad = AskedLoad()
    warmup: AskedWarmup = AskedWarmup()
    objectives: dict[str, float | None] = {}
    scenario: str | None = None
    seed: int | None = None


class Cpu(_Open):
    """The processors of the machine."""

    model: str | None = None
    cores_usable: int | None = None


class GpuFound(_Open):
    """A GPU of the machine, as NVML described it."""

    name: str | None = None
    power_limit_w: float | None = None


class Git(_Open):
    """The clone that the harness ran from."""

    revision: str | None = None
    dirty: bool = False


class Environment(_Open):
    """Where a run took place (`harness.measure.environment.capture`)."""

    cpu: Cpu = Cpu()
    gpus: tuple[GpuFound, ...] = ()
    memory_bytes: int | None = None
    os: str | None = None
    python: str | None = None
    harness: str | None = None
    driver: str | None = None
    packages: dict[str, str] = {}
    settings: dict[str, str] = {}
    git: Git | None = None
    governors: tuple[str, ...] = ()
    swap: dict[str, int] = {}
    debug: tuple[str, ...] = ()


class Started(_Open):
    """What a started engine said of itself: the fields of `harness.model.EngineInfo`."""

    engine: str
    device: str
    device_count: int
    model: ModelIdentity
    version: str | None = None
    options: dict[str, Any] = {}


class Delay(_Open):
    """How late an event loop ran, in seconds."""

    n: int
    p50: float
    p99: float
    max: float


class ClientSeen(_Open):
    """What a process that sent load saw of itself."""

    cpu_s: float | None = None
    elapsed_s: float | None = None
    loop_delay_s: Delay | None = None
    clock_bound_s: float = 0.0
    """How far its clock may be from that of the parent process."""


class Imported(_Open):
    """Another tool's result: the figures that it printed, and how it defines them."""

    tool: str
    file: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]


class SweepPoint(_Open):
    """The sweep and the point of it that a run belongs to."""

    name: str
    key: str


class RunFile(_Part):
    """run.json."""

    schema_version: int = SCHEMA_VERSION
    id: str
    state: State = "running"
    created_utc: datetime
    pid: int
    workload: Asked
    """The workload in full, as validated."""
    engine_asked: str
    environment: Environment
    engine: Started | None = None
    """None: it never started."""
    meters: tuple[MeterInfo, ...] = ()
    """What each meter said of itself."""
    meters_asked: tuple[str, ...] = ()
    """The words that named the meters, as `harness run --meter` takes them."""
    declared: dict[str, float] = {}
    """What the user declared of power that no meter reads: `host_w` (the rest of the host), `pue`."""
    meters_absent: tuple[str, ...] = ()
    """Why each meter that was looked for is not among them."""
    clients: tuple[ClientSeen, ...] = ()
    server: dict[str, Any] | None = None
    """The server that the harness started: its command, version and log."""
    sweep: SweepPoint | None = None
    imported: Imported | None = None
    idle: dict[str, tuple[float, float]] = {}
    """Spans without load, in seconds since it began: `bare` (no engine yet), `loaded` (before the load), `after`."""
    timings: Timings = Timings()
    clock: Anchor | None = None
    error: str | None = None
    """Why the run is not complete."""
    sha256: dict[str, str] = {}
    """Of each finished file, by its name: what is read later is what was written."""
