"""Which processes of this machine belong to a local cluster, wherever they were moved to.

A process belongs to it if one of its node processes is its ancestor, or if it carries the cluster's mark in its
environment; Ray overwrites the environment of its workers with their titles, so one that is in a node's session and
holds a file of the cluster's folder open belongs to it too.
A user's own driver holds such a file as well, but is in a session of its own.
"""

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "TRAINYARD_CLUSTER"


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one of the same number. started: seconds since the epoch."""

    pid: int
    started: float

    @staticmethod
    def of(pid: int) -> "Process":
        return Process(pid, psutil.Process(pid).create_time())

    def alive(self) -> bool:
        try:
            found = psutil.Process(self.pid)
            return abs(found.create_time() - self.started) < 1 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def processes_of(roots: Collection[Process], folder: Path, cluster_id: str | None = None) -> list[psutil.Process]:
    """All live processes of some nodes (but this one and its ancestors).

    roots: the processes that keep the nodes. folder: the cluster's own temporary folder. cluster_id: also every process
    with the mark of that cluster, whichever node it came from.
    """
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    sessions = {root.pid for root in roots}
    found: dict[int, psutil.Process] = {}
    for root in roots:
        if root.alive():
            for process in [psutil.Process(root.pid), *_below(root.pid)]:
                found[process.pid] = process
    for process in psutil.process_iter():
        if process.pid not in found and _belongs(process, cluster_id, folder, sessions):
            found[process.pid] = process
    return [process for pid, process in found.items() if pid not in spared and _runs(process)]


def marked_keepers(cluster_id: str) -> list[Process]:
    """The processes of cluster/local/node.py that carry the cluster's mark."""
    found: list[Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):  # it has just ended, or is another user's
            if _is_marked(process.pid, cluster_id) and "cluster.local.node" in process.cmdline():
                found.append(Process.of(process.pid))
    return found


def _is_marked(pid: int, cluster_id: str) -> bool:
    return f"{MARK}={cluster_id}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _belongs(process: psutil.Process, cluster_id: str | None, folder: Path, sessions: Collection[int]) -> bool:
    proc = Path("/proc") / str(process.pid)
    try:
        if cluster_id and _is_marked(process.pid, cluster_id):
            return True
        if os.getsid(process.pid) not in sessions:
            return False
        return any(os.readlink(link).startswith(f"{folder}/") for link in (proc / "fd").iterdir())  # noqa: PTH115
    except OSError:  # it has just ended, or is another user's
        return False


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
