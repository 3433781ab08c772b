"""Joins a Ray cluster, or starts one on this machine: the project's only `ray.init`.

In this order: the address given, RAY_ADDRESS (a submitted job has it), else a cluster of this machine's own that ends
with the process. A cluster started by `python -m cluster up` is joined when RAY_ADDRESS names it (`up` prints the line)
or is `auto`, never silently. Before joining, the cluster is asked for signs of life; Ray itself would wait for minutes.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import atexit
import ipaddress
import logging
import os
import platform
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from cluster.core import auth, ray_internals
from cluster.core.control_store import Gcs, Node, TokenError, reachable, silent_nodes, within
from cluster.core.errors import ClusterError
from cluster.core.network import spare_loopback
from cluster.core.ray_settings import RAY_SETTINGS, USAGE_STATS
from cluster.local import cluster as local
from cluster.local.launch import BoundHead

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 4.8
_START_ONE = "start one with `python -m cluster up`, or unset RAY_ADDRESS to use a cluster of this machine's own"

_before: dict[str, str] | None = None
_own: BoundHead | None = None


@dataclass(frozen=True, kw_only=True)
class ClusterInfo:
    """The cluster that this process is connected to. started: by this process, and ends with it."""

    address: str
    started: bool
    num_nodes: int
    resources: dict[str, float]
    dashboard_url: str


def connect(address: str | None = None, *, num_cpus: int | None = None, own: bool = False) -> ClusterInfo:
    """Joins or starts a cluster, as the module says; does nothing where this process is connected already.

    address: HOST:PORT of the control store, `auto` (a cluster running on this machine), or `local` (start one).
    num_cpus: of a cluster started here; by default all cores. own: whether another program of this user has started the
    cluster at the address, so that it takes this user's token. Raises: ClusterError within 5 s if there is no living
    cluster at the address, or it wants another token, or runs another version of Ray or Python;
    ConfigError without a home folder.
    """
    if not ray.is_initialized():
        auth.require_home()
        spare_loopback()
        os.environ.setdefault(USAGE_STATS, RAY_SETTINGS[USAGE_STATS])
        wanted = address or os.environ.get("RAY_ADDRESS") or "local"
        if wanted == "local":
            _start(num_cpus)
        else:
            _join(control_store(wanted), own)
    return _describe()


def disconnect() -> None:
    """Leaves the cluster; one that this process started ends, with all its processes.
    Also done when the process exits."""
    global _before, _own
    ray.shutdown()
    if _own is not None:
        _own.end()
    if _before is not None:
        auth.apply(_before)
    _before, _own = None, None


def probe(address: str) -> list[Node]:
    """The live nodes of a cluster. Raises: ClusterError within 5 s if it is dead, half-dead or refuses this token."""
    late = ClusterError(f"the Ray cluster at {address} does not answer within {PROBE_TIMEOUT_S:g} s: it is dead, or "
                        f"the network is; restart it, or {_START_ONE}")
    return within(PROBE_TIMEOUT_S, lambda: _probe(address), late)


def _probe(address: str) -> list[Node]:
    if (why := reachable(address)) is not None:
        raise ClusterError(f"no Ray cluster answers at {address} ({why}): {_START_ONE}")
    gcs = Gcs(address, timeout_s=3.0)
    _check_versions(address, gcs)
    alive = [node for node in gcs.nodes() if node.alive]
    if not alive:
        raise ClusterError(f"the Ray cluster at {address} has no live node: restart it, or {_START_ONE}")
    return alive


def _check_versions(address: str, gcs: Gcs) -> None:
    theirs, ours = gcs.versions(), {"ray": ray.__version__, "python": platform.python_version()}
    if differing := [name for name in ours if theirs[name] not in ("", ours[name])]:
        found = ", ".join(f"{name} {theirs[name]}" for name in differing)
        here = ", ".join(f"{name} {ours[name]}" for name in differing)
        raise ClusterError(f"the cluster at {address} runs {found}, this environment {here}: install the same version "
                           "here, or submit with `ray job submit`, which runs the job by the cluster's own Python")


def control_store(wanted: str) -> str:
    """HOST:PORT. Raises: ClusterError for an address of another kind."""
    if wanted == "auto":
        return _running_here()
    if "://" in wanted:
        raise ClusterError(f"{wanted} is no address of a control store (HOST:PORT): http:// is for `ray job submit` "
                           "(RAY_API_SERVER_ADDRESS), and ray:// clients are not supported; submit the job instead")
    host, _, port = wanted.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"address {wanted!r} is not HOST:PORT: give the head's control store, 6379 by default")
    return wanted


def _running_here() -> str:
    if (cluster := local.current()) is not None:
        return cluster.address
    if (found := ray_internals.cluster_of_this_machine()) is None:
        raise ClusterError(f"no Ray cluster runs on this machine: {_START_ONE}")
    return found


def _join(address: str, own: bool) -> None:
    try:
        if own:
            _authenticate_own()
        _use_token_of(address)
        nodes = _probe_with_any_token(address)
        _check_neighbour(address, nodes)
        _init(address)
    except BaseException:
        disconnect()
        raise


@contextmanager
def authenticate_for(address: str) -> Generator[None]:
    """Inside the block, the token is used that fits this cluster: the environment's, else that of what `up` started."""
    before = auth.current()
    _use_token_of(address)
    try:
        yield
    finally:
        if auth.current() != before:
            auth.apply(before)


def _use_token_of(address: str) -> None:
    """Sets this user's token for the cluster that `up` started, where no mode is set; for others, what is set stays."""
    cluster = local.current()
    if cluster is not None and cluster.address == address:
        _authenticate_own()


def _authenticate_own() -> None:
    if auth.current() != (own := auth.own_environment()):
        _authenticate(own)


def _probe_with_any_token(address: str) -> list[Node]:
    try:
        return probe(address)
    except TokenError:
        if "RAY_AUTH_MODE" in os.environ or not auth.has_token():
            raise
        _authenticate({**auth.current(), "RAY_AUTH_MODE": "token"})
        return probe(address)


def _check_neighbour(address: str, nodes: list[Node]) -> None:
    """A driver works through a node of its own machine: there must be one, and it must answer."""
    here = ray_internals.nodes_of_this_machine()
    neighbours = [node for node in nodes if node.node_id in here]
    if not neighbours:
        raise ClusterError(f"no node of the Ray cluster at {address} runs on this machine: run this on one of its "
                           "nodes, or submit it with `ray job submit`")
    candidates = [node for node in neighbours if node.is_head] or neighbours  # Ray takes the head, else any
    if silent := silent_nodes(candidates):
        names = ", ".join(node.name for node in silent)
        raise ClusterError(f"node {names} of the Ray cluster at {address}, which this machine would work through, does "
                           "not answer: restart that node")


def _start(num_cpus: int | None) -> None:
    """Not by `ray.init` alone: it takes loopback for this machine's outer address,
    and so would be open to the network."""
    global _own
    _authenticate_own()
    atexit.register(disconnect)
    try:
        address, _own = local.bound_head(num_cpus)
        _init(address)
    except BaseException:
        disconnect()
        raise


def _init(address: str) -> None:
    """Ray's own messages and its workers' output stay in its log files."""
    if ipaddress.ip_address(socket.gethostbyname(address.rpartition(":")[0])).is_loopback:
        os.environ.update(auth.KEEP_LOOPBACK)
        ray_internals.keep_loopback()
    ray_internals.print_by(_log)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _log(lines: list[str]) -> None:
    logger.info("Ray says: %s", "\n".join(lines))


def _authenticate(environment: dict[str, str]) -> None:
    global _before
    if _before is None:
        _before = auth.current()
    auth.apply(environment)


def _describe() -> ClusterInfo:
    context = ray.get_runtime_context()
    url = ray_internals.dashboard_of_this_node()
    return ClusterInfo(address=context.gcs_address, started=_own is not None, resources=dict(ray.cluster_resources()),
                       num_nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
                       dashboard_url=f"http://{url}" if url else "")
