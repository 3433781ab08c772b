"""How far an autoscaling cluster can grow, and what it is about to add.

On Kubernetes the RayCluster says it (`maxReplicas` of each worker group): its pods may read it, if their service
account has the right to `get` it. Elsewhere only the autoscaler knows, and says so when a request can never be met.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.core.control_store import Gcs
from cluster.core.documents import JsonObject
from cluster.core.errors import TrainyardError
from cluster.core.ray_internals import autoscaling_config

CLUSTER_NAME = "RAY_CLUSTER_NAME"
"""KubeRay sets it in each Ray container; Ray's processes and jobs inherit it."""


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """A kind of node that the autoscaler may add.
    resources: of one node, in Ray's terms; most: how many there can be."""

    name: str
    most: int
    resources: Mapping[str, float]

    def __str__(self) -> str:
        amounts = [f"{self.resources[name]:g} {name}s" for name in ("CPU", "GPU") if self.resources.get(name)]
        return f"group {self.name}: at most {self.most} nodes with {' and '.join(amounts) or 'nothing'}"


def node_groups() -> list[NodeGroup] | None:
    """Of the RayCluster that this process is in; None where it is in none, or may not read it."""
    name = os.environ.get(CLUSTER_NAME)
    if not name or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    from cluster.kubernetes.client import Kube

    try:
        cluster = Kube.of_this_pod().find("rayclusters", name)
    except TrainyardError:  # no right to, no client in the image: the autoscaler's own verdict is waited for
        return None
    return None if cluster is None else groups_of(cluster)


def groups_of(cluster: JsonObject) -> list[NodeGroup]:
    """The head too, which is there once.
    Read as Ray's autoscaler reads it; without one, `replicas` is all there can be."""
    spec = cluster["spec"]
    groups = [group if spec.get("enableInTreeAutoscaling") else {**group, "maxReplicas": group.get("replicas", 0)}
              for group in spec.get("workerGroupSpecs", [])]
    bounded = [{"minReplicas": 0, "maxReplicas": 2**31 - 1, **group} for group in groups]  # the CRD's own defaults
    made = autoscaling_config({**cluster, "spec": {**spec, "workerGroupSpecs": bounded}})
    head = made["head_node_type"]
    return [NodeGroup(name=name, most=1 if name == head else kind["max_workers"], resources=kind["resources"])
            for name, kind in made["available_node_types"].items()]


def being_added(gcs: Gcs) -> str:
    """What the autoscaler (version 2) has asked for, and what it did not get, in a few words;
    empty if it is nothing."""
    state = gcs.cluster_status().autoscaling_state
    pending: dict[str, int] = {}
    for each in state.pending_instance_requests:
        pending[each.ray_node_type_name] = pending.get(each.ray_node_type_name, 0) + each.count
    for each in state.pending_instances:
        pending[each.ray_node_type_name] = pending.get(each.ray_node_type_name, 0) + 1
    asked = ", ".join(f"{count} of {name}" for name, count in sorted(pending.items()))
    failed = "; ".join(sorted({f"{each.ray_node_type_name}: {each.reason}" for each in state.failed_instance_requests}))
    parts = [f"nodes on their way: {asked}" if asked else "", f"not granted: {failed}" if failed else ""]
    return "; ".join(part for part in parts if part)
