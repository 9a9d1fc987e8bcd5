"""One run: starts the engine and the meters, measures the load on one event loop, and stores the result."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.engines.base import Naming, Resetting, choose_engine, create_engine
from harness.errors import HarnessError
from harness.files import text_digest
from harness.measure import environment
from harness.measure.clients import Inputs, Job, Link, Local
from harness.measure.nodes import Cluster
from harness.measure.power import Power
from harness.measure.session import LOG, Enough, Kept, Notify, Session, output_to
from harness.meters.gpus import look, named
from harness.model import SERVED
from harness.store.directory import RunWriter, new_id
from harness.store.run_file import Prompts, RunFile, State
from harness.workload.library import named_files, read_files
from harness.workload.schema import Workload

SALT_BITS = 48


@dataclass(frozen=True, slots=True)
class Setup:
    """How a workload is measured, where it does not say so itself."""

    power: Sequence[str] = ()
    """Meters (`harness.meters.base.start_meters`), read from before the engine starts until after it has stopped."""
    gpus: Sequence[str] | None = None
    """Indices or UUIDs of the GPUs to charge where the engine's own cannot be seen."""
    declared: Mapping[str, float] = field(default_factory=dict)
    """As in `RunFile`."""
    clients: int | None = None
    """Number of processes that send the load. None: this one, or one on each node of `ray`."""
    ray: str | None = None
    """Address of the cluster on whose nodes the clients run."""
    same_prompts: bool = False
    """True: an engine that ran before gets the prompts of the seed. False: prompts that no earlier run sent."""
    reset_cache: bool = False
    """True: reset the engine's prefix cache before the warm-up."""

    @property
    def several(self) -> bool:
        """Whether client processes send the load."""
        return self.clients not in (None, 1) or self.ray is not None


PLAIN = Setup()


def run(
    workload: Workload,
    root: Path,
    notify: Notify,
    setup: Setup = PLAIN,
    enough: Enough | None = None,
    sweep: Mapping[str, Any] | None = None,
    kept: Kept | None = None,
) -> Path:
    """Measure the workload once, and return the directory under `root` that holds the run.

    The run is stored in every case once its set-up is valid: after an interrupt or the death of the engine with the
    requests measured so far, and the state `interrupted` or `failed`. `sweep` is the field of `RunFile`. A `kept`
    engine is started by the first run, serves the later ones as it is, and is stopped by `Kept.close`.

    Raises HarnessError for a mistake in the set-up, before or while the engine starts.
    """
    name = choose_engine() if workload.engine.name == "auto" else workload.engine.name
    here = kept or Kept()
    options = workload.engine_options(name)
    if setup.several:
        options.pop("connections", None)  # the clients open them
    engine = here.engine = here.engine or create_engine(name, workload.engine_model(name), options)
    if setup.reset_cache and not isinstance(engine, Resetting):
        raise HarnessError(f"engine '{name}' has no prefix cache that can be reset", "omit --reset-cache")
    attached = here.info is not None or (name == "openai" and not options.get("serve"))
    inputs, prompts = _inputs(workload, attached, setup)
    if setup.gpus is not None and here.info is None:
        named(setup.gpus, look())  # reports a mistake before anything is stored
    writer = None
    try:
        with (
            closing(environment.Beside()) as beside,
            _links(setup, name, workload) as (count, link),
            Power(setup.power, setup.gpus) as meter,
        ):
            file = _described(workload, name, here, setup, meter, prompts, sweep)
            writer = meter.writer = RunWriter(root, file)
            log = writer.directory / LOG
            with output_to(log, here.log):
                if kept is not None and kept.log is None:
                    kept.log = log.open("rb")
                session = Session(
                    workload, inputs, here, engine, writer, notify, meter, count, link, enough, setup.gpus
                )
                ended = session.run(kept is None, attached)
            place = environment.ended(writer.file.environment.model_dump())
            writer.update(environment={**place, "other_run": beside.seen()})
    except BaseException as stopped:
        if writer is not None:
            state: State = "interrupted" if isinstance(stopped, KeyboardInterrupt) else "failed"
            writer.finish(state, str(stopped) or type(stopped).__name__)
        raise
    finally:
        if kept is None:
            here.runner.close()
    writer.finish(ended.state, ended.error)
    return writer.directory


def _inputs(workload: Workload, attached: bool, setup: Setup) -> tuple[Inputs, Prompts]:
    """The contents of the workload's files, and the salts of the prompts. `attached`: the engine ran before."""
    files = read_files(workload)
    drawn = secrets.randbits(SALT_BITS) if attached else None
    salt = None if setup.same_prompts else drawn
    named = {name: text_digest(path) for name, path in named_files(workload).items()}
    return Inputs(files, salt, drawn), Prompts(files=named, salt=salt, attached=attached, cache_reset=setup.reset_cache)


def _described(
    workload: Workload,
    engine: str,
    here: Kept,
    setup: Setup,
    meter: Power,
    prompts: Prompts,
    sweep: Mapping[str, Any] | None,
) -> RunFile:
    """What run.json says before the engine starts."""
    now, model = datetime.now(UTC), None if engine == "simulated" else workload.model
    if isinstance(here.engine, Naming):  # a server's own name for it
        with contextlib.suppress(HarnessError):  # which the engine's start raises again
            model = here.runner.run(here.engine.model_name())
    # A model that was not asked of a running server is not asked of it in a rerun.
    left_out = set() if workload.engine_model(engine) else {"model"}
    return RunFile(
        id=new_id(now, model, workload.name),
        created_utc=now,
        pid=os.getpid(),
        workload=workload.model_dump(mode="json", exclude=left_out),
        engine_asked=engine,
        environment=environment.capture(),
        declared=setup.declared,
        meters_asked=setup.power,
        meters=meter.infos,
        meters_absent=meter.absent,
        prompts=prompts,
        sweep=sweep,
    )


@contextlib.contextmanager
def _links(setup: Setup, engine: str, workload: Workload) -> Iterator[tuple[int, Callable[[Job], Link] | None]]:
    """Number of clients, and the function that starts one; None: this process sends the load itself."""
    if not setup.several:
        yield 1, None
        return
    if engine not in SERVED:
        raise HarnessError(
            f"engine '{engine}' runs inside the harness's own process, which is its only client",
            "omit --clients and --ray, or measure a server with --engine openai",
        )
    with contextlib.nullcontext() if setup.ray is None else Cluster(setup.ray) as cluster:
        count = setup.clients or (len(cluster.nodes) if cluster else 1)
        for key in ("users", "max_in_flight"):
            most = getattr(workload.load, key)
            if most is not None and most < count:
                what = f"{count} clients cannot share load.{key}={most}"
                raise HarnessError(what, f"give {most} with --clients, or raise it")
        yield count, cluster or Local
