"""Several hosts: trained across them, while a link is cut, and mended, and a host is drained.

A head of 1 CPU and two hosts of 2, so that 3 workers never fit on one of them. A run must
equal the local binding's uninterrupted one bit for bit.
"""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests import runs
from tests.faults import ray_hosts
from tests.faults.conftest import FLAGS, same_result
from tests.faults.hosts import Host
from tests.faults.ray_hosts import Cluster

pytestmark = [ray_hosts.needs_hosts(), pytest.mark.timeout(900)]
INTERVAL = 8
NOTICED_S = 30
RECOVERED_S = 240


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_hosts.cluster([1, 2, 2]) as made:
        made.await_nodes()
        yield made


def started(cluster: Cluster, folder: Path, on: Host, *flags: str) -> AbstractContextManager[runs.Job]:
    return runs.run(folder, *FLAGS, *flags, engine="ray", env=cluster.environment(), on=on.command())


def places(cluster: Cluster, job: runs.Job) -> dict[int, Host]:
    """Rank -> the host on which it is, or was last."""
    newest = sorted((job.folder / "logs/workers").glob("*.json"))[-1]
    return {int(rank): cluster.host_of(worker["node"]) for rank, worker in json.loads(newest.read_text()).items()}


@contextmanager
def standing_still(cluster: Cluster, job: runs.Job) -> Iterator[None]:
    """A worker is stopped, so that no step is taken, in the block; the run is told to bear that for two minutes."""
    host, pid = places(cluster, job)[0], str(job.workers()[0])
    host.run("kill", "-STOP", pid)
    yield
    host.run("kill", "-CONT", pid)


def test_a_cut_link_and_a_drained_host_change_nothing_of_the_result(
    cluster: Cluster, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with started(cluster, folder, cluster.head, "--run.max-failures", "-1", "--run.hang-timeout-s", "120") as job:
        job.until_past_a_checkpoint(20)
        before = places(cluster, job)
        assert len(set(before.values())) > 1, "it trains across hosts"
        rank, cut = next((rank, host) for rank, host in before.items() if host is not cluster.head)
        other = next(host for host in cluster.workers if host is not cut)
        cluster.net.cut(cut)
        began = time.monotonic()
        job.until(lambda: f"{rank} on {cut.ip}" in job.text, 15)
        job.until(lambda: cut.ip not in {node.ip for node in cluster.nodes()}, NOTICED_S - (time.monotonic() - began))
        noticed_s = time.monotonic() - began
        job.until(lambda: job.text.count("training on 3 workers") == 2, RECOVERED_S)
        print(f"noticed after {noticed_s:.1f} s, trained on after {time.monotonic() - began:.1f} s")
        assert cut not in places(cluster, job).values()
        with standing_still(cluster, job):
            cluster.net.mend(cut)
            print(f"back {cluster.await_nodes():.1f} s after its link")
            lost = job.until(lambda: runs.progress(folder)["lost_steps"], 30)  # by the cut; written some seconds later
            cluster.drain(other)
        job.until(lambda: job.text.count("training on 3 workers") == 3, RECOVERED_S)
        assert set(places(cluster, job).values()) == {cluster.head, cut}, "the one that was cut off is used again"
        assert runs.progress(folder)["lost_steps"] == lost, "who leaves a drained host has lost no step"
        result = job.finished(RECOVERED_S)
    assert result["restarts"] == 1
    assert 0 < result["lost_steps"] <= 2 * INTERVAL
    same_result(folder, reference)
