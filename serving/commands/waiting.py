"""What the replicas of an endpoint that is not ready yet wait for: room, a process, or their model.

Serve says of any replica without a process after 30 s that "this may be due to waiting for the cluster to auto-scale",
also where the process is only slow to start. Ray tells the two apart: a request whose process is being started has its
resources already, so it is not among those that wait for them, though nothing is free any more.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.core.control_store import Gcs, Node

NO_ROOM_S = 30.0
"""How long a replica finds no room before that counts: what ends meanwhile (an old version's replica) may make some."""
_LOOK_EVERY_S = 1.0
Bundle = tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A replica that has no process yet. started: when Serve asked for it, in seconds since the epoch."""

    application: str
    needs: Bundle
    started: float


class Shortage:
    """Follows which applications have a replica that finds no room, and for how long."""

    def __init__(self, gcs: Gcs) -> None:
        self._gcs, self._looked_at = gcs, 0.0
        self._since: dict[str, float] = {}
        self._lacking: list[Waiting] = []
        self.nodes: list[Node] = []
        """Of the last look that found something lacking."""

    def lasting(self, applications: Mapping[str, Any]) -> list[Waiting]:
        """Returns the replicas that have had no room for NO_ROOM_S, one for each application.

        applications: Serve's ApplicationDetails, by name.
        """
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at, waiting = now, without_process(applications)
            self._lacking = self._without_room(waiting) if waiting else []
            self._since = {each.application: self._since.get(each.application, now) for each in self._lacking}
        return list({each.application: each for each in self._lacking
                     if now - self._since[each.application] >= NO_ROOM_S}.values())

    def _without_room(self, waiting: Iterable[Waiting]) -> list[Waiting]:
        self.nodes = [node for node in self._gcs.nodes() if node.usable]
        resources = self._gcs.cluster_status().cluster_resource_state
        pending: Counter[Bundle] = Counter()
        for each in resources.pending_resource_requests:
            pending[_bundle(each.request.resources_bundle)] += each.count
        return lacking(waiting, pending, self.nodes)


def without_process(applications: Mapping[str, Any]) -> list[Waiting]:
    """Returns the replicas that Serve has asked Ray for and that run nowhere yet, in the order in which it asked."""
    found = [Waiting(application=name, needs=_bundle(deployment.required_resources), started=replica.start_time_s)
             for name, application in applications.items() for deployment in application.deployments.values()
             for replica in deployment.replicas if replica.state == "STARTING" and replica.pid is None]
    return sorted(found, key=lambda each: each.started)


def lacking(waiting: Iterable[Waiting], pending: Mapping[Bundle, int], nodes: Iterable[Node]) -> list[Waiting]:
    """Returns those of the waiting replicas for which there is no room.

    pending: how many requests of a kind wait for resources in Ray. It serves those of one kind in their order, so where
    more replicas wait than requests do, the last ones lack room.
    """
    by_needs: dict[Bundle, list[Waiting]] = {}
    for each in waiting:
        by_needs.setdefault(each.needs, []).append(each)
    free = [node.available for node in nodes]
    return [each for needs, those in by_needs.items() if not any(_holds(amounts, needs) for amounts in free)
            for each in those[max(0, len(those) - pending.get(needs, 0)):]]


def why_no_room(lack: Waiting, nodes: Iterable[Node]) -> str:
    """A sentence with what a replica needs, what each node has of it, and what to do."""
    free = "; ".join(f"{node.name or node.ip} has {_amounts(node, lack.needs)}" for node in nodes) or "no node is alive"
    flags = "--gpus-per-replica" if "GPU" in dict(lack.needs) else "--cpus-per-replica"
    needs = ", ".join(f"{amount:g} {name}" for name, amount in lack.needs)
    return (f"a replica needs {needs}, which no node has free ({free}), and the cluster cannot grow: add nodes, end "
            f"what else runs there, or start the endpoint with a smaller {flags}")


def what_for(application: Any) -> str:
    """Says what an application waits for that is neither ready nor failed. application: Serve's ApplicationDetails."""
    now = time.time()
    replicas = [each for deployment in application.deployments.values() for each in deployment.replicas]
    for each in replicas:
        if each.state == "STARTING":
            seconds = f"for {now - each.start_time_s:.0f} s"
            if each.pid is None:
                return f"the process of a replica has been starting {seconds}: the machine is busy, or has no room"
            return f"a replica has been loading its model {seconds} (process {each.pid}, log {each.log_file_path})"
    return "Serve has not asked for its replicas yet" if not replicas else "its replicas are about to be ready"


def _amounts(node: Node, needs: Bundle) -> str:
    free, total = node.available, node.resources
    return " and ".join(f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}" for name, _ in needs)


def _holds(free: Mapping[str, float], needs: Bundle) -> bool:
    return all(free.get(name, 0.0) >= amount for name, amount in needs)


def _bundle(resources: Mapping[str, float]) -> Bundle:
    return tuple(sorted((name, float(amount)) for name, amount in resources.items() if amount))
