"""A Ray cluster on this machine: a head and N worker nodes as separate Ray nodes, local and closed.

All of it listens on loopback and wants this user's token. Its state is in `cluster.json` of the user's folder
(cluster/core/auth.py), its logs and sockets are in a temporary folder of its own, which goes away with it.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.core.auth import KEEP_LOOPBACK, home_folder, require_home, token_environment, write_private
from cluster.core.documents import DocumentError, read_json
from cluster.core.errors import ClusterError
from cluster.core.network import LARGEST_PORT, free_port, is_free, spare_loopback, why_not_local
from cluster.local.launch import (
    START_TIMEOUT_S,
    BoundHead,
    LocalNode,
    await_ready,
    end_processes,
    free_dashboard_port,
    launch,
    object_store_bytes,
)
from cluster.local.node import LOOPBACK, NodeSpec
from cluster.local.processes import Process, marked_keepers, processes_of

_LONGEST_SOCKET = 107
_SOCKET_NAME = len("/pymp-XXXXXXXX/listener-XXXXXXXX")
CUT_OFF = ("the local cluster is still starting, or its start was cut off: wait, or end what is left of it with "
           "`python -m cluster down`")


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """What `up` started. address: of the control store; dashboard_url: where jobs are submitted.

    nodes: none while `up` is at work, and after it was killed:
    its processes are then known by the cluster's mark alone.
    """

    cluster_id: str
    address: str
    folder: str
    nodes: tuple[LocalNode, ...]

    @property
    def dashboard_url(self) -> str:
        return self.nodes[0].dashboard_url if self.nodes else ""

    def environment(self) -> dict[str, str]:
        """What a shell needs to run or submit jobs here."""
        return {"RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard_url, **token_environment(),
                **KEEP_LOOPBACK, **spare_loopback()}

    def processes(self) -> list[psutil.Process]:
        return processes_of(self.keepers(), Path(self.folder), self.cluster_id)

    def keepers(self) -> list[Process]:
        """The processes that keep its nodes, also of one whose start was cut off before it was saved."""
        return list({*(node.process for node in self.nodes), *marked_keepers(self.cluster_id)})


def current() -> LocalCluster | None:
    """The cluster that `up` started for this user, whatever its condition; None if there is none."""
    try:
        return read_json(_state_file(), LocalCluster)
    except FileNotFoundError:
        return None
    except DocumentError as error:
        raise ClusterError(f"{_state_file()} is damaged ({error}), so what runs is not known: end what is left of the "
                           "cluster (`ps` shows it), and delete the file") from error


def up(*, nodes: int = 0, cpus_per_node: int | None = None, dashboard_host: str = LOOPBACK, port: int = 0,
       dashboard_port: int = 0, autoscaling_config: str | None = None,
       start_timeout_s: float = START_TIMEOUT_S) -> LocalCluster:
    """Starts a head and so many worker nodes, and returns when all have joined.

    cpus_per_node: by default the machine's cores, divided among the nodes. Without worker nodes the head has these
    CPUs, with them it has none, as on a real cluster. Ports: 0 takes a free one (the dashboard's: 8265 if that is
    free). start_timeout_s: how long a node may get no further. Raises: ClusterError if one is up already or it does not
    start; then nothing is left of it. ConfigError without a home folder.
    """
    require_home()
    _refuse_long_tmpdir()
    with _lock():
        _refuse_second()
        _refuse_foreign(dashboard_host)
        _refuse_taken("--port", LOOPBACK, port)
        _refuse_taken("--dashboard-port", dashboard_host, dashboard_port)
        cpus = max(1, (os.cpu_count() or 1) // max(1, nodes)) if cpus_per_node is None else cpus_per_node
        with _undo_unless_up(_new_cluster(port)) as cluster:
            head = _head(cluster, num_nodes=nodes + 1, num_cpus=0 if nodes else cpus, dashboard_host=dashboard_host,
                         dashboard_port=dashboard_port, gpu_share=(0, 0) if nodes else (0, 1),
                         autoscaling_config=autoscaling_config)
            workers = [_worker(cluster, n, cpus, nodes + 1, gpu_share=(n - 1, nodes)) for n in range(1, nodes + 1)]
            cluster = dataclasses.replace(cluster, nodes=tuple(_start([head, *workers], cluster, start_timeout_s)))
            _save(cluster)
        return cluster


def bound_head(num_cpus: int | None) -> tuple[str, BoundHead]:
    """A cluster of one node for this process alone, and its address. It has no dashboard, which takes a second to start
    and would end with the process. Raises: ClusterError if it does not start."""
    cluster = _new_cluster()
    spec = _head(cluster, num_nodes=1, num_cpus=num_cpus or os.cpu_count() or 1, dashboard_host=LOOPBACK,
                 dashboard_port=0,
                 gpu_share=(0, 1), autoscaling_config=None)
    spec = dataclasses.replace(spec, dashboard=False, working_dir=os.getcwd())  # noqa: PTH109
    return cluster.address, BoundHead(spec, cluster.cluster_id)


def ended_nodes(cluster: LocalCluster) -> list[str]:
    """Returns for each node that has ended by itself: why, where Ray's own words are, what is left, and what to do."""
    left = ", ".join(node.name for node in cluster.nodes if node.process.alive())
    return [f"{node.name} ended by itself: {_why_ended(cluster, node)}. Of the local cluster {left or 'nothing'} is "
            "left: `python -m cluster down`, then `up` again"
            for node in cluster.nodes if not node.process.alive()]


def _why_ended(cluster: LocalCluster, node: LocalNode) -> str:
    folder = Path(cluster.folder) / node.name
    log = folder / "session_latest" / "logs" / "raylet.out"
    try:
        given_up = "marked as dead by the GCS" in log.read_text(errors="replace")
    except OSError:
        given_up = False
    if given_up:
        return ("nothing was heard of it for so long that the control store took it for dead (it was stopped or "
                f"suspended, or its machine was too busy); Ray's own words are in {log}")
    return f"the reason is in {folder}.log and {log.parent}"


def down() -> int:
    """Ends all that `up` started, and nothing else. Returns how many processes it found; 0 if there was no cluster."""
    with _lock():
        cluster = current()
        if cluster is None:
            return 0
        found = len(cluster.processes())
        _end_cluster(cluster)
        _state_file().unlink()
        return found


def _end_cluster(cluster: LocalCluster) -> None:
    """The nodes' own processes end what is below them; what is then left, if one of them was killed, is ended here."""
    roots = cluster.keepers()
    told: list[psutil.Process] = []
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if root.alive():
                told.append(psutil.Process(root.pid))
                told[-1].terminate()
    psutil.wait_procs(told, timeout=15)
    end_processes(roots, Path(cluster.folder), cluster.cluster_id)
    shutil.rmtree(cluster.folder, ignore_errors=True)


def _new_cluster(port: int = 0) -> LocalCluster:
    """The folder's path is short: a socket's, below it, may have 107 characters."""
    folder = tempfile.mkdtemp(prefix="trainyard-", dir="/tmp")
    return LocalCluster(cluster_id=uuid.uuid4().hex, address=f"{LOOPBACK}:{port or free_port(LOOPBACK)}", folder=folder,
                        nodes=())


def _head(cluster: LocalCluster, *, num_nodes: int, num_cpus: int, dashboard_host: str, dashboard_port: int,
          gpu_share: tuple[int, int], autoscaling_config: str | None) -> NodeSpec:
    return NodeSpec(name="head", is_head=True, address=cluster.address, folder=cluster.folder, num_cpus=num_cpus,
                    object_store_bytes=object_store_bytes(num_nodes), dashboard_host=dashboard_host,
                    gpu_share=gpu_share,
                    dashboard_port=dashboard_port or free_dashboard_port(dashboard_host),
                    autoscaling_config=autoscaling_config)


def _worker(cluster: LocalCluster, number: int, num_cpus: int, num_nodes: int, *,
            gpu_share: tuple[int, int]) -> NodeSpec:
    return NodeSpec(name=f"worker-{number}", is_head=False, address=cluster.address, folder=cluster.folder,
                    num_cpus=num_cpus,
                    object_store_bytes=object_store_bytes(num_nodes), gpu_share=gpu_share)


def _start(specs: Sequence[NodeSpec], cluster: LocalCluster, timeout_s: float = START_TIMEOUT_S) -> list[LocalNode]:
    """Starts all at once. If one does not start, all are ended. Raises: ClusterError."""
    begun: list[Process] = []
    try:
        for spec in specs:
            begun.append(launch(spec, cluster.cluster_id))
        return [await_ready(spec, process, timeout_s) for spec, process in zip(specs, begun, strict=True)]
    except BaseException:
        end_processes(begun, Path(cluster.folder))
        raise


@contextmanager
def _undo_unless_up(cluster: LocalCluster) -> Generator[LocalCluster]:
    """Saved before any of its nodes starts: should this process be killed in between, `down` still finds them."""
    try:
        _save(cluster)
        yield cluster
    except BaseException:
        _end_cluster(cluster)
        _state_file().unlink(missing_ok=True)
        raise


def _refuse_second() -> None:
    cluster = current()
    if cluster is None:
        return
    if any(node.process.alive() for node in cluster.nodes):
        raise ClusterError(f"a local cluster is up already, at {cluster.address}: use it, or end it first with "
                           "`python -m cluster down`")
    _end_cluster(cluster)  # what a restart of the machine, or a kill, has left
    _state_file().unlink()


def _refuse_long_tmpdir() -> None:
    """The dashboard's processes are started by Python's fork server, whose socket is
    TMPDIR/pymp-XXXXXXXX/listener-XXXXXXXX."""
    folder, most = tempfile.gettempdir(), _LONGEST_SOCKET - _SOCKET_NAME
    if (length := len(os.fsencode(folder))) > most:
        raise ClusterError(f"TMPDIR is {folder}, of {length} characters: Ray's dashboard puts a socket there, whose "
                           f"path may have {_LONGEST_SOCKET}: set TMPDIR to a folder of {most} or fewer, such as /tmp")


def _refuse_foreign(host: str) -> None:
    if (why := why_not_local(host)) is not None:
        raise ClusterError(f"--dashboard-host {host} cannot be listened on ({why}): give an address of this machine, "
                           "127.0.0.1 by default, or 0.0.0.0 for all of them")


def _refuse_taken(flag: str, host: str, port: int) -> None:
    if port > LARGEST_PORT:
        raise ClusterError(f"{flag} {port} is no port: give one of 1 to {LARGEST_PORT}, or none")
    if port and not is_free(host, port):
        raise ClusterError(f"port {port} of {host} is taken: pass another {flag}, or none")


def _state_file() -> Path:
    return home_folder() / "cluster.json"


def _save(cluster: LocalCluster) -> None:
    write_private(_state_file(), json.dumps(dataclasses.asdict(cluster), indent=1))


@contextmanager
def _lock() -> Generator[None]:
    """One `up` or `down` at a time."""
    with (home_folder() / "cluster.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
