"""Types of run.json: the workload, the environment, and how the run ended. Unknown keys are kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from harness.config import Section
from harness.model import Charged, Figure, MeterInfo, ModelIdentity

SCHEMA_VERSION = 3
"""Of run.json and the Parquet files. History: 1 (0.1.0) the first; 2 adds conversations, connections and clients;
3 adds the prompts' salt, what they share, and the first wave (closed loops of 1 and 2 begin with a burst)."""

State = Literal["running", "complete", "interrupted", "failed"]


Utc = Annotated[datetime, AfterValidator(lambda at: at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC))]
"""A time in UTC; one without a zone is taken as UTC."""


class _Open(BaseModel):
    """A part that other versions and tools write too: unknown keys are kept, and keys not given are not written."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def as_given(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The keys that were given, as JSON values."""
        return {key: value for key, value in plain(self).items() if key in self.model_fields_set}


class Anchor(Section):
    """Start of the load (time zero of the run) on both clocks."""

    utc: Utc
    monotonic_s: float


class Timings(Section):
    """Duration of each phase of the run in seconds; None: not reached."""

    engine_start_s: float | None = None
    warmup_s: float | None = None
    measured_s: float | None = None
    engine_stop_s: float | None = None


class AskedRequests(_Open):
    """The requests of a stored workload, or one part of a mixed workload."""

    count: int | None = None
    parts: tuple[AskedRequests, ...] | None = None
    turns: Any = None
    prompts: str | None = None
    prefix: Any = None
    ignore_eos: bool = True

    @property
    def kinds(self) -> tuple[AskedRequests, ...]:
        """The requests themselves, and each part of a mixed workload."""
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
    """A stored workload, written by any version."""

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
    """A git clone."""

    revision: str | None = None
    dirty: bool = False


class Environment(_Open):
    """The machine and its software (`harness.measure.environment.capture`)."""

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
    """That the harness ran from."""
    project: Git | None = None
    """That it was called in: the repository whose results these are."""
    governors: tuple[str, ...] = ()
    swap: dict[str, int] = {}
    debug: tuple[str, ...] = ()
    other_run: bool = False
    """True if another run of the harness took place on the machine at the same time."""


class Started(_Open):
    """What a started engine reported about itself: the fields of `harness.model.EngineInfo`."""

    engine: str
    device: str
    device_count: int
    model: ModelIdentity
    version: str | None = None
    options: dict[str, Any] = {}

    @property
    def random_weights(self) -> bool:
        """Was the model started without its weights, by the harness or as its server?"""
        served: Mapping[str, Any] = self.options.get("serve_options") or {}
        return "dummy" in (self.options.get("load_format"), served.get("load_format"))


class Delay(_Open):
    """Delays in seconds."""

    n: int
    p50: float
    p99: float
    max: float


class ClientSeen(_Open):
    """What a client process measured about itself."""

    cpu_s: float | None = None
    elapsed_s: float | None = None
    loop_delay_s: Delay | None = None
    """Delay of the event loop's timers."""
    kernel_stamps: bool = False
    """All arrivals have the kernel's time."""
    late_stamp_s: Delay | None = None
    """How much too late the stamp of an arrival, which is its last token's, can be for its first; 0 if it has one."""
    clock_bound_s: float = 0.0
    """Largest possible difference between its clock and that of the parent process."""


class Prompts(_Open):
    """Where the prompts came from, and what an earlier run can have left of them in the engine's prefix cache."""

    files: dict[str, str] = {}
    """Each trace or prompts file that the workload names -> SHA-256 of its text; an older harness recorded none."""
    salt: int | None = None
    """Drawn for this run alone; None: the prompts follow from the workload's seed, as in every run with that seed."""
    random: bool | None = None
    """Some of the prompts are random tokens; None: not recorded."""
    attached: bool = False
    """The engine ran before this run began, so its cache may hold the prompts of earlier runs."""
    cache_reset: bool = False
    """The engine's cache was reset before the warm-up."""
    cached_alone: int | None = None
    """Tokens that the cache supplied of a new prompt after the warm-up, without those that the workload shares: those
    of the chat template. None: the engine does not tell."""

    @property
    def repeated(self) -> bool:
        """An earlier run may have sent these prompts to this engine."""
        return self.attached and self.salt is None and not self.cache_reset


class Imported(_Open):
    """Another tool's result: its figures, notes on their definitions, and contradictions in the file."""

    tool: str
    file: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    """What in the file speaks against its figures."""


class SweepPoint(_Open):
    """The sweep to which a run belongs, and the run's point in the sweep."""

    name: str
    key: str
    values: dict[str, Any] = {}
    repeat: int = 0


class RunFile(Section):
    """The content of run.json."""

    schema_version: int = SCHEMA_VERSION
    id: str
    state: State = "running"
    created_utc: Utc
    pid: int
    workload: Asked
    """The full workload, validated."""
    engine_asked: str
    environment: Environment
    engine: Started | None = None
    """None: the engine never started."""
    charged: Charged | None = None
    """None: the engine never started, or an older harness wrote the run."""
    meters: tuple[MeterInfo, ...] = ()
    meters_asked: tuple[str, ...] = ()
    """The meters that the user named with `--meter`."""
    declared: Mapping[str, float] = {}
    """Power that no meter reads, as declared by the user: `host_w` (rest of the host), `pue`."""
    meters_absent: tuple[str, ...] = ()
    """Reasons why meters are missing, one for each meter that was tried."""
    clients: tuple[ClientSeen, ...] = ()
    prompts: Prompts | None = None
    """None: written before schema version 3, or imported."""
    server: dict[str, Any] | None = None
    """Command, version and log of the server that the harness started."""
    sweep: SweepPoint | None = None
    imported: Imported | None = None
    idle: Mapping[str, tuple[float, float]] = {}
    """Spans without load, in seconds since the start of the load: `bare` (before the engine), `loaded`, `after`."""
    timings: Timings = Timings()
    clock: Anchor | None = None
    error: str | None = None
    """Why the run is not complete."""
    skipped: Mapping[str, int] = {}
    """`requests`, `power` or `server` -> number of its rows that could not be stored."""
    sha256: Mapping[str, str] = {}
    """File name -> SHA-256 of the finished file, checked when the file is read."""
