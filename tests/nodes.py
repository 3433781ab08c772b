"""Nodes that come and go while the local cluster runs, as machines are switched on and off."""
# pyright: reportPrivateUsage=false

import dataclasses
from pathlib import Path

from cluster.core.errors import ClusterError
from cluster.local import cluster as local
from cluster.local.cluster import LocalCluster, LocalNode
from cluster.local.launch import end_processes


def add_node(num_cpus: int) -> LocalNode:
    """Starts one more worker node of the running local cluster (without GPUs). Raises: ClusterError."""
    with local._lock():
        cluster = _running()
        number = 1 + max((int(node.name.rpartition("-")[2]) for node in cluster.nodes[1:]), default=0)
        spec = local._worker(cluster, number, num_cpus, len(cluster.nodes) + 1, gpu_share=(0, 0))
        cluster = dataclasses.replace(cluster, nodes=(*cluster.nodes, *local._start([spec], cluster)))
        local._save(cluster)
        return cluster.nodes[-1]


def remove_node(name: str) -> None:
    """Ends one worker node and all its processes at once, as if its machine were switched off."""
    with local._lock():
        cluster = _running()
        (gone,) = (node for node in cluster.nodes[1:] if node.name == name)
        end_processes([gone.process], Path(cluster.folder))
        local._save(dataclasses.replace(cluster, nodes=tuple(node for node in cluster.nodes if node != gone)))


def _running() -> LocalCluster:
    cluster = local.current()
    if cluster is None:
        raise ClusterError("there is no local cluster")
    return cluster
