"""Reads a Ray cluster's control store (GCS) with a deadline on every call, whether or not this process has joined it.

Ray's own client retries for minutes, or ends the process, where a cluster is dead, half-dead or has another token.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

import os
import socket
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.core import ray_internals
from cluster.core.auth import unknown_mode
from cluster.core.background import in_background
from cluster.core.documents import parse_json
from cluster.core.errors import ClusterError
from cluster.core.loop_clock import MOST_S, LoopClock

if TYPE_CHECKING:
    import grpc

T = TypeVar("T")

CALL_TIMEOUT_S = 4.0
_ALIVE = 2
"""The state of an actor, in Ray's numbers."""


class TokenError(ClusterError):
    """The cluster wants a token, and this process sent none or a wrong one."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One Ray node, as the cluster's control store knows it.
    resources: in total, in Ray's units (CPUs, GPUs, bytes)."""

    node_id: str
    name: str
    ip: str
    port: int
    alive: bool
    is_head: bool
    resources: dict[str, float]
    available: dict[str, float] = field(default_factory=dict[str, float])
    """What is free now."""
    draining: bool = False
    """About to be taken away (a preemption, a scale-down): it takes no new work, and what runs there should move."""

    removed: bool = False
    """Dead, and meant to be: it was ended in order, or the autoscaler took it away."""

    metrics_port: int = 0
    """Where a Prometheus asks it; 0 if it has none."""

    @property
    def usable(self) -> bool:
        """Whether work can be put there."""
        return self.alive and not self.draining


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """A driver connected to the cluster. entrypoint: its command."""

    job_id: str
    submission_id: str
    entrypoint: str
    ip: str
    started: float
    running: bool


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A live actor. holds: its resources, in Ray's units."""

    name: str
    node_id: str
    holds: dict[str, float]


def was_removed(row: Any) -> bool:
    """row: Ray's GcsNodeInfo message."""
    return row.state != 0 and row.death_info.reason in ray_internals.deaths_in_order()


def within(seconds: float, call: Callable[[], T], late: Exception) -> T:
    """The call's result, or `late` raised after so many seconds; the call itself is then left behind in a thread."""
    calling, clock = in_background("trainyard-deadline", call), LoopClock()
    end = clock.now + seconds
    while not calling.done() and (left := end - clock.look()) > 0:
        wait([calling], min(left, MOST_S))
    if not calling.done():
        raise late
    return calling.result()


def reachable(address: str, timeout_s: float = 2.0) -> str | None:
    """None if something listens at HOST:PORT, else why not."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


class Gcs:
    """Every method raises ClusterError (TokenError where it is about the token) within CALL_TIMEOUT_S."""

    def __init__(self, address: str, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.address, self._timeout_s = address, timeout_s

    def ray_version(self) -> str:
        return self._call("NodeInfoGcsService", "CheckAlive").ray_version

    def nodes(self) -> list[Node]:
        """The nodes of this cluster, dead ones too, the head first, then by name."""
        reply = self._call("NodeInfoGcsService", "GetAllNodeInfo")
        free = self._call("NodeResourceInfoGcsService", "GetAllAvailableResources")
        available = {row.node_id.hex(): dict(row.resources_available) for row in free.resources_list}
        draining = self.draining_nodes()
        nodes = [
            Node(node_id=row.node_id.hex(), name=row.node_name, ip=row.node_manager_address, port=row.node_manager_port,
                 alive=row.state == 0, is_head=row.is_head_node, resources=dict(row.resources_total),
                 available=available.get(row.node_id.hex(), {}), draining=row.node_id.hex() in draining,
                 removed=was_removed(row), metrics_port=row.metrics_export_port)
            for row in reply.node_info_list
        ]
        return sorted(nodes, key=lambda node: (not node.is_head, node.name, node.node_id))

    def draining_nodes(self) -> set[str]:
        """The ids of the nodes that are about to be taken away."""
        reply = self._call("NodeResourceInfoGcsService", "GetDrainingNodes")
        return {row.node_id.hex() for row in reply.draining_nodes}

    def starved_workers(self) -> set[tuple[str, int]]:
        """(node, process id) of the workers that Ray has ended since their node was short of memory."""
        reply = self._call("WorkerInfoGcsService", "GetAllWorkerInfo")
        return {(row.worker_address.node_id.hex(), row.pid) for row in reply.worker_table_data
                if row.exit_type == ray_internals.short_of_memory()}

    def jobs(self) -> list[JobInfo]:
        """The drivers that were ever connected, but for Ray's own, oldest first."""
        reply = self._call("JobInfoGcsService", "GetAllJobInfo", skip_submission_job_info_field=True,
                           skip_is_running_tasks_field=True)
        jobs = [
            JobInfo(job_id=row.job_id.hex(), submission_id=row.config.metadata.get("job_submission_id", ""),
                    entrypoint=row.entrypoint, ip=row.driver_address.ip_address, started=row.start_time / 1000,
                    running=not row.is_dead)
            for row in reply.job_info_list if not row.config.ray_namespace.startswith("_ray_internal")
        ]
        return sorted(jobs, key=lambda job: job.started)

    def has_actor(self, name: str, namespace: str) -> bool:
        """Whether an actor of this name lives."""
        reply = self._call("ActorInfoGcsService", "GetNamedActorInfo", name=name, ray_namespace=namespace)
        return bool(reply.actor_table_data.actor_id) and reply.actor_table_data.state == _ALIVE

    def actors(self, namespace: str) -> list[Actor]:
        """Returns the live actors of a namespace, by name."""
        reply = self._call("ActorInfoGcsService", "GetAllActorInfo", filters={"state": _ALIVE})
        actors = [Actor(name=row.name, node_id=row.node_id.hex(), holds=dict(row.required_resources))
                  for row in reply.actor_table_data if row.ray_namespace == namespace]
        return sorted(actors, key=lambda actor: actor.name)

    def placement_groups(self) -> list[Any]:
        """Ray's PlacementGroupTableData messages."""
        reply = self._call("PlacementGroupInfoGcsService", "GetAllPlacementGroup")
        return list(reply.placement_group_table_data)

    def cluster_status(self) -> Any:
        """Ray's GetClusterStatusReply message: what the autoscaler (v2) and the scheduler report."""
        return self._call("AutoscalerStateService", "GetClusterStatus")

    def read(self, key: bytes, namespace: bytes) -> bytes:
        """A value of the internal key-value store; empty if it is not there."""
        return self._call("InternalKVGcsService", "InternalKVGet", key=key, namespace=namespace).value

    def write(self, key: bytes, value: bytes, namespace: bytes) -> None:
        """Puts a value into the internal key-value store, over the one that was there."""
        self._call("InternalKVGcsService", "InternalKVPut", key=key, value=value, namespace=namespace, overwrite=True)

    def delete(self, key: bytes, namespace: bytes) -> None:
        """Nothing if it is not there."""
        self._call("InternalKVGcsService", "InternalKVDel", key=key, namespace=namespace)

    def versions(self) -> dict[str, str]:
        """`ray` and `python` of the head."""
        metadata = parse_json(self.read(b"CLUSTER_METADATA", b"cluster") or b"{}")
        return {"ray": metadata.get("ray_version", self.ray_version()), "python": metadata.get("python_version", "")}

    def _call(self, service: str, method: str, **fields: object) -> Any:
        import grpc

        with channel(self.address) as connection:
            try:
                return ray_internals.ask_gcs(connection, service, method, fields, self._timeout_s)
            except grpc.RpcError as error:
                raise self._explain(error.code().name) from error

    def _explain(self, code: str) -> ClusterError:
        if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return TokenError(
                f"the Ray cluster at {self.address} refuses this token: set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN_PATH to the file that holds the cluster's own (`python -m cluster env` prints "
                f"them){_overriding()}"
            )
        if code in ("UNIMPLEMENTED", "UNKNOWN"):
            return ClusterError(f"what listens at {self.address} is no Ray cluster of this version: {_CHECK}")
        return ClusterError(
            f"the Ray cluster at {self.address} does not answer (its port is open, the call ended with {code}): "
            "it is dead or overloaded; restart it, or unset RAY_ADDRESS to start one on this machine"
        )


def _overriding() -> str:
    return ", and unset RAY_AUTH_TOKEN, which Ray takes before that file" if "RAY_AUTH_TOKEN" in os.environ else ""


_CHECK = "give the address of the head's control store (HOST:6379 by default), or unset RAY_ADDRESS"


@contextmanager
def channel(address: str) -> Generator["grpc.Channel"]:
    """A gRPC channel with Ray's own TLS and token settings, never through a proxy.

    Raises: TokenError if a token is wanted (RAY_AUTH_MODE=token) and there is none,
    or the mode is one that Ray does not know and takes for `disabled`.
    """
    from ray.exceptions import AuthenticationError

    if (why := unknown_mode()) is not None:
        raise TokenError(why)
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 256 << 20)]
    connection = ray_internals.grpc_channel(address, options)
    try:
        yield connection
    except AuthenticationError as error:  # from the interceptor that puts the token into each call
        raise TokenError(f"RAY_AUTH_MODE is token, but there is no token{_looked_for()}: set RAY_AUTH_TOKEN_PATH to "
                         f"the file that holds the token of {address} (`python -m cluster env` prints that of this "
                         "machine's)") from error
    finally:
        connection.close()


def _looked_for() -> str:
    if "RAY_AUTH_TOKEN_PATH" in os.environ:
        return (f" (RAY_AUTH_TOKEN_PATH names {os.environ['RAY_AUTH_TOKEN_PATH'] or 'nothing'}, which is not there, or "
                "empty)")
    return " (RAY_AUTH_TOKEN is empty)" if "RAY_AUTH_TOKEN" in os.environ else ""


def silent_nodes(nodes: Sequence[Node], timeout_s: float = 2.0) -> list[Node]:
    """Those whose raylet does not answer: it is stopped, or cannot be reached. All are asked at once."""
    with ThreadPoolExecutor(max_workers=32) as threads:
        answered = list(threads.map(_answers, nodes, [timeout_s] * len(nodes)))
    return [node for node, fine in zip(nodes, answered, strict=True) if not fine]


def _answers(node: Node, timeout_s: float) -> bool:
    """Any answer will do, an error too; a stopped process gives none."""
    import grpc

    with channel(f"{node.ip}:{node.port}") as connection:
        try:
            connection.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            return error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        return True
