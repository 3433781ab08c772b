"""What an endpoint that does not become ready is said to wait for, where Serve and Ray answer in their own forms."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

from cluster.core.control_store import Node
from cluster.core.errors import ClusterError, StoppedError
from serving.commands import serve_client, waiting

# Ray Serve's, of Pydantic
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")
SLOW = ("Deployment 'Model' in application 'digits-2' has 1 replicas that have taken more than 30s to be scheduled. "
        "This may be due to waiting for the cluster to auto-scale or for a runtime environment to be installed. "
        'Resources required for each replica: {"CPU": 1.0}, total resources available: {}. Use `ray status` for more '
        'details.')
STARTING_UP = "not ready after 0 s: digits-2: the process of a replica has been starting for 40 s"
STARTING = dict[str, tuple[dict[str, float], int | None]]
"""By application, what its replica needs, and its process."""


class FakeGcs:
    """A cluster of one node with two CPUs."""

    def __init__(self, free: float, pending: dict[float, int]) -> None:
        self.free, self.pending = free, pending

    def nodes(self) -> list[Node]:
        """Ray leaves what is used up out of what is available."""
        return [Node(node_id="0f", name="head", ip="127.0.0.1", port=1, alive=True, is_head=True,
                     resources={"CPU": 2.0}, available={"CPU": self.free} if self.free else {})]

    def cluster_status(self) -> Any:
        reply = GetClusterStatusReply()
        for cpus, count in self.pending.items():
            each = reply.cluster_resource_state.pending_resource_requests.add(count=count)
            each.request.resources_bundle["CPU"] = cpus
        return reply


def applications(starting: STARTING) -> dict[str, Any]:
    from ray.serve._private.common import ReplicaState
    from ray.serve.schema import ReplicaDetails

    def deployment(name: str, number: int) -> Any:
        needs, pid = starting[name]
        replica = ReplicaDetails(replica_id=name, state=ReplicaState.STARTING, pid=pid,
                                 start_time_s=time.time() - 40 + number, log_file_path=f"serve/{name}.log")
        return SimpleNamespace(message=SLOW, status="UPDATING", required_resources=needs, replicas=[replica])

    return {name: SimpleNamespace(status="DEPLOYING", message="", deployments={"Model": deployment(name, number)})
            for number, name in enumerate(starting)}


def wait(monkeypatch: pytest.MonkeyPatch, starting: STARTING, gcs: FakeGcs, *, grows: bool = False,
         room_s: float = 0.0) -> None:
    monkeypatch.setattr(serve_client, "_applications", lambda: applications(starting))
    monkeypatch.setattr(serve_client, "_grows", lambda: grows)
    monkeypatch.setattr(serve_client, "_gcs", lambda: gcs)
    monkeypatch.setattr(waiting, "NO_ROOM_S", room_s)
    config: dict[str, Any] = {"applications": [{"name": name} for name in starting]}
    serve_client.await_ready(config, threading.Event(), timeout_s=0.0)


def test_a_cluster_that_cannot_grow_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r"^digits-2 does not start: a replica needs 1 CPU, which no node has free "
                                           r"\(head has 0\.5 of 2 CPU\), .* cannot grow: .* --cpus-per-replica$"):
        wait(monkeypatch, {"digits-1": ({"CPU": 0.5}, 7), "digits-2": ({"CPU": 1.0}, None)}, FakeGcs(0.5, {1.0: 1}))


def test_one_that_can_grow_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=STARTING_UP):
        wait(monkeypatch, {"digits-2": ({"CPU": 1.0}, None)}, FakeGcs(0.0, {1.0: 1}), grows=True)


def test_so_is_room_that_may_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=STARTING_UP):
        wait(monkeypatch, {"digits-2": ({"CPU": 1.0}, None)}, FakeGcs(0.0, {1.0: 1}), room_s=30.0)


def test_a_process_that_is_slow_to_start_is_not_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its resources, so nothing is free any more, and Serve says the sentence about a cluster that must grow."""
    with pytest.raises(ClusterError, match=STARTING_UP):
        wait(monkeypatch, {"digits-2": ({"CPU": 1.0}, None)}, FakeGcs(0.0, {}))
    with pytest.raises(ClusterError, match=r"endpoint: the process of a replica has been starting .*; digits-2: a "
                                           r"replica has been loading its model for (39|[4-9]\d) s "
                                           r"\(process 7, log serve/"):
        wait(monkeypatch, {"endpoint": ({}, None), "digits-2": ({"CPU": 1.0}, 7)}, FakeGcs(0.0, {1.0: 1}))


def test_of_replicas_that_need_the_same_the_one_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one's process is being started."""
    with pytest.raises(ClusterError, match="digits-2 does not start"):
        wait(monkeypatch, {"digits-1": ({"CPU": 1.0}, None), "digits-2": ({"CPU": 1.0}, None)}, FakeGcs(0.0, {1.0: 1}))


def test_why_an_application_does_not_run_is_the_exceptions_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Serve says it of a replica that cannot start again, here since the artifact's folder was deleted."""
    message = ("The deployment failed to start 3 times in a row. This may be due to a problem with its constructor or "
               "initial health check failing. See controller logs for details. "
               "Error:\nray::ServeReplica:digits-1:Model.initialize_and_get_metadata() (pid=7, ip=127.0.0.1)\n  File "
               "\"a.py\", line 1, in __init__\ncluster.core.errors.ArtifactError: artifact /a is not valid: "
               "manifest.json is missing\n")
    sick = SimpleNamespace(status="UNHEALTHY", message="", deployments={
        "Other": SimpleNamespace(status="HEALTHY", message=SLOW),
        "Model": SimpleNamespace(status="UNHEALTHY", message=message)})
    well = SimpleNamespace(status="RUNNING", message="", deployments={})
    monkeypatch.setattr(serve_client, "_applications", lambda: {"digits-1": sick, "endpoint": well})
    assert serve_client.troubles() == {
        "digits-1": "cluster.core.errors.ArtifactError: artifact /a is not valid: manifest.json is missing"}


def test_who_is_told_to_stop_waits_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    stop.set()
    monkeypatch.setattr(serve_client, "_applications", dict)
    monkeypatch.setattr(serve_client, "_gcs", lambda: FakeGcs(0.0, {}))
    with pytest.raises(StoppedError):
        serve_client.await_ready({"applications": [{"name": "digits-2"}]}, stop, timeout_s=20.0)
