"""run.json as a model: what was asked, where, and how it ended; what is read of it is checked for its kind."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter

from harness.model import Figure, MeterInfo, ModelIdentity

SCHEMA_VERSION = 2
"""Of run.json and the Parquet files. History: 1 (0.1.0) the first; 2 adds conversations, connections and clients."""
State = Literal["running", "complete", "interrupted", "failed"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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


def _like(form: Any, *, filled: bool = False) -> AfterValidator:
    """Refuses a value in which what `form` names is of another kind. `filled`: what it lacks gets its default."""
    adapter = TypeAdapter(form)

    def check(value: Any) -> Any:
        read = adapter.validate_python(value)
        return adapter.dump_python(read, mode="json") if filled else value

    return AfterValidator(check)


class _Requests(BaseModel):
    count: int | None = None
    parts: list[dict[str, Any]] | None = None


class _Load(BaseModel):
    shape: str | None = None
    users: float | None = None
    rate_per_s: float | None = None


class _Asked(BaseModel):
    """What is read of a stored workload, whatever version wrote it."""

    name: str | None = None
    model: str | None = None
    requests: _Requests = _Requests()
    load: _Load = _Load()
    warmup: dict[str, Any] = {}
    objectives: dict[str, float | None] = {}
    scenario: str | None = None


class _Place(BaseModel):
    """What is read of a stored environment."""

    cpu: dict[str, Any] = {}
    gpus: list[dict[str, Any]] = []
    memory_bytes: float | None = None
    packages: dict[str, str] = {}
    settings: dict[str, str] = {}
    git: dict[str, Any] | None = None
    governors: list[str] = []
    swap: dict[str, int] = {}
    debug: list[str] = []


class _Started(BaseModel):
    """What is read of an engine's own account; the rest stays."""

    model_config = ConfigDict(extra="allow")
    engine: str
    device: str
    device_count: int
    model: ModelIdentity
    version: str | None = None
    options: dict[str, Any] = {}


class _Delay(BaseModel):
    n: int
    p50: float
    p99: float
    max: float


class _Client(BaseModel):
    """What is read of a client's account of itself."""

    cpu_s: float = 0
    elapsed_s: float = 0
    loop_delay_s: _Delay = _Delay(n=0, p50=0, p99=0, max=0)


class _Imported(BaseModel):
    """What is read of another tool's result; the rest stays."""

    model_config = ConfigDict(extra="allow")

    tool: str
    file: str
    figures: list[Figure]
    notes: list[str]


class _Swept(BaseModel):
    """What is read of a point of a sweep."""

    name: str
    key: str


class RunFile(_Part):
    """run.json."""

    schema_version: int = SCHEMA_VERSION
    id: str
    state: State = "running"
    created_utc: datetime
    pid: int
    workload: Annotated[dict[str, Any], _like(_Asked)]
    """The workload in full, as validated."""
    engine_asked: str
    environment: Annotated[dict[str, Any], _like(_Place)]
    engine: Annotated[dict[str, Any], _like(_Started, filled=True)] | None = None
    """What the engine said of itself (the fields of EngineInfo); None: it never started."""
    meters: list[Annotated[dict[str, Any], _like(MeterInfo, filled=True)]] = []
    """What each meter said of itself (the fields of MeterInfo)."""
    meters_asked: list[str] = []
    """The words that named the meters, as `harness run --meter` takes them."""
    declared: dict[str, float] = {}
    """What the user declared of power that no meter reads: `host_w` (the rest of the host), `pue`."""
    meters_absent: list[str] = []
    """Why each meter that was looked for is not among them."""
    clients: list[Annotated[dict[str, Any], _like(_Client)]] = []
    """What each process that sent load saw of itself (`harness.measure.eventloop.Watch.seen`), and of its clock."""
    server: dict[str, Any] | None = None
    """The server that the harness started: its command, version and log."""
    sweep: Annotated[dict[str, Any], _like(_Swept)] | None = None
    """Of a point of a sweep: the sweep's `name`, the point's `key`, `values` and `repeat`."""
    imported: Annotated[dict[str, Any], _like(_Imported, filled=True)] | None = None
    """Of another tool's result: the tool, the file, the figures that it printed, and how it defines them."""
    idle: dict[str, tuple[float, float]] = {}
    """Spans without load, in seconds since it began: `bare` (no engine yet), `loaded` (before the load), `after`."""
    timings: Timings = Timings()
    clock: Anchor | None = None
    error: str | None = None
    """Why the run is not complete."""
    sha256: dict[str, str] = {}
    """Of each finished file, by its name: what is read later is what was written."""
