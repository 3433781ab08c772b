"""Launches the node processes of node.py: detached ones for `cluster up`, one bound to this process for `connect()`."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.core.auth import KEEP_LOOPBACK, own_environment, token_environment
from cluster.core.documents import read_json
from cluster.core.errors import ClusterError
from cluster.core.network import free_port, is_free
from cluster.core.ray_settings import RAY_SETTINGS
from cluster.local.node import NodeSpec, Ready, command
from cluster.local.processes import MARK, Process, processes_of

START_TIMEOUT_S = 90.0
"""How long a node that starts may get no further: a start as a whole may take longer on a busy machine."""
END_TIMEOUT_S = 30.0
_DASHBOARD_PORT = 8265
_SMALLEST_STORE, _LARGEST_STORE = 80 << 20, 8 << 30
_ROOT = Path(__file__).parents[2]
_NOT_INHERITED = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_AUTH_TOKEN"}


@dataclass(frozen=True, kw_only=True)
class LocalNode:
    """A node on this machine. process: the one that keeps it; pids: Ray's own processes by kind (`raylet`, …)."""

    name: str
    node_id: str
    num_cpus: int
    process: Process
    pids: dict[str, int]
    dashboard_url: str = ""
    """Of a head that has one."""


class BoundHead:
    """A one-node cluster that ends with this process, however that ends. Raises: ClusterError if it does not start."""

    def __init__(self, spec: NodeSpec, cluster_id: str) -> None:
        self._spec, self._cluster_id = spec, cluster_id
        with spec.log_file.open("wb") as log:
            self._popen = subprocess.Popen(command(spec, bound=True), stdin=subprocess.PIPE, stdout=log, stderr=log,
                                           env=_environment(cluster_id, own_environment()), cwd=_ROOT)
        self._process = Process.of(self._popen.pid)
        try:
            self.node = await_ready(spec, self._process)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        try:
            self._popen.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        end_processes([self._process], Path(self._spec.folder), self._cluster_id)
        shutil.rmtree(self._spec.folder, ignore_errors=True)


def launch(spec: NodeSpec, cluster_id: str) -> Process:
    """A node that outlives this process, as a child of nobody's. Its output goes to `spec.log_file`."""
    spec.ready_file.unlink(missing_ok=True)  # of a node of this name that was removed
    with spec.log_file.open("wb") as log:
        shell = subprocess.run(
            ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *command(spec)], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log, env=_environment(cluster_id, token_environment()), cwd=_ROOT, check=True,
            start_new_session=True,
        )
    return Process.of(int(shell.stdout))


def await_ready(spec: NodeSpec, process: Process, timeout_s: float = START_TIMEOUT_S) -> LocalNode:
    """Returns the node once it has joined its cluster.

    timeout_s: how long it may get no further. Raises: ClusterError, with the end of its logs, if it does not start.
    """
    patience = _Patience(spec.temp_dir, timeout_s)
    while not spec.ready_file.exists():
        if not process.alive():
            raise ClusterError(f"node {spec.name} did not start; the end of its log:\n{_end_of_logs(spec)}")
        if patience.spent():
            raise ClusterError(f"node {spec.name} is not up, and has got no further for {timeout_s:g} s (on a busy "
                               "machine pass `python -m cluster up` a longer --start-timeout-s); the end of its log:\n"
                               f"{_end_of_logs(spec)}")
        time.sleep(0.05)
    ready = read_json(spec.ready_file, Ready)
    url = f"http://{spec.dashboard_at(ready.dashboard_url)}" if ready.dashboard_url else ""
    return LocalNode(name=spec.name, node_id=ready.node_id, num_cpus=spec.num_cpus, process=process, pids=ready.pids,
                     dashboard_url=url)


class _Patience:
    """Knows how long a node that starts has got no further: Ray makes a file for each process, log and socket of it."""

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self._folder, self._timeout_s = folder, timeout_s
        self._files = 0
        self._since = self._looked_at = time.monotonic()

    def spent(self) -> bool:
        now = time.monotonic()
        if now - self._looked_at >= min(1.0, self._timeout_s / 4):
            self._looked_at = now
            files = sum(len(names) for _, _, names in os.walk(self._folder))
            if files > self._files:
                self._files, self._since = files, now
        return now - self._since > self._timeout_s


def end_processes(roots: list[Process], folder: Path, cluster_id: str | None = None, *,
                  timeout_s: float = END_TIMEOUT_S) -> None:
    """SIGKILLs all processes of some nodes (cluster/local/processes.py), until none is left.

    Raises: ClusterError if some are left after timeout_s: another user's, or stuck in the kernel.
    """
    deadline = time.monotonic() + timeout_s
    while left := processes_of(roots, folder, cluster_id):
        if (rest := deadline - time.monotonic()) <= 0:
            pids = ", ".join(str(process.pid) for process in left)
            raise ClusterError(f"processes {pids} of the cluster did not end within {timeout_s:g} s: end them as root "
                               "(`sudo kill -9`), or restart the machine if they are stuck in its kernel, then run "
                               "`python -m cluster down`")
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()
        psutil.wait_procs(left, timeout=min(rest, 5))


def object_store_bytes(num_nodes: int) -> int:
    """Each node's share of what Ray would take for one: 30% of the free memory, at most 90% of shared memory."""
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else _LARGEST_STORE
    share = int(min(0.3 * psutil.virtual_memory().available, 0.9 * shared) / num_nodes)
    return max(_SMALLEST_STORE, min(share, _LARGEST_STORE))


def free_dashboard_port(host: str) -> int:
    """Ray's own, 8265, if it is free."""
    return _DASHBOARD_PORT if is_free(host, _DASHBOARD_PORT) else free_port(host)


def _environment(cluster_id: str, authentication: dict[str, str]) -> dict[str, str]:
    """This environment's programs come first on its PATH, so that jobs run by them."""
    return {
        **{key: value for key, value in os.environ.items() if key not in _NOT_INHERITED},
        **authentication,
        **KEEP_LOOPBACK,
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600",  # `await_ready` gives up one that gets no further; Ray any after 60 s
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        **{name: os.environ.get(name, value) for name, value in RAY_SETTINGS.items()},
        MARK: cluster_id,
    }


def _end_of_logs(spec: NodeSpec) -> str:
    """Returns the last lines of the node's own log, or, where it is empty, of those of Ray's that were written last."""
    if own := _last_lines(spec.log_file):
        return own
    written = sorted((log.stat().st_mtime, log) for log in spec.ray_logs.glob("*.*") if log.stat().st_size)
    ends = [f"  {log.name}:\n{_last_lines(log, 4)}" for _, log in written[-3:]]
    return "\n".join(ends) or "  (nothing has been logged: its process is still loading Ray)"


def _last_lines(log: Path, count: int = 8) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-count:])
