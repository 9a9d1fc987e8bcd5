"""Client processes on the nodes of a Ray cluster: an actor on the node starts each, and passes on what it says.

The client itself is the process that `harness.measure.clients` starts, so that nothing of Ray runs where requests
are timed. The harness has to be installed on every node.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.measure.clients import Job, Local
from harness.process import Gone

START_S = 60.0
"""How long a node may take to start a client."""
ANSWER_S = 10.0
"""How long an actor may take to answer; past it, its node is taken for lost."""
ROUNDS = 100
"""Of questions after a clock: the shortest one bounds its offset."""


def clock_offset(rounds: Sequence[tuple[int, int, int]]) -> tuple[int, float]:
    """Another clock's offset from this one in ns, and its bound in s, from (asked, the other's answer, heard), in ns.

    The answer was given at some time between asking and hearing, so that their middle is off by at most half of the
    round trip; the shortest one bounds it best. Source: Cristian (1989), Distributed Computing 3(3).

    >>> clock_offset([(0, 1_000_500, 2_000), (10_000, 1_010_300, 10_400)])
    (1000100, 2e-07)
    """
    asked, answered, heard = min(rounds, key=lambda each: each[2] - each[0])
    return answered - (asked + heard) // 2, (heard - asked) / 2e9


class Relay:
    """The actor: it starts the client process on its node, and stands between it and the parent."""

    def __init__(self, job: Job) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="harness-")
        self._journal = Path(self._place.name) / job.journal.name
        self._journal.touch()
        self._rows = self._journal.open("rb")
        self._client = Local(replace(job, journal=self._journal))

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def send(self, command: tuple[Any, ...]) -> None:
        self._client.send(command)

    def receive(self) -> tuple[list[Any], str | None, bytes]:
        """What the client has said since, how it ended where it did, and what it has journalled since."""
        said: list[Any] = []
        try:
            while (word := self._client.receive()) is not None:
                said.append(word)
        except Gone as gone:
            return said, str(gone), self._rows.read()
        return said, None, self._rows.read()

    def close(self) -> bytes:
        """End the client; the rest of its journal."""
        self._client.close()
        with self._place, self._rows:
            return self._rows.read()


class Cluster:
    """A Ray cluster by its address, `local` for a new one on this machine. Called with a job, it starts a client on the
    next of its nodes."""

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise HarnessError("--ray needs the package ray", "pip install inference-cost-harness[ray]") from None
        try:
            ray.init(address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as refused:
            what = f"no Ray cluster at {address}: {str(refused).partition('. ')[0]}"
            raise HarnessError(
                what, "give local, or start one with `ray start --head`, and give its address or auto"
            ) from None
        self.ray = ray
        self.nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
        self._turns = itertools.cycle(self.nodes)

    def __call__(self, job: Job) -> Remote:
        return Remote(self.ray, next(self._turns), job)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()


class Remote:
    """A client process on another node; its journal comes to the parent's as it is written."""

    def __init__(self, ray: Any, node: Mapping[str, Any], job: Job) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._name = ray, node["NodeManagerAddress"]
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        self._actor = ray.remote(Relay).options(scheduling_strategy=there).remote(job)
        try:
            ray.get(self._actor.now_ns.remote(), timeout=START_S)
        except ray.exceptions.RayError as refused:
            what = f"no client could be started on node {self._name}: {str(refused)[-300:]}"
            raise HarnessError(what, "install the harness there, in the same version") from None
        self.offset_ns, self._bound_s = self._clock()
        self._journal = job.journal.open("wb")
        self._said: deque[Any] = deque()
        self._how: str | None = None
        self._answer = self._actor.receive.remote()

    def send(self, command: tuple[Any, ...]) -> None:
        self._actor.send.remote(command)

    def receive(self) -> Any:
        if not self._said and self._how is None and self._ray.wait([self._answer], timeout=0)[0]:
            try:
                said, self._how, rows = self._ray.get(self._answer)
            except self._ray.exceptions.RayError:
                said, self._how, rows = [], f"on node {self._name} is lost with its node or actor", b""
            self._journal.write(rows)
            self._journal.flush()
            self._said += said
            self._answer = self._actor.receive.remote()
        if self._said:
            return self._said.popleft()
        if self._how is not None:
            raise Gone(self._how)
        return None

    def close(self) -> Mapping[str, Any]:
        about = {"node": self._name, "clock_offset_s": self.offset_ns / 1e9, "clock_bound_s": self._bound_s}
        with self._journal, contextlib.suppress(self._ray.exceptions.RayError):  # it is lost, and the run has failed
            if self._how is None:
                offset_ns, bound_s = self._clock()
                drift_s = abs(offset_ns - self.offset_ns) / 1e9
                about["clock_bound_s"] = max(bound_s, self._bound_s) + drift_s
                _, _, rows = self._ray.get(self._answer, timeout=ANSWER_S)
                self._journal.write(rows + self._ray.get(self._actor.close.remote(), timeout=ANSWER_S))
        self._ray.kill(self._actor)
        return about

    def _clock(self) -> tuple[int, float]:
        rounds = []
        for _ in range(ROUNDS):
            asked = time.monotonic_ns()
            answered = self._ray.get(self._actor.now_ns.remote(), timeout=ANSWER_S)
            rounds.append((asked, answered, time.monotonic_ns()))
        return clock_offset(rounds)
