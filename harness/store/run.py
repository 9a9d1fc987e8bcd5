"""A run as it is read: what was asked, what ran and where, typed; its rows are read when they are first asked for."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd

import harness
from harness.config import checked
from harness.errors import HarnessError
from harness.model import SERVED, Device, ModelIdentity
from harness.store import rows
from harness.store.run_file import SCHEMA_VERSION, Environment, RunFile, Started, State


class Run:
    """One run. `requests`, `power` and `server` raise HarnessError if the file of these rows is missing or damaged."""

    def __init__(self, directory: Path, file: RunFile, requests: pd.DataFrame | None = None) -> None:
        self.directory, self.file = directory, file
        if requests is not None:
            self.__dict__["requests"] = requests

    @cached_property
    def requests(self) -> pd.DataFrame:
        """A row a request: the fields of `harness.model.Record`, times in seconds since the load began."""
        table = rows.read_rows(self.directory, "requests", self.file)
        if table is None:
            fix = "the run's rows are gone; measure it again"
            raise HarnessError(f"{self.directory} has no requests.parquet", fix)
        return rows.frame(table)

    @cached_property
    def power(self) -> pd.DataFrame:
        """A row a meter's reading: the fields of `harness.model.PowerSample`; empty if there was no meter."""
        return self._others("power")

    @cached_property
    def server(self) -> pd.DataFrame:
        """A row a metric of the server and reading: the fields of `harness.model.ServerSample`."""
        return self._others("server")

    def _others(self, name: str) -> pd.DataFrame:
        table = rows.read_rows(self.directory, name, self.file)
        found: pd.DataFrame = (table or rows.COLUMNS[name].empty_table()).to_pandas()
        return found

    @property
    def id(self) -> str:
        return self.file.id

    @property
    def state(self) -> State:
        return self.file.state

    @property
    def engine(self) -> Started | None:
        """What the engine said of itself; None: it never started."""
        return self.file.engine

    @property
    def environment(self) -> Environment:
        return self.file.environment

    @property
    def simulated(self) -> bool:
        return self.file.engine_asked == "simulated"

    @property
    def served(self) -> bool:
        """Whether the engine answers from outside the process that sends."""
        return self.file.engine_asked in SERVED

    @property
    def model(self) -> ModelIdentity:
        """Which weights answered; of an engine that never started, the model that was asked for."""
        return ModelIdentity(self.file.workload.model) if self.engine is None else self.engine.model

    @property
    def on_gpu(self) -> bool:
        """Whether the engine said that it ran on NVIDIA GPUs."""
        return self.engine is not None and self.engine.device == "cuda"

    @property
    def gpu(self) -> str | None:
        """Name of the machine's first GPU, as NVML prints it."""
        return self.environment.gpus[0].name if self.environment.gpus else None

    @property
    def device(self) -> Device:
        """What was paid for; HarnessError if the engine never started.

        A CPU counts its usable logical CPUs as vCPUs, whatever number of them the engine kept busy: all were paid for.
        A server that does not tell its device counts as GPUs without a name, and so without a price.
        """
        if self.engine is None:
            fix = "choose another run"
            raise HarnessError(f"run {self.id} never started its engine, so there is nothing to price", fix)
        kind, count = self.engine.device, self.engine.device_count
        if kind == "cpu":
            return Device("cpu", self.environment.cpu.model, self.environment.cpu.cores_usable or 1)
        if kind in ("cuda", "unknown"):
            return Device("gpu", self.gpu if self.on_gpu else None, count)
        return Device("none", None, count)

    @property
    def shape(self) -> str:
        """The shape of the load, such as `closed` or `poisson`."""
        return self.file.workload.load.shape or ""

    @property
    def users(self) -> int | None:
        return self.file.workload.load.users

    @property
    def objectives(self) -> Mapping[str, float]:
        """Upper limits in seconds, those that were set."""
        return {name: limit for name, limit in self.file.workload.objectives.items() if limit is not None}


def read_run(directory: Path) -> Run:
    """The run in a directory, from its run.json; one that says `running` but whose process is gone is `interrupted`.

    HarnessError if the file is missing, damaged or of a newer schema.
    """
    path = directory / "run.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise HarnessError(
                f"{path}: schema version {version} is newer than this harness reads ({SCHEMA_VERSION})",
                f"install a newer inference-cost-harness than {harness.__version__}",
            )
        file = checked(RunFile, raw, f"{path}: not a readable run.json", fix=rows.RESTORE)
    except FileNotFoundError:
        raise HarnessError(
            f"{path} does not exist", "give a run's directory, as `harness list runs` prints it"
        ) from None
    except (OSError, ValueError, AttributeError) as damaged:
        raise HarnessError(f"{path}: not a readable run.json: {damaged}", rows.RESTORE) from None
    if file.state == "running" and not _locked(directory / "requests.jsonl"):
        killed = "the measuring process ended without finishing the run (killed, or the machine stopped)"
        file = file.model_copy(update={"state": "interrupted", "error": killed})
    return Run(directory, file)


def _locked(path: Path) -> bool:
    """Whether the process that writes the run has it open; a process number can be another's, or a container's."""
    with contextlib.suppress(OSError), path.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
