"""A stored run: its workload, engine and environment, typed. Rows are read from disk at first use."""

import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pyarrow as pa
from pydantic import ValidationError

import harness
from harness.config import checked, shown
from harness.errors import HarnessError
from harness.model import SERVED, Device, ModelIdentity
from harness.store import rows
from harness.store.access import RESTORE, read_bytes, reading
from harness.store.run_file import SCHEMA_VERSION, RunFile
from harness.workload.arrivals import Load


class Run:
    """One run. `requests`, `power` and `server` raise HarnessError if their file is damaged."""

    def __init__(self, directory: Path, file: RunFile, requests: pd.DataFrame | None = None) -> None:
        self.directory, self.file = directory, file
        self.id = directory.name or file.id
        """The directory's name, which differs from the stored one in a copy."""
        self.state, self.environment = file.state, file.environment
        self._lost: dict[tuple[str, ...], int] = {}
        self.engine = file.engine
        """What the engine reported about itself; None: the engine never started."""
        self.simulated = file.engine_asked == "simulated"
        unnamed = self.simulated or (file.engine_asked == "openai" and file.server is None)
        asked = ModelIdentity(None if unnamed else file.workload.model)
        self.model = asked if self.engine is None or self.simulated else self.engine.model
        """The weights that answered, by a server's own name for them; if the engine never started, the model that it
        would have loaded. A simulated engine has none."""
        self.served = file.engine_asked in SERVED
        """True if the engine runs outside the client process."""
        charged, gpus = file.charged, self.environment.gpus
        seen = charged is not None and charged.devices and not self.simulated
        self.on_gpu = bool(seen) or (self.engine is not None and self.engine.device == "cuda")
        """True if NVIDIA GPUs are charged, or the engine reported that it ran on them."""
        self.gpu = charged.name if charged and seen else gpus[0].name if gpus else None
        """NVML's name of the charged GPUs, if all have the same; if they are not known, of the machine's first GPU."""
        self.device_count = len(charged.devices) if charged and seen else self.engine.device_count if self.engine else 1
        """Number of the charged GPUs; if they are not known, the engine's own number of devices."""
        self.shape, self.users = file.workload.load.shape or "", file.workload.load.users
        """Shape of the load, such as `closed` or `poisson`, and number of users."""
        self.objectives = {name: limit for name, limit in file.workload.objectives.items() if limit is not None}
        """Name -> upper limit in seconds, of the limits that were set."""
        if requests is not None:
            self.__dict__["requests"] = requests

    @cached_property
    def load(self) -> Load | None:
        """The load that was asked for; None if another version or tool describes it otherwise."""
        with contextlib.suppress(ValidationError):
            return Load.model_validate(self.file.workload.load.model_dump())
        return None

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per request: the fields of `harness.model.Record`; times in seconds since the start of the load."""
        return rows.frame([self._rows("requests")])

    @cached_property
    def power(self) -> pd.DataFrame:
        """One row per reading: the fields of `harness.model.PowerSample`; empty without a meter."""
        return pd.DataFrame(self._rows("power").to_pandas(split_blocks=True, self_destruct=True))

    @cached_property
    def server(self) -> pd.DataFrame:
        """One row per value of a server metric: the fields of `harness.model.ServerSample`; empty without a server."""
        return pd.DataFrame(self._rows("server").to_pandas())

    def readings(self, device: str, domain: str) -> pd.DataFrame:
        """The rows of `power` of one device and domain, in time order, with the columns that analysis reads."""
        if (path := self.directory / "power.parquet").is_file():
            new = all(read[0] != "power" for read in self._lost)
            found, self._lost["power", device, domain] = rows.read_device(path, self.file, device, domain, new)
        else:  # a journal is read once
            found = self.power[(self.power["device"] == device) & (self.power["domain"] == domain)]
        return found if found["before_s"].is_monotonic_increasing else found.sort_values("before_s", kind="stable")

    @property
    def skipped(self) -> Mapping[str, int]:
        """File -> number of its damaged rows, which are left out; known once the rows were read."""
        found = Counter(self.file.skipped)
        for (name, *_), lost in self._lost.items():
            found[name] += lost
        return {name: lost for name, lost in found.items() if lost}

    def _rows(self, name: str) -> pa.Table:
        table, self._lost[name,] = rows.read_rows(self.directory, name, self.file)
        return table

    @property
    def device(self) -> Device:
        """The hardware to pay for; HarnessError if the engine never started.

        A CPU counts all usable logical CPUs as vCPUs, busy or not, because all are paid for. A server that does not
        report its device counts as GPUs without a name, which have no price.
        """
        if self.engine is None:
            fix = "choose another run: `harness list runs` prints them"
            raise HarnessError(f"run {self.id} never started its engine, so there is nothing to price", fix)
        kind = self.engine.device
        if kind == "cpu":
            return Device("cpu", self.environment.cpu.model, self.environment.cpu.cores_usable or 1)
        if kind in ("cuda", "unknown"):
            return Device("gpu", self.gpu if self.on_gpu else None, self.device_count)
        return Device("none", None, self.device_count)


def read_run(directory: Path) -> Run:
    """The run in a directory, from its run.json. If the state is `running` but the process has ended: `interrupted`.

    HarnessError if the file is missing, damaged or of a newer schema.
    """
    path, name = directory / "run.json", os.fsencode(directory).decode(errors="backslashreplace")
    if name != str(directory):
        raise HarnessError(f"{name}: the name is not UTF-8", "rename the directory")
    with reading(path, "is not a readable run.json"):
        raw = orjson.loads(read_bytes(path))
        for number in _numbers(raw):
            if abs(number) > rows.LARGEST:
                raise ValueError(f"{shown(number)} is larger than any number of a run")
        version = raw.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            what = f"{path}: schema version {version} is newer than this harness reads ({SCHEMA_VERSION})"
            raise HarnessError(what, f"install a newer inference-cost-harness than {harness.__version__}")
        file = checked(RunFile, raw, f"{path} is not a readable run.json", fix=RESTORE)
    if file.state == "running" and not _locked(directory / "requests.jsonl"):
        killed = "the measuring process ended before the end of the run (killed, or the machine stopped)"
        file = file.model_copy(update={"state": "interrupted", "error": killed})
    return Run(directory, file)


def _numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON value but random ones, which have no size."""
    if isinstance(value, float | int):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from () if key in ("seed", "salt") else _numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)


def _locked(path: Path) -> bool:
    """True if a process has the journal open for writing. More reliable than a process number, which may be reused."""
    if not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
