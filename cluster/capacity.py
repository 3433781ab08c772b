"""What a run needs and what a cluster has: the checks before a run starts, and the room there is while it goes on.

`preflight` finds out in seconds what would otherwise show as an endless wait or a late failure: resources that there
can never be, storage that not every node sees, mixed versions. It needs a connected process (cluster/connect.py).
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.autoscaler import NodeGroup, being_added, node_groups
from cluster.core.control_store import Gcs, Node
from cluster.core.documents import parse_json
from cluster.core.errors import ConfigError, ResourceError
from cluster.core.loop_clock import LoopClock
from cluster.core.storage import Store
from cluster.preflight import check_nodes, check_storage, remove_traces, unsafe_setting

_CHECKS_S = 12.5
"""With REMOVE_TIMEOUT_S of cluster/preflight.py after it, under the 15 s that `preflight` promises."""
_POLL_S = 0.25
_SLACK = 1e-6
_REMOVED = 3


@dataclass(frozen=True, kw_only=True)
class Request:
    """The workers a run needs at least, and the whole CPUs and GPUs of each, which must lie in one node."""

    num_workers: int
    cpus_per_worker: int
    gpus_per_worker: int = 0

    @property
    def bundle(self) -> dict[str, float]:
        """In Ray's terms."""
        needs = {"CPU": float(self.cpus_per_worker), "GPU": float(self.gpus_per_worker)}
        return {name: amount for name, amount in needs.items() if amount}

    def __str__(self) -> str:
        gpus = f" and {_count(self.gpus_per_worker, 'GPU')}" if self.gpus_per_worker else ""
        return f"{_count(self.num_workers, 'worker')} with {_count(self.cpus_per_worker, 'CPU')}{gpus} each"


def nodes() -> list[Node]:
    """The nodes of the connected cluster, dead ones too, the head first. Raises: ClusterError."""
    return _gcs().nodes()


def preflight(request: Request, store: Store, wait_s: float, *, say: Callable[[str], None] = print) -> None:
    """Returns if the run can start: resources, storage and versions are as they must be, on every node.

    Takes under 15 s, but for resources that the cluster can have and has not now: for these it waits up to wait_s
    seconds, having said so. Leaves nothing in the store.
    Raises: ResourceError, StorageError, ClusterError, ConfigError.
    """
    if (why := unsafe_setting()) is not None:
        raise ConfigError(why)
    began = time.monotonic()
    with remove_traces(store) as trace:
        check_storage(trace)
        left_s = _CHECKS_S - (time.monotonic() - began)
        await_room(request, wait_s, say)
        began = time.monotonic()
        usable = [node for node in nodes() if node.usable]
        check_nodes(trace, usable, left_s - (time.monotonic() - began))


def await_room(request: Request, wait_s: float, say: Callable[[str], None] = print) -> None:
    """Returns once the request fits into what is free.
    Raises: ResourceError if it cannot ever, or not within wait_s."""
    gcs = _gcs()
    usable = [node for node in gcs.nodes() if node.usable]
    if _fits(request, (node.available for node in usable)) >= request.num_workers:
        return
    capacity = _fits(request, (node.resources for node in usable))
    why = "the cluster is busy"
    if capacity < request.num_workers:
        why = _growth(request, usable, capacity, gcs)
    if wait_s > 0:
        say(f"waiting up to {wait_s:g} s for {request}: {why}")
    if not _queue(request, wait_s, gcs, refused=capacity < request.num_workers, say=say):
        usable = [node for node in gcs.nodes() if node.usable]
        room = _fits(request, (node.available for node in usable))
        coming = f" ({coming})" if (coming := being_added(gcs)) else ""
        raise ResourceError(f"needs {request}, the cluster has room for {room} now and did not get more in {wait_s:g} "
                            f"s{coming}: pass a longer --run.wait or fewer --run.workers, or stop what holds the rest")


def _growth(request: Request, usable: list[Node], capacity: int, gcs: Gcs) -> str:
    """Who may add nodes, and how many. Raises: ResourceError if nobody can, or not so many."""
    groups, scales = node_groups(), autoscaled(gcs)
    if groups is None:
        if scales:
            return "the autoscaler may add nodes"
        raise ResourceError(f"needs {request}, {_shortage(request, usable, capacity)} and cannot grow: "
                            f"{_remedy(request, usable)}")
    most = _most(request, groups)
    listed = "; ".join(str(group) for group in groups if group.resources.get("CPU"))
    if most < request.num_workers:
        remedy = (f"pass --run.workers {most}, or raise {'maxReplicas' if scales else 'replicas'} in the RayCluster"
                  if most else
                  "ask for less (--run.cpus-per-worker, --run.gpus-per-worker), or add a group of larger nodes to the "
                  "RayCluster")
        raise ResourceError(f"needs {request}, and the RayCluster can grow to {most} ({listed}): {remedy}")
    return f"the {'autoscaler may add nodes' if scales else 'pods of the RayCluster are not all up'} ({listed})"


def _most(request: Request, groups: Iterable[NodeGroup]) -> int:
    """How many such workers there are room for when every group has all its nodes."""
    return sum(group.most * _fits(request, [group.resources]) for group in groups)


def possible_workers(request: Request, held: int = 0, group: str | None = None) -> int:
    """How many such workers the cluster could hold now: what is free, and what this run itself holds, on usable nodes.

    held: how many workers this run has started; at most so many of this job's own placements are counted.
    group: id (hex) of the placement group that they are to be in: its own bundles are all the room there is.
    """
    gcs = _gcs()
    usable = [node for node in gcs.nodes() if node.usable]
    ids = {node.node_id for node in usable}
    if group is not None:
        return _bundles(request, ids, (g for g in gcs.placement_groups() if g.placement_group_id.hex() == group))
    return (_fits(request, (node.available for node in usable))
            + min(held, _own_bundles(request, ids, gcs.placement_groups())))


def possible_groups(request: Request, held: int = 0) -> int:
    """How many groups of so many workers at a time: what fits now, of which `held` run,
    and one more where nodes can be added."""
    room = possible_workers(request, held=held * request.num_workers) // request.num_workers
    return room + 1 if autoscaled(_gcs()) else room


def draining_nodes() -> set[str]:
    """The ids of the connected cluster's nodes that are about to be taken away. Raises: ClusterError."""
    return _gcs().draining_nodes()


def starved_workers() -> set[tuple[str, int]]:
    """The nodes and process ids of the connected cluster's workers that were ended since their node was short of
    memory. Raises: ClusterError."""
    return _gcs().starved_workers()


def autoscaled(gcs: Gcs) -> bool:
    """Whether an autoscaler that can add nodes watches this cluster: version 2,
    or version 1 with node types of its own."""
    if gcs.cluster_status().autoscaling_state.autoscaler_state_version > 0:
        return True
    report = parse_json(gcs.read(b"__autoscaling_status", b"") or b"{}").get("autoscaler_report") or {}
    return any(not kind.startswith("node_") for kind in report.get("active_nodes", {}))


def _fits(request: Request, supplies: Iterable[Mapping[str, float]]) -> int:
    """How many workers fit, node by node."""
    return sum(int(min((supply.get(name, 0.0) + _SLACK) // amount for name, amount in request.bundle.items()))
               for supply in supplies)


def _own_bundles(request: Request, usable: set[str], groups: Iterable[Any]) -> int:
    import ray

    job = ray.get_runtime_context().get_job_id()
    return _bundles(request, usable, (g for g in groups if g.creator_job_id.hex() == job))


def _bundles(request: Request, usable: set[str], groups: Iterable[Any]) -> int:
    """How many workers fit into placement groups, on usable nodes."""
    bundles = (b for g in groups if g.state != _REMOVED for b in g.bundles)
    return sum(b.node_id.hex() in usable and _fits(request, [b.unit_resources]) for b in bundles)


@contextmanager
def queued(request: Request) -> Generator[Callable[[], bool]]:
    """Queues for the room in Ray's own scheduler, which tells the autoscaler.

    Gives a function that says, after a moment, whether it is granted. After the block the room is free again.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([request.bundle] * request.num_workers, strategy="PACK")
    try:
        yield lambda: bool(group.wait(timeout_seconds=_POLL_S))
    finally:
        remove_placement_group(group)


def _queue(request: Request, wait_s: float, gcs: Gcs, *, refused: bool, say: Callable[[str], None]) -> bool:
    """Whether the room is granted within that time.

    refused: whether to raise ResourceError as soon as the autoscaler says that it can never be;
    what it adds is said too.
    """
    clock, told = LoopClock(), ""
    deadline = clock.now + wait_s
    with queued(request) as granted:
        while not (there := granted()) and clock.look() < deadline:
            if refused and _infeasible(request, gcs):
                raise ResourceError(f"needs {request}, and the autoscaler says that its node types can never hold "
                                    "that: ask for less (--run.workers, --run.cpus-per-worker, --run.gpus-per-worker) "
                                    "or raise its limits")
            if refused and (coming := being_added(gcs)) and coming != told:
                say(f"waiting: {coming}")
                told = coming
    return there


def _infeasible(request: Request, gcs: Gcs) -> bool:
    wanted = [request.bundle] * request.num_workers
    gangs = gcs.cluster_status().autoscaling_state.infeasible_gang_resource_requests
    return any([dict(part.resources_bundle) for part in gang.requests] == wanted for gang in gangs)


def _shortage(request: Request, usable: list[Node], capacity: int) -> str:
    if request.gpus_per_worker and not any(node.resources.get("GPU") for node in usable):
        return "the cluster has no GPU"
    if capacity == 0:
        most = max((node.resources.get("CPU", 0.0) for node in usable), default=0.0)
        return f"no node has that (the most CPUs in one node: {most:g})"
    return f"the cluster has room for {capacity}"


def _remedy(request: Request, usable: list[Node]) -> str:
    """The nearest request that can be met."""
    if (capacity := _fits(request, (node.resources for node in usable))) > 0:
        return f"pass --run.workers {capacity}, or add nodes"
    if request.gpus_per_worker and not any(node.resources.get("GPU") for node in usable):
        return "pass --run.gpus-per-worker 0, or add nodes with GPUs"
    most = int(max((node.resources.get("CPU", 0.0) for node in usable), default=0.0))
    return f"pass --run.cpus-per-worker {most}, or add larger nodes" if most else "add nodes with CPUs"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _gcs() -> Gcs:
    import ray

    return Gcs(ray.get_runtime_context().gcs_address)
