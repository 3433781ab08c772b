"""One Ray node of a local cluster: the process that starts it, stays its parent, and ends with it.
Started by cluster.py.

    python -m cluster.local.node '{"name": "worker-1", …}'     (the fields of NodeSpec)

    python -m cluster.local.node - '{…}'                        (the same, but it ends when its standard input does)

It is the reaper of everything below it, so nothing gets lost when its own parent dies; if this process is killed, the
kernel kills what it started. Its dashboard starts beside the rest instead of before it, which Ray's own does not do.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from cluster.core.auth import write_private
from cluster.core.documents import parse_json
from cluster.core.ray_internals import GetNode, RayNode, note_address, start_node, visible_gpus

LOOPBACK = "127.0.0.1"
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_GRACE_S = 1.0
_HEAD_TIMEOUT_S = 600.0
"""How long a node waits for its head. Who started them gives up a head that gets no further, and then ends both."""
_VITAL = ("raylet", "gcs_server")


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """How one node is started. address: HOST:PORT of the control store, which the head serves and the others join.

    folder: the cluster's own. A node's files lie in a sub-folder,
    because nodes that start at once and share one take each other's socket names.
    """

    name: str
    address: str
    folder: str
    is_head: bool
    num_cpus: int
    object_store_bytes: int
    dashboard: bool = True
    """Whether the head has Ray's dashboard, with which go job submission and the list of what to monitor."""
    dashboard_host: str = LOOPBACK
    dashboard_port: int = 8265
    working_dir: str = "."
    """Where its workers run."""
    gpu_share: tuple[int, int] = (0, 1)
    """(index, of how many): which of this machine's GPUs are this node's."""
    autoscaling_config: str | None = None
    """A file for Ray's autoscaler, which only the head takes."""

    def dashboard_at(self, told: str) -> str:
        """HOST:PORT of the head's dashboard.
        told: what Ray says, which has the node's own address for any but loopback."""
        host = LOOPBACK if self.dashboard_host in ("0.0.0.0", "::") else self.dashboard_host
        return f"[{host}]:{told.rpartition(':')[2]}" if ":" in host else f"{host}:{told.rpartition(':')[2]}"

    @property
    def temp_dir(self) -> Path:
        return Path(self.folder) / self.name

    @property
    def log_file(self) -> Path:
        return Path(self.folder) / f"{self.name}.log"

    @property
    def ray_logs(self) -> Path:
        """The folder where Ray's processes write theirs."""
        return self.temp_dir / "session_latest" / "logs"

    @property
    def ready_file(self) -> Path:
        """Appears when the node is up, and holds a `Ready`."""
        return Path(self.folder) / f"{self.name}.json"


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a node that is up tells who started it. pids: Ray's own processes by kind."""

    node_id: str
    session_dir: str
    pids: dict[str, int]
    dashboard_url: str | None
    """HOST:PORT, of the head alone."""


def main(arguments: Sequence[str]) -> int:
    spec = parse_json(arguments[-1], NodeSpec)
    bound = arguments[0] == "-"
    os.setsid()
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        node = _start(spec)
        write_private(spec.ready_file, json.dumps(asdict(_describe(node))))
        return _keep(node, bound)
    finally:
        _end_all()
        if bound and _told_to_end(0):  # else the one who started it has yet to read the log, and then removes it
            shutil.rmtree(spec.folder, ignore_errors=True)


def _exit(number: int, frame: object) -> None:
    sys.exit(0)


def _start(spec: NodeSpec) -> RayNode:
    spec.temp_dir.mkdir(exist_ok=True)
    os.chdir(spec.working_dir)
    note_address(spec.address, spec.temp_dir)
    parameters = _parameters(spec)
    if not spec.is_head:
        _wait_for_head(spec)
    return start_node(parameters, is_head=spec.is_head, patient=_patient)


def _patient(get_node: GetNode) -> GetNode:
    """Waits for a raylet to join while all that was started lives: Ray's own 30 s are too few on a busy machine."""
    def wait(*arguments: object) -> object:
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if any(child.status() == psutil.STATUS_ZOMBIE for child in psutil.Process().children()):
                    raise
                time.sleep(0.1)

    return wait


def _parameters(spec: NodeSpec) -> dict[str, object]:
    gpus = own_gpus(spec.gpu_share)
    common: dict[str, object] = {
        "node_ip_address": LOOPBACK, "node_name": spec.name, "temp_dir": str(spec.temp_dir),
        "num_cpus": spec.num_cpus, "num_gpus": len(gpus), "object_store_memory": spec.object_store_bytes,
        "dashboard_agent_listen_port": None, "min_worker_port": 0, "max_worker_port": 0,
    }
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if not spec.is_head:
        return {**common, "gcs_address": spec.address, "include_log_monitor": False}
    return {
        **common, "gcs_server_port": int(spec.address.rpartition(":")[2]), "include_dashboard": spec.dashboard,
        "dashboard_host": spec.dashboard_host, "dashboard_port": spec.dashboard_port,
        "autoscaling_config": spec.autoscaling_config,
    }


def own_gpus(share: tuple[int, int]) -> list[str]:
    """The identifiers of this machine's visible GPUs that fall to share[0] of share[1] nodes."""
    return visible_gpus()[share[0]::share[1]] if share[1] else []


def _wait_for_head(spec: NodeSpec, timeout_s: float = _HEAD_TIMEOUT_S) -> None:
    """Until the head is a node of its own cluster: joining earlier makes Ray wait for whole seconds."""
    from cluster.core.control_store import Gcs, reachable
    from cluster.core.errors import ClusterError

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if reachable(spec.address) is None and any(node.is_head for node in Gcs(spec.address).nodes()):
                return
        except ClusterError:  # listening already, not serving yet
            pass
        time.sleep(0.05)


def _describe(node: RayNode) -> Ready:
    pids = {kind: pid for kind, each in node.pids().items() for pid in each}
    return Ready(node_id=node.node_id, session_dir=node.session_dir, dashboard_url=node.dashboard_url, pids=pids)


def _keep(node: RayNode, bound: bool) -> int:
    """Until a process that Ray needs has ended (the raylet, the control store): then the node is over."""
    while not (dead := [kind for kind in node.ended() if kind in _VITAL]):
        _reap_orphans({pid for pids in node.pids().values() for pid in pids})
        if bound and _told_to_end(0.5):
            return 0
        if not bound:
            time.sleep(0.5)
    print("ended by itself:", ", ".join(dead), flush=True)
    return 1


def _told_to_end(wait_s: float) -> bool:
    """Whether standard input has ended, with the process at its other end or by it."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def _reap_orphans(own: set[int]) -> None:
    for child in psutil.Process().children():
        if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(child.pid, os.WNOHANG)


def _end_all() -> None:
    """SIGTERM to everything below this process, SIGKILL to what is left after a moment, until nothing is."""
    for number, seconds in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 10.0)):
        told: set[psutil.Process] = set()
        deadline = time.monotonic() + seconds
        while (below := _live_below()) and time.monotonic() < deadline:
            _signal(below - told, number)
            told |= below
            time.sleep(0.02)


def _live_below() -> set[psutil.Process]:
    """The processes below this one, after having reaped those that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return set(psutil.Process().children(recursive=True))


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def command(spec: NodeSpec, *, bound: bool = False) -> list[str]:
    """To be run where the package `cluster` is.
    bound: its standard input is a pipe that ends when the node is to end."""
    return [sys.executable, "-m", "cluster.local.node", *(["-"] if bound else []), json.dumps(dataclasses.asdict(spec))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
