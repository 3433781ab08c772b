"""cluster/autoscaler.py and what preflight makes of it: how far a RayCluster can grow, as its own pods read it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import autoscaler, capacity
from cluster.autoscaler import NodeGroup, being_added, groups_of, node_groups
from cluster.capacity import Request
from cluster.core.control_store import Node
from cluster.core.errors import ResourceError
from tests.kube_api import in_a_pod
from tests.kube_objects import autoscaling, group, raycluster

SMALL, LARGE = group("small", cpu="2", most=3), group("gpu", cpu="8", most=2, gpus=4)


def test_each_group_counts_with_its_most_nodes() -> None:
    found = groups_of(raycluster("c", of=None, spec=autoscaling(SMALL, LARGE)))
    assert [(g.name, g.most, g.resources["CPU"], g.resources.get("GPU", 0)) for g in found] == [
        ("headgroup", 1, 0, 0), ("small", 3, 2, 0), ("gpu", 2, 8, 4)]


def test_without_an_autoscaler_the_replicas_are_what_there_can_be() -> None:
    found = groups_of(raycluster("c", of=None,
                                 spec=autoscaling(group("small", cpu="2", most=9, replicas=2), enabled=False)))
    assert [g.most for g in found] == [1, 2]


@pytest.mark.parametrize(("wanted", "most"), [
    (Request(num_workers=1, cpus_per_worker=1), 3 * 2 + 2 * 8),
    (Request(num_workers=1, cpus_per_worker=2), 3 + 2 * 4),
    (Request(num_workers=1, cpus_per_worker=4), 2 * 2),
    (Request(num_workers=1, cpus_per_worker=1, gpus_per_worker=1), 2 * 4),
    (Request(num_workers=1, cpus_per_worker=16), 0),
])
def test_workers_are_counted_group_by_group(wanted: Request, most: int) -> None:
    assert capacity._most(wanted, groups_of(raycluster("c", of=None, spec=autoscaling(SMALL, LARGE)))) == most


# ── as a pod reads it ──
def test_a_pod_reads_its_own_cluster_with_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_a_pod(monkeypatch, tmp_path) as api:
        api.put(raycluster(spec=autoscaling(SMALL)))
        found = node_groups()
        assert found is not None and [g.most for g in found] == [1, 3]
        assert [path for _, path, _ in api.asked] == ["/apis/ray.io/v1/namespaces/team/rayclusters/train-abcde"]


def test_without_the_right_to_it_the_autoscaler_is_left_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_a_pod(monkeypatch, tmp_path) as api:
        api.refused["rayclusters"] = (403,
                                      'rayclusters is forbidden: User "system:serviceaccount:team:default" cannot get '
                                      'resource')
        assert node_groups() is None
    monkeypatch.delenv(autoscaler.CLUSTER_NAME)
    assert node_groups() is None


# ── what preflight says ──
NODE = Node(node_id="ab", name="n", ip="10.0.0.1", port=1, alive=True, is_head=False, resources={"CPU": 2.0})


def growth_of(patch: pytest.MonkeyPatch, wanted: Request, *, scales: bool = True, known: bool = True) -> str:
    patch.setattr(capacity, "autoscaled", lambda gcs: scales)
    patch.setattr(capacity, "node_groups",
                  lambda: [NodeGroup(name="small", most=3, resources={"CPU": 2.0})] if known else None)
    return capacity._growth(wanted, [NODE], 2, SimpleNamespace())  # type: ignore[arg-type]


def test_what_max_replicas_cannot_hold_is_refused_before_any_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError,
                       match=r"^needs 8 workers with 1 CPU each, and the RayCluster can grow to 6 \(group small: "
                              r"at most "
                                            r"3 nodes with 2 CPUs\): pass --run.workers 6, or raise maxReplicas in the "
                                            r"RayCluster$"):
        growth_of(monkeypatch, Request(num_workers=8, cpus_per_worker=1))
    with pytest.raises(ResourceError,
                       match=r"can grow to 0 .*: ask for less .* or add a group of larger nodes to the RayCluster"):
        growth_of(monkeypatch, Request(num_workers=1, cpus_per_worker=4))


def test_what_is_waited_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Request(num_workers=6, cpus_per_worker=1)
    assert growth_of(monkeypatch, wanted) == "the autoscaler may add nodes (group small: at most 3 nodes with 2 CPUs)"
    assert growth_of(monkeypatch, wanted,
                     scales=False).startswith("the pods of the RayCluster are not all up (group small")
    assert growth_of(monkeypatch, wanted, known=False) == "the autoscaler may add nodes"
    with pytest.raises(ResourceError, match="the cluster has room for 2 and cannot grow"):
        growth_of(monkeypatch, wanted, scales=False, known=False)


def test_nodes_on_their_way_and_refused_ones_are_said() -> None:
    from ray.core.generated import autoscaler_pb2 as pb

    state = pb.AutoscalingState(
        pending_instance_requests=[pb.PendingInstanceRequest(ray_node_type_name="small", count=2)],
        pending_instances=[pb.PendingInstance(ray_node_type_name="small"),
                           pb.PendingInstance(ray_node_type_name="gpu")],
        failed_instance_requests=[pb.FailedInstanceRequest(ray_node_type_name="gpu", reason="no quota")])
    gcs: Any = SimpleNamespace(cluster_status=lambda: SimpleNamespace(autoscaling_state=state))
    assert being_added(gcs) == "nodes on their way: 1 of gpu, 3 of small; not granted: gpu: no quota"
    gcs = SimpleNamespace(cluster_status=lambda: SimpleNamespace(autoscaling_state=pb.AutoscalingState()))
    assert being_added(gcs) == ""
