"""Client processes on the nodes of a Ray cluster: an actor on the node starts the client and forwards its messages.

The client is the same process as in `harness.measure.clients`, so Ray does not run in the process that times requests.
The harness must be installed on every node.
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
from harness.files import install
from harness.measure.clients import Job, Local
from harness.process import Gone

START_S = 60.0
"""Limit on the start of a client on a node."""
ANSWER_S = 10.0
"""Limit on an actor's answer; after it the node counts as lost."""
ROUNDS = 100
"""Round trips per measurement of a clock offset."""


def clock_offset(rounds: Sequence[tuple[int, int, int]]) -> tuple[int, float]:
    """Another clock's offset from this one in ns, and the bound of its error in s.

    Each round trip is (sent, the other clock's answer, received), in ns. The answer was given between the two, so the
    error of their middle is at most half the round trip; the shortest one has the best bound. Source: Cristian (1989),
    Distributed Computing 3(3).

    >>> clock_offset([(0, 1_000_500, 2_000), (10_000, 1_010_300, 10_400)])
    (1000100, 2e-07)
    """
    sent, answered, received = min(rounds, key=lambda each: each[2] - each[0])
    return answered - (sent + received) // 2, (received - sent) / 2e9


class Relay:
    """The actor: starts the client process on its node and connects it with the parent."""

    def __init__(self, job: Job) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="harness-")
        self._journal = Path(self._folder.name) / job.journal.name
        self._journal.touch()
        self._rows = self._journal.open("rb")
        self._client = Local(replace(job, journal=self._journal))

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def send(self, command: tuple[Any, ...]) -> None:
        self._client.send(command)

    def receive(self) -> tuple[list[Any], str | None, bytes]:
        """The client's new messages, how it ended (None: it runs), and the new bytes of its journal."""
        messages: list[Any] = []
        try:
            while (message := self._client.receive()) is not None:
                messages.append(message)
        except Gone as gone:
            return messages, str(gone), self._rows.read()
        return messages, None, self._rows.read()

    def close(self) -> bytes:
        """End the client. Returns the rest of its journal."""
        self._client.close()
        with self._folder, self._rows:
            return self._rows.read()


class Cluster:
    """A Ray cluster by its address; `local` starts one on this machine. Called with a job, it starts a client on the
    next node, in turn."""

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise HarnessError("--ray needs the package ray", install("ray")) from None
        try:
            ray.init(address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as refused:
            what = f"no Ray cluster at {address}: {str(refused).partition('. ')[0]}"
            fix = "give local, or start one with `ray start --head`, and give its address or auto"
            raise HarnessError(what, fix) from None
        self.ray = ray
        self.nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
        self._next_node = itertools.cycle(self.nodes)

    def __call__(self, job: Job) -> Remote:
        return Remote(self.ray, next(self._next_node), job)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()


class Remote:
    """The parent's link to a client on another node; copies its journal to the parent as it grows."""

    def __init__(self, ray: Any, node: Mapping[str, Any], job: Job) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._name = ray, node["NodeManagerAddress"]
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        self._actor = ray.remote(Relay).options(scheduling_strategy=strategy).remote(job)
        try:
            ray.get(self._actor.now_ns.remote(), timeout=START_S)
        except ray.exceptions.RayError as refused:
            what = f"no client could be started on node {self._name}: {str(refused)[-300:]}"
            raise HarnessError(what, "install the same version of the harness there") from None
        self.offset_ns, self._bound_s = self._clock()
        self._journal = job.journal.open("wb")
        self._messages: deque[Any] = deque()
        self._how: str | None = None
        self._answer = self._actor.receive.remote()

    def send(self, command: tuple[Any, ...]) -> None:
        self._actor.send.remote(command)

    def receive(self) -> Any:
        if not self._messages and self._how is None and self._ray.wait([self._answer], timeout=0)[0]:
            try:
                messages, self._how, rows = self._ray.get(self._answer)
            except self._ray.exceptions.RayError:
                messages, self._how, rows = [], f"on node {self._name} is lost: its node or actor ended", b""
            self._journal.write(rows)
            self._journal.flush()
            self._messages += messages
            self._answer = self._actor.receive.remote()
        if self._messages:
            return self._messages.popleft()
        if self._how is not None:
            raise Gone(self._how)
        return None

    def close(self) -> Mapping[str, Any]:
        about = {"node": self._name, "clock_offset_s": self.offset_ns / 1e9, "clock_bound_s": self._bound_s}
        # RayError: the client was lost meanwhile.
        with self._journal, contextlib.suppress(self._ray.exceptions.RayError):
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
            sent = time.monotonic_ns()
            answered = self._ray.get(self._actor.now_ns.remote(), timeout=ANSWER_S)
            rounds.append((sent, answered, time.monotonic_ns()))
        return clock_offset(rounds)
