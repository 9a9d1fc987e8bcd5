"""Clients on a Ray cluster with two nodes on one machine, whose clocks are therefore equal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.measure import run as measuring
from harness.measure.nodes import clock_offset
from harness.measure.sender import Progress
from harness.store.run import read_run
from harness.workload.schema import parse_workload

BASE = """
name: nodes
engine: {name: simulated, simulated: {ttft_s: 0.03, itl_s: 0.002}}
requests: {count: 40, input_tokens: 7, output_tokens: 5}
load: {shape: closed, users: 4}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray", reason="ray is not installed: pip install inference-cost-harness[ray]")
    from ray.cluster_utils import Cluster

    two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    two.add_node(num_cpus=1)
    yield two
    two.shutdown()


def test_the_nodes_share_the_load_and_their_journals_are_collected(cluster: Any, tmp_path: Path) -> None:
    run = read_run(
        measuring.run(parse_workload(BASE, "test"), tmp_path, lambda _: None, measuring.Setup(ray=cluster.address))
    )
    rows = run.requests
    assert run.file.state == "complete"
    measured = rows[rows["age_tokens"].isna()]  # without the first wave, one request a user
    assert sorted(measured["index"]) == list(range(40))
    assert measured["client"].value_counts().to_dict() == {0: 20, 1: 20}
    assert measured["arrival_s"].map(len).tolist() == [5] * 40
    assert np.allclose(rows["sent_s"].groupby(rows["client"]).min(), 0, atol=0.1)
    for client in run.file.clients:
        assert abs(client.model_dump()["clock_offset_s"]) <= client.clock_bound_s < 0.05
        assert client.loop_delay_s is not None
        assert client.loop_delay_s.n > 20


def test_a_lost_node_fails_the_run_and_its_records_are_kept(cluster: Any, tmp_path: Path) -> None:
    lost: list[None] = []

    def lose(progress: Progress) -> None:
        if progress.finished > 40 and not lost:
            lost.append(None)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    endless = parse_workload(BASE, "test", {"requests.count": None, "load.duration_s": 600})
    run = read_run(measuring.run(endless, tmp_path, lose, measuring.Setup(ray=cluster.address)))
    assert run.file.state == "failed"
    assert run.file.error is not None
    assert "lost" in run.file.error
    assert run.requests["error"].isna().sum() > 40


def test_an_unreachable_cluster_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install inference-cost-harness[ray]")
    with pytest.raises(HarnessError, match="no Ray cluster at nowhere"):
        measuring.run(parse_workload(BASE, "test"), tmp_path, lambda _: None, measuring.Setup(ray="nowhere"))
    assert list(tmp_path.iterdir()) == []


@given(
    offset=st.integers(-(10**12), 10**12),
    trips=st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=20),
)
def test_the_error_of_the_clock_offset_is_within_its_bound(offset: int, trips: list[tuple[int, int]]) -> None:
    rounds = [(at, at + there + offset, at + there + back) for at, (there, back) in enumerate(trips)]
    found, bound_s = clock_offset(rounds)
    assert abs(found - offset) <= bound_s * 1e9 + 1
    assert bound_s * 2e9 == pytest.approx(min(there + back for there, back in trips))
